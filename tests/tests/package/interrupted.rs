//! dpkg killed at each step of an operation, with all that it has started (tests/vectors/killpoint.c): what is there then, and
//! that it can be finished or undone.

use crate::debian::{done, fresh, installed, other_version};
use crate::ensure;
use crate::life::{WRAPPED, all_wrapped, whonix_package};
use crate::world::{Result, World};
use libtest_mimic::Trial;
use std::fs;
use std::sync::Arc;
use std::time::Duration;
use uwt_tests::root::Root;

/// How many steps of each operation are tried, unless every one is asked for.
fn points(suite: &str) -> u32 {
    if suite == "trixie" { 20 } else { 6 }
}

/// One operation.
#[derive(Clone, Copy)]
struct Operation {
    name: &'static str,
    /// What dpkg is asked for.
    command: &'static str,
    /// A shell line that finishes it.
    finish: &'static str,
    /// One that undoes it, and takes uwt away.
    undo: &'static str,
    /// Whether uwt is installed once it is finished.
    stays: bool,
}

// dpkg's own word on a package that it was killed at while it unpacked: "reinstall it before attempting a removal".
const REINSTALL_AND_PURGE: &str = "dpkg -i /uwt.deb >/dev/null; dpkg -P uwt";
// Or not: then prerm is left out, and postrm has to do.
const FORCED: &str = "dpkg --configure -a >/dev/null 2>&1; dpkg -P --force-remove-reinstreq uwt";
const INSTALL: &str = "dpkg --configure -a >/dev/null 2>&1; dpkg -i /uwt.deb >/dev/null 2>&1";

const OPERATIONS: [Operation; 5] = [
    Operation {
        name: "install",
        command: "dpkg -i /uwt.deb",
        finish: INSTALL,
        undo: REINSTALL_AND_PURGE,
        stays: true,
    },
    Operation {
        name: "upgrade",
        command: "dpkg -i /uwt.deb",
        finish: INSTALL,
        undo: FORCED,
        stays: true,
    },
    Operation {
        name: "take over Whonix's",
        command: "dpkg -i /uwt.deb",
        finish: INSTALL,
        undo: REINSTALL_AND_PURGE,
        stays: true,
    },
    Operation {
        name: "install a wrapped command",
        command: "dpkg -i /srv/repo/wget.deb",
        finish: "dpkg --configure -a >/dev/null 2>&1; dpkg -i /srv/repo/wget.deb >/dev/null 2>&1",
        undo: "dpkg -i /srv/repo/wget.deb >/dev/null; dpkg -P wget uwt",
        stays: true,
    },
    Operation {
        name: "purge",
        command: "dpkg -P uwt",
        finish: "dpkg --configure -a >/dev/null 2>&1; dpkg -P uwt >/dev/null 2>&1",
        undo: FORCED,
        stays: false,
    },
];

pub fn tests(world: &Arc<World>, suite: &'static str) -> Vec<Trial> {
    OPERATIONS
        .iter()
        .map(|o| {
            let name = format!("{suite}: killed at each step: {}", o.name);
            world.test(name, move |w| interrupted(w, suite, o))
        })
        .collect()
}

/// The system in which the operation begins.
fn before(w: &World, suite: &str, o: &Operation) -> Result<Root> {
    let root = match o.name {
        "install" => fresh(w, suite)?,
        "upgrade" => {
            let root = fresh(w, suite)?;
            let patch = "s/uwt-torshim 0\\.1\\./uwt-torshim 0.0./";
            fs::copy(
                other_version(w, "4:0.0.9", Some(patch))?,
                root.file("/root/old.deb"),
            )?;
            done(
                &root,
                "dpkg -i /root/old.deb >/dev/null; uwtctl wrappers add pgrep",
            )?;
            root
        }
        "take over Whonix's" => {
            let root = fresh(w, suite)?;
            fs::copy(whonix_package(w)?, root.file("/root/whonix.deb"))?;
            done(&root, "dpkg -i /root/whonix.deb >/dev/null 2>&1")?;
            root
        }
        _ => installed(w, suite)?,
    };
    let library = w.bed.compile(
        "killpoint.so",
        "cc",
        "-O1 -shared -fPIC -ldl",
        "killpoint.c",
    )?;
    fs::copy(library, root.file("/root/killpoint.so"))?;
    Ok(root)
}

/// Runs the operation until its `at`th step (0: to its end); gives the number of steps that were begun.
fn killed(root: &Root, o: &Operation, at: u32) -> Result<u32> {
    let script = format!(
        "truncate -s 4096 /killpoint; UWT_KILL_AT={at} LD_PRELOAD=/root/killpoint.so {} >/dev/null 2>/root/said || true",
        o.command
    );
    root.sh(&script)
        .limit(Duration::from_secs(60))
        .run()?
        .expect(0)?;
    let counter = fs::read(root.file("/killpoint"))?;
    Ok(u32::from_le_bytes([
        counter[0], counter[1], counter[2], counter[3],
    ]))
}

