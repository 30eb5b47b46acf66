//! Level `netns`: what the kernel holds, and that a command notices nothing else of it.

use crate::ensure;
use crate::world::{Result, Stop, World};
use libtest_mimic::Trial;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use uwt_tests::bed::has;
use uwt_tests::http;
use uwt_tests::run::{Outcome, Run};
use uwt_tests::socks::{Behaviour, Server};

pub fn tests(world: &Arc<World>) -> Vec<Trial> {
    let test = |name: &str, f: fn(&World) -> Result| world.test(format!("held: {name}"), f);
    vec![
        test(
            "a static program is carried by name, as its own process",
            by_name,
        ),
        test("shim and catch-all name a process alike", alike),
        test("each scope, without the shim", scopes),
        test("the true error, at once", errors),
        test("the true moment: no tick is missed", moment),
        test("Tor is not there", no_tor),
        test(
            "a SOCKS port on another host, and on a unix socket",
            elsewhere,
        ),
        test("the resolver inside", resolver),
        test("dns = resolve and refuse, without the shim", dns_modes),
        test("what is not TCP is refused at once", not_tcp),
        test("loopback outside, and servers inside", loopback),
        test("half-closed connections and resets", closes),
        test(
            "the command keeps its pid, status, signals and children",
            identity,
        ),
        test("nobody waits for the broker", output),
        test("job control and debuggers", jobs),
        test("files, groups, working directory, agents", surroundings),
        test("no way into another network", ways_out),
        test("io_uring where it leads nowhere else", uring),
        test("inherited sockets", inherited),
        test("sudo and setuid programs", setuid),
        test("uwt inside uwt", nested),
        test("a host without namespaces", unavailable),
        test("the broker dies with the command", life),
        test("a command whose broker is killed", killed),
        test("a broker that is stopped", stopped),
        test("garbage", garbage),
        test("a full disk", full_disk),
        test("1,000 processes, each its own", processes),
        test("wrappers stay at preload unless configured", wrappers),
    ]
}

/// `uwt --level netns` on the recording server.
fn uwt(w: &World, server: &Server) -> Run {
    w.bed.uwt(server.port())
}

/// A program that the shim is not in: what a static program starts is started without.
fn bare(run: Run) -> Result<Run> {
    if !has("busybox") {
        return Err(Stop::Skipped("busybox is not installed".into()));
    }
    Ok(run.args(["busybox", "env"]))
}

fn python(run: Run, code: &str) -> Run {
    run.args(["python3", "-c", code])
}

/// Lines that each must be there, whole.
fn said(o: &Outcome, lines: &[&str]) -> Result {
    let all: Vec<&str> = o.out.lines().collect();
    ensure!(all == lines, "expected {lines:?}: {o:#?}");
    Ok(())
}

fn by_name(w: &World) -> Result {
    let server = w.server()?;
    let two =
        "busybox wget -q -O- http://one.example/ & busybox wget -q -O- http://two.example/; wait";
    w.held(bare(uwt(w, &server))?.args(["sh", "-c", two]))?
        .expect(0)?;
    let requests = server.take();
    let hosts: BTreeSet<&str> = requests.iter().map(|r| r.host.as_str()).collect();
    let own: BTreeSet<&str> = requests.iter().map(|r| r.password()).collect();
    ensure!(
        requests.len() == 2
            && hosts == BTreeSet::from(["one.example", "two.example"])
            && own.len() == 2,
        "{requests:#?}"
    );
    ensure!(
        own.iter()
            .all(|p| p.contains(":pid:") && !p.contains(":pid:0.")),
        "{own:?}"
    );
    Ok(())
}

fn alike(w: &World) -> Result {
    let server = w.server()?;
    // One process, with the shim and past it.
    let code = "
import ctypes, os, socket, struct
socket.create_connection(('198.51.100.7', 80))
s = socket.socket()
libc = ctypes.CDLL(None)
page = ctypes.CDLL(None).mmap; page.restype = ctypes.c_void_p
page.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
at = page(None, 4096, 7, 0x22, -1, 0)
ctypes.memmove(at, bytes.fromhex('48c7c02a0000000f05c3'), 10)   # mov rax, 42 (connect); syscall; ret
a = struct.pack('<H', 2) + struct.pack('>H', 81) + bytes([198, 51, 100, 8]) + bytes(8)
f = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_long)(at)
print(f(s.fileno(), a, 16))";
    if !cfg!(target_arch = "x86_64") {
        return Err(Stop::Skipped("machine code for x86_64".into()));
    }
    let o = w.held(python(uwt(w, &server), code))?.expect(0)?;
    said(&o, &["0"])?;
    let r = server.take();
    ensure!(
        r.len() == 2 && r[1].port == 81 && r[0].credentials == r[1].credentials,
        "{r:#?}"
    );
    Ok(())
}

