//! A small web server: what commands fetch through Tor.
//!
//! `/bytes/N` gives N zero bytes; a file below the folder it serves gives that; anything else tells what was
//! asked for, of which host.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Answers requests on one connection until it ends. `files`: a folder to serve.
pub fn serve<S: Read + Write>(stream: S, files: Option<&Path>) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(8192, stream);
    loop {
        let mut line = String::new();
        (&mut stream).take(8192).read_line(&mut line)?;
        // The end, or ssh's banner, say: no use in waiting for more.
        if !line.contains(" HTTP/1.") {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        let (method, path) = (
            words.next().unwrap_or(""),
            words.next().unwrap_or("/").to_owned(),
        );
        let head_only = method == "HEAD";
        // `curl --proxy http://..` asks for a whole URL.
        let path = path.strip_prefix("http://").map_or(path.clone(), |p| {
            format!("/{}", p.split_once('/').map_or("", |(_, p)| p))
        });
        let (mut host, mut close, mut length) = (String::new(), false, 0usize);
        loop {
            let mut header = String::new();
            if (&mut stream).take(8192).read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            let (name, value) = header.split_once(':').unwrap_or(("", ""));
            match name.to_ascii_lowercase().as_str() {
                "host" => host = value.trim().to_owned(),
                "connection" => close = value.trim().eq_ignore_ascii_case("close"),
                "content-length" => length = value.trim().parse().unwrap_or(0),
                _ => {}
            }
        }
        io::copy(&mut (&mut stream).take(length as u64), &mut io::sink())?;
        let out = stream.get_mut();
        if let Some(n) = path
            .strip_prefix("/bytes/")
            .and_then(|n| n.parse::<u64>().ok())
        {
            head(out, "200 OK", n)?;
            let zeroes = [0u8; 65536];
            let mut left = n;
            while left > 0 && !head_only {
                let k = left.min(zeroes.len() as u64) as usize;
                out.write_all(&zeroes[..k])?;
                left -= k as u64;
            }
        } else {
            let plain = path.split('?').next().unwrap_or("").trim_start_matches('/');
            let safe = !plain.split('/').any(|w| w == "..");
            let file = files.filter(|_| safe).map(|f| f.join(plain));
            let (status, body) = match file.map(std::fs::read) {
                Some(Ok(b)) => ("200 OK", b),
                Some(Err(_)) => ("404 Not Found", b"no such file\n".to_vec()),
                None => (
                    "200 OK",
                    format!("{method} {path} of {host}\n").into_bytes(),
                ),
            };
            head(out, status, body.len() as u64)?;
            if !head_only {
                out.write_all(&body)?;
            }
        }
        out.flush()?;
        if close || line.trim_end().ends_with("HTTP/1.0") {
            return Ok(());
        }
    }
}

fn head(out: &mut impl Write, status: &str, length: u64) -> io::Result<()> {
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nContent-Type: application/octet-stream\r\n\r\n"
    );
    out.write_all(text.as_bytes())
}

/// Listens on `address` for as long as the process lives; gives where.
pub fn listen(address: &str, files: Option<PathBuf>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let at = listener.local_addr()?;
    let files = files.map(Arc::new);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let files = files.clone();
            std::thread::spawn(move || serve(stream, files.as_ref().map(|f| f.as_path())));
        }
    });
    Ok(at)
}
