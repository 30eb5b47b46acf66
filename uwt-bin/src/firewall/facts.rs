//! What a policy's names stand for on this host: users, groups, cgroups. Numbers alone reach the ruleset; a name that
//! stands for nothing switches its own rule off, and is told.

use super::words::{Account, Cgroup};
use nix::unistd::{Group, User};
use std::path::Path;

/// What names stand for.
pub trait Facts {
    /// The user's number (getpwnam(3)); `None`: there is no such user.
    fn user(&self, account: &Account) -> Option<u32>;
    /// The group's number (getgrnam(3)).
    fn group(&self, account: &Account) -> Option<u32>;
    /// Whether there is such a cgroup now.
    fn cgroup(&self, cgroup: &Cgroup) -> bool;
}

/// This host.
pub struct Host;

impl Facts for Host {
    fn user(&self, account: &Account) -> Option<u32> {
        if let Ok(n) = account.0.parse() {
            return Some(n);
        }
        Some(User::from_name(&account.0).ok()??.uid.as_raw())
    }

    fn group(&self, account: &Account) -> Option<u32> {
        if let Ok(n) = account.0.parse() {
            return Some(n);
        }
        Some(Group::from_name(&account.0).ok()??.gid.as_raw())
    }

    fn cgroup(&self, cgroup: &Cgroup) -> bool {
        Path::new("/sys/fs/cgroup").join(&cgroup.0).is_dir()
    }
}
