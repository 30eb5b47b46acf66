//! What uwt costs, as ratios against torsocks, proxychains4 and the bare command, all in one run.
//!
//! The levels of one row take turns, so that whatever else the machine does meets them all; a cell is the median.
//! `uwt-bench [WORDS]` measures the rows whose names contain the words. Columns: the row's unit, then the ratio to the row's base. No figure here is a promise in seconds.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};
use uwt_tests::bed::{Bed, has};
use uwt_tests::socks::Server;
use uwt_tests::{http, netns};

/// How a command is run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Bare,
    /// Level preload.
    Uwt,
    /// Level netns, the shim's way.
    Netns,
    /// Level netns, the catch-all's way: started by a static program, without the shim.
    CatchAll,
    /// By uwt's wrapper.
    Wrapper,
    /// By Whonix's wrapper, which is bash.
    Whonix,
    Torsocks,
    Proxychains,
    /// curl's own SOCKS client.
    Native,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            How::Bare => "bare",
            How::Uwt => "uwt preload",
            How::Netns => "uwt netns",
            How::CatchAll => "uwt netns, no shim",
            How::Wrapper => "uwt's wrapper",
            How::Whonix => "Whonix's wrapper",
            How::Torsocks => "torsocks",
            How::Proxychains => "proxychains4",
            How::Native => "curl's own SOCKS",
        }
    }
}

struct Bench {
    bed: Bed,
    server: Server,
    web: u16,
    conf: PathBuf,
    rows: Vec<Row>,
    /// Rows whose names contain this are measured.
    only: String,
}

struct Row {
    what: String,
    unit: &'static str,
    /// The median of each, in the row's unit; the first is the base.
    cells: Vec<(How, Option<f64>)>,
    /// Whether more is better.
    rate: bool,
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

impl Bench {
    fn command(&self, how: How, words: &[&str]) -> std::process::Command {
        let port = self.server.port().to_string();
        let uwt = self.bed.path("bin/uwt").display().to_string();
        let before: Vec<&str> = match how {
            How::Bare | How::Native | How::Wrapper | How::Whonix => Vec::new(),
            How::Uwt => vec![&uwt, "-P", &port, "--level", "preload"],
            How::Netns => vec![&uwt, "-P", &port, "--level", "netns"],
            How::CatchAll => vec![&uwt, "-P", &port, "--level", "netns", "busybox", "env"],
            How::Torsocks => vec!["torsocks", "-a", "127.0.0.1", "-P", &port],
            How::Proxychains => vec!["proxychains4", "-q", "-f", self.conf.to_str().unwrap_or("")],
        };
        let proxy = format!("socks5h://127.0.0.1:{port}");
        let after: Vec<&str> = match how {
            How::Native => vec!["--proxy", &proxy, "--proxy-user", "<torS0X>0:x"],
            _ => Vec::new(),
        };
        let all: Vec<&str> = before.iter().chain(words).chain(&after).copied().collect();
        let program = match how {
            How::Wrapper => self.bed.path("wrapped").join(all[0]),
            How::Whonix => self
                .bed
                .path("whonix")
                .join(all[0])
                .with_extension("anondist"),
            _ => PathBuf::from(all[0]),
        };
        let mut c = std::process::Command::new(program);
        c.args(&all[1..])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.bed.path("home"))
            .env("UWT_NATIVE_PROXY", "off")
            .env("TORSOCKS_LOG_LEVEL", "1")
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        c
    }

