//! The same behaviour asked of uwt, torsocks and proxychains4, in one run: a table of who passes what.
//!
//! A test passes if uwt does; what the peers do is written down.

use crate::ensure;
use crate::world::{Result, World};
use libtest_mimic::Trial;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use uwt_tests::bed::has;
use uwt_tests::run::{Outcome, Run};
use uwt_tests::socks::{Behaviour, Server};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Torsocks,
    Proxychains,
    Uwt,
}

const WHO: [(Who, &str); 3] = [
    (Who::Torsocks, "torsocks"),
    (Who::Proxychains, "proxychains4"),
    (Who::Uwt, "uwt"),
];

/// One command under one of the three, with the server that it meets.
struct Subject<'a> {
    world: &'a World,
    who: Who,
    server: Server,
}

impl Subject<'_> {
    fn start(&self) -> Result<Run> {
        let bed = &self.world.bed;
        let port = self.server.port().to_string();
        Ok(match self.who {
            // Their isolation switched on, as uwt's is.
            Who::Torsocks => bed
                .run("torsocks")
                .args(["-i", "-a", "127.0.0.1", "-P", &port])
                .env("TORSOCKS_LOG_LEVEL", "1"),
            Who::Proxychains => {
                let conf = bed.path("work/peers.conf");
                let text = format!(
                    "strict_chain\nproxy_dns\nremote_dns_subnet 224\nlocalnet 127.0.0.0/255.0.0.0\n[ProxyList]\nsocks5 127.0.0.1 {port}\n"
                );
                std::fs::write(&conf, text)?;
                bed.run("proxychains4").args(["-q", "-f"]).arg(conf)
            }
            Who::Uwt => bed.uwt(self.server.port()).env("UWT_TIMEOUT", "3"),
        })
    }

    fn run(&self, words: &[&str]) -> Result<Outcome> {
        Ok(self
            .world
            .loose(self.start()?.args(words).limit(Duration::from_secs(8)))?)
    }

    fn python(&self, code: &str) -> Result<Outcome> {
        self.run(&["python3", "-c", code])
    }

    fn client(&self, how: &str, host: &str) -> Result<Outcome> {
        let client = self.world.bed.compile(
            "client",
            "cc",
            "-O1 -Wno-unused-result -lpthread",
            "client.c",
        )?;
        // Without reverse lookups, which get out of torsocks: that is the leak matrix's to say.
        let run = self
            .start()?
            .env("NUMERIC", "1")
            .arg(client)
            .args([how, host, "80"]);
        Ok(self.world.loose(run.limit(Duration::from_secs(8)))?)
    }

    fn says(&self, o: &Outcome, words: &str) -> bool {
        o.out.trim_end() == words && o.escapes.is_empty()
    }
}

