//! A Debian system in a folder, in which the package is really installed: entered in its own mount and pid namespaces, in the
//! network namespace of the tests. What is changed is written on top (overlayfs), so that each test begins anew.

use crate::netns::RESOLVER;
use crate::run::Run;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A system that is mounted; unmounted when dropped.
pub struct Root {
    /// Where it is.
    pub path: PathBuf,
    home: PathBuf,
    upper: PathBuf,
    lower: Vec<PathBuf>,
}

fn mounted(options: &str, kind: &str, at: &Path) -> io::Result<()> {
    let out = Command::new("mount")
        .args(["-t", kind, "-o", options, kind])
        .arg(at)
        .output()?;
    if out.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&out.stderr);
    Err(io::Error::other(format!("mount {}: {why}", at.display())))
}

/// Where systems are mounted; memory, so that the disk is not in the way.
fn place(bed: &Path) -> io::Result<PathBuf> {
    let place = bed.join("roots");
    if !place.exists() {
        fs::create_dir(&place)?;
        mounted("mode=755", "tmpfs", &place)?;
    }
    Ok(place)
}

impl Root {
    /// A fresh system over `base`, a folder that stays as it is; scratch files are in `bed`.
    pub fn over(bed: &Path, base: &Path) -> io::Result<Root> {
        Root::make(bed, vec![base.to_owned()])
    }

    /// A fresh system over this one, which must not be used while the other is.
    pub fn on_top(&self, bed: &Path) -> io::Result<Root> {
        let mut lower = vec![self.upper.clone()];
        lower.extend(self.lower.iter().cloned());
        Root::make(bed, lower)
    }

    fn make(bed: &Path, lower: Vec<PathBuf>) -> io::Result<Root> {
        let place = place(bed)?;
        let at = place.join(COUNT.fetch_add(1, Ordering::Relaxed).to_string());
        let root = Root {
            path: at.join("root"),
            home: at.join("home"),
            upper: at.join("upper"),
            lower,
        };
        for folder in [&root.path, &root.home, &root.upper, &at.join("work")] {
            fs::create_dir_all(folder)?;
        }
        let lower: Vec<String> = root.lower.iter().map(|l| l.display().to_string()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            root.upper.display(),
            at.join("work").display()
        );
        mounted(&options, "overlay", &root.path)?;
        // Many programs look their machine's own name up.
        let name = fs::read_to_string("/proc/sys/kernel/hostname")?;
        fs::write(
            root.file("etc/hosts"),
            format!("127.0.0.1 localhost {name}"),
        )?;
        let resolver = format!("nameserver {RESOLVER}\noptions timeout:1 attempts:1\n");
        fs::write(root.file("etc/resolv.conf"), resolver)?;
        Ok(root)
    }

    /// Runs a shell script in it, as root, `-eu`, as process 1 of its pid namespace: what it starts ends with it.
    pub fn sh(&self, script: &str) -> Run {
        const ENTER: &str = "mount -t proc proc \"$0/proc\" && mount --rbind /dev \"$0/dev\" && \
             mount -t tmpfs -o mode=755 tmpfs \"$0/run\" && cd / && exec chroot \"$0\" /usr/bin/env -i \
             PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb \
             DEBIAN_FRONTEND=noninteractive sh -eu -c \"$1\"";
        Run::new("unshare", &self.home)
            .args(["-m", "-p", "-f", "--kill-child", "sh", "-c", ENTER])
            .arg(&self.path)
            .arg(script)
    }

