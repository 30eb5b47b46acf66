//! A proxy that is slow, lies, or dies at any byte; a program that runs out of what it needs. Never an escape, always
//! an error that fits, and never a wait without end.

use crate::ensure;
use crate::world::{Result, World};
use libtest_mimic::Trial;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use uwt_tests::run::{Outcome, Run};
use uwt_tests::socks::{Behaviour, Server};

pub fn tests(world: &Arc<World>) -> Vec<Trial> {
    let test = |name: &str, f: fn(&World) -> Result| world.test(format!("faults::{name}"), f);
    vec![
        test("every way to wait, through a proxy in good health", healthy),
        test("a slow proxy", slow),
        test("replies that come byte by byte", dribble),
        test("method, authentication and reply apart", not_like_tor),
        test("the destination's first bytes with the reply", eager),
        test("dies after each byte that it sends", dies_sending),
        test("dies after each byte that it reads", dies_reading),
        test("each reply code", codes),
        test("garbage", garbage),
        test("wants no authentication", no_authentication),
        test("refuses the credentials", refuses_credentials),
        test("never answers", mute),
        test("SO_SNDTIMEO bounds connect", send_timeout),
        test("is not there", absent),
        test("is an unreachable address", unreachable),
        test("no descriptors left", no_descriptors),
        test("no memory left", no_memory),
        test("interrupted by signals", signals),
        test("fork in a threaded program", forks),
        test("pthread_cancel in connect", cancel),
        test("10,000 connections leave nothing behind", many),
    ]
}

const WAYS: [&str; 8] = [
    "blocking", "poll", "epoll", "edge", "early", "select", "thread", "write",
];

fn client(w: &World) -> Result<PathBuf> {
    Ok(w.bed.compile(
        "client",
        "cc",
        "-O1 -Wno-unused-result -lpthread",
        "client.c",
    )?)
}

fn connect(w: &World, server: &Server, how: &str) -> Result<Run> {
    let run = w.bed.uwt(server.port()).env("UWT_TIMEOUT", "5");
    Ok(run.arg(client(w)?).args([how, "a.example", "80"]))
}

fn said(o: &Outcome, word: &str) -> Result {
    ensure!(o.out.trim_end() == word, "expected {word:?}: {o:#?}");
    Ok(())
}

fn all_connect(w: &World, server: &Server) -> Result {
    for how in WAYS {
        let o = w.held(connect(w, server, how)?)?;
        said(&o, "connected a.example 80")?;
        let r = server.take();
        ensure!(
            r.len() == 1 && r[0].host == "a.example" && r[0].port == 80,
            "{how}: {r:#?}"
        );
    }
    Ok(())
}

fn healthy(w: &World) -> Result {
    let server = w.server()?;
    all_connect(w, &server)
}

fn slow(w: &World) -> Result {
    let server = w.server()?;
    server.script(|s| s.delay = Duration::from_millis(120));
    all_connect(w, &server)
}

fn dribble(w: &World) -> Result {
    let server = w.server()?;
    server.script(|s| s.dribble = true);
    all_connect(w, &server)
}

fn not_like_tor(w: &World) -> Result {
    let server = w.server()?;
    server.script(|s| s.like_tor = false);
    all_connect(w, &server)
}

fn eager(w: &World) -> Result {
    let server = w.server()?;
    server.script(|s| s.behaviour = Behaviour::Eager(b"hello".to_vec()));
    for how in WAYS {
        // Not one byte beyond the reply may be taken: it is the program's.
        let o = w.held(connect(w, &server, how)?.env("FIRST", "1"))?;
        said(&o, "connected a.example 80 hello")?;
    }
    Ok(())
}

/// Fails as libc's connect fails, in time.
fn fails(o: &Outcome, with: &[&str]) -> Result {
    let fits = with
        .iter()
        .any(|e| o.out.trim_end() == format!("error {e}"));
    ensure!(fits && o.code() == 1, "expected one of {with:?}: {o:#?}");
    Ok(())
}

const REFUSED: &[&str] = &["ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EPIPE"];