    /// One row: each `how` in turns, `rounds` times; `value` turns a run's time and output into the cell.
    fn row(
        &mut self,
        what: &str,
        unit: &'static str,
        rate: bool,
        rounds: usize,
        hows: &[(How, &[&str])],
        value: impl Fn(Duration, &str) -> Option<f64>,
    ) -> io::Result<()> {
        if !what.contains(&self.only) {
            return Ok(());
        }
        eprintln!("  {what}");
        let mut seen: Vec<Vec<f64>> = vec![Vec::new(); hows.len()];
        for round in 0..=rounds {
            for (i, (how, words)) in hows.iter().enumerate() {
                let tool = match how {
                    How::Torsocks => "torsocks",
                    How::Proxychains => "proxychains4",
                    _ => "",
                };
                if !tool.is_empty() && !has(tool) {
                    continue;
                }
                let mut command = self.command(*how, words);
                let begun = Instant::now();
                let out = command.stdout(Stdio::piped()).output()?;
                let took = begun.elapsed();
                // The first round warms the caches.
                if round > 0 && out.status.success() {
                    seen[i].extend(value(took, &String::from_utf8_lossy(&out.stdout)));
                }
            }
        }
        let cells = hows
            .iter()
            .zip(seen)
            .map(|((h, _), v)| (*h, median(v)))
            .collect();
        self.rows.push(Row {
            what: what.to_owned(),
            unit,
            cells,
            rate,
        });
        Ok(())
    }

    fn table(&self) -> String {
        let mut out = String::new();
        for r in &self.rows {
            let base = r.cells.first().and_then(|c| c.1);
            let _ = writeln!(
                out,
                "{} ({}{})",
                r.what,
                r.unit,
                if r.rate { ", more is better" } else { "" }
            );
            for (how, v) in &r.cells {
                let _ = match (v, base) {
                    (Some(v), Some(b)) => {
                        writeln!(out, "    {:<18}{v:>12.2}{:>9.3} x", how.name(), v / b)
                    }
                    (Some(v), None) => writeln!(out, "    {:<18}{v:>12.2}", how.name()),
                    (None, _) => writeln!(out, "    {:<18}{:>12}", how.name(), "failed"),
                };
            }
        }
        out
    }

    /// A command that is typed as always. Whonix's wrapper is measured where `UWT_BENCH_WHONIX` names the folder of its
    /// source (<https://github.com/Whonix/uwt>): it is not ours to carry.
    fn wrappers(&mut self) -> io::Result<()> {
        let ours = self.bed.path("wrapped");
        std::fs::create_dir_all(&ours)?;
        symlink(self.bed.path("bin/uwt"), ours.join("true"))?;
        std::fs::copy("/usr/bin/true", ours.join("true.anondist-orig"))?;
        let words: &[&str] = &["true"];
        let mut hows = vec![(How::Wrapper, words)];
        match std::env::var_os("UWT_BENCH_WHONIX").map(PathBuf::from) {
            Some(source) => {
                let theirs = self.bed.path("whonix");
                std::fs::create_dir_all(&theirs)?;
                std::fs::copy(
                    source.join("usr/bin/wget.anondist"),
                    theirs.join("true.anondist"),
                )?;
                std::fs::copy("/usr/bin/true", theirs.join("true.anondist-orig"))?;
                // Where its scripts look for each other; seen by this process alone.
                for folder in ["/usr/libexec", "/etc"] {
                    let below = source.join(folder.trim_start_matches('/'));
                    let options = format!("lowerdir={}:{folder}", below.display());
                    let mount = std::process::Command::new("mount")
                        .args(["-t", "overlay", "-o", &options, "overlay", folder])
                        .status()?;
                    if !mount.success() {
                        return Err(io::Error::other(format!("{folder}: no overlay")));
                    }
                }
                hows.push((How::Whonix, words));
            }
            None => eprintln!("  (Whonix's wrapper is skipped: UWT_BENCH_WHONIX names no source)"),
        }
        hows.push((How::Bare, words));
        let ms = |t: Duration, _: &str| Some(t.as_secs_f64() * 1000.0);
        let what = "start-up of a wrapped command: `true`";
        self.row(what, "ms", false, 200, &hows, ms)?;
        // What the wrapper itself costs.
        let Some(row) = self.rows.last().filter(|r| r.what == what) else {
            return Ok(());
        };
        let bare = row.cells.last().and_then(|c| c.1);
        let over = |v: Option<f64>| Some(v? - bare?);
        let mut cells: Vec<_> = row.cells.iter().map(|c| (c.0, over(c.1))).collect();
        cells.pop();
        self.rows.push(Row {
            what: "the same, over the bare command".to_owned(),
            unit: "ms",
            cells,
            rate: false,
        });
        Ok(())
    }

