//! The launcher as a person meets it: what it runs, what it refuses and says, and what it leaves alone.

use crate::ensure;
use crate::world::{Result, Stop, World};
use libtest_mimic::Trial;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uwt_tests::bed::USER;
use uwt_tests::run::{Outcome, Run};

pub fn tests(world: &Arc<World>) -> Vec<Trial> {
    let test = |name: &str, f: fn(&World) -> Result| world.test(format!("launcher::{name}"), f);
    vec![
        test("exit codes", exit_codes),
        test(
            "the command's own pid, descriptors, signals and output",
            transparent,
        ),
        test("options end where the command begins", options),
        test("--explain runs nothing", explain),
        test("--version and --help", help),
        test("--shell", shell),
        test(
            "refuses what the shim cannot enter, through #! too",
            cannot_enter,
        ),
        test("refuses a missing, cut off, foreign or old shim", bad_shim),
        test(
            "a preload that does not load is no escape",
            malformed_handoff,
        ),
        test("refuses configuration with mistakes", config_mistakes),
        test("refuses configuration of somebody else's", config_owner),
        test("layers of configuration", layers),
        test("refuses half a username and password", half_credentials),
        test("UWT_DEV_PASSTHROUGH", dev_passthrough),
        test("wrapper mode", wrapper),
        test("nested executions have an end", nested),
        test("uwt inside uwt joins the run", inside),
        test("localhost.passthrough = command", passthrough_command),
        test(
            "localhost.passthrough = off, ports, control port",
            passthrough_off,
        ),
        test("inherited connections", inherited),
        test("inbound and bind", inbound),
        test("a curl that was told its proxy", native_proxy),
        test("a plugin's own connect() is the plugin's", plugin),
        test("log levels and log file", logs),
        test("installed by make install", installed),
        test("from any folder, with any umask, without HOME", odd_places),
        test("uwtctl", uwtctl),
    ]
}

const URL: &str = "http://a.example/";

/// uwt with nothing said, for a command line of its own.
fn plain(w: &World) -> Run {
    w.bed.run(&w.bed.path("bin/uwt").to_string_lossy())
}

/// Refused with 125: nothing was run, and standard error says what, why and what to do.
fn refused(o: &Outcome, words: &[&str]) -> Result {
    let told = words.iter().all(|word| o.err.contains(word));
    ensure!(
        o.code() == 125 && o.out.is_empty() && told,
        "expected 125 and {words:?}: {o:#?}"
    );
    Ok(())
}

fn exit_codes(w: &World) -> Result {
    let uwt = |words: &[&str]| w.held(plain(w).args(words));
    uwt(&["true"])?.expect(0)?;
    uwt(&["sh", "-c", "exit 3"])?.expect(3)?;
    // A signal as the shell shows it.
    uwt(&["sh", "-c", "kill -TERM $$"])?.expect(143)?;
    let o = uwt(&["no-such-command"])?.expect(127)?;
    ensure!(
        o.err.contains("no-such-command: command not found"),
        "{o:#?}"
    );
    uwt(&["/no/such/file"])?.expect(127)?;
    uwt(&["/etc/passwd"])?.expect(126)?;
    uwt(&["/etc"])?.expect(126)?;
    uwt(&[])?.expect(125)?;
    uwt(&["--no-such-option", "true"])?.expect(125)?;
    uwt(&["--port", "70000", "true"])?.expect(125)?;
    uwt(&["--isolate=nonsense", "true"])?.expect(125)?;
    Ok(())
}

fn transparent(w: &World) -> Result {
    // In `preload` no process stays: the shell's parent is this one.
    let o = w
        .held(plain(w).args(["sh", "-c", "echo $PPID"]))?
        .expect(0)?;
    ensure!(o.out.trim() == std::process::id().to_string(), "{o:#?}");
    // Nothing on standard output or error but the command's own.
    let o = w.held(plain(w).args(["cat"]).input("in\n"))?.expect(0)?;
    ensure!(o.out == "in\n" && o.err.is_empty(), "{o:#?}");
    // SIGPIPE ends a command as it does without uwt.
    let o = w
        .held(plain(w).args(["bash", "-c", "yes | head -1; echo ${PIPESTATUS[0]}"]))?
        .expect(0)?;
    ensure!(o.out == "y\n141\n", "{o:#?}");
    // Descriptors, limits and arguments as they were.
    let (reader, writer) = UnixStream::pair()?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&writer);
    w.held(
        plain(w)
            .descriptor(fd, 7)
            .args(["sh", "-c", "echo through >&7"]),
    )?
    .expect(0)?;
    drop(writer);
    ensure!(
        std::io::read_to_string(reader)? == "through\n",
        "descriptor 7"
    );
    let odd = ["a b", "", "*", "$x", "\u{e4}", "-n"];
    let o = w
        .held(plain(w).args(["printf", "[%s]"]).args(odd))?
        .expect(0)?;
    ensure!(o.out == "[a b][][*][$x][\u{e4}][-n]", "{o:#?}");
    Ok(())
}