/// A name, and whether the subject does it.
type Check = (&'static str, fn(&Subject) -> Result<bool>);

fn way(s: &Subject, how: &str) -> Result<bool> {
    s.server.script(|x| x.delay = Duration::from_millis(100));
    let o = s.client(how, "a.example")?;
    Ok(o.out.starts_with("connected ") && o.escapes.is_empty())
}

fn code(s: &Subject, code: u8, errno: &str) -> Result<bool> {
    s.server.script(|x| x.behaviour = Behaviour::Code(code));
    Ok(s.says(
        &s.client("blocking", "198.51.100.7")?,
        &format!("error {errno}"),
    ))
}

fn fails_in_time(o: &Outcome) -> bool {
    o.status.is_some() && o.out.starts_with("error ") && o.escapes.is_empty()
}

const CHECKS: &[Check] = &[
    ("blocking connect", |s| way(s, "blocking")),
    ("non-blocking connect, poll", |s| way(s, "poll")),
    ("non-blocking connect, epoll", |s| way(s, "epoll")),
    ("non-blocking connect, edge-triggered epoll", |s| {
        way(s, "edge")
    }),
    ("non-blocking connect, epoll before connect", |s| {
        way(s, "early")
    }),
    ("non-blocking connect, select", |s| way(s, "select")),
    ("non-blocking connect, polled in another thread", |s| {
        way(s, "thread")
    }),
    ("non-blocking connect, written to at once", |s| {
        way(s, "write")
    }),
    (
        "the destination's first bytes with the proxy's reply",
        |s| {
            s.server
                .script(|x| x.behaviour = Behaviour::Eager(b"hello".to_vec()));
            let client = s.world.bed.compile(
                "client",
                "cc",
                "-O1 -Wno-unused-result -lpthread",
                "client.c",
            )?;
            let run = s
                .start()?
                .env("FIRST", "1")
                .env("NUMERIC", "1")
                .arg(client)
                .args(["blocking", "198.51.100.7", "80"]);
            let o = s.world.loose(run.limit(Duration::from_secs(8)))?;
            Ok(o.out.trim_end().ends_with("80 hello"))
        },
    ),
    ("reply code 3: ENETUNREACH", |s| code(s, 3, "ENETUNREACH")),
    ("reply code 4: EHOSTUNREACH", |s| code(s, 4, "EHOSTUNREACH")),
    ("reply code 5: ECONNREFUSED", |s| code(s, 5, "ECONNREFUSED")),
    ("reply code 6: ETIMEDOUT", |s| code(s, 6, "ETIMEDOUT")),
    ("onion service not found (F0): EHOSTUNREACH", |s| {
        code(s, 0xf0, "EHOSTUNREACH")
    }),
    ("a proxy that dies within its reply: an error", |s| {
        s.server
            .script(|x| x.behaviour = Behaviour::DieAfterSending(7));
        Ok(fails_in_time(&s.client("blocking", "198.51.100.7")?))
    }),
    ("a proxy that never answers: an error in time", |s| {
        s.server.script(|x| x.behaviour = Behaviour::Mute);
        Ok(fails_in_time(&s.client("blocking", "198.51.100.7")?))
    }),
    (
        "a proxy that would ignore the credentials is refused",
        |s| {
            s.server.script(|x| x.behaviour = Behaviour::Method(0));
            Ok(fails_in_time(&s.client("blocking", "198.51.100.7")?) && s.server.take().is_empty())
        },
    ),
    ("getpeername is the destination, not the proxy", |s| {
        let o = s.python("import socket; s = socket.create_connection(('198.51.100.7', 80)); print(s.getpeername())")?;
        Ok(s.says(&o, "('198.51.100.7', 80)"))
    }),
    (
        "an event loop goes on: 20 asyncio connections, 300 ms per answer, no gap over 50 ms",
        |s| {
            s.server.script(|x| x.delay = Duration::from_millis(300));
            let text = std::fs::read_to_string(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/vectors/asyncio_ticker.py"
            ))?;
            // A busy machine stalls anybody now and then; what stalls by design stalls each time.
            for _ in 0..if s.who == Who::Uwt { 5 } else { 1 } {
                let o = s.run(&["python3", "-c", &text, "198.51.100.7", "80", "20"])?;
                let n: Vec<u64> = o
                    .out
                    .split_whitespace()
                    .filter_map(|w| w.parse().ok())
                    .collect();
                if matches!(n[..], [20, gap, _] if gap <= 50) {
                    return Ok(true);
                }
            }
            Ok(false)
        },
    ),
    ("one round trip of the proxy per connection", |s| {
        // Greeting, authentication and request in one segment: nothing of it waited for an answer.
        s.client("blocking", "198.51.100.7")?;
        let r = s.server.take();
        Ok(r.len() == 1 && r[0].pipelined)
    }),
    ("names travel to the proxy, no lookup before", |s| {
        s.client("blocking", "a.example")?;
        let r = s.server.take();
        Ok(r.len() == 1 && r[0].host == "a.example")
    }),
    ("AF_INET6 lookups", |s| {
        let o = s.python("import socket as s; a = s.getaddrinfo('a.example', 80, s.AF_INET6, s.SOCK_STREAM)[0]; c = s.socket(s.AF_INET6); c.connect(a[4]); print('ok')")?;
        Ok(s.says(&o, "ok"))
    }),
    ("IPv6 destinations", |s| {
        let o =
            s.python("import socket; socket.create_connection(('2001:db8::7', 80)); print('ok')")?;
        Ok(s.says(&o, "ok"))
    }),
    ("AI_CANONNAME is the name", |s| {
        let o = s.python("import socket as s; print(s.getaddrinfo('a.example', 80, type=s.SOCK_STREAM, flags=s.AI_CANONNAME)[0][3])")?;
        Ok(s.says(&o, "a.example"))
    }),
    ("gethostbyname_r", |s| {
        let o = s.run(&["getent", "hosts", "a.example"])?;
        Ok(o.code() == 0 && o.escapes.is_empty())
    }),
    (
        "5,000 names in one process, each with an address of its own",
        |s| {
            let o = s.python("import socket; print(len({socket.gethostbyname('h%d.example' % i) for i in range(5000)}))")?;
            Ok(s.says(&o, "5000"))
        },
    ),
    ("300 onion names in one process", |s| {
        let o = s.python("import socket; print(len({socket.gethostbyname('h%d.onion' % i) for i in range(300)}))")?;
        Ok(s.says(&o, "300"))
    }),
    ("a parent resolves, a child connects", |s| {
        let o = s.python("import os, socket, sys; a = socket.gethostbyname('a.example'); print(os.system('%s -c \"import socket; socket.create_connection((\\'%s\\', 80))\"' % (sys.executable, a)))")?;
        Ok(s.says(&o, "0")
            && s.server
                .take()
                .iter()
                .any(|r| r.command == 1 && r.host == "a.example"))
    }),
    ("loopback services directly, in the same process", |s| {
        let web = uwt_tests::http::listen("127.0.0.1:0", None)?.port();
        let o = s.python(&format!("import urllib.request as u; print(u.urlopen('http://127.0.0.1:{web}/x').read().decode(), end=''); u.urlopen('http://198.51.100.7/'); print('ok')"))?;
        Ok(o.out.starts_with("GET /x") && o.out.ends_with("ok\n") && s.server.take().len() == 1)
    }),
    ("two runs have credentials that differ", |s| {
        s.client("blocking", "a.example")?;
        s.client("blocking", "a.example")?;
        let r = s.server.take();
        let r: Vec<_> = r.iter().filter(|r| r.command == 1).collect();
        Ok(r.len() == 2 && r[0].credentials.is_some() && r[0].credentials != r[1].credentials)
    }),
    ("two processes of a run have credentials that differ", |s| {
        let client = s.world.bed.compile(
            "client",
            "cc",
            "-O1 -Wno-unused-result -lpthread",
            "client.c",
        )?;
        let line = format!(
            "{0} blocking a.example 80; {0} blocking a.example 80",
            client.display()
        );
        s.run(&["sh", "-c", &line])?;
        let r = s.server.take();
        let r: Vec<_> = r.iter().filter(|r| r.command == 1).collect();
        Ok(r.len() == 2 && r[0].credentials.is_some() && r[0].credentials != r[1].credentials)
    }),
    ("two connections of a process have the same", |s| {
        s.python(
            "import socket\nfor i in range(2): socket.create_connection(('198.51.100.7', 80))",
        )?;
        let r = s.server.take();
        Ok(r.len() == 2 && r[0].credentials.is_some() && r[0].credentials == r[1].credentials)
    }),
    ("a number closed and used again", |s| {
        let o = s.python("import os, socket\na = socket.create_connection(('198.51.100.7', 80)); b = socket.socket(); os.dup2(b.fileno(), a.fileno()); a.connect(('198.51.100.8', 80)); print(a.getpeername()[0])")?;
        Ok(s.says(&o, "198.51.100.8"))
    }),
    ("vfork, exec, then connect", |s| {
        let o = s.python("import subprocess, socket; subprocess.run(['true'], close_fds=False); socket.create_connection(('198.51.100.7', 80)); print('ok')")?;
        Ok(s.says(&o, "ok"))
    }),
    ("fork in a threaded program that connects", |s| {
        let o = s.python(
            "
import os, socket, threading, encodings.idna
stop = False
def work():
    while not stop:
        socket.create_connection(('198.51.100.7', 80)).close()
ts = [threading.Thread(target=work) for _ in range(3)]
for t in ts: t.start()
bad = 0
for i in range(20):
    p = os.fork()
    if p == 0:
        try:
            socket.create_connection(('198.51.100.8', 80), 5).close(); os._exit(0)
        except OSError:
            os._exit(1)
    bad += os.waitpid(p, 0)[1] != 0
stop = True
for t in ts: t.join()
print('bad', bad)",
        )?;
        Ok(s.says(&o, "bad 0"))
    }),
    ("a closed descriptor table, then a lookup", |s| {
        let vectors = s.world.bed.vectors()?;
        let o = s.run(&[&vectors.to_string_lossy(), "closed_all"])?;
        Ok(o.code() == 0 && o.escapes.is_empty())
    }),
    ("no output of its own", |s| {
        let o = s.client("blocking", "a.example")?;
        Ok(o.err.is_empty() && o.out.starts_with("connected"))
    }),
    ("the command's exit status, signals too", |s| {
        Ok(s.run(&["sh", "-c", "exit 7"])?.code() == 7
            && s.run(&["sh", "-c", "kill -TERM $$"])?.code() == 143)
    }),
    ("a static program is refused, not run in the clear", |s| {
        let program = s.world.bed.compile("static", "cc", "-static", "plain.c")?;
        let o = s.run(&[&program.to_string_lossy()])?;
        Ok(o.escapes.is_empty() && o.code() != 0)
    }),
];

