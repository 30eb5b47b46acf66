#!/bin/sh
# Installs Debian packages that a step needs and that are missing. Usage: install-deps.sh build|demo|package|test
#
# Asks apt only when something is missing, so that a machine that has everything needs no network.
set -eu

build='gcc libc6-dev'
demo="$build tor iproute2 curl wget python3 git busybox-static util-linux procps"
package="$build debhelper dpkg-dev git"
test="$demo $package shellcheck torsocks proxychains4 wget openssh-server python3 perl busybox-static musl-tools
    gcc-multilib golang-go iputils-ping netcat-openbsd gnupg dirmngr apt-utils libcap2-bin
    nodejs passwd file binutils mmdebstrap lintian piuparts
    config-package-dev man-db bsdextrautils groff-base debian-archive-keyring
    nftables iptables openvpn wireguard-go wireguard-tools"

case "${1:-}" in
    build) wanted=$build ;;
    demo) wanted=$demo ;;
    package) wanted=$package ;;
    test) wanted=$test ;;
    *)
        echo "usage: install-deps.sh build|demo|package|test" >&2
        exit 2
        ;;
esac

missing=
for package in $wanted; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    run=
elif command -v sudo >/dev/null; then
    run=sudo
else
    echo "uwt: missing packages:$missing" >&2
    echo "  fix: install them as root: apt-get install$missing" >&2
    exit 1
fi
echo "installing:$missing"
# A Tor daemon of the system's own is not needed.
export DEBIAN_FRONTEND=noninteractive
$run apt-get update -q
# shellcheck disable=SC2086  # a list of packages
$run apt-get install -q -y --no-install-recommends $missing