fn options(w: &World) -> Result {
    for words in [
        &["echo", "-P", "1", "--explain"][..],
        &["--", "echo", "-P", "1", "--explain"],
    ] {
        let o = w.held(plain(w).args(words))?.expect(0)?;
        ensure!(o.out == "-P 1 --explain\n", "{o:#?}");
    }
    Ok(())
}

fn explain(w: &World) -> Result {
    let auto = w.held(plain(w).args(["--explain", "true"]))?.expect(0)?;
    ensure!(auto.out.contains("level netns (auto"), "{auto:#?}");
    let run = plain(w).args([
        "--explain",
        "-P",
        "9150",
        "-i=tree",
        "--level",
        "preload",
        "curl",
        "http://x/",
    ]);
    let o = w.held(run)?.expect(0)?;
    for word in [
        "/usr/bin/curl",
        "level preload",
        "127.0.0.1:9150",
        "tree",
        "libtorshim.so",
        "--port",
    ] {
        ensure!(o.out.contains(word), "{word}: {o:#?}");
    }
    let mark = w.bed.path("home/mark");
    let touch = w
        .held(plain(w).args(["--explain", "touch"]).arg(&mark))?
        .expect(0)?;
    ensure!(!mark.exists(), "it ran: {touch:#?}");
    // What would be refused is refused, with the same words.
    let program = w.bed.compile("static", "cc", "-static", "plain.c")?;
    refused(
        &w.held(
            plain(w)
                .args(["--level", "preload", "--explain"])
                .arg(program),
        )?,
        &["statically linked"],
    )
}

fn help(w: &World) -> Result {
    let o = w.held(plain(w).arg("--version"))?.expect(0)?;
    ensure!(o.out.starts_with("uwt 0."), "{o:#?}");
    let o = w.held(plain(w).arg("--help"))?.expect(0)?;
    for option in [
        "-a",
        "-P",
        "-u",
        "-p",
        "-i",
        "-d",
        "-q",
        "--shell",
        "-V",
        "--level",
        "--dns",
        "--config",
        "--explain",
    ] {
        ensure!(o.out.contains(option), "{option}: {o:#?}");
    }
    Ok(())
}

fn shell(w: &World) -> Result {
    let server = w.server()?;
    let script = format!("curl -sS {URL}\n");
    let o = w
        .held(
            w.bed
                .uwt(server.port())
                .arg("--shell")
                .env("SHELL", "/bin/sh")
                .input(script),
        )?
        .expect(0)?;
    ensure!(
        o.out.contains("GET / of a.example") && server.take().len() == 1,
        "{o:#?}"
    );
    Ok(())
}

fn executable(path: &Path, text: &str) -> Result<PathBuf> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(path.to_owned())
}

