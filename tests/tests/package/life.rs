//! The package's life: installed, managed, upgraded, taken over from Whonix's, removed, purged.

use crate::debian::{done, fresh, installed, other_version, package, tool};
use crate::ensure;
use crate::world::{Result, World};
use libtest_mimic::Trial;
use std::fs;
use std::sync::Arc;
use uwt_tests::root::Root;

pub fn tests(world: &Arc<World>, suite: &'static str) -> Vec<Trial> {
    let test = |name: &str, f: fn(&World, &'static str) -> Result| {
        world.test(format!("{suite}: {name}"), move |w| f(w, suite))
    };
    vec![
        test("installed and purged, the machine is as it was", as_it_was),
        test("wrappers list tells how it stands", list),
        test("wrappers add and remove", add),
        test("wrappers add: what cannot have one", refused),
        test("wrappers enable and disable", enable),
        test("wrapped commands that come and go", come_and_go),
        test(
            "an upgrade keeps wrappers, decisions and conffiles",
            upgrade,
        ),
        test("Whonix's uwt is taken over", whonix),
        test("another's diversion is left alone", others),
        test(
            "a configuration that cannot be used leaves wrappers as they are",
            broken,
        ),
        test("without /proc", no_proc),
        test("manual pages and completions", manuals),
        test("the package's own test (debian/tests)", smoke),
    ]
}

/// Commands of the base system that uwt wraps.
pub const WRAPPED: [&str; 6] = ["apt", "apt-get", "curl", "git", "gpg", "ssh"];

/// Fails unless each wrapped command that is there has its wrapper.
pub fn all_wrapped(root: &Root) -> Result {
    for command in WRAPPED {
        let path = root.file(&format!("/usr/bin/{command}"));
        let link = fs::read_link(&path).unwrap_or_default();
        ensure!(
            link.as_os_str() == "/usr/bin/uwt",
            "{command} leads to {link:?}"
        );
    }
    Ok(())
}

/// Fails unless the system is as it was before uwt.
pub fn untouched(root: &Root) -> Result {
    let changes = root.changes()?;
    ensure!(changes.is_empty(), "{changes:#?}");
    Ok(())
}

fn as_it_was(w: &World, suite: &str) -> Result {
    let root = fresh(w, suite)?;
    done(&root, "dpkg -i /uwt.deb")?;
    all_wrapped(&root)?;
    // What is not installed has no wrapper, and nothing stands in its place.
    let wget = root.file("/usr/bin/wget");
    ensure!(fs::symlink_metadata(wget).is_err(), "there is a wget");
    let o = done(
        &root,
        "dpkg-divert --list '*/usr/bin/*' | grep -c 'by uwt$'; dpkg -V uwt curl git apt openssh-client; \
         dpkg -S /usr/bin/curl; test ! -e /run/uwt; ls /usr/bin | grep -c 'uwt-new' || true",
    )?;
    ensure!(o.out.starts_with("19\n"), "{o:#?}");
    ensure!(o.out.ends_with("\n0\n"), "{o:#?}");
    // Again, and reconfigured: nothing changes.
    done(&root, "dpkg -i /uwt.deb && dpkg --purge --dry-run uwt")?;
    all_wrapped(&root)?;
    done(&root, "dpkg -r uwt && ! command -v uwt && curl --version")?;
    let left = root.changes()?;
    ensure!(
        left.iter().all(|c| c.contains("etc/uwt.d")
            || c.contains("etc/profile.d/uwt.sh")
            || c.contains("dpkg/info/uwt.")),
        "{left:#?}"
    );
    done(&root, "dpkg -i /uwt.deb && dpkg -P uwt")?;
    untouched(&root)
}