fn scopes(w: &World) -> Result {
    let server = w.server()?;
    let code = "
import socket
for host in ['a.example', 'a.example', 'b.example']: socket.create_connection((host, 80))";
    for (scope, distinct) in [
        ("pid", 1),
        ("tree", 1),
        ("app", 1),
        ("destination", 2),
        ("connection", 3),
    ] {
        let run = uwt(w, &server).arg(format!("--isolate={scope}"));
        w.held(python(bare(run)?, code))?.expect(0)?;
        let r = server.take();
        let passwords: BTreeSet<&str> = r.iter().map(|r| r.password()).collect();
        ensure!(
            r.len() == 3 && passwords.len() == distinct,
            "{scope}: {r:#?}"
        );
    }
    w.held(python(bare(uwt(w, &server).arg("--isolate=none"))?, code))?
        .expect(0)?;
    ensure!(
        server.take().iter().all(|r| r.credentials.is_none()),
        "credentials for none"
    );
    Ok(())
}

/// Says the errno of one connection.
const ONE: &str = "
import errno, socket, sys
s = socket.socket()
try: s.connect((sys.argv[1], int(sys.argv[2]))); print('connected', *s.getpeername())
except OSError as e: print(errno.errorcode.get(e.errno, e))";

fn one(w: &World, server: &Server, host: &str, port: &str) -> Result<Outcome> {
    let run = python(bare(uwt(w, server))?, ONE).args([host, port]);
    Ok(w.held(run.limit(Duration::from_secs(30)))?.expect(0)?)
}

fn errors(w: &World) -> Result {
    let server = w.server()?;
    said(
        &one(w, &server, "198.51.100.7", "80")?,
        &["connected 198.51.100.7 80"],
    )?;
    for (code, name) in [
        (1, "ECONNREFUSED"),
        (3, "ENETUNREACH"),
        (4, "EHOSTUNREACH"),
        (5, "ECONNREFUSED"),
        (6, "EHOSTUNREACH"),
        (0xf0, "EHOSTUNREACH"),
    ] {
        server.script(|s| s.behaviour = Behaviour::Code(code));
        said(&one(w, &server, "198.51.100.7", "80")?, &[name])?;
    }
    // Nothing stands behind this virtual address; and nobody sends to multicast.
    said(&one(w, &server, "127.130.1.1", "80")?, &["EHOSTUNREACH"])?;
    Ok(())
}

fn moment(w: &World) -> Result {
    let server = w.server()?;
    server.script(|s| s.delay = Duration::from_secs(2));
    // 20 connections at a proxy that takes two seconds; a tick each 10 ms meanwhile.
    let code = "
import asyncio, time
async def main():
    worst = [0.0]
    async def tick():
        while True:
            t = time.monotonic(); await asyncio.sleep(0.01); worst[0] = max(worst[0], time.monotonic() - t)
    ticker = asyncio.create_task(tick()); await asyncio.sleep(0.05); worst[0] = 0
    begun = time.monotonic()
    await asyncio.gather(*[asyncio.open_connection('198.51.100.7', 80 + i) for i in range(20)])
    took = time.monotonic() - begun
    print(1.9 < took < 20, worst[0] < 1)
asyncio.run(main())";
    let o = w.held(python(bare(uwt(w, &server))?, code))?.expect(0)?;
    server.script(|s| s.delay = Duration::ZERO);
    said(&o, &["True True"])
}

fn no_tor(w: &World) -> Result {
    // Nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let run = python(bare(w.bed.uwt(free))?, ONE).args(["198.51.100.7", "80"]);
    let o = w.held(run.limit(Duration::from_secs(20)))?.expect(0)?;
    said(&o, &["ECONNREFUSED"])?;
    ensure!(
        o.err.matches("is Tor running?").count() == 1 && o.err.contains(&free.to_string()),
        "{o:#?}"
    );
    ensure!(
        !o.err.contains("198.51.100.7"),
        "an address in the log: {o:#?}"
    );
    Ok(())
}

fn elsewhere(w: &World) -> Result {
    // The test machine's own address on its uplink: as on Whonix, where Tor is another machine.
    let server = Server::listen("192.0.2.2:0", None)?;
    let path = w.bed.path("work/held-socks");
    let unix = Server::listen_unix(&path)?;
    let program = w.bed.path("bin/uwt").display().to_string();
    let port = server.port().to_string();
    let far = ["-a", "192.0.2.2", "-P", &port];
    let near = format!("unix:{}", path.display());
    let local = ["-a", near.as_str()];
    for (options, server) in [(&far[..], &server), (&local[..], &unix)] {
        for shim in [true, false] {
            let run = w.bed.run(&program).args(options).args(["--level", "netns"]);
            let run = if shim { run } else { bare(run)? };
            let o = w
                .held(python(run, ONE).args(["198.51.100.7", "80"]))?
                .expect(0)?;
            said(&o, &["connected 198.51.100.7 80"])?;
            let r = server.take();
            ensure!(r.len() == 1 && r[0].host == "198.51.100.7", "{r:#?}");
        }
    }
    Ok(())
}

