//! A SOCKS 5 server that records what it is asked, and can be slow, lie, and die at any byte.

use crate::http;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// What was asked of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The username, and the password; `None` without authentication.
    pub credentials: Option<(String, String)>,
    /// CONNECT 1, RESOLVE f0, RESOLVE_PTR f1.
    pub command: u8,
    /// The hostname, or the address as text.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Greeting, authentication and request came in one read.
    pub pipelined: bool,
}

impl Request {
    /// The password, or nothing.
    pub fn password(&self) -> &str {
        self.credentials.as_ref().map_or("", |(_, p)| p)
    }
}

/// How the server treats a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Says yes; then it is the destination itself, a web server.
    Serve,
    /// Says yes, then gives back each byte that comes.
    Echo,
    /// Says yes, then joins the connection to this address.
    Join(SocketAddr),
    /// Answers the request with this code.
    Code(u8),
    /// Closes after this many bytes of its answers.
    DieAfterSending(usize),
    /// Closes (with a reset) after this many bytes of the client's.
    DieAfterReading(usize),
    /// Sends this as soon as the client has sent something, and closes.
    Raw(Vec<u8>),
    /// Never answers.
    Mute,
    /// Chooses this method whatever is offered.
    Method(u8),
    /// Refuses username and password.
    NoSuchUser,
    /// Sends the destination's first bytes in the same segment as the reply.
    Eager(Vec<u8>),
}

/// What the server does; may be changed while it runs.
#[derive(Clone, Debug)]
pub struct Script {
    /// How it treats a connection.
    pub behaviour: Behaviour,
    /// How long it waits before each answer: half of it is one way of a round trip, so a client that
    /// pipelines waits once.
    pub delay: Duration,
    /// As tor 0.4.9 does: no method reply if greeting and authentication came together.
    pub like_tor: bool,
    /// Sends its answers one byte a segment.
    pub dribble: bool,
}

struct Shared {
    script: Mutex<Script>,
    requests: Mutex<Vec<Request>>,
    came: Condvar,
    files: Option<PathBuf>,
}

/// The server. Listens until the process ends.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
    /// Where it listens; of no meaning for a unix socket.
    pub address: SocketAddr,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A connection: TCP or unix.
trait Stream: Read + Write + Send {
    fn end(&self);
    fn reset(&self);
    fn copy(&self) -> io::Result<Box<dyn Stream>>;
}

impl Stream for TcpStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
    fn reset(&self) {
        use std::os::fd::AsRawFd;
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        let len = size_of::<libc::linger>() as u32;
        // SAFETY: the struct lives through the call.
        unsafe {
            libc::setsockopt(
                self.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast(),
                len,
            )
        };
    }
    fn copy(&self) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(self.try_clone()?))
    }
}

impl Stream for UnixStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
    fn reset(&self) {}
    fn copy(&self) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(self.try_clone()?))
    }
}

impl Server {
    fn shared(files: Option<PathBuf>) -> Arc<Shared> {
        let script = Script {
            behaviour: Behaviour::Serve,
            delay: Duration::ZERO,
            like_tor: true,
            dribble: false,
        };
        Arc::new(Shared {
            script: Mutex::new(script),
            requests: Mutex::new(Vec::new()),
            came: Condvar::new(),
            files,
        })
    }

