//! A folder that looks like a sound host: two paired USB buses, a keyboard in a port, a rule, a
//! program, a config with two virtual machines. `HOTPLUGGER_ROOT` points the program at it.

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

pub(crate) const RULE: &str = include_str!("../../rules/99-hotplugger.rules");
pub(crate) const PCI: &str = "/devices/pci0000:00/0000:00:14.0";
pub(crate) const XHCI: &str = "qemu-xhci,id=xhci0,p2=15,p3=15";
const PROGRAM: &str = env!("CARGO_BIN_EXE_hotplugger");

/// The two machines of a sound host.
pub(crate) fn config() -> String {
    format!(
        "virtual_machines:\n  windows:\n    socket: /run/windows.qmp\n    timeout: 6\n    \
         hubs: [xhci0.0]\n    ports:\n      - {PCI}/usb1/1-1\n      - {PCI}/usb2/2-1\n  \
         linux:\n    socket: /run/linux.qmp\n    ports:\n      - {PCI}/usb1/1-2\n      \
         - {PCI}/usb2/2-2\n"
    )
}

pub(crate) struct Host {
    dir: TempDir,
    qemu: Option<Child>,
    udevd: Option<UnixListener>,
    /// Whatever a planted fault needs to live.
    pub(crate) kept: Vec<Box<dyn std::any::Any>>,
}

impl Host {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let mut host = Self { dir, qemu: None, udevd: None, kept: Vec::new() };
        for folder in ["/tmp", "/run/udev", "/etc/udev/rules.d", "/usr/lib/udev/rules.d", "/dev"] {
            fs::create_dir_all(host.path(folder)).unwrap();
        }
        host.chmod("/tmp", 0o1777);
        symlink("/proc", host.path("/proc")).unwrap();
        host.start_udevd();
        host.write("/etc/udev/rules.d/99-hotplugger.rules", RULE);
        host.write("/etc/hotplugger/config.yaml", &config());
        host.link_program();
        host.make_usb();
        host
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    }

    pub(crate) fn remove(&self, path: &str) {
        fs::remove_file(self.path(path)).unwrap();
    }

    pub(crate) fn chmod(&self, path: &str, mode: u32) {
        fs::set_permissions(self.path(path), Permissions::from_mode(mode)).unwrap();
    }

    /// Writes the config of a sound host with something replaced.
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

    fn make_usb(&self) {
        for (bus, speed) in [(1, "480\n"), (2, "5000\n")] {
            let hub = format!("/sys{PCI}/usb{bus}");
            self.write(&format!("{hub}/speed"), speed);
            let devices = self.path("/sys/bus/usb/devices");
            fs::create_dir_all(&devices).unwrap();
            symlink(self.path(&hub), devices.join(format!("usb{bus}"))).unwrap();
            for port in 1..=4 {
                let folder = format!("{hub}/{bus}-0:1.0/usb{bus}-port{port}");
                self.write(&format!("{folder}/location"), "0x80000001\n");
                let peer = 3 - bus;
                let peer = format!("/sys{PCI}/usb{peer}/{peer}-0:1.0/usb{peer}-port{port}");
                symlink(self.path(&peer), self.path(&format!("{folder}/peer"))).unwrap();
            }
        }
        for (name, value) in [
            ("busnum", "1"),
            ("devnum", "5"),
            ("bDeviceClass", "00"),
            ("idVendor", "0627"),
            ("idProduct", "0001"),
            ("authorized", "1"),
            ("speed", "480"),
            ("product", "Keyboard\u{1b}[2J"),
        ] {
            self.write(&format!("{}/{name}", Self::keyboard()), &format!("{value}\n"));
        }
        self.write("/dev/bus/usb/001/005", "");
        self.chmod("/dev/bus/usb/001/005", 0o664);
    }

    /// The keyboard's folder in sysfs.
    pub(crate) fn keyboard() -> String {
        format!("/sys{PCI}/usb1/1-1")
    }

    /// Starts QEMU at the socket of `windows` with these devices.
    pub(crate) fn start_qemu(&mut self, devices: &[&str]) -> u32 {
        self.stop_qemu();
        let socket = self.path("/run/windows.qmp");
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "q35,usb=off", "-accel", "tcg", "-S", "-nodefaults"]);
        command.args(["-no-user-config", "-display", "none", "-qmp"]);
        command.arg(format!("unix:{},server=on,wait=off", socket.display()));
        for device in devices {
            command.args(["-device", device]);
        }
        let qemu = command.spawn().unwrap();
        let pid = qemu.id();
        self.qemu = Some(qemu);
        for _ in 0..200 {
            // The socket is there before QEMU answers at it.
            let greeted = UnixStream::connect(&socket).and_then(|mut qemu| qemu.read(&mut [0; 9]));
            if greeted.is_ok() {
                return pid;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("QEMU does not start");
    }

    pub(crate) fn stop_qemu(&mut self) {
        if let Some(mut qemu) = self.qemu.take() {
            qemu.kill().unwrap();
            qemu.wait().unwrap();
            let _ = fs::remove_file(self.path("/run/windows.qmp"));
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
        symlink(root, self.path(&format!("{process}/root"))).unwrap();
    }

    /// Does what `hotplugger install` does on a machine that runs.
    pub(crate) fn install(&self) {
        self.install_with(&[]);
    }

    /// The same with further arguments.
    pub(crate) fn install_with(&self, arguments: &[&str]) {
        let mut command = Command::new(PROGRAM);
        command.args(["install", "--program", "/usr/bin/hotplugger", "--root"]);
        let output = command.arg(self.dir.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("check").env("HOTPLUGGER_ROOT", self.dir.path());
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
        if fs::metadata(self.dir.path()).unwrap().uid() != 0 {
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

impl Drop for Host {
    fn drop(&mut self) {
        self.stop_qemu();
    }
}
