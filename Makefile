# make demo   builds hotplugger and shows it at work in a virtual host
# make test   runs all tests
# Both install the Debian packages they miss (as root) and say so.

ARCH      := $(shell uname -m)
MUSL      := $(ARCH)-unknown-linux-musl
GNU       := $(ARCH)-unknown-linux-gnu
# A static program runs on every distribution, and starts fastest on musl.
TARGET    := $(shell rustup target list --installed 2>/dev/null | grep -qx $(MUSL) && echo $(MUSL) || echo $(GNU))
BINARY    := target/$(TARGET)/release/hotplugger
PREFIX    := /usr/local
DESTDIR   :=

.PHONY: all demo test unit e2e lint build packages install uninstall clean

all: build

build:
	@command -v cargo >/dev/null || { echo "hotplugger is built with Rust 1.89 or later: see https://rustup.rs" >&2; exit 1; }
	RUSTFLAGS="$(RUSTFLAGS) -C target-feature=+crt-static" cargo build --release --locked --target $(TARGET)

demo: packages build
	@python3 tests/e2e/demo.py --binary $(BINARY)

test: lint unit e2e

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

unit: packages
	cargo test --locked

e2e: packages build
	python3 tests/e2e/run.py --binary $(BINARY)

# What the tests and the demo need beside Rust.
packages:
	@PYTHONPATH=tests/e2e python3 -c 'from rig import packages; packages.require(install=True)'

install: build
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/hotplugger
	install -d $(DESTDIR)/etc/udev/rules.d
	sed 's|/usr/bin/hotplugger|$(PREFIX)/bin/hotplugger|' rules/99-hotplugger.rules > $(DESTDIR)/etc/udev/rules.d/99-hotplugger.rules
	test -e $(DESTDIR)/etc/hotplugger/config.yaml || install -D -m 644 config.yaml $(DESTDIR)/etc/hotplugger/config.yaml
	test -n "$(DESTDIR)" || udevadm control --reload

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/hotplugger $(DESTDIR)/etc/udev/rules.d/99-hotplugger.rules
	test -n "$(DESTDIR)" || udevadm control --reload

clean:
	cargo clean
