//! An event loop must not stall while connections are being made through a slow Tor.

use crate::ensure;
use crate::world::{Result, Stop, World};
use libtest_mimic::Trial;
use std::sync::Arc;
use std::time::Duration;
use uwt_tests::bed::has;

pub fn tests(world: &Arc<World>) -> Vec<Trial> {
    vec![
        world.test("nonblocking::asyncio never waits for the proxy", |w| {
            ticker(w, "python3", "asyncio_ticker.py")
        }),
        world.test("nonblocking::node never waits for the proxy", |w| {
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
    /// How long the proxy takes to answer.
    const DELAY: Duration = Duration::from_secs(2);
    let server = w.server()?;
    let path = format!("{}/vectors/{script}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path)?;
    let run = if program == "node" {
        // node -e takes arguments behind a `--`; python's -c takes them as they are.
        w.bed.uwt(server.port()).args([program, "-e", &text, "--"])
    } else {
        w.bed.uwt(server.port()).args([program, "-c", &text])
    };
    server.script(|s| s.delay = DELAY);
    let o = w.held(run.args(["slow.example", "80", "100"]))?.expect(0)?;
    let [answered, gap, took] = measured(&o.out)?;
    ensure!(answered == 100, "of 100 connections {answered} answered");
    // A loop that waits for the proxy stands still for the whole delay, and for each connection
    // again. What remains below that is the machine's business, and `make bench`'s.
    let delay = DELAY.as_millis() as u64;
    ensure!(gap < delay / 2, "the loop stood still for {gap} ms");
    ensure!(took < 10 * delay, "{took} ms for all 100 together");
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