    /// Boots it with systemd as process 1, which runs a shell script, `-eu`, as a unit and ends with its exit status. What the
    /// script says is in /root/said afterwards.
    pub fn boot(&self, script: &str) -> io::Result<Run> {
        const UNIT: &str = "[Unit]\nDefaultDependencies=no\nSuccessAction=exit-force\nFailureAction=exit-force\n\
             FailureActionExitStatus=1\n[Service]\nType=oneshot\nExecStart=/bin/sh -eu /root/script\n\
             StandardOutput=file:/root/said\nStandardError=file:/root/said\nTimeoutStartSec=infinity\n";
        const ENTER: &str = "for t in proc sysfs:sys tmpfs:run tmpfs:dev cgroup2:sys/fs/cgroup; do \
                 mount -t ${t%:*} none \"$0/${t#*:}\"; done && \
             for n in null zero full random urandom tty; do touch \"$0/dev/$n\" && mount --bind /dev/$n \"$0/dev/$n\"; done && \
             ln -s /proc/self/fd \"$0/dev/fd\" && mkdir \"$0/dev/shm\" && cd \"$0\" && \
             pivot_root . mnt && umount -l mnt && exec env -i container=uwt-tests PATH=/usr/sbin:/usr/bin /lib/systemd/systemd \
             --unit=uwt-test.service --log-level=err --log-target=console --show-status=no";
        fs::write(self.file("/root/script"), script)?;
        fs::write(self.file("/etc/systemd/system/uwt-test.service"), UNIT)?;
        Ok(Run::new("unshare", &self.home)
            .args(["-m", "-p", "-f", "-C", "--kill-child", "sh", "-c", ENTER])
            .arg(&self.path))
    }

    /// A file in it.
    pub fn file(&self, path: &str) -> PathBuf {
        self.path.join(path.trim_start_matches('/'))
    }

    /// What is not as it was in the system below, one line each; folders' times, logs, and dpkg's own copies aside.
    pub fn changes(&self) -> io::Result<Vec<String>> {
        let mut out = Vec::new();
        self.compare(Path::new(""), &mut out)?;
        Ok(out)
    }

    fn below(&self, path: &Path) -> Option<PathBuf> {
        let places = self.lower.iter().map(|l| l.join(path));
        places.into_iter().find(|p| fs::symlink_metadata(p).is_ok())
    }

    fn compare(&self, folder: &Path, out: &mut Vec<String>) -> io::Result<()> {
        for entry in fs::read_dir(self.upper.join(folder))? {
            let path = folder.join(entry?.file_name());
            let shown = path.display().to_string();
            let aside = [
                "var/log",
                "var/cache",
                "var/lib/dpkg/status",
                "var/lib/dpkg/status-old",
                "var/lib/dpkg/diversions-old",
                "var/lib/dpkg/lock",
                "var/lib/dpkg/lock-frontend",
                "var/lib/dpkg/triggers/Lock",
                "var/lib/apt",
                "tmp",
                "run",
                "proc",
                "dev",
                "srv",
                "etc/hosts",
                "etc/resolv.conf",
                "root",
                "killpoint",
                "uwt.deb",
            ];
            if aside.contains(&shown.as_str()) {
                continue;
            }
            let now = fs::symlink_metadata(self.upper.join(&path))?;
            let before = self.below(&path);
            if now.is_dir() {
                if before.is_none() {
                    out.push(format!("new folder {shown}"));
                }
                self.compare(&path, out)?;
                continue;
            }
            if now.file_type().is_char_device() && now.rdev() == 0 {
                if before.is_some() {
                    out.push(format!("gone {shown}"));
                }
                continue;
            }
            let Some(before) = before else {
                out.push(format!("new {shown}"));
                continue;
            };
            let was = fs::symlink_metadata(&before)?;
            let owner = |m: &fs::Metadata| (m.mode(), m.uid(), m.gid());
            let content = |at: &Path, m: &fs::Metadata| match m.is_symlink() {
                true => fs::read_link(at).map(|l| l.into_os_string().into_encoded_bytes()),
                false => fs::read(at),
            };
            if owner(&now) != owner(&was)
                || content(&self.upper.join(&path), &now)? != content(&before, &was)?
            {
                out.push(format!("changed {shown}"));
            }
        }
        Ok(())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        if let Some(at) = self.path.parent() {
            let _ = fs::remove_dir_all(at);
        }
    }
}
