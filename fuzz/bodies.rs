//! What each fuzz target does with its input. Also run over the saved seeds by `make test`
//! (tests/tests/corpora.rs), so that what fuzzing found stays found.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use uwt_core::handoff::{Handoff, MAX, PORTS_MAX};
use uwt_core::hostname::{self, Hostname};
use uwt_core::isolation::Credentials;
use uwt_core::names::{self, NameTable};
use uwt_core::route::{self, Bind, Inbound, Localhost, Policy, PortList, Route, Socks, Transport};
use uwt_core::socks5::{Answer, Command, Failure, Handshake, Progress, Request, Target};
use uwt_core::{dns as message, elf as executable};

/// Takes a fuzzer's input; panics if a claim does not hold.
pub type Body = fn(&[u8]);

/// Every target: its name, as its seeds' folder is called, and its body.
pub const ALL: [(&str, Body); 9] = [
    ("socks5", socks5),
    ("handoff", handoff),
    ("names", names),
    ("route", route),
    ("elf", elf),
    ("dns", dns),
    ("config", config),
    ("broker", broker),
    ("firewall", firewall),
];

/// What the kernel hands the broker, and what a command puts into its packets and questions.
pub fn broker(data: &[u8]) {
    use uwt_bin::broker::{packet, resolver};
    use uwt_bin::netns::netlink::{Messages, attributes, split};
    let read: usize = split(data).map(|(_, _, body)| body.len()).sum();
    assert!(read <= data.len());
    assert!(attributes(data).map(|(_, v)| v.len()).sum::<usize>() <= data.len());
    let mut verdicts = Messages::default();
    for syn in packet::syns(data) {
        packet::verdict(&mut verdicts, syn.id, None);
    }
    let _ = packet::found(data);
    if let Some((ends, _)) = packet::ends(data) {
        assert_eq!(ends.from.is_ipv4(), ends.to.is_ipv4());
        assert_eq!(split(packet::question(ends).bytes()).count(), 1);
    }
    if let Some(q) = message::Question::parse(data) {
        // 80 MB: made once.
        static WORDS: std::sync::OnceLock<Vec<AtomicU32>> = std::sync::OnceLock::new();
        let words = WORDS.get_or_init(|| {
            let words: Vec<AtomicU32> = (0..names::WORDS).map(|_| AtomicU32::new(0)).collect();
            NameTable::init(&words).map_or(Vec::new(), |()| words)
        });
        let Ok(table) = NameTable::open(words, [7; 16]) else {
            return;
        };
        let decide = || resolver::decide(&q, uwt_core::handoff::Dns::Virtual, b"host", &table);
        if let (resolver::Reply::Address(a), resolver::Reply::Address(b)) = (decide(), decide()) {
            assert_eq!(a, b);
        }
    }
}

/// How a plain reader of RFC 1928 and RFC 1929 takes the proxy's whole answer: how many bytes are the
/// proxy's, or `None` if it did not say yes (or not all of it has come).
fn reference(mut b: &[u8], authenticate: bool) -> Option<usize> {
    let start = b.len();
    let mut take = |n: usize| {
        let (head, rest) = b.split_at_checked(n)?;
        b = rest;
        Some(head.to_vec())
    };
    let first = take(2)?;
    match (authenticate, first.as_slice()) {
        (false, [5, 0]) => {}
        // Tor leaves the method reply out when greeting and authentication arrive together.
        (true, [1, 0]) => {}
        (true, [5, 2]) => {
            if take(2)? != [1, 0] {
                return None;
            }
        }
        _ => return None,
    }
    let head = take(4)?;
    if head[0] != 5 || head[1] != 0 {
        return None;
    }
    let address = match head[3] {
        1 => 4,
        4 => 16,
        3 => usize::from(take(1)?[0]),
        _ => return None,
    };
    take(address + 2)?;
    Some(start - b.len())
}

