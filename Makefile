# The two commands that a newcomer needs are `make demo` and `make test`; each installs what it lacks.
#
#   make build              target/release/{uwt,uwtctl,libtorshim.so}, usable from there
#   make demo               a private Tor network, real commands through it, their circuits
#   make test               everything: format, lints, shell, docs, unit and behaviour tests
#   make test-firewall      the firewall alone: hosts joined by a cable, real packets
#   make package            the Debian package, in target/package
#   make bench              ratios against torsocks, proxychains4 and the bare command, in one run
#   make fuzz [SECONDS=60]  each fuzz target for that long (needs a nightly toolchain)
#   make install DESTDIR=   what the package installs

PREFIX   ?= /usr
DESTDIR  ?=
SECONDS  ?= 60
MULTIARCH ?= $(shell dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || $(CC) -print-multiarch)
LIBDIR   := $(PREFIX)/lib/$(MULTIARCH)/uwt
RELEASE  := target/release
SHARE    := $(DESTDIR)$(PREFIX)/share

# Build paths must not end up in a library that lives in every process.
export RUSTFLAGS := --remap-path-prefix=$(CURDIR)=uwt --remap-path-prefix=$(HOME)/.cargo=cargo $(RUSTFLAGS)

.PHONY: vendor install-uwt install-firewall test-firewall package package-unit test-package build demo test check unit behaviour bench fuzz miri install clean deps-build deps-test

# Where crates come from: a vendor/ folder if there is one (`make vendor`), and then nothing is fetched.
ifneq ($(wildcard vendor/.),)
CARGO := cargo --offline --config 'source.crates-io.replace-with="vendored"' --config 'source.vendored.directory="vendor"'
else
CARGO := cargo
endif

build: deps-build
	$(CARGO) build --release --locked

demo: build
	sh tests/install-deps.sh demo
	cargo build --release --locked -p uwt-tests --bins
	sh tests/demo.sh

test: deps-test check unit behaviour test-firewall test-package

# What can be said without running the programs.
check: build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	shellcheck tests/*.sh .ci/run etc/libexec/divert etc/libexec/firewall-load etc/profile.d/*.sh etc/completions/*.bash debian/uwt.p* debian/uwt-firewall.p* debian/tests/smoke
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --document-private-items
	sh tests/check-shim.sh

unit: build
	cargo test --locked -p uwt-core -p uwt-bin
	sh tests/miri.sh

# As root and, where root is, as an ordinary user too: root hides what setuid bits do.
behaviour: build
	cargo test --release --locked -p uwt-tests --bins --lib --test all --test corpora

# Hosts joined by a cable, real packets.
test-firewall: build deps-test
	cargo test --release --locked -p uwt-tests --test firewall

# The package, in Debian systems of its own; what Debian asks of it.
test-package: deps-test
	DEB_BUILD_OPTIONS=nocheck sh tests/package.sh
	sh tests/policy.sh
	sh tests/roots.sh bookworm trixie
	cargo test --release --locked -p uwt-tests --test package

bench: deps-test build
	cargo run --release --locked -p uwt-tests --bin uwt-bench
	cargo run --release --locked -p uwt-tests --bin uwt-bench-firewall

fuzz:
	sh tests/fuzz.sh $(SECONDS)

miri:
	sh tests/miri.sh

# For a build without network, as Debian's build daemons do it.
vendor:
	cargo vendor --locked --quiet vendor >/dev/null

# What debian/rules runs as the package's own tests.
package-unit:
	$(CARGO) test --locked -p uwt-core -p uwt-bin

# uwt_*.deb, in target/package. Its build folder is a clone: dpkg-buildpackage writes into debian/ and beside the tree.
package:
	sh tests/package.sh

deps-build:
	sh tests/install-deps.sh build

deps-test:
	sh tests/install-deps.sh test

install: install-uwt install-firewall

install-firewall:
	install -D -m 0644 etc/uwt/firewall.toml $(DESTDIR)/etc/uwt/firewall.toml
	install -D -m 0755 etc/libexec/firewall-load $(DESTDIR)$(PREFIX)/libexec/uwt/firewall-load
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system etc/systemd/*.service
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/lib/sysctl.d etc/sysctl.d/*.conf
	install -D -m 0644 -t $(SHARE)/man/man5 docs/man/firewall.toml.5
	install -d -m 0700 $(DESTDIR)/var/lib/uwt-firewall

install-uwt:
	install -D -m 0755 $(RELEASE)/uwt $(DESTDIR)$(PREFIX)/bin/uwt
	install -D -m 0755 $(RELEASE)/uwtctl $(DESTDIR)$(PREFIX)/bin/uwtctl
	install -D -m 0644 $(RELEASE)/libtorshim.so $(DESTDIR)$(LIBDIR)/libtorshim.so
	install -D -m 0755 etc/libexec/divert $(DESTDIR)$(PREFIX)/libexec/uwt/divert
	install -D -m 0644 -t $(DESTDIR)/etc/uwt.d etc/uwt.d/*.toml
	install -D -m 0644 -t $(DESTDIR)/etc/profile.d etc/profile.d/*
	install -D -m 0644 -t $(SHARE)/man/man1 docs/man/*.1
	install -D -m 0644 -t $(SHARE)/man/man5 docs/man/uwt.toml.5
	install -D -m 0644 -t $(SHARE)/man/man8 docs/man/*.8
	for c in uwt uwtctl; do \
		install -D -m 0644 etc/completions/$$c.bash $(SHARE)/bash-completion/completions/$$c && \
		install -D -m 0644 etc/completions/$$c.zsh $(SHARE)/zsh/vendor-completions/_$$c && \
		install -D -m 0644 etc/completions/$$c.fish $(SHARE)/fish/vendor_completions.d/$$c.fish || exit 1; \
	done

clean:
	cargo clean