/// Asks a resolver by hand: server, name, type; says the code and the answers.
const ASK: &str = "
import socket, struct, sys
def ask(server, name, kind):
    s = socket.socket(socket.AF_INET6 if ':' in server else socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10)
    q = b''.join(bytes([len(l)]) + l for l in name.encode().split(b'.')) + b'\\0' + struct.pack('>HH', kind, 1)
    s.sendto(struct.pack('>HHHHHH', 7, 0x100, 1, 0, 0, 0) + q, (server, 53))
    m, f = s.recvfrom(999)
    if f[0] != server: return 'from ' + f[0]
    n = struct.unpack('>H', m[6:8])[0]; d = m[12 + len(q):]
    if not n: return 'code %d' % (m[3] & 15)
    return socket.inet_ntoa(d[12:16]) if kind == 1 else d[12:].replace(b'\\7', b'.').replace(b'\\3', b'.').strip(b'\\0.').decode('latin1')
";

fn resolver(w: &World) -> Result {
    let server = w.server()?;
    let code = format!(
        "{ASK}
a = ask('192.0.2.53', 'one.example', 1); print(a.startswith('127.') and 128 <= int(a.split('.')[1]) < 192, a == ask('127.0.0.1', 'one.example', 1), a == ask('2001:db8::53', 'one.example', 1))
print(a == ask('127.0.0.53', 'other.example', 1), a == socket.gethostbyname('one.example'))
print(ask('9.9.9.9', 'one.example', 28), ask('9.9.9.9', 'one.example', 15), ask('9.9.9.9', '_x.example', 33), ask('9.9.9.9', 'x.local', 1))
print(ask('9.9.9.9', 'localhost', 1), ask('9.9.9.9', '.'.join(reversed(a.split('.'))) + '.in-addr.arpa', 12).endswith('one.example'))
print(open('/etc/resolv.conf').read().split('nameserver ')[1].strip())
s = socket.create_connection((ask('9.9.9.9', 'exampleexample.onion', 1), 80)); s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); print(s.recv(9)[:8])"
    );
    let o = w.held(python(bare(uwt(w, &server))?, &code))?.expect(0)?;
    said(
        &o,
        &[
            "127.12 True True",
            "False True",
            "code 0 code 0 code 3 code 3",
            "127.0.0.1 True",
            "127.0.0.1",
            "b'HTTP/1.1'",
        ],
    )
    .or_else(|_| {
        said(
            &o,
            &[
                "True True True",
                "False True",
                "code 0 code 0 code 3 code 3",
                "127.0.0.1 True",
                "127.0.0.1",
                "b'HTTP/1.1'",
            ],
        )
    })?;
    let r = server.take();
    ensure!(
        r.len() == 1 && r[0].host == "exampleexample.onion",
        "{r:#?}"
    );
    Ok(())
}

fn dns_modes(w: &World) -> Result {
    let server = w.server()?;
    let code = format!("{ASK}\nprint(ask('9.9.9.9', 'a.example', 1)[:3])");
    let run = uwt(w, &server).args(["--dns", "refuse"]);
    said(&w.held(python(bare(run)?, &code))?.expect(0)?, &["cod"])?;
    ensure!(server.take().is_empty(), "refuse asked somebody");
    let run = uwt(w, &server).args(["--dns", "resolve"]);
    w.held(python(bare(run)?, &code))?.expect(0)?;
    let r = server.take();
    ensure!(
        r.len() == 1 && r[0].command == 0xf0 && r[0].host == "a.example",
        "{r:#?}"
    );
    Ok(())
}

fn not_tcp(w: &World) -> Result {
    let server = w.server()?;
    let code = "
import errno, socket, time
begun = time.monotonic()
for family, address in [(2, ('198.51.100.7', 443)), (10, ('2001:db8:1::7', 443)), (2, ('127.130.0.1', 443))]:
    s = socket.socket(family, 2); s.settimeout(9); s.connect(address)
    try: s.send(b'x'); s.recv(9); print('?')
    except OSError as e: print(errno.errorcode.get(e.errno, e))
a = socket.socket(2, 2); a.bind(('127.0.0.1', 0)); b = socket.socket(2, 2); b.sendto(b'inside', a.getsockname()); print(a.recv(9))
print(time.monotonic() - begun < 5)";
    let o = w.held(python(bare(uwt(w, &server))?, code))?.expect(0)?;
    said(&o, &["EPERM", "EPERM", "EPERM", "b'inside'", "True"])
}

