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

/// Anything in its place is left as it is, and `/run` is used.
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

/// The user who had the directory before it became ours locked a file in it, or can still read it.
#[test]
fn file_that_is_not_ours_alone_is_made_again() {
    type Plant = fn(&Path);
    let plants: [Plant; 6] = [
        |path| {
            fs::write(path, "{}").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
        },
        |path| {
            fs::write(path, "{}").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
            fs::hard_link(path, path.with_extension("second-name")).unwrap();
        },
        |path| symlink("/etc/passwd", path).unwrap(),
        |path| fs::create_dir(path).unwrap(),
        |path| rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap(),
        |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
    ];
    let names =
        ["records.lock", "hold-1-1.lock", "port-1-1.json", "port-1-1.json.new", "history.jsonl"];
    for plant in plants {
        let (_dir, root) = root();
        let state = StateDir::open(&root).unwrap();
        let directory = root.path("/tmp/hotplugger");
        for name in names {
            plant(&directory.join(name));
        }
        let lock = directory.join("hold-1-1.lock");
        let held = lock.is_file().then(|| fs::File::open(lock).unwrap());
        let _held = held.inspect(|file| file.try_lock().unwrap());
        assert_eq!(read_all_unlocked(&root), []);
        let port = "1-1".parse().unwrap();
        Lock::acquire(state.port_lock(&port).unwrap(), &deadline()).unwrap();
        state.append_to("history.jsonl").unwrap().write_all(b"line\n").unwrap();
        let records = state.records(&deadline()).unwrap();
        assert_eq!(records.get(&port), None);
        records.save(&record("1-1", 5)).unwrap();
        assert_eq!(records.get(&port), Some(record("1-1", 5)));
        for name in names.into_iter().filter(|name| *name != "port-1-1.json.new") {
            let data = directory.join(name).symlink_metadata().unwrap();
            assert!(data.is_file() && data.permissions().mode() & 0o7777 == 0o600, "{name}");
            assert_eq!(std::os::unix::fs::MetadataExt::nlink(&data), 1, "{name}");
        }
        assert_eq!(fs::read_to_string(directory.join("history.jsonl")).unwrap(), "line\n");
    }
}

#[test]
fn full_directory_in_the_place_of_a_file_is_an_error_that_says_so() {
    let (_dir, root) = root();
    let state = StateDir::open(&root).unwrap();
    fs::create_dir_all(root.path("/tmp/hotplugger/hold-1-1.lock/full")).unwrap();
    let error = format!("{:#}", state.port_lock(&"1-1".parse().unwrap()).unwrap_err());
    assert_eq!(error, "lock file hold-1-1.lock: a directory has its name; delete it");
}

/// A process that replaces the file waits for another one that does, and takes the other's new file.
#[test]
fn of_many_processes_that_replace_a_lock_one_holds_it() {
    for _ in 0..20 {
        let (_dir, root) = root();
        let state = StateDir::open(&root).unwrap();
        let path = root.path("/tmp/hotplugger/hold-1-1.lock");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let port: Port = "1-1".parse().unwrap();
        let held: Vec<_> = std::thread::scope(|scope| {
            let take = || {
                let state = StateDir::open(&root).unwrap();
                let file = state.port_lock(&port).unwrap();
                Lock::acquire(file, &Deadline::after(Duration::from_millis(20))).ok()
            };
            let tries: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
            tries.into_iter().filter_map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(held.len(), 1);
        drop(state);
    }
}
