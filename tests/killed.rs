//! hotplugger is killed before each of its system calls in an attach and in a detach. Afterwards the
//! device is the guest's or the host's, or `check` names it; and `sync` repairs it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with a panic"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use serde_json::Value;

use support::qemu::Qemu;
use support::root::Root;
use support::udev::{Event, run_manual};

const ID: &str = "hotplugger-1-3-16";
const INTERFACE: &str = "/sys/devices/pci0000:00/0000:00:14.0/usb1/1-3/1-3:1.0";

/// A host with a device that has a driver, and a paused guest.
struct Host {
    root: Root,
    qemu: Qemu,
}

impl Host {
    fn new() -> Self {
        let root = Root::with_tablet();
        root.bind_driver("1-3:1.0", "usbhid");
        let qemu = Qemu::paused(&root, "windows");
        Self { root, qemu }
    }

    /// Does what the kernel does when a driver was unbound, or was to be found.
    fn play_kernel(&self) {
        let read = |path: &str| fs::read_to_string(self.root.path(path)).unwrap_or_default();
        if !read("/sys/bus/usb/drivers/usbhid/unbind").is_empty() {
            self.root.write("/sys/bus/usb/drivers/usbhid/unbind", "");
            self.root.bind_driver("1-3:1.0", "none");
        }
        if !read("/sys/bus/usb/drivers_probe").is_empty() {
            self.root.bind_driver("1-3:1.0", "usbhid");
        }
    }

    fn is_the_hosts(&self) -> bool {
        self.root.path(INTERFACE).join("driver").symlink_metadata().is_ok()
    }

    fn is_the_guests(&self) -> bool {
        self.qemu.objects() == [ID]
    }

    fn record(&self) -> Value {
        let file = fs::read(self.root.path("/tmp/hotplugger/port-1-3.json")).unwrap_or_default();
        serde_json::from_slice(&file).unwrap_or_default()
    }

    /// The codes of what `check` finds.
    fn check(&self) -> Vec<String> {
        let check = run_manual(&self.root, &["check", "--json"]);
        let report: Value = serde_json::from_str(&check.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap().iter();
        findings.map(|finding| finding["code"].as_str().unwrap().to_owned()).collect()
    }

    fn sync(&self) {
        let sync = run_manual(&self.root, &["sync"]);
        assert_eq!(sync.status, 0, "{}{}", sync.stdout, sync.stderr);
        self.play_kernel();
    }
}

/// The program with the event, below strace.
fn strace(root: &Root, event: &Event, options: &[&str]) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-q"]).args(options).arg(env!("CARGO_BIN_EXE_hotplugger"));
    event.set_up(&mut command, root);
    // strace itself is found by the test's own PATH.
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// The names of the system calls of an event, in their order.
fn system_calls(root: &Root, event: &Event) -> Vec<String> {
    let file = root.path("/run/strace");
    let status = strace(root, event, &["-o", file.to_str().unwrap()]).status().unwrap();
    assert!(status.success(), "{status}");
    let text = fs::read_to_string(file).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(' ')?.1.trim().split_once('('));
    lines
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
        // The first is strace's own.
        .skip_while(|name| name == "execve")
        .collect()
}

/// Kills the event's call before each of its system calls, each time on a new host.
fn kill_at_each_call(prepare: impl Fn(&mut Host) -> Event, assess: impl Fn(&Host, &str)) {
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        // `make test` installs strace.
        return;
    }
    let mut host = Host::new();
    let event = prepare(&mut host);
    let calls = system_calls(&host.root, &event);
    assert!(calls.len() > 50, "{calls:?}");
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut killed = 0;
    for (number, call) in calls.iter().enumerate() {
        let count = counts.entry(call).or_default();
        *count += 1;
        let mut host = Host::new();
        let event = prepare(&mut host);
        let inject = format!("inject={call}:signal=KILL:when={count}");
        let status = strace(&host.root, &event, &["-o", "/dev/null", "-e", &inject]).status();
        killed += usize::from(status.unwrap().signal() == Some(9));
        host.play_kernel();
        assess(&host, &format!("killed at {call} {count}, call {number} of {}", calls.len()));
    }
    // Calls such as poll(2) are not as many each time.
    assert!(killed * 10 >= calls.len() * 9, "{killed} of {}", calls.len());
}

#[test]
fn killed_while_it_attaches() {
    kill_at_each_call(
        |host| {
            let event = host.root.event("add", "1-3");
            assert_eq!(event.run(&host.root).status, 0);
            host.play_kernel();
            host.root.event("bind", "1-3")
        },
        |host, context| {
            let is_recorded = host.record()["attached"]["id"] == ID;
            let is_settled = (host.is_the_guests() && is_recorded) || host.is_the_hosts();
            let codes = host.check();
            let is_named = codes.iter().any(|code| code.starts_with("device-"));
            assert!(is_settled || is_named || host.is_the_guests(), "{context}: {codes:?}");
            host.sync();
            assert!(host.is_the_guests(), "{context}");
            let codes = host.check();
            assert!(!codes.iter().any(|code| code.starts_with("device-")), "{context}: {codes:?}");
        },
    );
}

/// Without the record of an `add`: drivers are unbound by the call itself.
#[test]
fn killed_while_it_attaches_a_device_without_a_record() {
    kill_at_each_call(
        |host| host.root.event("bind", "1-3"),
        |host, context| {
            let codes = host.check();
            let is_named = codes.iter().any(|code| code.starts_with("device-"));
            let is_settled = host.is_the_guests() || host.is_the_hosts();
            assert!(is_settled || is_named, "{context}: {codes:?}");
            // The VM ends before anybody notices: the host gets the device.
            if !host.is_the_guests() {
                fs::remove_file(host.root.path("/run/windows.qmp")).unwrap();
                let codes = host.check();
                let is_named = codes.iter().any(|code| code == "device-left");
                assert!(host.is_the_hosts() || is_named, "{context}: {codes:?}");
                host.sync();
                assert!(host.is_the_hosts(), "{context}");
            }
        },
    );
}

#[test]
fn killed_while_it_detaches() {
    kill_at_each_call(
        |host| {
            assert_eq!(host.root.event("bind", "1-3").run(&host.root).status, 0);
            assert!(host.is_the_guests());
            host.root.pull("1-3");
            host.root.event("remove", "1-3")
        },
        |host, context| {
            let is_clean = host.qemu.objects().is_empty() && host.record().is_null();
            let codes = host.check();
            let is_named =
                codes.iter().any(|code| ["object-stale", "state-leftovers"].contains(&&**code));
            assert!(is_clean || is_named, "{context}: {codes:?}");
            host.sync();
            assert!(host.qemu.objects().is_empty() && host.record().is_null(), "{context}");
        },
    );
}
