//! A host that is a folder: all that the program sees of `/sys`, `/dev`, `/etc`, `/tmp`, `/run` and
//! `/proc`, with USB devices that can be plugged and pulled.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use hotplugger::port::Port;
use tempfile::TempDir;

use super::udev::Event;

/// The host.
pub(crate) struct Root {
    dir: TempDir,
    /// What is or was last in each port.
    devices: BTreeMap<Port, Device>,
    /// The number of the newest uevent.
    seqnum: u64,
}

/// A device in a port.
#[derive(Clone, Copy)]
pub(crate) struct Device {
    pub(crate) kind: &'static Kind,
    pub(crate) devnum: u8,
}

/// The DEVPATH of the usual controller.
const CONTROLLER: &str = "/devices/pci0000:00/0000:00:14.0";

/// A model of device; its uevents were recorded in `tests/fixtures/env/NAME`.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    product: &'static str,
    vendor_id: &'static str,
    product_id: &'static str,
    class: &'static str,
    speed: &'static str,
}

const KINDS: [Kind; 5] = [
    kind("keyboard", "QEMU USB Keyboard", ["0627", "0001"], "00", "480"),
    kind("tablet", "QEMU USB Tablet", ["0627", "0001"], "00", "480"),
    kind("audio", "QEMU USB Audio", ["46f4", "0002"], "00", "12"),
    kind("storage", "QEMU USB HARDDRIVE", ["46f4", "0001"], "00", "5000"),
    kind("hub", "QEMU USB Hub", ["0409", "55aa"], "09", "12"),
];

