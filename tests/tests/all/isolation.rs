//! Who shares a circuit with whom, read from a real Tor's control port.

use crate::ensure;
use crate::world::{Result, World};
use libtest_mimic::Trial;
use std::collections::BTreeSet;
use std::sync::Arc;
use uwt_tests::control::Attached;
use uwt_tests::run::Run;
use uwt_tests::tornet::{self, Network};

pub fn tests(world: &Arc<World>) -> Vec<Trial> {
    let test = |name: &str, f: fn(&World, &Network) -> Result| {
        let label = format!("isolation::{name}");
        world.test(label.clone(), move |w| w.with_tor(&label, |n| f(w, n)))
    };
    vec![
        test("two runs never share a circuit", two_runs),
        test("pid: one process, one circuit; a fork its own", pid),
        test("tree: all processes of a run share", tree),
        test("connection: nothing is shared", connection),
        test("destination: one host and port share", destination),
        test("app: two runs of a program share", app),
        test("a fixed username and password", fixed),
        test("curl's own SOCKS has the process's credentials", native),
        world.test("isolation::none sends no credentials", none),
        world.test(
            "isolation::a SOCKS address of its own per command",
            own_address,
        ),
        world.test(
            "isolation::a reused pid does not meet its predecessor",
            reused_pid,
        ),
    ]
}

/// Two connections by one process, then one by its fork, each to a host of its own.
const THREE: &str = "
import os, socket
def get(host):
    s = socket.create_connection((host, 18080))
    s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
    while s.recv(999): pass
get('one.example'); get('two.example')
if os.fork() == 0:
    get('three.example'); os._exit(0)
os.wait()";

/// Runs commands; gives the streams they made, in order, with their circuits.
fn streams(w: &World, n: &Network, runs: Vec<Run>, count: usize) -> Result<Vec<Attached>> {
    let mut control = n.control()?;
    control.watch_streams()?;
    for run in runs {
        w.held(run)?.expect(0)?;
    }
    Ok(control.streams(count)?)
}

/// Whether streams with the same credentials share a circuit. Tor may, and mostly does; it is asked up to
/// five times.
fn share(mut again: impl FnMut() -> Result<Vec<Attached>>, these: [usize; 2]) -> Result {
    let mut last = Vec::new();
    for _ in 0..5 {
        last = again()?;
        let [a, b] = these.map(|i| &last[i]);
        ensure!(a.password == b.password, "credentials differ: {last:#?}");
        if a.circuit == b.circuit {
            return Ok(());
        }
    }
    ensure!(false, "never a shared circuit: {last:#?}");
    Ok(())
}

/// Streams that must not share a circuit.
fn apart(s: &[Attached], a: usize, b: usize) -> Result {
    let differ = s[a].circuit != s[b].circuit && s[a].password != s[b].password;
    ensure!(differ, "{a} and {b} share: {s:#?}");
    Ok(())
}

fn circuits(streams: &[Attached]) -> Vec<&str> {
    streams.iter().map(|s| s.circuit.as_str()).collect()
}

fn three(w: &World, n: &Network, scope: &str) -> Result<Vec<Attached>> {
    let run = w.bed.uwt(tornet::SOCKS).arg(format!("--isolate={scope}"));
    streams(w, n, vec![run.args(["python3", "-c", THREE])], 3)
}

fn curl(w: &World, more: &[&str], url: &str) -> Run {
    w.bed
        .uwt(tornet::SOCKS)
        .args(more)
        .args(["curl", "-sS", "-o", "/dev/null", url])
}

const URL: &str = "http://www.example:18080/";

fn two_runs(w: &World, n: &Network) -> Result {
    let s = streams(w, n, (0..4).map(|_| curl(w, &[], URL)).collect(), 4)?;
    let distinct: BTreeSet<&str> = circuits(&s).into_iter().collect();
    ensure!(
        distinct.len() == 4,
        "four runs, {} circuits: {s:#?}",
        distinct.len()
    );
    // Tor itself says with which credentials.
    let all = n.control()?.circuits()?;
    for stream in &s {
        let c = all.iter().find(|c| c.id == stream.circuit);
        let c = c.ok_or("a circuit without SOCKS credentials")?;
        ensure!(
            c.username == "<torS0X>0" && c.password.starts_with("uwt:"),
            "{c:?}"
        );
    }
    Ok(())
}

fn pid(w: &World, n: &Network) -> Result {
    share(|| three(w, n, "pid"), [0, 1])?;
    apart(&three(w, n, "pid")?, 0, 2)
}

fn tree(w: &World, n: &Network) -> Result {
    share(|| three(w, n, "tree"), [0, 2])?;
    let two = [three(w, n, "tree")?, three(w, n, "tree")?].concat();
    apart(&two, 0, 3)
}

fn connection(w: &World, n: &Network) -> Result {
    let s = three(w, n, "connection")?;
    apart(&s, 0, 1)?;
    apart(&s, 1, 2)?;
    apart(&s, 0, 2)
}

