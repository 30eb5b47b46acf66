//! The classic localhost rule (`localhost.passthrough = "command"`): a command whose argument *is* a
//! loopback host runs without the shim.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use uwt_core::hostname::{self, Hostname, is_loopback};

/// Whether a host, with or without brackets, is loopback: a name or an address literal.
fn is_loopback_host(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    match bare.unwrap_or(host).parse() {
        Ok(ip) => is_loopback(ip),
        Err(_) => {
            bare.is_none()
                && matches!(
                    hostname::classify(host.as_bytes(), b""),
                    Hostname::Loopback(_)
                )
        }
    }
}

/// The host of `host:port`, `[v6]:port` or a bare host.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !port.is_empty() => {
            // More colons outside brackets: an IPv6 address, not a port.
            if host.contains(':') && !host.starts_with('[') {
                authority
            } else {
                host
            }
        }
        _ => authority,
    }
}

/// Whether an argument is a loopback host, or a URL, `user@host` or `host:port` whose host is. Data that
/// merely contains one (`localhost.example.com`, `--header=127.0.0.1`) is not.
pub fn names_loopback(argument: &OsStr) -> bool {
    let Ok(text) = std::str::from_utf8(argument.as_bytes()) else {
        return false;
    };
    let authority = match text.split_once("://") {
        Some((scheme, rest)) => {
            let ok = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
            if scheme.is_empty() || !scheme.bytes().all(ok) {
                return false;
            }
            rest.split(['/', '?', '#']).next().unwrap_or(rest)
        }
        // scp's host:path.
        None => match text.split_once(':') {
            Some((host, path)) if path.starts_with(['/', '~', '.']) => host,
            _ => text,
        },
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_, h)| h);
    is_loopback_host(host_of(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_loopback() {
        for yes in [
            "localhost",
            "127.0.0.1",
            "::1",
            "[::1]",
            "localhost:8080",
            "127.0.0.1:80",
            "[::1]:80",
            "http://localhost/",
            "http://user:pw@127.0.0.1:8080/x?y",
            "http://[::1]:80/",
            "me@localhost",
            "git://localhost/x",
            "localhost:/srv/x",
            "ip6-localhost",
        ] {
            assert!(names_loopback(OsStr::new(yes)), "{yes}");
        }
        for no in [
            "localhost.example.com",
            "http://localhost.example.com/",
            "http://example.com/127.0.0.1",
            "http://example.com/?u=http://localhost/",
            "--header=127.0.0.1",
            "x127.0.0.1",
            "http://127.0.0.1@example.com/",
            "localhost@example.com",
            "",
            "--",
        ] {
            assert!(!names_loopback(OsStr::new(no)), "{no}");
        }
    }
}
