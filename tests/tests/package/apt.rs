//! A wrapped apt-get for real: a repository that is reached through the private Tor network, packages that start daemons, uwt
//! itself upgraded and removed by the apt-get that runs under it.

use crate::debian::{held, installed, other_version, package, tool};
use crate::ensure;
use crate::world::{Result, World};
use libtest_mimic::Trial;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use uwt_tests::http;
use uwt_tests::root::Root;
use uwt_tests::tornet::Network;

pub fn tests(world: &Arc<World>, suite: &'static str) -> Vec<Trial> {
    let test = |name: &str, f: fn(&World, &Network, &str) -> Result| {
        let label = format!("{suite}: apt: {name}");
        world.test(label.clone(), move |w| {
            w.with_tor(&label, |n| f(w, n, suite))
        })
    };
    vec![
        test("update, install, upgrade", upgrade),
        test("uwt removed by itself", remove),
        test("with Tor away", no_tor),
        test("under systemd: units, and a package's own unit", systemd),
    ]
}

const INIT: &str = "#!/bin/sh
### BEGIN INIT INFO
# Provides: uwt-daemon
# Required-Start:
# Required-Stop:
# Default-Start: 2 3 4 5
# Default-Stop: 0 1 6
# Short-Description: x
### END INIT INFO
case $1 in
    start) start-stop-daemon --start --background --make-pidfile --pidfile /run/uwt-daemon.pid --exec /usr/bin/uwt-daemon ;;
esac
";

/// A repository for `suite`, served to Tor's exits; each suite has its port.
fn served(w: &World, suite: &str, root: &Root) -> Result<(PathBuf, u16)> {
    let folder = w.bed.path(&format!("repository-{suite}"));
    let port = if suite == "trixie" { 18083 } else { 18082 };
    if folder.exists() {
        return Ok((folder, port));
    }
    fs::create_dir_all(&folder)?;
    for entry in fs::read_dir(root.file("/srv/repo"))? {
        let entry = entry?;
        fs::copy(entry.path(), folder.join(entry.file_name()))?;
    }
    package(
        &folder,
        "uwt-daemon",
        "",
        &[
            ("usr/bin/uwt-daemon", "755", b"#!/bin/sh\nwhile :; do sleep 1; done\n"),
            ("etc/init.d/uwt-daemon", "755", INIT.as_bytes()),
            (
                "DEBIAN/postinst",
                "755",
                b"#!/bin/sh\nset -e\nenv | grep -c ^UWT_HANDOFF= > /postinst-said || true\nupdate-rc.d uwt-daemon defaults >/dev/null\ninvoke-rc.d uwt-daemon start\nldconfig\n",
            ),
        ],
    )?;
    package(
        &folder,
        "uwt-unit",
        "",
        &[
            ("usr/bin/uwt-unit", "755", b"#!/bin/sh\nwhile :; do sleep 1; done\n"),
            ("lib/systemd/system/uwt-unit.service", "644", b"[Service]\nExecStart=/usr/bin/uwt-unit\n[Install]\nWantedBy=multi-user.target\n"),
            (
                "DEBIAN/postinst",
                "755",
                b"#!/bin/sh\nset -e\ndeb-systemd-helper enable uwt-unit.service >/dev/null\nsystemctl --system daemon-reload\ndeb-systemd-invoke start uwt-unit.service\n",
            ),
        ],
    )?;
    let newer = other_version(
        w,
        "4:0.2.0",
        Some("s/uwt-torshim 0\\.1\\./uwt-torshim 0.2./"),
    )?;
    fs::copy(newer, folder.join("uwt.deb"))?;
    let index = format!(
        "cd {} && apt-ftparchive packages . > Packages && apt-ftparchive release . > Release",
        folder.display()
    );
    tool("sh", &["-c", &index])?;
    http::listen(&format!("127.0.0.1:{port}"), Some(folder.clone()))?;
    Ok((folder, port))
}

/// A system with uwt, whose one repository is behind Tor.
fn system(w: &World, suite: &str) -> Result<Root> {
    let root = installed(w, suite)?;
    let (_, port) = served(w, suite, &root)?;
    held(
        w,
        &root,
        &format!(
            "rm -f /etc/apt/sources.list.d/*; rm -rf /var/lib/apt/lists/*; \
             echo 'deb [trusted=yes] http://repo.example:{port} ./' > /etc/apt/sources.list; \
             printf '#!/bin/sh\\nexit 104\\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; \
             printf 'Acquire::Languages \"none\";\\nAPT::Sandbox::User \"_apt\";\\n' > /etc/apt/apt.conf.d/90test"
        ),
    )?;
    Ok(root)
}

fn apt(w: &World, root: &Root, script: &str) -> Result<String> {
    let run = root.sh(script).limit(Duration::from_secs(200));
    let o = w.held(run)?.expect(0)?;
    // ld.so complains of a library that it cannot find, dpkg of a program that could not be started.
    let bad = [
        "uwt[",
        "ld.so:",
        "not started",
        "dpkg: warning",
        "dpkg: error",
    ];
    let all = format!("{}{}", o.out, o.err);
    let complaint = all.lines().find(|l| bad.iter().any(|b| l.contains(b)));
    ensure!(complaint.is_none(), "{complaint:?}\n{all}");
    Ok(o.out)
}

