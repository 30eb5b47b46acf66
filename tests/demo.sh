#!/bin/sh
# `make demo`: a private, real Tor network on this machine, real commands through it, and Tor's own list of their
# circuits. Nothing leaves the machine.
set -eu
cd "$(dirname "$0")/.."
bed=target/release/uwt-testbed
here=$PWD

if [ "$(id -u)" != 0 ] && ! unshare -Un true 2>/dev/null; then
    echo "the demo needs root or user namespaces: sudo make demo" >&2
    exit 1
fi

cat >target/demo-inside.sh <<'INSIDE'
set -u
uwt=$1/target/release/uwt
show() {
    echo
    echo "\$ uwt $*"
    "$uwt" "$@" || echo "(exit code $?)"
}
show curl -sS http://www.example:18080/hello
show wget -q -O- http://www.example:18080/hello
show python3 -c 'import urllib.request as u; print(u.urlopen("http://www.example:18080/python").read().decode(), end="")'
echo
echo "An onion service; its descriptor is published some seconds after the network is up:"
show curl -sS --retry 20 --retry-delay 1 --retry-all-errors --stderr /dev/null "http://$UWT_TEST_ONION/onion"
echo
echo "One run, three processes, three circuits:"
show sh -c 'for i in 1 2 3; do curl -sS http://www.example:18080/process-$i; done'
echo
echo "Tor's own word (control port, GETINFO circuit-status): a circuit for each process"
"$1/target/release/uwt-testbed" circuits
echo
echo "What Tor does not carry is refused, with the reason:"
show bash -c 'echo x >/dev/udp/198.51.100.7/123'
echo
echo "A static program, which no library can be loaded into, is carried by the network namespace:"
show busybox wget -q -O- http://www.example:18080/static
echo
echo "With the library alone it would get out, so it is not started:"
show --level preload busybox wget -q -O- http://www.example:18080/static
echo
echo "What would be done, and why, without doing it:"
show --explain -i=tree git clone http://www.example/x.git
INSIDE

exec "$bed" run sh target/demo-inside.sh "$here"
