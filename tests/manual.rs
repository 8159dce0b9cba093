//! `detach`, `attach`, `replug` and `edit` by a person.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with a panic"
)]

mod support;

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use hotplugger::clock::Deadline;
use serde_json::Value;

use support::qemu::{PATIENCE, Qemu};
use support::root::Root;
use support::udev::{Running, run_manual};

const CONFIG: &str = "virtual_machines:\n  windows:\n    socket: /run/windows.qmp\n    delay: 0\n    \
                      ports: [/devices/pci0000:00/0000:00:14.0/usb1/1-3]\n";

/// A host with a tablet in port 1-3, which the VM's guest has.
fn attached() -> (Root, Qemu) {
    let mut root = Root::new();
    root.config(CONFIG);
    root.controller(4);
    root.plug("1-3", "tablet", 16);
    let qemu = Qemu::paused(&root, "windows");
    assert_eq!(root.event("bind", "1-3").run(&root).status, 0);
    assert_eq!(qemu.objects(), ["hotplugger-1-3-16"]);
    (root, qemu)
}

fn hotplugger(root: &Root, arguments: &[&str]) -> (i32, String) {
    let ended = run_manual(root, arguments);
    (ended.status, ended.stdout + &ended.stderr)
}

fn ok(root: &Root, arguments: &[&str]) -> String {
    let (status, text) = hotplugger(root, arguments);
    assert_eq!(status, 0, "{arguments:?}: {text}");
    text
}

#[test]
fn kept_port_stays_with_the_host_over_replugs() {
    let (mut root, qemu) = attached();
    let text = ok(&root, &["detach", "--keep", "1-3"]);
    assert!(text.contains("until it is attached manually, also if it is plugged in"), "{text}");
    assert!(qemu.objects().is_empty());
    root.pull("1-3");
    assert_eq!(root.event("remove", "1-3").run(&root).status, 0);
    root.plug("1-3", "keyboard", 17);
    for action in ["add", "bind"] {
        let ended = root.event(action, "1-3").run(&root);
        assert_eq!((ended.status, ended.stdout.as_str()), (0, ""));
    }
    ok(&root, &["sync"]);
    assert!(qemu.objects().is_empty());
    let findings = hotplugger(&root, &["check", "--verbose"]).1;
    assert!(findings.contains("hotplugger attach 1-3"), "{findings}");
    ok(&root, &["attach", "1-3"]);
    assert_eq!(qemu.objects(), ["hotplugger-1-3-17"]);
    root.pull("1-3");
    assert_eq!(root.event("remove", "1-3").run(&root).status, 0);
    root.plug("1-3", "tablet", 18);
    assert_eq!(root.event("bind", "1-3").run(&root).status, 0);
    assert_eq!(qemu.objects(), ["hotplugger-1-3-18"]);
}

#[test]
fn empty_port_can_be_kept_and_released() {
    let (mut root, qemu) = attached();
    root.pull("1-3");
    assert_eq!(root.event("remove", "1-3").run(&root).status, 0);
    let text = ok(&root, &["detach", "--keep", "1-3"]);
    assert!(text.contains("kept with the host until `hotplugger attach`"), "{text}");
    root.plug("1-3", "keyboard", 17);
    assert_eq!(root.event("bind", "1-3").run(&root).status, 0);
    assert!(qemu.objects().is_empty());
    root.pull("1-3");
    let text = ok(&root, &["attach", "1-3"]);
    assert!(text.contains("no longer kept"), "{text}");
    let (status, text) = hotplugger(&root, &["attach", "1-3"]);
    assert_eq!((status, text.contains("nothing is plugged in there")), (1, true), "{text}");
    root.plug("1-3", "keyboard", 18);
    assert_eq!(root.event("bind", "1-3").run(&root).status, 0);
    assert_eq!(qemu.objects(), ["hotplugger-1-3-18"]);
}

