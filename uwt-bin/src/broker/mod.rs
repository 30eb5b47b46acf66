//! The broker: stays outside when a command enters its network namespace, and carries what comes out of it.
//!
//! Every SYN inside waits in a queue (see [`crate::netns::rules`]) until the broker has said what becomes of it. It asks
//! outside first - Tor, or a permitted port on loopback - and lets the SYN go to its relay only when the way is open,
//! or has it refused with the errno that fits: the command sees the true moment and the true error, and no call of its
//! own was touched.
//!
//! | module | its one job |
//! | --- | --- |
//! | [`packet`] | what the kernel hands over, read |
//! | [`owner`] | which process a socket is of |
//! | [`flow`] | one connection on its way |
//! | [`relay`] | bytes between two sockets |
//! | [`resolver`] | DNS inside |

pub mod flow;
pub mod owner;
pub mod packet;
pub mod relay;
pub mod resolver;

use crate::netns::netlink::Messages;
use crate::netns::rules::Mark;
use crate::netns::{self, Sockets};
use crate::process;
use flow::{Flow, Purpose, Socks5, Stage, Stepped};
use owner::Owners;
use packet::{Ends, LISTEN, Syn};
use relay::{Pool, Relay, State};
use std::collections::HashMap;
use std::io::{self, Error, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};
use uwt_core::dns::Record;
use uwt_core::errno::Errno;
use uwt_core::handoff::{Handoff, LogLevel};
use uwt_core::hostname::{NAME_MAX, canonical, is_loopback};
use uwt_core::isolation::{self, Connection, Process, Scope};
use uwt_core::names::{self, NameTable};
use uwt_core::route::{self, Route, Socks, Transport};
use uwt_core::socks5::{Answer, Command, Request, Target};

/// How long a connection that was let go may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(30);

/// What a broker serves.
pub struct Charge<'a> {
    /// The run's policy.
    pub handoff: &'a Handoff<'a>,
    /// The run's names.
    pub names: NameTable<'a>,
    /// This machine's own name (uname(2)).
    pub own_name: Vec<u8>,
    /// The namespace's sockets.
    pub sockets: Sockets,
    /// The namespace's inode.
    pub namespace: u64,
    /// The command's process.
    pub command: u32,
}

const LIFE: u64 = u64::MAX;
const QUEUE: u64 = u64::MAX - 1;
const RELAY: u64 = u64::MAX - 16;
const RESOLVER: u64 = u64::MAX - 32;

struct Broker<'a> {
    charge: Charge<'a>,
    epoll: OwnedFd,
    flows: Vec<Option<Flow>>,
    free: Vec<usize>,
    /// Flows that are asked for or arriving.
    pending: HashMap<Ends, usize>,
    /// Those that arrive, by the mark that they will have.
    arriving: HashMap<u32, usize>,
    busy: Vec<usize>,
    /// Connections for which there was no descriptor, by their SYN's number.
    starved: HashMap<Ends, u32>,
    pool: Pool,
    owners: Owners,
    serial: u64,
    generation: u32,
    verdicts: Messages,
    /// Given up for a moment when descriptors have run out, so that a connection can be taken and closed.
    spare: Option<OwnedFd>,
    said_unreachable: bool,
    /// How many flows are joined.
    joined: usize,
    /// How many descriptors this process may have.
    limit: usize,
    /// It has taken joined flows over from the broker, and does nothing else.
    relay_only: bool,
}

fn spare() -> Option<OwnedFd> {
    std::fs::File::open("/dev/null").ok().map(OwnedFd::from)
}

