#!/bin/sh
# Builds the Debian package from what is in this tree: dpkg-buildpackage writes beside its tree, so it gets a copy in
# target/package, and the package is put there.
set -eu
cd "$(dirname "$0")/.."
sh tests/install-deps.sh package

tree=target/package/uwt
mkdir -p "$tree"
# Its own target/ stays, so that a second build is short.
find "$tree" -mindepth 1 -maxdepth 1 ! -name target -exec rm -rf {} +
git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -T - -c 2>/dev/null | tar -C "$tree" -x
rm -f target/package/*.deb
cd "$tree"
dpkg-buildpackage -b -us -uc "$@"