/// As for saving the VM's state: what is detached goes to its next QEMU, and not back to this one.
#[test]
fn devices_of_a_vm_are_detached_until_it_is_started_again() {
    let (mut root, qemu) = attached();
    let text = ok(&root, &["detach", "--vm", "windows"]);
    assert!(text.contains("until the VM is started again"), "{text}");
    ok(&root, &["sync"]);
    assert_eq!(root.event("bind", "1-3").run(&root).status, 0);
    assert!(qemu.objects().is_empty());
    assert_eq!(ok(&root, &["detach", "--vm", "windows"]), "", "it has none");
    drop(qemu);
    let qemu = Qemu::paused(&root, "windows");
    ok(&root, &["sync"]);
    assert_eq!(qemu.objects(), ["hotplugger-1-3-16"]);
    // Its device was unplugged, and nobody noticed.
    root.pull("1-3");
    let text = ok(&root, &["detach", "--vm", "windows"]);
    assert!(text.contains("detached hotplugger-1-3-16"), "{text}");
    assert!(qemu.objects().is_empty());
    let (status, text) = hotplugger(&root, &["detach"]);
    assert_eq!((status, text.contains("<PORT>")), (2, true), "{text}");
}

#[test]
fn replug_switches_both_halves_of_the_connector() {
    let mut root = Root::new();
    root.controller(4);
    root.plug("1-3", "tablet", 16);
    let (status, text) = hotplugger(&root, &["replug", "1-3"]);
    assert_eq!((status, text.contains("takes Linux 6.0 or later")), (1, true), "{text}");
    let directory = "/sys/devices/pci0000:00/0000:00:14.0";
    let switches = [1, 2]
        .map(|bus| root.path(format!("{directory}/usb{bus}/{bus}-0:1.0/usb{bus}-port3/disable")));
    for switch in &switches {
        fs::write(switch, "").unwrap();
    }
    let text = ok(&root, &["replug", "pci-0000:00:14.0-usb-0:3"]);
    assert!(text.contains("with QEMU USB Tablet (0627:0001) in it"), "{text}");
    assert!(text.contains("QEMU USB Tablet (0627:0001) is back"), "{text}");
    for switch in &switches {
        assert_eq!(fs::read_to_string(switch).unwrap(), "1\n0\n");
    }
    let (status, text) = hotplugger(&root, &["replug", "1-9"]);
    assert_eq!((status, text.contains("no such port")), (1, true), "{text}");
}

#[test]
fn edited_config_takes_effect_only_if_it_can_be_read() {
    let root = Root::new();
    root.config(CONFIG);
    let path = root.path("/etc/hotplugger/config.yaml");
    let edit = |editor: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hotplugger"));
        command.env_clear().env("HOTPLUGGER_ROOT", root.path("/")).env("PATH", "/usr/bin:/bin");
        let output =
            command.env("EDITOR", editor).arg("edit").stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), text, fs::read_to_string(&path).unwrap())
    };
    let (status, text, config) = edit("true");
    assert_eq!((status, config.as_str()), (Some(0), CONFIG));
    assert!(text.ends_with("config.yaml: unchanged\n"), "{text}");
    let (status, text, config) = edit("sed -i s/delay/dellay/");
    assert_eq!((status, config.as_str()), (Some(1), CONFIG));
    assert!(text.contains(":4:5: ") && text.contains("`dellay`"), "{text}");
    let (status, text, config) = edit("");
    assert_eq!((status, config.as_str()), (Some(1), CONFIG));
    assert!(text.contains("name an editor in $EDITOR"), "{text}");
    let (status, text, config) = edit("false");
    assert_eq!((status, config.as_str()), (Some(1), CONFIG));
    assert!(text.contains("the editor `false` failed"), "{text}");
    let (status, text, config) = edit("sed -i 's/delay: 0/delay: 2/'");
    assert_eq!((status, config), (Some(0), CONFIG.replace("delay: 0", "delay: 2")), "{text}");
    assert_eq!(fs::read_to_string(path.with_extension("yaml.bak")).unwrap(), CONFIG);
}

/// The person meant the device that was in the port when the command was given.
#[test]
fn late_detach_does_not_concern_the_next_device() {
    let (mut root, qemu) = attached();
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