/// Serves until the command has ended. Gives only an error that keeps it from serving at all.
///
/// # Errors
/// epoll(7)'s, pidfd_open(2)'s, pipe(2)'s.
pub fn serve(charge: Charge<'_>, ready: impl FnOnce()) -> io::Result<()> {
    let epoll = new_epoll()?;
    let life = process::pidfd(charge.command).ok_or_else(Error::last_os_error)?;
    let level = libc::EPOLLIN as u32;
    watch(&epoll, life.as_raw_fd(), level, LIFE)?;
    watch(&epoll, charge.sockets.queue.as_raw_fd(), level, QUEUE)?;
    for (fds, token) in [
        (&charge.sockets.relay, RELAY),
        (&charge.sockets.resolver, RESOLVER),
    ] {
        for (i, fd) in fds.iter().enumerate() {
            set_nonblocking(fd)?;
            watch(&epoll, fd.as_raw_fd(), level, token + i as u64)?;
        }
    }
    let owners = Owners::new(charge.namespace, charge.command);
    let mut broker = Broker {
        charge,
        epoll,
        flows: Vec::new(),
        free: Vec::new(),
        pending: HashMap::new(),
        arriving: HashMap::new(),
        busy: Vec::new(),
        starved: HashMap::new(),
        pool: Pool::new()?,
        owners,
        // The shim counts from below.
        serial: 1 << 63,
        generation: 0,
        verdicts: Messages::default(),
        spare: spare(),
        said_unreachable: false,
        joined: 0,
        limit: descriptor_limit(),
        relay_only: false,
    };
    ready();
    broker.run()
}

fn new_epoll() -> io::Result<OwnedFd> {
    // SAFETY: epoll_create1(2) with a plain number; the descriptor is new.
    unsafe {
        let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Has epoll know nothing of a descriptor any more.
fn forget(epoll: &OwnedFd, fd: &OwnedFd) {
    let none = std::ptr::null_mut();
    // SAFETY: epoll_ctl(2) on descriptors that are ours; EPOLL_CTL_DEL looks at no event.
    unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, fd.as_raw_fd(), none) };
}

fn descriptor_limit() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft as usize)
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

fn watch(epoll: &OwnedFd, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: token };
    // SAFETY: epoll_ctl(2) on descriptors that are ours, with an event that lives through the call.
    let r = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
    if r != 0 {
        return Err(Error::last_os_error());
    }
    Ok(())
}

