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
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use support::root::Root;
use support::udev::{Ended, run_manual};

const RULE: &str = "etc/udev/rules.d/99-hotplugger.rules";
const CONFIG: &str = "etc/hotplugger/config.yaml";
const TMPFILES: &str = "etc/tmpfiles.d/hotplugger.conf";
const CATALOG: &str = "usr/local/lib/systemd/catalog/hotplugger.catalog";

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
        run_manual(&self.machine, &[&arguments, more].concat())
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

    /// Makes it look like a machine with systemd, libvirt and elogind, and this config.
    fn furnish(&self, config: &str) {
        for folder in ["run/systemd/system", "etc/libvirt", "etc/elogind", "etc/hotplugger"] {
            fs::create_dir_all(self.path(folder)).unwrap();
        }
        fs::write(self.path(CONFIG), config).unwrap();
    }

    fn mode(&self, path: &str) -> u32 {
        fs::metadata(self.path(path)).unwrap().permissions().mode() & 0o7777
    }

    fn names(&self) -> Vec<String> {
        self.files().into_keys().collect()
    }
}

const SERVICE: &str = "etc/systemd/system/hotplugger-sync@.service";
const SLEEP: &str = "usr/lib/systemd/system-sleep/hotplugger";
const ELOGIND: &str = "etc/elogind/system-sleep/hotplugger";
const LIBVIRT: &str = "etc/libvirt/hooks/qemu.d/hotplugger";

fn unit(name: &str) -> String {
    format!("etc/systemd/system/hotplugger-sync@{name}.path")
}

fn link(name: &str) -> String {
    format!("etc/systemd/system/paths.target.wants/hotplugger-sync@{name}.path")
}

/// A config with these virtual machines and sockets.
fn config(machines: &[(&str, &str)]) -> String {
    let machine = |(name, socket): &(&str, &str)| {
        format!(
            "  {name:?}:\n    socket: {socket}\n    ports: [/devices/pci0000:00/0000:00:14.0/usb1/1-1]\n"
        )
    };
    format!("virtual_machines:\n{}", machines.iter().map(machine).collect::<String>())
}

fn collect(top: &Path, folder: &Path, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(top, &path, files);
        } else {
            let name = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
            let text = match fs::read_link(&path) {
                Ok(target) => format!("-> {}", target.display()),
                Err(_) => fs::read_to_string(&path).unwrap(),
            };
            files.insert(name, text);
        }
    }
}

