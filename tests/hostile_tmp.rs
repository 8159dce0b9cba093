//! Another user of the host against the state folder: what he puts in its place before the program
//! comes, and while it runs; and folders that are full or cannot be written to.
//!
//! The other user is real, and so are the mounts: as root, `make test` runs all of it. Nothing here
//! may lean on the kernel's own protections (`fs.protected_symlinks` and the like):
//! docs/security.md lists the settings that it was run with.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with a panic"
)]

mod support;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use support::hostile::{Session, serve};
use support::root::Root;
use support::udev::{Ended, Running};

/// `nobody`.
const OTHER: u32 = 65534;

const SOCKET: &str = "/run/windows.qmp";

/// A host with a tablet in a port of a virtual machine whose QEMU takes any device, and on which
/// the other user can go wherever one can on a real one; none for who is not root and cannot act as another user.
fn host() -> Option<Root> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let mut root = Root::new();
    set_mode(&root.path("/"), 0o755);
    root.config(&format!(
        "virtual_machines:\n  windows:\n    socket: {SOCKET}\n    delay: 0\n    timeout: 20\n    \
         ports: [/devices/pci0000:00/0000:00:14.0/usb1/1-3]\n"
    ));
    serve(&root.path(SOCKET), Session::be_polite);
    root.plug("1-3", "tablet", 16);
    Some(root)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// The other user runs a shell script in a folder of the host.
fn other(root: &Root, folder: &str, script: &str) -> Child {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).current_dir(root.path(folder)).uid(OTHER).gid(OTHER);
    command.spawn().unwrap()
}

/// A process that ends with the test, however that ends.
struct Racer(Child);

impl Drop for Racer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The same, to its end; returns whether the kernel let him.
fn other_did(root: &Root, folder: &str, script: &str) -> bool {
    other(root, folder, script).wait().unwrap().success()
}

/// All that is below a folder: path, owner, mode, number, and what is in it.
fn look(folder: &Path) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut left = vec![folder.to_path_buf()];
    while let Some(path) = left.pop() {
        let data = path.symlink_metadata().unwrap();
        let text = if data.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        let about = (data.mode(), data.uid(), data.ino());
        all.insert(format!("{} {about:?} {}", path.display(), text.escape_ascii()));
        if data.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    all
}

/// Asserts that the device was attached; returns what the line says besides.
fn assert_attached(run: &Ended) -> &str {
    let line = run.line();
    assert!(line.starts_with("windows: port 1-3, QEMU USB Tablet (0627:0001): attached"), "{line}");
    assert_eq!(run.status, 0);
    line.split_once(" with QEMU)").expect("how long it took").1
}

fn has_record(root: &Root, parent: &str) -> bool {
    let path = root.path(format!("{parent}/hotplugger/port-1-3.json"));
    path.symlink_metadata().is_ok_and(|data| data.is_file() && data.uid() == 0)
}

/// What he can put where the state folder should be. `secret` is root's, in a folder beside.
const ATTACKS: [(&str, &str); 8] = [
    ("a folder", "mkdir -m 700 hotplugger"),
    ("a folder for all", "mkdir -m 777 hotplugger"),
    (
        "a folder with a lock and a record",
        "mkdir hotplugger; echo '{}' > hotplugger/port-1-3.json; \
      touch hotplugger/records.lock; chmod -R a+rwX hotplugger",
    ),
    ("a file", "echo his > hotplugger"),
    ("a fifo", "mkfifo -m 666 hotplugger"),
    ("a link to a folder of root's", "ln -s ../private hotplugger"),
    ("a link to nowhere", "ln -s ../private/new hotplugger"),
    ("a hard link to a file of root's", "ln ../private/secret hotplugger"),
];