fn loopback(w: &World) -> Result {
    let server = w.server()?;
    let web = http::listen("127.0.0.1:0", None)?.port().to_string();
    let six = http::listen("[::1]:0", None)?.port().to_string();
    // Tor's control port, or what looks like it, outside.
    let control = TcpListener::bind("127.0.0.1:9151")?;
    let code = "
import errno, socket, sys
def get(host, port):
    try: s = socket.create_connection((host, port), 9)
    except OSError as e: return errno.errorcode.get(e.errno, e)
    s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); return s.recv(99)[:4]
web, six = map(int, sys.argv[1:])
print(get('127.0.0.1', web), get('::1', six), get('127.0.0.1', 1), get('127.0.0.1', 9151))
inside = socket.create_server(('127.0.0.1', 0)); s = socket.create_connection(inside.getsockname()); c, who = inside.accept()
print(who[0], s.getpeername() == inside.getsockname(), c.getpeername() == s.getsockname())
same = socket.create_server(('127.0.0.1', web)); s = socket.create_connection(('127.0.0.1', web), 9); same.accept(); print('inside first')";
    for shim in [false, true] {
        let run = match shim {
            true => uwt(w, &server),
            false => bare(uwt(w, &server))?,
        };
        let o = w.held(python(run, code).args([&web, &six]))?.expect(0)?;
        said(
            &o,
            &[
                "b'HTTP' b'HTTP' ECONNREFUSED ECONNREFUSED",
                "127.0.0.1 True True",
                "inside first",
            ],
        )?;
    }
    let allowed = python(
        bare(uwt(w, &server).env("UWT_LOCALHOST_PORTS", "9151"))?,
        ONE,
    );
    let o = w.held(allowed.args(["127.0.0.1", "9151"]))?.expect(0)?;
    said(&o, &["connected 127.0.0.1 9151"])?;
    drop(control);
    let off = python(
        bare(uwt(w, &server).env("UWT_LOCALHOST_PASSTHROUGH", "off"))?,
        ONE,
    );
    said(
        &w.held(off.args(["127.0.0.1", &web]))?.expect(0)?,
        &["ECONNREFUSED"],
    )?;
    ensure!(server.take().is_empty(), "Tor was asked for loopback");
    Ok(())
}

fn closes(w: &World) -> Result {
    let server = w.server()?;
    server.script(|s| s.behaviour = Behaviour::Echo);
    let code = "
import socket
s = socket.create_connection(('198.51.100.7', 80)); s.sendall(b'half'); s.shutdown(socket.SHUT_WR)
b = b''
while d := s.recv(99): b += d
print(b)
s = socket.create_connection(('198.51.100.7', 80)); data = bytes(range(256)) * 40000; n = 0; s.setblocking(False)
import select
got = bytearray()
while len(got) < len(data):
    r, x, _ = select.select([s], [s] if n < len(data) else [], [], 20)
    if x:
        try: n += s.send(data[n:n + 100000])
        except BlockingIOError: pass
    if r: got += s.recv(1 << 20)
print(bytes(got) == data)";
    let o = w.held(python(bare(uwt(w, &server))?, code))?.expect(0)?;
    said(&o, &["b'half'", "True"])
}

fn identity(w: &World) -> Result {
    let server = w.server()?;
    // exec keeps the pid: it is the launcher's.
    let program = w.bed.path("bin/uwt").display().to_string();
    let port = server.port().to_string();
    let script = format!("echo $$; exec {program} -P {port} --level netns sh -c 'echo $$; exit 7'");
    let o = w.held(w.bed.run("sh").args(["-c", &script]))?.expect(7)?;
    let lines: Vec<&str> = o.out.lines().collect();
    ensure!(lines.len() == 2 && lines[0] == lines[1], "{o:#?}");
    let o = w.held(uwt(w, &server).args(["sh", "-c", "kill -TERM $$"]))?;
    use std::os::unix::process::ExitStatusExt;
    let signal = o.status.and_then(|s| s.signal());
    ensure!(signal == Some(libc::SIGTERM), "{o:#?}");
    // It has no child that it did not start.
    let code = "
import os, signal
try: os.wait(); print('a child')
except ChildProcessError: print('none')
print(signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN, len(os.listdir('/proc/self/fd')))";
    let bare = w.held(w.bed.run("python3").args(["-c", code]))?.expect(0)?;
    let o = w.held(python(uwt(w, &server), code))?.expect(0)?;
    // One descriptor more than without: the name table.
    let count = |o: &Outcome| {
        let last = o.out.rsplit(' ').next();
        last.and_then(|n| n.trim().parse::<u32>().ok())
    };
    ensure!(o.out.starts_with("none\nTrue"), "{o:#?}");
    ensure!(count(&o) == count(&bare).map(|n| n + 1), "{o:#?} {bare:#?}");
    Ok(())
}

