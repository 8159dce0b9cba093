//! The program in surroundings that are hostile or broken: its environment, its standard streams,
//! its limits, the folders that everybody may write to. It never panics and never hangs, ends with
//! 0 or 1 as fits, and attaches the device wherever that is possible.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with a panic"
)]

mod support;

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_setfl, mknodat};

use support::hostile::{Session, serve};
use support::root::Root;
use support::udev::{Ended, Event, Running};

const SOCKET: &str = "/run/windows.qmp";

/// A host with a tablet in a port of a virtual machine whose QEMU takes any device.
fn host() -> Root {
    let root = host_without_qemu();
    serve(&root.path(SOCKET), Session::be_polite);
    root
}

fn host_without_qemu() -> Root {
    let mut root = Root::new();
    root.config(&format!(
        "virtual_machines:\n  windows:\n    socket: {SOCKET}\n    delay: 0\n    timeout: 20\n    \
         ports: [/devices/pci0000:00/0000:00:14.0/usb1/1-3]\n"
    ));
    root.plug("1-3", "tablet", 16);
    root
}

/// Asserts that the device was attached; returns what the line says besides.
fn assert_attached(run: &Ended) -> String {
    let line = run.line();
    let rest = line
        .strip_prefix("windows: port 1-3, QEMU USB Tablet (0627:0001): attached, ")
        .unwrap_or_else(|| panic!("{line}"));
    assert_eq!(run.status, 0);
    rest.split_once(" with QEMU)").expect("how long it took").1.to_owned()
}

fn assert_fails(run: &Ended, why: &str) {
    assert!(run.line().contains(why), "{}\nwithout: {why}", run.line());
    assert_eq!(run.status, 1);
}

fn record_in(root: &Root, parent: &str) -> Option<String> {
    fs::read_to_string(root.path(format!("{parent}/hotplugger/port-1-3.json"))).ok()
}

// The environment.

#[test]
fn huge_values_do_not_make_a_huge_record() {
    let mut root = host();
    let mut event = root.event("bind", "1-3");
    for number in 0..15 {
        // The kernel takes 128 KiB for each, 2 MiB in all.
        event.set(format!("ID_HUGE_{number}"), "x".repeat(120_000));
    }
    for number in 0..1000 {
        event.set(format!("ID_LARGE_{number}"), "\u{1}".repeat(100));
    }
    assert_attached(&event.run(&root));
    let record = record_in(&root, "/tmp").unwrap();
    assert!(record.len() < 256 * 1024, "{} bytes", record.len());

    root.pull("1-3");
    assert_eq!(root.event("remove", "1-3").run(&root).status, 0);
    assert_eq!(record_in(&root, "/tmp"), None);
}

#[test]
fn values_that_are_not_utf_8_are_survived() {
    let garbage = || OsStr::from_bytes(b"\xff\xfe\x80/usb1/1-3");
    for variable in ["ID_MODEL", "TAGS", "PRODUCT", "USEC_INITIALIZED", "SYNTH_UUID", "\u{e9}"] {
        let mut root = host();
        let mut event = root.event("bind", "1-3");
        event.set(variable, garbage());
        assert_attached(&event.run(&root));
    }
    for variable in ["ACTION", "SUBSYSTEM", "DEVTYPE"] {
        let mut root = host();
        let mut event = root.event("bind", "1-3");
        event.set(variable, garbage());
        let run = event.run(&root);
        assert_eq!((run.status, run.stderr.as_str()), (0, ""), "{variable}");
    }
}

#[test]
fn numbers_that_are_none_are_refused() {
    for variable in ["BUSNUM", "DEVNUM", "SEQNUM"] {
        for value in ["", "many", "-1", "1e3", "0x10", "99999999999999999999999999"] {
            let mut root = host();
            let mut event = root.event("bind", "1-3");
            event.set(variable, value);
            let why = format!(
                "not handled: the environment is not that of a uevent: {variable} is not a number the kernel writes"
            );
            assert_fails(&event.run(&root), &why);
        }
    }
}

