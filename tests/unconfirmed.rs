//! QEMU stops within each command of an attach and of a detach, for longer than the deadline. While
//! it is unknown whether the guest has the device, the host does not get it. When QEMU is resumed,
//! `sync` settles it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with a panic"
)]

mod support;

use std::fs;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::Value;

use support::proxy::{Proxy, Stop};
use support::qemu::Qemu;
use support::root::Root;
use support::udev::run_manual;

const ID: &str = "hotplugger-1-3-16";

/// More than any of these calls sends.
const MAX_COMMANDS: usize = 30;

const STOPS: [Stop; 3] = [Stop::Executed, Stop::Delayed, Stop::Closed];

/// A host with a device, and a paused guest: QEMU opens no device of the machine that runs the test.
struct Host {
    root: Root,
    qemu: Qemu,
    proxy: Proxy,
}

impl Host {
    fn new() -> Self {
        let mut root = Root::new();
        root.config(
            "virtual_machines:\n  windows:\n    socket: /run/windows.qmp\n    delay: 0\n    \
             timeout: 1\n    ports: [/devices/pci0000:00/0000:00:14.0/usb1/1-3]\n",
        );
        root.controller(4);
        root.plug("1-3", "tablet", 16);
        // What an earlier event has left: no driver, and the record of `add`.
        root.bind_driver("1-3:1.0", "none");
        let qemu = Qemu::paused(&root, "qemu");
        let proxy = Proxy::start(&root.path("/run/windows.qmp"), &root.path("/run/qemu.qmp"));
        Self { root, qemu, proxy }
    }

    /// Makes the device's node one that everybody can open. Returns whether this user may do so.
    fn pass_null_as_the_device(&mut self) -> bool {
        self.root.config(
            "virtual_machines:\n  windows:\n    socket: /run/windows.qmp\n    delay: 0\n    \
             timeout: 1\n    access: fd\n    ports: [/devices/pci0000:00/0000:00:14.0/usb1/1-3]\n",
        );
        self.root.set_attribute("1-3", "dev", "1:3");
        let node = self.root.path("/dev/bus/usb/001/016");
        fs::remove_file(&node).unwrap();
        let (mode, null) = (Mode::RUSR | Mode::WUSR, makedev(1, 3));
        let result = mknodat(CWD, &node, FileType::CharacterDevice, mode, null);
        result.is_ok() && fs::File::open(&node).is_ok()
    }

    fn with_attached_device() -> Self {
        let mut host = Self::new();
        assert_eq!(host.root.event("bind", "1-3").run(&host.root).status, 0);
        assert_eq!(host.qemu.objects(), [ID]);
        host
    }

    fn record(&self) -> Value {
        let file = fs::read(self.root.path("/tmp/hotplugger/port-1-3.json")).unwrap_or_default();
        serde_json::from_slice(&file).unwrap_or_default()
    }

    /// Whether the host's drivers were offered the device since the last call.
    fn was_returned(&self) -> bool {
        let returned = fs::read_to_string(self.root.path("/sys/bus/usb/drivers_probe")).unwrap();
        self.root.write("/sys/bus/usb/drivers_probe", "");
        returned == "1-3:1.0\n"
    }

    /// Resumes QEMU and syncs. Returns the commands that QEMU had got.
    fn resume_and_sync(&self) -> Vec<String> {
        let commands = self.proxy.resume();
        let sync = run_manual(&self.root, &["sync"]);
        assert_eq!(sync.status, 0, "{commands:?}: {}{}", sync.stdout, sync.stderr);
        assert!(self.record()["unconfirmed"].is_null(), "{commands:?}: {}", self.record());
        commands
    }
}

#[test]
fn qemu_stops_within_an_attach() {
    for stop in STOPS {
        for count in 0..MAX_COMMANDS {
            let mut host = Host::new();
            host.proxy.stop_at(count, stop);
            let run = host.root.event("bind", "1-3").run(&host.root);
            let was_returned = host.was_returned();
            let is_unconfirmed = !host.record()["unconfirmed"].is_null();
            let commands = host.resume_and_sync();
            let context = format!("{stop:?} {commands:?}: {}", run.stderr);
            assert_eq!(host.qemu.objects(), [ID], "{context}");
            assert_eq!(host.record()["attached"]["id"], ID, "{context}");
            if commands.len() <= count {
                assert_eq!(run.status, 0, "{context}");
                assert!(count > 5, "{context}");
                break;
            }
            assert_eq!(run.status, 1, "{context}");
            let may_have_it = commands.iter().any(|command| command == "device_add");
            assert_eq!(is_unconfirmed, may_have_it, "{context}");
            assert_eq!(was_returned, !may_have_it, "{context}");
            assert_eq!(run.line().contains("it is unknown whether"), may_have_it, "{context}");
        }
    }
}