fn output(w: &World) -> Result {
    let server = w.server()?;
    // cat ends when the command has closed its output, while the command still runs.
    let program = w.bed.path("bin/uwt").display().to_string();
    let port = server.port().to_string();
    let fifo = w.bed.path("home/fifo").display().to_string();
    let script = format!(
        "mkfifo {fifo}; {{ {program} -P {port} --level netns sh -c 'echo said; exec >&- 2>&-; read x < {fifo}' & }} | cat; echo cat ended; : > {fifo}"
    );
    let run = w.bed.run("timeout").args(["20", "sh", "-c", &script]);
    said(&w.held(run)?.expect(0)?, &["said", "cat ended"])
}

fn jobs(w: &World) -> Result {
    let server = w.server()?;
    // A terminal of its own: a shell stops a held command with Ctrl-Z, goes on with it, ends it with Ctrl-C; and a
    // process that waits for children of every kind, as strace does, finds none but its own.
    let program = w.bed.path("bin/uwt").display().to_string();
    let port = server.port().to_string();
    let code = "
import os, pty, select, sys, time
uwt = sys.argv[1:]
pid, fd = pty.fork()
if pid == 0:
    os.environ['PS1'] = '$ '; os.execvp('bash', ['bash', '--norc', '--noprofile', '-i'])
seen = ''
def until(word):
    global seen
    end = time.time() + 20
    while word not in seen:
        if time.time() > end or not select.select([fd], [], [], 20)[0]: print('no', word, repr(seen)); sys.exit(1)
        seen += os.read(fd, 4096).decode()
    seen = seen.split(word, 1)[1]
def type(text): os.write(fd, text.encode())
until('$ '); type(' '.join(uwt) + \" sh -c 'echo sta''rted; exec sleep 100'\\n\"); until('started')
type('\\x1a'); until('Stopped'); until('$ ')
type('fg\\n'); until('sleep'); time.sleep(0.2); type('\\x03'); until('$ ')
type('echo code=$?\\n'); until('code=130'); until('$ ')
type('stty rows 33 cols 77; ' + ' '.join(uwt) + ' stty size\\n'); until('33 77'); until('$ ')
type('exit\\n'); print('ok')";
    let run = w.bed.run("timeout").args([
        "-k", "1", "60", "python3", "-c", code, &program, "-P", &port, "--level", "netns",
    ]);
    said(&w.held(run)?.expect(0)?, &["ok"])?;
    let code = "
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.waitpid(-1, None, 0x40000000), ctypes.get_errno() == 10)";
    let o = w.held(python(uwt(w, &server), code))?.expect(0)?;
    said(&o, &["-1 True"])
}

fn surroundings(w: &World) -> Result {
    let server = w.server()?;
    let port = server.port().to_string();
    let program = w.bed.path("bin/uwt").display().to_string();
    let start = |user: bool| match user {
        true => w.bed.run_as_user(&program),
        false => w.bed.run(&program),
    };
    for user in [false, true] {
        if user && !w.bed.root {
            continue;
        }
        let uwt = || start(user).args(["-P", &port, "--level", "netns"]);
        let home = w.bed.path(if user { "nobody" } else { "home" });
        let o = w.held(uwt().folder(&home).args([
            "sh",
            "-c",
            "pwd; id -u; id -g; echo x > made; ls -ln made | cut -d' ' -f3,4",
        ]))?;
        let o = o.expect(0)?;
        let id = if user { "1" } else { "0" };
        let ids = format!("{id} {id}");
        said(&o, &[&home.display().to_string(), id, id, &ids])?;
        // Cannot be told apart by what it may read: an agent outside, by its socket's path.
        if has("ssh-agent") {
            let agent = home.join("agent");
            let script = format!(
                "eval $(ssh-agent -a {0}) >/dev/null; SSH_AUTH_SOCK={0} {program} -P {port} --level netns ssh-add -l; kill $SSH_AGENT_PID",
                agent.display()
            );
            let sh = match user {
                true => w.bed.run_as_user("sh"),
                false => w.bed.run("sh"),
            };
            let o = w.held(sh.args(["-c", &script]))?;
            ensure!(o.out.contains("no identities"), "{o:#?}");
        }
    }
    Ok(())
}

