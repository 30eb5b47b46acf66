//! What a script may notice of a wrapped command: nothing but what uwt itself puts in.

use crate::debian::{done, held, installed, package};
use crate::ensure;
use crate::world::{Result, World};
use libtest_mimic::Trial;
use std::fs;
use std::sync::Arc;
use std::time::Duration;
use uwt_tests::root::Root;

pub fn tests(world: &Arc<World>, suite: &'static str) -> Vec<Trial> {
    let test = |name: &str, f: fn(&World, &'static str) -> Result| {
        world.test(format!("{suite}: noticed: {name}"), move |w| f(w, suite))
    };
    vec![
        test(
            "argv, environment, descriptors, signals, exit status",
            probe,
        ),
        test("a terminal and job control", terminal),
        test("twins and alternatives", twins),
        test("sudo, another user, a bare environment", users),
        test("cron", cron), // it waits for a full minute
        test("bypassed per call, and quietly", bypass),
        test("wrappers within wrappers", nested),
        test("a script's interpreter", interpreter),
    ]
}

/// A system with uwt and a wrapped command that says how it was started.
fn with_probe(w: &World, suite: &str) -> Result<Root> {
    let root = installed(w, suite)?;
    let program = w.bed.compile("probe", "cc", "-O1", "probe.c")?;
    let folder = w.bed.path("probe-package");
    fs::create_dir_all(&folder)?;
    let deb = package(
        &folder,
        "uwt-probe",
        "",
        &[("usr/bin/uwt-probe", "755", &fs::read(program)?)],
    )?;
    fs::copy(deb, root.file("/root/probe.deb"))?;
    done(
        &root,
        "dpkg -i /root/probe.deb >/dev/null; uwtctl wrappers add uwt-probe >/dev/null; readlink /usr/bin/uwt-probe",
    )?;
    Ok(root)
}

fn probe(w: &World, suite: &str) -> Result {
    let root = with_probe(w, suite)?;
    // The same call of the wrapper and of the command itself, in one shell each.
    for call in [
        "P a 'b c' '' -x",
        "(exec -a other P 1)",
        "(exec -a '' P 1)",
        "echo from-stdin | P",
        "P </dev/null 5</etc/passwd 2>/dev/null",
        "P exit 7",
        "P signal 15",
        "P signal 9",
        "(trap '' INT; P)",
        "env -i P",
        "env A=1 LD_LIBRARY_PATH=/x 'ODD=a=b' P",
        "(cd /usr/bin && ./uwt-probe)",
        "nohup P 2>/dev/null",
        "setsid -w P",
        "nice -n 5 P",
        "perl -e 'exec {\"/usr/bin/uwt-probe\"} \"-login\", 1'",
        "(umask 077; ulimit -n 1024; P)",
    ] {
        let script = |program: &str| {
            let call = call.replace("uwt-probe", program).replace('P', program);
            format!(
                "cat > /root/call.sh <<'END'\n{call}\necho status $?\nEND\nbash /root/call.sh 2>&1 </dev/null"
            )
        };
        let wrapped = held(w, &root, &script("uwt-probe"))?;
        let bare = done(
            &root,
            &format!(
                "mkdir -p /root/bare; cp /usr/bin/uwt-probe.anondist-orig /root/bare/uwt-probe; export PATH=/root/bare:$PATH\n{}",
                script("uwt-probe")
                    .replace("/usr/bin/uwt-probe", "/root/bare/uwt-probe")
                    .replace("cd /usr/bin", "cd /root/bare")
            ),
        )?;
        let own = |l: &&str| {
            !(l.starts_with("env LD_PRELOAD=/usr/lib/")
                || l.starts_with("env UWT_HANDOFF=")
                || l.starts_with("env uwtwrapper_counter=1"))
        };
        let clean = |text: &str| {
            text.replace("/root/bare:", "")
                .replace("/root/bare", "/usr/bin")
                .lines()
                .filter(own)
                // bash names the process that a signal ended.
                .map(|l| match l.contains(": line 1: ") {
                    true => l.replace(|c: char| c.is_ascii_digit(), ""),
                    false => l.to_owned(),
                })
                .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>()
        };
        let (a, b) = (clean(&wrapped.out), clean(&bare.out));
        ensure!(a == b, "{call}:\nwrapped {a:#?}\nbare {b:#?}");
        ensure!(
            b.iter().any(|l| l.starts_with("argv[0]")),
            "{call}: {bare:#?}"
        );
        ensure!(
            wrapped.out.contains("UWT_HANDOFF=") && wrapped.out.contains("uwtwrapper_counter=1"),
            "{call}: not wrapped: {wrapped:#?}"
        );
    }
    Ok(())
}