impl Broker<'_> {
    fn run(&mut self) -> io::Result<()> {
        let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; 512];
        let mut swept = Instant::now();
        loop {
            let timeout = match (self.busy.is_empty(), self.pending.is_empty()) {
                (false, _) => 0,
                (true, false) => 1000,
                (true, true) => -1,
            };
            let (fd, max) = (self.epoll.as_raw_fd(), events.len() as i32);
            // SAFETY: epoll_wait(2) fills at most `max` events of a buffer that lives through the call.
            let n = unsafe { libc::epoll_wait(fd, events.as_mut_ptr(), max, timeout) };
            let n = match usize::try_from(n) {
                Ok(n) => n,
                Err(_) if Error::last_os_error().kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Err(Error::last_os_error()),
            };
            // New connections last: what ends makes room for them.
            let mut queue = false;
            for event in &events[..n] {
                let token = event.u64;
                match token {
                    LIFE => return Ok(()),
                    QUEUE => queue = true,
                    token if token >= RELAY => self.on_arrival((token - RELAY) as usize),
                    token if token >= RESOLVER => self.on_question((token - RESOLVER) as usize),
                    token => self.on_flow(token),
                }
            }
            if queue {
                self.on_queue();
            }
            for at in std::mem::take(&mut self.busy) {
                if let Some(flow) = self.flows[at].as_mut() {
                    flow.busy = false;
                    self.pump(at);
                }
            }
            if !self.pending.is_empty() && swept.elapsed() >= Duration::from_secs(1) {
                swept = Instant::now();
                self.expire(swept);
            }
            if self.relay_only && self.joined == 0 {
                return Ok(());
            }
            if !self.verdicts.bytes().is_empty() {
                let verdicts = std::mem::take(&mut self.verdicts);
                self.send(verdicts.bytes());
            }
        }
    }

    /// To the queue's socket.
    fn send(&self, bytes: &[u8]) {
        let fd = self.charge.sockets.queue.as_raw_fd();
        // SAFETY: the bytes live through the call. What does not go leaves SYNs waiting, and nothing opens.
        unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0) };
    }

    fn say(&self, level: LogLevel, message: &str) {
        let h = self.charge.handoff;
        if h.log < level {
            return;
        }
        let line = format!("uwt: {message}\n");
        if h.log_file.is_empty() {
            let _ = io::stderr().write_all(line.as_bytes());
            return;
        }
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::OsStr::from_bytes(h.log_file);
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path);
        // A full disk loses a line of the log, and nothing else.
        let _ = file.and_then(|mut f| f.write_all(line.as_bytes()));
    }

    fn on_queue(&mut self) {
        // One packet a message, of which the queue copies 128 bytes.
        let mut buf = [0u8; 4096];
        let fd = self.charge.sockets.queue.as_raw_fd();
        // So many at a time: others wait too.
        for _ in 0..256 {
            // SAFETY: the buffer lives through the call.
            let n = unsafe { libc::recv(fd, buf.as_mut_ptr().cast(), buf.len(), 0) };
            let Ok(n) = usize::try_from(n) else {
                // ENOBUFS: the queue was full, packets were dropped and will come again.
                if Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS) {
                    continue;
                }
                return;
            };
            for syn in packet::syns(&buf[..n]) {
                if let Some(mark) = self.on_syn(syn) {
                    packet::verdict(&mut self.verdicts, syn.id, mark);
                }
            }
        }
    }

    /// A new connection, or the same SYN again. Gives the verdict if there is one already: `Some(None)` drops it.
    fn on_syn(&mut self, syn: Syn) -> Option<Option<Mark>> {
        let Some(ends) = syn.ends else {
            return Some(Some(Mark::Reset));
        };
        if let Some(at) = self.pending.get(&ends).copied() {
            let stage = self.flows[at]
                .as_ref()
                .map(|f| (&f.stage, f.sequence, f.generation));
            match stage {
                Some((Stage::Arriving, sequence, n)) if sequence == syn.sequence => {
                    return Some(Some(Mark::Carried(n)));
                }
                Some((_, sequence, _)) if sequence == syn.sequence => return Some(None),
                // The same ports anew: whoever had them has closed.
                _ => self.fail(at, Errno::ECONNREFUSED),
            }
        }
        self.make_room();
        let policy = &self.charge.handoff.policy;
        let ip = canonical(ends.to.ip());
        let real_loopback = is_loopback(ip) && names::virtual_address(ip).is_none();
        let is_socks = matches!(policy.socks, Socks::Ip(s) if canonical(s.ip()) == ip && s.port() == ends.to.port());
        if real_loopback && !is_socks && self.listens_inside(ends) {
            return Some(Some(Mark::Inside));
        }
        let route = route::outbound(policy, Transport::Tcp, ends.to);
        let begun = match route {
            Route::Direct => {
                flow::connect(&Socks::Ip(SocketAddr::new(ip, ends.to.port()))).map(|fd| (fd, None))
            }
            Route::Tor => match self.request(ends) {
                Ok(socks) => flow::connect(&policy.socks).map(|fd| (fd, Some(socks))),
                Err(e) => return Some(Some(mark_of(e))),
            },
            Route::Refuse(r) => {
                self.say(LogLevel::Debug, &format!("{}: {}", ends.to, r.message()));
                return Some(Some(mark_of(r.errno())));
            }
        };
        let purpose = Purpose::Carry { packet: syn.id };
        match begun {
            Ok((outside, socks)) => {
                let stage = Stage::Asking(socks.map(Box::new));
                if self
                    .add(Some(ends), syn.sequence, purpose, stage, outside)
                    .is_err()
                {
                    return Some(Some(Mark::Reset));
                }
                None
            }
            Err(e) if no_descriptors(&e) => {
                // Dropped once: the SYN comes again in a second, when there may be room.
                if self.starved.remove(&ends) == Some(syn.sequence) {
                    return Some(Some(Mark::Reset));
                }
                if self.starved.len() < 1024 {
                    self.starved.insert(ends, syn.sequence);
                }
                Some(None)
            }
            Err(e) => {
                if route == Route::Tor {
                    self.say_unreachable();
                }
                Some(Some(mark_of(flow::errno_of(&e))))
            }
        }
    }

    fn diag(&self, ends: Ends) -> Option<packet::Found> {
        let fd = self.charge.sockets.diag.as_raw_fd();
        let question = packet::question(ends);
        let mut buf = [0u8; 8192];
        // SAFETY: what is sent and what is filled lives through the calls. The kernel answers within send(2).
        let n = unsafe {
            let bytes = question.bytes();
            if libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0) < 0 {
                return None;
            }
            libc::recv(fd, buf.as_mut_ptr().cast(), buf.len(), 0)
        };
        packet::found(buf.get(..usize::try_from(n).ok()?)?)
    }

    fn listens_inside(&self, ends: Ends) -> bool {
        let there = Ends {
            from: ends.to,
            to: ends.from,
        };
        self.diag(there).is_some_and(|f| f.state == LISTEN)
    }

    /// Whose connection it is; the run's, if nobody can be told.
    fn owner(&mut self, ends: Ends) -> Process {
        let found = self.diag(ends).and_then(|f| self.owners.of(f.inode));
        found.unwrap_or(Process { pid: 0, birth: 0 })
    }

    /// What Tor is asked for a connection.
    fn request(&mut self, ends: Ends) -> Result<Socks5, Errno> {
        let mut name = [0; NAME_MAX];
        let target = match names::virtual_address(ends.to.ip()) {
            Some(address) => {
                let name = self.charge.names.name(address, &mut name);
                Target::Name(name.ok_or(route::Refusal::UnknownVirtual.errno())?)
            }
            None => Target::Ip(canonical(ends.to.ip())),
        };
        let scope = self.charge.handoff.isolation.scope;
        let process = match scope {
            Scope::Pid | Scope::Connection => self.owner(ends),
            _ => Process { pid: 0, birth: 0 },
        };
        if self.charge.handoff.log >= LogLevel::Debug {
            let shown = match target {
                Target::Name(n) => String::from_utf8_lossy(n).into_owned(),
                Target::Ip(ip) => ip.to_string(),
            };
            let line = format!(
                "{shown}:{} for process {}: through Tor",
                ends.to.port(),
                process.pid
            );
            self.say(LogLevel::Debug, &line);
        }
        self.socks5(Command::Connect, target, ends.to.port(), process)
    }

    fn socks5(
        &mut self,
        command: Command,
        target: Target<'_>,
        port: u16,
        process: Process,
    ) -> Result<Socks5, Errno> {
        self.serial += 1;
        let octets;
        let host = match target {
            Target::Name(n) => n,
            Target::Ip(IpAddr::V4(a)) => {
                octets = a.to_ipv6_mapped().octets();
                &octets[12..]
            }
            Target::Ip(IpAddr::V6(a)) => {
                octets = a.octets();
                &octets[..]
            }
        };
        let connection = Connection {
            host,
            port,
            serial: self.serial,
        };
        let credentials =
            isolation::credentials(&self.charge.handoff.isolation, process, connection);
        let request = Request::new(credentials.as_ref(), command, target, port);
        let request = request.ok_or(Errno::EHOSTUNREACH)?;
        Ok(Socks5::new(request, credentials.is_some()))
    }

    fn add(
        &mut self,
        ends: Option<Ends>,
        sequence: u32,
        purpose: Purpose,
        stage: Stage,
        outside: OwnedFd,
    ) -> io::Result<()> {
        let at = self.free.pop().unwrap_or_else(|| {
            self.flows.push(None);
            self.flows.len() - 1
        });
        self.generation = self.generation.wrapping_add(1) & 0x7fff_ffff;
        let token = u64::from(self.generation) << 32 | at as u64;
        if let Err(e) = watch(&self.epoll, outside.as_raw_fd(), both_ways(), token) {
            self.free.push(at);
            return Err(e);
        }
        let timeout = Duration::from_millis(u64::from(self.charge.handoff.timeout_ms));
        self.flows[at] = Some(Flow {
            generation: self.generation,
            ends,
            sequence,
            purpose,
            stage,
            outside,
            deadline: Instant::now() + timeout,
            busy: false,
        });
        if let Some(ends) = ends {
            self.pending.insert(ends, at);
        }
        Ok(())
    }

    fn on_flow(&mut self, token: u64) {
        let at = (token & 0xffff_ffff) as usize;
        let Some(Some(flow)) = self.flows.get_mut(at) else {
            return;
        };
        if u64::from(flow.generation) != token >> 32 {
            return;
        }
        match flow.stage {
            Stage::Asking(_) => match flow.step() {
                Stepped::Wait => {}
                Stepped::Open => self.open(at),
                Stepped::Failed(e, reaching) => {
                    if reaching && matches!(flow.stage, Stage::Asking(Some(_))) {
                        self.say_unreachable();
                    }
                    self.fail(at, e);
                }
            },
            Stage::Arriving => {}
            Stage::Joined(..) => self.pump(at),
        }
    }

    /// The way is open: the SYN goes on to the relay, or the question is answered.
    fn open(&mut self, at: usize) {
        let Some(flow) = self.flows[at].as_mut() else {
            return;
        };
        match &flow.purpose {
            Purpose::Carry { packet } => {
                let mark = Mark::Carried(flow.generation);
                packet::verdict(&mut self.verdicts, *packet, Some(mark));
                flow.stage = Stage::Arriving;
                flow.deadline = Instant::now() + ARRIVAL;
                self.arriving.insert(mark.value(), at);
            }
            Purpose::Answer { socket, asked } => {
                let Stage::Asking(Some(socks)) = &flow.stage else {
                    return;
                };
                let record = match socks.handshake.answer() {
                    Some(Answer::Ip(IpAddr::V4(a))) if !a.is_unspecified() => Record::A(a),
                    Some(Answer::Ip(IpAddr::V6(_))) => Record::None,
                    Some(Answer::Name(n)) => Record::Ptr(n),
                    _ => Record::NoName,
                };
                asked.answer(&self.charge.sockets.resolver[*socket], record);
                self.remove(at);
            }
        }
    }

    /// It failed: the command gets this errno, or no such name.
    fn fail(&mut self, at: usize, errno: Errno) {
        let Some(flow) = self.flows[at].as_ref() else {
            return;
        };
        match (&flow.purpose, &flow.stage) {
            (Purpose::Carry { packet }, Stage::Asking(_)) => {
                packet::verdict(&mut self.verdicts, *packet, Some(mark_of(errno)));
            }
            (Purpose::Answer { socket, asked }, _) => {
                asked.answer(&self.charge.sockets.resolver[*socket], Record::NoName);
            }
            _ => {}
        }
        self.remove(at);
    }

    fn remove(&mut self, at: usize) {
        if let Some(flow) = self.flows[at].take() {
            self.free.push(at);
            if matches!(flow.stage, Stage::Arriving) {
                self.arriving
                    .remove(&Mark::Carried(flow.generation).value());
            }
            self.joined -= usize::from(matches!(flow.stage, Stage::Joined(..)));
            if let Some(ends) = flow.ends {
                if self.pending.get(&ends) == Some(&at) {
                    self.pending.remove(&ends);
                }
            }
        }
    }

    fn expire(&mut self, now: Instant) {
        let late = |f: &Flow| now > f.deadline && !matches!(f.stage, Stage::Joined(..));
        let all: Vec<usize> = (0..self.flows.len())
            .filter(|at| self.flows[*at].as_ref().is_some_and(late))
            .collect();
        for at in all {
            self.fail(at, Errno::ETIMEDOUT);
        }
    }

    /// A connection has arrived at the relay.
    fn on_arrival(&mut self, which: usize) {
        for _ in 0..256 {
            let listener = self.charge.sockets.relay[which].as_raw_fd();
            let Some(socket) = (match accept(listener) {
                Ok(arrived) => arrived,
                Err(e) if no_descriptors(&e) => {
                    // Taken and closed, or it would be waited for without end.
                    self.spare = None;
                    let _ = accept(listener);
                    self.spare = spare();
                    continue;
                }
                Err(_) => return,
            }) else {
                return;
            };
            // Without a mark of ours nobody asked for it: a connection to the relay's own port.
            let Some(at) = self.arriving.remove(&mark(&socket)) else {
                relay::reset_on_close(&socket);
                continue;
            };
            let Some(flow) = self.flows[at].as_mut() else {
                continue;
            };
            let token = u64::from(flow.generation) << 32 | at as u64;
            let arriving = matches!(flow.stage, Stage::Arriving);
            if !arriving || watch(&self.epoll, socket.as_raw_fd(), both_ways(), token).is_err() {
                relay::reset_on_close(&socket);
                self.remove(at);
                continue;
            }
            flow::no_delay(&socket);
            if let Some(ends) = flow.ends {
                self.pending.remove(&ends);
            }
            flow.stage = Stage::Joined(socket, Relay::default());
            self.joined += 1;
            self.pump(at);
        }
    }

    fn pump(&mut self, at: usize) {
        let Some(flow) = self.flows[at].as_mut() else {
            return;
        };
        let Stage::Joined(inside, relay) = &mut flow.stage else {
            return;
        };
        match relay.pump(inside, &flow.outside, &mut self.pool) {
            State::Waiting => {}
            State::Busy if flow.busy => {}
            State::Busy => {
                flow.busy = true;
                self.busy.push(at);
            }
            State::Ended => self.remove(at),
            State::Broken => {
                relay::reset_on_close(inside);
                relay::reset_on_close(&flow.outside);
                self.remove(at);
            }
        }
    }

    /// When descriptors come to an end, hands the joined flows to a process of their own: each has as many as the user may
    /// have, and there may be more connections than that.
    fn make_room(&mut self) {
        let used = 2 * self.joined + self.pending.len() + 16;
        if self.joined == 0 || used + (self.limit / 8).clamp(2, 64) < self.limit {
            return;
        }
        let is_joined = |at: &usize| {
            let flow = self.flows[*at].as_ref();
            flow.is_some_and(|f| matches!(f.stage, Stage::Joined(..)))
        };
        let joined: Vec<usize> = (0..self.flows.len()).filter(is_joined).collect();
        // SAFETY: the broker has one thread.
        match unsafe { netns::fork(libc::SIGCHLD) } {
            Err(_) => {}
            Ok(0) => self.relay_on(&joined),
            Ok(_) => {
                for at in joined {
                    let Some(flow) = self.flows[at].take() else {
                        continue;
                    };
                    self.free.push(at);
                    // The other process keeps the connections, and with them what epoll knows of them.
                    forget(&self.epoll, &flow.outside);
                    if let Stage::Joined(inside, _) = &flow.stage {
                        forget(&self.epoll, inside);
                    }
                }
                self.joined = 0;
                self.busy.clear();
            }
        }
    }

    /// Goes on with these flows alone, in a process of their own.
    fn relay_on(&mut self, joined: &[usize]) -> ! {
        use std::mem::forget;
        let mut keep: Vec<RawFd> = vec![2];
        for at in joined {
            if let Some(Flow {
                outside,
                stage: Stage::Joined(inside, relay),
                ..
            }) = &self.flows[*at]
            {
                keep.extend([outside.as_raw_fd(), inside.as_raw_fd()]);
                keep.extend(relay.descriptors());
            }
        }
        // What is closed below by number must not be closed again by its owner.
        for at in 0..self.flows.len() {
            if joined.binary_search(&at).is_err() {
                forget(self.flows[at].take());
            }
        }
        forget(self.spare.take());
        self.pending.clear();
        self.arriving.clear();
        // Those are the broker's to send.
        self.verdicts = Messages::default();
        // SAFETY: everything else that has a descriptor is forgotten, or is not used by a process that only relays.
        unsafe { close_others(keep) };
        let renewed = || -> io::Result<(OwnedFd, Pool)> {
            let epoll = new_epoll()?;
            let life = process::pidfd(self.charge.command).ok_or_else(Error::last_os_error)?;
            watch(&epoll, life.as_raw_fd(), libc::EPOLLIN as u32, LIFE)?;
            forget(life);
            for at in joined {
                if let Some(flow) = &self.flows[*at] {
                    let token = u64::from(flow.generation) << 32 | *at as u64;
                    watch(&epoll, flow.outside.as_raw_fd(), both_ways(), token)?;
                    if let Stage::Joined(inside, _) = &flow.stage {
                        watch(&epoll, inside.as_raw_fd(), both_ways(), token)?;
                    }
                }
            }
            Ok((epoll, Pool::new()?))
        };
        if let Ok((epoll, pool)) = renewed() {
            forget(std::mem::replace(&mut self.epoll, epoll));
            forget(std::mem::replace(&mut self.pool, pool));
            self.relay_only = true;
            self.busy = joined.to_vec();
            for at in joined {
                if let Some(flow) = self.flows[*at].as_mut() {
                    flow.busy = true;
                }
            }
            let _ = self.run();
        }
        // SAFETY: ends this process without what the broker left to be run at its end.
        unsafe { libc::_exit(0) }
    }

    fn on_question(&mut self, which: usize) {
        for _ in 0..256 {
            let received = match resolver::receive(&self.charge.sockets.resolver[which]) {
                Some(Some(received)) => received,
                Some(None) => continue,
                None => return,
            };
            let h = self.charge.handoff;
            let q = &received.question;
            let reply = resolver::decide(q, h.dns, &self.charge.own_name, &self.charge.names);
            let record = match &reply {
                resolver::Reply::Address(a) => Record::A(*a),
                resolver::Reply::Name(n) => Record::Ptr(n),
                resolver::Reply::None => Record::None,
                resolver::Reply::NoName => Record::NoName,
                resolver::Reply::Forward | resolver::Reply::Reverse(_) => {
                    self.ask_tor(which, received, &reply);
                    continue;
                }
            };
            received.answer(&self.charge.sockets.resolver[which], record);
        }
    }

    /// RESOLVE and RESOLVE_PTR. Who asks a resolver cannot be told: the run's own circuit serves.
    fn ask_tor(&mut self, socket: usize, asked: resolver::Received, reply: &resolver::Reply) {
        let (command, target) = match reply {
            resolver::Reply::Reverse(ip) => (Command::ResolvePtr, Target::Ip(*ip)),
            _ => (Command::Resolve, Target::Name(asked.question.name())),
        };
        let begun = self
            .socks5(command, target, 0, Process { pid: 0, birth: 0 })
            .ok()
            .and_then(|socks| {
                Some((
                    socks,
                    flow::connect(&self.charge.handoff.policy.socks).ok()?,
                ))
            });
        let Some((socks, outside)) = begun else {
            asked.answer(&self.charge.sockets.resolver[socket], Record::NoName);
            return;
        };
        let stage = Stage::Asking(Some(Box::new(socks)));
        // What cannot be watched is asked for again.
        let asked = Box::new(asked);
        let _ = self.add(None, 0, Purpose::Answer { socket, asked }, stage, outside);
    }

    fn say_unreachable(&mut self) {
        if !std::mem::replace(&mut self.said_unreachable, true) {
            let at = match self.charge.handoff.policy.socks {
                Socks::Ip(a) => a.to_string(),
                Socks::Unix(path) => format!("unix:{}", String::from_utf8_lossy(path)),
            };
            let line = format!(
                "Tor's SOCKS port at {at} cannot be reached; is Tor running? (--address, --port)"
            );
            self.say(LogLevel::Refusals, &line);
        }
    }
}

