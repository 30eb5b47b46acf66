//! What goes wrong, and stays closed: mistakes, missing parts, a load that is killed, somebody else's hands.

use crate::{ALICE, BOB, Result, TOR, World, ensure, load, test, watch};
use libtest_mimic::Trial;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use uwt_tests::hosts::{self, Hosts, INTERNET, What, commands};
use uwt_tests::run::Run;

pub(crate) fn tests(world: &Arc<World>) -> Vec<Trial> {
    vec![
        test(
            world,
            "closed: a policy with a mistake, later and at first",
            mistake,
        ),
        test(
            world,
            "closed: messages name line, word and what to do",
            messages,
        ),
        test(world, "closed: without nft", without_nft),
        test(
            world,
            "closed: nft that fails, hangs, lies or is killed",
            bad_nft,
        ),
        test(
            world,
            "closed: uwtctl killed at any moment of a load",
            killed,
        ),
        test(
            world,
            "closed: users and interfaces that do not exist",
            absent,
        ),
        test(world, "closed: somebody flushes all rules", flushed),
        test(world, "closed: somebody else's accept", foreign_accept),
        test(
            world,
            "closed: the file for boot, loaded by nft alone",
            boot_file,
        ),
        test(world, "others: their tables stay as they are", others),
    ]
}

const WHO: &str = "[tor]\nusers = [\"4001\"]\n";

fn web() -> SocketAddr {
    SocketAddr::new(INTERNET, 443)
}

/// Only Tor gets out.
fn holds(h: &mut Hosts, tor: bool) -> Result {
    for uid in [ALICE, BOB, 0] {
        for what in [What::Tcp, What::Udp] {
            ensure!(
                !h.gets_out(uid, what, web())?,
                "uid {uid} gets out by {what:?}"
            );
        }
    }
    let out = h.gets_out(TOR, What::Tcp, web())?;
    ensure!(out == tor, "Tor gets out: {out}");
    Ok(())
}

fn mistake(h: &mut Hosts) -> Result {
    ensure!(
        h.gets_out(ALICE, What::Udp, web())?,
        "nothing is seen without rules"
    );
    // At first: nothing is loaded, so the host is locked down.
    h.policy("profile = \"tor-hots\"\n")?;
    let o = h.uwtctl("firewall apply").run()?.expect(125)?;
    ensure!(
        o.err.contains("firewall.toml:1") && o.err.contains("locked down now"),
        "{o:#?}"
    );
    holds(h, false)?;
    let again = h.uwtctl("firewall apply").run()?.expect(125)?;
    ensure!(again.err.contains("stays locked down"), "{again:#?}");
    load(h, WHO)?;
    holds(h, true)?;
    // Later: what was loaded stays.
    let rules = hosts::nft_list("-s -t list table inet uwt")?;
    for wrong in [
        "[tor]\nuser = [\"4001\"]\n",
        "not toml",
        "[tor]\nusers = [\"a b\"]\n",
        "[zone.x]\nuser = \"1\"\nrules = [\"allow\"]\n",
    ] {
        h.policy(wrong)?;
        let o = h.uwtctl("firewall apply").run()?.expect(125)?;
        ensure!(o.err.contains("that were loaded stay"), "{wrong}: {o:#?}");
    }
    ensure!(
        rules == hosts::nft_list("-s -t list table inet uwt")?,
        "the rules have changed"
    );
    holds(h, true)?;
    // A file that somebody else could have written is no policy.
    h.policy(WHO)?;
    commands("chmod 666 /etc/uwt/firewall.toml")?;
    let o = h.uwtctl("firewall apply").run()?.expect(125)?;
    ensure!(o.err.contains("others may write it"), "{o:#?}");
    // Nor is one that is not there.
    std::fs::remove_file("/etc/uwt/firewall.toml")?;
    h.uwtctl("firewall apply").run()?.expect(125)?;
    holds(h, true)
}

