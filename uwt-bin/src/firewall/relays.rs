//! The relays of Tor's consensus: which addresses the Tor user may reach when `tor.relays` says so. Read from Tor's
//! control port, or from the consensus in its data directory. None, or a stale one, means that nothing is reached.

use super::facts::{Facts, Host};
use super::policy::{Policy, Relays};
use crate::refusal::{Refusal, Result};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The longest consensus that is read, in bytes.
const CONSENSUS_MAX: u64 = 64 << 20;

/// Relays that may be reached, for how long.
#[derive(Debug, PartialEq, Eq)]
pub struct Reachable {
    /// Their OR ports.
    pub addresses: Vec<SocketAddr>,
    /// Seconds since 1970 until which the consensus holds (`valid-until`).
    pub until: u64,
}

/// Days since 1970 of a date (proleptic Gregorian).
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that February's last day is a year's last.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// `2026-11-21 14:00:00`, in UTC, as seconds since 1970 (dir-spec, 1.2).
fn time(date: &str, clock: &str) -> Option<u64> {
    let numbers = |s: &str, sep: char| -> Option<[i64; 3]> {
        let all: Option<Vec<i64>> = s
            .split(sep)
            .map(|n| {
                n.bytes()
                    .all(|b| b.is_ascii_digit())
                    .then(|| n.parse().ok())?
            })
            .collect();
        all?.try_into().ok()
    };
    let [y, m, d] = numbers(date, '-')?;
    let [h, min, s] = numbers(clock, ':')?;
    let sane = (1970..=9999).contains(&y)
        && (1..=12).contains(&m)
        && (1..=31).contains(&d)
        && h < 24
        && min < 60
        && s < 61;
    let at = sane.then(|| days(y, m, d) * 86_400 + h * 3600 + min * 60 + s)?;
    u64::try_from(at).ok()
}

/// Reads a consensus, of either flavour (dir-spec, 3.4.1): relays that are running and valid.
pub fn parse(text: &str, which: Relays) -> Option<Reachable> {
    let mut until = None;
    let mut addresses = Vec::new();
    // A relay's addresses wait for its flags.
    let mut relay: Vec<SocketAddr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        match words.next() {
            Some("valid-until") => until = Some(time(words.next()?, words.next()?)?),
            Some("r") => {
                // r nickname identity [digest] date time IP ORPort DirPort
                let words: Vec<&str> = words.collect();
                relay.clear();
                if let [.., ip, port, _dir] = words.as_slice() {
                    let at = ip.parse::<IpAddr>().ok().zip(port.parse().ok());
                    relay.extend(at.map(SocketAddr::from));
                }
            }
            Some("a") => {
                relay.extend(words.next().and_then(|a| a.parse::<SocketAddr>().ok()));
            }
            Some("s") => {
                let flags: Vec<&str> = words.collect();
                let has = |f: &str| flags.contains(&f);
                let fine = has("Running") && has("Valid");
                if fine && (which != Relays::Guards || has("Guard") || has("V2Dir")) {
                    addresses.append(&mut relay);
                }
                relay.clear();
            }
            _ => {}
        }
    }
    addresses.retain(|a| a.port() != 0);
    addresses.sort();
    addresses.dedup();
    Some(Reachable {
        addresses,
        until: until?,
    })
}

/// What speaks to the control port.
trait Talk: Read + Write + Send {}
impl<T: Read + Write + Send> Talk for T {}

fn control(place: &str) -> std::io::Result<Box<dyn Talk>> {
    const LIMIT: Option<Duration> = Some(Duration::from_secs(10));
    if place.starts_with('/') {
        let s = UnixStream::connect(place)?;
        s.set_read_timeout(LIMIT)?;
        return Ok(Box::new(s));
    }
    let place: SocketAddr = place
        .parse()
        .map_err(|_| std::io::Error::other("neither ADDRESS:PORT nor a socket's path"))?;
    let s = TcpStream::connect(place)?;
    s.set_read_timeout(LIMIT)?;
    Ok(Box::new(s))
}

fn reply(from: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    if !line.starts_with("250") {
        return Err(std::io::Error::other(format!("it says {:?}", line.trim())));
    }
    Ok(line)
}

/// How long a cookie of Tor's is (control-spec, 3.24).
const COOKIE: u64 = 32;

