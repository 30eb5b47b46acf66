//! Runs a command, with an end: it and all that it started are gone afterwards.

use crate::sink::Sink;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A command to run.
pub struct Run {
    command: Command,
    input: Option<Vec<u8>>,
    limit: Duration,
    scratch: OsString,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended; `None`: it had to be killed.
    pub status: Option<ExitStatus>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    /// What left beside Tor.
    pub escapes: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// Its exit code; a signal as the shell shows it; -1 if it was killed at the end of its time.
    pub fn code(&self) -> i32 {
        self.status
            .map_or(-1, |s| s.code().unwrap_or(128 + s.signal().unwrap_or(0)))
    }

    /// Itself if it ended with `code`, else all that is known, as a failure.
    pub fn expect(self, code: i32) -> Result<Outcome, String> {
        if self.code() == code {
            Ok(self)
        } else {
            Err(format!("exit code {}, not {code}: {self:#?}", self.code()))
        }
    }
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Run {
    /// A command with an environment of its own: PATH, HOME in `home`, nothing of the caller's.
    pub fn new(program: impl AsRef<OsStr>, home: &Path) -> Run {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", home)
            .env("LANG", "C.UTF-8")
            .env("TERM", "dumb")
            .current_dir(home);
        Run {
            command,
            input: None,
            limit: Duration::from_secs(60),
            scratch: home.into(),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, a: impl AsRef<OsStr>) -> Run {
        self.command.arg(a);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, a: impl IntoIterator<Item = S>) -> Run {
        self.command.args(a);
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Run {
        self.command.env(name, value);
        self
    }

    /// Where it runs.
    #[must_use]
    pub fn folder(mut self, folder: impl AsRef<Path>) -> Run {
        self.command.current_dir(folder);
        self
    }

    /// What it reads.
    #[must_use]
    pub fn input(mut self, data: impl Into<Vec<u8>>) -> Run {
        self.input = Some(data.into());
        self
    }

    /// Killed after so long; 60 s if nothing is said.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Run {
        self.limit = limit;
        self
    }

    /// As this user, without any group else.
    #[must_use]
    pub fn user(mut self, id: u32) -> Run {
        self.command.uid(id).gid(id);
        self
    }

    /// Its name, as `argv[0]`.
    #[must_use]
    pub fn argv0(mut self, name: impl AsRef<OsStr>) -> Run {
        self.command.arg0(name);
        self
    }

    /// Gives it a copy of `from` as its descriptor `to`.
    #[must_use]
    pub fn descriptor(mut self, from: RawFd, to: RawFd) -> Run {
        // SAFETY: dup2(2) is async-signal-safe; `from` is open in the caller for as long as it runs this.
        unsafe {
            self.command.pre_exec(move || {
                if libc::dup2(from, to) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        self
    }

    /// With this disposition of a signal.
    #[must_use]
    pub fn limit_descriptors(mut self, n: u64) -> Run {
        // SAFETY: setrlimit(2) is async-signal-safe and reads a struct that lives through the call.
        unsafe {
            self.command.pre_exec(move || {
                let limit = libc::rlimit {
                    rlim_cur: n,
                    rlim_max: n,
                };
                match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> io::Result<Outcome> {
        self.watch(None, false)
    }

    /// Runs it, and records what leaves meanwhile. `stop`: ends it at the first packet.
    pub fn watched(self, sink: &mut Sink, stop: bool) -> io::Result<Outcome> {
        self.watch(Some(sink), stop)
    }

    fn watch(mut self, mut sink: Option<&mut Sink>, stop: bool) -> io::Result<Outcome> {
        if let Some(sink) = &mut sink {
            sink.drain()?;
        }
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |what: &str| Path::new(&self.scratch).join(format!(".{what}-{n}"));
        let (out, err, input) = (name("out"), name("err"), name("in"));
        fs::write(&input, self.input.as_deref().unwrap_or(b""))?;
        self.command
            .stdin(File::open(&input)?)
            .stdout(Stdio::from(File::create(&out)?))
            .stderr(Stdio::from(File::create(&err)?));
        // SAFETY: setsid(2) is async-signal-safe. It makes a process group that can be ended as one.
        unsafe {
            self.command.pre_exec(|| {
                libc::setsid();
                Ok(())
            });
        }
        let begun = Instant::now();
        let mut child = self.command.spawn().map_err(|e| {
            let program = self.command.get_program().to_string_lossy();
            io::Error::new(e.kind(), format!("{program}: {e}"))
        })?;
        let group = child.id() as i32;
        // SAFETY: a plain number.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, group, 0) } as RawFd;
        let mut escapes = Vec::new();
        let mut status = None;
        while begun.elapsed() < self.limit {
            let mut descriptors = vec![pidfd];
            if let Some(sink) = &sink {
                descriptors.extend(sink.descriptors());
            }
            let mut polled: Vec<libc::pollfd> = descriptors
                .iter()
                .map(|fd| libc::pollfd {
                    fd: *fd,
                    events: libc::POLLIN,
                    revents: 0,
                })
                .collect();
            let left = self.limit.saturating_sub(begun.elapsed());
            // SAFETY: pollfds that live through the call.
            unsafe {
                libc::poll(
                    polled.as_mut_ptr(),
                    polled.len() as u64,
                    left.as_millis() as i32 + 1,
                )
            };
            if polled[0].revents != 0 {
                status = Some(child.wait()?);
                break;
            }
            if let Some(sink) = &mut sink {
                escapes.extend(sink.peek()?);
                if stop && !escapes.is_empty() {
                    break;
                }
            }
        }
        let took = begun.elapsed();
        // SAFETY: plain numbers; the group is the child's own, and its number is not reused before the
        // child is reaped or while members are left.
        unsafe {
            libc::kill(-group, libc::SIGKILL);
            libc::close(pidfd);
        }
        if status.is_none() {
            child.wait()?;
        }
        if let Some(sink) = &mut sink {
            escapes.extend(sink.drain()?);
        }
        let read = |p: &Path| -> io::Result<String> {
            let text = fs::read(p)?;
            fs::remove_file(p)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        };
        let outcome = Outcome {
            status,
            out: read(&out)?,
            err: read(&err)?,
            escapes,
            took,
        };
        fs::remove_file(&input)?;
        Ok(outcome)
    }
}
