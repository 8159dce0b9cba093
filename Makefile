# make demo   builds hotplugger and shows it at work in a virtual host
# make test   runs all tests
# make quick   runs the tests that find most mistakes, in three minutes
# make matrix   runs the tests that need a real QEMU with QEMU 5.2 to 11.1
# make release   builds the program as it is installed
# make deb, make rpm, make tarball   make packages of the built program
# make release-files   makes all files of a release
# make reproducible   builds all files of a release in two directories and compares them
# The first two install the Debian packages they miss (as root) and say so.

ARCH      := $(shell uname -m)
MUSL      := $(ARCH)-unknown-linux-musl
GNU       := $(ARCH)-unknown-linux-gnu
# A static program runs on every distribution, and starts fastest with musl. Expanded after `toolchain`,
# which installs musl's target where rustup can.
TARGET     = $(shell test -d "$$(rustc --print target-libdir --target $(MUSL) 2>/dev/null)" && echo $(MUSL) || echo $(GNU))
# Where `build` leaves the program, whichever target it was.
BINARY    := target/release/hotplugger
# What ran where, and what was skipped and why: printed at the end of `make test`.
REPORT    := $(CURDIR)/target/test-report
PREFIX    := /usr/local
DESTDIR   :=

.PHONY: all demo picture test start-report quick unit e2e newest matrix campaign bench lint build release toolchain packages \
	install uninstall deb rpm tarball sbom release-files lint-packages reproducible clean

all: build

build: release

# Leaves out the tables for unwinding and the unwinder, which a program that aborts on a panic does not need:
# 1.75 MB in place of 2.10. glibc needs its own. A backtrace (RUST_BACKTRACE=1) walks no frame: getpid ignores
# the arguments of _Unwind_Backtrace. Nothing calls the others.
COMMA     := ,
UNWINDER  := DeleteException FindEnclosingFunction GetCFA GetDataRelBase GetIP GetIPInfo GetLanguageSpecificData GetRegionStart \
	GetTextRelBase RaiseException Resume SetGR SetIP
LEAN       = $(if $(filter $(MUSL),$(TARGET)),-C link-arg=-Wl$(COMMA)-T$(COMMA)$(CURDIR)/release.ld \
	-C link-arg=-Wl$(COMMA)--defsym=_Unwind_Backtrace=getpid \
	$(foreach name,$(UNWINDER),-C link-arg=-Wl$(COMMA)--defsym=_Unwind_$(name)=abort))

# The texts of panics have paths of source files. Without these options the program would depend on the directory
# of the checkout and on the user's home.
CARGO_HOME ?= $(HOME)/.cargo
REMAP      = --remap-path-prefix=$(CURDIR)=. --remap-path-prefix=$(CARGO_HOME)=/cargo

# Static, so that nothing has to be relocated or found at the start.
release: toolchain
	RUSTFLAGS="$(RUSTFLAGS) -C target-feature=+crt-static -C relocation-model=static $(REMAP) $(LEAN)" cargo build --release --locked --target $(TARGET)
	@mkdir -p target/release && cp target/$(TARGET)/release/hotplugger $(BINARY)
	@echo "built $(BINARY) for $(TARGET)"

# What the program is built and measured with. With rustup, what is missing is installed. Without it, or
# without a network, a Rust of the distribution builds with glibc.
toolchain:
	@command -v cargo >/dev/null || { echo "hotplugger is built with Rust 1.89 or later: see https://rustup.rs" >&2; exit 1; }
	@if command -v rustup >/dev/null; then \
	    rustup target list --installed | grep -qx $(MUSL) || rustup target add $(MUSL) || \
	        echo "musl's target cannot be installed: building with glibc, a larger and slower program" >&2; \
	    for component in rustfmt clippy; do \
	        rustup component list --installed | grep -q "^$$component" || rustup component add $$component || true; \
	    done; \
	fi

demo: packages build
	@python3 tests/e2e/demo.py --binary $(BINARY)

# The picture in the README: the output of the demo.
picture: packages build
	python3 tests/e2e/demo.py --binary $(BINARY) >target/demo.txt
	python3 tests/e2e/picture.py target/demo.txt >target/plug.svg && mv target/plug.svg docs/plug.svg

# The VMs and root file systems of the later phases are built beside the first ones. What that does not
# get done, they do.
test: start-report packages
	@setsid nice sh -c '$(PREPARE)' >target/prepare.log 2>&1 & prepare=$$!; trap 'kill -- -$$prepare 2>/dev/null' EXIT; \
	for phase in lint unit matrix e2e newest; do \
	    begin=$$(date +%s); $(MAKE) $$phase || exit; \
	    echo "$$phase took $$(( $$(date +%s) - begin )) s" >>$(REPORT); \
	done
	@echo; echo "What ran:"; sed 's/^/    /' $(REPORT)