fn terminal(w: &World, suite: &str) -> Result {
    let root = with_probe(w, suite)?;
    // script(1) gives it a terminal; an interactive shell on it has job control.
    let session = "uwt-probe\nuwt-probe &\nwait\nexit\n";
    fs::write(root.file("/root/session"), session)?;
    let o = held(
        w,
        &root,
        "script -qec 'bash --norc -i' /dev/null < /root/session | tr -d '\\r'",
    )?;
    let leaders: Vec<&str> = o.out.lines().filter(|l| l.starts_with("leader ")).collect();
    // In the foreground it is its group's leader and owns the terminal; in the background it does not own it.
    ensure!(
        leaders == ["leader 1 foreground 1 tty 1", "leader 1 foreground 0 tty 1"],
        "{leaders:?} {o:#?}"
    );
    // Stopped and continued, as by ^Z and fg: the process that the shell started is the command itself.
    let o = held(
        w,
        &root,
        "cat > /root/jobs.sh <<'END'\nset -m\nperl -MSocket -e 'socket(S, AF_INET, SOCK_STREAM, 0); \
         bind(S, sockaddr_in(19999, INADDR_LOOPBACK)); listen(S, 5); sleep 60' & while ! grep -q ':4E1F .* 0A ' /proc/net/tcp; do :; done\n\
         curl -s telnet://127.0.0.1:19999 & p=$!\nwhile ! grep -q curl /proc/$p/comm; do :; done\nkill -STOP $p\n\
         while ! grep -q '^State:.T' /proc/$p/status; do :; done; jobs -l | grep -c Stopped\nkill -CONT $p\n\
         while grep -q '^State:.T' /proc/$p/status; do :; done; kill -INT $p; wait $p; echo $?\nkill %1\nEND\nbash /root/jobs.sh 2>/dev/null",
    )?;
    ensure!(o.out.starts_with("1\n130\n"), "{o:#?}");
    Ok(())
}

fn twins(w: &World, suite: &str) -> Result {
    let root = installed(w, suite)?;
    let o = held(
        w,
        &root,
        "cd /root; git init -q --bare r.git; git init -q s; cd s; git config user.email a@example.org; git config user.name a
         git commit -q --allow-empty -m x; git push -q ../r.git HEAD:master; git -C ../r.git log --oneline | wc -l
         # git-receive-pack, git-upload-pack: links to git.
         readlink /usr/bin/git-upload-pack; printf 0000 | git-upload-pack ../r.git | head -c 4 | wc -c
         git-upload-pack 2>&1 | head -n 1; /usr/bin/git-receive-pack 2>&1 | head -n 1",
    )?;
    ensure!(o.out.starts_with("1\ngit\n4\n"), "{o:#?}");
    ensure!(
        o.out.contains("git-upload-pack") || o.out.contains("upload-pack ["),
        "{o:#?}"
    );
    // An alternative that leads to a wrapped command.
    let o = held(
        w,
        &root,
        "uwtctl wrappers add nc >/dev/null; nc -h 2>&1 | head -n 1
         update-alternatives --install /usr/bin/fetch fetch /usr/bin/curl 10 >/dev/null 2>&1; fetch --version | cut -d' ' -f1 | head -n 1
         ln -s /usr/bin/curl /usr/local/bin/mine; mine --version | cut -d' ' -f1 | head -n 1; gpg --version | head -n 1 | cut -d' ' -f1",
    )?;
    ensure!(
        o.out == "OpenBSD netcat (Debian patchlevel 1.228-1)\ncurl\ncurl\ngpg\n"
            || o.out.starts_with("OpenBSD netcat") && o.out.ends_with("\ncurl\ncurl\ngpg\n"),
        "{o:#?}"
    );
    Ok(())
}

fn users(w: &World, suite: &str) -> Result {
    let root = with_probe(w, suite)?;
    let carried = |o: &str, n: usize| o.matches("env UWT_HANDOFF=").count() == n;
    let o = held(
        w,
        &root,
        "su person -c 'sudo uwt-probe; sudo -E uwt-probe; sudo -u nobody /usr/bin/uwt-probe; uwt-probe'",
    )?;
    ensure!(carried(&o.out, 4), "{o:#?}");
    let o = done(
        &root,
        "su person -c 'UWT_DEV_PASSTHROUGH=1 sudo -E uwt-probe; UWT_DEV_PASSTHROUGH=1 uwt-probe'",
    )?;
    ensure!(
        carried(&o.out, 0) && o.out.matches("argv[0]=").count() == 2,
        "{o:#?}"
    );
    // No PATH, no HOME, by whole path and through env.
    let o = held(
        w,
        &root,
        "env -i /usr/bin/uwt-probe; env -i sh -c uwt-probe; env -i /usr/bin/env /bin/uwt-probe",
    )?;
    ensure!(carried(&o.out, 3), "{o:#?}");
    // From a maintainer script.
    let folder = w.bed.path("calls-probe");
    fs::create_dir_all(&folder)?;
    let deb = package(
        &folder,
        "calls-probe",
        "",
        &[(
            "DEBIAN/postinst",
            "755",
            b"#!/bin/sh\nuwt-probe > /probe-said\n",
        )],
    )?;
    fs::copy(deb, root.file("/root/calls.deb"))?;
    let o = held(
        w,
        &root,
        "dpkg -i /root/calls.deb >/dev/null; cat /probe-said",
    )?;
    ensure!(carried(&o.out, 1), "{o:#?}");
    Ok(())
}

