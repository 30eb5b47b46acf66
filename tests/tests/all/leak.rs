//! The leak matrix: every way out that is known, as a small real program, bare and held.
//!
//! A row counts only if the sink sees it bare: that is the control. Held, it must be *carried* (the SOCKS server
//! was asked) or *refused* (nothing left). What level `preload` cannot hold is declared `Escapes`, and fails
//! when it does not: so that the list in the README stays true.

use crate::world::{Result, Stop, World};
use libtest_mimic::Trial;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use uwt_tests::bed::{USER, has};
use uwt_tests::run::Run;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Carried,
    Refused,
    Escapes,
}

/// How a command is held.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Level {
    Bare,
    Torsocks,
    Proxychains,
    Preload,
    Netns,
    NetnsUser,
}

const LEVELS: [(Level, &str); 6] = [
    (Level::Bare, "bare"),
    (Level::Torsocks, "torsocks"),
    (Level::Proxychains, "proxychains4"),
    (Level::Preload, "uwt preload"),
    (Level::Netns, "uwt netns"),
    (Level::NetnsUser, "uwt netns, ordinary user"),
];

/// Who runs it, and with what beside it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum With {
    Nothing,
    /// A child of another kind, in VECTOR_CHILD.
    Child(&'static str),
    /// As an ordinary user, with such a child.
    UserChild(&'static str),
    /// Descriptor 5 is a UDP socket connected beside Tor.
    Inherited,
    /// A UDP socket connected beside Tor is passed over a unix socket.
    Passed,
}

struct Row {
    name: &'static str,
    /// Arguments of the vectors program, or `$ command...`, or `! kind` for a program of that kind.
    how: &'static str,
    with: With,
    expect: Verdict,
}

const fn row(name: &'static str, how: &'static str, expect: Verdict) -> Row {
    Row {
        name,
        how,
        with: With::Nothing,
        expect,
    }
}

const fn with(name: &'static str, how: &'static str, with: With, expect: Verdict) -> Row {
    Row {
        name,
        how,
        with,
        expect,
    }
}

use Verdict::{Carried, Escapes, Refused};

const ROWS: &[Row] = &[
    // TCP
    row("connect, IPv4", "connect4", Carried),
    row("connect, IPv6", "connect6", Carried),
    row("connect, v4-mapped", "connect_mapped", Carried),
    row(
        "connect, IPv6 socket with V6ONLY",
        "connect_v6only",
        Carried,
    ),
    row("connect by dlsym(RTLD_DEFAULT)", "dlsym_default", Carried),
    row("connect by dlsym(RTLD_NEXT)", "dlsym_next", Carried),
    row("connect by dlsym(dlopen(libc))", "dlsym_handle", Carried),
    row(
        "__connect by dlsym(dlopen(libc))",
        "dlsym_internal",
        Carried,
    ),
    row("connect by dlvsym", "dlvsym_handle", Carried),
    row(
        "connect by dlmopen(LM_ID_NEWLM)",
        "dlmopen_connect",
        Refused,
    ),
    row("__sendmmsg by dlsym", "sendmmsg_internal", Refused),
    row("NSS's own resolver by dlsym", "nss_dns", Refused),
    row("Sun RPC by dlvsym", "sun_rpc", Refused),
    row(
        "Sun RPC, linked before glibc 2.32",
        "sun_rpc_linked",
        Refused,
    ),
    row("connect by syscall()", "syscall_connect", Carried),
    row("connect by a raw system call", "asm_connect", Escapes),
    row("non-blocking connect, poll", "nonblocking_poll", Carried),
    row(
        "non-blocking connect, epoll before connect",
        "nonblocking_epoll",
        Carried,
    ),
    row("connect in a thread", "thread_connect", Carried),
    row("connect in a forked child", "fork_connect", Carried),
    row("connect in a grandchild", "fork_twice", Carried),
    row("connect after clone(CLONE_VM)", "clone_vm", Carried),
    row("connect in a signal handler", "signal_connect", Carried),
    row(
        "loopback, connect(AF_UNSPEC), then out",
        "unspec_again",
        Carried,
    ),
    row("connect from a bound address", "bound", Carried),
    row("connect with SO_BINDTODEVICE", "bound_to_device", Carried),
    row("TCP_FASTOPEN_CONNECT", "fastopen_connect", Carried),
    row("MSG_FASTOPEN by sendto", "fastopen_sendto", Refused),
    row("MSG_FASTOPEN by sendmsg", "fastopen_sendmsg", Refused),
    row("MSG_FASTOPEN by sendmmsg", "fastopen_sendmmsg", Refused),
    row("MSG_FASTOPEN by syscall()", "fastopen_syscall", Refused),
    row("MPTCP", "mptcp", Carried),
    row("SCTP", "sctp", Refused),
    row("DCCP", "dccp", Refused),
    row("connect on a dup2'ed socket", "dup_connect", Carried),
    row(
        "connect on a socket dup'ed by syscall()",
        "dup_syscall",
        Carried,
    ),
    row("io_uring connect by syscall()", "uring_syscall", Refused),
    row("io_uring connect by raw system calls", "uring_asm", Escapes),
    row("connect by int 0x80", "int80_connect", Escapes),
    row(
        "io_uring sendmsg by raw system calls",
        "uring_sendmsg_asm",
        Escapes,
    ),
    // UDP and the rest
    row("UDP sendto by a raw system call", "udp_asm", Escapes),
    row(
        "UDP sendmmsg by a raw system call",
        "udp_sendmmsg_asm",
        Escapes,
    ),
    row("DNS by raw system calls", "dns_asm", Escapes),
    row("UDP sendto", "udp_sendto", Refused),
    row("UDP sendto, IPv6", "udp_sendto6", Refused),
    row("UDP sendmsg", "udp_sendmsg", Refused),
    row("UDP sendmmsg", "udp_sendmmsg", Refused),
    row("UDP connect, send", "udp_connect_send", Refused),
    row("UDP connect, write", "udp_connect_write", Refused),
    row("UDP sendto by syscall()", "udp_syscall", Refused),
    row("UDP sendmsg by syscall()", "udp_syscall_sendmsg", Refused),
    row("UDP with IP_PKTINFO", "udp_pktinfo", Refused),
    row("UDP with SO_BINDTODEVICE", "udp_bound_to_device", Refused),
    row("UDP-Lite", "udplite", Refused),
    row("ICMP by a raw socket", "raw_icmp", Refused),
    row("ICMP by a ping socket", "ping_socket", Refused),
    row("raw IP", "raw_ip", Refused),
    row("AF_PACKET", "packet", Refused),
    // names
    row("getaddrinfo, connect", "gai", Carried),
    row("getaddrinfo AF_INET6, connect", "gai_inet6", Carried),
    row(
        "getaddrinfo AI_CANONNAME, connect",
        "gai_canonname",
        Carried,
    ),
    row("getaddrinfo without hints", "gai_null", Refused),
    row("getaddrinfo_a, GAI_WAIT", "gai_async", Refused),
    row("getaddrinfo_a, GAI_NOWAIT", "gai_async_nowait", Refused),
    row("gethostbyname", "ghbn", Refused),
    row("gethostbyname2", "ghbn2", Refused),
    row("gethostbyname_r", "ghbn_r", Refused),
    row("gethostbyaddr", "ghba", Carried),
    row("getnameinfo", "gni", Carried),
    row("getnameinfo NI_NAMEREQD", "gni_required", Carried),
    row("getnetbyname", "net_by_name", Refused),
    row("gethostid", "host_id", Refused),
    row("rcmd", "remote_command", Refused),
    row("res_query A", "rq", Refused),
    row("res_query MX", "rq_mx", Refused),
    row("res_search SRV", "rq_srv", Refused),
    row("res_search AAAA", "rs", Refused),
    row("res_querydomain", "rqd", Refused),
    row("res_nquery", "rnq", Refused),
    row("res_nsearch", "rns", Refused),
    row("res_send", "rsend", Refused),
    row("res_nsend", "rnsend", Refused),
    row("__res_query by dlvsym", "res_by_dlvsym", Refused),
    row("DNS by hand, UDP", "dns_udp", Refused),
    row("DNS by hand, TCP", "dns_tcp", Carried),
    row("DNS by hand to 127.0.0.53, UDP", "dns_stub_udp", Refused),
    row(
        "DNS by hand to 127.0.0.53, connected UDP",
        "dns_stub_connected",
        Refused,
    ),
    row("DNS by hand to 127.0.0.53, TCP", "dns_stub_tcp", Refused),
    row("nscd's socket", "nscd", Refused),
    row("nscd's socket below /var/run", "nscd_var", Refused),
    row("nscd's socket by a winding path", "nscd_dots", Refused),
    row("nscd's socket by a relative path", "nscd_relative", Refused),
    row("nscd's socket by a symbolic link", "nscd_symlink", Refused),
    row("nscd's socket by syscall()", "nscd_syscall", Refused),
    row("systemd-resolved's varlink socket", "resolved", Refused),
    row("the system bus", "bus", Refused),
    // starting programs
    row("execve, empty environment", "exec_empty", Carried),
    row("execve, NULL environment", "exec_null", Carried),
    row("execv after clearenv", "exec_v", Carried),
    row("execvp after unsetenv", "exec_vp", Carried),
    row("execvpe, empty environment", "exec_vpe", Carried),
    row("execl after unsetenv", "exec_l", Carried),
    row("execlp after clearenv", "exec_lp", Carried),
    row("execle, empty environment", "exec_le", Carried),
    row("fexecve, empty environment", "exec_f", Carried),
    row("execveat, empty environment", "exec_at", Carried),
    row("LD_PRELOAD and handoff changed", "exec_changed", Carried),
    row("handoff unset", "exec_no_handoff", Carried),
    row(
        "execve by syscall(), empty environment",
        "exec_syscall",
        Carried,
    ),
    row(
        "execve by a raw system call, empty environment",
        "exec_asm",
        Escapes,
    ),
    row("vfork, execve, empty environment", "exec_vfork", Carried),
    row("posix_spawn, empty environment", "spawn", Carried),
    row("posix_spawnp, empty environment", "spawnp", Carried),
    row("system() after clearenv", "by_system", Carried),
    row("popen() after unsetenv", "by_popen", Carried),
    row("ld.so by hand, empty environment", "by_ld_so", Carried),
    row("memfd, fexecve, empty environment", "memfd_exec", Carried),
    row(
        "every descriptor closed, then a lookup",
        "closed_all",
        Carried,
    ),
    row(
        "close_range by syscall(), then a lookup",
        "close_range_all",
        Carried,
    ),
    row("env -i", "$ env -i {vectors} connect4", Carried),
    with("static child", "exec_other", With::Child("static"), Refused),
    with(
        "static child by posix_spawn",
        "spawn_other",
        With::Child("static"),
        Refused,
    ),
    with("musl child", "exec_other", With::Child("musl"), Refused),
    with("32-bit child", "exec_other", With::Child("m32"), Refused),
    with("Go child", "exec_other", With::Child("go"), Refused),
    with(
        "script with a static interpreter",
        "exec_other",
        With::Child("script"),
        Refused,
    ),
    with(
        "setuid child",
        "exec_other",
        With::UserChild("setuid"),
        Refused,
    ),
    with(
        "setgid child",
        "exec_other",
        With::UserChild("setgid"),
        Refused,
    ),
    with(
        "file-capability child",
        "exec_other",
        With::UserChild("capable"),
        Refused,
    ),
    row("static program", "! static", Refused),
    row("static-pie program", "! static-pie", Refused),
    row("musl program", "! musl", Refused),
    row("32-bit program", "! m32", Refused),
    row("Go program, static", "! go", Refused),
    row("Go program, with cgo", "! cgo", Refused),
    row(
        "busybox nc, static",
        "$ busybox nc -w 5 198.51.100.7 80",
        Refused,
    ),
    // descriptors from elsewhere
    with(
        "inherited socket, send",
        "inherited",
        With::Inherited,
        Refused,
    ),
    with(
        "inherited socket, write",
        "inherited_write",
        With::Inherited,
        Refused,
    ),
    with(
        "socket passed to recvmsg",
        "passed_recvmsg",
        With::Passed,
        Refused,
    ),
    with(
        "socket passed to recvmmsg",
        "passed_recvmmsg",
        With::Passed,
        Refused,
    ),
    with(
        "socket passed to recvmsg by syscall()",
        "passed_syscall",
        With::Passed,
        Refused,
    ),
    with(
        "socket taken by pidfd_getfd",
        "pidfd_getfd_other",
        With::Passed,
        Refused,
    ),
    with(
        "somebody's socket by pidfd_getfd, raw system calls",
        "pidfd_getfd_asm",
        With::Passed,
        Escapes,
    ),
    with(
        "setns to somebody's network, raw system calls",
        "setns_asm",
        With::Passed,
        Escapes,
    ),
    // programs
    row("curl", "$ curl -sS -m 9 http://leak.example/", Carried),
    row(
        "curl, address",
        "$ curl -sS -m 9 http://198.51.100.7/",
        Carried,
    ),
    row(
        "curl, IPv6 address",
        "$ curl -sS -m 9 http://[2001:db8:1::7]/",
        Carried,
    ),
    row(
        "curl, onion",
        "$ curl -sS -m 9 http://leakexample.onion/ http://leak.example/",
        Carried,
    ),
    row(
        "wget",
        "$ wget -T 9 -t 1 -q -O- http://leak.example/",
        Carried,
    ),
    row(
        "ssh",
        "$ ssh -o BatchMode=yes -o ConnectTimeout=9 leak.example true",
        Carried,
    ),
    row(
        "ssh VerifyHostKeyDNS",
        "$ ssh -o BatchMode=yes -o VerifyHostKeyDNS=yes -o ConnectTimeout=9 leak.example true",
        Carried,
    ),
    row(
        "git over http",
        "$ git ls-remote http://leak.example/x.git",
        Carried,
    ),
    row(
        "git over ssh",
        "$ git ls-remote ssh://leak.example/x.git",
        Carried,
    ),
    row("getent hosts", "$ getent hosts leak.example", Refused),
    row("getent ahosts", "$ getent ahosts leak.example", Refused),
    row("ping", "$ ping -c 1 -W 2 198.51.100.7", Refused),
    row("nc", "$ nc -w 5 198.51.100.7 80", Carried),
    row(
        "bash /dev/tcp",
        "$ bash -c exec\u{a0}3<>/dev/tcp/leak.example/80",
        Carried,
    ),
    row(
        "bash /dev/udp",
        "$ bash -c echo\u{a0}x>/dev/udp/198.51.100.7/53",
        Refused,
    ),
    row(
        "python3",
        "$ python3 -c import\u{a0}urllib.request;urllib.request.urlopen('http://leak.example/',timeout=9)",
        Carried,
    ),
    row(
        "python3 asyncio",
        "$ python3 -c import\u{a0}asyncio;asyncio.run(asyncio.open_connection('leak.example',80))",
        Carried,
    ),
    row(
        "perl",
        "$ perl -MIO::Socket::INET -e IO::Socket::INET->new(PeerAddr=>'leak.example:80')",
        Carried,
    ),
    row(
        "node fetch",
        "$ node -e fetch('http://leak.example/').then(r=>r.text())",
        Carried,
    ),
    row(
        "node dns.resolve",
        "$ node -e require('dns').resolve('leak.example',()=>{})",
        Refused,
    ),
    row(
        "apt-get update",
        "$ apt-get -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts={work}/sources -o Dir::State={work}/state -o Dir::Cache={work}/cache -o APT::Sandbox::User=root update",
        Carried,
    ),
    row(
        "gpg keyserver",
        "$ gpg --homedir {work}/gnupg-{level} --keyserver hkp://leak.example --recv-keys 0123456789ABCDEF0123456789ABCDEF01234567",
        Carried,
    ),
];

/// What was seen: per row, per level.
type Seen = Arc<Mutex<BTreeMap<usize, BTreeMap<Level, String>>>>;

/// One test per row, and the table at the end.
pub fn tests(world: &Arc<World>) -> Vec<Trial> {
    let seen: Seen = Arc::default();
    let mut all = Vec::new();
    for (i, row) in ROWS.iter().enumerate() {
        let seen = seen.clone();
        all.push(world.test(format!("leak::{}", row.name), move |w| {
            check(w, i, row, &seen)
        }));
    }
    let count = ROWS.len();
    all.push(world.test("leak::table", move |_| {
        let seen = seen.lock().map_err(|e| e.to_string())?;
        if seen.len() == count && std::env::var_os("UWT_TEST_WRITE_DOCS").is_some() {
            std::fs::write(
                concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/LEAK-MATRIX.md"),
                table(&seen),
            )?;
        }
        Ok(())
    }));
    all
}

fn program(world: &World, kind: &str) -> Result<PathBuf> {
    let bed = &world.bed;
    let needs = |tool: &str| {
        if has(tool) {
            Ok(())
        } else {
            Err(Stop::Skipped(format!("{tool} is not installed")))
        }
    };
    let special = |mode: u32, group: Option<u32>| -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let to = bed.path("work").join(kind);
        std::fs::copy(bed.vectors()?, &to)?;
        std::os::unix::fs::chown(&to, Some(0), group)?;
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(mode))?;
        Ok(to)
    };
    Ok(match kind {
        "static" => bed.compile(kind, "cc", "-static", "plain.c")?,
        "static-pie" => bed.compile(kind, "cc", "-static-pie", "plain.c")?,
        "musl" => {
            needs("musl-gcc")?;
            bed.compile(kind, "musl-gcc", "", "plain.c")?
        }
        "m32" => bed
            .compile(kind, "cc", "-m32", "plain.c")
            .map_err(|e| Stop::Skipped(format!("no 32-bit compiler: {e}")))?,
        "go" => {
            needs("go")?;
            bed.compile(kind, "go", "build", "go.go")?
        }
        "cgo" => {
            needs("go")?;
            bed.compile(kind, "go", "build -ldflags=-linkmode=external", "go.go")?
        }
        "script" => {
            needs("busybox")?;
            use std::os::unix::fs::PermissionsExt;
            let to = bed.path("work/script");
            std::fs::write(&to, "#!/bin/busybox wget\nhttp://198.51.100.7/\n")?;
            let inner = program(world, "static")?;
            std::fs::write(&to, format!("#!{}\n", inner.display()))?;
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755))?;
            to
        }
        "setuid" => special(0o4755, Some(0))?,
        "setgid" => special(0o2755, Some(0))?,
        "capable" => {
            needs("setcap")?;
            let to = special(0o755, Some(0))?;
            let out = bed
                .run("setcap")
                .arg("cap_net_bind_service+ep")
                .arg(&to)
                .run()?;
            if out.code() != 0 {
                return Err(Stop::Skipped(format!("setcap: {}", out.err.trim())));
            }
            to
        }
        other => return Err(Stop::Failed(format!("no program {other}"))),
    })
}