/// `/tmp` as it should be: nobody else's object is used, and nothing of root's is reached by it.
#[test]
fn what_another_user_made_is_not_used() {
    for (what, script) in ATTACKS {
        let Some(mut root) = host() else { return };
        root.write("/private/secret", "root's\n");
        set_mode(&root.path("/private"), 0o711);
        // Readable and writable, else the kernel would not let him link to it where it is strict.
        set_mode(&root.path("/private/secret"), 0o666);
        let can = other_did(&root, "/tmp", script);
        assert!(can || what.starts_with("a hard link"), "{what}");
        if !can {
            continue;
        }
        let planted = [look(&root.path("/tmp")), look(&root.path("/private"))];
        for _ in 0..2 {
            let run = root.event("bind", "1-3").run(&root);
            let rest = assert_attached(&run);
            assert!(rest.starts_with("; state is kept in /run"), "{what}: {rest}");
            assert!(rest.contains("delete it"), "{what}: {rest}");
        }
        assert!(has_record(&root, "/run"), "{what}");
        root.pull("1-3");
        assert_eq!(root.event("remove", "1-3").run(&root).status, 0, "{what}");
        assert_eq!([look(&root.path("/tmp")), look(&root.path("/private"))], planted, "{what}");
    }
}

/// Where all may rename what is in `/tmp`, or where it is another user's, it is not used at all,
/// not even when the folder in it is root's own.
#[test]
fn a_tmp_of_others_is_not_used() {
    type Spoil = fn(&Path);
    let spoils: [(&str, Spoil); 2] = [
        ("not sticky", |tmp| set_mode(tmp, 0o777)),
        ("another user's", |tmp| {
            std::os::unix::fs::chown(tmp, Some(OTHER), Some(OTHER)).unwrap();
        }),
    ];
    for (what, spoil) in spoils {
        let Some(mut root) = host() else { return };
        fs::create_dir(root.path("/tmp/hotplugger")).unwrap();
        set_mode(&root.path("/tmp/hotplugger"), 0o700);
        spoil(&root.path("/tmp"));
        // He can do that, sticky or not, in a folder of his own.
        assert!(other_did(&root, "/tmp", "mv hotplugger taken && mkdir hotplugger"), "{what}");
        let taken = look(&root.path("/tmp"));
        let run = root.event("bind", "1-3").run(&root);
        let rest = assert_attached(&run);
        let why = "; state is kept in /run/hotplugger: /tmp does not belong to root, or others may";
        assert!(rest.starts_with(why), "{what}: {rest}");
        assert!(has_record(&root, "/run"), "{what}");
        assert_eq!(look(&root.path("/tmp")), taken, "{what}");
    }
}

/// A record of his says that the device is in a guest of his: on `remove` nobody asks there.
#[test]
fn a_record_that_another_user_wrote_is_not_believed() {
    let Some(mut root) = host() else { return };
    assert_attached(&root.event("bind", "1-3").run(&root));
    let record = root.path("/tmp/hotplugger/port-1-3.json");
    let his = fs::read_to_string(&record).unwrap().replace(SOCKET, "/tmp/his.qmp");
    fs::remove_dir_all(root.path("/tmp/hotplugger")).unwrap();
    let asked = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&asked);
    serve(&root.path("/tmp/his.qmp"), move |session| {
        seen.store(true, Ordering::SeqCst);
        session.be_polite()
    });
    root.write("/his", his);
    set_mode(&root.path("/his"), 0o644);
    let script = "umask 077; mkdir hotplugger && cp ../his hotplugger/port-1-3.json";
    assert!(other_did(&root, "/tmp", script));
    root.pull("1-3");
    let run = root.event("remove", "1-3").run(&root);
    assert!(run.line().contains("/tmp/hotplugger is not safe (owner 65534"), "{}", run.line());
    assert_eq!(run.status, 0);
    assert!(!asked.load(Ordering::SeqCst), "his socket was asked");
}