#[test]
fn what_is_installed_is_what_was_said_and_uninstall_leaves_the_config() {
    let target = Target::new();
    let all = [RULE, CONFIG, TMPFILES, CATALOG];
    // What this machine has no use for is said once.
    let skipped = [SERVICE, SLEEP, LIBVIRT].map(|path| format!("skip /{path}"));
    let says = |what: [&str; 4]| {
        let said = all.iter().zip(what).map(|(path, what)| format!("{what} /{path}"));
        said.chain(skipped.clone()).collect::<Vec<_>>()
    };
    assert_eq!(target.said("install", &[]), says(["write"; 4]));
    let mut names = target.files().into_keys().collect::<Vec<_>>();
    names.sort_by_key(|name| all.iter().position(|known| known == name));
    assert_eq!(names, all);
    for path in all {
        let mode = fs::metadata(target.path(path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o644, "{path}");
    }
    let installed = target.files();
    assert_eq!(target.said("install", &[]), says(["keep"; 4]));
    assert_eq!(target.files(), installed);

    fs::write(target.path(CONFIG), "virtual_machines:\n").unwrap();
    fs::write(target.path(RULE), "# of an older version\n").unwrap();
    assert_eq!(target.said("install", &[]), says(["write", "keep", "keep", "keep"]));
    assert_eq!(target.files()[RULE], installed[RULE]);
    assert_eq!(target.files()[CONFIG], "virtual_machines:\n");

    let said = target.said("uninstall", &[]);
    assert_eq!(
        said,
        [
            "remove /etc/udev/rules.d/99-hotplugger.rules",
            "remove /etc/tmpfiles.d/hotplugger.conf",
            "remove /usr/local/lib/systemd/catalog/hotplugger.catalog",
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
    let run = run_manual(&machine, &["install", "--program", program.to_str().unwrap()]);
    assert_eq!(run.status, 1);
    assert!(run.stderr.contains("other users than root can change"), "{}", run.stderr);
    assert!(run.stderr.contains("/usr/local/bin/hotplugger install"), "{}", run.stderr);
    assert!(!machine.path("/etc").join("udev").exists());
}

#[test]
fn a_machine_gets_the_units_and_hooks_that_fit_it() {
    let target = Target::new();
    target.furnish(&config(&[("windows", "/run/windows.qmp"), ("my vm", "/run/100%.qmp")]));
    let said = target.said("install", &[]);
    assert!(!said.iter().any(|line| line.starts_with("skip")), "{said:?}");
    let files = target.files();
    let mut expected = vec![RULE, CONFIG, TMPFILES, CATALOG, SERVICE, SLEEP, ELOGIND, LIBVIRT];
    let units = [unit("windows"), link("windows"), unit(r"my\x20vm"), link(r"my\x20vm")];
    expected.extend(units.iter().map(String::as_str));
    expected.sort_unstable();
    assert_eq!(target.names(), expected);
    assert!(
        files[SERVICE]
            .contains("ExecStart=/usr/bin/hotplugger sync --wait 60 --if-started -- %I\n")
    );
    assert!(files[&units[0]].contains("PathChanged=/run/windows.qmp\n"));
    assert!(files[&units[2]].contains("PathChanged=/run/100%%.qmp\n"));
    assert_eq!(files[&units[1]], format!("-> /{}", units[0]));
    for (path, mode) in [(SERVICE, 0o644), (SLEEP, 0o755), (ELOGIND, 0o755), (LIBVIRT, 0o755)] {
        assert_eq!(target.mode(path), mode, "{path}");
    }
    let again = target.said("install", &[]);
    assert!(again.iter().all(|line| line.starts_with("keep ")), "{again:?}");
    assert_eq!(target.files(), files);

    let said = target.said("uninstall", &[]);
    assert_eq!(target.names(), [CONFIG]);
    assert_eq!(said.iter().filter(|line| line.starts_with("remove ")).count(), 11, "{said:?}");
}

#[test]
fn units_follow_the_config() {
    let target = Target::new();
    target.furnish(&config(&[("a", "/run/a"), ("b", "/run/b")]));
    target.said("install", &[]);
    target.furnish(&config(&[("b", "/run/other"), ("c", "/run/c")]));
    let said = target.said("install", &[]);
    for line in [
        format!("remove /{}", unit("a")),
        format!("remove /{}", link("a")),
        format!("write /{}", unit("b")),
        format!("keep /{}", link("b")),
        format!("write /{}", unit("c")),
    ] {
        assert!(said.contains(&line), "{line} is missing: {said:?}");
    }
    let files = target.files();
    assert!(!files.contains_key(&unit("a")) && !files.contains_key(&link("a")));
    assert!(files[&unit("b")].contains("PathChanged=/run/other\n"));

    // Nobody knows which machines there are: what is there stays.
    target.furnish("virtual_machines: 5\n");
    let run = target.run("install", &[]);
    assert_eq!(run.status, 1);
    assert!(run.stderr.contains("units of the VMs are not changed"), "{}", run.stderr);
    assert_eq!(target.names(), files.into_keys().collect::<Vec<_>>());
}

#[test]
fn each_group_can_be_asked_for_and_left_out() {
    let target = Target::new();
    target.said("install", &["--systemd", "--sleep", "--libvirt"]);
    let mut all = [RULE, CONFIG, TMPFILES, CATALOG, SERVICE, SLEEP, LIBVIRT];
    all.sort_unstable();
    assert_eq!(target.names(), all);
    // What is there is kept up to date without being asked for.
    fs::write(target.path(LIBVIRT), "#!/bin/sh\n").unwrap();
    assert!(target.said("install", &[]).contains(&format!("write /{LIBVIRT}")));

    target.furnish(&config(&[("a", "/run/a")]));
    target.said("install", &[]);
    assert!(target.names().contains(&unit("a")));
    target.said("install", &["--no-systemd", "--no-libvirt", "--no-sleep"]);
    let mut base = [RULE, CONFIG, TMPFILES, CATALOG];
    base.sort_unstable();
    assert_eq!(target.names(), base);
    let run = target.run("install", &["--systemd", "--no-systemd"]);
    assert!(run.status != 0 && run.stderr.contains("cannot be used with"), "{}", run.stderr);
}

/// SELinux does not allow libvirt to run a hook, and then no domain starts.
#[test]
fn libvirts_hook_is_left_out_where_selinux_is_on() {
    for (path, text) in
        [("sys/fs/selinux/enforce", "1"), ("etc/selinux/config", "SELINUX=permissive\n")]
    {
        let target = Target::new();
        target.furnish("");
        fs::create_dir_all(target.path(path).parent().unwrap()).unwrap();
        fs::write(target.path(path), text).unwrap();
        let run = target.run("install", &[]);
        let skipped = format!("skip    /{LIBVIRT}  (SELinux does not allow libvirt to run a hook");
        assert!(run.stdout.contains(&skipped), "{}", run.stdout);
        assert!(!target.path(LIBVIRT).exists());
        target.run("install", &["--libvirt"]);
        assert!(target.path(LIBVIRT).exists(), "it was requested");
        fs::remove_file(target.path(LIBVIRT)).unwrap();
        fs::write(target.path("etc/selinux/config"), "SELINUX=disabled\n").unwrap_or_default();
        let _ = fs::remove_file(target.path("sys/fs/selinux/enforce"));
        target.run("install", &[]);
        assert!(target.path(LIBVIRT).exists(), "SELinux is off");
    }
}

const PACKAGED: [&str; 6] = [
    LIBVIRT,
    "usr/lib/systemd/catalog/hotplugger.catalog",
    "usr/lib/systemd/system-sleep/hotplugger",
    "usr/lib/systemd/system/hotplugger-sync@.service",
    "usr/lib/tmpfiles.d/hotplugger.conf",
    "usr/lib/udev/rules.d/99-hotplugger.rules",
];

#[test]
fn beside_a_package_only_what_depends_on_the_machine_is_put_and_removed() {
    let target = Target::new();
    assert_eq!(
        target
            .said("install", &["--package"])
            .iter()
            .filter(|line| line.starts_with("write "))
            .count(),
        PACKAGED.len()
    );
    assert_eq!(target.names(), PACKAGED);
    let packaged = target.files();

    target.furnish(&config(&[("a", "/run/a")]));
    let said = target.said("install", &[]);
    for path in PACKAGED {
        assert!(said.contains(&format!("keep /{path}")), "{path}: {said:?}");
    }
    let (unit, link) = (unit("a"), link("a"));
    let mut expected = vec![CONFIG, ELOGIND, unit.as_str(), link.as_str()];
    expected.extend(PACKAGED);
    expected.sort_unstable();
    assert_eq!(target.names(), expected);

    // One that starts another program takes the package's place, and goes again.
    target.said("install", &["--program", "/opt/hotplugger"]);
    assert!(target.files()[RULE].contains("RUN+=\"/opt/hotplugger udev\""));
    target.said("install", &[]);
    assert!(target.files()[RULE].contains("RUN+=\"/usr/bin/hotplugger udev\""));
    target.said("uninstall", &[]);
    let mut left = target.files();
    assert!(left.remove(CONFIG).is_some());
    assert_eq!(left, packaged);
    assert!(!target.path("etc/systemd/system/paths.target.wants").exists());
}

#[test]
fn a_package_is_put_below_a_folder_only() {
    let run = run_manual(&Root::new(), &["install", "--package"]);
    assert!(run.status != 0 && run.stderr.contains("--root"), "{}", run.stderr);
}

#[test]
fn a_machine_that_no_unit_can_serve_is_named() {
    let target = Target::new();
    target.furnish(&config(&[("$HOME", "/run/a"), ("b", "/run/../b")]));
    let run = target.run("install", &[]);
    assert_eq!(run.status, 0);
    assert!(
        run.stdout.contains("skip    the unit of `$HOME`  (no unit can pass on"),
        "{}",
        run.stdout
    );
    assert!(run.stdout.contains("skip    the unit of `b`  (no unit can watch"), "{}", run.stdout);
    assert!(
        !target.names().iter().any(|name| name.contains("hotplugger-sync@") && name != SERVICE)
    );
}

/// As libvirt calls it: the guest's XML on standard input, its pipes read until they are closed.
#[test]
fn libvirts_hook_returns_at_once_and_the_sync_goes_on() {
    let target = Target::new();
    let log = target.path("log");
    let program = target.path("program");
    fs::write(
        &program,
        format!(
            "#!/bin/sh\nexec >> {}\necho \"$* $(readlink /proc/$$/fd/0 /proc/$$/fd/2 | tr '\\n' ' ')\"\nps -o sid= $$\nsleep 2\necho done\n",
            log.display()
        ),
    )
    .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    target.said("install", &["--libvirt", "--program", program.to_str().unwrap()]);
    let call = |phase: &str| {
        let mut hook = Command::new(target.path(LIBVIRT))
            .args(["windows", phase, "begin", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A hook that does not read it may have closed it.
        let _ = hook.stdin.take().unwrap().write_all(b"<domain/>");
        let ended = hook.wait_with_output().unwrap();
        assert!(ended.status.success() && ended.stdout.is_empty() && ended.stderr.is_empty());
        fs::read_to_string(&log).unwrap_or_default()
    };
    for phase in ["prepare", "start", "stopped", "migrate", ""] {
        assert_eq!(call(phase), "", "{phase}");
    }
    for (count, phase) in ["started", "reconnect", "release"].iter().enumerate() {
        let before = call(phase);
        assert_eq!(before.matches("done").count(), count, "it waited for the sync: {before}");
        let text = || fs::read_to_string(&log).unwrap_or_default();
        for _ in 0..200 {
            if text().matches("done").count() > count {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(text().matches("done").count(), count + 1, "the sync was not run");
    }
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.starts_with("sync --wait 30 --if-started /dev/null /dev/null \n"), "{text}");
    let own =
        Command::new("ps").args(["-o", "sid=", "-p", &std::process::id().to_string()]).output();
    let own = String::from_utf8(own.unwrap().stdout).unwrap();
    assert!(text.lines().nth(1).is_some_and(|sid| sid.trim() != own.trim()), "{text}");
}

#[test]
fn the_sleep_hook_syncs_after_and_not_before() {
    let target = Target::new();
    let program = target.path("program");
    fs::write(&program, "#!/bin/sh\necho said; echo \"$*\" >&2; exit 3\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    target.said("install", &["--sleep", "--program", program.to_str().unwrap()]);
    let call = |when: &str| {
        let ended = Command::new(target.path(SLEEP)).args([when, "suspend"]).output().unwrap();
        (ended.status.code(), ended.stdout, String::from_utf8(ended.stderr).unwrap())
    };
    assert_eq!(call("pre"), (Some(0), vec![], String::new()));
    assert_eq!(call("post"), (Some(3), vec![], "sync\n".to_owned()));
}
