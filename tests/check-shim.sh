#!/bin/sh
# What must hold of libtorshim.so as a file: it lives in every process of a run.
set -eu
cd "$(dirname "$0")/.."
shim=target/release/libtorshim.so
[ -f "$shim" ] || cargo build --release --locked -p libtorshim
failed=0

size=$(stat -c %s "$shim")
if [ "$size" -gt $((400 * 1024)) ]; then
    echo "FAIL: $shim is $size bytes, more than 400 KiB"
    failed=1
fi

# libc and its loader, nothing else.
extra=$(readelf -d "$shim" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | grep -v -E '^(libc\.so\.6|ld-linux.*)$' || true)
if [ -n "$extra" ]; then
    echo "FAIL: $shim needs $extra"
    failed=1
fi

# The unwinder's stand-ins must never meet a program's own exceptions.
if nm -D --defined-only "$shim" | grep -q _Unwind; then
    echo "FAIL: $shim exports _Unwind symbols"
    failed=1
fi

for path in "$PWD" "$HOME"; do
    if [ "$path" != / ] && grep -a -q -F "$path" "$shim"; then
        echo "FAIL: $shim carries the path $path"
        failed=1
    fi
done

# redhook fails open under unwind: the build itself must refuse.
if RUSTFLAGS="${RUSTFLAGS:-} -C panic=unwind" CARGO_PROFILE_DEV_PANIC=unwind \
    cargo check -q --locked -p libtorshim --target-dir target/unwind 2>target/unwind.log; then
    echo "FAIL: libtorshim compiles with panic = \"unwind\""
    failed=1
elif ! grep -q 'redhook fails open' target/unwind.log; then
    echo "FAIL: libtorshim does not compile with panic = \"unwind\", but not for that reason:"
    cat target/unwind.log
    failed=1
fi

[ $failed = 0 ] && echo "shim: $size bytes, linked to libc only, no paths, refuses panic = \"unwind\""
exit $failed