fn list(w: &World, suite: &str) -> Result {
    let root = installed(w, suite)?;
    let o = done(
        &root,
        "printf '[command.ssh]\\nisolate = \"destination\"\\nlevel = \"netns\"\\n' > /etc/uwt.d/70_ssh.toml\n\
         uwtctl wrappers list; uwtctl wrappers list --json > /tmp/json; \
         perl -MJSON::PP -e 'my $l = JSON::PP->new->decode(join \"\", <>); my ($s) = grep { $_->{command} eq \"ssh\" } @$l; \
         print \"$s->{level}{value} $s->{isolate}{origin} $s->{present} $s->{diverted}\\n\"' /tmp/json",
    )?;
    let row = |command: &str| {
        let line = o.out.lines().find(|l| l.split(' ').next() == Some(command));
        line.unwrap_or("")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    ensure!(
        row("curl") == "curl /usr/bin/curl yes yes yes pid preload built-in wrappers/curl.toml",
        "{o:#?}"
    );
    ensure!(
        row("ssh")
            == "ssh /usr/bin/ssh yes yes yes destination netns built-in wrappers/ssh.toml; \
                isolate: /etc/uwt.d/70_ssh.toml:2; level: /etc/uwt.d/70_ssh.toml:3",
        "{o:#?}"
    );
    ensure!(
        row("wget").starts_with("wget /usr/bin/wget no yes yes"),
        "{o:#?}"
    );
    ensure!(
        o.out.ends_with("netns /etc/uwt.d/70_ssh.toml:2 1 1\n"),
        "{o:#?}"
    );
    // So is a command that hides one.
    let o = done(
        &root,
        "printf '#!/bin/sh\\n' > /usr/local/bin/curl; ln -s /usr/bin/git /usr/local/bin/git; uwtctl wrappers list; rm /usr/local/bin/*",
    )?;
    let notes: Vec<&str> = o
        .out
        .lines()
        .filter(|l| l.contains("first on PATH"))
        .collect();
    ensure!(
        notes == ["curl: /usr/local/bin/curl comes first on PATH and is not carried"],
        "{notes:?}"
    );
    // A wrapper that somebody took away is noticed, and put back.
    let o = root
        .sh("ln -sf curl.anondist-orig /usr/bin/curl; uwtctl wrappers list")
        .run()?
        .expect(1)?;
    ensure!(
        o.out.contains("curl: its wrapper is not in place"),
        "{o:#?}"
    );
    let o = done(
        &root,
        "uwtctl wrappers apply && uwtctl wrappers list; uwtctl wrappers disable git; uwtctl status || true",
    )?;
    ensure!(
        o.out.contains(
            "wrappers  ok    5 commands go through Tor as they are typed, 1 are disabled"
        ),
        "{o:#?}"
    );
    all_wrapped(&root)
}

fn add(w: &World, suite: &str) -> Result {
    let root = installed(w, suite)?;
    // bookworm's packages ship /bin/... where /bin is a link: dpkg knows the file by that name alone.
    let o = done(
        &root,
        "uwtctl wrappers add pgrep; readlink /usr/bin/pgrep; pgrep --version; uwtctl wrappers list | grep '^pgrep '
         uwtctl wrappers add /bin/ps; readlink /usr/bin/ps
         # An alternative: what it leads to, not the link.
         uwtctl wrappers add nc; readlink /usr/bin/nc.openbsd; readlink /usr/bin/nc /bin/nc | sort -u; nc -h 2>&1 | head -n 1
         uwtctl wrappers add netcat; netcat -h 2>&1 | grep -c OpenBSD
         update-alternatives --auto nc; readlink /usr/bin/nc.openbsd
         uwtctl wrappers add visudo; readlink /usr/sbin/visudo; grep -c visudo /etc/uwt.d/60_wrappers.toml",
    )?;
    ensure!(o.out.matches("/usr/bin/uwt\n").count() == 5, "{o:#?}");
    ensure!(o.out.contains("/etc/alternatives/nc"), "{o:#?}");
    ensure!(o.out.contains("OpenBSD netcat"), "{o:#?}");
    // The package is reinstalled by the name that dpkg knows: the wrapper stays.
    let repack = "for f in $(dpkg -L procps | grep -x '\\(/usr\\)\\?/bin/ps'); do echo $f; done";
    let o = done(&root, repack)?;
    let shipped = o.out.trim().to_owned();
    let dir = w.bed.path("procps-again");
    fs::create_dir_all(&dir)?;
    let deb = package(
        &dir,
        "procps-new",
        "Replaces: procps\n",
        &[(
            shipped.trim_start_matches('/'),
            "755",
            b"#!/bin/sh\necho new ps\n",
        )],
    )?;
    fs::copy(deb, root.file("/root/new.deb"))?;
    let o = done(
        &root,
        "dpkg -i --force-overwrite /root/new.deb >/dev/null; readlink /usr/bin/ps; ps; dpkg -P procps-new >/dev/null",
    )?;
    ensure!(o.out == "/usr/bin/uwt\nnew ps\n", "{o:#?}");
    done(
        &root,
        "for c in pgrep nc visudo; do uwtctl wrappers remove $c; done
         test ! -L /usr/sbin/visudo && test ! -e /usr/sbin/visudo.anondist-orig && pgrep --version && ! grep pgrep /etc/uwt.d/60_wrappers.toml
         # One of uwt's own: it stays away over an upgrade, and comes back.
         uwtctl wrappers remove git && test ! -L /usr/bin/git && dpkg -i /uwt.deb && test ! -L /usr/bin/git
         uwtctl wrappers add git && test -L /usr/bin/git && ! grep git /etc/uwt.d/60_wrappers.toml
         # Before it is installed.
         uwtctl wrappers remove wget && uwtctl wrappers add wget && uwtctl wrappers list",
    )?;
    // purge undoes what was added, too.
    let root = installed(w, suite)?;
    done(
        &root,
        "uwtctl wrappers add pgrep && uwtctl wrappers disable curl && uwtctl wrappers remove git && dpkg -P uwt",
    )?;
    untouched(&root)
}

fn refused(w: &World, suite: &str) -> Result {
    let root = installed(w, suite)?;
    for (command, words) in [
        ("sudo", "setuid"),
        ("bash", "essential"),
        ("dpkg", "essential"),
        ("uwt", "uwt needs it"),
        ("no-such", "no such command"),
        ("/usr/bin/nowhere", "no such command"),
    ] {
        let o = root
            .sh(&format!("uwtctl wrappers add {command}"))
            .run()?
            .expect(125)?;
        ensure!(o.err.contains(words), "{command}: {o:#?}");
    }
    let o = root.sh("uwtctl wrappers remove crul").run()?.expect(125)?;
    ensure!(o.err.contains("did you mean curl"), "{o:#?}");
    let o = root
        .sh("su person -c 'uwtctl wrappers remove curl'")
        .run()?
        .expect(125)?;
    ensure!(o.err.contains("root"), "{o:#?}");
    // While dpkg is at work.
    let o = root
        .sh(
            "flock() { perl -e 'use Fcntl; open F, \"+>\", \"/var/lib/dpkg/lock-frontend\"; \
             my $l = pack(\"s s l! l! i\", F_WRLCK, 0, 0, 0, 0); fcntl(F, F_SETLK, $l) or die; \
             system(@ARGV); exit($? >> 8)' \"$@\"; }; flock uwtctl wrappers remove curl",
        )
        .run()?
        .expect(125)?;
    ensure!(o.err.contains("another process"), "{o:#?}");
    all_wrapped(&root)
}

fn enable(w: &World, suite: &str) -> Result {
    let root = installed(w, suite)?;
    let script = "uwtctl wrappers disable curl; curl --version | head -n 1
        uwtctl wrappers list | grep '^curl '
        uwtctl wrappers enable curl; uwtctl wrappers list | grep '^curl '
        printf '[command.git]\\nenabled = false\\n' > /etc/uwt.d/80_mine.toml; uwtctl wrappers enable git || echo $?";
    let o = done(&root, script)?;
    let words = |n: usize| {
        o.out
            .lines()
            .nth(n)
            .unwrap_or("")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    ensure!(words(2).contains("yes yes no pid"), "{o:#?}");
    ensure!(words(2).contains("60_wrappers.toml:"), "{o:#?}");
    ensure!(words(4).contains("yes yes yes pid"), "{o:#?}");
    ensure!(
        o.out.ends_with("125\n") && o.err.contains("80_mine.toml:2"),
        "{o:#?}"
    );
    // Disabled, it runs in the clear when it is typed alone, and carried within a run of uwt.
    let preload = "LD_PRELOAD= ; uwtctl wrappers disable curl >/dev/null; rm /etc/uwt.d/80_mine.toml
        cp /usr/bin/env /usr/bin/curl.anondist-orig; curl | grep -c LD_PRELOAD || true
        uwt --level preload sh -c curl | grep -c LD_PRELOAD; uwt --level preload curl | grep -c LD_PRELOAD";
    let o = done(&root, preload)?;
    ensure!(o.out == "0\n1\n1\n", "{o:#?}");
    Ok(())
}

fn come_and_go(w: &World, suite: &str) -> Result {
    let root = installed(w, suite)?;
    let dir = w.bed.path("come-and-go");
    fs::create_dir_all(&dir)?;
    // Its postinst script needs wget, which comes in the same run of dpkg: it finds the wrapper, never nothing and never the
    // bare command.
    let user = package(
        &dir,
        "needs-wget",
        "Depends: wget\n",
        &[(
            "DEBIAN/postinst",
            "755",
            b"#!/bin/sh\nset -e\nreadlink $(command -v wget) > /needs-wget\nwget --version >/dev/null\n",
        )],
    )?;
    fs::copy(user, root.file("/root/user.deb"))?;
    let o = done(
        &root,
        "dpkg -i /root/user.deb /srv/repo/wget.deb >/dev/null; cat /needs-wget; readlink /usr/bin/wget
         dpkg-query -W -f '${Status}\\n' wget; uwtctl wrappers list | grep '^wget '; wget --version | head -n 1
         dpkg -P needs-wget wget >/dev/null; ls /usr/bin/wget* 2>/dev/null || echo none
         # Installed while uwt's own trigger cannot run: absent, not bare.
         mv /usr/libexec/uwt/divert /root; dpkg -i /srv/repo/wget.deb || true
         ls /usr/bin/wget 2>/dev/null || echo absent; mv /root/divert /usr/libexec/uwt; dpkg --configure -a; readlink /usr/bin/wget",
    )?;
    let lines: Vec<&str> = o
        .out
        .lines()
        .filter(|l| !l.starts_with("Setting") && !l.starts_with("Processing"))
        .collect();
    ensure!(
        lines.first() == Some(&"/usr/bin/uwt") && lines.get(1) == Some(&"/usr/bin/uwt"),
        "{o:#?}"
    );
    ensure!(lines.get(2) == Some(&"install ok installed"), "{o:#?}");
    ensure!(
        lines.contains(&"none") && lines.contains(&"absent"),
        "{o:#?}"
    );
    ensure!(lines.last() == Some(&"/usr/bin/uwt"), "{o:#?}");
    // An upgrade of what is wrapped changes what is behind the wrapper.
    let o = done(
        &root,
        "dpkg -i /srv/repo/up-curl.deb /srv/repo/up-git.deb /srv/repo/up-openssh-client.deb >/dev/null
         dpkg -V curl git openssh-client; dpkg-query -W -f '${Version}\\n' curl | grep -c uwt1; git --version",
    )?;
    ensure!(o.out.starts_with("1\ngit version"), "{o:#?}");
    all_wrapped(&root)
}

fn upgrade(w: &World, suite: &str) -> Result {
    let root = fresh(w, suite)?;
    let old = other_version(
        w,
        "4:0.0.9",
        Some("s/uwt-torshim 0\\.1\\./uwt-torshim 0.0./"),
    )?;
    fs::copy(old, root.file("/root/old.deb"))?;
    let o = done(
        &root,
        "dpkg -i /root/old.deb >/dev/null; uwt --explain curl | grep -c shim; uwtctl wrappers add pgrep; uwtctl wrappers disable git
         echo '# mine' >> /etc/uwt.d/30_default.toml; cp -a /etc/uwt.d /root/before
         dpkg --force-confdef -i /uwt.deb >/dev/null 2>&1; diff -r /etc/uwt.d /root/before; uwtctl wrappers list >/dev/null
         uwtctl config check; readlink /usr/bin/pgrep; dpkg-query -W -f '${Version}\\n' uwt
         # dpkg asks nothing: the conffile of the new version is the old one's.
         uwtctl config show git | grep ^enabled",
    )?;
    ensure!(o.out.contains("/usr/bin/uwt\n4:0.1.0\n"), "{o:#?}");
    ensure!(o.out.contains("false"), "{o:#?}");
    all_wrapped(&root)
}

/// A package as Whonix's own is made, by config-package-dev: scripts `CMD.anondist`, `CMD` a link to them.
pub fn whonix_package(w: &World) -> Result<std::path::PathBuf> {
    let folder = w.bed.path("whonix");
    let deb = folder.join("uwt_10.0-1_all.deb");
    if deb.exists() {
        return Ok(deb);
    }
    let script = r##"
set -e
mkdir -p src/debian/source src/usr/bin src/etc/uwt.d src/etc/tor && cd src
cat > debian/control <<E
Source: uwt
Section: misc
Priority: optional
Maintainer: nobody <a@example.org>
Build-Depends: debhelper-compat (= 13), config-package-dev

Package: uwt
Architecture: all
Provides: \${diverted-files}
Conflicts: \${diverted-files}
Description: as Whonix has it
E
printf 'uwt (3:10.0-1) unstable; urgency=low\n\n  * x\n\n -- nobody <a@example.org>  Mon, 01 Jan 2024 00:00:00 +0000\n' > debian/changelog
printf '#!/usr/bin/make -f\n%%:\n\tdh $@ --with=config-package\n' > debian/rules
chmod 755 debian/rules
echo .anondist > debian/uwt.displace-extension
printf 'etc/*\nusr/*\n' > debian/uwt.install
: > debian/uwt.displace
for c in apt apt-get curl git ssh wget; do
    printf '#!/bin/sh\n# whonix\nexec /usr/bin/%s.anondist-orig "$@"\n' $c > usr/bin/$c.anondist
    chmod 755 usr/bin/$c.anondist
    echo /usr/bin/$c.anondist >> debian/uwt.displace
done
echo 'uwtwrapper["/usr/bin/curl"]="0"' > etc/uwt.d/30_uwt_default.conf
echo 'AllowInbound 1' > etc/gai.conf.anondist
echo /etc/gai.conf.anondist >> debian/uwt.displace
dpkg-buildpackage -b -us -uc >/dev/null 2>../log || { cat ../log >&2; exit 1; }
"##;
    fs::create_dir_all(&folder)?;
    let o = w
        .bed
        .run("sh")
        .args(["-c", script])
        .folder(&folder)
        .run()?
        .expect(0)?;
    ensure!(deb.exists(), "{o:#?}");
    Ok(deb)
}

fn whonix(w: &World, suite: &str) -> Result {
    let root = fresh(w, suite)?;
    fs::copy(whonix_package(w)?, root.file("/root/whonix.deb"))?;
    let o = done(
        &root,
        "dpkg -i /root/whonix.deb >/dev/null; readlink /usr/bin/curl; readlink /usr/bin/wget; readlink /etc/gai.conf; curl --version >/dev/null
         dpkg -i /uwt.deb; uwtctl wrappers list",
    )?;
    ensure!(
        o.out
            .starts_with("curl.anondist\nwget.anondist\ngai.conf.anondist\n"),
        "{o:#?}"
    );
    ensure!(
        o.out
            .contains("/etc/uwt.d/30_uwt_default.conf is for Whonix's uwt"),
        "{o:#?}"
    );
    ensure!(!o.err.contains("downgrad"), "{o:#?}");
    all_wrapped(&root)?;
    ensure!(
        fs::symlink_metadata(root.file("/usr/bin/wget")).is_err(),
        "there is a wget"
    );
    let o = root
        .sh("cat /etc/uwt.d/30_uwt_default.conf; uwtctl config migrate; ls /usr/bin | grep -c 'anondist$' || true; test ! -L /etc/gai.conf")
        .run()?
        .expect(0)?;
    ensure!(
        o.out.starts_with("uwtwrapper[") && o.out.contains("enabled = false"),
        "{o:#?}"
    );
    ensure!(o.out.ends_with("\n0\n"), "{o:#?}");
    done(&root, "dpkg -P uwt")?;
    untouched(&root)
}

fn others(w: &World, suite: &str) -> Result {
    let root = fresh(w, suite)?;
    let o = done(
        &root,
        "dpkg-divert --quiet --local --rename --divert /usr/bin/git.mine --add /usr/bin/git; echo '#!/bin/sh' > /usr/bin/git; chmod 755 /usr/bin/git
         dpkg -i /uwt.deb; cat /usr/bin/git; uwtctl wrappers list || echo $?",
    )?;
    ensure!(
        o.err
            .contains("/usr/bin/git has no wrapper: a local diversion has it"),
        "{o:#?}"
    );
    ensure!(
        o.out
            .contains("git: no wrapper: local diverts /usr/bin/git")
            && o.out.ends_with("1\n"),
        "{o:#?}"
    );
    done(
        &root,
        "dpkg -P uwt; head -c 9 /usr/bin/git; rm /usr/bin/git; dpkg-divert --quiet --local --rename --remove /usr/bin/git",
    )?;
    untouched(&root)?;
    // A file in the way is nobody's to write over.
    let root = fresh(w, suite)?;
    let o = done(
        &root,
        "echo precious > /usr/bin/curl.anondist-orig; dpkg -i /uwt.deb; cat /usr/bin/curl.anondist-orig; curl --version | head -n 1",
    )?;
    ensure!(
        o.err.contains("curl.anondist-orig is in the way") && o.out.contains("precious"),
        "{o:#?}"
    );
    done(&root, "dpkg -P uwt; rm /usr/bin/curl.anondist-orig")?;
    untouched(&root)?;
    // Another package that diverts the same: never both.
    let root = fresh(w, suite)?;
    fs::copy(whonix_package(w)?, root.file("/root/whonix.deb"))?;
    let o = root
        .sh("cd /root; dpkg-deb -R whonix.deb x; sed -i 's/^Package: uwt/Package: other/' x/DEBIAN/control; \
             sed -i 's/package=uwt/package=other/' x/DEBIAN/p*; dpkg-deb -b x other.deb >/dev/null; \
             dpkg -i other.deb >/dev/null; dpkg -i /uwt.deb")
        .run()?
        .expect(1)?;
    ensure!(o.err.contains("conflicting packages"), "{o:#?}");
    Ok(())
}

fn broken(w: &World, suite: &str) -> Result {
    let root = installed(w, suite)?;
    // The upgrade says so, and every wrapper stays; what is installed meanwhile is absent, not bare.
    let o = done(
        &root,
        "echo 'prot = 9050' > /etc/uwt.d/90_typo.toml; dpkg -i /uwt.deb && exit 1
         dpkg -i /srv/repo/wget.deb >/dev/null; ls /usr/bin/wget 2>/dev/null && exit 1
         curl --version && exit 1; UWT_DEV_PASSTHROUGH=1 apt-get --version >/dev/null
         rm /etc/uwt.d/90_typo.toml; dpkg --configure -a >/dev/null; uwtctl wrappers list >/dev/null; readlink /usr/bin/wget",
    )?;
    ensure!(
        o.err.contains("90_typo.toml:1") && o.err.contains("\"port\""),
        "{o:#?}"
    );
    ensure!(o.out.contains("/usr/bin/uwt\n"), "{o:#?}");
    all_wrapped(&root)
}

fn no_proc(w: &World, suite: &str) -> Result {
    let root = installed(w, suite)?;
    let script =
        "umount /proc; curl --version || echo $?; UWT_DEV_PASSTHROUGH=1 curl --version | head -n 1";
    let o = done(&root, script)?;
    ensure!(
        o.err.contains("mount /proc") && o.out.starts_with("125\ncurl "),
        "{o:#?}"
    );
    Ok(())
}

fn manuals(w: &World, suite: &str) -> Result {
    let root = installed(w, suite)?;
    // groff is not in the systems: the test machine's reads their pages.
    for (page, words) in [
        ("man1/uwt.1.gz", vec!["--isolate", "UWT_DEV_PASSTHROUGH"]),
        ("man8/uwtctl.8.gz", vec!["wrappers add"]),
        ("man5/uwt.toml.5.gz", vec!["release", "nested_max"]),
    ] {
        let page = root.file(&format!("/usr/share/man/{page}"));
        let shown = page.display().to_string();
        let script = format!("man --warnings -E UTF-8 -l '{shown}' 2>&1 | col -b");
        let o = w
            .bed
            .run("sh")
            .args(["-c", &script])
            .env("MANWIDTH", "100")
            .run()?
            .expect(0)?;
        for word in words {
            ensure!(o.out.contains(word), "{word}: {o:#?}");
        }
        ensure!(!o.out.contains("warning"), "{o:#?}");
    }
    // Every option and every setting has its place in them.
    let o = done(
        &root,
        "uwt --help; gzip -dc /usr/share/man/man1/uwt.1.gz | tr -d '\\\\'",
    )?;
    let (help, page) = o.out.split_once(".Dd").ok_or("no page")?;
    let options = help.split_whitespace().filter_map(|w| w.strip_prefix("--"));
    for option in options.map(|o| o.split(['=', '[', ',']).next().unwrap_or(o)) {
        ensure!(
            page.contains(&format!(" -{option}")),
            "--{option} is not in uwt(1)"
        );
    }
    let o = done(
        &root,
        "uwtctl config show; gzip -dc /usr/share/man/man5/uwt.toml.5.gz",
    )?;
    let (settings, page) = o.out.split_once(".Dd").ok_or("no page")?;
    for setting in settings.lines().filter_map(|l| l.split(' ').next()) {
        ensure!(
            page.contains(&format!("Cm {setting}")),
            "{setting} is not in uwt.toml(5)"
        );
    }
    // Completion as a person at a prompt has it.
    let script = ". /usr/share/bash-completion/bash_completion
        . /usr/share/bash-completion/completions/uwtctl; . /usr/share/bash-completion/completions/uwt
        try() { COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); COMP_LINE=\"$*\"; COMP_POINT=${#COMP_LINE}; COMPREPLY=(); _$1; echo \"${COMPREPLY[*]}\"; }
        try uwt --le; try uwt --level n; try uwt sudo --prese; try uwtctl wrappers en; try uwtctl wrappers remove rico";
    fs::write(root.file("/root/complete.sh"), script)?;
    let o = done(&root, "bash /root/complete.sh")?;
    let lines: Vec<&str> = o.out.lines().collect();
    ensure!(lines[..2] == ["--level", "netns"], "{o:#?}");
    ensure!(lines[3..] == ["enable", "ricochet"], "{o:#?}");
    tool(
        "sh",
        &[
            "-n",
            &root.file("/etc/profile.d/uwt.sh").display().to_string(),
        ],
    )
}

fn smoke(w: &World, suite: &str) -> Result {
    let root = installed(w, suite)?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../debian/tests/smoke");
    fs::copy(script, root.file("/root/smoke"))?;
    // What it asks for leaves no packet but on loopback.
    let o = crate::debian::held(w, &root, "sh -x /root/smoke")?;
    ensure!(o.out.ends_with("ok\n"), "{o:#?}");
    Ok(())
}