fn dies_sending(w: &World) -> Result {
    let server = w.server()?;
    for like_tor in [true, false] {
        let whole = if like_tor { 12 } else { 14 };
        for n in 0..whole {
            server.script(|s| {
                s.like_tor = like_tor;
                s.behaviour = Behaviour::DieAfterSending(n);
            });
            for how in ["blocking", "early"] {
                fails(&w.held(connect(w, &server, how)?)?, REFUSED)?;
            }
        }
    }
    Ok(())
}

fn dies_reading(w: &World) -> Result {
    let server = w.server()?;
    let whole = 3 + 3 + 9 + 52 + 4 + 1 + 9 + 2;
    for n in 0..whole {
        server.script(|s| s.behaviour = Behaviour::DieAfterReading(n));
        let how = WAYS[n % WAYS.len()];
        fails(&w.held(connect(w, &server, how)?)?, REFUSED)?;
    }
    Ok(())
}

fn codes(w: &World) -> Result {
    let server = w.server()?;
    for code in 1..=255u8 {
        server.script(|s| s.behaviour = Behaviour::Code(code));
        let with: &[&str] = match code {
            2 => &["EACCES"],
            7 => &["EOPNOTSUPP"],
            8 => &["EAFNOSUPPORT"],
            3 => &["ENETUNREACH"],
            4 => &["EHOSTUNREACH"],
            6 | 0xf3 | 0xf7 => &["ETIMEDOUT"],
            0xf0 | 0xf1 | 0xf6 => &["EHOSTUNREACH"],
            0xf4 | 0xf5 => &["EACCES"],
            _ => &["ECONNREFUSED"],
        };
        let how = WAYS[usize::from(code) % WAYS.len()];
        let o = w.held(connect(w, &server, how)?)?;
        fails(&o, with)?;
        // A person is told which code it was, and of whom.
        let told = o.err.contains("a.example:80") && o.err.contains(&format!("{code:02x}"));
        ensure!(told, "{code:02x}: {o:#?}");
    }
    Ok(())
}

fn garbage(w: &World) -> Result {
    let server = w.server()?;
    let long = [&[5, 2, 1, 0, 5, 0, 0, 3, 255][..], &[b'x'; 900]].concat();
    for (i, raw) in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"\x04\x5a\0\0\0\0\0\0",
        b"\x05",
        b"\x05\x02\x02\x00",
        b"\x05\x02\x01\x00\x04\x00\x00\x01\0\0\0\0\0\0",
        b"\x05\x02\x01\x00\x05\x00\x00\x09\0\0\0\0\0\0",
        b"\x05\xff",
        &[0xff; 700],
        &[0; 700],
        &long[..200],
    ]
    .iter()
    .enumerate()
    {
        server.script(|s| s.behaviour = Behaviour::Raw(raw.to_vec()));
        let o = w.held(connect(w, &server, WAYS[i % WAYS.len()])?)?;
        ensure!(
            o.out.starts_with("error ") && o.code() == 1,
            "{raw:02x?}: {o:#?}"
        );
    }
    // A name of 255 bytes in the reply is long, not wrong; what follows it is the program's.
    server.script(|s| s.behaviour = Behaviour::Raw(long.clone()));
    let o = w.held(connect(w, &server, "blocking")?.env("FIRST", "1"))?;
    ensure!(o.out.starts_with("connected a.example 80 xxxx"), "{o:#?}");
    Ok(())
}

fn no_authentication(w: &World) -> Result {
    let server = w.server()?;
    for method in [0, 1, 0xff] {
        server.script(|s| s.behaviour = Behaviour::Method(method));
        let o = w.held(connect(w, &server, "blocking")?)?;
        fails(&o, REFUSED)?;
        ensure!(o.err.contains("use Tor's SocksPort"), "{o:#?}");
    }
    Ok(())
}

fn refuses_credentials(w: &World) -> Result {
    let server = w.server()?;
    server.script(|s| s.behaviour = Behaviour::NoSuchUser);
    let o = w.held(connect(w, &server, "epoll")?)?;
    fails(&o, &["ECONNREFUSED", "EACCES"])?;
    ensure!(o.err.contains("refused username and password"), "{o:#?}");
    Ok(())
}