/// The words of a row's command.
fn words(world: &World, row: &Row, level: Level) -> Result<Vec<String>> {
    let vectors = world.bed.vectors()?.display().to_string();
    let work = world.bed.path("work").display().to_string();
    if let Some(kind) = row.how.strip_prefix("! ") {
        return Ok(vec![program(world, kind)?.display().to_string()]);
    }
    let Some(command) = row.how.strip_prefix("$ ") else {
        return Ok(vec![vectors, row.how.into()]);
    };
    let words: Vec<String> = command
        .split(' ')
        .map(|w| {
            w.replace('\u{a0}', " ")
                .replace("{vectors}", &vectors)
                .replace("{work}", &work)
                .replace("{level}", &format!("{level:?}"))
        })
        .collect();
    if !has(&words[0]) {
        return Err(Stop::Skipped(format!("{} is not installed", words[0])));
    }
    match words[0].as_str() {
        "apt-get" => {
            for folder in ["sources", "state/lists/partial", "cache/archives/partial"] {
                std::fs::create_dir_all(world.bed.path("work").join(folder))?;
            }
            if level == Level::NetnsUser {
                let run = world.bed.run("chown").args(["-R", &USER.to_string()]);
                let run = run
                    .arg(world.bed.path("work/state"))
                    .arg(world.bed.path("work/cache"));
                run.run()?;
            }
            std::fs::write(
                world.bed.path("work/sources/x.list"),
                "deb [trusted=yes] http://leak.example/debian ./\n",
            )?;
        }
        "gpg" => {
            use std::os::unix::fs::DirBuilderExt;
            let home = world.bed.path(&format!("work/gnupg-{level:?}"));
            std::fs::DirBuilder::new().mode(0o700).create(&home)?;
            // Its own resolver knows UDP only, which Tor does not carry.
            std::fs::write(home.join("dirmngr.conf"), "standard-resolver\nno-use-tor\n")?;
            if level == Level::NetnsUser {
                std::os::unix::fs::chown(&home, Some(USER), Some(USER))?;
            }
        }
        _ => {}
    }
    Ok(words)
}