/// Reads the cookie whose path the control port names. Whoever holds that port could name any file: it must be one of
/// Tor's own, as long as a cookie is, or it is not sent.
fn cookie(path: &str, owners: &[u32]) -> std::io::Result<Vec<u8>> {
    let file = std::fs::File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() != COOKIE || !owners.contains(&meta.uid()) {
        return Err(std::io::Error::other(format!(
            "{path} is no cookie of a user in tor.users"
        )));
    }
    let mut bytes = Vec::new();
    file.take(COOKIE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Asks Tor for its consensus (control-spec: PROTOCOLINFO, AUTHENTICATE, GETINFO).
fn by_control(place: &str, owners: &[u32]) -> std::io::Result<String> {
    let mut stream = BufReader::new(control(place)?);
    stream.get_mut().write_all(b"PROTOCOLINFO 1\r\n")?;
    let mut path = None;
    loop {
        let line = reply(&mut stream)?;
        if let Some(at) = line.find("COOKIEFILE=\"") {
            path = line[at + 12..].split('"').next().map(str::to_owned);
        }
        if line.starts_with("250 ") {
            break;
        }
    }
    let hex: String = match &path {
        Some(path) => cookie(path, owners)?
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect(),
        None => String::new(),
    };
    let hello = format!("AUTHENTICATE {hex}\r\n");
    stream.get_mut().write_all(hello.as_bytes())?;
    reply(&mut stream)?;
    let mut out = String::new();
    for ask in ["consensus/valid-until", "ns/all"] {
        let ask = format!("GETINFO {ask}\r\n");
        stream.get_mut().write_all(ask.as_bytes())?;
        let first = reply(&mut stream)?;
        if let Some(value) = first.strip_prefix("250-consensus/valid-until=") {
            out.push_str(&format!("valid-until {}\n", value.trim().trim_matches('"')));
        } else if first.starts_with("250+") {
            let mut line = String::new();
            let mut left = CONSENSUS_MAX;
            loop {
                line.clear();
                let n = stream.read_line(&mut line)? as u64;
                left = left.saturating_sub(n);
                if n == 0 || left == 0 {
                    return Err(std::io::Error::other("the answer does not end"));
                }
                let text = line.trim_end();
                if text == "." {
                    break;
                }
                out.push_str(text);
                out.push('\n');
            }
        }
        if !first.starts_with("250 ") {
            reply(&mut stream)?;
        }
    }
    Ok(out)
}

fn by_file(folder: &str) -> std::io::Result<String> {
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for name in ["cached-microdesc-consensus", "cached-consensus"] {
        let read = || {
            let mut text = String::new();
            std::fs::File::open(Path::new(folder).join(name))?
                .take(CONSENSUS_MAX)
                .read_to_string(&mut text)?;
            Ok(text)
        };
        match read() {
            Ok(text) => return Ok(text),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// The relays that may be reached now.
///
/// # Errors
/// Neither the control port nor the data directory has a consensus that holds at `now` (seconds since 1970).
pub fn reachable(policy: &Policy, now: u64) -> Result<Reachable> {
    let t = &policy.tor;
    let which = *t.relays.get_ref();
    let owners: Vec<u32> = t
        .users
        .get_ref()
        .iter()
        .filter_map(|u| Host.user(u))
        .collect();
    let mut why = Vec::new();
    let ways = [
        (
            format!("control port {}", t.control_port),
            by_control(&t.control_port, &owners),
        ),
        (
            format!("data directory {}", t.data_directory),
            by_file(&t.data_directory),
        ),
    ];
    for (name, text) in ways {
        match text.map(|t| parse(&t, which)) {
            Ok(Some(r)) if r.until <= now => why.push(format!("{name}: its consensus is stale")),
            Ok(Some(r)) if r.addresses.is_empty() => {
                why.push(format!("{name}: its consensus names no relay"));
            }
            Ok(Some(r)) => return Ok(r),
            Ok(None) => why.push(format!("{name}: no consensus that can be read")),
            Err(e) => why.push(format!("{name}: {e}")),
        }
    }
    Err(Refusal::new(
        "there is no consensus of Tor's: no relay is reached",
        why.join("\n  "),
        "start tor with tor.relays = \"any\" once, or name directory authorities in tor.addresses",
    ))
}