fn mute(w: &World) -> Result {
    let server = w.server()?;
    server.script(|s| s.behaviour = Behaviour::Mute);
    for how in WAYS {
        let o = w.held(connect(w, &server, how)?.env("UWT_TIMEOUT", "1"))?;
        fails(&o, &["ETIMEDOUT"])?;
        ensure!(o.took >= Duration::from_millis(900), "{how}: {o:#?}");
        ensure!(o.err.contains("no answer from Tor in time"), "{o:#?}");
    }
    Ok(())
}

fn send_timeout(w: &World) -> Result {
    let server = w.server()?;
    server.script(|s| s.behaviour = Behaviour::Mute);
    // connect(2): EINPROGRESS when SO_SNDTIMEO runs out.
    fails(&w.held(connect(w, &server, "timeout")?)?, &["EINPROGRESS"])
}

fn absent(w: &World) -> Result {
    for how in WAYS {
        let run = w.bed.uwt(1).arg(client(w)?).args([how, "a.example", "80"]);
        let o = w.held(run)?;
        fails(&o, &["ECONNREFUSED"])?;
        let told = o.err.contains("127.0.0.1:1") && o.err.contains("is tor running?");
        ensure!(told, "{o:#?}");
    }
    // With a unix socket that is not there too.
    let run = w
        .bed
        .run(&w.bed.path("bin/uwt").to_string_lossy())
        .args(["-a", "unix:/nonexistent"]);
    let o = w.held(run.arg(client(w)?).args(["blocking", "a.example", "80"]))?;
    fails(&o, &["ECONNREFUSED"])?;
    ensure!(o.err.contains("unix:/nonexistent"), "{o:#?}");
    Ok(())
}

fn unreachable(w: &World) -> Result {
    // A SOCKS address beyond loopback is where the user says that Tor is: reaching it is no escape, and
    // an address that does not answer ends in time.
    let run = w
        .bed
        .uwt(9050)
        .args(["-a", "198.51.100.99"])
        .env("UWT_TIMEOUT", "1");
    let o = w.loose(run.arg(client(w)?).args(["poll", "a.example", "80"]))?;
    let only = o.escapes.iter().all(|e| e.contains("198.51.100.99:9050"));
    ensure!(only, "{o:#?}");
    Ok(())
}

fn no_descriptors(w: &World) -> Result {
    let server = w.server()?;
    // python opens sockets until there are no numbers left, connects each, and looks a name up.
    let code = "
import errno, socket, encodings.idna
held = []
while True:
    try:
        s = socket.socket(); held.append(s)
        s.connect(('a.example', 80)); s.sendall(b'x')
    except OSError as e:
        print(errno.errorcode.get(e.errno, e.errno)); break
held.pop(); del s; print(socket.gethostbyname('b.example')[:4])
s = socket.socket(); s.connect(('b.example', 80)); print('connected')";
    let o = w
        .held(
            w.bed
                .uwt(server.port())
                .args(["python3", "-c", code])
                .limit_descriptors(64),
        )?
        .expect(0)?;
    // At level netns the broker, which has two for each of the program's, may come to its end first.
    let first = match w.bed.level() {
        "netns" => ["EMFILE\n", "ECONNREFUSED\n"],
        _ => ["EMFILE\n"; 2],
    };
    let rest = first.iter().find_map(|f| o.out.strip_prefix(f));
    ensure!(rest == Some("127.\nconnected\n"), "{o:#?}");
    Ok(())
}

fn no_memory(w: &World) -> Result {
    let server = w.server()?;
    // So little address space that the tables cannot grow: an error, not an escape, not a crash.
    let code = "
import resource, socket, errno
resource.setrlimit(resource.RLIMIT_AS, (1, 1))
try:
    s = socket.socket(); s.connect(('198.51.100.7', 80)); print('connected')
except OSError as e:
    print(errno.errorcode.get(e.errno, e.errno))";
    let o = w.held(w.bed.uwt(server.port()).args(["python3", "-c", code]))?;
    ensure!(o.code() == 0 && !o.out.is_empty(), "{o:#?}");
    Ok(())
}

