//! A private, real Tor network on loopback: three directory authorities, two exits, one client, an
//! onion service. Up in some ten seconds; gone with the process that made it.

use crate::control::Control;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The client's SOCKS port.
pub const SOCKS: u16 = 9050;
/// A second one, for commands that have one of their own.
pub const SOCKS_TWO: u16 = 9052;
/// The client's control port.
pub const CONTROL: &str = "127.0.0.1:9051";
/// Where the onion service's port 80 leads.
pub const WEB: &str = "127.0.0.1:18080";

const AUTHORITIES: usize = 3;
const EXITS: usize = 2;

/// The network; ended when dropped.
pub struct Network {
    folder: PathBuf,
    processes: Vec<Child>,
    /// The onion service's name.
    pub onion: String,
}

// From tor's own manual: TestingTorNetwork and what a network of few relays in few seconds needs.
// V3AuthVoteDelay and V3AuthDistDelay together must be less than half of V3AuthVotingInterval.
const COMMON: &str = "TestingTorNetwork 1
ShutdownWaitLength 0
DisableDebuggerAttachment 0
ContactInfo none
AssumeReachable 1
ExtendAllowPrivateAddresses 1
ClientRejectInternalAddresses 0
ClientDNSRejectInternalAddresses 0
EnforceDistinctSubnets 0
PathsNeededToBuildCircuits 0.25
TestingDirAuthVoteExit *
TestingDirAuthVoteHSDir *
TestingDirAuthVoteGuard *
TestingMinExitFlagThreshold 0
V3AuthNIntervalsValid 2
V3AuthVotingInterval 10 seconds
V3AuthVoteDelay 2 seconds
V3AuthDistDelay 2 seconds
TestingV3AuthInitialVotingInterval 5 seconds
TestingV3AuthInitialVoteDelay 2 seconds
TestingV3AuthInitialDistDelay 2 seconds
Log notice stdout
";

/// A client that doubts a circuit probes it with a BEGIN to port 25 of a made-up address in 0.0.0.0/8
/// (tor's `pathbias_send_usable_probe`). An exit that tries to go there is what a sink would call an escape.
const EXIT_POLICY: &str = "reject 0.0.0.0/8:*,accept *:*";

fn folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

fn tool(name: &str) -> Command {
    let mut c = Command::new(name);
    c.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    c
}

fn output(mut command: Command, input: &[u8]) -> io::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("{name}: {e}; install tor")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input)?;
    }
    let out = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if out.status.success() {
        return Ok(text);
    }
    let why = String::from_utf8_lossy(&out.stderr);
    Err(io::Error::other(format!("{name}: {text}{why}")))
}

impl Network {
    /// Brings the network up in `at`, a folder that is made. Exits ask the resolver at 127.0.0.1:53.
    pub fn start(at: &Path) -> io::Result<Network> {
        folder(at)?;
        let mut network = Network {
            folder: at.to_owned(),
            processes: Vec::new(),
            onion: String::new(),
        };
        fs::write(at.join("resolv.conf"), "nameserver 127.0.0.1\n")?;
        let mut authorities = String::new();
        let mut torrcs = Vec::new();
        for i in 0..AUTHORITIES {
            let (name, or, dir) = (format!("auth{i}"), 15100 + i, 15200 + i);
            let data = at.join(&name);
            let keys = data.join("keys");
            folder(&keys)?;
            let mut gencert = tool("tor-gencert");
            gencert
                .args([
                    "--create-identity-key",
                    "-m",
                    "12",
                    "--passphrase-fd",
                    "0",
                    "-a",
                ])
                .arg(format!("127.0.0.1:{dir}"))
                .arg("-i")
                .arg(keys.join("authority_identity_key"))
                .arg("-s")
                .arg(keys.join("authority_signing_key"))
                .arg("-c")
                .arg(keys.join("authority_certificate"));
            output(gencert, b"pw\n")?;
            let certificate = fs::read_to_string(keys.join("authority_certificate"))?;
            let v3 = certificate
                .lines()
                .find_map(|l| l.strip_prefix("fingerprint "))
                .ok_or_else(|| io::Error::other("tor-gencert gave no fingerprint"))?;
            let torrc = at.join(format!("{name}.torrc"));
            let text = format!(
                "{COMMON}DataDirectory {}\nNickname {name}\nAddress 127.0.0.1\nSocksPort 0\nORPort {or}\n\
                 DirPort {dir}\nAuthoritativeDirectory 1\nV3AuthoritativeDirectory 1\nExitPolicy reject *:*\n",
                data.display()
            );
            fs::write(&torrc, text)?;
            // Any authority will do for tor to tell this one's fingerprint.
            let mut list = tool("tor");
            list.arg("--list-fingerprint").arg("-f").arg(&torrc);
            list.args(["--quiet", "--DirAuthority"]);
            list.arg(format!(
                "x orport={or} v3ident={v3} 127.0.0.1:{dir} {}",
                "0".repeat(40)
            ));
            let listed = output(list, b"")?;
            let fingerprint: String = listed
                .lines()
                .rev()
                .find_map(|l| l.strip_prefix(&format!("{name} ")))
                .ok_or_else(|| io::Error::other("tor told no fingerprint"))?
                .split_whitespace()
                .collect();
            authorities += &format!(
                "DirAuthority {name} orport={or} no-v2 v3ident={v3} 127.0.0.1:{dir} {fingerprint}\n"
            );
            torrcs.push(torrc);
        }
        for i in 0..EXITS {
            let name = format!("exit{i}");
            folder(&at.join(&name))?;
            let torrc = at.join(format!("{name}.torrc"));
            let text = format!(
                "{COMMON}DataDirectory {}\nNickname {name}\nAddress 127.0.0.1\nSocksPort 0\nORPort {}\n\
                 ExitRelay 1\nExitPolicy {EXIT_POLICY}\nExitPolicyRejectPrivate 0\nIPv6Exit 1\n\
                 ServerDNSResolvConfFile {}\nServerDNSDetectHijacking 0\nServerDNSTestAddresses\n",
                at.join(&name).display(),
                15300 + i,
                at.join("resolv.conf").display()
            );
            fs::write(&torrc, text)?;
            torrcs.push(torrc);
        }
        folder(&at.join("client"))?;
        folder(&at.join("hs"))?;
        let torrc = at.join("client.torrc");
        let text = format!(
            "{COMMON}DataDirectory {}\nSocksPort 127.0.0.1:{SOCKS}\nSocksPort 127.0.0.1:{SOCKS_TWO}\n\
             SocksPort [::1]:{SOCKS}\nSocksPort unix:{} WorldWritable\nControlPort {CONTROL}\n\
             CookieAuthentication 1\nHiddenServiceDir {}\nHiddenServicePort 80 {WEB}\n",
            at.join("client").display(),
            at.join("socks").display(),
            at.join("hs").display()
        );
        fs::write(&torrc, text)?;
        torrcs.push(torrc);
        let (say, hear) = mpsc::channel();
        for torrc in &torrcs {
            let mut text = fs::read_to_string(torrc)?;
            text += &authorities;
            // Should this process be killed, tor sees it and goes.
            text += &format!("__OwningControllerProcess {}\n", std::process::id());
            fs::write(torrc, text)?;
            let mut child = tool("tor")
                .arg("-f")
                .arg(torrc)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()?;
            let log = torrc.with_extension("log");
            if let Some(out) = child.stdout.take() {
                let say = torrc.ends_with("client.torrc").then(|| say.clone());
                std::thread::spawn(move || follow(out, &log, say));
            }
            network.processes.push(child);
        }
        drop(say);
        let limit = Duration::from_secs(120);
        hear.recv_timeout(limit).map_err(|_| {
            let log = fs::read_to_string(at.join("client.log")).unwrap_or_default();
            io::Error::other(format!("the Tor network did not come up:\n{log}"))
        })?;
        network.onion = fs::read_to_string(at.join("hs/hostname"))?
            .trim()
            .to_owned();
        network.ready()?;
        Ok(network)
    }