/// A device that is being reset says so; sysfs knows better by now.
#[test]
fn the_number_0_is_none() {
    let mut root = host();
    let mut event = root.event("bind", "1-3");
    event.set("DEVNUM", "000");
    assert_attached(&event.run(&root));
}

#[test]
fn a_devpath_that_the_kernel_does_not_make_is_refused() {
    let long = format!("/devices/{}/usb1/1-3", "x".repeat(5000));
    for (devpath, why) in [
        ("", "does not begin with /devices/"),
        ("1-3", "does not begin with /devices/"),
        ("/sys/devices/pci0000:00/0000:00:14.0/usb1/1-3", "does not begin with /devices/"),
        ("/devices/../etc/usb1/1-3", "has an empty component, `.` or `..`"),
        ("/devices/pci0000:00/0000:00:14.0/usb1/1-3/..", "has an empty component, `.` or `..`"),
        ("/devices/pci0000:00//0000:00:14.0/usb1/1-3", "has an empty component, `.` or `..`"),
        ("/devices/pci0000:00/\u{1b}[2J\n/usb1/1-3", "has control characters or is too long"),
        (&long, "has control characters or is too long"),
    ] {
        let mut root = host();
        let mut event = root.event("bind", "1-3");
        event.set("DEVPATH", devpath);
        assert_fails(
            &event.run(&root),
            &format!("not handled: the environment is not that of a uevent: DEVPATH {why}"),
        );
    }
}

#[test]
fn an_event_without_its_variables_is_refused() {
    for variable in ["ACTION", "DEVPATH"] {
        let mut root = host();
        let mut event = root.event("bind", "1-3");
        event.unset(variable);
        let why = format!(
            "not handled: the environment is not that of a uevent: {variable} is not in the environment"
        );
        assert_fails(&Running::start(event.command(&root).arg("udev")).end(), &why);
    }
}

/// Without a number the event is that of an interface, or of an older kernel.
#[test]
fn an_event_without_numbers_is_of_what_is_there() {
    let mut root = host();
    let mut event = root.event("bind", "1-3");
    for variable in ["BUSNUM", "DEVNUM", "SEQNUM", "TYPE", "DEVNAME", "USEC_INITIALIZED"] {
        event.unset(variable);
    }
    assert_attached(&event.run(&root));
}

/// A device says of itself what it likes, and it is in the line.
#[test]
fn a_product_name_that_is_meant_for_the_terminal_is_cleaned() {
    let mut root = host();
    root.set_attribute("1-3", "product", "\u{1b}]0;evil\u{7}\rwindows: attached\u{202e}");
    let run = root.event("bind", "1-3").run(&root);
    let line = run.line();
    assert!(
        line.contains("\u{fffd}]0;evil\u{fffd}\u{fffd}windows: attached\u{fffd} (0627:"),
        "{line}"
    );
    assert!(!line.contains('\u{202e}'), "{line}");
}

// The standard streams and the limits.

/// Starts the program by a shell that changes something of itself first.
fn after(shell: &str, event: &Event, root: &Root) -> Running {
    let mut command = Command::new("/bin/sh");
    event.set_up(&mut command, root);
    let script = format!("{shell} && exec \"$0\"");
    Running::start(command.args(["-c", &script, env!("CARGO_BIN_EXE_hotplugger")]))
}

/// With them closed, the first files that are opened get the numbers of the standard streams: the
/// line must not end up in one of them.
#[test]
fn closed_standard_streams_are_survived() {
    let mut root = host_without_qemu();
    let (sender, ends) = mpsc::channel();
    serve(&root.path(SOCKET), move |session| {
        let end = session.be_polite().unwrap_err();
        sender.send(end.kind()).map_err(io::Error::other)
    });
    let run = after("exec <&- >&- 2>&-", &root.event("bind", "1-3"), &root).end();
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
    assert_eq!(ends.recv().unwrap(), ErrorKind::UnexpectedEof, "QEMU heard something else");
    let record = record_in(&root, "/tmp").unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["attached"]["vm"], "windows");
    for file in fs::read_dir(root.path("/tmp/hotplugger")).unwrap() {
        let path = file.unwrap().path();
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        assert!(!text.contains("hotplugger: "), "{}: {text}", path.display());
    }
}

