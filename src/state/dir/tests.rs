use super::*;
use crate::state::record::tests::record;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

fn root() -> (tempfile::TempDir, Root) {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::at(dir.path());
    for directory in ["/tmp", "/run", "/proc/sys/kernel/random"] {
        fs::create_dir_all(root.path(directory)).unwrap();
    }
    fs::set_permissions(root.path("/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(root.path("/proc/sys/kernel/random/boot_id"), "boot\n").unwrap();
    (dir, root)
}

fn deadline() -> Deadline {
    Deadline::after(Duration::from_secs(5))
}

#[test]
fn a_record_is_kept_and_forgotten() {
    let (_dir, root) = root();
    let state = StateDir::open(&root).unwrap();
    assert_eq!(state.fallback, None);
    let records = state.records(&deadline()).unwrap();
    let port = "1-1".parse().unwrap();
    assert_eq!(records.get(&port), None);
    let device = "/devices/x/usb1/1-1".parse().unwrap();
    assert!(!may_have_record(&root, &device));
    records.save(&record("1-1", 5)).unwrap();
    records.save(&record("1-1", 6)).unwrap();
    assert!(may_have_record(&root, &device));
    assert_eq!(records.get(&port), Some(record("1-1", 6)));
    records.delete(&port).unwrap();
    records.delete(&port).unwrap();
    assert_eq!(records.get(&port), None);
    let mode = fs::metadata(root.path("/tmp/hotplugger")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
}

#[test]
fn what_is_damaged_or_of_another_boot_counts_as_absent() {
    let (_dir, root) = root();
    let state = StateDir::open(&root).unwrap();
    let records = state.records(&deadline()).unwrap();
    let port = "1-1".parse().unwrap();
    let mut other = record("1-1", 5);
    other.boot_id = "another".to_owned();
    records.save(&other).unwrap();
    assert_eq!(records.get(&port), None);
    let mut other = record("1-1", 5);
    other.version += 1;
    records.save(&other).unwrap();
    assert_eq!(records.get(&port), None);
    for damaged in ["", "{", "[]", "{\"version\":1}"] {
        fs::write(root.path("/tmp/hotplugger/port-1-1.json"), damaged).unwrap();
        assert_eq!(records.get(&port), None);
    }
}

/// Whatever somebody put in its place, it is left as it is and `/run` is used.
#[test]
fn a_folder_that_is_not_ours_alone_is_not_used() {
    type Plant = fn(&std::path::Path);
    let plants: [Plant; 4] = [
        |path| fs::write(path, "file").unwrap(),
        |path| symlink("/etc", path).unwrap(),
        |path| {
            fs::create_dir(path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        },
        |path| {
            let mode = Mode::RWXU;
            rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0).unwrap();
        },
    ];
    for plant in plants {
        let (_dir, root) = root();
        plant(&root.path("/tmp/hotplugger"));
        let before = root.path("/tmp/hotplugger").symlink_metadata().unwrap();
        let state = StateDir::open(&root).unwrap();
        assert!(state.fallback.as_ref().unwrap().contains("delete it"), "{:?}", state.fallback);
        state.records(&deadline()).unwrap().save(&record("1-1", 5)).unwrap();
        assert!(root.path("/run/hotplugger/port-1-1.json").exists());
        let after = root.path("/tmp/hotplugger").symlink_metadata().unwrap();
        assert_eq!(before.permissions(), after.permissions());
    }
}

#[test]
fn links_inside_the_folder_are_not_followed() {
    let (_dir, root) = root();
    let state = StateDir::open(&root).unwrap();
    let target = root.path("/run/target");
    fs::write(&target, serde_json::to_string(&record("1-1", 5)).unwrap()).unwrap();
    symlink(&target, root.path("/tmp/hotplugger/port-1-1.json")).unwrap();
    symlink(&target, root.path("/tmp/hotplugger/port-1-1.json.new")).unwrap();
    let records = state.records(&deadline()).unwrap();
    assert_eq!(records.get(&"1-1".parse().unwrap()), None);
    records.save(&record("1-1", 6)).unwrap();
    assert_eq!(records.get(&"1-1".parse().unwrap()), Some(record("1-1", 6)));
    assert!(fs::read_to_string(&target).unwrap().contains("\"devnum\":5"));
}

#[test]
fn a_tmp_that_others_may_rename_in_is_not_used() {
    let (_dir, root) = root();
    fs::set_permissions(root.path("/tmp"), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(StateDir::open(&root).unwrap().fallback.is_some());
}

#[test]
fn a_record_in_the_file_of_another_port_is_nobodys() {
    let (_dir, root) = root();
    let state = StateDir::open(&root).unwrap();
    state.records(&deadline()).unwrap().save(&record("1-1", 5)).unwrap();
    let directory = root.path("/tmp/hotplugger");
    fs::copy(directory.join("port-1-1.json"), directory.join("port-1-2.json")).unwrap();
    assert_eq!(read_all_unlocked(&root), [record("1-1", 5)]);
}
