//! Real clients through a real Tor network: what people will run.

use crate::ensure;
use crate::world::{Result, Stop, World};
use libtest_mimic::Trial;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use uwt_tests::bed::has;
use uwt_tests::http;
use uwt_tests::run::Run;
use uwt_tests::tornet::{self, Network};

/// The web server that serves files, as the exits reach it.
const FILES: &str = "127.0.0.1:18081";
const FILES_URL: &str = "http://files.example:18081";

pub fn tests(world: &Arc<World>) -> Vec<Trial> {
    let test = |name: &str, f: fn(&World, &Network) -> Result| {
        let label = format!("clients::{name}");
        world.test(label.clone(), move |w| w.with_tor(&label, |n| f(w, n)))
    };
    vec![
        test("curl by name", curl_name),
        test("curl to an onion service", curl_onion),
        test("curl keeps its own proxy options", curl_own_proxy),
        test("curl through a unix SocksPort", curl_unix),
        test("curl through an IPv6 SocksPort", curl_six),
        test("curl reaches loopback directly", curl_loopback),
        test("wget", wget),
        test("git over http", git_http),
        test("ssh, scp and git over ssh", ssh),
        test("apt-get update and install", apt),
        test("gpg with a keyserver", gpg),
        test("python3, blocking", python),
        test("python3, asyncio", asyncio),
        test("node fetch", node),
        test("Java, URL and HttpClient", java),
        test("as an ordinary user", user),
        test("names are resolved by Tor where asked", resolve),
    ]
}

fn need(tool: &str) -> Result {
    if has(tool) {
        return Ok(());
    }
    Err(Stop::Skipped(format!("{tool} is not installed")))
}

fn uwt(w: &World) -> Run {
    w.bed.uwt(tornet::SOCKS)
}

fn curl_name(w: &World, _: &Network) -> Result {
    let o = w
        .held(uwt(w).args(["curl", "-sS", "http://www.example:18080/a"]))?
        .expect(0)?;
    ensure!(o.out == "GET /a of www.example:18080\n", "{o:#?}");
    Ok(())
}

fn curl_onion(w: &World, n: &Network) -> Result {
    // The descriptor is published some seconds after the network is up.
    let url = format!("http://{}/b", n.onion);
    let o = w.held(uwt(w).args([
        "curl",
        "-sS",
        "--retry",
        "20",
        "--retry-delay",
        "1",
        "--retry-all-errors",
        &url,
    ]))?;
    let o = o.expect(0)?;
    ensure!(o.out.contains("GET /b of"), "{o:#?}");
    Ok(())
}

fn curl_own_proxy(w: &World, n: &Network) -> Result {
    // The user's own words win, and still nothing leaves beside Tor.
    let proxy = format!("socks5h://127.0.0.1:{}", tornet::SOCKS_TWO);
    for arguments in [
        vec!["--proxy", &proxy],
        vec!["--noproxy", "*"],
        vec!["--proxy", "http://www.example:18080"],
    ] {
        let o = w
            .held(
                uwt(w)
                    .args(["curl", "-sS", "http://www.example:18080/c"])
                    .args(&arguments),
            )?
            .expect(0)?;
        ensure!(o.out.contains("GET "), "{arguments:?}: {o:#?}");
    }
    let rc = w.bed.path("home/rc");
    fs::write(
        &rc,
        "user-agent = \"x\"\nurl = \"http://www.example:18080/from-file\"\n",
    )?;
    let o = w
        .held(uwt(w).args(["curl", "-sS", "-K"]).arg(&rc))?
        .expect(0)?;
    ensure!(o.out.contains("GET /from-file"), "{o:#?}");
    // .curlrc too: here it names the other SocksPort, with credentials of the user's own.
    fs::write(
        w.bed.path("home/.curlrc"),
        format!("proxy = \"{proxy}\"\nproxy-user = \"mine:too\"\n"),
    )?;
    let run = uwt(w).args(["curl", "-sS", "http://www.example:18080/rc"]);
    let o = w.held(run);
    fs::remove_file(w.bed.path("home/.curlrc"))?;
    ensure!(o?.expect(0)?.out.contains("GET /rc"), ".curlrc");
    let all = n.control()?.circuits()?;
    let mine = all
        .iter()
        .any(|c| c.username == "mine" && c.password == "too");
    ensure!(mine, "the credentials in .curlrc: {all:#?}");
    // A proxy that is not there is an error, not a reason to go without.
    let o = w.held(uwt(w).args([
        "curl",
        "-sS",
        "--proxy",
        "http://127.0.0.1:1",
        "http://www.example:18080/",
    ]))?;
    ensure!(o.code() == 7, "{o:#?}");
    Ok(())
}

