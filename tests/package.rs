//! What a package holds: `make install` says it, and whoever lists it again says the same.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by it, also in the helpers; and says what it could not try"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const SOURCE: &str = env!("CARGO_MANIFEST_DIR");
const PROGRAM: &str = env!("CARGO_BIN_EXE_hotplugger");

/// Runs it and returns what it printed.
fn run(command: &mut Command) -> String {
    // What a `make test` around it hands on is not meant for this one.
    let done = command.env_remove("MAKEFLAGS").env_remove("MFLAGS").output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{command:?}: {said}");
    String::from_utf8(done.stdout).unwrap()
}

fn make(arguments: &[&str]) {
    run(Command::new("make").current_dir(SOURCE).arg("-s").args(arguments));
}

fn make_install(folder: &Path) {
    make_install_with(folder, "");
}

fn make_install_with(folder: &Path, choices: &str) {
    let destination = format!("DESTDIR={}", folder.display());
    let (binary, choices) = (format!("BINARY={PROGRAM}"), format!("CHOICES={choices}"));
    make(&["install", "PREFIX=/usr", &destination, &binary, &choices]);
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(SOURCE).join(path)).unwrap()
}

/// All files below the folder, as paths from there.
fn files(folder: &Path) -> BTreeSet<String> {
    let found = run(Command::new("find").arg(folder).args(["-type", "f", "-printf", "/%P\n"]));
    found.lines().map(str::to_owned).collect()
}

/// The path of a file that Debian has elsewhere or compressed, and nothing of what it adds or leaves.
fn as_in_debian(path: &str) -> Option<String> {
    let path = path.replace("/zsh/site-functions/", "/zsh/vendor-completions/");
    let path = path.replace("/doc/hotplugger/CHANGELOG.md", "/doc/hotplugger/changelog.gz");
    match path {
        path if path.contains("/licenses/") => None,
        path if path.contains("/man/") => Some(path + ".gz"),
        path => Some(path),
    }
}

#[test]
fn everything_is_there_in_the_places_of_packages_and_starts_the_packaged_program() {
    let folder = tempfile::tempdir().unwrap();
    make_install(folder.path());
    let files = files(folder.path());
    for (kind, place) in [
        ("dist/man", "/usr/share/man/man1"),
        ("docs", "/usr/share/doc/hotplugger/docs"),
        ("rules", "/usr/lib/udev/rules.d"),
        ("dist/systemd", "/usr/lib/systemd/system"),
        ("dist/catalog", "/usr/lib/systemd/catalog"),
    ] {
        for entry in fs::read_dir(Path::new(SOURCE).join(kind)).unwrap().map(Result::unwrap) {
            // The documents for developers are in a directory of their own.
            if entry.file_type().unwrap().is_dir() {
                continue;
            }
            let name = entry.file_name().into_string().unwrap();
            // Of a page, the end of its name is its section.
            let place = place.strip_suffix('1').map_or(place.to_owned(), |of_man| {
                format!("{of_man}{}", name.rsplit('.').next().unwrap())
            });
            let path = format!("{place}/{name}");
            assert!(files.contains(&path), "{path}");
            // The texts in the source tree are those of the package.
            let packaged = fs::read(folder.path().join(&path[1..])).unwrap();
            assert!(
                packaged == fs::read(Path::new(SOURCE).join(kind).join(&name)).unwrap(),
                "{path}"
            );
        }
    }
    for (source, path) in [
        ("dist/notify/notify", "/usr/lib/hotplugger/notify"),
        (
            "dist/notify/hotplugger-notify.service",
            "/usr/lib/systemd/user/hotplugger-notify.service",
        ),
    ] {
        let packaged = fs::read_to_string(folder.path().join(&path[1..])).unwrap();
        assert_eq!(packaged, fs::read_to_string(Path::new(SOURCE).join(source)).unwrap(), "{path}");
    }
    // No unit is enabled.
    let links = run(Command::new("find").arg(folder.path()).args(["-type", "l"]));
    assert_eq!(links, "");
    // Whoever owns /etc decides about it: a hook is read nowhere else.
    let in_etc: Vec<_> = files.iter().filter(|path| !path.starts_with("/usr/")).collect();
    assert_eq!(in_etc, ["/etc/libvirt/hooks/qemu.d/hotplugger"]);
    // Two packages name it: to keep the administrator's changes, and to link it.
    let hook = in_etc[0];
    assert!(read("dist/aur/PKGBUILD").contains(&format!("\nbackup=({})\n", &hook[1..])));
    assert!(read("dist/nix/module.nix").contains(&format!("\"${{cfg.package}}{hook}\"")));
}

#[test]
fn make_uninstall_removes_what_make_install_installed() {
    let folder = tempfile::tempdir().unwrap();
    make_install(folder.path());
    let destination = format!("DESTDIR={}", folder.path().display());
    // On a host, `hotplugger uninstall` removes its own items.
    make(&["uninstall", "PREFIX=/usr", "PROGRAM=true", &destination]);
    let own = tempfile::tempdir().unwrap();
    run(Command::new(PROGRAM).args(["install", "--package", "--root"]).arg(own.path()));
    assert_eq!(files(folder.path()), files(own.path()));
}

