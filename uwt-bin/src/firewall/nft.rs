//! nft(8), by absolute path, with an empty environment, its messages kept and a limit on its time; and the kernel's own
//! word on what is loaded, which counts for more than an exit code.

use super::ruleset::marks_generation;
use crate::netns::netlink::{Messages, Socket, attributes, split};
use crate::refusal::{Refusal, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use uwt_core::siphash::hash64;

/// The program.
pub const NFT: &str = "/usr/sbin/nft";

/// How long nft may take. A transaction takes effect as a whole at its end, or not at all.
const LIMIT: Duration = Duration::from_secs(60);

/// Where rules are loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Where {
    /// In this network namespace.
    Here,
    /// In one that is made for it and gone afterwards: what can be loaded there can be loaded here.
    Aside,
}

fn failed(why: impl Into<String>, fix: &str) -> Refusal {
    Refusal::new(format!("{NFT} failed"), why, fix)
}

/// Reads both pipes of a child to their ends, until `until`.
fn drain(child: &mut Child, until: Instant) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let mut buf = vec![0; 1 << 16];
    while stdout.is_some() || stderr.is_some() {
        let left = until.saturating_duration_since(Instant::now());
        let fds: Vec<_> = [
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
        ]
        .into_iter()
        .flatten()
        .collect();
        let mut fds: Vec<PollFd<'_>> = fds
            .into_iter()
            .map(|f| PollFd::new(f, PollFlags::POLLIN))
            .collect();
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        if poll(&mut fds, timeout)? == 0 {
            return Ok(None);
        }
        let ready: Vec<i32> = fds
            .iter()
            .filter(|f| f.any().unwrap_or(true))
            .map(|f| f.as_fd().as_raw_fd())
            .collect();
        if let Some(pipe) = stdout.as_mut().filter(|p| ready.contains(&p.as_raw_fd())) {
            match pipe.read(&mut buf)? {
                0 => stdout = None,
                n => out.extend_from_slice(&buf[..n]),
            }
        }
        if let Some(pipe) = stderr.as_mut().filter(|p| ready.contains(&p.as_raw_fd())) {
            match pipe.read(&mut buf)? {
                0 => stderr = None,
                n => err.extend_from_slice(&buf[..n]),
            }
        }
    }
    Ok(Some((out, err)))
}

/// What nft reads: a file in memory, which it takes faster than a pipe.
fn stdin(text: &str) -> io::Result<Stdio> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let mut file = File::from(memfd_create(c"uwt-firewall", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file.into())
}

/// Moves a child, before it execs, into a network namespace of its own.
fn aside(map: &[u8]) -> io::Result<()> {
    let done = |r: isize| {
        if r < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(r)
    };
    // SAFETY: flags; a C string; bytes that live through the call; a descriptor that has just been made.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNET) == 0 {
            return Ok(());
        }
        done(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) as isize)?;
        let file = done(libc::open(c"/proc/self/uid_map".as_ptr(), libc::O_WRONLY) as isize)?;
        let written = done(libc::write(file as i32, map.as_ptr().cast(), map.len()));
        libc::close(file as i32);
        written.map(|_| ())
    }
}

