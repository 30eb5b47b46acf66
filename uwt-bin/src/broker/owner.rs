//! Whose socket it is: the inode that inet_diag tells, looked for in /proc/PID/fd of the run's processes.

use crate::process::identity;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use uwt_core::isolation::Process;

/// The run's processes, as they were last seen.
pub struct Owners {
    namespace: u64,
    /// Who asked last comes first.
    known: Vec<u32>,
}

impl Owners {
    /// For the processes of this network namespace.
    pub fn new(namespace: u64, first: u32) -> Owners {
        Owners {
            namespace,
            known: vec![first],
        }
    }

    /// The process that has the socket open; of several, one that is known already. `None` if nobody has it (io_uring
    /// keeps sockets in no table), or /proc does not show it.
    pub fn of(&mut self, inode: u32) -> Option<Process> {
        if inode == 0 {
            return None;
        }
        let link = format!("socket:[{inode}]");
        let mut at = self.known.iter().position(|pid| has(*pid, &link));
        if at.is_none() {
            self.look();
            at = self.known.iter().position(|pid| has(*pid, &link));
        }
        let at = at?;
        self.known[..=at].rotate_right(1);
        Some(identity(self.known[0]))
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
        self.known.retain(|pid| now.contains(pid));
        now.retain(|pid| !self.known.contains(pid));
        self.known.append(&mut now);
    }
}

fn has(pid: u32, link: &str) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    entries.into_iter().flatten().flatten().any(|e| {
        let target = fs::read_link(e.path());
        target.is_ok_and(|t| t.as_os_str().as_bytes() == link.as_bytes())
    })
}