fn ways_out(w: &World) -> Result {
    let server = w.server()?;
    let vectors = w.bed.vectors()?;
    let port = server.port().to_string();
    let program = w.bed.path("bin/uwt").display().to_string();
    for user in [false, true] {
        if user && !w.bed.root {
            continue;
        }
        let uwt = || {
            let run = match user {
                true => w.bed.run_as_user(&program),
                false => w.bed.run(&program),
            };
            run.args(["-P", &port, "--level", "netns", "busybox", "env"])
                .env("VECTOR_PID", std::process::id().to_string())
        };
        for (vector, why) in [
            ("vsock", "Address family not supported"),
            ("tun", "not permitted"),
            ("ptrace_other", "not permitted"),
            ("route_change", "not permitted"),
            ("setns_asm", "ermi"),
        ] {
            let o = w.held(uwt().arg(&vectors).arg(vector))?;
            // As an ordinary user some are not even opened.
            ensure!(
                o.code() == 1 && (o.out.contains(why) || o.out.contains("denied")),
                "{vector}: {o:#?}"
            );
        }
        // A namespace of one's own, made inside, leads nowhere; nor does one's own root there.
        let o = w.held(uwt().args([
            "unshare",
            "-Urn",
            "busybox",
            "wget",
            "-T",
            "2",
            "-q",
            "-O-",
            "http://198.51.100.7/",
        ]))?;
        ensure!(o.code() != 0, "{o:#?}");
        let o = w.held(uwt().args([
            "nsenter",
            "-t",
            &std::process::id().to_string(),
            "-n",
            "true",
        ]))?;
        ensure!(o.code() != 0, "{o:#?}");
    }
    ensure!(server.take().is_empty(), "carried");
    Ok(())
}

fn uring(w: &World) -> Result {
    let server = w.server()?;
    let vectors = w.bed.vectors()?.display().to_string();
    let program = w.bed.path("bin/uwt").display().to_string();
    let port = server.port().to_string();
    if !w.bed.root {
        return Err(Stop::Skipped("hiding a device needs root".into()));
    }
    // A host without AF_VSOCK.
    let script = format!(
        "mount -t tmpfs none /sys/class/misc; exec {program} -P {port} --level netns {vectors} uring_asm"
    );
    let o = w.held(w.bed.run("unshare").args(["-m", "sh", "-c", &script]))?;
    let r = server.take();
    ensure!(r.len() == 1 && r[0].host == "198.51.100.7", "{r:#?} {o:#?}");
    // One that has it.
    let script = format!(
        "mount -t tmpfs none /sys/class/misc; mkdir /sys/class/misc/vsock; exec {program} -P {port} --level netns {vectors} uring_asm"
    );
    let o = w.held(w.bed.run("unshare").args(["-m", "sh", "-c", &script]))?;
    ensure!(
        o.out.contains("Function not implemented") && server.take().is_empty(),
        "{o:#?}"
    );
    Ok(())
}

fn inherited(w: &World) -> Result {
    use std::os::fd::AsRawFd;
    let server = w.server()?;
    let code = "
import os
for fd in (3, 5, 6):
    try: os.fstat(fd); print(fd, 'open')
    except OSError: print(fd, 'closed')";
    // Not connected, and on loopback: it could be connected anew.
    let udp = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let (unix, _peer) = std::os::unix::net::UnixStream::pair()?;
    let run = uwt(w, &server)
        .descriptor(udp.as_raw_fd(), 5)
        .descriptor(unix.as_raw_fd(), 6);
    let o = w.held(python(run, code))?.expect(0)?;
    said(&o, &["3 closed", "5 closed", "6 open"])?;
    let program = w.bed.path("bin/uwt").display().to_string();
    let code = format!(
        "import os, socket, sys; s = socket.socket(2, 2); os.dup2(s.fileno(), 0); os.execv('{program}', ['uwt', '--level', 'netns', 'true'])"
    );
    let o = w.held(w.bed.run("python3").args(["-c", &code]))?;
    ensure!(o.code() == 125 && o.err.contains("descriptor 0"), "{o:#?}");
    Ok(())
}

fn setuid(w: &World) -> Result {
    if !w.bed.root {
        return Err(Stop::Skipped("setuid files need root to be made".into()));
    }
    let path = w.bed.path("work/as-root");
    std::fs::copy("/bin/true", &path)?;
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o4755))?;
    let program = w.bed.path("bin/uwt").display().to_string();
    let user = || w.bed.run_as_user(&program).args(["--level", "netns"]);
    let o = w.held(user().arg(&path))?;
    ensure!(o.code() == 125 && o.err.contains("sudo uwt"), "{o:#?}");
    let o = w.held(user().args(["sh", "-c"]).arg(path.display().to_string()))?;
    ensure!(o.code() == 126 && o.err.contains("sudo uwt"), "{o:#?}");
    // Root drops what it likes.
    let root = w.bed.run(&program).args([
        "--level",
        "netns",
        "setpriv",
        "--reuid=1",
        "--regid=1",
        "--clear-groups",
        "id",
        "-u",
    ]);
    said(&w.held(root)?.expect(0)?, &["1"])
}