fn messages(h: &mut Hosts) -> Result {
    for (policy, says) in [
        (
            "\n[tor]\nusrs = []\n",
            [
                "firewall.toml:3: unknown key \"usrs\"",
                "did you mean \"users\"?",
            ],
        ),
        (
            "profile = \"tor\"\n",
            ["firewall.toml:1: \"tor\" is not known here", "\"tor-host\""],
        ),
        (
            "[lan]\nnetworks = [\"10.0.0.0/33\"]\n",
            ["firewall.toml:2:", "10.0.0.0/33"],
        ),
        (
            "[vpn]\ninterfaces = [\"a name that is too long\"]\n",
            ["firewall.toml:2:", "no interface's name"],
        ),
        (
            "[vpn]\nservers = [\"vpn.example.org\"]\n",
            ["firewall.toml:2:", "the address in numbers"],
        ),
        ("profile = \"vpn\"\n", ["without a tunnel", "name it"]),
        (
            "[zone.x]\nrules = []\n",
            [
                "firewall.toml:1: zone \"x\" is not one thing",
                "give it one of",
            ],
        ),
        (
            "[zone.x]\nuser = \"1\"\nrules = [\n  \"accept\",\n  \"accept port=1\",\n]\n",
            ["firewall.toml:5:", "did you mean"],
        ),
        (
            "[zone.x]\nuser = \"1\"\nrules = [\"accept expire=+60\"]\n",
            ["firewall.toml:3:", "seconds since 1970"],
        ),
        (
            "[[incoming]]\nname = \"x\"\n",
            ["firewall.toml:1: what comes in", "names its ports"],
        ),
        (
            "[tor]\ntrans_port = 0\n",
            ["tor.trans_port is 0", "1 to 65535"],
        ),
        (
            "ipv6 = \"yes\"\n",
            ["firewall.toml:1:", "expected a boolean"],
        ),
        (
            "[zone.\"a b\"]\nuser = \"1\"\n",
            ["firewall.toml:1:", "no zone's name"],
        ),
        (
            "[tor]\nusers = [\"root; accept\"]\n",
            ["firewall.toml:2:", "no user's"],
        ),
    ] {
        h.policy(policy)?;
        let o = h.uwtctl("firewall check").user(65_534).run()?.expect(125)?;
        for word in says {
            ensure!(o.err.contains(word), "{policy}: no {word:?} in {}", o.err);
        }
    }
    // What is well is said, as an ordinary user too.
    h.policy(WHO)?;
    let o = h.uwtctl("firewall check").user(65_534).run()?.expect(0)?;
    ensure!(
        o.out.starts_with("tor-host: ") && o.out.contains("takes them"),
        "{o:#?}"
    );
    let o = h.uwtctl("firewall check --json").run()?.expect(0)?;
    ensure!(o.out.contains("\"ok\": true"), "{o:#?}");
    // And who may not load is told, and has changed nothing.
    let o = h.uwtctl("firewall apply").user(65_534).run()?.expect(125)?;
    ensure!(o.err.contains("root"), "{o:#?}");
    ensure!(
        hosts::nft_list("list tables")?.is_empty(),
        "a refused command changed something"
    );
    Ok(())
}

fn instead_of_nft(script: &str) -> Result {
    // The real one stays within reach.
    if !std::path::Path::new("/run/nft.real").exists() {
        std::fs::copy("/usr/sbin/nft", "/run/nft.real")?;
        commands("chmod 755 /run/nft.real")?;
    } else {
        commands("umount /usr/sbin/nft")?;
    }
    std::fs::write("/run/nft.fake", script)?;
    commands("chmod 755 /run/nft.fake\nmount --bind /run/nft.fake /usr/sbin/nft")?;
    Ok(())
}

fn without_nft(h: &mut Hosts) -> Result {
    load(h, WHO)?;
    instead_of_nft("")?;
    commands("chmod 644 /run/nft.fake")?;
    h.policy(&format!("{WHO}[lan]\nout = true\n"))?;
    let o = h.uwtctl("firewall apply").run()?.expect(125)?;
    ensure!(
        o.err.contains("/usr/sbin/nft cannot be run") && o.err.contains("stay"),
        "{o:#?}"
    );
    holds(h, true)?;
    // With nothing loaded, nothing can be: that is said in so many words.
    commands("/run/nft.real flush ruleset")?;
    let o = h.uwtctl("firewall apply").run()?.expect(125)?;
    ensure!(o.err.contains("THIS HOST IS OPEN"), "{o:#?}");
    Ok(())
}