    /// Listens on an address (`127.0.0.1:0` for any port). `files`: what its web server serves.
    pub fn listen(address: &str, files: Option<PathBuf>) -> io::Result<Server> {
        let listener = TcpListener::bind(address)?;
        // A backlog for thousands of clients that come at once; std's is 128.
        // SAFETY: a descriptor that is open, and a number.
        unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 16384) };
        let server = Server {
            shared: Server::shared(files),
            address: listener.local_addr()?,
        };
        let shared = server.shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = stream.set_nodelay(true);
                handle(&shared, Box::new(stream));
            }
        });
        Ok(server)
    }

    /// Listens on a unix socket that everybody may use.
    pub fn listen_unix(path: &Path) -> io::Result<Server> {
        use std::os::unix::fs::PermissionsExt;
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        let server = Server {
            shared: Server::shared(None),
            address: ([0, 0, 0, 0], 0).into(),
        };
        let shared = server.shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                handle(&shared, Box::new(stream));
            }
        });
        Ok(server)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes what it does from the next connection on.
    pub fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut lock(&self.shared.script));
    }

    /// What was asked since the last time; the list is empty then.
    pub fn take(&self) -> Vec<Request> {
        std::mem::take(&mut *lock(&self.shared.requests))
    }

    /// Waits until `n` requests have come; whether they have.
    pub fn wait_for(&self, n: usize, limit: Duration) -> bool {
        let requests = lock(&self.shared.requests);
        let waited = self
            .shared
            .came
            .wait_timeout_while(requests, limit, |r| r.len() < n);
        waited.is_ok_and(|(r, _)| r.len() >= n)
    }
}

fn handle(shared: &Arc<Shared>, stream: Box<dyn Stream>) {
    let shared = shared.clone();
    let thread = std::thread::Builder::new().stack_size(128 * 1024);
    let _ = thread.spawn(move || {
        let script = lock(&shared.script).clone();
        let mut client = Client {
            stream,
            script,
            ahead: Vec::new(),
            read: 0,
            sent: 0,
            reads: 0,
        };
        // An error is the client's end, or the script's.
        let _ = client.talk(&shared);
        client.stream.end();
    });
}

struct Client {
    stream: Box<dyn Stream>,
    script: Script,
    /// Read and not yet taken.
    ahead: Vec<u8>,
    read: usize,
    sent: usize,
    reads: usize,
}