fn curl_unix(w: &World, n: &Network) -> Result {
    let run = w.bed.run(&w.bed.path("bin/uwt").to_string_lossy());
    let address = format!("unix:{}", n.unix().display());
    for more in [&["curl", "-sS"][..], &["wget", "-q", "-O-"]] {
        let run = Run::new(w.bed.path("bin/uwt"), &w.bed.path("home"));
        let run = run
            .args(["-a", &address])
            .args(more)
            .arg("http://www.example:18080/u");
        let o = w.held(run)?.expect(0)?;
        ensure!(o.out.contains("GET /u of"), "{o:#?}");
    }
    drop(run);
    Ok(())
}

fn curl_six(w: &World, _: &Network) -> Result {
    let o = w
        .held(uwt(w).args([
            "-a",
            "::1",
            "wget",
            "-q",
            "-O-",
            "http://www.example:18080/six",
        ]))?
        .expect(0)?;
    ensure!(o.out.contains("GET /six of"), "{o:#?}");
    Ok(())
}

fn curl_loopback(w: &World, _: &Network) -> Result {
    for url in ["http://127.0.0.1:18080/l", "http://localhost:18080/l"] {
        let o = w.held(uwt(w).args(["curl", "-sS", url]))?.expect(0)?;
        ensure!(o.out.contains("GET /l of"), "{o:#?}");
        // Closed where the configuration says so. curl's own proxy exception for loopback leads nowhere then.
        let o = w.held(
            uwt(w)
                .env("UWT_LOCALHOST_PASSTHROUGH", "off")
                .args(["curl", "-sS", url]),
        )?;
        ensure!(o.code() == 7, "{o:#?}");
    }
    Ok(())
}

fn wget(w: &World, _: &Network) -> Result {
    let o = w
        .held(uwt(w).args(["wget", "-q", "-O-", "http://www.example:18080/w"]))?
        .expect(0)?;
    ensure!(o.out == "GET /w of www.example:18080\n", "{o:#?}");
    Ok(())
}

/// A folder that is served at [`FILES_URL`], with a git repository, a Debian one and a key in it.
fn served(w: &World) -> Result<PathBuf> {
    let folder = w.bed.path("served");
    if folder.exists() {
        return Ok(folder);
    }
    fs::create_dir_all(folder.join("debian"))?;
    let script = r#"
set -e
git init -q src && cd src
git config user.email a@example && git config user.name a
echo carried > file && git add file && git commit -qm one
cd .. && git clone -q --bare src repo.git && git -C repo.git update-server-info && rm -rf src
mkdir -p pkg/DEBIAN pkg/usr/share/uwt-hello && echo hello > pkg/usr/share/uwt-hello/hello
printf 'Package: uwt-hello\nVersion: 1\nArchitecture: all\nMaintainer: nobody <a@example>\nDescription: x\n' > pkg/DEBIAN/control
dpkg-deb -b pkg debian/uwt-hello_1_all.deb >/dev/null && rm -r pkg
cd debian && apt-ftparchive packages . > Packages && apt-ftparchive release . > Release
"#;
    let o = w.bed.run("sh").args(["-c", script]).folder(&folder).run()?;
    if o.code() != 0 {
        return Err(Stop::Failed(format!(
            "the served folder cannot be made: {o:#?}"
        )));
    }
    http::listen(FILES, Some(folder.clone()))?;
    Ok(folder)
}