fn signals(w: &World) -> Result {
    let server = w.server()?;
    server.script(|s| s.delay = Duration::from_millis(150));
    let interrupted = "
import ctypes, ctypes.util, errno, os, signal, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
# Python's own handler of SIGINT interrupts; which signal came cannot be told, so one such decides.
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGALRM, lambda *a: None)
signal.siginterrupt(signal.SIGALRM, sys.argv[1] == 'interrupt')
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
s = socket.socket()
a = socket.inet_aton(socket.gethostbyname('a.example'))
address = struct.pack('=H', socket.AF_INET) + struct.pack('!H', 80) + a + bytes(8)
r = libc.connect(s.fileno(), address, 16)
print(r, errno.errorcode.get(ctypes.get_errno()) if r else 0)
signal.setitimer(signal.ITIMER_REAL, 0)";
    let run = |how: &str| {
        w.bed
            .uwt(server.port())
            .args(["python3", "-c", interrupted, how])
    };
    // connect(2): EINTR when a handler interrupts, and with SA_RESTART it goes on.
    let o = w.held(run("interrupt"))?.expect(0)?;
    ensure!(o.out == "-1 EINTR\n", "{o:#?}");
    let o = w.held(run("restart"))?.expect(0)?;
    ensure!(o.out == "0 0\n", "{o:#?}");
    Ok(())
}

fn forks(w: &World) -> Result {
    let server = w.server()?;
    // Threads connect and resolve all the time; forks in the middle must find no lock held.
    let code = "
import os, socket, threading, encodings.idna
stop = False
def work(i):
    n = 0
    while not stop:
        try:
            s = socket.create_connection(('t%d-%d.example' % (i, n), 80)); s.close(); n += 1
        except OSError as e:
            print('thread', e)
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for t in threads: t.start()
bad = 0
for i in range(60):
    pid = os.fork()
    if pid == 0:
        ok = 1
        try:
            socket.create_connection(('f%d.example' % i, 80), 20).close(); ok = 0
        finally:
            os._exit(ok)
    bad += os.waitpid(pid, 0)[1] != 0
stop = True
for t in threads: t.join()
print('bad', bad)";
    let o = w
        .held(w.bed.uwt(server.port()).args(["python3", "-c", code]))?
        .expect(0)?;
    ensure!(o.out == "bad 0\n", "{o:#?}");
    Ok(())
}

fn cancel(w: &World) -> Result {
    let server = w.server()?;
    server.script(|s| s.behaviour = Behaviour::Mute);
    let program = w.bed.compile("cancel", "cc", "-O1 -lpthread", "cancel.c")?;
    let o = w.held(w.bed.uwt(server.port()).arg(program))?.expect(0)?;
    ensure!(
        o.out == "cancelled, and the next connects\n" || o.out == "ended, and the next connects\n",
        "{o:#?}"
    );
    Ok(())
}

fn many(w: &World) -> Result {
    let descriptors = uwt_tests::netns::raise_descriptors();
    if descriptors < 12_000 {
        let why = format!("the server may open {descriptors} descriptors only");
        return Err(crate::world::Stop::Skipped(why));
    }
    let server = w.server()?;
    server.script(|s| s.behaviour = Behaviour::Echo);
    // Resident memory after the last of 10,000 has closed, twice: the second time costs nothing new.
    let code = "
import resource, socket, sys, time
refused = []
def kb():
    return int([l for l in open('/proc/self/status') if l.startswith('VmRSS')][0].split()[1])
def storm():
    held = []
    for i in range(10000):
        s = socket.socket(); held.append(s)
        try: s.connect(('198.51.100.7', 80))
        except ConnectionRefusedError: refused.append(i)
    for s in held: s.close()
    # Until all who are on the way have closed too: the server cannot have 20,000.
    while sum(l.split()[3] in ('01', '04', '05', '08') for l in list(open('/proc/net/tcp'))[1:]) > 100: time.sleep(0.05)
storm(); one = kb(); storm(); two = kb(); storm(); three = kb()
print(one, two, three, 'refused', refused, three - two < 2000 and len(refused) <= int(sys.argv[1]))";
    // At level netns about one connection in 500,000 of such a storm is reset within its handshake. It fails closed; why
    // is not known yet.
    let refused = if w.bed.level() == "netns" { "2" } else { "0" };
    let run = w
        .bed
        .uwt(server.port())
        .args(["python3", "-c", code, refused])
        .limit_descriptors(12_000);
    let o = w.held(run.limit(Duration::from_secs(120)))?.expect(0)?;
    ensure!(o.out.trim_end().ends_with("True"), "{o:#?}");
    Ok(())
}