fn command(world: &World, level: Level, port: u16, words: &[String], user: bool) -> Result<Run> {
    let bed = &world.bed;
    let start = |program: &str| {
        if user {
            bed.run_as_user(program)
        } else {
            bed.run(program)
        }
    };
    let port = port.to_string();
    Ok(match level {
        Level::Bare => start(&words[0]).args(&words[1..]),
        Level::Torsocks => start("torsocks")
            .args(["-a", "127.0.0.1", "-P", &port])
            .env("TORSOCKS_LOG_LEVEL", "1")
            .args(words),
        Level::Proxychains => {
            let conf = bed.path("work/proxychains.conf");
            let text = format!(
                "strict_chain\nproxy_dns\nremote_dns_subnet 224\ntcp_read_time_out 5000\n\
                 tcp_connect_time_out 5000\n[ProxyList]\nsocks5 127.0.0.1 {port}\n"
            );
            std::fs::write(&conf, text)?;
            start("proxychains4")
                .args(["-q", "-f"])
                .arg(&conf)
                .args(words)
        }
        Level::Preload => start(&bed.path("bin/uwt").to_string_lossy())
            .args(["-P", &port, "--level", "preload", "--"])
            .args(words),
        Level::Netns => start(&bed.path("bin/uwt").to_string_lossy())
            .args(["-P", &port, "--level", "netns", "--"])
            .args(words),
        Level::NetnsUser => bed
            .run_as_user(&bed.path("bin/uwt").to_string_lossy())
            .args(["-P", &port, "--level", "netns", "--"])
            .args(words),
    })
}

