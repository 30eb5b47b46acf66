//! The systems, the packages, and what every test asks of them.

use crate::ensure;
use crate::world::{Result, Stop, World};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use uwt_tests::root::Root;
use uwt_tests::run::Outcome;

fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target")
}

/// A package under test, as `make package` left it.
pub fn built(name: &str) -> Result<PathBuf> {
    let folder = target().join("package");
    let entries =
        fs::read_dir(&folder).map_err(|e| format!("{}: {e}; make package", folder.display()))?;
    let mut found = entries.flatten().map(|e| e.path());
    let found = found.find(|p| {
        let file = p.file_name().unwrap_or_default().to_string_lossy();
        file.starts_with(&format!("{name}_")) && file.ends_with(".deb")
    });
    Ok(found.ok_or_else(|| format!("target/package has no {name}_*.deb: make package"))?)
}

/// The package `uwt`.
pub fn deb() -> Result<PathBuf> {
    built("uwt")
}

/// A fresh system of this suite, with the package as /uwt.deb.
pub fn fresh(w: &World, suite: &str) -> Result<Root> {
    let base = target().join("roots").join(suite);
    if !base.exists() {
        let why = format!("{}: no system there; make roots", base.display());
        return Err(Stop::Failed(why));
    }
    // What is built against a newer libc does not run on an older system.
    let ours = fs::read_to_string("/etc/os-release")?;
    if suite == "bookworm" && !ours.contains("bookworm") {
        let why = "the package was built on a newer Debian than bookworm";
        return Err(Stop::Skipped(why.into()));
    }
    let root = Root::over(&w.bed.folder, &base)?;
    fs::copy(deb()?, root.file("uwt.deb"))?;
    Ok(root)
}

/// Runs a script in the system, which must end with 0; nothing may leave beside Tor.
pub fn held(w: &World, root: &Root, script: &str) -> Result<Outcome> {
    let run = root.sh(script).limit(Duration::from_secs(120));
    Ok(w.held(run)?.expect(0)?)
}

/// As [`held`], for what may reach the network: dpkg, and the commands in the clear.
pub fn done(root: &Root, script: &str) -> Result<Outcome> {
    let run = root.sh(script).limit(Duration::from_secs(120));
    Ok(run.run()?.expect(0)?)
}

/// A system with the package installed.
pub fn installed(w: &World, suite: &str) -> Result<Root> {
    let root = fresh(w, suite)?;
    done(
        &root,
        "dpkg -i /uwt.deb >/dev/null 2>&1; uwtctl wrappers list >/dev/null",
    )?;
    Ok(root)
}

/// A package with these fields and files (path, mode, text), as `name`.deb in `folder`.
pub fn package(
    folder: &Path,
    name: &str,
    fields: &str,
    files: &[(&str, &str, &[u8])],
) -> Result<PathBuf> {
    let tree = folder.join(format!("{name}.tree"));
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(tree.join("DEBIAN"))?;
    let usual =
        "Version: 1\nArchitecture: amd64\nMaintainer: nobody <a@example.org>\nDescription: x\n";
    let usual: String = usual
        .lines()
        .filter(|l| !fields.contains(l.split(':').next().unwrap_or(l)))
        .map(|l| format!("{l}\n"))
        .collect();
    fs::write(
        tree.join("DEBIAN/control"),
        format!("Package: {name}\n{fields}{usual}"),
    )?;
    for (path, mode, text) in files {
        let at = tree.join(path);
        fs::create_dir_all(at.parent().unwrap_or(&tree))?;
        fs::write(&at, text)?;
        tool("chmod", &[mode, &at.display().to_string()])?;
    }
    let to = folder.join(format!("{name}.deb"));
    tool(
        "dpkg-deb",
        &[
            "-Zgzip",
            "-b",
            &tree.display().to_string(),
            &to.display().to_string(),
        ],
    )?;
    fs::remove_dir_all(&tree)?;
    Ok(to)
}

/// Runs a program of the test machine's own.
pub fn tool(program: &str, arguments: &[&str]) -> Result {
    let out = Command::new(program).args(arguments).output()?;
    ensure!(
        out.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(())
}

/// The package again as version `version`; `sed`: changed within its programs, with words of the same length.
pub fn other_version(w: &World, version: &str, sed: Option<&str>) -> Result<PathBuf> {
    let to = w
        .bed
        .path(&format!("uwt-{}.deb", version.replace(':', "_")));
    if to.exists() {
        return Ok(to);
    }
    let tree = w.bed.path("repacked").display().to_string();
    let _ = fs::remove_dir_all(&tree);
    tool("dpkg-deb", &["-R", &deb()?.display().to_string(), &tree])?;
    let version = format!("s/^Version: .*/Version: {version}/");
    tool("sed", &["-i", &version, &format!("{tree}/DEBIAN/control")])?;
    if let Some(sed) = sed {
        let find = format!(
            "find {tree}/usr/bin {tree}/usr/lib -type f -exec sed -i '{sed}' {{}} + && cd {tree} && \
             find usr etc -type f -exec md5sum {{}} + > DEBIAN/md5sums"
        );
        tool("sh", &["-c", &find])?;
    }
    tool(
        "dpkg-deb",
        &["-Zgzip", "-b", &tree, &to.display().to_string()],
    )?;
    Ok(to)
}