fn cannot_enter(w: &World) -> Result {
    let preload = || plain(w).args(["--level", "preload"]);
    let program = w.bed.compile("static", "cc", "-static", "plain.c")?;
    refused(
        &w.held(preload().arg(&program))?,
        &["statically linked", "nothing was run"],
    )?;
    let script = executable(
        &w.bed.path("home/script"),
        &format!("#!{}\n", program.display()),
    )?;
    refused(&w.held(preload().arg(&script))?, &["statically linked"])?;
    let outer = executable(
        &w.bed.path("home/outer"),
        &format!("#!{} -x\n", script.display()),
    )?;
    refused(&w.held(preload().arg(&outer))?, &["statically linked"])?;
    let by_env = executable(
        &w.bed.path("home/by-env"),
        &format!("#!/usr/bin/env {}\n", program.display()),
    )?;
    refused(&w.held(preload().arg(&by_env))?, &["statically linked"])?;
    let ld = "/lib64/ld-linux-x86-64.so.2";
    if Path::new(ld).exists() {
        refused(
            &w.held(preload().arg(ld).arg(&program))?,
            &["statically linked"],
        )?;
        w.held(preload().args([ld, "/bin/true"]))?.expect(0)?;
    }
    // A script without #! is the shell's, as with execvp(3).
    let bare = executable(&w.bed.path("home/bare"), "echo as a script\n")?;
    let o = w.held(preload().arg(&bare))?.expect(0)?;
    ensure!(o.out == "as a script\n", "{o:#?}");
    // Cut off anywhere, an ELF file is not started.
    let whole = fs::read("/bin/true")?;
    for cut in [4, 63, 100, 500] {
        let path = w.bed.path("home/cut");
        fs::write(&path, &whole[..cut])?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        refused(&w.held(preload().arg(&path))?, &["malformed"])?;
    }
    if !w.bed.root {
        return Ok(());
    }
    // Root hides what setuid bits do: as an ordinary user.
    let user = || w.bed.run_as_user(&w.bed.path("bin/uwt").to_string_lossy());
    for (mode, why) in [(0o4755, "setuid"), (0o2755, "setgid")] {
        let path = w.bed.path("work/elevated");
        fs::copy("/bin/true", &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        let preload = user().args(["--level", "preload"]);
        refused(&w.held(preload.arg(&path))?, &[why, "--level netns"])?;
        let netns = user().args(["--level", "netns"]);
        refused(
            &w.held(netns.arg(&path))?,
            &[why, "cannot change who it is", "sudo uwt"],
        )?;
    }
    w.held(user().arg("true"))?.expect(0)?;
    Ok(())
}

/// A copy of the launcher with a shim of its own beside it.
fn with_shim(w: &World, name: &str, shim: Option<&[u8]>) -> Result<Run> {
    let folder = w.bed.path(name);
    fs::create_dir_all(&folder)?;
    fs::copy(w.bed.path("bin/uwt"), folder.join("uwt"))?;
    let path = folder.join("libtorshim.so");
    let _ = fs::remove_file(&path);
    if let Some(bytes) = shim {
        fs::write(&path, bytes)?;
    }
    Ok(w.bed.run(&folder.join("uwt").to_string_lossy()).arg("true"))
}

fn bad_shim(w: &World) -> Result {
    let good = fs::read(w.bed.path("bin/libtorshim.so"))?;
    w.held(with_shim(w, "shim-good", Some(&good))?)?.expect(0)?;
    refused(
        &w.held(with_shim(w, "shim-none", None)?)?,
        &["missing", "nothing was run"],
    )?;
    for cut in [0, 3, 64, 4096, good.len() / 2, good.len() - 1] {
        let o = w.held(with_shim(w, "shim-cut", Some(&good[..cut]))?)?;
        refused(&o, &["the shim cannot be used"])?;
    }
    let mut other = good.clone();
    other[18] = 183;
    refused(
        &w.held(with_shim(w, "shim-arch", Some(&other))?)?,
        &["architecture"],
    )?;
    let mut old = good.clone();
    let at = old
        .windows(12)
        .position(|b| b == b"uwt-torshim ")
        .ok_or("no note in the shim")?;
    old[at + 12] = b'9';
    refused(
        &w.held(with_shim(w, "shim-old", Some(&old))?)?,
        &["this launcher's version"],
    )?;
    with_shim(w, "shim-open", Some(&good))?;
    let open = w.bed.path("shim-open/libtorshim.so");
    fs::set_permissions(open, fs::Permissions::from_mode(0o666))?;
    let run = w
        .bed
        .run(&w.bed.path("shim-open/uwt").to_string_lossy())
        .arg("true");
    refused(&w.held(run)?, &["anybody may write it"])?;
    // ld.so splits LD_PRELOAD at spaces and colons.
    let o = w.held(with_shim(w, "with space", Some(&good))?)?;
    refused(&o, &["space"])
}

fn malformed_handoff(w: &World) -> Result {
    // The shim without a policy, or with a broken one, refuses the network and lets the program live.
    let vectors = w.bed.vectors()?;
    let shim = w.bed.path("bin/libtorshim.so");
    let good = w
        .held(plain(w).args(["sh", "-c", "printf %s \"$UWT_HANDOFF\""]))?
        .expect(0)?
        .out;
    let mut broken = vec![
        String::new(),
        "uwt1;".into(),
        "x".repeat(100_000),
        good[1..].to_owned(),
    ];
    broken.extend((0..good.len()).step_by(37).map(|n| good[..n].to_owned()));
    broken.push(good.replace("localhost=6:direct", "localhost=6:refuse"));
    for text in broken {
        let run = w
            .bed
            .run(&vectors.to_string_lossy())
            .env("LD_PRELOAD", &shim)
            .env("UWT_HANDOFF", &text);
        let o = w.held(run.arg("connect4"))?;
        ensure!(o.code() == 1, "{text:?}: {o:#?}");
        let run = w
            .bed
            .run(&vectors.to_string_lossy())
            .env("LD_PRELOAD", &shim)
            .env("UWT_HANDOFF", &text);
        w.held(run.arg("gai"))?.expect(1)?;
    }
    let run = w.bed.run("cat").env("LD_PRELOAD", &shim).input("alive");
    ensure!(
        w.held(run)?.expect(0)?.out == "alive",
        "a program that needs no network"
    );
    Ok(())
}

/// A configuration file for one run; gives XDG_CONFIG_HOME.
fn config(w: &World, name: &str, text: &str) -> Result<PathBuf> {
    let home = w.bed.path(&format!("config-{name}"));
    fs::create_dir_all(home.join("uwt"))?;
    fs::write(home.join("uwt/50_user.toml"), text)?;
    Ok(home)
}

fn config_mistakes(w: &World) -> Result {
    for (text, words) in [
        (
            "isolat = \"pid\"\n",
            &["50_user.toml:1", "isolat", "did you mean \"isolate\"?"][..],
        ),
        (
            "\n\n[localhost]\npasthrough = \"off\"\n",
            &["50_user.toml:4", "localhost.passthrough"],
        ),
        ("port = 0\n", &["50_user.toml:1", "port"]),
        ("port = [1]\n", &["50_user.toml:1", "port"]),
        ("isolate = \"everything\"\n", &["50_user.toml:1", "pid"]),
        ("port = 9050\nport = 9051\n", &["50_user.toml:2"]),
        ("this is not TOML\n", &["50_user.toml:1"]),
        (
            "[command.curl]\nprot = 1\n",
            &["50_user.toml:2", "\"port\""],
        ),
    ] {
        let home = config(w, "mistake", text)?;
        refused(
            &w.held(plain(w).env("XDG_CONFIG_HOME", &home).arg("true"))?,
            words,
        )?;
    }
    let o = w.held(plain(w).env("UWT_PROT", "1").arg("true"))?;
    refused(&o, &["UWT_PROT", "UWT_PORT"])?;
    refused(
        &w.held(plain(w).env("UWT_PORT", "x").arg("true"))?,
        &["UWT_PORT"],
    )?;
    let o = w.held(plain(w).args(["--config", "/no/such.toml", "true"]))?;
    refused(&o, &["/no/such.toml"])?;
    let home = config(w, "dir", "")?;
    fs::create_dir_all(home.join("uwt/60.toml"))?;
    refused(
        &w.held(plain(w).env("XDG_CONFIG_HOME", &home).arg("true"))?,
        &["60.toml"],
    )
}

fn config_owner(w: &World) -> Result {
    let home = config(w, "owner", "port = 1\n")?;
    let file = home.join("uwt/50_user.toml");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666))?;
    let o = w.held(plain(w).env("XDG_CONFIG_HOME", &home).arg("true"))?;
    refused(&o, &["50_user.toml", "others may write it", "chmod"])?;
    if !w.bed.root {
        return Ok(());
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
    std::os::unix::fs::chown(&file, Some(USER), Some(USER))?;
    let o = w.held(plain(w).env("XDG_CONFIG_HOME", &home).arg("true"))?;
    refused(&o, &["50_user.toml", "belongs to uid 1,"])
}