/// Hands a connected UDP socket to whoever connects, for as long as the row runs.
fn pass_descriptor(path: &std::path::Path, fd: i32) -> Result<()> {
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    std::thread::spawn(move || {
        let Ok((stream, _)) = listener.accept() else {
            return;
        };
        let mut control = [0u64; 4];
        let mut byte = [1u8];
        let mut io = libc::iovec {
            iov_base: byte.as_mut_ptr().cast(),
            iov_len: 1,
        };
        // SAFETY: all zeroes are a valid msghdr; its buffers live through the call, and the control buffer
        // has room for one descriptor.
        unsafe {
            let mut m: libc::msghdr = std::mem::zeroed();
            m.msg_iov = &raw mut io;
            m.msg_iovlen = 1;
            m.msg_control = control.as_mut_ptr().cast();
            m.msg_controllen = libc::CMSG_SPACE(4) as usize;
            let c = libc::CMSG_FIRSTHDR(&raw const m);
            (*c).cmsg_level = libc::SOL_SOCKET;
            (*c).cmsg_type = libc::SCM_RIGHTS;
            (*c).cmsg_len = libc::CMSG_LEN(4) as usize;
            libc::CMSG_DATA(c).cast::<i32>().write_unaligned(fd);
            libc::sendmsg(stream.as_raw_fd(), &raw const m, 0);
        }
    });
    Ok(())
}

