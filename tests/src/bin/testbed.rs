//! A machine of its own for a command: no way out but a sink, and a private, real Tor network.
//!
//! `uwt-testbed run COMMAND...` runs the command there, with UWT_TEST_ONION, UWT_TEST_COOKIE and
//! UWT_TEST_UNIX set, and says at the end what left beside Tor; `uwt-testbed circuits` inside it lists
//! Tor's circuits with their SOCKS credentials.

use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;
use uwt_tests::control::Control;
use uwt_tests::sink::Sink;
use uwt_tests::{dns, http, netns, tornet};

fn circuits() -> io::Result<()> {
    let cookie = std::env::var_os("UWT_TEST_COOKIE").map(PathBuf::from);
    let cookie = cookie.ok_or_else(|| io::Error::other("call it from uwt-testbed run"))?;
    let circuits = Control::open(tornet::CONTROL, &cookie)?.circuits()?;
    println!(
        "{:<8}{:<28}SOCKS password (uwt:RUN:pid:PID.BIRTH)",
        "circuit", "path"
    );
    // Others were made when the network was tried.
    for c in circuits.iter().filter(|c| c.password.starts_with("uwt:")) {
        println!("{:<8}{:<28}{}", c.id, c.path.join(","), c.password);
    }
    Ok(())
}

fn run(words: &[String]) -> io::Result<ExitCode> {
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| io::Error::other("usage: uwt-testbed run COMMAND... | circuits"))?;
    netns::enter()?;
    let mut sink = Sink::packets()?;
    dns::listen("127.0.0.1:53")?;
    http::listen(tornet::WEB, None)?;
    let begun = Instant::now();
    let folder = std::env::temp_dir().join(format!("uwt-testbed-{}", std::process::id()));
    let network = tornet::Network::start(&folder)?;
    let took = begun.elapsed().as_secs_f32();
    eprintln!("private Tor network: 3 authorities, 2 exits, 1 client; up in {took:.1} s");
    sink.drain()?;
    let status = Command::new(program)
        .args(arguments)
        .env("UWT_TEST_ONION", &network.onion)
        .env("UWT_TEST_COOKIE", network.cookie())
        .env("UWT_TEST_UNIX", network.unix())
        .status()
        .map_err(|e| io::Error::new(e.kind(), format!("{program}: {e}")))?;
    let escaped = sink.drain()?;
    eprintln!("packets that left beside Tor: {}", escaped.len());
    for e in &escaped {
        eprintln!("  {e}");
    }
    drop(network);
    let _ = std::fs::remove_dir_all(&folder);
    let code = status.code().unwrap_or(1) as u8;
    Ok(ExitCode::from(if escaped.is_empty() {
        code
    } else {
        code.max(1)
    }))
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.first().map(String::as_str) {
        Some("circuits") => circuits().map(|()| ExitCode::SUCCESS),
        Some("run") => run(&words[1..]),
        _ => Err(io::Error::other(
            "usage: uwt-testbed run COMMAND... | circuits",
        )),
    };
    result.unwrap_or_else(|e| {
        eprintln!("uwt-testbed: {e}");
        ExitCode::FAILURE
    })
}