    /// Waits until the client knows every relay, and the network carries streams to its exits and one to the onion
    /// service: tor says that it is bootstrapped before any of it is so, and the consensus after the first, which
    /// has the relays that came late to it, throws over circuits that were made before. The web server that
    /// [`WEB`] names listens, and so does the resolver.
    ///
    /// # Errors
    /// What the last try met, when two minutes were not enough.
    pub fn ready(&self) -> io::Result<()> {
        let end = Instant::now() + Duration::from_secs(120);
        let wait = |what: &mut dyn FnMut() -> io::Result<()>| {
            while let Err(e) = what() {
                if Instant::now() > end {
                    let log =
                        fs::read_to_string(self.folder.join("client.log")).unwrap_or_default();
                    let why = format!("the private Tor network is not ready: {e}\n{log}");
                    return Err(io::Error::new(e.kind(), why));
                }
                // Tor tells of each circuit and descriptor, and of none whether it will do.
                std::thread::sleep(Duration::from_millis(200));
            }
            Ok(())
        };
        wait(&mut || match self.control()?.relays()? {
            n if n == AUTHORITIES + EXITS => Ok(()),
            n => Err(io::Error::other(format!("the client knows {n} relays"))),
        })?;
        for circuit in ["one", "two", "three", "four"] {
            wait(&mut || fetch(circuit, "ready.example", 18080))?;
        }
        wait(&mut || fetch("onion", &self.onion, 80))
    }

    /// The client's SOCKS port as a unix socket.
    pub fn unix(&self) -> PathBuf {
        self.folder.join("socks")
    }

    /// The control port's cookie.
    pub fn cookie(&self) -> PathBuf {
        self.folder.join("client/control_auth_cookie")
    }

    /// A connection to the client's control port.
    pub fn control(&self) -> io::Result<Control> {
        Control::open(CONTROL, &self.cookie())
    }
}

/// One page through the client's SOCKS port, on the circuit of that username.
fn fetch(username: &str, host: &str, port: u16) -> io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", SOCKS))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut answer = [0; 10];
    stream.write_all(b"\x05\x01\x02")?;
    stream.read_exact(&mut answer[..2])?;
    let username = [
        b"\x01",
        &[username.len() as u8][..],
        username.as_bytes(),
        b"\x01-",
    ];
    stream.write_all(&username.concat())?;
    stream.read_exact(&mut answer[..2])?;
    let request = [
        b"\x05\x01\x00\x03",
        &[host.len() as u8][..],
        host.as_bytes(),
        &port.to_be_bytes(),
    ];
    stream.write_all(&request.concat())?;
    stream.read_exact(&mut answer)?;
    if answer[1] != 0 {
        return Err(io::Error::other(format!("SOCKS reply {}", answer[1])));
    }
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = Vec::new();
    stream.read_to_end(&mut page)?;
    if page.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// Keeps a tor's log; says when it is bootstrapped.
fn follow(out: impl io::Read, log: &Path, say: Option<mpsc::Sender<()>>) {
    let Ok(mut file) = fs::File::create(log) else {
        return;
    };
    for line in BufReader::new(out).lines().map_while(Result::ok) {
        let _ = writeln!(file, "{line}");
        if line.contains("Bootstrapped 100%") {
            if let Some(say) = &say {
                let _ = say.send(());
            }
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for p in &mut self.processes {
            let _ = p.kill();
            let _ = p.wait();
        }
    }
}