/// What has to hold at every moment: each command is there, and is never the bare one while uwt counts as installed.
const ALWAYS: &str = r#"
status=$(dpkg-query -W -f '${Status}' uwt 2>/dev/null || true)
echo "status $status"
for c in apt apt-get curl git gpg ssh; do
    option=--version
    [ $c = ssh ] && option=-V
    if out=$($c $option 2>&1); then
        case $out in
            *apt*[0-9].[0-9]* | curl* | git\ version* | gpg* | OpenSSH*) ;;
            *) echo "$c says: $out"; exit 1 ;;
        esac
    else
        case "$status $out" in
            # Of two versions, launcher and library do not go together: refused, with what to do.
            *"install ok installed"*) echo "$c: $out"; exit 1 ;;
            *"is not libtorshim"*"install uwt again"*) ;;
            *) echo "$c is gone: $out"; exit 1 ;;
        esac
    fi
    if [ "$status" = "install ok installed" ] && [ "$(readlink /usr/bin/$c)" != /usr/bin/uwt ]; then
        [ "$WHONIX" = 1 ] && [ "$(dpkg-query -W -f '${Version}' uwt)" = 3:10.0-1 ] && continue
        echo "$c is bare while uwt is installed"; exit 1
    fi
done
# wget is absent or wrapped, never bare, for as long as uwt is installed.
if [ "$status" = "install ok installed" ] && [ -e /usr/bin/wget ] && [ "$(readlink /usr/bin/wget)" != /usr/bin/uwt ]; then
    [ "$WHONIX" = 1 ] && exit 0
    echo "wget is bare while uwt is installed"; exit 1
fi
"#;

fn interrupted(w: &World, suite: &str, o: &Operation) -> Result {
    let start = before(w, suite, o)?;
    let steps = {
        let root = start.on_top(&w.bed.folder)?;
        killed(&root, o, 0)?
    };
    ensure!(steps > 20, "{} has {steps} steps", o.name);
    let every = std::env::var_os("UWT_TEST_EVERY_POINT").is_some();
    let stride = if every {
        1
    } else {
        (steps / points(suite)).max(1)
    };
    let whonix = u32::from(o.name.contains("Whonix"));
    let mut at = 1;
    let mut turn = 0;
    while at <= steps {
        let root = start.on_top(&w.bed.folder)?;
        let begun = killed(&root, o, at)?;
        ensure!(begun >= at, "step {at} of {steps} was never reached");
        let failed = |what: &str, why: &str| {
            let said = fs::read_to_string(root.file("/root/said")).unwrap_or_default();
            crate::world::Stop::Failed(format!(
                "{}: killed at step {at} of {steps}: {what}: {why}\ndpkg: {said}",
                o.name
            ))
        };
        let now = root.sh(&format!("WHONIX={whonix}\n{ALWAYS}")).run()?;
        if now.code() != 0 {
            return Err(failed("then", &format!("{}{}", now.out, now.err)));
        }
        // In turn: finished, and undone.
        let (line, stays) = match turn % 2 {
            0 => (o.finish, o.stays),
            _ => (o.undo, false),
        };
        let ended = root
            .sh(&format!("set +e; {{ {line}; }} 2>&1"))
            .limit(Duration::from_secs(60))
            .run()?;
        if stays {
            let o = root
                .sh("uwtctl wrappers list; uwt --version; ls /usr/bin | grep -c uwt-new || true")
                .run()?;
            if o.code() != 0 || !o.out.ends_with("\n0\n") {
                return Err(failed(
                    "finished",
                    &format!("{}{}{}", ended.out, o.out, o.err),
                ));
            }
            all_wrapped(&root).map_err(|_| failed("finished", "not all wrapped"))?;
        } else {
            let check = "! dpkg-divert --list | grep 'by uwt$'; for c in $C; do test ! -L /usr/bin/$c || readlink /usr/bin/$c | grep -v uwt; o=--version; test $c != ssh || o=-V; $c $o >/dev/null 2>&1; done; ls /usr/bin | grep -c 'anondist\\|uwt' || true";
            let o = root
                .sh(&format!("C='{}'\n{check}", WRAPPED.join(" ")))
                .run()?;
            if o.code() != 0 || !o.out.ends_with("0\n") {
                return Err(failed(
                    "undone",
                    &format!("{}{}{}", ended.out, o.out, o.err),
                ));
            }
            // Against the system as it was before any of it.
            if start_is_fresh(&start) {
                let left = root.changes()?;
                if !left.is_empty() {
                    return Err(failed("undone", &format!("{left:#?}")));
                }
            }
        }
        turn += 1;
        at += if at < steps {
            stride.min(steps - at).max(1)
        } else {
            1
        };
    }
    Ok(())
}

/// Whether uwt was not there when the operation began: then nothing of it may be left.
fn start_is_fresh(start: &Root) -> bool {
    !start.file("/var/lib/dpkg/info/uwt.list").exists()
}