fn layers(w: &World) -> Result {
    let home = config(w, "layers", "port = 1111\n[command.curl]\nport = 2222\n")?;
    let show = |more: &[&str], command: &str, variable: bool| -> Result<String> {
        let run = plain(w)
            .env("XDG_CONFIG_HOME", &home)
            .arg("--explain")
            .args(more)
            .arg(command);
        let run = if variable {
            run.env("UWT_PORT", "3333")
        } else {
            run
        };
        Ok(w.held(run)?.expect(0)?.out)
    };
    for (more, command, variable, port, origin) in [
        (&[][..], "true", false, "1111", "50_user.toml:1"),
        (&[], "curl", false, "2222", "50_user.toml:3"),
        (&[], "/usr/bin/curl", false, "2222", "50_user.toml:3"),
        (&[], "curl", true, "3333", "UWT_PORT"),
        (&["-P", "4444"], "curl", true, "4444", "--port"),
    ] {
        let text = show(more, command, variable)?;
        ensure!(
            text.contains(&format!("127.0.0.1:{port}")) && text.contains(origin),
            "{port}: {text}"
        );
    }
    Ok(())
}

fn half_credentials(w: &World) -> Result {
    refused(
        &w.held(plain(w).args(["-u", "me", "true"]))?,
        &["--user", "set both, or neither"],
    )?;
    refused(&w.held(plain(w).args(["-p", "x", "true"]))?, &["--pass"])
}

