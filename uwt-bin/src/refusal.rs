//! What the launcher says when it does not run a command: what failed, where, why, and what to do.

use std::fmt;

/// uwt itself refused.
pub const EXIT_REFUSED: u8 = 125;
/// The command was found and cannot be executed.
pub const EXIT_NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub const EXIT_NOT_FOUND: u8 = 127;
/// Too many nested wrappers.
pub const EXIT_NESTED: u8 = 255;

/// A command that is not run.
#[derive(Debug)]
pub struct Refusal {
    /// The launcher's exit code, as env(1) and timeout(1) have them.
    pub exit: u8,
    /// What failed and where.
    pub what: String,
    /// Why; may be empty.
    pub why: String,
    /// What to do about it; may be empty.
    pub fix: String,
}

impl Refusal {
    /// A refusal by uwt itself: exit code 125.
    pub fn new(what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Refusal {
        Refusal {
            exit: EXIT_REFUSED,
            what: what.into(),
            why: why.into(),
            fix: fix.into(),
        }
    }

    /// The same with another exit code.
    pub fn with_exit(self, exit: u8) -> Refusal {
        Refusal { exit, ..self }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uwt: error: {}", self.what)?;
        if !self.why.is_empty() {
            write!(f, "\n  {}", self.why)?;
        }
        if !self.fix.is_empty() {
            write!(f, "\n  fix: {}", self.fix)?;
        }
        Ok(())
    }
}

/// What a step of the launcher gives.
pub type Result<T> = std::result::Result<T, Refusal>;
