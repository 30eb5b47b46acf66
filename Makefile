# The two commands that a newcomer needs are `make demo` and `make test`; each installs what it lacks.
#
#   make build              target/release/{uwt,uwtctl,libtorshim.so}, usable from there
#   make demo               a private Tor network, real commands through it, their circuits
#   make test               everything: format, lints, shell, docs, unit and behaviour tests
#   make bench              ratios against torsocks, proxychains4 and the bare command, in one run
#   make fuzz [SECONDS=60]  each fuzz target for that long (needs a nightly toolchain)
#   make install DESTDIR=   what the package installs

PREFIX   ?= /usr
DESTDIR  ?=
SECONDS  ?= 60
MULTIARCH ?= $(shell dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || $(CC) -print-multiarch)
LIBDIR   := $(PREFIX)/lib/$(MULTIARCH)/uwt
RELEASE  := target/release
WRAPPERS := $(wildcard wrappers/*.toml)

# Build paths must not end up in a library that lives in every process.
export RUSTFLAGS := --remap-path-prefix=$(CURDIR)=uwt --remap-path-prefix=$(HOME)/.cargo=cargo $(RUSTFLAGS)

.PHONY: build demo test check unit behaviour bench fuzz miri install clean deps-build deps-test

build: deps-build
	cargo build --release --locked

demo: build
	sh tests/install-deps.sh demo
	cargo build --release --locked -p uwt-tests --bins
	sh tests/demo.sh

test: deps-test check unit behaviour

# What can be said without running the programs.
check: build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	shellcheck tests/*.sh .ci/run
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --document-private-items
	sh tests/check-shim.sh

unit: build
	cargo test --locked -p uwt-core -p uwt-bin
	sh tests/miri.sh

# As root and, where root is, as an ordinary user too: root hides what setuid bits do.
behaviour: build
	cargo test --release --locked -p uwt-tests

bench: deps-test build
	cargo run --release --locked -p uwt-tests --bin uwt-bench

fuzz:
	sh tests/fuzz.sh $(SECONDS)

miri:
	sh tests/miri.sh

deps-build:
	sh tests/install-deps.sh build

deps-test:
	sh tests/install-deps.sh test

install:
	install -D -m 0755 $(RELEASE)/uwt $(DESTDIR)$(PREFIX)/bin/uwt
	install -D -m 0755 $(RELEASE)/uwtctl $(DESTDIR)$(PREFIX)/bin/uwtctl
	install -D -m 0644 $(RELEASE)/libtorshim.so $(DESTDIR)$(LIBDIR)/libtorshim.so
	for f in etc/uwt.d/*.toml; do \
		install -D -m 0644 $$f $(DESTDIR)/etc/uwt.d/$$(basename $$f) || exit 1; \
	done

clean:
	cargo clean