fn upgrade(w: &World, _: &Network, suite: &str) -> Result {
    let root = system(w, suite)?;
    let out = apt(
        w,
        &root,
        "apt-get -q update; apt-get -q -y install uwt-daemon wget
         echo RESULT; cat /postinst-said; p=$(cat /run/uwt-daemon.pid); grep -c libtorshim /proc/$p/maps || true
         tr '\\0' '\\n' < /proc/$p/environ | grep -c '^\\(UWT\\|LD_PRELOAD\\|ALL_PROXY\\|uwtwrapper\\)' || true
         readlink /usr/bin/wget; apt list --installed 2>/dev/null | grep -c uwt-daemon",
    )?;
    // The maintainer scripts are held, the daemon that they start is not.
    ensure!(out.ends_with("RESULT\n1\n0\n0\n/usr/bin/uwt\n1\n"), "{out}");
    // uwt itself, the wrapped packages, a library (its trigger is ldconfig, which is static), in one run.
    let out = apt(
        w,
        &root,
        "apt-get -q update >/dev/null; apt-get -q -y upgrade; echo RESULT
         dpkg-query -W -f '${Version}\\n' uwt curl git openssh-client zlib1g | grep -c 'uwt1\\|0.2.0'
         uwtctl wrappers list >/dev/null; dpkg --audit; curl --version | head -c 4; uwt --explain true | sed -n 's/^shim *//p'; test ! -e /run/uwt",
    )?;
    let (log, result) = out.split_once("RESULT\n").ok_or(out.clone())?;
    ensure!(log.contains("Setting up uwt (4:0.2.0)"), "{log}");
    ensure!(
        result == "5\ncurl/usr/lib/x86_64-linux-gnu/uwt/libtorshim.so\n"
            || result == "5\ncurl/usr/lib/aarch64-linux-gnu/uwt/libtorshim.so\n",
        "{result}"
    );
    Ok(())
}

fn remove(w: &World, _: &Network, suite: &str) -> Result {
    let root = system(w, suite)?;
    // Another run, of somebody else perhaps, was begun before: it starts nothing any more, and above all not bare.
    // Behind it in the same run of dpkg come other packages' triggers and scripts.
    let out = apt(
        w,
        &root,
        "apt-get -q update >/dev/null; apt-get -q -y install uwt-daemon >/dev/null
         printf '#!/bin/sh\\necho hook: $LD_PRELOAD$UWT_HANDOFF\\n' > /usr/local/bin/hook; chmod 755 /usr/local/bin/hook
         echo 'DPkg::Post-Invoke { \"/usr/local/bin/hook\"; };' > /etc/apt/apt.conf.d/91hook
         mkfifo /tmp/go; uwt --level preload sh -c 'read x < /tmp/go; /bin/echo bare' > /tmp/other 2>&1 & p=$!
         apt-get -q -y purge uwt uwt-daemon; echo > /tmp/go; wait $p && exit 1; grep -c bare /tmp/other && exit 1; echo RESULT; ls /usr/bin | grep -c 'anondist\\|uwt' || true
         dpkg-divert --list | grep -c 'by uwt' || true; dpkg --audit; ls -d /etc/uwt.d 2>/dev/null || apt-get --version | head -c 4",
    )?;
    ensure!(out.ends_with("RESULT\n0\n0\napt "), "{out}");
    ensure!(out.contains("hook:"), "{out}");
    Ok(())
}

fn no_tor(w: &World, _: &Network, suite: &str) -> Result {
    let root = system(w, suite)?;
    // Nothing is reached, and the message names the port.
    let run = root
        .sh("UWT_PORT=9 apt-get -q update; UWT_PORT=9 curl -sS http://repo.example/")
        .limit(Duration::from_secs(60));
    let o = w.held(run)?;
    let all = format!("{}{}", o.out, o.err);
    ensure!(o.code() != 0 && all.contains("127.0.0.1:9"), "{all}");
    Ok(())
}

fn systemd(w: &World, _: &Network, suite: &str) -> Result {
    let root = system(w, suite)?;
    // The script is itself a unit: it has no terminal, no HOME, and systemd's environment.
    let script = "apt-get -q update; apt-get -q -y install uwt-unit
        p=$(systemctl show -P MainPID uwt-unit); echo RESULT; grep -c libtorshim /proc/$p/maps || true
        tr '\\0' '\\n' < /proc/$p/environ | grep -c '^UWT_HANDOFF' || true; systemctl is-active uwt-unit
        /usr/bin/curl -sS http://www.example:18080/unit
        printf '[Unit]\\nDefaultDependencies=no\\n[Service]\\nType=oneshot\\nUser=person\\nExecStart=curl -sS http://www.example:18080/user\\nStandardOutput=file:/root/of-user\\n' > /etc/systemd/system/u.service
        systemctl daemon-reload; systemctl start u.service; cat /root/of-user
        systemctl stop uwt-unit; apt-get -q -y purge uwt-unit >/dev/null; systemctl is-active uwt-unit || true";
    let run = root.boot(script)?.limit(Duration::from_secs(120));
    let o = w.held(run)?;
    let said = fs::read_to_string(root.file("/root/said")).unwrap_or_default();
    let end =
        "RESULT\n0\n0\nactive\nGET /unit of www.example:18080\nGET /user of www.example:18080\n";
    ensure!(o.code() == 0 && said.contains(end), "{o:#?}\n{said}");
    Ok(())
}