fn dev_passthrough(w: &World) -> Result {
    let vectors = w.bed.vectors()?;
    let run = plain(w)
        .env("UWT_DEV_PASSTHROUGH", "1")
        .arg(&vectors)
        .arg("udp_sendto");
    let o = w.loose(run)?;
    ensure!(
        !o.escapes.is_empty(),
        "it is there to reach the network: {o:#?}"
    );
    // It is per call, and says nothing.
    let o = w.loose(plain(w).env("UWT_DEV_PASSTHROUGH", "1").args(["echo", "x"]))?;
    ensure!(o.out == "x\n" && o.err.is_empty(), "{o:#?}");
    // Inside a run of uwt, the command leaves it whole: no shim, no handoff.
    let uwt = w.bed.path("bin/uwt").display().to_string();
    let script = format!("UWT_DEV_PASSTHROUGH=1 {uwt} env");
    let o = w.loose(plain(w).args(["sh", "-c", &script]))?;
    ensure!(
        !o.out.contains("LD_PRELOAD") && !o.out.contains("UWT_HANDOFF"),
        "{o:#?}"
    );
    // Anything else than 1 is not it.
    let o = w.held(
        plain(w)
            .env("UWT_DEV_PASSTHROUGH", "0")
            .arg(&vectors)
            .arg("udp_sendto"),
    )?;
    o.expect(1)?;
    Ok(())
}

/// A folder with wrappers: NAME leads to uwt, NAME.anondist-orig is the real one.
fn wrappers(w: &World, name: &str, commands: &[(&str, &str)]) -> Result<PathBuf> {
    let folder = w.bed.path(name);
    if !folder.exists() {
        fs::create_dir_all(&folder)?;
        for (command, real) in commands {
            symlink(w.bed.path("bin/uwt"), folder.join(command))?;
            fs::copy(real, folder.join(format!("{command}.anondist-orig")))?;
        }
    }
    Ok(folder)
}

fn wrapper(w: &World) -> Result {
    let server = w.server()?;
    let folder = wrappers(
        w,
        "wrapped",
        &[("curl", "/usr/bin/curl"), ("wget", "/usr/bin/wget")],
    )?;
    let path = format!("{}:/usr/bin:/bin", folder.display());
    let port = server.port().to_string();
    let run = |program: String| {
        w.bed
            .run(&program)
            .env("PATH", &path)
            .env("UWT_PORT", &port)
    };
    let carried = |run: Run| -> Result {
        let o = w.held(run)?.expect(0)?;
        ensure!(
            o.out.contains("GET / of a.example") && server.take().len() == 1,
            "{o:#?}"
        );
        Ok(())
    };
    let curl = folder.join("curl").display().to_string();
    carried(run(curl.clone()).args(["-sS", URL]))?;
    carried(run(curl.clone()).argv0("curl").args(["-sS", URL]))?;
    carried(run(curl.clone()).argv0("curl.anondist").args(["-sS", URL]))?;
    carried(run("sh".into()).args(["-c", &format!("wget -q -O- {URL}")]))?;
    // uwt on a wrapped command runs the real one, once.
    carried(run(w.bed.path("bin/uwt").display().to_string()).args(["curl", "-sS", URL]))?;
    // The real one by its own name is the real one.
    let o = w.loose(run(format!("{curl}.anondist-orig")).args([
        "-sS",
        "-m",
        "2",
        "http://198.51.100.7/",
    ]))?;
    ensure!(!o.escapes.is_empty(), "{o:#?}");
    // A wrapper whose command is not installed says so, and runs nothing.
    symlink(w.bed.path("bin/uwt"), folder.join("git"))?;
    let o = w
        .held(run(folder.join("git").display().to_string()).arg("version"))?
        .expect(127)?;
    ensure!(o.err.contains("git.anondist-orig"), "{o:#?}");
    Ok(())
}

fn nested(w: &World) -> Result {
    let folder = w.bed.path("nested");
    fs::create_dir_all(&folder)?;
    symlink(w.bed.path("bin/uwt"), folder.join("curl"))?;
    let itself = folder.join("curl");
    executable(
        &folder.join("curl.anondist-orig"),
        &format!("#!/bin/sh\nexec {} \"$@\"\n", itself.display()),
    )?;
    let o = w
        .held(w.bed.run(&itself.to_string_lossy()).arg("x"))?
        .expect(255)?;
    let words = "uwtwrapper uwt wrapper ERROR: More than uwtwrapper_counter '10' nested executions (uwtwrapper_max: '10').";
    ensure!(o.err.lines().any(|l| l == words), "{o:#?}");
    let o = w
        .held(
            w.bed
                .run(&itself.to_string_lossy())
                .env("UWT_NESTED_MAX", "3"),
        )?
        .expect(255)?;
    ensure!(o.err.contains("'3' nested"), "{o:#?}");
    Ok(())
}