impl Client {
    fn take(&mut self, n: usize) -> io::Result<Vec<u8>> {
        while self.ahead.len() < n {
            let mut buf = [0; 2048];
            let room = match self.script.behaviour {
                Behaviour::DieAfterReading(limit) => (limit - self.read).min(buf.len()),
                _ => buf.len(),
            };
            let got = if room == 0 {
                0
            } else {
                self.stream.read(&mut buf[..room])?
            };
            if got == 0 {
                if room == 0 {
                    self.stream.reset();
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.reads += 1;
            self.read += got;
            self.ahead.extend(&buf[..got]);
        }
        let rest = self.ahead.split_off(n);
        Ok(std::mem::replace(&mut self.ahead, rest))
    }

    fn send(&mut self, data: &[u8]) -> io::Result<()> {
        std::thread::sleep(self.script.delay);
        let mut data = data.to_vec();
        if let Behaviour::DieAfterSending(limit) = self.script.behaviour {
            data.truncate(limit - self.sent);
        }
        self.sent += data.len();
        let step = if self.script.dribble {
            1
        } else {
            data.len().max(1)
        };
        for part in data.chunks(step) {
            self.stream.write_all(part)?;
            if self.script.dribble {
                // Each byte is a segment of its own: the next waits until this one was sent.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        match self.script.behaviour {
            Behaviour::DieAfterSending(limit) if self.sent >= limit => {
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            _ => Ok(()),
        }
    }

    fn talk(&mut self, shared: &Shared) -> io::Result<()> {
        if self.script.behaviour == Behaviour::DieAfterSending(0) {
            return Ok(());
        }
        let greeting = self.take(2)?;
        match &self.script.behaviour {
            Behaviour::Mute => {
                // Until the client gives up.
                loop {
                    self.take(1)?;
                }
            }
            Behaviour::Raw(bytes) => {
                let bytes = bytes.clone();
                self.send(&bytes)?;
                // The client's unread bytes would turn the end into a reset.
                let _ = self.take(2000);
                return Ok(());
            }
            _ => {}
        }
        let methods = self.take(usize::from(greeting[1]))?;
        let authenticate = methods.contains(&2);
        if let Behaviour::Method(m) = self.script.behaviour {
            return self.send(&[5, m]);
        }
        let mut credentials = None;
        if authenticate {
            // Together with the greeting: tor leaves its method reply out.
            let together = !self.ahead.is_empty() && self.script.like_tor;
            if !together {
                self.send(&[5, 2])?;
            }
            let head = self.take(2)?;
            let user = self.take(usize::from(head[1]))?;
            let n = self.take(1)?[0];
            let password = self.take(usize::from(n))?;
            let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
            credentials = Some((text(&user), text(&password)));
            if self.script.behaviour == Behaviour::NoSuchUser {
                return self.send(&[1, 1]);
            }
            if self.ahead.is_empty() || !together {
                self.send(&[1, 0])?;
            } else {
                // Pipelined: one answer, after one delay.
                self.script.delay /= 2;
                self.send(&[1, 0])?;
            }
        } else {
            self.send(&[5, 0])?;
        }
        let head = self.take(4)?;
        let host = match head[3] {
            1 => {
                let b = self.take(4)?;
                Ipv4Addr::new(b[0], b[1], b[2], b[3]).to_string()
            }
            4 => {
                let b: [u8; 16] = self.take(16)?.try_into().unwrap_or([0; 16]);
                Ipv6Addr::from(b).to_string()
            }
            _ => {
                let n = self.take(1)?[0];
                String::from_utf8_lossy(&self.take(usize::from(n))?).into_owned()
            }
        };
        let port = self.take(2)?;
        let request = Request {
            credentials,
            command: head[1],
            host,
            port: u16::from_be_bytes([port[0], port[1]]),
            pipelined: self.reads == 1,
        };
        lock(&shared.requests).push(request.clone());
        shared.came.notify_all();
        self.answer(shared, &request)
    }

    fn answer(&mut self, shared: &Shared, request: &Request) -> io::Result<()> {
        let yes: &[u8] = match request.command {
            0xf0 => &[5, 0, 0, 1, 203, 0, 113, 7, 0, 0],
            0xf1 => b"\x05\0\0\x03\x08ptr.test\0\0",
            _ => &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        };
        match self.script.behaviour.clone() {
            Behaviour::Code(c) => self.send(&[5, c, 0, 1, 0, 0, 0, 0, 0, 0]),
            Behaviour::Eager(first) => {
                self.send(&[yes, &first].concat())?;
                // Until the client ends.
                let _ = self.take(usize::MAX);
                Ok(())
            }
            Behaviour::Echo => {
                self.send(yes)?;
                loop {
                    let n = self.ahead.len().max(1);
                    let data = self.take(n)?;
                    self.stream.write_all(&data)?;
                }
            }
            Behaviour::Join(to) => {
                self.send(yes)?;
                let mut there = TcpStream::connect(to)?;
                there.write_all(&self.ahead)?;
                let (mut from, mut back) = (self.stream.copy()?, there.try_clone()?);
                let other = std::thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut back);
                    back.end();
                });
                let _ = io::copy(&mut there, &mut self.stream);
                self.stream.end();
                let _ = other.join();
                Ok(())
            }
            _ => {
                self.send(yes)?;
                if request.command != 1 {
                    return Ok(());
                }
                http::serve(
                    Rest(&mut self.ahead, &mut self.stream),
                    shared.files.as_deref(),
                )
            }
        }
    }
}

/// What was read ahead, then the connection.
struct Rest<'a>(&'a mut Vec<u8>, &'a mut Box<dyn Stream>);

impl Read for Rest<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return self.1.read(buf);
        }
        let n = self.0.len().min(buf.len());
        buf[..n].copy_from_slice(&self.0[..n]);
        self.0.drain(..n);
        Ok(n)
    }
}

impl Write for Rest<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.1.write(data)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.1.flush()
    }
}
