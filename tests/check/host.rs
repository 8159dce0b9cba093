//! A directory that looks like an intact host: two paired USB buses, a keyboard in a port, a rule, a
//! program, a config with two virtual machines. `HOTPLUGGER_ROOT` points the program at it.

use std::fs::{self, Permissions};
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::qemu::Qemu;
use crate::support::root::Root;

pub(crate) const RULE: &str = include_str!("../../rules/99-hotplugger.rules");
pub(crate) const PCI: &str = "/devices/pci0000:00/0000:00:14.0";
pub(crate) const XHCI: &str = "qemu-xhci,id=xhci0,p2=15,p3=15";
const PROGRAM: &str = env!("CARGO_BIN_EXE_hotplugger");

/// The two VMs of an intact host.
pub(crate) fn config() -> String {
    format!(
        "virtual_machines:\n  windows:\n    socket: /run/windows.qmp\n    timeout: 6\n    \
         hubs: [xhci0.0]\n    ports:\n      - {PCI}/usb1/1-1\n      - {PCI}/usb2/2-1\n  \
         linux:\n    socket: /run/linux.qmp\n    ports:\n      - {PCI}/usb1/1-2\n      \
         - {PCI}/usb2/2-2\n"
    )
}

pub(crate) struct Host {
    root: Root,
    qemu: Option<Qemu>,
    udevd: Option<UnixListener>,
    /// Resources that an injected problem needs.
    pub(crate) kept: Vec<Box<dyn std::any::Any>>,
}

impl Host {
    pub(crate) fn new() -> Self {
        let mut root = Root::new();
        root.controller(4);
        root.plug("1-1", "keyboard", 5);
        root.set_attribute("1-1", "product", "Keyboard\u{1b}[2J");
        let mut host = Self { root, qemu: None, udevd: None, kept: Vec::new() };
        for folder in ["/run/udev", "/etc/udev/rules.d", "/usr/lib/udev/rules.d"] {
            fs::create_dir_all(host.path(folder)).unwrap();
        }
        // Others look at it, too.
        host.chmod("/", 0o755);
        host.chmod("/dev/bus/usb/001/005", 0o664);
        fs::remove_dir_all(host.path("/proc")).unwrap();
        symlink("/proc", host.path("/proc")).unwrap();
        host.start_udevd();
        host.write("/etc/udev/rules.d/99-hotplugger.rules", RULE);
        host.write("/etc/hotplugger/config.yaml", &config());
        host.link_program();
        host
    }

    /// Writes a file that others can read, whatever it was before.
    pub(crate) fn write(&self, path: &str, text: &str) {
        self.root.write(path, text);
        self.chmod(path, 0o644);
    }

    pub(crate) fn remove(&self, path: &str) {
        fs::remove_file(self.path(path)).unwrap();
    }

    pub(crate) fn chmod(&self, path: &str, mode: u32) {
        fs::set_permissions(self.path(path), Permissions::from_mode(mode)).unwrap();
    }

    /// Writes the config of an intact host with something replaced.
    pub(crate) fn config_with(&self, from: &str, to: &str) {
        let config = config();
        assert!(config.contains(from), "{from}");
        self.write("/etc/hotplugger/config.yaml", &config.replace(from, to));
    }

    pub(crate) fn write_rule(&self, text: &str) {
        self.write("/etc/udev/rules.d/99-hotplugger.rules", text);
    }

    pub(crate) fn start_udevd(&mut self) {
        let control = self.path("/run/udev/control");
        self.udevd = Some(UnixListener::bind(control).unwrap());
    }

    pub(crate) fn stop_udevd(&mut self) {
        self.udevd = None;
        self.remove("/run/udev/control");
    }

    /// One copy serves all hosts.
    fn link_program(&self) {
        static COPY: OnceLock<TempDir> = OnceLock::new();
        let copy = COPY.get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            fs::copy(PROGRAM, dir.path().join("hotplugger")).unwrap();
            let everybody = Permissions::from_mode(0o755);
            fs::set_permissions(dir.path().join("hotplugger"), everybody.clone()).unwrap();
            fs::set_permissions(dir.path(), everybody).unwrap();
            dir
        });
        fs::create_dir_all(self.path("/usr/bin")).unwrap();
        symlink(copy.path().join("hotplugger"), self.path("/usr/bin/hotplugger")).unwrap();
    }

    pub(crate) fn copy_program(&self) {
        self.remove("/usr/bin/hotplugger");
        fs::copy(PROGRAM, self.path("/usr/bin/hotplugger")).unwrap();
    }

    /// Starts QEMU at the socket of `windows` with these devices.
    pub(crate) fn start_qemu(&mut self, devices: &[&str]) -> u32 {
        self.stop_qemu();
        let devices = devices.iter().flat_map(|device| ["-device", *device]);
        let arguments: Vec<&str> = ["-S"].into_iter().chain(devices).collect();
        self.qemu.insert(Qemu::start(&self.root, "windows", &arguments)).pid()
    }

    /// Starts a QEMU under the name that libvirt gives the QEMU of that domain.
    pub(crate) fn start_session_domain(&mut self, domain: &str) {
        let name = format!("guest={domain},debug-threads=on");
        let qemu = Qemu::start(&self.root, "session", &["-S", "-name", &name]);
        self.kept.push(Box::new(qemu));
    }

    pub(crate) fn stop_qemu(&mut self) {
        if self.qemu.take().is_some() {
            self.remove("/run/windows.qmp");
        }
    }

    /// Puts a /proc in place in which QEMU runs as another user, and `root` is its root.
    pub(crate) fn make_proc(&self, pid: u32, root: &Path, profile: &str) {
        self.remove("/proc");
        let process = format!("/proc/{pid}");
        self.write(
            &format!("{process}/status"),
            "Uid:\t64055\t64055\t64055\t64055\nGid:\t109\t109\t109\t109\nGroups:\t109 \n\
             CapEff:\t0000000000000000\n",
        );
        self.write(&format!("{process}/attr/current"), profile);
        symlink(root, self.path(format!("{process}/root"))).unwrap();
    }

    /// Does what `hotplugger install` does on a machine that runs.
    pub(crate) fn install(&self) {
        self.install_with(&[]);
    }

    /// The same with further arguments.
    pub(crate) fn install_with(&self, arguments: &[&str]) {
        let mut command = Command::new(PROGRAM);
        command.args(["install", "--program", "/usr/bin/hotplugger", "--root"]);
        let output = command.arg(self.path("/")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("check").env("HOTPLUGGER_ROOT", self.path("/"));
        command.env_remove("HOTPLUGGER_CONFIG");
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// The same as another user, if this is root: others can neither become one nor be kept out
    /// of their own files.
    pub(crate) fn run_as_nobody(&self) -> Option<Output> {
        let nobody = 65534;
        if fs::metadata(self.path("/")).unwrap().uid() != 0 {
            return None;
        }
        self.command().uid(nobody).gid(nobody).output().ok()
    }

    /// The JSON, and whether it exited with 0.
    pub(crate) fn check(&self) -> (Value, bool) {
        let output = self.run(&["--json"]);
        let report = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}"));
        (report, output.status.success())
    }
}

impl Deref for Host {
    type Target = Root;

    fn deref(&self) -> &Root {
        &self.root
    }
}
