//! A person's command that has to wait for the port.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with a panic"
)]

mod support;

use std::fs::{self, File};
use std::process::Command;
use std::thread;
use std::time::Duration;

use hotplugger::deadline::Deadline;
use serde_json::Value;

use support::qemu::{PATIENCE, Qemu};
use support::root::Root;
use support::udev::Running;

/// The person meant the device that was in the port when the command was given.
#[test]
fn late_detach_does_not_concern_the_next_device() {
    let mut root = Root::new();
    root.config(
        "virtual_machines:\n  windows:\n    socket: /run/windows.qmp\n    delay: 0\n    \
         ports: [/devices/pci0000:00/0000:00:14.0/usb1/1-3]\n",
    );
    root.controller(4);
    root.plug("1-3", "tablet", 16);
    let qemu = Qemu::paused(&root, "windows");
    assert_eq!(root.event("bind", "1-3").run(&root).status, 0);

    let path = root.path("/tmp/hotplugger/hold-1-3.lock");
    let lock = File::options().read(true).write(true).open(&path).unwrap();
    lock.lock().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hotplugger"));
    command.env_clear().env("HOTPLUGGER_ROOT", root.path("/")).args(["detach", "1-3"]);
    let detach = Running::start(&mut command);
    wait_until_open(detach.pid(), &path);
    root.pull("1-3");
    root.plug("1-3", "keyboard", 17);
    assert_eq!(root.event("add", "1-3").run(&root).status, 0);
    drop(lock);

    let ended = detach.end();
    assert_eq!(ended.status, 1, "{}", ended.stdout);
    assert!(ended.stdout.contains("another device was plugged in in the meantime"));
    let record = fs::read(root.path("/tmp/hotplugger/port-1-3.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    assert_eq!((&record["devnum"], &record["detached_manual"]), (&17.into(), &false.into()));
    assert_eq!(root.event("bind", "1-3").run(&root).status, 0);
    assert_eq!(qemu.objects(), ["hotplugger-1-3-17"]);
}

/// Waits until the process has the file open.
fn wait_until_open(pid: u32, file: &std::path::Path) {
    let deadline = Deadline::after(PATIENCE);
    let is_open = || {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        entries.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|link| link == file))
    };
    while !is_open() {
        assert!(deadline.remaining().is_some(), "the command does not wait for the port");
        thread::sleep(Duration::from_millis(10));
    }
}
