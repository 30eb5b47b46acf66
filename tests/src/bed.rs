//! Where the binaries under test and the scratch files are.

use crate::run::Run;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// An ordinary user: daemon, which has an entry in /etc/passwd as ssh wants it.
pub const USER: u32 = 1;

/// The test bed: a folder that everybody may read, gone at the end.
pub struct Bed {
    /// The folder.
    pub folder: PathBuf,
    /// Whether ordinary users can be had: the tests run as root.
    pub root: bool,
    level: Mutex<&'static str>,
}

impl Bed {
    /// Makes the folder and copies the binaries there: an ordinary user could not read a build tree under
    /// /root. They come from `$UWT_TEST_BIN_DIR`, else from target/release.
    pub fn make() -> io::Result<Bed> {
        let folder = std::env::temp_dir().join(format!("uwt-test-{}", std::process::id()));
        let built = std::env::var_os("UWT_TEST_BIN_DIR").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release"),
            PathBuf::from,
        );
        for (name, mode) in [
            ("", 0o755),
            ("bin", 0o755),
            ("home", 0o755),
            ("nobody", 0o777),
            ("work", 0o755),
        ] {
            let f = folder.join(name);
            fs::create_dir_all(&f)?;
            fs::set_permissions(&f, fs::Permissions::from_mode(mode))?;
        }
        for name in ["uwt", "uwtctl", "libtorshim.so"] {
            let from = built.join(name);
            fs::copy(&from, folder.join("bin").join(name)).map_err(|e| {
                let why = format!("{}: {e}; run `make build` first", from.display());
                io::Error::new(e.kind(), why)
            })?;
        }
        // SAFETY: a plain number.
        let root = unsafe { libc::geteuid() } == 0 && !mapped();
        if root {
            std::os::unix::fs::chown(folder.join("nobody"), Some(USER), Some(USER))?;
            fs::set_permissions(folder.join("nobody"), fs::Permissions::from_mode(0o755))?;
        }
        Ok(Bed {
            folder,
            root,
            level: Mutex::new("preload"),
        })
    }

    /// A path in the bed.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A command as the test's own user.
    pub fn run(&self, program: &str) -> Run {
        Run::new(program, &self.path("home"))
    }

    /// A command as an ordinary user.
    pub fn run_as_user(&self, program: &str) -> Run {
        Run::new(program, &self.path("nobody")).user(USER)
    }

    /// `uwt` on the SOCKS port of `port`, at the level that is under test.
    pub fn uwt(&self, port: u16) -> Run {
        let run = self.run(&self.path("bin/uwt").to_string_lossy());
        run.arg("-P")
            .arg(port.to_string())
            .args(["--level", self.level()])
    }

    /// The level that is under test.
    pub fn level(&self) -> &'static str {
        *self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts another level under test.
    pub fn set_level(&self, level: &'static str) {
        *self.level.lock().unwrap_or_else(PoisonError::into_inner) = level;
    }

    /// Compiles C with `compiler` and its words of options; gives the program's path. Once per name.
    pub fn compile(
        &self,
        name: &str,
        compiler: &str,
        options: &str,
        source: &str,
    ) -> io::Result<PathBuf> {
        let to = self.path("work").join(name);
        if to.exists() {
            return Ok(to);
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("vectors")
            .join(source);
        let words = options.split(' ').filter(|w| !w.is_empty());
        let mut command = Command::new(compiler);
        if compiler == "go" {
            command.args(words).arg("-o").arg(&to).arg(&source);
            command
                .env("GOCACHE", self.path("home/go"))
                .env("GOFLAGS", "-mod=mod")
                .env("HOME", self.path("home"));
        } else {
            let (libraries, flags): (Vec<&str>, Vec<&str>) =
                words.partition(|w| w.starts_with("-l"));
            command
                .args(flags)
                .arg("-o")
                .arg(&to)
                .arg(&source)
                .args(libraries);
        }
        let out = command
            .output()
            .map_err(|e| io::Error::new(e.kind(), format!("{compiler}: {e}")))?;
        if !out.status.success() {
            let why = String::from_utf8_lossy(&out.stderr);
            return Err(io::Error::other(format!("{compiler} {options}: {why}")));
        }
        Ok(to)
    }

    /// The vectors, see tests/vectors/vectors.c.
    pub fn vectors(&self) -> io::Result<PathBuf> {
        self.compile(
            "vectors",
            "cc",
            "-O1 -lpthread -lresolv -lanl -ldl",
            "vectors.c",
        )
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Whether this is a user namespace in which there is one user alone.
fn mapped() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().nth(2) == Some("1")
}

/// Whether a program is to be found along the usual PATH.
pub fn has(program: &str) -> bool {
    [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ]
    .iter()
    .any(|d| Path::new(d).join(program).exists())
}
