//! What a package holds: `make install` says it, and whoever lists it again says the same.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by it, also in the helpers; and says what it could not try"
)]

use std::collections::BTreeSet;
use std::fs;
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

fn make_install(folder: &Path) {
    let destination = format!("DESTDIR={}", folder.display());
    let binary = format!("BINARY={PROGRAM}");
    run(Command::new("make")
        .current_dir(SOURCE)
        .args(["-s", "install", "PREFIX=/usr"])
        .args([&destination, &binary]));
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
        for entry in fs::read_dir(Path::new(SOURCE).join(kind)).unwrap() {
            let entry = entry.unwrap();
            // Packages do not have the developers' documents.
            if entry.path().is_dir() {
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
    // Whoever owns /etc decides about it: a hook is read nowhere else.
    let in_etc: Vec<_> = files.iter().filter(|path| !path.starts_with("/usr/")).collect();
    assert_eq!(in_etc, ["/etc/libvirt/hooks/qemu.d/hotplugger"]);
}

#[test]
fn the_rpm_lists_what_is_installed() {
    let folder = tempfile::tempdir().unwrap();
    make_install(folder.path());
    let text = fs::read_to_string(Path::new(SOURCE).join("dist/rpm/hotplugger.spec")).unwrap();
    let (_, list) = text.split_once("\n%files\n").unwrap();
    let lines = list.lines().filter(|line| !line.starts_with("%dir"));
    let listed: Vec<_> = lines.filter_map(|line| line.split_whitespace().last()).collect();
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
    let text = fs::read_to_string(Path::new(SOURCE).join("dist/aur/PKGBUILD")).unwrap();
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
