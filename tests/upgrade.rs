//! QEMU's package is upgraded while its VM runs: no command of ours makes QEMU load the new module.
//!
//! The QEMU is a real one, with the real modules of a newer package in place of its own. It needs
//! both packages, so `make matrix` runs it, in the root of one release with the modules of the next
//! (`HOTPLUGGER_NEWER_MODULES`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test ends with a panic and says what it skipped"
)]

mod support;

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::qemu::{CONTROLLER, Qemu};
use support::root::Root;
use support::udev::run_manual;

const UPGRADED: &str = "the QEMU of VM windows was upgraded while it runs; restart the VM";
const CONFIG: &str = "virtual_machines:\n  windows:\n    socket: /run/windows.qmp\n    delay: 0\n    \
                      access: node\n    ports: [/devices/pci0000:00/0000:00:14.0/usb1/1-3]\n";

/// The directory with the newer modules.
fn newer_modules() -> Option<PathBuf> {
    let modules = env::var_os("HOTPLUGGER_NEWER_MODULES").filter(|path| !path.is_empty());
    if modules.is_none() {
        println!("SKIPPED: the upgrade of QEMU needs two QEMU packages; `make matrix` has them");
    }
    modules.map(PathBuf::from)
}

/// A host with a VM whose QEMU was upgraded after it had started.
struct Upgraded {
    root: Root,
    qemu: Qemu,
}

impl Upgraded {
    fn new(newer: &Path) -> Self {
        let root = Root::new();
        root.controller(4);
        root.config(CONFIG);
        let copy = |name: &str| root.path(format!("/run/{name}"));
        let (program, modules) = (copy("qemu-system-x86_64"), copy("modules"));
        fs::copy("/usr/bin/qemu-system-x86_64", &program).unwrap();
        replace_modules(&modules, Path::new("/usr/lib/x86_64-linux-gnu/qemu"));
        let arguments = [&["-S"], &CONTROLLER[..]].concat();
        let qemu = Qemu::start_program(&root, "windows", &program, &modules, &arguments);
        // dpkg gives the new file the old one's name.
        fs::copy("/usr/bin/qemu-system-x86_64", copy("qemu.new")).unwrap();
        fs::rename(copy("qemu.new"), &program).unwrap();
        replace_modules(&modules, newer);
        Self { root, qemu }
    }

    /// Lets hotplugger see QEMU's process, as on a host whose /proc is not below another root.
    fn with_proc(self) -> Self {
        let pid = self.qemu.pid();
        fs::create_dir_all(self.root.path("/proc")).unwrap();
        symlink(format!("/proc/{pid}"), self.root.path(format!("/proc/{pid}"))).unwrap();
        self
    }

    /// Plugs a keyboard in, and returns the line about it.
    fn plug(&mut self, devnum: u8) -> String {
        self.root.plug("1-3", "keyboard", devnum);
        self.root.event("add", "1-3").run(&self.root);
        let ended = self.root.event("bind", "1-3").run(&self.root);
        self.root.pull("1-3");
        assert_eq!(ended.status, 1, "{}", ended.stderr);
        ended.stderr
    }

    fn is_alive(&self) -> bool {
        self.qemu.execute("query-status", Value::Null).is_ok()
    }
}

fn replace_modules(folder: &Path, with: &Path) {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir(folder).unwrap();
    for entry in fs::read_dir(with).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
}

#[test]
fn upgraded_qemu_survives_all_commands_and_the_lines_say_why() {
    let Some(newer) = newer_modules() else { return };
    let mut host = Upgraded::new(&newer).with_proc();
    for devnum in [5, 6] {
        let line = host.plug(devnum);
        assert!(line.contains(UPGRADED), "{line}");
    }
    for command in ["check", "sync", "status"] {
        host.root.plug("1-3", "keyboard", 7);
        let ended = run_manual(&host.root, &[command]);
        let text = ended.stdout + &ended.stderr;
        assert!(command == "status" || text.contains(UPGRADED), "{command}: {text}");
        assert!(host.is_alive(), "{command}");
    }
}

/// The process cannot be seen, so the first plug finds out. There is no second try.
#[test]
fn qemu_without_usb_host_is_not_tried_twice() {
    let Some(newer) = newer_modules() else { return };
    let mut host = Upgraded::new(&newer);
    for devnum in [5, 6] {
        let line = host.plug(devnum);
        assert!(
            line.contains("has no usb-host device") && line.contains("restart the VM"),
            "{line}"
        );
    }
    for command in ["check", "sync", "status"] {
        run_manual(&host.root, &[command]);
        assert!(host.is_alive(), "{command}");
    }
}

/// What the two guards are for.
#[test]
fn upgraded_qemu_aborts_if_usb_host_is_tried_twice() {
    let Some(newer) = newer_modules() else { return };
    let host = Upgraded::new(&newer);
    let arguments = || json!({ "driver": "usb-host", "id": "x", "hostbus": 1, "hostport": "3" });
    let first = host.qemu.execute("device_add", arguments()).unwrap_err().to_string();
    assert!(first.contains("is not a valid device model name"), "{first}");
    let _ = host.qemu.execute("device_add", arguments());
    assert!(!host.is_alive(), "QEMU can be upgraded under a running VM: the guards can go");
}