fn nested(w: &World) -> Result {
    let server = w.server()?;
    let program = w.bed.path("bin/uwt").display().to_string();
    let o = w
        .held(uwt(w, &server).args([&program, "--explain", "true"]))?
        .expect(0)?;
    ensure!(
        o.out.contains("level netns (the run that this is part of)"),
        "{o:#?}"
    );
    let run = uwt(w, &server).args([&program, &program, "wget", "-q", "-O-", "http://a.example/"]);
    w.held(run)?.expect(0)?;
    ensure!(server.take().len() == 1, "carried twice");
    let run = w
        .bed
        .run(&program)
        .args(["--level", "preload", &program, "--level", "netns", "true"]);
    let o = w.held(run)?;
    ensure!(
        o.code() == 125 && o.err.contains("start the outer command"),
        "{o:#?}"
    );
    Ok(())
}

fn unavailable(w: &World) -> Result {
    if !w.bed.root {
        return Err(Stop::Skipped("chroot needs root".into()));
    }
    // In a chroot the kernel gives no user namespaces.
    let server = w.server()?;
    let program = w.bed.path("bin/uwt").display().to_string();
    let port = server.port().to_string();
    let inside = |more: &str| {
        let script = format!(
            "mkdir -p {0}; mount --rbind / {0}; exec chroot --userspec=1:1 {0} {program} -P {port} {more}",
            w.bed.path("work/root").display()
        );
        w.bed
            .run("unshare")
            .args(["-m", "sh", "-c", &script])
            .env("HOME", "/")
    };
    let o = w
        .held(inside("wget -q -O/dev/null http://a.example/"))?
        .expect(0)?;
    ensure!(
        o.err.lines().count() == 1 && o.err.starts_with("uwt: warning: level preload, not netns:"),
        "{o:#?}"
    );
    ensure!(server.take().len() == 1, "not carried");
    let o = w.held(inside("-q true"))?.expect(0)?;
    ensure!(o.err.is_empty(), "{o:#?}");
    let o = w.held(inside("--level netns true"))?;
    ensure!(
        o.code() == 125 && o.err.contains("nothing was run"),
        "{o:#?}"
    );
    Ok(())
}

/// The pid of the run's broker, as a shell finds it: the newest that runs (tests run one at a time).
const BROKER: &str = "b=; at=0; for p in /proc/[0-9]*; do read -r n 2>/dev/null < $p/comm || continue; if [ \"$n\" = uwt-broker ]; then set -- $(cat $p/stat); [ $3 != Z ] && [ ${22} -ge $at ] && { b=$1; at=${22}; }; fi; done; ";

fn life(w: &World) -> Result {
    let server = w.server()?;
    let script = format!("{BROKER} echo $b");
    let o = w
        .held(uwt(w, &server).args(["sh", "-c", &script]))?
        .expect(0)?;
    let pid: u32 = o
        .out
        .trim()
        .parse()
        .map_err(|_| format!("no broker: {o:#?}"))?;
    // What is left of it is its parent's to collect; it runs no more.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or("").trim_start();
    let mut ended = state.is_empty() || state.starts_with(['Z', 'X']);
    for _ in 0..100 {
        if ended {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        ended = stat.is_empty() || stat.contains(") Z") || stat.contains(") X");
    }
    ensure!(ended, "the broker {pid} runs on");
    Ok(())
}

fn killed(w: &World) -> Result {
    let server = w.server()?;
    let script = format!(
        "{BROKER} kill -9 $b; exec timeout 3 python3 -c 'import socket; socket.create_connection((\"198.51.100.7\", 80))'"
    );
    for shim in [true, false] {
        let run = match shim {
            true => uwt(w, &server),
            false => bare(uwt(w, &server))?,
        };
        let o = w.held(run.args(["sh", "-c", &script]))?;
        ensure!(o.code() != 0, "{o:#?}");
    }
    ensure!(server.take().is_empty(), "carried by nobody");
    Ok(())
}

fn stopped(w: &World) -> Result {
    let server = w.server()?;
    let script = format!(
        "{BROKER} kill -STOP $b; (sleep 0.5; kill -CONT $b) & exec busybox wget -q -O- http://a.example/"
    );
    let o = w
        .held(bare(uwt(w, &server))?.args(["sh", "-c", &script]))?
        .expect(0)?;
    ensure!(o.out.contains("a.example"), "{o:#?}");
    Ok(())
}

fn garbage(w: &World) -> Result {
    let server = w.server()?;
    // The relay's own port; nonsense for the resolver; connections that are gone before they are made.
    let code = "
import os, random, socket
random.seed(7)
ports = [int(l.split()[1].split(':')[1], 16) for l in open('/proc/net/tcp').readlines()[1:] if l.split()[3] == '0A']
for p in ports:
    try: s = socket.create_connection(('127.0.0.1', p), 5); s.sendall(b'x' * 1000); s.recv(9)
    except OSError: pass
u = socket.socket(2, 2)
for i in range(2000): u.sendto(random.randbytes(random.randrange(1, 1400)), ('192.0.2.1', 53))
for i in range(300):
    s = socket.socket(); s.setblocking(False)
    try: s.connect(('198.51.100.%d' % (i % 250 + 1), 80))
    except BlockingIOError: pass
    s.close()
for i in range(300):
    s = socket.create_connection(('198.51.100.7', 80)); s.setsockopt(1, 13, b'\\1\\0\\0\\0\\0\\0\\0\\0'); s.sendall(random.randbytes(100)); s.close()
s = socket.create_connection(('198.51.100.7', 80)); s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); print(s.recv(4))";
    let o = w
        .held(python(bare(uwt(w, &server))?, code).limit(Duration::from_secs(60)))?
        .expect(0)?;
    said(&o, &["b'HTTP'"])
}