NEWEST  := trixie-backports
PREPARE := python3 tests/e2e/run.py --build; python3 tests/e2e/matrix.py --build; \
	HOTPLUGGER_TEST_SUITE=$(NEWEST) python3 tests/e2e/run.py --core --build

start-report:
	@mkdir -p target && rm -f $(REPORT)

lint: toolchain
	@mkdir -p target
	@if cargo fmt --version >/dev/null 2>&1; then cargo fmt --check && echo "rustfmt: ok" >>$(REPORT); \
	else echo "rustfmt: skipped, it is not installed" >>$(REPORT); fi
	@if cargo clippy --version >/dev/null 2>&1; then \
	    cargo clippy --locked --all-targets -- -D warnings && echo "clippy: ok" >>$(REPORT); \
	else echo "clippy: skipped, it is not installed" >>$(REPORT); fi
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps --quiet

# What finds most mistakes in three minutes, after the first build. It needs a QEMU, but no root.
quick: lint
	cargo test --locked --lib --test scenarios --test check --test documents --test structure --test generated --test listings

unit: packages build
	@mkdir -p target
	HOTPLUGGER_RELEASE=$(CURDIR)/$(BINARY) HOTPLUGGER_RELEASE_TARGET=$(TARGET) HOTPLUGGER_REPORT=$(REPORT) \
	    cargo test --locked
	@echo "unit, scenario and integration tests: ok, on this machine" >>$(REPORT)

# The tests that need a real QEMU, with each QEMU that Debian has; prints a table.
matrix: packages
	@mkdir -p target
	python3 tests/e2e/matrix.py --report $(REPORT)

e2e: packages build
	python3 tests/e2e/run.py --binary $(BINARY) --report $(REPORT)

# The core of the end-to-end tests on the newest release: kernel, udevd, QEMU and libvirt.
newest: packages build
	HOTPLUGGER_TEST_SUITE=$(NEWEST) python3 tests/e2e/run.py --core --binary $(BINARY) --report $(REPORT)

# The fault campaign: SEED=7 STEPS=2000 MINUTES=60 plays the same again.
campaign: packages build
	python3 tests/e2e/run_campaign.py --binary $(BINARY) $(if $(SEED),--seed $(SEED)) \
	    --steps $(or $(STEPS),2000) --minutes $(or $(MINUTES),60)

# Measures the speed and writes docs/developers/performance.md. Needs an idle machine for half an hour.
bench: packages build
	python3 tests/bench/bench.py --binary $(BINARY)

# What the tests and the demo need beside Rust.
packages:
	@PYTHONPATH=tests/e2e python3 -c 'from testvm import packages; packages.require(install=True)'

# As root, onto this machine; or with DESTDIR what a package holds, from which all packages are made.
# CHOICES: options of `hotplugger install`, such as --no-libvirt.
# Does not build: root's cargo may be another one.
SHARE     := $(DESTDIR)$(PREFIX)/share
# What the rule and the hooks start.
PROGRAM   := $(PREFIX)/bin/hotplugger
# What the user unit for notifications starts.
NOTIFY    := $(PROGRAM:%/bin/hotplugger=%/lib/hotplugger/notify)

