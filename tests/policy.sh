#!/bin/sh
# What Debian asks of the package that `make package` has made: it builds without network from vendored crates, lintian has
# nothing to say, piuparts finds nothing left behind.
set -eu
cd "$(dirname "$0")/../target/package"

echo "lintian"
said=$(lintian --fail-on error,warning --tag-display-limit 0 uwt_*.changes 2>&1) || {
    echo "$said"
    exit 1
}

echo "offline, from vendored crates"
offline=$PWD/offline
rm -rf "$offline"
mkdir "$offline"
cp -a uwt "$offline/uwt"
(
    cd "$offline/uwt"
    make --no-print-directory vendor
    # A user namespace where there is no root: without network either way.
    if [ "$(id -u)" = 0 ]; then alone='unshare -n'; else alone='unshare -rn'; fi
    DEB_BUILD_OPTIONS=nocheck $alone dpkg-buildpackage -b -us -uc >../log 2>&1 || {
        tail -n 40 ../log
        exit 1
    }
)
ls "$offline"/uwt_*.deb >/dev/null
rm -rf "$offline"

if [ "$(id -u)" != 0 ]; then
    echo "skipped: piuparts needs root"
    exit 0
fi
# What piuparts tries it in.
suite=$(sed -n "s/^VERSION_CODENAME=//p" /etc/os-release)
sh ../../tests/roots.sh "$suite"
echo "piuparts in $suite"
base=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$base"' EXIT
tar -C ../roots/"$suite" -czf "$base" .
piuparts -b "$base" -d "$suite" --no-eatmydata uwt_*.deb uwt-firewall_*.deb >piuparts.log 2>&1 || {
    grep -A 20 ERROR piuparts.log
    exit 1
}
grep 'PASS: All tests' piuparts.log