fn full_disk(w: &World) -> Result {
    let server = w.server()?;
    let run = uwt(w, &server).arg("-d").env("UWT_LOG_FILE", "/dev/full");
    let o = w
        .held(bare(run)?.args(["busybox", "wget", "-q", "-O-", "http://a.example/"]))?
        .expect(0)?;
    ensure!(o.out.contains("a.example"), "{o:#?}");
    Ok(())
}

fn processes(w: &World) -> Result {
    let server = w.server()?;
    let code = "
import os, socket
pids = []
for i in range(1000):
    if (p := os.fork()) == 0:
        s = socket.create_connection(('198.51.100.7', 80)); s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); os._exit(s.recv(4) != b'HTTP')
    pids.append(p)
print(sum(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids))";
    let o = w
        .held(python(bare(uwt(w, &server))?, code).limit(Duration::from_secs(90)))?
        .expect(0)?;
    said(&o, &["0"])?;
    let r = server.take();
    let own: BTreeSet<&str> = r.iter().map(|r| r.password()).collect();
    ensure!(
        r.len() == 1000 && own.len() == 1000,
        "{} requests, {} passwords",
        r.len(),
        own.len()
    );
    Ok(())
}

fn wrappers(w: &World) -> Result {
    let server = w.server()?;
    let folder = w.bed.path("work/wrapped");
    std::fs::create_dir_all(&folder)?;
    let link = folder.join("wget");
    let orig = folder.join("wget.anondist-orig");
    if !link.exists() {
        std::os::unix::fs::symlink(w.bed.path("bin/uwt"), &link)?;
        std::os::unix::fs::symlink("/usr/bin/wget", &orig)?;
    }
    let port = server.port().to_string();
    let run = || {
        w.bed
            .run(&link.to_string_lossy())
            .env("UWT_PORT", &port)
            .args(["-q", "-O-", "http://a.example/"])
    };
    w.held(run())?.expect(0)?;
    let name = |o: &Outcome| o.err.contains("level netns");
    let config = w.bed.path("work/netns.toml");
    std::fs::write(&config, "[command.wget]\nlevel = \"netns\"\n")?;
    let o = w.held(run().env("UWT_CONFIG", &config))?.expect(0)?;
    ensure!(!name(&o) && server.take().len() == 2, "{o:#?}");
    // Which network it is in says which level it was.
    for (level, same) in [("preload", true), ("netns", false)] {
        std::fs::write(
            &config,
            format!("[command.readlink]\nlevel = \"{level}\"\n"),
        )?;
        let link = folder.join("readlink");
        if !link.exists() {
            std::os::unix::fs::symlink(w.bed.path("bin/uwt"), &link)?;
            std::os::unix::fs::symlink("/usr/bin/readlink", folder.join("readlink.anondist-orig"))?;
        }
        let o = w.held(
            w.bed
                .run(&link.to_string_lossy())
                .env("UWT_CONFIG", &config)
                .arg("/proc/self/ns/net"),
        )?;
        let ours = std::fs::read_link("/proc/self/ns/net")?
            .display()
            .to_string();
        ensure!((o.out.trim() == ours) == same, "{level}: {o:#?}");
    }
    Ok(())
}
