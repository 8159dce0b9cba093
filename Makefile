# make demo   builds hotplugger and shows it at work in a virtual host
# make test   runs all tests
# make release   builds the program as it is installed
# Both install the Debian packages they miss (as root) and say so.

ARCH      := $(shell uname -m)
MUSL      := $(ARCH)-unknown-linux-musl
GNU       := $(ARCH)-unknown-linux-gnu
# A static program runs on every distribution, and starts fastest on musl.
TARGET    := $(shell rustup target list --installed 2>/dev/null | grep -qx $(MUSL) && echo $(MUSL) || echo $(GNU))
# Where `build` leaves it, whichever of the two it was.
BINARY    := target/release/hotplugger
PREFIX    := /usr/local
DESTDIR   :=

.PHONY: all demo test unit e2e torture bench lint build release packages install uninstall clean

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

# As root, or into DESTDIR for packagers. Does not build: root's cargo may be another one.
install:
	@test -e $(BINARY) || { echo "run \`make build\` first" >&2; exit 1; }
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/hotplugger
ifeq ($(DESTDIR),)
	$(PREFIX)/bin/hotplugger install
else
	$(BINARY) install --root $(DESTDIR) --program $(PREFIX)/bin/hotplugger
endif

uninstall:
ifeq ($(DESTDIR),)
	$(PREFIX)/bin/hotplugger uninstall
else
	$(BINARY) uninstall --root $(DESTDIR)
endif
	rm -f $(DESTDIR)$(PREFIX)/bin/hotplugger

clean:
	cargo clean