/// The proxy's answer in steps of any size: never more is asked for than is the proxy's, the result is
/// the reference's, and nothing panics. Requests are built from the same bytes.
pub fn socks5(data: &[u8]) {
    let [flags, rest @ ..] = data else { return };
    let authenticate = flags & 1 != 0;
    let step = usize::from(flags >> 1).max(1);
    let mut handshake = Handshake::new(authenticate);
    let mut at = 0;
    let end = loop {
        match handshake.progress() {
            Progress::Want(n) => {
                assert!(n > 0, "asks for nothing");
                let n = n.min(step).min(rest.len() - at);
                if n == 0 {
                    break None;
                }
                handshake.feed(&rest[at..at + n]);
                at += n;
            }
            Progress::Done => break Some(at),
            Progress::Failed(f) => {
                assert!(!f.message().is_empty() && f.errno().0 > 0);
                break None;
            }
        }
    };
    assert_eq!(end, reference(rest, authenticate), "{rest:02x?}");
    assert_eq!(end.is_some(), handshake.answer().is_some());
    if let Some(Answer::Name(n)) = handshake.answer() {
        assert!(n.len() <= 255);
    }

    let cut = usize::from(*flags).min(rest.len());
    let (user, name) = rest.split_at(cut);
    let credentials = Credentials::fixed(user, &user[..user.len().min(7)]);
    if let Some(request) = Request::new(
        credentials.as_ref(),
        Command::Connect,
        Target::Name(name),
        80,
    ) {
        let b = request.bytes();
        assert!(b.starts_with(&[5, 1]));
        assert!((1..=255).contains(&name.len()) && b.ends_with(&[name, &[0, 80]].concat()));
    }
    // More than was asked for would have been the program's.
    let mut greedy = Handshake::new(authenticate);
    if let Progress::Want(n) = greedy.progress() {
        if rest.len() > n {
            assert_eq!(greedy.feed(rest), Progress::Failed(Failure::Malformed));
        }
    }
}

/// The variable's value: what decodes encodes to the same bytes; one changed byte never decodes.
///
/// The checksum would keep a fuzzer out for ever, so the body is also tried with the right one.
pub fn handoff(data: &[u8]) {
    decode_and_back(data);
    if let Some(body) = data.len().checked_sub("sum=8:00000000;".len()) {
        let fnv = |h: u32, b: &u8| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193);
        let sum = data[..body].iter().fold(0x811c_9dc5, fnv);
        decode_and_back(&[&data[..body], format!("sum=8:{sum:08x};").as_bytes()].concat());
    }
}

fn decode_and_back(data: &[u8]) {
    let mut ports = [0; PORTS_MAX * 2];
    if let Ok(h) = Handoff::decode(data, &mut ports) {
        let mut out = vec![0; MAX];
        let n = h.encode(&mut out).expect("what decodes encodes");
        assert_eq!(&out[..n], data);
        let mut changed = data.to_vec();
        for at in [0, data.len() / 2, data.len() - 1] {
            changed[at] ^= 1;
            let mut ports = [0; PORTS_MAX * 2];
            assert!(Handoff::decode(&changed, &mut ports).is_err());
            changed[at] ^= 1;
        }
    }
}