fn bad_nft(h: &mut Hosts) -> Result {
    load(h, WHO)?;
    h.policy(&format!("{WHO}[lan]\nout = true\n"))?;
    // Fails: as for a kernel without one of the expressions.
    instead_of_nft(
        "#!/bin/sh\necho 'Error: Could not process rule: No such file or directory' >&2\nexit 1\n",
    )?;
    let o = h.uwtctl("firewall apply").run()?.expect(125)?;
    ensure!(
        o.err.contains("Could not process rule") && o.err.contains("stay"),
        "{o:#?}"
    );
    holds(h, true)?;
    // Lies: says that all is well and has done nothing. What is read back counts.
    instead_of_nft(
        "#!/bin/sh\ncase \"$*\" in '-f -') cat > /dev/null; exit 0;; esac\nexec /run/nft.real \"$@\"\n",
    )?;
    let o = h.uwtctl("firewall apply").run()?.expect(125)?;
    ensure!(o.err.contains("read back are others"), "{o:#?}");
    holds(h, true)?;
    // Killed in the middle of its reading, by somebody else.
    instead_of_nft("#!/bin/sh\nkill -9 $$\n")?;
    let o = h.uwtctl("firewall apply").run()?.expect(125)?;
    ensure!(o.err.contains("signal: 9"), "{o:#?}");
    holds(h, true)?;
    // Hangs: uwtctl is ended from outside, as systemd does it after its time; the rules are as before.
    instead_of_nft("#!/bin/sh\nexec sleep 600\n")?;
    let o = h
        .uwtctl("firewall apply")
        .limit(Duration::from_secs(2))
        .run()?;
    ensure!(o.code() == -1, "{o:#?}");
    holds(h, true)?;
    // A first load that fails: locked down by what could be loaded before.
    instead_of_nft(
        "#!/bin/sh\nt=$(cat)\ncase \"$t\" in *'chain output'*skuid*) echo no such expression >&2; exit 1;; esac\nprintf '%s\\n' \"$t\" | exec /run/nft.real \"$@\"\n",
    )?;
    commands("/run/nft.real flush ruleset")?;
    let o = h.uwtctl("firewall apply").run()?.expect(125)?;
    ensure!(
        o.err.contains("no such expression") && o.err.contains("locked down"),
        "{o:#?}"
    );
    holds(h, false)?;
    // And with the real one all is well again.
    commands("umount /usr/sbin/nft")?;
    h.uwtctl("firewall apply").run()?.expect(0)?;
    holds(h, true)
}

