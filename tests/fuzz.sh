#!/bin/sh
# Runs each fuzz target for SECONDS (60), one after the other. Usage: fuzz.sh [SECONDS [TARGET...]]
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-60}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- socks5 handoff names route elf dns config broker firewall
if ! cargo +nightly fuzz --version >/dev/null 2>&1; then
    echo "cargo-fuzz and a nightly toolchain are needed:" >&2
    echo "  rustup toolchain install nightly && cargo install cargo-fuzz" >&2
    exit 1
fi
# The build's path remapping is no good for a sanitizer's reports.
unset RUSTFLAGS
for target in "$@"; do
    mkdir -p "fuzz/corpus/$target"
    echo "== $target, $seconds s"
    cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len=2048 -print_final_stats=1 -verbosity=0
done