    fn all(&mut self) -> io::Result<()> {
        let ms = |t: Duration, _: &str| Some(t.as_secs_f64() * 1000.0);
        let words: &[&str] = &["true"];
        self.row(
            "start-up: `X true`",
            "ms",
            false,
            200,
            &[
                (How::Proxychains, words),
                (How::Uwt, words),
                (How::Netns, words),
                (How::Torsocks, words),
                (How::Bare, words),
            ],
            ms,
        )?;
        self.wrappers()?;
        // curl tells the time to the first byte itself, without its own start.
        let first: &[&str] = &[
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{time_starttransfer}",
            "http://first.example/",
        ];
        for delay in [0u64, 50, 300] {
            // The server answers each message after this long: a round trip of that length.
            self.server
                .script(|s| s.delay = Duration::from_millis(delay));
            self.row(
                &format!("first byte, {delay} ms per round trip of the proxy"),
                "ms",
                false,
                if delay == 0 { 30 } else { 5 },
                &[
                    (How::Native, first),
                    (How::Uwt, first),
                    (How::Netns, first),
                    (How::CatchAll, first),
                    (How::Torsocks, first),
                    (How::Proxychains, first),
                ],
                |_, out| out.trim().parse().ok().map(|s: f64| s * 1000.0),
            )?;
        }
        self.server.script(|s| s.delay = Duration::ZERO);

        let direct = format!("http://127.0.0.1:{}/bytes/1000000000", self.web);
        let speed = |url: &'static str| {
            [
                "curl",
                "-s",
                "-o",
                "/dev/null",
                "-w",
                "%{speed_download}",
                url,
            ]
        };
        let bare: &[&str] = &[
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{speed_download}",
            &direct,
        ];
        let far = speed("http://bulk.example/bytes/1000000000");
        self.row(
            "throughput of one stream, 1 GB",
            "MB/s",
            true,
            21,
            &[
                (How::Bare, bare),
                (How::Uwt, &far),
                (How::Netns, &far),
                (How::CatchAll, &far),
                (How::Torsocks, &far),
                (How::Proxychains, &far),
                (How::Native, &far),
            ],
            |_, out| out.trim().parse().ok().map(|s: f64| s / 1e6),
        )?;

        let short = "
import socket, sys, time
t = time.monotonic()
for i in range(1000):
    s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); s.close()
print(time.monotonic() - t)";
        // Bare, the same server without the handshake: its backlog takes thousands at once.
        let port = self.server.port().to_string();
        let here: &[&str] = &["python3", "-c", short, "127.0.0.1", &port];
        let there: &[&str] = &["python3", "-c", short, "198.51.100.7", "80"];
        let micro = |n: f64| {
            move |_: Duration, out: &str| out.trim().parse().ok().map(|s: f64| s * 1e6 / n)
        };
        self.row(
            "1,000 short connections, each",
            "us",
            false,
            5,
            &[
                (How::Bare, here),
                (How::Uwt, there),
                (How::Netns, there),
                (How::CatchAll, there),
                (How::Torsocks, there),
                (How::Proxychains, there),
            ],
            micro(1000.0),
        )?;

        let many = "
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
t = time.monotonic(); held = []
for i in range(10000):
    s = socket.socket(); s.connect((sys.argv[1], int(sys.argv[2]))); held.append(s)
took = time.monotonic() - t
import os
def kb(pid): return int([l for l in open(f'/proc/{pid}/status') if l.startswith('VmRSS')][0].split()[1])
def broker(pid):
    try: return open(f'/proc/{pid}/comm').read() == 'uwt-broker\\n'
    except OSError: return False
