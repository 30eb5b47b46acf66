//! Whose socket it is: the inode that inet_diag tells, looked for in /proc/PID/fd of the run's processes.

use crate::process::identity;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use uwt_core::isolation::Process;

/// How many of the processes that asked last are looked at first, and how many of their descriptors.
const NEAR: usize = 8;

/// A process of the run.
#[derive(Clone, Copy)]
struct Known {
    pid: u32,
    /// The number of the descriptor that was found in it last: the next is mostly near, since the kernel gives the
    /// lowest that is free.
    last: u32,
}

/// The run's processes, as they were last seen.
pub struct Owners {
    namespace: u64,
    /// Who asked last comes first.
    known: Vec<Known>,
}

impl Owners {
    /// For the processes of this network namespace.
    pub fn new(namespace: u64, first: u32) -> Owners {
        Owners {
            namespace,
            known: vec![Known {
                pid: first,
                last: 0,
            }],
        }
    }

    /// The process that has the socket open; of several, one that is known already. `None` if nobody has it (io_uring
    /// keeps sockets in no table), or /proc does not show it.
    pub fn of(&mut self, inode: u32) -> Option<Process> {
        if inode == 0 {
            return None;
        }
        let link = format!("socket:[{inode}]");
        let found = self
            .find_among(NEAR, |k| k.near(&link))
            .or_else(|| self.find_among(usize::MAX, |k| k.anywhere(&link)))
            .or_else(|| {
                self.look();
                self.find_among(usize::MAX, |k| k.anywhere(&link))
            });
        found.map(identity)
    }

    /// The first of `n` processes in which `f` finds the descriptor; it comes first from now on.
    fn find_among(&mut self, n: usize, f: impl Fn(&Known) -> Option<u32>) -> Option<u32> {
        let mut all = self.known.iter().take(n).enumerate();
        let (at, fd) = all.find_map(|(i, k)| Some((i, f(k)?)))?;
        self.known[at].last = fd;
        self.known[..=at].rotate_right(1);
        Some(self.known[0].pid)
    }

    /// Looks for processes that have come since; forgets those that are gone.
    fn look(&mut self) {
        let here = |pid: u32| {
            let m = fs::metadata(format!("/proc/{pid}/ns/net"));
            m.is_ok_and(|m| m.ino() == self.namespace)
        };
        let mut now: Vec<u32> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| here(*pid))
            .collect();
        // Parents first, as long as pids do not wrap: who made the socket, rather than who inherited it.
        now.sort_unstable();
        self.known.retain(|k| now.contains(&k.pid));
        now.retain(|pid| self.known.iter().all(|k| k.pid != *pid));
        self.known
            .extend(now.into_iter().map(|pid| Known { pid, last: 0 }));
    }
}

impl Known {
    fn is(&self, fd: u32, link: &str) -> bool {
        let target = fs::read_link(format!("/proc/{}/fd/{fd}", self.pid));
        target.is_ok_and(|t| t.as_os_str().as_bytes() == link.as_bytes())
    }

    /// Looks where the socket most likely is.
    fn near(&self, link: &str) -> Option<u32> {
        (self.last..self.last + NEAR as u32).find(|fd| self.is(*fd, link))
    }

    /// Looks through all descriptors, the newest first.
    fn anywhere(&self, link: &str) -> Option<u32> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid)).ok()?;
        let mut all: Vec<u32> = entries
            .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all.into_iter().find(|fd| self.is(*fd, link))
    }
}
