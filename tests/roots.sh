#!/bin/sh
# Makes the Debian systems in which the package is tried, as target/roots/SUITE: once, from the machine's own mirror.
# Usage: roots.sh SUITE...
#
# In each, /srv/repo has what is installed there later, from a repository of the tests' own; with "+uwt1" behind its
# version what is upgraded.
set -eu
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
    echo "skipped: Debian systems to try the package in need root"
    exit 0
fi
mkdir -p target/roots
mirror=$(sed -n 's/^URIs: *//p; s/^deb \(\[[^]]*\] \)*\(http[^ ]*\) .*/\2/p' /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | grep '/debian/*$' | head -n 1)
packages=bash-completion,ca-certificates,cron,curl,git,gnupg,iproute2,libcap2-bin,netcat-openbsd,nftables,openssh-client,procps,sudo,systemd,systemd-sysv,util-linux,zlib1g
for suite in "$@"; do
    root=target/roots/$suite
    [ -e "$root" ] && continue
    rm -rf "$root.new"
    echo "making a $suite in $root"
    # shellcheck disable=SC2016  # the hooks' own variables
    mmdebstrap --quiet --variant=minbase --include="$packages" \
        --customize-hook='mkdir -p "$1/srv/repo"' \
        --customize-hook='chroot "$1" sh -c "cd /srv/repo && apt-get install -q -y --download-only --no-install-recommends \
            -o Dir::Cache::archives=/srv/repo wget busybox-static >/dev/null 2>&1 && apt-get download -q curl git openssh-client zlib1g >/dev/null 2>&1"' \
        --customize-hook='cd "$1/srv/repo" && rm -rf partial lock && for f in *.deb; do mv "$f" "${f%%_*}.deb"; done' \
        --customize-hook='cd "$1/srv/repo" && for f in curl.deb git.deb openssh-client.deb zlib1g.deb; do
            dpkg-deb -R "$f" x && sed -i "s/^Version: .*/&+uwt1/" x/DEBIAN/control && dpkg-deb -Zgzip -z1 -b x "up-$f" >/dev/null && rm -r x "$f" || exit 1; done' \
        --customize-hook='useradd --root "$1" -m -s /bin/bash person' \
        --customize-hook='echo "person ALL=(ALL) NOPASSWD: ALL" > "$1/etc/sudoers.d/person"' \
        "$suite" "$root.new" ${mirror:+"$mirror"}
    mv "$root.new" "$root"
done