const fn kind(
    name: &'static str,
    product: &'static str,
    [vendor_id, product_id]: [&'static str; 2],
    class: &'static str,
    speed: &'static str,
) -> Kind {
    Kind { name, product, vendor_id, product_id, class, speed }
}

impl Root {
    /// A host on which nothing is configured and nothing plugged.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("hotplugger-").tempdir().unwrap();
        let root = Self { dir, devices: BTreeMap::new(), seqnum: 1000 };
        for folder in ["/tmp", "/run", "/sys/devices", "/dev/bus/usb"] {
            make_folder(&root.path(folder));
        }
        fs::set_permissions(root.path("/tmp"), Permissions::from_mode(0o1777)).unwrap();
        root.write("/proc/sys/kernel/random/boot_id", "11111111-2222-3333-4444-555555555555\n");
        root.write("/sys/kernel/uevent_seqnum", "1000\n");
        root
    }

    /// Where an absolute path of this host really is.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(path.as_ref().strip_prefix("/").expect("an absolute path"))
    }

    /// Writes a file that only its owner can write, whatever the umask.
    pub(crate) fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path(path);
        make_folder(path.parent().unwrap());
        let mut options = fs::File::options();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o644).open(path).unwrap();
        file.write_all(text.as_ref()).unwrap();
    }

    /// Writes the config.
    /// A host with a tablet in port 1-3, which a VM lists.
    pub(crate) fn with_tablet() -> Self {
        let mut root = Self::new();
        root.config(
            "virtual_machines:\n  windows:\n    socket: /run/windows.qmp\n    delay: 0\n    \
             ports: [/devices/pci0000:00/0000:00:14.0/usb1/1-3]\n",
        );
        root.controller(4);
        root.plug("1-3", "tablet", 16);
        root
    }

    pub(crate) fn config(&self, yaml: &str) {
        self.write("/etc/hotplugger/config.yaml", yaml);
    }

    /// Gives the host its usual controller, with so many ports each of USB 2 and USB 3.
    pub(crate) fn controller(&self, ports: u8) {
        self.controller_at(CONTROLLER, ports);
    }

    /// Gives the host a controller. Its root hubs are the next two buses, the first for USB 2 and the
    /// second for USB 3. Their ports are paired by equal numbers as the kernel guesses them.
    pub(crate) fn controller_at(&self, devpath: &str, ports: u8) {
        for device in Path::new(devpath).ancestors() {
            let name = device.file_name().unwrap_or_default().to_str().unwrap();
            let subsystem = match name {
                // A root bus such as `pci0000:00` is in no subsystem.
                "" | "devices" | "platform" => continue,
                _ if name.starts_with("pci") => continue,
                _ if name.contains(':') => "pci",
                _ => "platform",
            };
            let link = self.path(format!("/sys{}/subsystem", device.display()));
            make_folder(link.parent().unwrap());
            // Another controller may be below the same device.
            let _ = symlink(self.path(format!("/sys/bus/{subsystem}")), link);
        }
        let buses = self.path("/sys/bus/usb/devices");
        make_folder(&buses);
        let first = (1..=u8::MAX).find(|bus| !buses.join(format!("usb{bus}")).exists()).unwrap();
        let second = first + 1;
        for (bus, speed) in [(first, "480\n"), (second, "5000\n")] {
            let hub = format!("/sys{devpath}/usb{bus}");
            self.write(&format!("{hub}/speed"), speed);
            symlink(self.path(hub), buses.join(format!("usb{bus}"))).unwrap();
        }
        for port in 1..=ports {
            self.pair(&format!("{first}-{port}"), &format!("{second}-{port}"));
        }
    }

    /// What udev's `path_id` makes for the device in a port. A device that is in the same subsystem
    /// as the one below it has no part (`udev-builtin-path_id.c`: `builtin_path_id`).
    pub(crate) fn path_id(&self, port: &str) -> [String; 2] {
        let port: Port = port.parse().expect("a port such as 1-3.1");
        let hub = self.root_hub(&port);
        let (mut controller, mut below) = (String::new(), None);
        for device in Path::new(&hub).ancestors().skip(1) {
            let link = fs::read_link(self.path(format!("/sys{}/subsystem", device.display())));
            let subsystem = link.ok().map(|link| link.file_name().unwrap().to_owned());
            if let Some(subsystem) = subsystem.as_ref().filter(|_| subsystem != below) {
                let sysname = device.file_name().unwrap();
                controller = format!("{}-{}-{controller}", subsystem.display(), sysname.display());
            }
            below = subsystem;
        }
        let speed = fs::read_to_string(self.path(format!("/sys{hub}/speed"))).unwrap();
        let revision = if speed == "480\n" { 2 } else { 3 };
        [format!("v{revision}"), String::new()]
            .map(|revision| format!("{controller}usb{revision}-0:{}", port.chain()))
    }

    /// The DEVPATH of the root hub of a port: of a bus that no controller was given for, the usual
    /// controller's.
    fn root_hub(&self, port: &Port) -> String {
        let bus = port.bus().0;
        let Ok(hub) = fs::read_link(self.path(format!("/sys/bus/usb/devices/usb{bus}"))) else {
            return format!("{CONTROLLER}/usb{bus}");
        };
        format!("/{}", hub.strip_prefix(self.path("/sys")).unwrap().display())
    }

    /// The DEVPATH of the device in a port.
    fn devpath(&self, port: &Port) -> String {
        let hub = port.parent();
        let above = hub.map_or_else(|| self.root_hub(port), |hub| self.devpath(&hub));
        format!("{above}/{port}")
    }

    /// The folder of a port, in that of its hub.
    fn port_folder(&self, port: &Port) -> String {
        let number = port.number();
        if let Some(hub) = port.parent() {
            return format!("/sys{}/{hub}:1.0/{hub}-port{number}", self.devpath(&hub));
        }
        let (hub, bus) = (self.root_hub(port), port.bus().0);
        format!("/sys{hub}/{bus}-0:1.0/usb{bus}-port{number}")
    }

    /// Makes two ports the halves of one connector.
    pub(crate) fn pair(&self, one: &str, other: &str) {
        for (port, peer) in [(one, other), (other, one)] {
            let folder = self.port_folder(&port.parse().expect("a port such as 1-3.1"));
            self.write(&format!("{folder}/connect_type"), "unknown\n");
            self.write(&format!("{folder}/location"), "0x00000000\n");
            let peer = self.port_folder(&peer.parse().expect("a port such as 1-3.1"));
            let link = self.path(folder).join("peer");
            let _ = fs::remove_file(&link);
            symlink(self.path(peer), link).unwrap();
        }
    }

    /// Gives the hub in a port so many ports.
    pub(crate) fn hub_ports(&self, hub: &str, ports: u8) {
        let hub: Port = hub.parse().expect("a port such as 1-3.1");
        for port in 1..=ports {
            let folder = format!("/sys{}/{hub}:1.0/{hub}-port{port}", self.devpath(&hub));
            self.write(&format!("{folder}/connect_type"), "hotplug\n");
        }
    }

    /// Plugs a device: its sysfs folder and its node appear.
    pub(crate) fn plug(&mut self, port: &str, kind: &str, devnum: u8) {
        let port: Port = port.parse().expect("a port such as 1-3.1");
        let kind = KINDS.iter().find(|known| known.name == kind).expect("a kind of device");
        let folder = format!("/sys{}", self.devpath(&port));
        for (name, value) in [
            ("busnum", port.bus().0.to_string().as_str()),
            ("devnum", &devnum.to_string()),
            ("bDeviceClass", kind.class),
            ("authorized", "1"),
            ("idVendor", kind.vendor_id),
            ("idProduct", kind.product_id),
            ("speed", kind.speed),
            ("product", kind.product),
        ] {
            self.write(&format!("{folder}/{name}"), format!("{value}\n"));
        }
        self.write(&node(&port, devnum), "");
        self.devices.insert(port, Device { kind, devnum });
    }

    /// Pulls the device, and with a hub what is below it.
    pub(crate) fn pull(&mut self, port: &str) {
        let port: Port = port.parse().expect("a port such as 1-3.1");
        let device = self.devices.get(&port).expect("a device to pull");
        fs::remove_dir_all(self.path(format!("/sys{}", self.devpath(&port)))).unwrap();
        fs::remove_file(self.path(node(&port, device.devnum))).unwrap();
    }

    /// Writes one of the device's attributes in sysfs.
    pub(crate) fn set_attribute(&self, port: &str, name: &str, value: &str) {
        let port: Port = port.parse().expect("a port such as 1-3.1");
        self.write(&format!("/sys{}/{name}", self.devpath(&port)), format!("{value}\n"));
    }

    /// Binds a driver of the host's to an interface (`1-3:1.0`), which appears if it is not there.
    /// As no kernel looks on, the driver stays when it is unbound; `none` takes it away.
    pub(crate) fn bind_driver(&self, interface: &str, driver: &str) {
        let port: Port = interface.split(':').next().unwrap().parse().expect("a port's interface");
        let folder = format!("/sys{}/{interface}", self.devpath(&port));
        if !self.path(format!("{folder}/bInterfaceClass")).exists() {
            self.write(&format!("{folder}/bInterfaceClass"), "03\n");
        }
        self.write("/sys/bus/usb/drivers_probe", "");
        let link = self.path(format!("{folder}/driver"));
        let _ = fs::remove_file(&link);
        if driver != "none" {
            let driver = format!("/sys/bus/usb/drivers/{driver}");
            self.write(&format!("{driver}/unbind"), "");
            symlink(self.path(driver), link).unwrap();
        }
    }

    /// Adds a process that has a file open.
    pub(crate) fn add_program(&self, pid: &str, executable: &str, file: &str) {
        let proc = format!("/proc/{pid}");
        let name = executable.rsplit('/').next().unwrap();
        self.write(&format!("{proc}/comm"), format!("{name}\n"));
        make_folder(&self.path(format!("{proc}/fd")));
        symlink(executable, self.path(format!("{proc}/exe"))).unwrap();
        symlink(file, self.path(format!("{proc}/fd/9"))).unwrap();
    }

    /// Gives the device in a port a block device such as `sda` with the number `8:0`.
    pub(crate) fn add_disk(&self, port: &str, name: &str, number: &str) {
        let port: Port = port.parse().expect("a port such as 1-3.1");
        let place = format!("{}/{port}:1.0/host0/block/{name}", self.devpath(&port));
        self.write(&format!("/sys{place}/dev"), format!("{number}\n"));
        make_folder(&self.path("/sys/class/block"));
        let link = self.path(format!("/sys/class/block/{name}"));
        symlink(format!("../..{place}"), link).unwrap();
    }

    /// The next uevent: of the device in a port (`1-3.1`), or of one of its interfaces
    /// (`1-3.1:1.0`). Pulled devices still have one: `remove`.
    pub(crate) fn event(&mut self, action: &str, node_name: &str) -> Event {
        let (port, interface) = match node_name.split_once(':') {
            Some((port, interface)) => (port, Some(interface)),
            None => (node_name, None),
        };
        let port: Port = port.parse().expect("a port such as 1-3.1");
        let device = *self.devices.get(&port).expect("a device that is or was in the port");
        self.seqnum += 1;
        self.write("/sys/kernel/uevent_seqnum", format!("{}\n", self.seqnum));
        let mut event = Event::recorded(device.kind.name, action, interface.is_some());
        event.set("SEQNUM", self.seqnum.to_string());
        if interface.is_some() {
            event.set("DEVPATH", format!("{}/{node_name}", self.devpath(&port)));
        } else {
            event.set("DEVPATH", self.devpath(&port));
            event.set("BUSNUM", format!("{:03}", port.bus().0));
            event.set("DEVNUM", format!("{:03}", device.devnum));
            event.set("DEVNAME", node(&port, device.devnum));
        }
        event
    }
}

fn node(port: &Port, devnum: u8) -> String {
    format!("/dev/bus/usb/{:03}/{devnum:03}", port.bus().0)
}

/// Makes a folder that only its owner can write, and those above it, whatever the umask.
fn make_folder(path: &Path) {
    DirBuilder::new().recursive(true).mode(0o755).create(path).unwrap();
}