fn inside(w: &World) -> Result {
    let server = w.server()?;
    let uwt = w.bed.path("bin/uwt").display().to_string();
    // The shim is there once, the run's secret is the outer one's.
    let script = format!(
        "{uwt} {uwt} sh -c 'echo $LD_PRELOAD; wget -q -O/dev/null {URL}'; wget -q -O/dev/null {URL}"
    );
    let o = w
        .held(w.bed.uwt(server.port()).args(["sh", "-c", &script]))?
        .expect(0)?;
    ensure!(o.out.matches("libtorshim.so").count() == 1, "{o:#?}");
    let r = server.take();
    let run = |i: usize| r[i].password().split(':').nth(1).map(str::to_owned);
    ensure!(
        r.len() == 2 && run(0) == run(1) && r[0].password() != r[1].password(),
        "{r:#?}"
    );
    // Options of its own are heard: another run, with its own secret.
    let script = format!("{uwt} -i=tree wget -q -O/dev/null {URL}");
    w.held(
        w.bed
            .uwt(server.port())
            .env("UWT_PORT", server.port().to_string())
            .args(["sh", "-c", &script]),
    )?
    .expect(0)?;
    let r = server.take();
    ensure!(r.len() == 1 && r[0].password().ends_with(":tree"), "{r:#?}");
    Ok(())
}

fn passthrough_command(w: &World) -> Result {
    let explain = |argument: &str| -> Result<bool> {
        let run = plain(w).env("UWT_LOCALHOST_PASSTHROUGH", "command").args([
            "--explain",
            "curl",
            argument,
        ]);
        Ok(w.held(run)?.expect(0)?.out.contains("without uwt"))
    };
    for argument in [
        "localhost",
        "127.0.0.1",
        "127.0.0.1:80",
        "http://localhost:8080/x",
        "https://[::1]/",
        "me@localhost",
        "http://u:p@127.0.0.1/",
        "::1",
        "[::1]:80",
    ] {
        ensure!(explain(argument)?, "{argument} is loopback");
    }
    for argument in [
        "localhost.example.com",
        "http://example.com/?x=localhost",
        "http://example.com/127.0.0.1",
        "data=127.0.0.1",
        "notlocalhost",
        "http://127.0.0.1.example.com/",
        "http://localhost@example.com/",
        "file-localhost",
    ] {
        ensure!(!explain(argument)?, "{argument} is not loopback");
    }
    Ok(())
}

fn passthrough_off(w: &World) -> Result {
    let server = w.server()?;
    let web = uwt_tests::http::listen("127.0.0.1:0", None)?;
    let client = w.bed.compile(
        "client",
        "cc",
        "-O1 -Wno-unused-result -lpthread",
        "client.c",
    )?;
    let connect = |variables: &[(&str, &str)], host: &str, port: u16| -> Result<String> {
        let mut run =
            w.bed
                .uwt(server.port())
                .arg(&client)
                .args(["blocking", host, &port.to_string()]);
        for (name, value) in variables {
            run = run.env(name, value);
        }
        Ok(w.held(run)?.out)
    };
    let port = web.port();
    for host in ["127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0"] {
        ensure!(connect(&[], host, port)?.starts_with("connected"), "{host}");
        let out = connect(&[("UWT_LOCALHOST_PASSTHROUGH", "off")], host, port)?;
        ensure!(out.starts_with("error ECONNREFUSED"), "{host}: {out}");
    }
    // Tor's control port and resolvers are refused until they are named.
    let _control = std::net::TcpListener::bind("127.0.0.1:9151")?;
    ensure!(
        connect(&[], "127.0.0.1", 9151)?.starts_with("error ECONNREFUSED"),
        "control port"
    );
    let allowed = connect(&[("UWT_LOCALHOST_PORTS", "9151")], "127.0.0.1", 9151)?;
    ensure!(allowed.starts_with("connected"), "{allowed}");
    ensure!(server.take().is_empty(), "loopback went to Tor");
    Ok(())
}

fn inherited(w: &World) -> Result {
    let outside = std::net::UdpSocket::bind("192.0.2.2:0")?;
    outside.connect("198.51.100.7:9")?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&outside);
    let o = w.held(plain(w).descriptor(fd, 1).arg("true"))?;
    refused(&o, &["descriptor 1 is a network connection beside Tor"])?;
    let o = w.held(plain(w).descriptor(fd, 9).args(["sh", "-c", "echo x >&9"]))?;
    ensure!(o.code() != 0, "{o:#?}");
    Ok(())
}

