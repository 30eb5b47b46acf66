//! The firewall (`make test-firewall`): hosts as network namespaces joined by a cable, real packets, and a tap on the far
//! side that says what arrived. Each promise has a test that it lets through and one that it stops.

mod closed;
mod commands;
mod flows;
mod gateway;
mod tor_host;
mod vpn;
mod zones;

use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use uwt_tests::bed::Bed;
use uwt_tests::hosts::Hosts;

/// Users of the policies under test; numbers, so that nobody need have them.
pub(crate) const TOR: u32 = 4001;
pub(crate) const CLEAR: u32 = 4002;
pub(crate) const VPN: u32 = 4003;
pub(crate) const ALICE: u32 = 4004;
pub(crate) const BOB: u32 = 4005;

/// Why a test did not prove what it is there for.
pub(crate) enum Stop {
    /// It failed.
    Failed(String),
    /// It cannot run here, and says why.
    Skipped(String),
}

impl<E: std::fmt::Display> From<E> for Stop {
    fn from(e: E) -> Stop {
        Stop::Failed(e.to_string())
    }
}

pub(crate) type Result<T = ()> = std::result::Result<T, Stop>;

/// Fails a test, with a message.
#[macro_export]
macro_rules! ensure {
    ($ok:expr, $($why:tt)+) => {
        if !$ok {
            return Err($crate::Stop::Failed(format!("{}:{}: {}", file!(), line!(), format!($($why)+))));
        }
    };
}

/// What all tests share.
pub(crate) struct World {
    bed: Bed,
    skipped: Mutex<Vec<(String, String)>>,
}

/// A test on two hosts of its own, in a thread whose namespaces they are.
pub(crate) fn test(world: &Arc<World>, name: &str, f: fn(&mut Hosts) -> Result) -> Trial {
    let (world, name) = (world.clone(), name.to_owned());
    Trial::test(name.clone(), move || {
        let run = || -> Result {
            let mut hosts = Hosts::make(&world.bed.path("home"), &world.bed.path("bin"))?;
            f(&mut hosts)
        };
        let result = std::thread::scope(|s| {
            s.spawn(run)
                .join()
                .unwrap_or_else(|_| Err(Stop::Failed("it broke off".into())))
        });
        match result {
            Ok(()) => Ok(()),
            Err(Stop::Failed(why)) => Err(Failed::from(why)),
            Err(Stop::Skipped(why)) => {
                let mut skipped = world.skipped.lock().unwrap_or_else(PoisonError::into_inner);
                skipped.push((name, why));
                Ok(())
            }
        }
    })
}

/// Loads a policy; what it warned of.
pub(crate) fn load(h: &Hosts, policy: &str) -> Result<String> {
    h.policy(policy)?;
    Ok(h.uwtctl("firewall apply").run()?.expect(0)?.err)
}

/// A program that runs until the test ends.
pub(crate) struct Daemon(std::process::Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts one.
pub(crate) fn daemon(line: &str) -> Result<Daemon> {
    let mut words = line.split_whitespace();
    let child = std::process::Command::new(words.next().unwrap_or_default())
        .args(words)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()?;
    Ok(Daemon(child))
}

/// `uwtctl firewall watch`, as its unit runs it.
pub(crate) fn watch(h: &Hosts) -> Result<Daemon> {
    daemon(&format!("{} firewall watch", h.program("uwtctl").display()))
}

/// Waits until `ok`, at most 15 seconds.
pub(crate) fn until(what: &str, mut ok: impl FnMut() -> Result<bool>) -> Result {
    let end = Instant::now() + Duration::from_secs(15);
    while !ok()? {
        ensure!(Instant::now() < end, "{what}: not within 15 s");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    // SAFETY: a plain number.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: 1");
        println!(
            "  firewall: hosts are network namespaces with users of their own, which needs root"
        );
        return ExitCode::SUCCESS;
    }
    let bed = match Bed::make() {
        Ok(bed) => bed,
        Err(e) => {
            eprintln!("the tests cannot make a bed: {e}");
            return ExitCode::FAILURE;
        }
    };
    let world = Arc::new(World {
        bed,
        skipped: Mutex::new(Vec::new()),
    });
    let mut all = tor_host::tests(&world);
    all.extend(flows::tests(&world));
    all.extend(vpn::tests(&world));
    all.extend(zones::tests(&world));
    all.extend(gateway::tests(&world));
    all.extend(closed::tests(&world));
    all.extend(commands::tests(&world));
    let conclusion = libtest_mimic::run(&arguments, all);
    let skipped = world.skipped.lock().unwrap_or_else(PoisonError::into_inner);
    if !skipped.is_empty() {
        println!("skipped: {}", skipped.len());
    }
    for (name, why) in skipped.iter() {
        println!("  {name}: {why}");
    }
    let _ = std::fs::remove_dir_all(&world.bed.folder);
    // Where the hosts' own are mounted; not empty where the firewall is really in use.
    for folder in ["/etc/uwt", "/var/lib/uwt-firewall"] {
        let _ = std::fs::remove_dir(folder);
    }
    conclusion.exit_code()
}
