//! Names, in one process and in many.

use crate::ensure;
use crate::world::{Result, World};
use libtest_mimic::Trial;
use std::sync::Arc;
use uwt_tests::socks::Behaviour;

pub fn tests(world: &Arc<World>) -> Vec<Trial> {
    let test = |name: &str, f: fn(&World) -> Result| world.test(format!("names::{name}"), f);
    vec![
        test(
            "what libc's resolver gives, 120,000 names in one process",
            resolver,
        ),
        test("no round trip", no_round_trip),
        test("dns = resolve", resolve),
        test("dns = refuse", refuse),
        test("a run's names mean nothing in another", apart),
        test(
            "names in UTF-8 and of 255 bytes reach the proxy as given",
            as_given,
        ),
        test("curl by many names at once", curl_many),
    ]
}

fn script(w: &World, name: &str) -> String {
    let _ = w;
    format!("{}/vectors/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn resolver(w: &World) -> Result {
    let server = w.server()?;
    let text = std::fs::read_to_string(script(w, "names.py"))?;
    let o = w
        .held(
            w.bed
                .uwt(server.port())
                .args(["python3", "-c", &text, "120000"]),
        )?
        .expect(0)?;
    ensure!(o.out == "done\n", "{o:#?}");
    let asked: Vec<(String, u16)> = server
        .take()
        .into_iter()
        .map(|r| (r.host, r.port))
        .collect();
    let want = [("parent.test", 80), ("parent.test", 81), ("six.test", 82)];
    let same = asked.iter().map(|(h, p)| (h.as_str(), *p)).eq(want);
    ensure!(same, "{asked:#?}");
    Ok(())
}

fn no_round_trip(w: &World) -> Result {
    let server = w.server()?;
    let o = w
        .held(
            w.bed
                .uwt(server.port())
                .args(["getent", "ahosts", "a.example"]),
        )?
        .expect(0)?;
    ensure!(
        server.take().is_empty() && o.out.starts_with("127."),
        "{o:#?}"
    );
    Ok(())
}

fn resolve(w: &World) -> Result {
    let server = w.server()?;
    let uwt = || w.bed.uwt(server.port()).args(["--dns", "resolve"]);
    let o = w
        .held(uwt().args(["getent", "ahostsv4", "a.example"]))?
        .expect(0)?;
    let r = server.take();
    ensure!(o.out.starts_with("203.0.113.7 "), "{o:#?}");
    ensure!(
        r.len() == 1 && r[0].command == 0xf0 && r[0].host == "a.example",
        "{r:#?}"
    );
    server.script(|s| s.behaviour = Behaviour::Code(4));
    w.held(uwt().args(["getent", "ahostsv4", "a.example"]))?
        .expect(2)?;
    // Reverse lookups ask Tor in either mode.
    server.script(|s| s.behaviour = Behaviour::Serve);
    server.take();
    let code = "import socket; print(socket.gethostbyaddr('198.51.100.9')[0])";
    let o = w
        .held(w.bed.uwt(server.port()).args(["python3", "-c", code]))?
        .expect(0)?;
    let r = server.take();
    ensure!(
        o.out == "ptr.test\n" && r.len() == 1 && r[0].command == 0xf1,
        "{o:#?} {r:#?}"
    );
    Ok(())
}

fn refuse(w: &World) -> Result {
    let server = w.server()?;
    let o = w.held(w.bed.uwt(server.port()).args([
        "--dns",
        "refuse",
        "curl",
        "-sS",
        "--noproxy",
        "*",
        "http://a.example/",
    ]))?;
    ensure!(o.code() == 6 && server.take().is_empty(), "{o:#?}");
    Ok(())
}

fn apart(w: &World) -> Result {
    let server = w.server()?;
    let o = w
        .held(
            w.bed
                .uwt(server.port())
                .args(["getent", "ahostsv4", "a.example"]),
        )?
        .expect(0)?;
    let address = o.out.split_whitespace().next().unwrap_or("").to_owned();
    let url = format!("http://{address}/");
    let o = w.held(
        w.bed
            .uwt(server.port())
            .args(["wget", "-q", "-t", "1", "-O-", &url]),
    )?;
    ensure!(o.code() != 0 && server.take().is_empty(), "{o:#?}");
    ensure!(o.err.contains("stands for no name of this run"), "{o:#?}");
    Ok(())
}

fn as_given(w: &World) -> Result {
    let server = w.server()?;
    let label = "x".repeat(63);
    let long = [label.as_str(), &label, &label, &label].join(".");
    for name in [
        "b\u{fc}cher.example",
        &long,
        "UPPER.example",
        "under_score.example",
        "xn--bcher-kva.example",
    ] {
        let code = "import socket, sys; socket.create_connection((sys.argv[1].encode(), 80))";
        w.held(w.bed.uwt(server.port()).args(["python3", "-c", code, name]))?
            .expect(0)?;
        let r = server.take();
        ensure!(r.len() == 1 && r[0].host == name, "{name}: {r:#?}");
    }
    Ok(())
}

fn curl_many(w: &World) -> Result {
    let server = w.server()?;
    let urls: Vec<String> = (0..50).map(|i| format!("http://m{i}.example/")).collect();
    let run = w
        .bed
        .uwt(server.port())
        .env("UWT_NATIVE_PROXY", "off")
        .args(["curl", "-sS", "--parallel"])
        .args(&urls);
    w.held(run)?.expect(0)?;
    let mut hosts: Vec<String> = server.take().into_iter().map(|r| r.host).collect();
    hosts.sort();
    hosts.dedup();
    ensure!(hosts.len() == 50, "{hosts:#?}");
    Ok(())
}