fn inbound(w: &World) -> Result {
    let code = "
import errno, socket, sys
s = socket.socket()
try:
    s.bind((sys.argv[1], 0)); s.listen(); print('listens', s.getsockname()[0])
except OSError as e:
    print(errno.errorcode[e.errno])";
    let listen = |name: &str, value: &str, on: &str| -> Result<String> {
        let run = plain(w).env(name, value).args(["python3", "-c", code, on]);
        Ok(w.held(run)?.expect(0)?.out)
    };
    for (name, value, on, want) in [
        (
            "UWT_INBOUND",
            "loopback",
            "127.0.0.1",
            "listens 127.0.0.1\n",
        ),
        ("UWT_INBOUND", "loopback", "0.0.0.0", "EPERM\n"),
        ("UWT_INBOUND", "loopback", "192.0.2.2", "EPERM\n"),
        ("UWT_INBOUND", "refuse", "127.0.0.1", "EPERM\n"),
        ("UWT_INBOUND", "allow", "0.0.0.0", "listens 0.0.0.0\n"),
        ("UWT_BIND", "loopback", "0.0.0.0", "listens 127.0.0.1\n"),
        ("UWT_BIND", "loopback", "192.0.2.2", "listens 127.0.0.1\n"),
    ] {
        let out = listen(name, value, on)?;
        ensure!(out == want, "{name}={value} on {on}: {out:?}");
    }
    Ok(())
}

fn native_proxy(w: &World) -> Result {
    let server = w.server()?;
    let uwt = || w.bed.uwt(server.port());
    // As shipped, curl is told its proxy; the credentials are the ones that the shim would use.
    let o = w
        .held(uwt().args(["curl", "-sS", "http://x.onion/"]))?
        .expect(0)?;
    let r = server.take();
    ensure!(
        r.len() == 1 && r[0].host == "x.onion" && r[0].password().contains(":pid:"),
        "{o:#?} {r:#?}"
    );
    // The user's own proxy stays the user's own.
    let o = w.held(
        uwt()
            .env("ALL_PROXY", "socks5h://127.0.0.1:1")
            .args(["curl", "-sS", URL]),
    )?;
    ensure!(o.code() == 7 && server.take().is_empty(), "{o:#?}");
    // Two curls in one run are two processes.
    w.held(uwt().env("UWT_NATIVE_PROXY", "env").args([
        "sh",
        "-c",
        &format!("curl -s {URL}; curl -s {URL}"),
    ]))?
    .expect(0)?;
    let r = server.take();
    ensure!(r.len() == 2 && r[0].password() != r[1].password(), "{r:#?}");
    // Nothing is left of it where it is not wanted.
    let o = w.held(uwt().args(["env"]))?.expect(0)?;
    ensure!(!o.out.contains("ALL_PROXY"), "{o:#?}");
    Ok(())
}

fn plugin(w: &World) -> Result {
    let plugin = w
        .bed
        .compile("plugin.so", "cc", "-shared -fPIC", "plugin.c")?;
    let program = w
        .bed
        .compile("loads_plugin", "cc", "-ldl", "loads_plugin.c")?;
    let o = w.held(plain(w).arg(program).arg(plugin))?.expect(0)?;
    ensure!(o.out == "41 42 0\n", "{o:#?}");
    Ok(())
}

fn logs(w: &World) -> Result {
    let server = w.server()?;
    let vectors = w.bed.vectors()?;
    let run = |word: &str| w.bed.uwt(server.port()).arg(word).arg(&vectors);
    let o = w.held(w.bed.uwt(server.port()).arg(&vectors).arg("udp_sendto"))?;
    ensure!(
        o.err.contains("198.51.100.7:80") && o.err.contains("not TCP"),
        "{o:#?}"
    );
    let o = w.held(run("-q").arg("udp_sendto"))?;
    ensure!(o.err.is_empty(), "{o:#?}");
    // No noise when all is well.
    let o = w.held(w.bed.uwt(server.port()).arg(&vectors).arg("connect4"))?;
    ensure!(o.err.is_empty(), "{o:#?}");
    let o = w.held(run("-d").arg("connect4"))?;
    ensure!(
        o.err.contains("198.51.100.7:80: connected through Tor"),
        "{o:#?}"
    );
    let file = w.bed.path("home/uwt.log");
    let o = w.held(run("-d").env("UWT_LOG_FILE", &file).arg("connect4"))?;
    ensure!(
        o.err.is_empty() && fs::read_to_string(&file)?.contains("connected through Tor"),
        "{o:#?}"
    );
    Ok(())
}