/// Runs nft with these arguments and this on its standard input; what it printed.
///
/// # Errors
/// It is not there, takes too long, or says no: with its own words.
pub fn run(arguments: &[&str], input: &str, at: Where) -> Result<String> {
    let input = stdin(input).map_err(|e| failed(e.to_string(), ""))?;
    let mut command = Command::new(NFT);
    command
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if at == Where::Aside {
        // As root of a user namespace, where need be: exec would take the capabilities away from anybody else.
        let map = format!("0 {} 1", nix::unistd::geteuid());
        // SAFETY: unshare(2), open(2), write(2) and close(2) alone are called between fork and exec.
        unsafe {
            command.pre_exec(move || aside(map.as_bytes()));
        }
    }
    let mut child = command.spawn().map_err(|e| {
        let fix = match e.kind() {
            io::ErrorKind::NotFound => "apt install nftables",
            _ => "",
        };
        Refusal::new(format!("{NFT} cannot be run"), e.to_string(), fix)
    })?;
    let drained = drain(&mut child, Instant::now() + LIMIT);
    if !matches!(drained, Ok(Some(_))) {
        let _ = child.kill();
        let _ = child.wait();
    }
    let (out, err) = match drained {
        Ok(Some(both)) => both,
        Ok(None) => {
            let seconds = LIMIT.as_secs();
            return Err(failed(
                format!(
                    "it did not end within {seconds} s and was killed: nothing of it was loaded"
                ),
                "",
            ));
        }
        Err(e) => return Err(failed(e.to_string(), "")),
    };
    let status = child.wait().map_err(|e| failed(e.to_string(), ""))?;
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    if status.success() {
        return Ok(text(out));
    }
    let mut why: Vec<String> = text(err).lines().take(6).map(str::to_owned).collect();
    if why.is_empty() {
        why.push(status.to_string());
    }
    let fix = if why.iter().any(|l| l.contains("Operation not permitted")) {
        "run it as root"
    } else {
        ""
    };
    Err(failed(why.join("\n  "), fix))
}

/// Loads `text` as one transaction.
///
/// # Errors
/// As [`run`]; nothing has changed then.
pub fn load(text: &str, at: Where) -> Result<()> {
    run(&["-f", "-"], text, at).map(|_| ())
}

/// A chain as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LoadedChain {
    /// How many rules.
    pub rules: usize,
    /// Whether the kernel calls it.
    pub base: bool,
    /// Whether what no rule names is dropped.
    pub drops: bool,
}

/// A table as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Loaded {
    /// Its comment: which policy it is.
    pub comment: String,
    /// Its chains, by name.
    pub chains: BTreeMap<String, LoadedChain>,
    /// What tells these rules, in this order, from all others; counters aside.
    pub digest: String,
}

impl Loaded {
    /// The policy's hash, from the comment.
    pub fn policy(&self) -> Option<&str> {
        self.word("policy")
    }

    /// The profile.
    pub fn profile(&self) -> Option<&str> {
        self.comment.strip_prefix("uwt ")?.split(' ').next()
    }

    /// The generation of its marks.
    pub fn generation(&self) -> u32 {
        self.word("generation")
            .and_then(|g| g.parse().ok())
            .map_or(0, marks_generation)
    }

    fn word(&self, key: &str) -> Option<&str> {
        let mut words = self.comment.split(' ');
        words.find(|w| *w == key)?;
        words.next()
    }
}

// linux/netfilter/nf_tables.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const GET_TABLE: u16 = 1;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const NFPROTO_INET: u8 = 1;
const NFPROTO_NETDEV: u8 = 5;

/// The attributes of an object.
type Attributes = Vec<(u16, Vec<u8>)>;

/// Asks for all objects of a kind; gives the attributes of each.
fn dump(kind: u16, family: u8, table: &str) -> io::Result<Vec<Attributes>> {
    let socket = Socket::open(libc::NETLINK_NETFILTER)?;
    let mut m = Messages::default();
    let header = [family, 0, 0, 0];
    m.add(
        NFNL_SUBSYS_NFTABLES << 8 | kind,
        libc::NLM_F_DUMP,
        &header,
        |b| b.string(1, table),
    );
    socket.send(m.bytes())?;
    let mut buf = vec![0; 1 << 17];
    let mut all = Vec::new();
    loop {
        let n = socket.receive(&mut buf)?;
        for (kind, _, body) in split(&buf[..n]) {
            if kind == libc::NLMSG_DONE as u16 {
                return Ok(all);
            }
            if kind == libc::NLMSG_ERROR as u16 {
                let code = body.get(..4).and_then(|b| b.try_into().ok());
                let code = code.map_or(-libc::EBADMSG, i32::from_ne_bytes);
                return Err(io::Error::from_raw_os_error(-code));
            }
            let body = body.get(4..).unwrap_or_default();
            all.push(attributes(body).map(|(k, v)| (k, v.to_vec())).collect());
        }
    }
}

fn text_of(attributes: &[(u16, Vec<u8>)], kind: u16) -> Option<String> {
    let value = &attributes.iter().find(|a| a.0 == kind)?.1;
    let value = value.strip_suffix(b"\0").unwrap_or(value);
    Some(String::from_utf8_lossy(value).into_owned())
}