/// Runs the event with a full pipe as standard error, which nobody empties meanwhile.
fn with_a_full_pipe(flags: OFlags) {
    let mut root = host();
    let (mut reader, writer) = io::pipe().unwrap();
    fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    while (&writer).write(&[b'.'; 4096]).is_ok() {}
    while (&writer).write(b".").is_ok() {}
    fcntl_setfl(&writer, flags).unwrap();
    let mut command = root.event("bind", "1-3").command(&root);
    let child = command.stdout(Stdio::null()).stderr(writer).spawn().unwrap();
    drop(command);
    assert_eq!(Running::of(child).end().status, 0);
    assert!(record_in(&root, "/tmp").unwrap().contains("\"vm\": \"windows\""));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(text.bytes().all(|byte| byte == b'.'), "half a line");
}

/// As udevd makes it.
#[test]
fn a_full_pipe_as_standard_error_costs_the_line_and_no_more() {
    with_a_full_pipe(OFlags::NONBLOCK);
}

#[test]
fn a_full_pipe_that_blocks_costs_the_line_and_no_more() {
    with_a_full_pipe(OFlags::empty());
}

#[test]
fn a_pipe_without_a_reader_as_standard_error_is_survived() {
    let mut root = host();
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let mut command = root.event("bind", "1-3").command(&root);
    let child = command.stdout(Stdio::null()).stderr(writer).spawn().unwrap();
    assert_eq!(Running::of(child).end().status, 0);
}

/// Runs the event with each number of descriptors, from the fewest with which the C library can be
/// loaded; none are inherited from who runs the tests.
fn with_few_descriptors(check: impl Fn(u32, &Ended)) {
    for limit in 4..=16 {
        let mut root = host();
        let limited = format!("exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; ulimit -n {limit}");
        let run = after(&limited, &root.event("bind", "1-3"), &root).end();
        check(limit, &run);
    }
}

#[test]
fn few_descriptors_are_survived() {
    with_few_descriptors(|limit, run| {
        if run.line().contains(": attached, ") {
            assert_attached(run);
        } else {
            assert!(limit < 16, "{}", run.line());
        }
    });
}

#[test]
fn what_is_wrong_with_few_descriptors_is_told() {
    with_few_descriptors(|limit, run| {
        let line = run.line();
        let misled =
            line.contains("unplugged before it was attached") || line.contains("delete it");
        assert!(!misled, "{limit}: {line}");
    });
}

// The folders that everybody may write to.

/// Somebody puts something at that path before the program comes.
type Plant = fn(&Path);

const PLANTS: [(&str, Plant); 6] = [
    ("a file", |path| fs::write(path, "mine").unwrap()),
    ("a link to nowhere", |path| symlink("/nowhere/at/all", path).unwrap()),
    ("a link to a private folder of ours", |path| {
        let private = path.with_file_name("private");
        folder(&private, 0o700);
        symlink(private, path).unwrap();
    }),
    ("a fifo", |path| mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap()),
    ("a folder that all can write to", |path| folder(path, 0o777)),
    ("a folder that all can read", |path| folder(path, 0o755)),
];