fn no_descriptors(e: &Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

fn both_ways() -> u32 {
    (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32
}

/// How an errno is brought to a connect(2) that waits.
fn mark_of(e: Errno) -> Mark {
    match e.0 {
        libc::ENETUNREACH | libc::ENETDOWN => Mark::NetworkUnreachable,
        // There is no packet that says EACCES, nor one that says ETIMEDOUT at once.
        libc::EHOSTUNREACH | libc::EHOSTDOWN | libc::ETIMEDOUT => Mark::HostUnreachable,
        _ => Mark::Reset,
    }
}

/// accept4(2); `None` when there is nothing to accept.
fn accept(listener: RawFd) -> io::Result<Option<OwnedFd>> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let null: *mut libc::sockaddr = std::ptr::null_mut();
    // SAFETY: accept4(2) without an address; the descriptor is new.
    unsafe {
        let fd = libc::accept4(listener, null, null.cast(), flags);
        if fd >= 0 {
            return Ok(Some(OwnedFd::from_raw_fd(fd)));
        }
    }
    let e = Error::last_os_error();
    match e.raw_os_error() {
        // The last three: it was closed before it was taken.
        Some(libc::EAGAIN | libc::ECONNABORTED | libc::EINTR | libc::EPROTO) => Ok(None),
        _ => Err(e),
    }
}

/// The mark of a connection (SO_MARK, socket(7)): that of its SYN.
fn mark(socket: &OwnedFd) -> u32 {
    let mut mark = 0u32;
    let mut len = size_of::<u32>() as libc::socklen_t;
    // SAFETY: getsockopt(2) fills one number that lives through the call.
    unsafe {
        let (fd, at) = (socket.as_raw_fd(), (&raw mut mark).cast());
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_MARK, at, &raw mut len);
    }
    mark
}

