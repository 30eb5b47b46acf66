//! An event loop must not stall while connections are being made through a slow Tor.

use crate::ensure;
use crate::world::{Result, Stop, World};
use libtest_mimic::Trial;
use std::sync::Arc;
use std::time::Duration;
use uwt_tests::bed::has;
use uwt_tests::run::Run;

pub fn tests(world: &Arc<World>) -> Vec<Trial> {
    vec![
        world.test("nonblocking::asyncio misses no tick", |w| {
            ticker(w, "python3", "asyncio_ticker.py")
        }),
        world.test("nonblocking::node misses no tick", |w| {
            ticker(w, "node", "node_ticker.js")
        }),
        world.test("nonblocking::curl --parallel", curl),
    ]
}

/// What a ticker printed: answers, worst gap in ms, all in ms.
fn measured(o: &str) -> Result<[u64; 3]> {
    let numbers: Vec<u64> = o
        .split_whitespace()
        .filter_map(|w| w.parse().ok())
        .collect();
    <[u64; 3]>::try_from(numbers).map_err(|_| Stop::Failed(format!("the ticker printed {o:?}")))
}

fn ticker(w: &World, program: &str, script: &str) -> Result {
    if !has(program) {
        return Err(Stop::Skipped(format!("{program} is not installed")));
    }
    let server = w.server()?;
    let path = format!("{}/vectors/{script}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path)?;
    let flag = if program == "node" { "-e" } else { "-c" };
    let run = |run: Run, host: &str, port: u16| -> Result<[u64; 3]> {
        let run = run.args([flag, &text]);
        // node -e takes arguments behind a `--`; python's -c takes them as they are.
        let run = if program == "node" {
            run.arg("--")
        } else {
            run
        };
        let o = w
            .held(run.args([host, &port.to_string(), "100"]))?
            .expect(0)?;
        measured(&o.out)
    };
    server.script(|s| s.delay = Duration::from_secs(2));
    let mut held = [0; 3];
    let mut bare = [0; 3];
    // A machine with other work to do stalls anybody now and then: the best of five.
    for _ in 0..5 {
        // The same program without uwt, to a server that answers at once: what its own loop costs.
        let at = uwt_tests::http::listen("127.0.0.1:0", None)?;
        bare = run(w.bed.run(program), "127.0.0.1", at.port())?;
        held = run(w.bed.uwt(server.port()).arg(program), "slow.example", 80)?;
        ensure!(held[0] == 100, "of 100 connections {} answered", held[0]);
        // All at once: one wait of the proxy's, not a hundred after each other.
        ensure!(held[2] < 20_000, "{} ms for all", held[2]);
        if held[1] <= bare[1].max(50) {
            return Ok(());
        }
    }
    ensure!(false, "worst gap {} ms, bare {} ms", held[1], bare[1]);
    Ok(())
}

fn curl(w: &World) -> Result {
    let server = w.server()?;
    server.script(|s| s.delay = Duration::from_millis(500));
    let urls: Vec<String> = (0..30).map(|i| format!("http://m{i}.example/")).collect();
    let run = w.bed.uwt(server.port()).env("UWT_NATIVE_PROXY", "off");
    let o = w
        .held(run.args(["curl", "-sS", "--parallel"]).args(&urls))?
        .expect(0)?;
    // One after the other they would take 15 s.
    ensure!(
        o.took < Duration::from_secs(8) && o.out.lines().count() == 30,
        "{o:#?}"
    );
    Ok(())
}
