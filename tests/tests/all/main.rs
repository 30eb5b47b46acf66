//! The behaviour tests: the built binaries against real parts, in a network namespace whose only way out is
//! a recording sink.
//!
//! `cargo test --release -p uwt-tests --test all -- [NAME]...`; each row of the leak matrix is a test of its own.
//! `UWT_TEST_WRITE_DOCS=1` writes docs/LEAK-MATRIX.md and docs/PEERS.md from what was seen.

mod clients;
mod faults;
mod held;
mod isolation;
mod launcher;
mod leak;
mod names;
mod nonblocking;
mod peers;
mod world;

use libtest_mimic::Arguments;
use std::process::ExitCode;
use uwt_tests::bed::Bed;
use uwt_tests::netns;
use uwt_tests::sink::Sink;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One namespace and one sink: what leaves must be told apart.
    arguments.test_threads = Some(1);
    let made = netns::enter().and_then(|()| Ok((Bed::make()?, Sink::with_daemons()?)));
    let (bed, sink) = match made {
        Ok(made) => made,
        Err(e) => {
            eprintln!("the tests cannot make a machine of their own: {e}");
            eprintln!(
                "  they need root, or user namespaces (sysctl kernel.unprivileged_userns_clone)"
            );
            return ExitCode::FAILURE;
        }
    };
    let world = world::World::make(bed, sink);
    let mut all = Vec::new();
    all.extend(leak::tests(&world));
    all.extend(launcher::tests(&world));
    all.extend(peers::tests(&world));
    for level in ["preload", "netns"] {
        world.at_level(level);
        all.extend(names::tests(&world));
        all.extend(nonblocking::tests(&world));
        all.extend(faults::tests(&world));
        all.extend(clients::tests(&world));
        all.extend(isolation::tests(&world));
    }
    all.extend(held::tests(&world));
    let conclusion = libtest_mimic::run(&arguments, all);
    world.end();
    conclusion.exit_code()
}