/// Sends without a pause from a thread, until it is dropped.
struct Prober {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Prober {
    fn start() -> Result<Prober> {
        let here = std::fs::File::open("/proc/thread-self/ns/net")?;
        let (stop, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (a, b) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            use std::os::fd::AsRawFd;
            // SAFETY: a descriptor that lives through the call.
            unsafe { libc::setns(here.as_raw_fd(), libc::CLONE_NEWNET) };
            let Ok(socket) = hosts::send(ALICE, What::Udp, web()) else {
                return;
            };
            while !a.load(Ordering::Relaxed) {
                let _ = hosts::write(&socket, b"probe");
                b.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Prober {
            stop,
            sent,
            thread: Some(thread),
        })
    }

    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
        self.sent.load(Ordering::Relaxed)
    }
}

fn killed(h: &mut Hosts) -> Result {
    load(h, WHO)?;
    h.arrived()?;
    let prober = Prober::start()?;
    // From the first instruction to after the end, in steps that grow with the machine's own pace.
    let begun = Instant::now();
    h.uwtctl("firewall apply").run()?.expect(0)?;
    let whole = begun.elapsed();
    let mut ended = [0; 2];
    for n in 0..60u32 {
        let lan = ["", "[lan]\nout = true\n"][n as usize % 2];
        h.policy(&format!("{WHO}{lan}"))?;
        let mut child = std::process::Command::new(h.program("uwtctl"))
            .args(["firewall", "apply"])
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()?;
        std::thread::sleep(whole * n / 50);
        let done = child.try_wait()?.is_some();
        ended[usize::from(done)] += 1;
        let _ = child.kill();
        child.wait()?;
    }
    let sent = prober.end();
    // Those that arrived would have been let out by rules of neither policy.
    let seen: Vec<_> = h.arrived()?.into_iter().filter(|p| p.to == web()).collect();
    ensure!(seen.is_empty(), "{} of {sent} got out", seen.len());
    ensure!(ended[0] >= 10, "killed in time: {ended:?}");
    // What a kill left is made whole by the next.
    h.uwtctl("firewall apply").run()?.expect(0)?;
    h.uwtctl("firewall status").run()?.expect(0)?;
    holds(h, true)?;
    // The same from nothing: until the first rules it is open; then never again.
    for n in 0..30u32 {
        commands("/usr/sbin/nft flush ruleset")?;
        let mut child = std::process::Command::new(h.program("uwtctl"))
            .args(["firewall", "apply"])
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()?;
        std::thread::sleep(whole * n / 25);
        let _ = child.kill();
        child.wait()?;
        let tables = hosts::nft_list("list tables")?;
        if tables.contains("uwt") {
            ensure!(
                !h.gets_out(ALICE, What::Udp, web())?,
                "step {n}: open with {tables}"
            );
        }
    }
    Ok(())
}

fn absent(h: &mut Hosts) -> Result {
    let warned = load(
        h,
        "[tor]\nusers = [\"4001\", \"no-such-user\"]\n[clearnet]\nusers = [\"nobody-either\"]\n\
         [vpn]\ninterfaces = [\"tun9\"]\nservers = [\"203.0.113.5\"]\ngroups = [\"no-such-group\"]\n\
         [zone.gone]\nuser = \"gone\"\nrules = [\"accept\"]\n[zone.away]\ninterface = \"away0\"\nrules = [\"accept\"]\n",
    )?;
    for name in ["no-such-user", "nobody-either", "no-such-group", "gone"] {
        ensure!(warned.contains(&format!("{name:?}")), "{name}: {warned}");
    }
    holds(h, true)?;
    // Still said later.
    let o = h.uwtctl("firewall status").run()?.expect(0)?;
    ensure!(o.out.contains("no-such-user"), "{}", o.out);
    // No Tor user at all: nothing gets out, and that is said.
    let warned = load(h, "[tor]\nusers = [\"no-such-user\"]\n")?;
    ensure!(warned.contains("nothing gets out"), "{warned}");
    holds(h, false)
}

fn flushed(h: &mut Hosts) -> Result {
    load(h, WHO)?;
    let _watch = watch(h)?;
    let running = || -> Result<bool> { Ok(hosts::nft_list("list tables")?.contains("inet uwt")) };
    for how in [
        "flush ruleset",
        "delete table inet uwt",
        "flush table inet uwt",
    ] {
        commands(&format!("/usr/sbin/nft {how}"))?;
        let mut came_back = false;
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end && !came_back {
            came_back = running()?
                && hosts::nft_list("list chain inet uwt output").is_ok_and(|c| c.contains("goto"));
            std::thread::sleep(Duration::from_millis(5));
        }
        ensure!(came_back, "{how}: not loaded again");
        holds(h, true)?;
    }
    let end = Instant::now() + Duration::from_secs(5);
    let mut said = String::new();
    while Instant::now() < end && !said.contains("loaded again after") {
        said = h.uwtctl("firewall status").run()?.out;
    }
    ensure!(
        said.contains("somebody took the rules away; loaded again after"),
        "{said}"
    );
    // Lockdown and off are not undone by it.
    h.uwtctl("firewall lockdown").run()?.expect(0)?;
    commands("/usr/sbin/nft flush ruleset")?;
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end && !hosts::nft_list("list tables")?.contains("uwt_lockdown") {
        std::thread::sleep(Duration::from_millis(5));
    }
    holds(h, false)?;
    h.uwtctl("firewall off --yes").run()?.expect(0)?;
    ensure!(!running()?, "off, and there again");
    ensure!(
        h.gets_out(ALICE, What::Udp, web())?,
        "off, and still closed"
    );
    Ok(())
}

fn foreign_accept(h: &mut Hosts) -> Result {
    load(h, WHO)?;
    for priority in ["-300", "0", "300"] {
        hosts::nft(&format!(
            "table inet friend {{ chain c {{ type filter hook output priority {priority}; policy accept;\n accept\n }}\n }}\n"
        ))?;
        holds(h, true)?;
        commands("/usr/sbin/nft delete table inet friend")?;
    }
    Ok(())
}

fn boot_file(h: &mut Hosts) -> Result {
    load(h, WHO)?;
    let before = hosts::nft_list("-s -t list table inet uwt")?;
    commands("/usr/sbin/nft flush ruleset")?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../etc/libexec/firewall-load");
    let boot = |code: i32| -> Result<String> {
        let o = Run::new(script, std::path::Path::new("/tmp")).run()?;
        ensure!(o.code() == code, "{o:#?}");
        Ok(o.err)
    };
    boot(0)?;
    ensure!(
        before == hosts::nft_list("-s -t list table inet uwt")?,
        "a boot loads others"
    );
    h.uwtctl("firewall status").run()?.expect(0)?;
    holds(h, true)?;
    // The file is damaged, or gone: lockdown.
    for damage in ["", "table inet uwt { chain", "nonsense\n"] {
        commands("/usr/sbin/nft flush ruleset")?;
        std::fs::write("/var/lib/uwt-firewall/boot.nft", damage)?;
        let said = boot(0)?;
        ensure!(said.contains("locked down"), "{damage:?}: {said}");
        holds(h, false)?;
    }
    commands("/usr/sbin/nft flush ruleset")?;
    std::fs::remove_file("/var/lib/uwt-firewall/boot.nft")?;
    boot(0)?;
    holds(h, false)?;
    // Neither can be loaded: it fails, so that the network does not start.
    instead_of_nft("#!/bin/sh\nexit 1\n")?;
    ensure!(boot(1)?.contains("OPEN"), "it does not say so");
    // The two texts of lockdown are one.
    commands("umount /usr/sbin/nft\n/usr/sbin/nft flush ruleset")?;
    boot(0)?;
    let one = hosts::nft_list("-s list table inet uwt_lockdown")?;
    h.uwtctl("firewall lockdown").run()?.expect(0)?;
    ensure!(
        one == hosts::nft_list("-s list table inet uwt_lockdown")?,
        "they differ"
    );
    Ok(())
}

/// As Docker, libvirt, firewalld and people write them.
const OTHERS: &str = "
table ip nat {
  chain DOCKER {
    iifname \"docker0\" counter return
  }
  chain PREROUTING { type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local counter jump DOCKER
  }
  chain POSTROUTING { type nat hook postrouting priority srcnat; policy accept;
    oifname != \"docker0\" ip saddr 172.17.0.0/16 counter masquerade
  }
}
table ip filter {
  chain FORWARD { type filter hook forward priority filter; policy drop;
    iifname \"docker0\" oifname != \"docker0\" counter accept
  }
}
table inet firewalld {
  set trusted { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }
  }
  chain filter_INPUT { type filter hook input priority filter + 10; policy accept;
    ct state { established, related } accept
    ip saddr @trusted accept
    reject with icmpx admin-prohibited
  }
}
table ip libvirt_network {
  chain guest_output { type filter hook forward priority filter; policy accept;
    ip saddr 192.168.122.0/24 iifname \"virbr0\" counter accept
  }
}
table netdev mine {
  chain ingress { type filter hook ingress device \"up0\" priority 0; policy accept;
    ether type 0x88cc counter drop comment \"by hand\"
  }
}
table bridge also {
  chain c { type filter hook output priority 0; policy accept;
  }
}
";

fn others(h: &mut Hosts) -> Result {
    hosts::nft(OTHERS)?;
    let theirs = || -> Result<String> {
        let all = hosts::nft_list("-s list ruleset")?;
        let mut out = String::new();
        for table in all
            .split("\ntable ")
            .map(|t| t.trim_start_matches("table "))
        {
            if !table.starts_with("inet uwt") {
                out += table.trim_end();
                out += "\n";
            }
        }
        Ok(out)
    };
    let before = theirs()?;
    ensure!(
        before.contains("DOCKER") && before.contains("by hand"),
        "{before}"
    );
    for words in [
        "apply",
        "apply",
        "lockdown",
        "apply",
        "test",
        "status",
        "off --yes",
    ] {
        h.policy(WHO)?;
        h.uwtctl(&format!("firewall {words}")).run()?.expect(0)?;
        ensure!(
            theirs()? == before,
            "{words} changed them:\n{before}\n{}",
            theirs()?
        );
    }
    Ok(())
}
