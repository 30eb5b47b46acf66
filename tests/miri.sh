#!/bin/sh
# Runs uwt-core's unit tests under Miri, which sees undefined behaviour. Not every toolchain has it.
set -eu
cd "$(dirname "$0")/.."
if cargo +nightly miri --version >/dev/null 2>&1; then
    # Build paths are remapped elsewhere; Miri's own flags must stay alone.
    RUSTFLAGS='' MIRIFLAGS=-Zmiri-strict-provenance cargo +nightly miri test -p uwt-core --lib
else
    echo "skipped: uwt-core under Miri: this toolchain has no Miri"
    echo "  to run it: rustup toolchain install nightly --component miri rust-src"
fi