/// He swaps a folder of his for links to root's folder as fast as he can.
#[test]
fn a_race_for_the_state_folder_is_never_won() {
    for mode in [0o1777, 0o777] {
        let Some(mut root) = host() else { return };
        set_mode(&root.path("/tmp"), mode);
        root.write("/private/secret", "root's\n");
        set_mode(&root.path("/private"), 0o700);
        let private = look(&root.path("/private"));
        fs::create_dir(root.path("/tmp/his")).unwrap();
        set_mode(&root.path("/tmp/his"), 0o777);
        let racing = "while true; do \
            mkdir -m 700 hotplugger; mv hotplugger his/$$; rmdir his/$$; \
            ln -s ../private hotplugger; mv -T hotplugger his/$$; rm -f his/$$; \
            mkdir -m 777 hotplugger; ln -s ../../private/secret hotplugger/port-1-3.json; \
            rm -rf hotplugger his/$$; done 2>/dev/null";
        let racer = Racer(other(&root, "/tmp", racing));
        let mut parents = BTreeSet::new();
        for _ in 0..40 {
            let run = root.event("bind", "1-3").run(&root);
            assert_attached(&run);
            for parent in ["/tmp", "/run"] {
                parents.extend(has_record(&root, parent).then_some(parent));
            }
            let _ = fs::remove_dir_all(root.path("/run/hotplugger"));
            let folder = root.path("/tmp/hotplugger");
            if folder.symlink_metadata().is_ok_and(|data| data.uid() == 0 && data.is_dir()) {
                // It is the program's: give him the place again.
                let mode = folder.symlink_metadata().unwrap().mode();
                assert_eq!(mode & 0o7777, 0o700);
                fs::remove_dir_all(folder).unwrap();
            }
        }
        drop(racer);
        assert_eq!(look(&root.path("/private")), private, "mode {mode:o}");
        // A folder that all may rename in is never used, whoever made what is in it.
        assert!(mode == 0o1777 || parents == BTreeSet::from(["/run"]), "{mode:o}: {parents:?}");
    }
}

/// The config decides to whom root hands devices.
#[test]
fn a_config_that_another_user_can_change_is_refused() {
    type Attack = fn(&Root);
    let attacks: [Attack; 3] = [
        |root| give(root, "/etc/hotplugger/config.yaml"),
        |root| give(root, "/etc/hotplugger"),
        |root| {
            let path = root.path("/etc/hotplugger/config.yaml");
            let his = root.path("/tmp/his.yaml");
            fs::rename(&path, &his).unwrap();
            give(root, "/tmp/his.yaml");
            std::os::unix::fs::symlink(his, path).unwrap();
        },
    ];
    for attack in attacks {
        let Some(mut root) = host() else { return };
        attack(&root);
        let run = root.event("bind", "1-3").run(&root);
        let line = run.line();
        assert!(line.contains("config refused: "), "{line}");
        assert!(line.contains("belongs to user 65534"), "{line}");
        assert_eq!(run.status, 1);
    }
}

fn give(root: &Root, path: &str) {
    std::os::unix::fs::chown(root.path(path), Some(OTHER), Some(OTHER)).unwrap();
}

/// Runs a `bind` event where a file system of its own is mounted at `/tmp`, after a shell script
/// in it. Nobody else sees the mount.
fn with_tmp_mounted(root: &mut Root, options: &str, script: &str) -> Ended {
    let event = root.event("bind", "1-3");
    let mut command = Command::new("unshare");
    event.set_up(&mut command, root);
    let mount = format!(
        "mount -t tmpfs -o mode=1777,{options} none {} && cd {0} && {script}; cd / && exec \"$0\"",
        root.path("/tmp").display()
    );
    let program = env!("CARGO_BIN_EXE_hotplugger");
    let command = command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    Running::start(command.args(["-m", "sh", "-c", &mount, program])).end()
}

#[test]
fn a_tmp_that_cannot_be_written_to_is_replaced_by_run() {
    for (options, why) in [("ro", "Read-only file system"), ("nr_inodes=1", "No space left")] {
        let Some(mut root) = host() else { return };
        let run = with_tmp_mounted(&mut root, options, "true");
        let rest = assert_attached(&run);
        assert!(rest.starts_with("; state is kept in /run/hotplugger: cannot make"), "{rest}");
        assert!(rest.contains(why), "{rest}");
        assert!(has_record(&root, "/run"));
    }
}

/// The folder can be made and nothing be written to it.
#[test]
fn a_full_tmp_costs_the_state_and_no_more() {
    let Some(mut root) = host() else { return };
    let run = with_tmp_mounted(&mut root, "size=64k", "cat /dev/zero > full 2>/dev/null");
    let rest = assert_attached(&run);
    assert!(rest.contains("No space left on device"), "{rest}");
    root.pull("1-3");
    assert_eq!(root.event("remove", "1-3").run(&root).status, 0);
}