fn installed(w: &World) -> Result {
    let root = w.bed.path("installed");
    let top = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    if !uwt_tests::bed::has("make") {
        return Err(Stop::Skipped("make is not installed".into()));
    }
    // It copies what is built, and builds nothing.
    let out = w
        .bed
        .run("make")
        .args(["-s", "-C", top, "install"])
        .arg(format!("DESTDIR={}", root.display()))
        .run()?;
    out.expect(0)?;
    let uwt = root.join("usr/bin/uwt");
    let server = w.server()?;
    let run = w.bed.run(&uwt.to_string_lossy()).args([
        "-P",
        &server.port().to_string(),
        "sh",
        "-c",
        "echo $LD_PRELOAD; wget -q -O- http://a.example/",
    ]);
    let o = w.held(run)?.expect(0)?;
    let shim = o.out.lines().next().unwrap_or("").to_owned();
    ensure!(
        shim.starts_with(&*root.to_string_lossy())
            && shim.contains("/lib/")
            && !shim.contains(".."),
        "{o:#?}"
    );
    ensure!(
        root.join("etc/uwt.d/30_default.toml").exists(),
        "no configuration"
    );
    Ok(())
}

fn odd_places(w: &World) -> Result {
    let server = w.server()?;
    let carried = |run: Run| -> Result {
        let o = w.held(run.args(["wget", "-q", "-O-", URL]))?.expect(0)?;
        ensure!(o.out.contains("GET / of a.example"), "{o:#?}");
        Ok(())
    };
    carried(w.bed.uwt(server.port()).folder("/"))?;
    carried(w.bed.uwt(server.port()).env("HOME", "/nonexistent"))?;
    carried(w.bed.uwt(server.port()).env("XDG_CONFIG_HOME", "relative"))?;
    carried(
        w.bed
            .uwt(server.port())
            .env("LD_PRELOAD", "/nonexistent.so"),
    )?;
    carried(w.bed.uwt(server.port()).env("TMPDIR", "/nonexistent"))?;
    // By a relative path, and by a symbolic link.
    let here = w
        .bed
        .run("./uwt")
        .folder(w.bed.path("bin"))
        .args(["-P", &server.port().to_string()]);
    carried(here)?;
    let link = w.bed.path("home/link-to-uwt");
    symlink(w.bed.path("bin/uwt"), &link)?;
    let o = w.held(w.bed.run(&link.to_string_lossy()).argv0("uwt").args([
        "-P",
        &server.port().to_string(),
        "true",
    ]))?;
    o.expect(0)?;
    // Limits that a service has.
    let run = w.bed.uwt(server.port()).limit_descriptors(16);
    carried(run)
}

fn uwtctl(w: &World) -> Result {
    let ctl = |words: &[&str]| {
        w.bed
            .run(&w.bed.path("bin/uwtctl").to_string_lossy())
            .args(words)
    };
    // Whonix's bash files: read, not run.
    let bash = w.bed.path("home/30_whonix.conf");
    let marker = w.bed.path("home/ran");
    fs::write(
        &bash,
        format!(
            "uwtwrapper_global=\"1\"\nuwtwrapper[\"/usr/bin/curl\"]=\"0\"\ntouch {}\n",
            marker.display()
        ),
    )?;
    let o = w.held(ctl(&["config", "migrate"]).arg(&bash))?.expect(1)?;
    ensure!(
        o.out == "enabled = true\n\n[command.\"curl\"]\nenabled = false\n"
            && o.err.contains("30_whonix.conf:3: not carried")
            && !marker.exists(),
        "{o:#?}"
    );
    fs::write(&bash, "uwtwrapper_max=7\n")?;
    let o = w.held(ctl(&["config", "migrate"]).arg(&bash))?.expect(0)?;
    ensure!(o.out == "nested_max = 7\n" && o.err.is_empty(), "{o:#?}");
    let server = w.server()?;
    let port = server.port().to_string();
    let o = w
        .held(ctl(&["config", "show"]).env("UWT_PORT", &port))?
        .expect(0)?;
    ensure!(
        o.out
            .lines()
            .any(|l| l.contains("port") && l.contains(&port) && l.contains("UWT_PORT")),
        "{o:#?}"
    );
    let o = w.held(ctl(&["config", "show", "--json"]))?.expect(0)?;
    ensure!(
        o.out.starts_with('{') && o.out.contains("\"origin\": \"default\""),
        "{o:#?}"
    );
    w.held(ctl(&["config", "check"]))?.expect(0)?;
    let o = w.held(ctl(&["status"]).env("UWT_PORT", &port))?.expect(0)?;
    ensure!(o.out.contains("takes credentials"), "{o:#?}");
    let o = w.held(ctl(&["status"]).env("UWT_PORT", "1"))?.expect(1)?;
    ensure!(
        o.out.contains("FAIL") && o.out.contains("is tor running?"),
        "{o:#?}"
    );
    Ok(())
}
