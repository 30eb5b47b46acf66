//! The shim's log: nothing unless asked; then to standard error or a file, in one write a line.
//!
//! Lines are built on the stack: no allocation, no std I/O, usable from a signal handler.

use crate::{state, sys};
use core::ffi::CStr;
use core::fmt::{self, Write};
use uwt_core::handoff::LogLevel;

/// A line under construction; what does not fit is cut off.
pub struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Line {
    fn new() -> Line {
        Line {
            bytes: [0; 512],
            len: 0,
        }
    }
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        // One byte is kept for the newline.
        for b in s.bytes().take(511 - self.len) {
            self.bytes[self.len] = b;
            self.len += 1;
        }
        Ok(())
    }
}

/// Bytes from the program or the network, shown without control characters.
pub struct Shown<'a>(pub &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                f.write_char(if c.is_control() { '?' } else { c })?;
            }
            if !chunk.invalid().is_empty() {
                f.write_char('?')?;
            }
        }
        Ok(())
    }
}

/// Writes `uwt[PID]: MESSAGE`, if the log is at least at `level`.
pub fn write(level: LogLevel, message: fmt::Arguments<'_>) {
    let state = state::get();
    if state.log_level() < level {
        return;
    }
    let mut line = Line::new();
    let _ = write!(line, "uwt[{}]: {message}", sys::getpid());
    put(&mut line, state.log_file());
}

fn put(line: &mut Line, file: &[u8]) {
    line.bytes[line.len] = b'\n';
    let text = &line.bytes[..line.len + 1];
    let mut path = [0u8; 4096];
    if file.is_empty() || file.len() >= path.len() {
        let _ = sys::write(2, text);
        return;
    }
    path[..file.len()].copy_from_slice(file);
    let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | libc::O_NOFOLLOW;
    if let Ok(path) = CStr::from_bytes_until_nul(&path) {
        if let Ok(fd) = sys::open(path, flags, 0o600) {
            let _ = sys::write(fd, text);
            sys::close(fd);
        }
    }
}

/// Logs something refused and why.
macro_rules! refused {
    ($($arg:tt)*) => {
        crate::log::write(uwt_core::handoff::LogLevel::Refusals, format_args!($($arg)*))
    };
}
pub(crate) use refused;

/// Logs what a person who debugs wants to see.
macro_rules! debug {
    ($($arg:tt)*) => {
        crate::log::write(uwt_core::handoff::LogLevel::Debug, format_args!($($arg)*))
    };
}
pub(crate) use debug;

/// Says what panicked, on standard error whatever the log's level, without std's backtrace.
pub fn panic(info: &std::panic::PanicHookInfo<'_>) {
    let mut line = Line::new();
    let _ = write!(line, "uwt[{}]: ", sys::getpid());
    let _ = match info.location() {
        Some(l) => write!(line, "internal error at {}:{}", l.file(), l.line()),
        None => write!(line, "internal error"),
    };
    let _ = write!(
        line,
        "; the program is ended, nothing was sent in the clear"
    );
    put(&mut line, b"");
    sys::abort();
}