fn git_http(w: &World, _: &Network) -> Result {
    need("git")?;
    served(w)?;
    let to = w.bed.path("home/clone-http");
    let _ = fs::remove_dir_all(&to);
    let url = format!("{FILES_URL}/repo.git");
    w.held(uwt(w).args(["git", "clone", "-q", &url]).arg(&to))?
        .expect(0)?;
    ensure!(
        fs::read_to_string(to.join("file"))? == "carried\n",
        "not the file"
    );
    Ok(())
}

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sshd(w: &World) -> Result<(Server, PathBuf)> {
    need("sshd")?;
    if !w.bed.root {
        return Err(Stop::Skipped("sshd needs root".into()));
    }
    let folder = w.bed.path("ssh");
    fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(&folder)?;
    fs::create_dir_all("/run/sshd")?;
    for key in ["host", "user"] {
        let file = folder.join(key);
        if !file.exists() {
            w.bed
                .run("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(&file)
                .run()?
                .expect(0)?;
        }
    }
    let at = folder.display();
    fs::write(
        folder.join("sshd_config"),
        format!(
            "ListenAddress 127.0.0.1\nPort 2222\nHostKey {at}/host\nAuthorizedKeysFile {at}/user.pub\nUsePAM no\n\
             StrictModes no\nPidFile none\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
        ),
    )?;
    fs::write(
        folder.join("config"),
        format!(
            "Host *\nPort 2222\nUser root\nIdentityFile {at}/user\nIdentitiesOnly yes\nStrictHostKeyChecking no\n\
             UserKnownHostsFile {at}/known\nBatchMode yes\nLogLevel ERROR\n"
        ),
    )?;
    // In a mount namespace without the sink's nscd: sshd is nobody whom uwt holds, and asks it for hosts.
    let mut child = Command::new("unshare")
        .args([
            "-m",
            "sh",
            "-c",
            "mount -t tmpfs none /run/nscd && exec /usr/sbin/sshd \"$@\"",
            "sshd",
        ])
        .args(["-D", "-e", "-f"])
        .arg(folder.join("sshd_config"))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    // "Server listening on" is the event to wait for.
    let mut line = String::new();
    if let Some(err) = child.stderr.take() {
        use std::io::BufRead;
        let mut err = std::io::BufReader::new(err);
        err.read_line(&mut line)?;
        std::thread::spawn(move || std::io::copy(&mut err, &mut std::io::sink()));
    }
    let server = Server(child);
    ensure!(line.contains("listening"), "sshd says {line:?}");
    Ok((server, folder))
}

fn ssh(w: &World, _: &Network) -> Result {
    let (_server, folder) = sshd(w)?;
    let config = folder.join("config");
    let o = w
        .held(
            uwt(w)
                .args(["ssh", "-F"])
                .arg(&config)
                .args(["shell.example", "echo", "there"]),
        )?
        .expect(0)?;
    ensure!(o.out == "there\n", "{o:#?}");
    // As apt, git and rsync use it: the exit status comes back.
    w.held(
        uwt(w)
            .args(["ssh", "-F"])
            .arg(&config)
            .args(["shell.example", "exit 7"]),
    )?
    .expect(7)?;
    let (from, to) = (w.bed.path("home/scp-from"), w.bed.path("home/scp-to"));
    fs::write(&from, vec![b'x'; 300_000])?;
    let there = format!("shell.example:{}", to.display());
    w.held(
        uwt(w)
            .args(["scp", "-q", "-F"])
            .arg(&config)
            .arg(&from)
            .arg(there),
    )?
    .expect(0)?;
    ensure!(fs::read(&to)?.len() == 300_000, "scp");
    let clone = w.bed.path("home/clone-ssh");
    let _ = fs::remove_dir_all(&clone);
    let url = format!("ssh://shell.example:2222{}/repo.git", served(w)?.display());
    let command = format!("ssh -F {}", config.display());
    let run = uwt(w)
        .env("GIT_SSH_COMMAND", command)
        .args(["git", "clone", "-q", &url])
        .arg(&clone);
    w.held(run)?.expect(0)?;
    ensure!(
        fs::read_to_string(clone.join("file"))? == "carried\n",
        "git over ssh"
    );
    Ok(())
}

fn apt(w: &World, _: &Network) -> Result {
    need("apt-ftparchive")?;
    if !w.bed.root {
        return Err(Stop::Skipped("dpkg needs root".into()));
    }
    served(w)?;
    let root = w.bed.path("apt");
    for folder in [
        "etc/sources",
        "state/lists/partial",
        "cache/archives/partial",
        "root/var/lib/dpkg/info",
        "root/var/lib/dpkg/updates",
    ] {
        fs::create_dir_all(root.join(folder))?;
        fs::set_permissions(root.join(folder), fs::Permissions::from_mode(0o755))?;
    }
    fs::write(root.join("root/var/lib/dpkg/status"), "")?;
    fs::write(
        root.join("etc/sources/x.list"),
        format!("deb [trusted=yes] {FILES_URL}/debian ./\n"),
    )?;
    let at = root.display();
    let options = [
        format!("Dir::Etc::SourceParts={at}/etc/sources"),
        "Dir::Etc::SourceList=/dev/null".into(),
        format!("Dir::State={at}/state"),
        format!("Dir::State::status={at}/root/var/lib/dpkg/status"),
        format!("Dir::Cache={at}/cache"),
        format!("DPkg::Options::=--root={at}/root"),
        "Acquire::Languages=none".into(),
    ];
    let words = || options.iter().flat_map(|o| ["-o", o.as_str()]);
    // The methods run as _apt: what the shim needs must be readable then.
    w.held(uwt(w).args(["apt-get", "-q"]).args(words()).arg("update"))?
        .expect(0)?;
    w.held(
        uwt(w)
            .args(["apt-get", "-q", "-y"])
            .args(words())
            .args(["install", "uwt-hello"]),
    )?
    .expect(0)?;
    ensure!(
        root.join("root/usr/share/uwt-hello/hello").exists(),
        "not installed"
    );
    Ok(())
}

fn gpg(w: &World, _: &Network) -> Result {
    need("gpg")?;
    need("dirmngr")?;
    let folder = served(w)?;
    let make = |name: &str| -> Result<PathBuf> {
        let home = w.bed.path(&format!("home/{name}"));
        let _ = fs::remove_dir_all(&home);
        fs::DirBuilder::new().mode(0o700).create(&home)?;
        Ok(home)
    };
    let (theirs, mine) = (make("gpg-theirs")?, make("gpg-mine")?);
    let gpg = |home: &PathBuf| {
        w.bed
            .run("gpg")
            .args(["--batch", "--quiet", "--homedir"])
            .arg(home)
    };
    gpg(&theirs)
        .args([
            "--passphrase",
            "",
            "--quick-gen-key",
            "Carried <carried@example>",
            "ed25519",
            "sign",
            "never",
        ])
        .run()?
        .expect(0)?;
    let listed = gpg(&theirs)
        .args(["--with-colons", "--list-keys"])
        .run()?
        .expect(0)?;
    let fingerprint = listed
        .out
        .lines()
        .find_map(|l| l.strip_prefix("fpr:::::::::"))
        .unwrap_or("")
        .trim_end_matches(':')
        .to_owned();
    let key = gpg(&theirs)
        .args(["--armor", "--export"])
        .run()?
        .expect(0)?;
    fs::create_dir_all(folder.join("pks"))?;
    fs::write(folder.join("pks/lookup"), key.out)?;
    // dirmngr's own resolver knows UDP only; told to use libc's, it is carried.
    fs::write(mine.join("dirmngr.conf"), "standard-resolver\nno-use-tor\n")?;
    let run = uwt(w).args(["gpg", "--batch", "--homedir"]).arg(&mine);
    let run = run.args([
        "--keyserver",
        "hkp://files.example:18081",
        "--recv-keys",
        &fingerprint,
    ]);
    let o = w.held(run)?;
    w.bed
        .run("gpgconf")
        .arg("--homedir")
        .arg(&mine)
        .args(["--kill", "all"])
        .run()?;
    w.bed
        .run("gpgconf")
        .arg("--homedir")
        .arg(&theirs)
        .args(["--kill", "all"])
        .run()?;
    o.expect(0)?;
    Ok(())
}

fn python(w: &World, _: &Network) -> Result {
    let code = "import urllib.request as u; print(u.urlopen('http://www.example:18080/p').read().decode(), end='')";
    let o = w.held(uwt(w).args(["python3", "-c", code]))?.expect(0)?;
    ensure!(o.out == "GET /p of www.example:18080\n", "{o:#?}");
    Ok(())
}

fn asyncio(w: &World, _: &Network) -> Result {
    let code = "
import asyncio
async def one(i):
    r, w = await asyncio.open_connection('host%d.example' % i, 18080)
    w.write(b'GET /%d HTTP/1.0\\r\\n\\r\\n' % i)
    return b'GET /%d of' % i in await r.read()
async def main():
    print(sum(await asyncio.gather(*[one(i) for i in range(20)])))
asyncio.run(main())";
    let o = w.held(uwt(w).args(["python3", "-c", code]))?.expect(0)?;
    ensure!(o.out == "20\n", "{o:#?}");
    Ok(())
}

fn node(w: &World, _: &Network) -> Result {
    need("node")?;
    let code = "fetch('http://www.example:18080/n').then(r => r.text()).then(t => process.stdout.write(t))";
    let o = w.held(uwt(w).args(["node", "-e", code]))?;
    if o.err.contains("fetch is not defined") {
        return Err(Stop::Skipped("this node is older than 18: no fetch".into()));
    }
    ensure!(o.expect(0)?.out == "GET /n of www.example:18080\n", "node");
    Ok(())
}

fn java(w: &World, _: &Network) -> Result {
    need("java")?;
    let source = w.bed.path("home/Fetch.java");
    fs::write(
        &source,
        r#"
import java.net.*; import java.net.http.*;
public class Fetch { public static void main(String[] a) throws Exception {
  System.out.print(new String(new URL("http://one.example:18080/j").openStream().readAllBytes()));
  var r = HttpRequest.newBuilder(URI.create("http://two.example:18080/k")).version(HttpClient.Version.HTTP_1_1).build();
  System.out.print(HttpClient.newHttpClient().send(r, HttpResponse.BodyHandlers.ofString()).body());
} }"#,
    )?;
    let o = w.held(uwt(w).arg("java").arg(source))?;
    if o.err.contains("Error: Could not find or load") || o.err.contains("invalid flag") {
        return Err(Stop::Skipped("this java runs no source files".into()));
    }
    let o = o.expect(0)?;
    ensure!(
        o.out == "GET /j of one.example:18080\nGET /k of two.example:18080\n",
        "{o:#?}"
    );
    Ok(())
}

fn user(w: &World, _: &Network) -> Result {
    if !w.bed.root {
        return Err(Stop::Skipped(
            "the tests run as an ordinary user already".into(),
        ));
    }
    for command in [&["curl", "-sS"][..], &["wget", "-q", "-O-"]] {
        let run = w.bed.run_as_user(&w.bed.path("bin/uwt").to_string_lossy());
        let o = w
            .held(run.args(command).arg("http://www.example:18080/user"))?
            .expect(0)?;
        ensure!(o.out.contains("GET /user of"), "{o:#?}");
    }
    Ok(())
}

fn resolve(w: &World, _: &Network) -> Result {
    let run = uwt(w).args(["--dns", "resolve", "getent", "ahostsv4", "www.example"]);
    let o = w.held(run)?.expect(0)?;
    ensure!(o.out.starts_with("127.0.0.1 "), "{o:#?}");
    let o = w.held(uwt(w).args(["--dns", "resolve", "getent", "ahosts", "missing.example"]))?;
    ensure!(o.code() == 2, "{o:#?}");
    let code = "import socket; print(socket.gethostbyaddr('198.51.100.9')[0])";
    let o = w.held(uwt(w).args(["python3", "-c", code]))?.expect(0)?;
    ensure!(o.out == "name-of-address.test\n", "{o:#?}");
    Ok(())
}
