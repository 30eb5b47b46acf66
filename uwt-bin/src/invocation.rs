//! How the launcher was called: as `uwt`, or under a wrapped command's name (`argv[0]`).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// What the wrapped command itself is called once it has been diverted (dpkg-divert(1)).
pub const DIVERTED: &str = ".anondist-orig";

/// A wrapper's own name may carry this (Whonix's uwt has it so).
const WRAPPER_SUFFIX: &[u8] = b".anondist";

/// How the launcher was called.
#[derive(PartialEq, Eq, Debug)]
pub enum Invocation {
    /// As itself.
    Uwt,
    /// Under a wrapped command's name.
    Wrapper {
        /// The command: the file name of `argv[0]`, without `.anondist`.
        command: OsString,
    },
}

/// Tells from `argv[0]`, which may be a path and may be missing.
pub fn from_argv0(argv0: Option<&OsStr>) -> Invocation {
    let name = argv0.and_then(|a| Path::new(a).file_name());
    let Some(name) = name.map(OsStrExt::as_bytes).filter(|n| !n.is_empty()) else {
        return Invocation::Uwt;
    };
    // A login shell's argv[0] starts with a dash.
    let name = name.strip_prefix(b"-").unwrap_or(name);
    let name = name.strip_suffix(WRAPPER_SUFFIX).unwrap_or(name);
    match name {
        b"" | b"uwt" => Invocation::Uwt,
        name => Invocation::Wrapper {
            command: OsString::from_vec(name.to_vec()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let wrapper = |c: &str| Invocation::Wrapper { command: c.into() };
        for (argv0, want) in [
            (Some("uwt"), Invocation::Uwt),
            (Some("/usr/bin/uwt"), Invocation::Uwt),
            (Some(""), Invocation::Uwt),
            (None, Invocation::Uwt),
            (Some("curl"), wrapper("curl")),
            (Some("/usr/bin/apt-get"), wrapper("apt-get")),
            (Some("apt-get.anondist"), wrapper("apt-get")),
        ] {
            assert_eq!(from_argv0(argv0.map(OsStr::new)), want, "{argv0:?}");
        }
    }
}