/// Names, by two handles, in memory that somebody else spoils now and then.
pub fn names(data: &[u8]) {
    thread_local! {
        // Zeroed pages of the kernel's; made once, since the table is 80 MiB of address space.
        static WORDS: &'static [AtomicU32] = {
            let zeroed = vec![0u32; names::WORDS].leak();
            // The two have the same layout (std: AtomicU32).
            let at = zeroed.as_mut_ptr().cast::<AtomicU32>();
            // SAFETY: leaked memory of WORDS words, referred to as atomics from here on.
            unsafe { std::slice::from_raw_parts(at, names::WORDS) }
        };
    }
    let words = WORDS.with(|w| *w);
    NameTable::init(words).expect("init");
    let one = NameTable::open(words, [7; 16]).expect("open");
    let two = NameTable::open(words, [7; 16]).expect("open");
    let mut known: HashMap<Vec<u8>, Ipv4Addr> = HashMap::new();
    let mut touched = Vec::new();
    let mut spoiled = false;
    for part in data.split(|b| *b == 0).take(64) {
        let mut buf = [0; hostname::NAME_MAX];
        if let [0xff, a, b, c, d, value @ ..] = part {
            let at = u32::from_le_bytes([*a, *b, *c, *d]) as usize % words.len();
            let mut v = [0; 4];
            for (slot, b) in v.iter_mut().zip(value) {
                *slot = *b;
            }
            words[at].store(u32::from_le_bytes(v), Ordering::Relaxed);
            touched.push(at);
            spoiled = true;
            continue;
        }
        let Ok(address) = one.address(part) else {
            continue;
        };
        touched.push(16 + (u32::from(address) - 0x7f80_0000) as usize);
        assert!(address.octets()[0] == 127 && address.octets()[1] & 0xc0 == 128);
        if spoiled {
            // No promise but that nothing panics.
            let _ = two.name(address, &mut buf);
            continue;
        }
        assert_eq!(two.name(address, &mut buf), Some(part));
        assert_eq!(two.address(part), Ok(address));
        if let Some(before) = known.insert(part.to_vec(), address) {
            assert_eq!(before, address);
        }
    }
    let mut addresses: Vec<_> = known.values().collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), known.len(), "an address with two names");
    for at in touched {
        words[at].store(0, Ordering::Relaxed);
    }
}

/// Any name, any address, any policy: what is not loopback is never reached directly, but for the
/// SOCKS port itself; loopback never goes to Tor.
pub fn route(data: &[u8]) {
    let [flags, p1, p2, rest @ ..] = data else {
        return;
    };
    if let Hostname::Remote(name) = hostname::classify(rest, b"own-name") {
        assert!((1..=255).contains(&name.len()));
        let lower = name.to_ascii_lowercase();
        assert!(!lower.ends_with(b".localhost") && lower != b"localhost" && lower != b"own-name");
        assert!(!lower.ends_with(b".local"));
    }
    let mut octets = [0; 16];
    for (slot, b) in octets.iter_mut().zip(rest) {
        *slot = *b;
    }
    let ip: IpAddr = if flags & 1 != 0 {
        Ipv6Addr::from(octets).into()
    } else {
        Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()
    };
    let socks: SocketAddr = ([127, 0, 0, 1], 9050).into();
    let ports = &rest[..rest.len().min(8) & !1];
    let policy = Policy {
        socks: Socks::Ip(socks),
        localhost: if flags & 2 != 0 {
            Localhost::Refuse
        } else {
            Localhost::Direct
        },
        localhost_ports: PortList(ports),
        inbound: if flags & 4 != 0 {
            Inbound::Allow
        } else {
            Inbound::Loopback
        },
        bind: Bind::Keep,
        unix_allow: b"",
        held: false,
    };
    let to = SocketAddr::from((ip, u16::from_be_bytes([*p1, *p2])));
    let transport = if flags & 8 != 0 {
        Transport::Udp
    } else {
        Transport::Tcp
    };
    let loopback = hostname::is_loopback(ip) && names::virtual_address(ip).is_none();
    match route::outbound(&policy, transport, to) {
        Route::Direct => assert!(loopback, "{to} direct"),
        Route::Tor => assert!(!loopback && transport == Transport::Tcp, "{to} to Tor"),
        Route::Refuse(r) => assert!(!r.message().is_empty() && r.errno().0 > 0),
    }
    if loopback && policy.localhost == Localhost::Refuse && hostname::canonical(ip) != socks.ip() {
        assert!(matches!(
            route::outbound(&policy, transport, to),
            Route::Refuse(_)
        ));
    }
    let _ = route::unix(&policy, rest);
    let _ = route::socket(i32::from(*flags), i32::from(*p1), i32::from(*p2));
    let _ = route::listen(&policy, to);
}