/// Makes this process the broker of `charge`, and ends it when the command has ended. `ready` is written to when
/// everything is in place.
pub fn become_broker(charge: Charge<'_>, ready: &OwnedFd) -> ! {
    let keep: Vec<RawFd> = {
        let s = &charge.sockets;
        let mut all = vec![ready.as_raw_fd(), s.queue.as_raw_fd(), s.diag.as_raw_fd()];
        all.extend(s.relay.iter().chain(&s.resolver).map(AsRawFd::as_raw_fd));
        if charge.handoff.log > LogLevel::Silent && charge.handoff.log_file.is_empty() {
            all.push(2);
        }
        all
    };
    // A pipe's reader must not wait for the broker, nor a terminal's signals reach it.
    // SAFETY: closes descriptors that nothing here uses; plain calls otherwise.
    unsafe {
        close_others(keep);
        libc::setsid();
        libc::chdir(c"/".as_ptr());
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        libc::prctl(libc::PR_SET_NAME, c"uwt-broker".as_ptr(), 0, 0, 0);
        // SIGCHLD: nobody waits for those that go on with joined flows.
        for signal in [
            libc::SIGPIPE,
            libc::SIGHUP,
            libc::SIGINT,
            libc::SIGQUIT,
            libc::SIGCHLD,
        ] {
            libc::signal(signal, libc::SIG_IGN);
        }
        raise_limit();
    }
    let told = serve(charge, || {
        // SAFETY: one byte that lives through the call; then the launcher is the only one that has the pipe.
        unsafe {
            libc::write(ready.as_raw_fd(), b"+".as_ptr().cast(), 1);
            libc::close(ready.as_raw_fd());
        }
    });
    // SAFETY: ends this process without what the launcher left to be run at its end.
    unsafe { libc::_exit(i32::from(told.is_err())) }
}

/// # Safety
/// Nobody uses any other descriptor afterwards.
unsafe fn close_others(mut keep: Vec<RawFd>) {
    keep.sort_unstable();
    let mut from = 0u32;
    for fd in keep {
        let fd = fd as u32;
        if fd > from {
            // SAFETY: the caller's.
            unsafe { libc::syscall(libc::SYS_close_range, from, fd - 1, 0) };
        }
        from = fd + 1;
    }
    // SAFETY: the caller's.
    unsafe { libc::syscall(libc::SYS_close_range, from, u32::MAX, 0) };
}

/// Two descriptors a connection: as many as this user may have.
fn raise_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    if setrlimit(Resource::RLIMIT_NOFILE, 1 << 20, 1 << 20).is_err() {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