#[test]
fn qemu_stops_within_a_detach_by_hand() {
    for stop in STOPS {
        for count in 0..MAX_COMMANDS {
            let host = Host::with_attached_device();
            host.proxy.stop_at(count, stop);
            let run = run_manual(&host.root, &["detach", "1-3"]);
            let was_returned = host.was_returned();
            let commands = host.resume_and_sync();
            let context = format!("{stop:?} {commands:?}: {}{}", run.stdout, run.stderr);
            if commands.len() <= count {
                assert_eq!((run.status, was_returned), (0, true), "{context}");
                assert!(count > 3, "{context}");
                break;
            }
            assert!(!was_returned || run.status == 0, "{context}");
            let sent = commands.iter().any(|command| command == "device_del");
            let is_unknown = run.stdout.contains("it is unknown whether");
            assert!(is_unknown || run.status == 0 || !sent, "{context}");
            // What a person wants is done, also later.
            if is_unknown || sent {
                assert!(host.qemu.objects().is_empty(), "{context}");
                assert!(was_returned || host.was_returned(), "{context}");
                assert_eq!(host.record()["detached_manual"], true, "{context}");
            } else {
                assert_eq!(host.qemu.objects(), [ID], "{context}");
                assert_eq!(host.record()["attached"]["id"], ID, "{context}");
            }
        }
    }
}

#[test]
fn qemu_stops_within_the_detach_of_an_unplugged_device() {
    for stop in STOPS {
        for count in 0..MAX_COMMANDS {
            let mut host = Host::with_attached_device();
            host.root.pull("1-3");
            host.proxy.stop_at(count, stop);
            let run = host.root.event("remove", "1-3").run(&host.root);
            let commands = host.resume_and_sync();
            let context = format!("{stop:?} {commands:?}: {}", run.stderr);
            assert!(host.qemu.objects().is_empty(), "{context}");
            assert!(host.record().is_null(), "{context}");
            if commands.len() <= count {
                assert_eq!(run.status, 0, "{context}");
                assert!(count > 3, "{context}");
                break;
            }
            assert!(run.status == 1 || run.line().contains("no reply"), "{context}");
        }
    }
}

/// With a file descriptor. The node is /dev/null's, so QEMU rejects `device_add` in the end.
#[test]
fn qemu_stops_while_it_has_a_file_descriptor() {
    for stop in STOPS {
        for count in 0..MAX_COMMANDS {
            let mut host = Host::new();
            if !host.pass_null_as_the_device() {
                return;
            }
            // A paused QEMU keeps the file descriptors of a set.
            host.qemu.execute("cont", Value::Null).unwrap();
            host.proxy.stop_at(count, stop);
            let run = host.root.event("bind", "1-3").run(&host.root);
            let commands = host.proxy.resume();
            let sync = run_manual(&host.root, &["sync"]);
            let context = format!("{stop:?} {commands:?}: {} {}", run.stderr, sync.stdout);
            assert!(sync.stdout.contains("did not open the device"), "{context}");
            let sets = host.qemu.execute("query-fdsets", Value::Null).unwrap();
            let is_empty = |set: &Value| set["fds"].as_array().unwrap().is_empty();
            assert!(sets.as_array().unwrap().iter().all(is_empty), "{context}: {sets}");
            assert!(host.qemu.objects().is_empty(), "{context}");
            assert!(host.record()["unconfirmed"].is_null(), "{context}: {}", host.record());
            if commands.len() <= count {
                assert!(count > 6, "{context}");
                break;
            }
        }
    }
}

/// A plug, and the next event, while QEMU is still stopped.
#[test]
fn next_event_does_not_return_a_device_whose_guest_is_unknown() {
    let mut host = Host::new();
    let commands_before_device_add = 5;
    host.proxy.stop_at(commands_before_device_add, Stop::Delayed);
    assert_eq!(host.root.event("bind", "1-3").run(&host.root).status, 1);
    let again = host.root.event("bind", "1-3").run(&host.root);
    assert!(again.line().contains("it is unknown whether the guest has it"), "{}", again.stderr);
    let by_hand = run_manual(&host.root, &["detach", "1-3"]);
    assert!(by_hand.stdout.contains("it is unknown whether"), "{}", by_hand.stdout);
    assert_eq!(run_manual(&host.root, &["sync"]).status, 1);
    assert!(!host.was_returned());
    let commands = host.proxy.resume();
    assert_eq!(commands.last().unwrap(), "device_add");
    let settled = host.root.event("bind", "1-3").run(&host.root);
    let expected = "resumes; until now it was unknown whether windows has it";
    assert!(settled.line().ends_with(expected), "{}", settled.stderr);
    assert_eq!(host.qemu.objects(), [ID]);
}