/// Any file: it is looked at without a panic, and what is truncated never counts as dynamic.
pub fn elf(data: &[u8]) {
    let read = |at: u64, buf: &mut [u8]| {
        let rest = usize::try_from(at)
            .ok()
            .and_then(|a| data.get(a..))
            .unwrap_or(&[]);
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        n
    };
    let kind = executable::inspect(read);
    if kind == executable::Executable::Dynamic {
        assert!(data.len() > 120 && data.starts_with(b"\x7fELF\x02\x01"));
    }
    if let Some((interpreter, argument)) = executable::shebang(data) {
        assert!(!interpreter.is_empty() && argument.is_none_or(|a| !a.is_empty()));
    }
}

/// Any DNS query: what parses is answered within the buffer, with the same question.
pub fn dns(data: &[u8]) {
    let Some(q) = message::Question::parse(data) else {
        return;
    };
    let _ = q.address();
    let records = [
        message::Record::A(Ipv4Addr::LOCALHOST),
        message::Record::NoName,
        message::Record::Ptr(b"a.example"),
    ];
    for record in records {
        for room in [0, 12, 100, 600] {
            let mut out = vec![0; room];
            if let Some(n) = q.answer(record, &mut out) {
                assert!(n <= room && out[..2] == data[..2]);
            }
        }
    }
}

/// Any configuration file: refused with its name and a line, or read; never a panic. The same text as
/// a command line.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match uwt_bin::config::parse("f.toml", &text) {
        Ok(parsed) => {
            let _ = uwt_bin::config::effective("curl", &parsed, &[]);
        }
        Err(refusal) => assert!(refusal.to_string().contains("f.toml:"), "{refusal}"),
    }
    let words = text.split('\n').map(Into::into);
    let _ = uwt_bin::cli::parse(std::iter::once("uwt".into()).chain(words).collect());
}

/// What names stand for where nothing is known: everything exists.
struct Anywhere;

impl uwt_bin::firewall::facts::Facts for Anywhere {
    fn user(&self, account: &uwt_bin::firewall::words::Account) -> Option<u32> {
        account.0.parse().ok().or(Some(1000))
    }
    fn group(&self, account: &uwt_bin::firewall::words::Account) -> Option<u32> {
        self.user(account)
    }
    fn cgroup(&self, _: &uwt_bin::firewall::words::Cgroup) -> bool {
        true
    }
}

/// A policy is refused with its line, or comes to a text of one table whose quotes and braces close, whatever its
/// words are; a rule says of itself what it was read from; a consensus is read or not.
pub fn firewall(data: &[u8]) {
    use uwt_bin::firewall::{policy, relays, render, rule};
    let text = String::from_utf8_lossy(data);
    match policy::Policy::parse("f.toml", &text) {
        Ok(policy) => {
            let rendered = render::render(&policy, &Anywhere);
            let text = rendered.ruleset.text("uwt fuzz", 1);
            let mut depth = 0i32;
            for line in text.lines() {
                let quotes = line.matches('"').count();
                assert!(quotes % 2 == 0, "{line}");
                // What is between quotes is somebody's words.
                let bare: String = line.split('"').step_by(2).collect();
                depth += bare.matches('{').count() as i32 - bare.matches('}').count() as i32;
                assert!(
                    depth >= 0 && !line.chars().any(|c| c.is_control() && c != '\t'),
                    "{line}"
                );
            }
            assert!(depth == 0, "{text}");
            assert!(text.matches("policy drop").count() == 3, "{text}");
            let _ = render::torrc(&policy);
        }
        Err(refusal) => assert!(refusal.to_string().contains("f.toml"), "{refusal}"),
    }
    for line in text.lines().take(50) {
        if let Ok(one) = rule::Rule::parse(line, Some(1_000_000)) {
            let again = rule::Rule::parse(&one.to_string(), None);
            assert_eq!(again.as_ref(), Ok(&one), "{line}");
        }
    }
    let _ = relays::parse(&text, policy::Relays::Guards);
}