type Seen = Arc<Mutex<BTreeMap<usize, BTreeMap<Who, bool>>>>;

/// One test per behaviour, and the table at the end.
pub fn tests(world: &Arc<World>) -> Vec<Trial> {
    let seen: Seen = Arc::default();
    let mut all = Vec::new();
    for (i, (name, check)) in CHECKS.iter().enumerate() {
        let seen = seen.clone();
        all.push(world.test(format!("peers::{name}"), move |w| {
            for (who, tool) in WHO {
                if who != Who::Uwt && !has(tool) {
                    continue;
                }
                let server = w.server()?;
                let subject = Subject {
                    world: w,
                    who,
                    server,
                };
                let passes = check(&subject)?;
                if let Ok(mut seen) = seen.lock() {
                    seen.entry(i).or_default().insert(who, passes);
                }
                ensure!(passes || who != Who::Uwt, "uwt does not");
            }
            Ok(())
        }));
    }
    all.push(world.test("peers::table", move |_| {
        let seen = seen.lock().map_err(|e| e.to_string())?;
        if seen.len() == CHECKS.len() && std::env::var_os("UWT_TEST_WRITE_DOCS").is_some() {
            std::fs::write(
                concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PEERS.md"),
                table(&seen),
            )?;
        }
        Ok(())
    }));
    all
}

