//! `install` and `uninstall` below a folder: they leave exactly what they say.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by them, also in the helpers"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use support::root::Root;
use support::udev::{Ended, run_by_hand};

const RULE: &str = "etc/udev/rules.d/99-hotplugger.rules";
const CONFIG: &str = "etc/hotplugger/config.yaml";
const TMPFILES: &str = "etc/tmpfiles.d/hotplugger.conf";

/// A folder for the files, and the machine that the program runs on.
struct Target {
    folder: tempfile::TempDir,
    machine: Root,
}

impl Target {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), machine: Root::new() }
    }

    fn run(&self, command: &str, more: &[&str]) -> Ended {
        let arguments = [command, "--root", self.folder.path().to_str().unwrap()];
        run_by_hand(&self.machine, &[&arguments, more].concat())
    }

    /// What each line of a run says: `write /etc/…`.
    fn said(&self, command: &str, more: &[&str]) -> Vec<String> {
        let run = self.run(command, more);
        assert_eq!((run.status, run.stderr.as_str()), (0, ""));
        let words = |line: &str| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        run.stdout.lines().map(words).collect()
    }

    /// Every file below the folder with what is in it.
    fn files(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        collect(self.folder.path(), self.folder.path(), &mut files);
        files
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }
}

fn collect(top: &Path, folder: &Path, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(top, &path, files);
        } else {
            let name = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
            files.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn what_is_installed_is_what_was_said_and_uninstall_leaves_the_config() {
    let target = Target::new();
    let all = [RULE, CONFIG, TMPFILES];
    let says = |what: [&str; 3]| {
        all.iter().zip(what).map(|(path, what)| format!("{what} /{path}")).collect::<Vec<_>>()
    };
    assert_eq!(target.said("install", &[]), says(["write"; 3]));
    let mut names = target.files().into_keys().collect::<Vec<_>>();
    names.sort_by_key(|name| all.iter().position(|known| known == name));
    assert_eq!(names, all);
    for path in all {
        let mode = fs::metadata(target.path(path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o644, "{path}");
    }
    let installed = target.files();
    assert_eq!(target.said("install", &[]), says(["keep"; 3]));
    assert_eq!(target.files(), installed);

    fs::write(target.path(CONFIG), "virtual_machines:\n").unwrap();
    fs::write(target.path(RULE), "# of an older version\n").unwrap();
    assert_eq!(target.said("install", &[]), says(["write", "keep", "keep"]));
    assert_eq!(target.files()[RULE], installed[RULE]);
    assert_eq!(target.files()[CONFIG], "virtual_machines:\n");

    let said = target.said("uninstall", &[]);
    assert_eq!(
        said,
        [
            "remove /etc/udev/rules.d/99-hotplugger.rules",
            "remove /etc/tmpfiles.d/hotplugger.conf",
            "keep /etc/hotplugger/config.yaml"
        ]
    );
    assert_eq!(target.files().into_keys().collect::<Vec<_>>(), [CONFIG]);
    assert_eq!(target.said("uninstall", &[])[0], "skip /etc/udev/rules.d/99-hotplugger.rules");
}

#[test]
fn the_rule_starts_the_program_that_was_named() {
    let target = Target::new();
    target.said("install", &["--program", "/opt/hotplugger/bin/hotplugger"]);
    let rule = &target.files()[RULE];
    assert!(rule.contains("RUN+=\"/opt/hotplugger/bin/hotplugger udev\""), "{rule}");
    assert!(!rule.contains("/usr/bin"), "{rule}");
}

#[test]
fn a_dry_run_says_the_same_and_does_nothing() {
    let target = Target::new();
    let said = target.said("install", &["--dry-run"]);
    assert!(target.files().is_empty());
    assert_eq!(said, target.said("install", &[]));
    let before = target.files();
    let said = target.said("uninstall", &["--dry-run"]);
    assert_eq!(target.files(), before);
    assert_eq!(said, target.said("uninstall", &[]));
}

#[test]
fn a_program_that_others_can_replace_is_refused() {
    // The program under test stands in a folder of whoever builds it; as root that is fine only
    // where all of the way belongs to root, so a folder that all can write stands in for it.
    let machine = Root::new();
    let folder = machine.path("/opt");
    fs::create_dir(&folder).unwrap();
    let program = folder.join("hotplugger");
    fs::copy(env!("CARGO_BIN_EXE_hotplugger"), &program).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let run = run_by_hand(&machine, &["install", "--program", program.to_str().unwrap()]);
    assert_eq!(run.status, 1);
    assert!(run.stderr.contains("others than root can change"), "{}", run.stderr);
    assert!(run.stderr.contains("/usr/local/bin/hotplugger install"), "{}", run.stderr);
    assert!(!machine.path("/etc").join("udev").exists());
}