fn check(world: &World, i: usize, row: &Row, seen: &Seen) -> Result {
    if let Ok(mut seen) = seen.lock() {
        seen.entry(i).or_default();
    }
    let user = matches!(row.with, With::UserChild(_));
    if user && !world.bed.root {
        return Err(Stop::Skipped("setuid files need root to be made".into()));
    }
    let child = match row.with {
        With::Child(kind) | With::UserChild(kind) => Some(program(world, kind)?),
        _ => None,
    };
    for (level, name) in LEVELS {
        let peer = matches!(level, Level::Torsocks | Level::Proxychains);
        if peer && !has(name) {
            continue;
        }
        let at_netns = matches!(level, Level::Netns | Level::NetnsUser);
        if level == Level::NetnsUser && !world.bed.root {
            continue;
        }
        let server = world.server()?;
        let words = words(world, row, level)?;
        let mut run = command(world, level, server.port(), &words, user)?;
        if let Some(child) = &child {
            run = run.env("VECTOR_CHILD", child);
        }
        let outside = UdpSocket::bind("192.0.2.2:0")?;
        outside.connect("198.51.100.7:53")?;
        let path = world.bed.path(&format!("work/pass-{i}-{level:?}"));
        match row.with {
            With::Inherited => run = run.descriptor(outside.as_raw_fd(), 5),
            With::Passed => {
                pass_descriptor(&path, outside.as_raw_fd())?;
                run = run
                    .env("VECTOR_SOCKET", &path)
                    .env("VECTOR_PID", std::process::id().to_string())
                    .env("VECTOR_FD", outside.as_raw_fd().to_string());
            }
            _ => {}
        }
        let outcome = world.loose(run.limit(Duration::from_secs(20)))?;
        let requests = server.take();
        if words[0] == "gpg" {
            // It leaves a daemon behind.
            world
                .bed
                .run("gpgconf")
                .args(["--homedir", &words[2], "--kill", "all"])
                .run()?;
        }
        if level == Level::Bare {
            if outcome.code() == 77 {
                return Err(Stop::Skipped("this kernel has no such sockets".into()));
            }
            crate::ensure!(
                !outcome.escapes.is_empty(),
                "the control fails: bare, nothing left: {outcome:#?}"
            );
        }
        let verdict = if !outcome.escapes.is_empty() {
            Escapes
        } else if !requests.is_empty() {
            Carried
        } else {
            Refused
        };
        let hung = if outcome.status.is_none() && verdict != Escapes {
            ", hangs"
        } else {
            ""
        };
        let shown = match verdict {
            Carried => format!("carried{hung}"),
            Refused if outcome.code() == 125 && !peer && level != Level::Bare => {
                "refused at start".into()
            }
            Refused => format!("no packet{hung}"),
            Escapes => "**escapes**".into(),
        };
        if let Ok(mut seen) = seen.lock() {
            seen.entry(i).or_default().insert(level, shown);
        }
        if at_netns {
            crate::ensure!(
                verdict != Escapes && hung.is_empty(),
                "{name}: seen {verdict:?}{hung}; requests {requests:#?}; {outcome:#?}"
            );
        }
        if level == Level::Preload {
            crate::ensure!(
                verdict == row.expect && hung.is_empty(),
                "expected {:?}, seen {verdict:?}{hung}; requests {requests:#?}; {outcome:#?}",
                row.expect
            );
        }
    }
    Ok(())
}