install:
	@test -e $(BINARY) || { echo "run \`make build\` first" >&2; exit 1; }
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/hotplugger
	install -d $(SHARE)/man/man1 $(SHARE)/man/man5 $(SHARE)/licenses/hotplugger
	install -d $(SHARE)/doc/hotplugger/docs $(SHARE)/doc/hotplugger/examples
	install -m 644 dist/man/*.1 $(SHARE)/man/man1
	install -m 644 dist/man/*.5 $(SHARE)/man/man5
	install -m 644 README.md CHANGELOG.md $(SHARE)/doc/hotplugger
	install -m 644 docs/*.md docs/*.svg $(SHARE)/doc/hotplugger/docs
	install -m 644 config.yaml $(SHARE)/doc/hotplugger/examples
	install -m 644 LICENSE-APACHE LICENSE-MIT $(SHARE)/licenses/hotplugger
	install -D -m 644 dist/completions/hotplugger.bash $(SHARE)/bash-completion/completions/hotplugger
	install -D -m 644 dist/completions/_hotplugger $(SHARE)/zsh/site-functions/_hotplugger
	install -D -m 644 dist/completions/hotplugger.fish $(SHARE)/fish/vendor_completions.d/hotplugger.fish
	install -D -m 755 dist/notify/notify $(DESTDIR)$(PREFIX)/lib/hotplugger/notify
	sed 's,/usr/lib/hotplugger/notify,$(NOTIFY),' dist/notify/hotplugger-notify.service | \
	    install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/lib/systemd/user/hotplugger-notify.service
ifeq ($(DESTDIR),)
	$(PROGRAM) install
else
	$(BINARY) install --package --root $(DESTDIR) --program $(PROGRAM) $(CHOICES)
endif

# With DESTDIR, the files of `hotplugger install --package` stay.
uninstall:
	$(PROGRAM) uninstall
	rm -f $(DESTDIR)$(PREFIX)/bin/hotplugger $(SHARE)/man/man1/hotplugger.1 $(SHARE)/man/man1/hotplugger-*.1 $(SHARE)/man/man5/hotplugger.yaml.5
	rm -rf $(SHARE)/doc/hotplugger $(SHARE)/licenses/hotplugger
	rm -rf $(DESTDIR)$(PREFIX)/lib/hotplugger $(DESTDIR)$(PREFIX)/lib/systemd/user/hotplugger-notify.service
	rm -f $(SHARE)/bash-completion/completions/hotplugger $(SHARE)/zsh/site-functions/_hotplugger
	rm -f $(SHARE)/fish/vendor_completions.d/hotplugger.fish

# Packages of the program that `make build` has built.
PACKAGES  := target/package
deb rpm:
	@test -e $(BINARY) || { echo "run \`make build\` first" >&2; exit 1; }
	BINARY=$(BINARY) dist/$@/build $(PACKAGES)

VERSION   := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml | head -n 1)
# The time of all files, as in dist/deb/build and dist/rpm/build.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)

# For all other systems: the program, which installs itself, and its documents.
tarball:
	@test -e $(BINARY) || { echo "run \`make build\` first" >&2; exit 1; }
	mkdir -p $(PACKAGES)
	tar --create --sort=name --mtime=@$(SOURCE_DATE_EPOCH) --owner=root:0 --group=root:0 --mode=u=rwX,go=rX \
	    --transform 's,^dist/,,;s,^,hotplugger-$(VERSION)/,' \
	    --directory $(abspath $(dir $(BINARY))) hotplugger --directory $(CURDIR) README.md CHANGELOG.md LICENSE-APACHE \
	    LICENSE-MIT config.yaml docs dist/man dist/completions | gzip -9n >$(PACKAGES)/hotplugger-$(VERSION)-$(ARCH)-linux.tar.gz

# The crates in the program, as a CycloneDX document.
sbom:
	mkdir -p $(PACKAGES)
	SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) dist/sbom $(TARGET) >$(PACKAGES)/hotplugger-$(VERSION)-$(ARCH)-linux.cdx.json

# All that a release has for this architecture. It takes dpkg-deb and rpmbuild.
release-files: build
	rm -rf $(PACKAGES)
	$(MAKE) --no-print-directory deb rpm tarball sbom
	rm -rf $(PACKAGES)/deb $(PACKAGES)/rpm
	cd $(PACKAGES) && sha256sum -- * >SHA256SUMS && cat SHA256SUMS

lint-packages:
	lintian --allow-root --fail-on error,warning $(PACKAGES)/*.deb
	rpmlint -r dist/rpm/hotplugger.rpmlintrc $(PACKAGES)/*.rpm dist/rpm/hotplugger.spec

# The files of a release do not depend on the directory or the user's home: they are built twice and compared.
# The second cargo home has the same crates under another name.
TWICE     := $(CURDIR)/target/reproducible
reproducible:
	rm -rf $(TWICE) && mkdir -p $(TWICE)/first $(TWICE)/another/directory $(TWICE)/home
	ln -s $(CARGO_HOME)/registry $(TWICE)/home/registry
	for copy in first another/directory; do git ls-files -z | tar -c --null -T - | tar -x -C $(TWICE)/$$copy || exit 1; done
	$(MAKE) -C $(TWICE)/first release-files SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH)
	CARGO_HOME=$(TWICE)/home $(MAKE) -C $(TWICE)/another/directory release-files SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH)
	diff -r $(TWICE)/first/target/package $(TWICE)/another/directory/target/package
	cmp $(TWICE)/first/$(BINARY) $(TWICE)/another/directory/$(BINARY)
	@echo "reproducible: ok"

clean:
	cargo clean
