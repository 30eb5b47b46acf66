//! Tor's control port (control-spec): what circuits there are, and with which SOCKS credentials.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

/// A circuit that carries streams of a client's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circuit {
    /// Tor's number.
    pub id: String,
    /// The relays, by nickname.
    pub path: Vec<String>,
    /// SOCKS_USERNAME.
    pub username: String,
    /// SOCKS_PASSWORD.
    pub password: String,
}

/// A stream that was attached to a circuit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The circuit's number.
    pub circuit: String,
    /// HOST:PORT.
    pub target: String,
    /// SOCKS_PASSWORD.
    pub password: String,
}

/// A connection to the control port.
pub struct Control {
    lines: BufReader<TcpStream>,
}

fn quoted(line: &str, key: &str) -> String {
    let start = format!("{key}=\"");
    let Some(at) = line.find(&start) else {
        return String::new();
    };
    let mut out = String::new();
    let mut characters = line[at + start.len()..].chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => break,
            '\\' => out.extend(characters.next()),
            c => out.push(c),
        }
    }
    out
}

impl Control {
    /// Connects and authenticates by cookie.
    pub fn open(address: &str, cookie: &Path) -> io::Result<Control> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut control = Control {
            lines: BufReader::new(stream),
        };
        let cookie: String = std::fs::read(cookie)?
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        control.ask(&format!("AUTHENTICATE {cookie}"))?;
        Ok(control)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    /// Sends a command; gives the reply's lines.
    pub fn ask(&mut self, command: &str) -> io::Result<Vec<String>> {
        self.lines
            .get_mut()
            .write_all(format!("{command}\r\n").as_bytes())?;
        let mut all = Vec::new();
        loop {
            let line = self.line()?;
            if line.starts_with("250 ") {
                return Ok(all);
            }
            if line.starts_with('4') || line.starts_with('5') {
                return Err(io::Error::other(format!("{command}: {line}")));
            }
            if line.starts_with("250+") {
                loop {
                    let line = self.line()?;
                    if line == "." {
                        break;
                    }
                    all.push(line);
                }
            } else if let Some(rest) = line.strip_prefix("250-") {
                // A value of one line stands behind the key.
                all.push(rest.split_once('=').map_or(rest, |(_, v)| v).to_owned());
            }
        }
    }

    /// How many relays the consensus has that tor goes by.
    pub fn relays(&mut self) -> io::Result<usize> {
        let lines = self.ask("GETINFO ns/all")?;
        Ok(lines.iter().filter(|l| l.starts_with("r ")).count())
    }

    /// The circuits that carry a client's streams.
    pub fn circuits(&mut self) -> io::Result<Vec<Circuit>> {
        let mut all = Vec::new();
        for line in self.ask("GETINFO circuit-status")? {
            let password = quoted(&line, "SOCKS_PASSWORD");
            if password.is_empty() {
                continue;
            }
            let mut words = line.split(' ');
            let id = words.next().unwrap_or("").to_owned();
            let path = words.nth(1).unwrap_or("");
            let nick = |hop: &str| hop.split_once('~').map_or(hop, |(_, n)| n).to_owned();
            all.push(Circuit {
                id,
                path: path.split(',').map(nick).collect(),
                username: quoted(&line, "SOCKS_USERNAME"),
                password,
            });
        }
        Ok(all)
    }

    /// Turns stream events on.
    pub fn watch_streams(&mut self) -> io::Result<()> {
        self.ask("SETEVENTS STREAM").map(drop)
    }

    /// The next `n` streams of clients with credentials that succeed; Tor's own to its directories have none.
    pub fn streams(&mut self, n: usize) -> io::Result<Vec<Attached>> {
        let mut all = Vec::new();
        while all.len() < n {
            let line = self.line()?;
            let words: Vec<&str> = line.split(' ').collect();
            if let ["650", "STREAM", _, "SUCCEEDED", circuit, target, ..] = words[..] {
                let password = quoted(&line, "SOCKS_PASSWORD");
                if !password.is_empty() {
                    all.push(Attached {
                        circuit: circuit.to_owned(),
                        target: target.to_owned(),
                        password,
                    });
                }
            }
        }
        Ok(all)
    }
}