print(took, kb('self'), sum(kb(p) for p in os.listdir('/proc') if p.isdigit() and broker(p)))";
        let here: &[&str] = &["python3", "-c", many, "127.0.0.1", &port];
        let there: &[&str] = &["python3", "-c", many, "198.51.100.7", "80"];
        let hows: [(How, &[&str]); 4] = [
            (How::Bare, here),
            (How::Uwt, there),
            (How::Torsocks, there),
            (How::Proxychains, there),
        ];
        let number = |i: usize| {
            move |_: Duration, out: &str| out.split_whitespace().nth(i)?.parse::<f64>().ok()
        };
        self.row(
            "10,000 connections open at once, each",
            "us",
            false,
            2,
            &hows,
            move |t, o| number(0)(t, o).map(|s| s * 100.0),
        )?;
        self.row(
            "the same: resident memory of the process",
            "MB",
            false,
            1,
            &hows,
            move |t, o| number(1)(t, o).map(|kb| kb / 1024.0),
        )?;
        self.row(
            "the same: resident memory of the broker",
            "MB",
            false,
            1,
            &[(How::Netns, there), (How::CatchAll, there)],
            move |t, o| number(2)(t, o).map(|kb| kb / 1024.0),
        )?;
        // What the broker's own processor time moves, whatever the two ends do meanwhile.
        let busy = "
import os, sys, urllib.request
n = 0
with urllib.request.urlopen(sys.argv[1]) as r:
    b = bytearray(1 << 20)
    while k := r.readinto(b): n += k
def ticks(pid):
    try:
        if open(f'/proc/{pid}/comm').read() != 'uwt-broker\\n': return 0
        f = open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()
        return int(f[11]) + int(f[12])
    except OSError: return 0
t = sum(ticks(p) for p in os.listdir('/proc') if p.isdigit())
print(n / (t / os.sysconf('SC_CLK_TCK')))";
        let bulk: &[&str] = &[
            "python3",
            "-c",
            busy,
            "http://bulk.example/bytes/4000000000",
        ];
        self.row(
            "the broker's relay, 4 GB, per second of its processor time",
            "MB/s",
            true,
            3,
            &[(How::Netns, bulk), (How::CatchAll, bulk)],
            |_, out| out.trim().parse().ok().map(|s: f64| s / 1e6),
        )?;

        let calls = self.bed.compile("calls", "cc", "-O2", "calls.c")?;
        let calls = calls.to_string_lossy().into_owned();
        for call in [
            "read",
            "write",
            "close",
            "dup",
            "fcntl",
            "poll",
            "epoll_wait",
            "getsockopt",
        ] {
            let words: &[&str] = &[&calls, call];
            self.row(
                &format!("a hooked call that has nothing to do with the network: {call}"),
                "ns",
                false,
                5,
                &[
                    (How::Bare, words),
                    (How::Uwt, words),
                    (How::Torsocks, words),
                    (How::Proxychains, words),
                ],
                |_, out| out.trim().parse().ok(),
            )?;
        }
        Ok(())
    }
}

fn bench() -> io::Result<()> {
    netns::enter()?;
    // A server thread per connection, and 10,000 of them. Where that cannot be, the row fails and says so.
    netns::raise_descriptors();
    let bed = Bed::make()?;
    let server = Server::listen("127.0.0.1:9350", None)?;
    let conf = bed.path("work/proxychains.conf");
    let text =
        "strict_chain\nproxy_dns\nremote_dns_subnet 224\n[ProxyList]\nsocks5 127.0.0.1 9350\n";
    std::fs::write(&conf, text)?;
    let web = http::listen("127.0.0.1:0", None)?.port();
    let mut bench = Bench {
        bed,
        server,
        web,
        conf,
        rows: Vec::new(),
        only: std::env::args().nth(1).unwrap_or_default(),
    };
    eprintln!("measuring:");
    bench.all()?;
    print!("{}", bench.table());
    Ok(())
}

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("uwt-bench: {e}");
            ExitCode::FAILURE
        }
    }
}