fn destination(w: &World, n: &Network) -> Result {
    let twice = THREE.replace("two.example", "one.example");
    let run = || {
        let run = w.bed.uwt(tornet::SOCKS).arg("-i=destination");
        streams(w, n, vec![run.args(["python3", "-c", &twice])], 3)
    };
    share(run, [0, 1])?;
    apart(&run()?, 0, 2)
}

fn app(w: &World, n: &Network) -> Result {
    share(
        || {
            streams(
                w,
                n,
                vec![curl(w, &["-i=app"], URL), curl(w, &["-i=app"], URL)],
                2,
            )
        },
        [0, 1],
    )?;
    let wget = w
        .bed
        .uwt(tornet::SOCKS)
        .args(["-i=app", "wget", "-q", "-O/dev/null", URL]);
    apart(
        &streams(w, n, vec![curl(w, &["-i=app"], URL), wget], 2)?,
        0,
        1,
    )
}

fn fixed(w: &World, n: &Network) -> Result {
    let mine = ["-u", "me", "-p", "secret word"];
    share(
        || streams(w, n, vec![curl(w, &mine, URL), curl(w, &mine, URL)], 2),
        [0, 1],
    )?;
    let all = n.control()?.circuits()?;
    let found = all
        .iter()
        .any(|x| x.username == "me" && x.password == "secret word");
    ensure!(found, "{all:#?}");
    Ok(())
}

fn native(w: &World, n: &Network) -> Result {
    // curl speaks SOCKS itself (native_proxy); a plain connect of the same process has the same credentials.
    let urls = [
        "http://one.example:18080/",
        "--next",
        "-sS",
        "-o/dev/null",
        "--noproxy",
        "*",
        "http://two.example:18080/",
    ];
    share(
        || {
            let run = w
                .bed
                .uwt(tornet::SOCKS)
                .args(["curl", "-sS", "-o/dev/null"]);
            streams(w, n, vec![run.args(urls)], 2)
        },
        [0, 1],
    )
}

fn none(w: &World) -> Result {
    let server = w.server()?;
    w.held(w.bed.uwt(server.port()).args([
        "-i=none",
        "wget",
        "-q",
        "-O/dev/null",
        "http://a.example/",
    ]))?
    .expect(0)?;
    let r = server.take();
    ensure!(r.len() == 1 && r[0].credentials.is_none(), "{r:#?}");
    Ok(())
}

fn own_address(w: &World) -> Result {
    let (server, other) = (
        w.server()?,
        uwt_tests::socks::Server::listen("127.0.0.1:0", None)?,
    );
    let folder = w.bed.path("own-address/uwt");
    std::fs::create_dir_all(&folder)?;
    let text = format!(
        "port = {}\n[command.wget]\nport = {}\n",
        server.port(),
        other.port()
    );
    std::fs::write(folder.join("x.toml"), text)?;
    for command in [&["curl", "-sS"][..], &["wget", "-q", "-O-"]] {
        let run = w.bed.run(&w.bed.path("bin/uwt").to_string_lossy());
        let run = run
            .env("XDG_CONFIG_HOME", w.bed.path("own-address"))
            .args(command)
            .arg("http://a.example/");
        w.held(run)?.expect(0)?;
    }
    ensure!(
        server.take().len() == 1 && other.take().len() == 1,
        "not each by its own SocksPort"
    );
    Ok(())
}

fn reused_pid(w: &World) -> Result {
    let server = w.server()?;
    if !w.bed.root {
        return Err(crate::world::Stop::Skipped(
            "choosing a pid needs root".into(),
        ));
    }
    // In a pid namespace of its own the next pid can be chosen (ns_last_pid, pid_namespaces(7)).
    let one =
        "echo 98 > /proc/sys/kernel/ns_last_pid; wget -q -O/dev/null http://a.example/ & wait;";
    let script = format!("mount -t proc proc /proc; {one} {one} {one}");
    let run = w
        .bed
        .run("unshare")
        .args(["-p", "-f", "-m"])
        .arg(w.bed.path("bin/uwt"));
    // Level netns takes the capability to choose one away.
    let port = server.port().to_string();
    let run = run.args(["-P", &port, "--level", "preload", "sh", "-c", &script]);
    w.held(run)?.expect(0)?;
    let passwords: Vec<String> = server
        .take()
        .iter()
        .map(|r| r.password().to_owned())
        .collect();
    let pids: BTreeSet<&str> = passwords
        .iter()
        .filter_map(|p| p.rsplit_once(':')?.1.split('.').next())
        .collect();
    let distinct: BTreeSet<&String> = passwords.iter().collect();
    ensure!(
        passwords.len() == 3 && pids.len() == 1 && distinct.len() == 3,
        "{passwords:#?}"
    );
    Ok(())
}