fn cron(w: &World, suite: &str) -> Result {
    let root = with_probe(w, suite)?;
    // cron runs a job at the next full minute.
    let script = "echo '* * * * * root uwt-probe > /tmp/said; mv /tmp/said /tmp/cron-said' > /etc/cron.d/probe; cron
        while ! [ -e /tmp/cron-said ]; do sleep 0.2; done; cat /tmp/cron-said";
    let run = root.sh(script).limit(Duration::from_secs(100));
    let o = w.held(run)?.expect(0)?;
    ensure!(
        o.out.contains("env UWT_HANDOFF=") && o.out.contains("argv[0]=uwt-probe"),
        "{o:#?}"
    );
    Ok(())
}

fn bypass(w: &World, suite: &str) -> Result {
    let root = with_probe(w, suite)?;
    let o = done(
        &root,
        "for c in 'UWT_DEV_PASSTHROUGH=1 uwt-probe' uwt-probe.anondist-orig /usr/bin/uwt-probe.anondist-orig; do
             eval \"$c\" > /tmp/out 2> /tmp/err; grep -c '^env \\(LD_PRELOAD\\|UWT_HANDOFF\\)' /tmp/out || true; wc -c < /tmp/err
         done; UWT_DEV_PASSTHROUGH=0 uwt-probe | grep -c UWT_HANDOFF
         # Without uwt is without all of it, within a run too.
         uwt --level preload sh -c 'UWT_DEV_PASSTHROUGH=1 uwt-probe' | grep -c '^env \\(LD_PRELOAD\\|UWT_HANDOFF\\)' || true",
    )?;
    ensure!(o.out == "0\n0\n0\n0\n0\n0\n1\n0\n", "{o:#?}");
    // A login shell in which it is set says so.
    let o = done(
        &root,
        "script -qec 'UWT_DEV_PASSTHROUGH=1 bash -l -c true; bash -l -c true' /dev/null </dev/null",
    )?;
    ensure!(
        o.out.matches("UWT_DEV_PASSTHROUGH=1 is set").count() == 1,
        "{o:#?}"
    );
    Ok(())
}

fn nested(w: &World, suite: &str) -> Result {
    let root = with_probe(w, suite)?;
    // git starts ssh: both are wrapped, the shim is there once, the counter at two.
    let o = held(
        w,
        &root,
        "printf '#!/bin/sh\\nenv > /tmp/ssh-said\\nexit 1\\n' > /root/ssh; chmod 755 /root/ssh; mv /root/ssh /usr/bin/ssh.anondist-orig
         git ls-remote ssh://host.example/x 2>/dev/null || true; cat /tmp/ssh-said",
    )?;
    let line = |prefix: &str| {
        o.out
            .lines()
            .find(|l| l.starts_with(prefix))
            .unwrap_or("")
            .to_owned()
    };
    ensure!(
        line("uwtwrapper_counter=") == "uwtwrapper_counter=2",
        "{o:#?}"
    );
    ensure!(
        line("LD_PRELOAD=").matches("libtorshim.so").count() == 1,
        "{o:#?}"
    );
    // One that calls itself is stopped at ten, in Whonix's words.
    fs::write(
        root.file("/usr/bin/looper"),
        "#!/bin/sh\necho turn\nlooper\n",
    )?;
    let o = w
        .held(root.sh("chmod 755 /usr/bin/looper; uwtctl wrappers add looper >/dev/null; looper"))?
        .expect(255)?;
    ensure!(o.out.matches("turn\n").count() == 10, "{o:#?}");
    ensure!(
        o.err.contains(
            "More than uwtwrapper_counter '10' nested executions (uwtwrapper_max: '10')."
        ),
        "{o:#?}"
    );
    Ok(())
}

fn interpreter(w: &World, suite: &str) -> Result {
    let root = installed(w, suite)?;
    // A wrapped interpreter, by its `#!` line and by hand.
    let o = held(
        w,
        &root,
        "ln -s perl /usr/bin/myperl 2>/dev/null; cp /usr/bin/perl /usr/bin/script-perl; uwtctl wrappers add script-perl >/dev/null
         printf '#!/usr/bin/script-perl -w\\nprint \"$0 @ARGV \", $ENV{UWT_HANDOFF} ? 1 : 0, \"\\\\n\"' > /usr/local/bin/tool; chmod 755 /usr/local/bin/tool
         tool a b; script-perl -e 'print $ENV{UWT_HANDOFF} ? 1 : 0'",
    )?;
    ensure!(o.out == "/usr/local/bin/tool a b 1\n1", "{o:#?}");
    Ok(())
}
