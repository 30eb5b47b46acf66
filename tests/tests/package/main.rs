//! The Debian package, really installed, used, upgraded, interrupted, removed and purged in Debian systems of its own
//! (`make test-package`). What leaves beside Tor is seen by the same sink as in the other tests.
//!
//! `UWT_TEST_EVERY_POINT=1` kills dpkg at each step instead of at some of each operation's.

#[path = "../all/world.rs"]
#[allow(dead_code)]
mod world;

mod apt;
mod debian;
mod firewall;
mod interrupted;
mod life;
mod noticed;

use libtest_mimic::Arguments;
use std::process::ExitCode;
use uwt_tests::bed::Bed;
use uwt_tests::netns;
use uwt_tests::sink::Sink;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    // SAFETY: a plain number.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: 1");
        println!("  package: the package is installed in a system of its own, which needs root");
        return ExitCode::SUCCESS;
    }
    let made = netns::enter().and_then(|()| Ok((Bed::make()?, Sink::packets()?)));
    let (bed, sink) = match made {
        Ok(made) => made,
        Err(e) => {
            eprintln!("the tests cannot make a machine of their own: {e}");
            return ExitCode::FAILURE;
        }
    };
    let world = world::World::make(bed, sink);
    let mut all = Vec::new();
    for suite in ["bookworm", "trixie"] {
        all.extend(life::tests(&world, suite));
        all.extend(noticed::tests(&world, suite));
        all.extend(apt::tests(&world, suite));
        all.extend(interrupted::tests(&world, suite));
        all.extend(firewall::tests(&world, suite));
    }
    let conclusion = libtest_mimic::run(&arguments, all);
    let _ = std::process::Command::new("umount")
        .arg("-l")
        .arg(world.bed.path("roots"))
        .status();
    world.end();
    conclusion.exit_code()
}