fn table(seen: &BTreeMap<usize, BTreeMap<Level, String>>) -> String {
    let mut out = String::from(
        "# The leak matrix\n\n\
         Written by the tests (`UWT_TEST_WRITE_DOCS=1 make behaviour`), from what they saw in one run: each row is a small\n\
         real program in a network namespace whose only way out is a sink that records every packet. *carried*: the\n\
         SOCKS server was asked, and nothing left; *no packet*: refused, or answered without asking anybody; *refused\n\
         at start*: the launcher ran nothing; **escapes**: a packet left, or a daemon that resolves for others was asked.\n\n\
         | vector |",
    );
    for (_, name) in LEVELS {
        let _ = write!(out, " {name} |");
    }
    out.push_str("\n| --- |");
    out.push_str(&" --- |".repeat(LEVELS.len()));
    out.push('\n');
    let mut count: BTreeMap<Level, usize> = BTreeMap::new();
    for (i, row) in ROWS.iter().enumerate() {
        let _ = write!(out, "| {} |", row.name);
        for (level, _) in LEVELS {
            let cell = seen.get(&i).and_then(|r| r.get(&level));
            let cell = cell.map_or("not run", String::as_str);
            *count.entry(level).or_default() += usize::from(cell.contains("escapes"));
            let _ = write!(out, " {cell} |");
        }
        out.push('\n');
    }
    out.push_str("| **escapes in all** |");
    for (level, _) in LEVELS {
        let _ = write!(
            out,
            " {} of {} |",
            count.get(&level).unwrap_or(&0),
            ROWS.len()
        );
    }
    out.push('\n');
    out
}