fn folder(path: &Path, mode: u32) {
    fs::create_dir(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// What is of interest of a file that is not to be touched.
fn look(path: &Path) -> (u32, u32, u64, i64) {
    let data = path.symlink_metadata().unwrap();
    (data.mode(), data.uid(), data.ino(), data.mtime_nsec())
}

#[test]
fn whatever_is_at_the_state_folders_path_is_left_and_run_takes_its_place() {
    let foreign: (&str, Plant) = ("another user's folder", |path| {
        folder(path, 0o700);
        chown(path, Some(12345), Some(12345)).unwrap();
    });
    let is_root = rustix::process::geteuid().is_root();
    for (what, plant) in PLANTS.into_iter().chain(is_root.then_some(foreign)) {
        let mut root = host();
        let path = root.path("/tmp/hotplugger");
        plant(&path);
        let before = look(&path);
        let rest = assert_attached(&root.event("bind", "1-3").run(&root));
        assert!(rest.starts_with("; state is kept in /run"), "{what}: {rest}");
        assert!(rest.contains("/tmp/hotplugger is n") && rest.contains("delete it"), "{rest}");
        assert_eq!(look(&path), before, "{what}");
        assert!(record_in(&root, "/run").is_some(), "{what}");

        root.pull("1-3");
        assert_eq!(root.event("remove", "1-3").run(&root).status, 0, "{what}");
        assert_eq!(record_in(&root, "/run"), None, "{what}");
        assert_eq!(look(&path), before, "{what}");
    }
}

#[test]
fn without_any_place_for_state_it_goes_without() {
    for (what, plant) in PLANTS {
        let mut root = host();
        plant(&root.path("/tmp/hotplugger"));
        plant(&root.path("/run/hotplugger"));
        let rest = assert_attached(&root.event("bind", "1-3").run(&root));
        assert!(rest.starts_with("; no state is kept: "), "{what}: {rest}");
        root.pull("1-3");
        let run = root.event("remove", "1-3").run(&root);
        assert!(run.line().contains("; no state is kept: "), "{what}: {}", run.line());
        assert_eq!(run.status, 0, "{what}");
    }
}

/// A chmod does not keep root from writing; something else than a folder does.
#[test]
fn a_tmp_that_cannot_be_used_is_replaced_by_run() {
    let plants: [(&str, Plant); 4] = [
        ("missing", |_| {}),
        ("a file", |path| fs::write(path, "").unwrap()),
        ("a link to itself", |path| symlink(path, path).unwrap()),
        ("one in which all may rename", |path| folder(path, 0o777)),
    ];
    for (what, plant) in plants {
        let mut root = host();
        fs::remove_dir(root.path("/tmp")).unwrap();
        plant(&root.path("/tmp"));
        let rest = assert_attached(&root.event("bind", "1-3").run(&root));
        assert!(rest.starts_with("; state is kept in /run"), "{what}: {rest}");
        assert!(record_in(&root, "/run").is_some(), "{what}");
    }
}

/// The folder is ours alone, and yet something in it is not as it should be.
#[test]
fn whatever_is_in_the_state_folder_the_device_is_attached() {
    let plants: [(&str, Plant); 5] = [
        ("a folder", |path| folder(path, 0o700)),
        ("a link to itself", |path| symlink(path, path).unwrap()),
        ("a fifo", |path| mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap()),
        ("garbage", |path| fs::write(path, b"\xff{\"version\": 1").unwrap()),
        ("a file of 1 TiB", |path| {
            fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
        }),
    ];
    for name in ["port-1-3.json", "port-1-3.json.new", "records.lock"] {
        for (what, plant) in plants {
            let mut root = host();
            folder(&root.path("/tmp/hotplugger"), 0o700);
            plant(&root.path(format!("/tmp/hotplugger/{name}")));
            assert_eq!(root.event("add", "1-3").run(&root).status, 0, "{name}: {what}");
            let rest = assert_attached(&root.event("bind", "1-3").run(&root));
            assert!(rest.is_empty() || rest.starts_with("; "), "{name}: {what}: {rest}");
            root.pull("1-3");
            assert_eq!(root.event("remove", "1-3").run(&root).status, 0, "{name}: {what}");
        }
    }
}

#[test]
fn whatever_is_at_the_configs_path_is_one_line() {
    let plants: [(&str, Plant); 5] = [
        ("this is not a regular file", |path| folder(path, 0o755)),
        ("this is not a regular file", |path| {
            mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        }),
        ("Too many levels of symbolic links", |path| symlink(path, path).unwrap()),
        ("larger than 1 MiB", |path| fs::File::create(path).unwrap().set_len(1 << 40).unwrap()),
        ("not UTF-8 text", |path| fs::write(path, b"/usb1/1-3 \xff").unwrap()),
    ];
    for (why, plant) in plants {
        let mut root = host();
        let path = root.path("/etc/hotplugger/config.yaml");
        fs::remove_file(&path).unwrap();
        plant(&path);
        for action in ["add", "bind", "remove"] {
            assert_fails(&root.event(action, "1-3").run(&root), why);
        }
    }
}
