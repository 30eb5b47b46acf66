//! What all tests share: the bed, the sink, and what is only made when a test wants it.

use libtest_mimic::{Failed, Trial};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use uwt_tests::bed::Bed;
use uwt_tests::run::{Outcome, Run};
use uwt_tests::sink::Sink;
use uwt_tests::socks::Server;
use uwt_tests::tornet::{self, Network};
use uwt_tests::{dns, http};

/// Handed to every test.
pub struct World {
    /// Binaries and scratch files.
    pub bed: Bed,
    sink: Mutex<Sink>,
    server: OnceLock<Server>,
    network: Mutex<Option<Network>>,
    skipped: Mutex<Vec<(String, String)>>,
    again: Mutex<Vec<(String, String)>>,
}

/// How a failure reads when something left beside Tor.
const ESCAPED: &str = "it left beside Tor";

/// Why a test did not prove what it is there for.
pub enum Stop {
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

/// What a test gives.
pub type Result<T = ()> = std::result::Result<T, Stop>;

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fails a test, with a message.
#[macro_export]
macro_rules! ensure {
    ($ok:expr, $($why:tt)+) => {
        if !$ok {
            return Err($crate::world::Stop::Failed(format!($($why)+)));
        }
    };
}

impl World {
    /// Everything that lasts as long as the tests.
    pub fn make(bed: Bed, sink: Sink) -> Arc<World> {
        Arc::new(World {
            bed,
            sink: Mutex::new(sink),
            server: OnceLock::new(),
            network: Mutex::new(None),
            skipped: Mutex::new(Vec::new()),
            again: Mutex::new(Vec::new()),
        })
    }

    /// Says what was skipped and what was tried again; ends what runs, removes what was made.
    pub fn end(&self) {
        let skipped = lock(&self.skipped);
        if !skipped.is_empty() {
            println!("skipped: {}", skipped.len());
        }
        for (name, why) in skipped.iter() {
            println!("  {name}: {why}");
        }
        for (name, why) in lock(&self.again).iter() {
            let why: Vec<&str> = why.split_whitespace().collect();
            println!("tried again: {name}: {:.600}", why.join(" "));
        }
        lock(&self.network).take();
        let _ = std::fs::remove_dir_all(&self.bed.folder);
    }

    /// The recording SOCKS server. Not on 9150: dirmngr looks for Tor there by itself.
    pub fn server(&self) -> Result<Server> {
        if self.server.get().is_none() {
            let made = Server::listen("127.0.0.1:9350", None)?;
            let _ = self.server.set(made);
        }
        let server = self.server.get().ok_or("no SOCKS server")?;
        server.script(|s| {
            s.behaviour = uwt_tests::socks::Behaviour::Serve;
            s.delay = std::time::Duration::ZERO;
            s.like_tor = true;
            s.dribble = false;
        });
        server.take();
        Ok(server.clone())
    }

    /// Runs `f` with the private Tor network, which the first who asks brings up.
    ///
    /// A real Tor now and then fails a stream ("general SOCKS server failure"): what fails is tried four times
    /// more, once the network carries streams again, and that is said at the end. What left beside Tor is not: one packet is one too many.
    pub fn with_tor(&self, name: &str, f: impl Fn(&Network) -> Result) -> Result {
        if !uwt_tests::bed::has("tor") {
            return Err(Stop::Skipped("tor is not installed".into()));
        }
        let mut network = lock(&self.network);
        if network.is_none() {
            dns::listen("127.0.0.1:53")?;
            http::listen(tornet::WEB, None)?;
            *network = Some(Network::start(&self.bed.path("tor"))?);
        }
        let network = network.as_ref().ok_or("no network")?;
        for _ in 0..4 {
            match f(network) {
                Err(Stop::Failed(why)) if !why.contains(ESCAPED) => {
                    lock(&self.again).push((name.to_owned(), why));
                    network.ready()?;
                }
                other => return other,
            }
        }
        f(network)
    }

    /// Runs a command; nothing may leave beside Tor.
    pub fn held(&self, run: Run) -> Result<Outcome> {
        let outcome = run.watched(&mut lock(&self.sink), false)?;
        ensure!(outcome.escapes.is_empty(), "{ESCAPED}: {outcome:#?}");
        Ok(outcome)
    }

    /// Runs a command that may leave; it is ended when it does.
    pub fn loose(&self, run: Run) -> io::Result<Outcome> {
        run.watched(&mut lock(&self.sink), true)
    }

    /// From here on, tests are made for this level.
    pub fn at_level(&self, level: &'static str) {
        self.bed.set_level(level);
    }

    /// A test of this name, at the level that was set last.
    pub fn test(
        self: &Arc<World>,
        name: impl Into<String>,
        f: impl FnOnce(&World) -> Result + Send + 'static,
    ) -> Trial {
        let (world, mut name) = (self.clone(), name.into());
        let level = self.bed.level();
        if level != "preload" {
            name = format!("{level} {name}");
        }
        let run = move |world: &World| {
            world.bed.set_level(level);
            f(world)
        };
        Trial::test(name.clone(), move || match run(&world) {
            Ok(()) => Ok(()),
            Err(Stop::Failed(why)) => Err(Failed::from(why)),
            Err(Stop::Skipped(why)) => {
                lock(&world.skipped).push((name, why));
                Ok(())
            }
        })
    }
}