#[test]
fn tarball_has_the_program_where_binstall_expects_it() {
    let folder = tempfile::tempdir().unwrap();
    // The program of the tests is large, and compressing it takes long.
    let binary = folder.path().join("hotplugger");
    fs::write(&binary, "").unwrap();
    let packages = format!("PACKAGES={}", folder.path().display());
    make(&["tarball", &packages, &format!("BINARY={}", binary.display())]);
    let manifest = read("Cargo.toml");
    let template = |key: &str| {
        let line =
            manifest.lines().find_map(|line| line.strip_prefix(&format!("{key} = "))).unwrap();
        let line = line.replace("{ version }", env!("CARGO_PKG_VERSION"));
        line.replace("{ target-arch }", std::env::consts::ARCH).trim_matches('"').to_owned()
    };
    let url = template("pkg-url");
    let tarball = folder.path().join(url.rsplit('/').next().unwrap());
    let listed = run(Command::new("tar").arg("-tzf").arg(&tarball));
    let program = template("bin-dir");
    let directory = program.strip_suffix("hotplugger").unwrap();
    for path in ["hotplugger", "README.md", "man/hotplugger.1", "completions/hotplugger.bash"] {
        let path = format!("{directory}{path}");
        assert!(listed.lines().any(|line| line == path), "{path}: {listed}");
    }
}

#[test]
fn sbom_lists_the_crates_in_the_program() {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let text = run(Command::new(Path::new(SOURCE).join("dist/sbom"))
        .arg(target)
        .env("CARGO_NET_OFFLINE", "true"));
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let component = |name: &str| {
        let all = document["components"].as_array().unwrap();
        all.iter().find(|one| one["name"] == name)
    };
    let manifest = read("Cargo.toml");
    let (_, rest) = manifest.split_once("\n[dependencies]\n").unwrap();
    let (dependencies, _) = rest.split_once("\n[").unwrap();
    for line in dependencies.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let name = line.split(' ').next().unwrap().replace("serde_yaml", "yaml_serde");
        let Some(found) = component(&name) else { panic!("{name} is not listed") };
        assert_eq!(found["scope"], "required", "{name}");
        assert_eq!(found["hashes"][0]["content"].as_str().map(str::len), Some(64), "{name}");
    }
    assert_eq!(component("serde_derive").unwrap()["scope"], "excluded");
    for of_tests in ["proptest", "clap_mangen"] {
        assert_eq!(component(of_tests), None);
    }
}

#[test]
fn the_unit_for_notifications_starts_the_script_of_its_own_prefix() {
    let folder = tempfile::tempdir().unwrap();
    let destination = format!("DESTDIR={}", folder.path().display());
    let binary = format!("BINARY={PROGRAM}");
    run(Command::new("make").current_dir(SOURCE).args(["-s", "install", &destination, &binary]));
    let unit = folder.path().join("usr/local/lib/systemd/user/hotplugger-notify.service");
    let unit = fs::read_to_string(unit).unwrap();
    let program = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/")).unwrap();
    assert_eq!(program, "usr/local/lib/hotplugger/notify");
    let mode = fs::metadata(folder.path().join(program)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}

#[test]
fn the_rpm_lists_what_is_installed() {
    let folder = tempfile::tempdir().unwrap();
    let text = read("dist/rpm/hotplugger.spec");
    let choices = text.split_once("CHOICES=").unwrap().1.lines().next().unwrap();
    make_install_with(folder.path(), choices);
    let (_, list) = text.split_once("\n%files\n").unwrap();
    let lines = list.lines().filter(|line| !line.starts_with("%dir"));
    // The manual pages are compressed.
    let listed: Vec<_> = lines
        .map_while(|line| Some(line.split_whitespace().last()?.trim_end_matches(".gz")))
        .collect();
    let is_of = |path: &str, listed: &str| match listed.split_once('*') {
        Some((start, end)) => path.starts_with(start) && path.ends_with(end),
        None => path == listed || path.strip_prefix(listed).is_some_and(|end| end.starts_with('/')),
    };
    let files = files(folder.path());
    for path in &files {
        assert!(listed.iter().any(|one| is_of(path, one)), "{path} is not listed");
    }
    for one in listed {
        assert!(files.iter().any(|path| is_of(path, one)), "{one} is not installed");
    }
}

#[test]
fn all_packages_have_the_same_version() {
    let text = read("dist/aur/PKGBUILD");
    // pacman's versions have no `-`.
    let version = env!("CARGO_PKG_VERSION").replace('-', "_");
    assert!(text.contains(&format!("\npkgver={version}\n")), "PKGBUILD is not of {version}");
}

#[test]
fn the_debian_package_holds_what_is_installed() {
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        println!("no dpkg-deb here: no Debian package was made");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    make_install(&folder.path().join("installed"));
    let package = run(Command::new(Path::new(SOURCE).join("dist/deb/build"))
        .arg(folder.path())
        .env("BINARY", PROGRAM)
        // With all that helps to debug it, it is large.
        .env("DPKG_DEB_COMPRESSOR_LEVEL", "0"));
    let package = package.trim_end();
    let unpacked = folder.path().join("unpacked");
    run(Command::new("dpkg-deb").args(["-x", package]).arg(&unpacked));
    let mut packaged = files(&unpacked);
    for of_debian in [
        "/usr/share/doc/hotplugger/changelog.Debian.gz",
        "/usr/share/doc/hotplugger/copyright",
        "/usr/share/lintian/overrides/hotplugger",
    ] {
        assert!(packaged.remove(of_debian), "{of_debian}");
    }
    let installed = files(&folder.path().join("installed"));
    let expected: BTreeSet<_> = installed.iter().filter_map(|path| as_in_debian(path)).collect();
    assert_eq!(packaged, expected);

    let listed = run(Command::new("dpkg-deb").args(["-c", package]));
    let strange: Vec<_> = listed.lines().filter(|line| !line.contains(" root/root ")).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert_eq!(
        run(Command::new("dpkg-deb").args(["-f", package, "Version"])).trim_end(),
        format!("{}-1", env!("CARGO_PKG_VERSION").replace('-', "~"))
    );
    let conffiles = run(Command::new("dpkg-deb").args(["-I", package, "conffiles"]));
    assert_eq!(conffiles, "/etc/libvirt/hooks/qemu.d/hotplugger\n");
}