/// A table's comment: libnftnl keeps it as user data, type, length, text.
fn comment_of(data: &[u8]) -> String {
    let mut rest = data;
    while let [kind, len, tail @ ..] = rest {
        let value = tail.get(..usize::from(*len)).unwrap_or_default();
        if *kind == 0 {
            let value = value.strip_suffix(b"\0").unwrap_or(value);
            return String::from_utf8_lossy(value).into_owned();
        }
        rest = tail.get(usize::from(*len)..).unwrap_or_default();
    }
    String::new()
}

/// A digest that goes on with one rule: its chain and its expressions, but for what counters have counted.
fn digest_of(before: u64, rule: &Attributes) -> u64 {
    let mut data = before.to_ne_bytes().to_vec();
    for (kind, value) in rule {
        match kind {
            // NFTA_RULE_CHAIN
            2 => data.extend_from_slice(value),
            // NFTA_RULE_EXPRESSIONS: in each NFTA_LIST_ELEM an NFTA_EXPR_NAME and its data.
            4 => {
                for (_, expression) in attributes(value) {
                    if !expression.windows(8).any(|w| w == b"counter\0") {
                        data.extend_from_slice(expression);
                    }
                }
            }
            _ => {}
        }
    }
    hash64(&[0; 16], &data)
}

fn unreadable(e: io::Error) -> Refusal {
    let fix = match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "run it as root",
        _ => "",
    };
    Refusal::new("the kernel's rules cannot be read", e.to_string(), fix)
}

/// The attributes of a table (NFTA_TABLE_NAME); `None`: there is no such table.
fn find(family: u8, table: &str) -> Result<Option<Attributes>> {
    let tables = dump(GET_TABLE, family, table).map_err(unreadable)?;
    Ok(tables
        .into_iter()
        .find(|t| text_of(t, 1).as_deref() == Some(table)))
}

/// Which policy a table is, without its chains and rules; `None`: there is no such table.
///
/// # Errors
/// The kernel does not say.
pub fn table_of(table: &str) -> Result<Option<Loaded>> {
    const NFTA_TABLE_USERDATA: u16 = 6;
    Ok(find(NFPROTO_INET, table)?.map(|found| Loaded {
        comment: found
            .iter()
            .find(|a| a.0 == NFTA_TABLE_USERDATA)
            .map(|a| comment_of(&a.1))
            .unwrap_or_default(),
        ..Loaded::default()
    }))
}

/// Whether there is a table of this name at the devices (family netdev).
///
/// # Errors
/// The kernel does not say.
pub fn at_devices(table: &str) -> Result<bool> {
    Ok(find(NFPROTO_NETDEV, table)?.is_some())
}

/// What the kernel has of a table; `None`: there is no such table.
///
/// # Errors
/// The kernel does not say, which is told from "there is none".
pub fn loaded(table: &str) -> Result<Option<Loaded>> {
    let Some(mut out) = table_of(table)? else {
        return Ok(None);
    };
    // NFTA_CHAIN_TABLE, NAME, HOOK, POLICY
    for c in dump(GET_CHAIN, NFPROTO_INET, table).map_err(unreadable)? {
        if text_of(&c, 1).as_deref() != Some(table) {
            continue;
        }
        let chain = LoadedChain {
            rules: 0,
            base: c.iter().any(|a| a.0 == 4),
            drops: c.iter().any(|a| a.0 == 5 && a.1 == 0u32.to_be_bytes()),
        };
        out.chains.insert(text_of(&c, 3).unwrap_or_default(), chain);
    }
    let mut digest = 0;
    // NFTA_RULE_TABLE, CHAIN
    for r in dump(GET_RULE, NFPROTO_INET, table).map_err(unreadable)? {
        if text_of(&r, 1).as_deref() != Some(table) {
            continue;
        }
        if let Some(chain) = text_of(&r, 2).and_then(|n| out.chains.get_mut(&n)) {
            chain.rules += 1;
        }
        digest = digest_of(digest, &r);
    }
    out.digest = format!("{digest:016x}");
    Ok(Some(out))
}