fn table(seen: &BTreeMap<usize, BTreeMap<Who, bool>>) -> String {
    let mut out = String::from(
        "# The same behaviour, asked of the peers\n\n\
         Written by the tests (`UWT_TEST_WRITE_DOCS=1 make behaviour`), from one run against Debian's torsocks (with `-i`)\n\
         and proxychains4 (with `proxy_dns` and loopback as `localnet`). What gets out is in LEAK-MATRIX.md.\n\n| behaviour |",
    );
    for (_, name) in WHO {
        let _ = write!(out, " {name} |");
    }
    out.push_str("\n| --- | --- | --- | --- |\n");
    let mut count: BTreeMap<Who, usize> = BTreeMap::new();
    for (i, (name, _)) in CHECKS.iter().enumerate() {
        let _ = write!(out, "| {name} |");
        for (who, _) in WHO {
            let cell = match seen.get(&i).and_then(|r| r.get(&who)) {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "not run",
            };
            *count.entry(who).or_default() += usize::from(cell == "yes");
            let _ = write!(out, " {cell} |");
        }
        out.push('\n');
    }
    out.push_str("| **in all** |");
    for (who, _) in WHO {
        let _ = write!(
            out,
            " {} of {} |",
            count.get(&who).unwrap_or(&0),
            CHECKS.len()
        );
    }
    out.push('\n');
    out
}
