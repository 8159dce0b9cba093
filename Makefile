# make demo   builds hotplugger and shows it at work in a virtual host
# make test   runs all tests
# make release   builds the program as it is installed
# make deb, make rpm, make tarball   make packages of what was built
# The first two install the Debian packages they miss (as root) and say so.

ARCH      := $(shell uname -m)
MUSL      := $(ARCH)-unknown-linux-musl
GNU       := $(ARCH)-unknown-linux-gnu
# A static program runs on every distribution, and starts fastest on musl.
TARGET    := $(shell rustup target list --installed 2>/dev/null | grep -qx $(MUSL) && echo $(MUSL) || echo $(GNU))
# Where `build` leaves it, whichever of the two it was.
BINARY    := target/release/hotplugger
PREFIX    := /usr/local
DESTDIR   :=

.PHONY: all demo test unit e2e torture bench lint build release packages install uninstall deb rpm tarball clean

all: build

build: release

# Small, and ready at once: static, nothing to relocate, and no tables for unwinding, which a program
# that aborts on a panic has no use for.
ifeq ($(TARGET),$(MUSL))
LEAN      := -C link-arg=-Wl,-T,$(CURDIR)/release.ld
endif

release:
	@command -v cargo >/dev/null || { echo "hotplugger is built with Rust 1.89 or later: see https://rustup.rs" >&2; exit 1; }
	RUSTFLAGS="$(RUSTFLAGS) -C target-feature=+crt-static -C relocation-model=static $(LEAN)" cargo build --release --locked --target $(TARGET)
	@mkdir -p target/release && cp target/$(TARGET)/release/hotplugger $(BINARY)

demo: packages build
	@python3 tests/e2e/demo.py --binary $(BINARY)

test: lint unit e2e

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps --quiet

unit: packages build
	HOTPLUGGER_RELEASE=$(CURDIR)/$(BINARY) cargo test --locked

e2e: packages build
	python3 tests/e2e/run.py --binary $(BINARY)

# The fault campaign: SEED=7 STEPS=2000 MINUTES=60 plays the same again.
torture: packages build
	python3 tests/e2e/torture.py --binary $(BINARY) $(if $(SEED),--seed $(SEED)) \
	    --steps $(or $(STEPS),2000) --minutes $(or $(MINUTES),60)

# How fast it is: writes docs/performance.md. On an idle machine, half an hour.
bench: packages build
	python3 tests/bench/bench.py --binary $(BINARY)

# What the tests and the demo need beside Rust.
packages:
	@PYTHONPATH=tests/e2e python3 -c 'from rig import packages; packages.require(install=True)'

# As root, onto this machine; or with DESTDIR what a package holds, from which all packages are made.
# Does not build: root's cargo may be another one.
SHARE     := $(DESTDIR)$(PREFIX)/share
# What the rule and the hooks start.
PROGRAM   := $(PREFIX)/bin/hotplugger

install:
	@test -e $(BINARY) || { echo "run \`make build\` first" >&2; exit 1; }
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/hotplugger
	install -d $(SHARE)/man/man1 $(SHARE)/man/man5 $(SHARE)/licenses/hotplugger
	install -d $(SHARE)/doc/hotplugger/docs $(SHARE)/doc/hotplugger/examples
	install -m 644 man/*.1 $(SHARE)/man/man1
	install -m 644 man/*.5 $(SHARE)/man/man5
	install -m 644 README.md CHANGELOG.md $(SHARE)/doc/hotplugger
	install -m 644 docs/*.md docs/*.svg $(SHARE)/doc/hotplugger/docs
	install -m 644 config.yaml $(SHARE)/doc/hotplugger/examples
	install -m 644 LICENSE-APACHE LICENSE-MIT $(SHARE)/licenses/hotplugger
	install -D -m 644 completions/hotplugger.bash $(SHARE)/bash-completion/completions/hotplugger
	install -D -m 644 completions/_hotplugger $(SHARE)/zsh/site-functions/_hotplugger
	install -D -m 644 completions/hotplugger.fish $(SHARE)/fish/vendor_completions.d/hotplugger.fish
ifeq ($(DESTDIR),)
	$(PROGRAM) install
else
	$(BINARY) install --package --root $(DESTDIR) --program $(PROGRAM)
endif

# A packager deletes DESTDIR.
uninstall:
	$(PROGRAM) uninstall
	rm -f $(PREFIX)/bin/hotplugger $(SHARE)/man/man1/hotplugger.1 $(SHARE)/man/man1/hotplugger-*.1 $(SHARE)/man/man5/hotplugger.yaml.5
	rm -rf $(SHARE)/doc/hotplugger $(SHARE)/licenses/hotplugger
	rm -f $(SHARE)/bash-completion/completions/hotplugger $(SHARE)/zsh/site-functions/_hotplugger
	rm -f $(SHARE)/fish/vendor_completions.d/hotplugger.fish

# Packages of what \`make build\` has left, in target/package.
deb rpm:
	@test -e $(BINARY) || { echo "run \`make build\` first" >&2; exit 1; }
	BINARY=$(BINARY) packaging/$@/build target/package

# For all other systems: the program, which installs itself, and what is to be read.
tarball: VERSION := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml | head -n 1)
tarball:
	@test -e $(BINARY) || { echo "run \`make build\` first" >&2; exit 1; }
	mkdir -p target/package
	tar -czf target/package/hotplugger-$(VERSION)-$(ARCH)-linux.tar.gz --owner=root:0 --group=root:0 \
	    --transform 's,^,hotplugger-$(VERSION)/,' --transform 's,target/release/,,' \
	    $(BINARY) README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT config.yaml docs man completions

clean:
	cargo clean
