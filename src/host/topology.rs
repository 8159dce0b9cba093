//! The host's USB ports as a tree: controllers, their root hubs, ports, and the devices in them; and
//! where one device is, with the peer ports, from a few links of sysfs.
//!
//! The location can be read on `remove` too: it needs only files of the controller and of the hubs
//! above the device, and those mostly still exist.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::port::PortName;
use crate::device_id::DeviceId;
use crate::devpath::{DevPath, is_root_hub};
use crate::host::companions::{Companion, companion};
use crate::host::sysfs::{self, attribute, names};
use crate::location::{ControllerName, Generation, PeerPorts, PortLocation, UsbLocation};
use crate::port::{BusNum, Port};
use crate::root::Root;
use crate::speed::Speed;
use crate::text::sanitize;
use crate::usb_device::UsbDevice;

/// All USB controllers of the host, in the order of their DEVPATHs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    pub controllers: Vec<Controller>,
}

/// A host controller and its root hubs: of an xHCI one for USB 2 and one for USB 3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    pub devpath: DevPath,
    pub name: Option<ControllerName>,
    pub root_hubs: Vec<Hub>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    pub devpath: DevPath,
    pub speed: Option<Speed>,
    pub ports: Vec<HubPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubPort {
    pub port: Port,
    pub devpath: DevPath,
    pub connector: Connector,
    pub plugged: Option<Plugged>,
}

/// The physical side of a port (`drivers/usb/core/port.c`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Connector {
    /// The DEVPATH of the peer port: a USB 3 connector is a USB 2 port and a
    /// USB 3 port.
    pub peer: Option<DevPath>,
    /// Whether the pair is only guessed from numbers: by the kernel, the firmware having said nothing, or
    /// that of an EHCI and its companion.
    pub peer_guessed: bool,
    /// The controllers where slower devices in it appear (or faster ones), if it is not known in which of
    /// their ports.
    #[serde(skip)]
    pub companions: Vec<DevPath>,
    /// `hotplug`, `hardwired`, `not used`; `None` if unknown.
    pub connect_type: Option<String>,
    /// The sysname of its Type-C connector, `port0` (`drivers/usb/typec/port-mapper.c`).
    pub type_c: Option<String>,
    /// Where it is on the case, in words (`back, upper left`), if the firmware says.
    pub position: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plugged {
    Device(UsbDevice),
    Hub(UsbDevice, Hub),
}

impl Plugged {
    /// The device, be it a hub or not.
    pub fn device(&self) -> &UsbDevice {
        match self {
            Self::Device(device) | Self::Hub(device, _) => device,
        }
    }
}

impl Controller {
    pub fn is_named(&self, name: &ControllerName) -> bool {
        self.name.as_ref().is_some_and(|own| name.names(own, &self.devpath))
    }
}

impl HubPort {
    /// The ports of the hub in it, each before those of the hub in it in turn.
    pub fn behind(&self) -> Vec<&Self> {
        let mut ports = Vec::new();
        if let Some(Plugged::Hub(_, hub)) = &self.plugged {
            hub.collect_ports(&mut ports);
        }
        ports
    }

    /// The hub or other device in it.
    pub fn device(&self) -> Option<&UsbDevice> {
        self.plugged.as_ref().map(Plugged::device)
    }
}

impl Topology {
    /// All ports, each before those of the hub in it.
    pub fn ports(&self) -> Vec<&HubPort> {
        let mut ports = Vec::new();
        for hub in self.controllers.iter().flat_map(|controller| &controller.root_hubs) {
            hub.collect_ports(&mut ports);
        }
        ports
    }

    pub fn devices(&self) -> impl Iterator<Item = (&HubPort, &UsbDevice)> {
        self.ports().into_iter().filter_map(|port| match &port.plugged {
            Some(Plugged::Device(device)) => Some((port, device)),
            _ => None,
        })
    }

    /// The plugged-in device with this ID.
    pub fn device(&self, id: &DeviceId) -> Option<(&HubPort, &UsbDevice)> {
        self.devices().find(|(port, device)| port.port == id.port && device.devnum == id.devnum)
    }

    pub fn port(&self, devpath: &DevPath) -> Option<&HubPort> {
        self.ports().into_iter().find(|port| port.devpath == *devpath)
    }
}

impl Hub {
    fn collect_ports<'a>(&'a self, ports: &mut Vec<&'a HubPort>) {
        for port in &self.ports {
            ports.push(port);
            if let Some(Plugged::Hub(_, hub)) = &port.plugged {
                hub.collect_ports(ports);
            }
        }
    }
}

/// Reads the tree; empty on a host without USB.
pub fn read_topology(root: &Root) -> Topology {
    let sys = root.path("/sys");
    let devices = sys.join("bus/usb/devices");
    let hub = |name: &String| {
        let bus = name.strip_prefix("usb").filter(|_| is_root_hub(name))?.parse().ok()?;
        Some((bus, devpath_of(&sys, &devices.join(name))?))
    };
    let mut hubs: Vec<(u8, DevPath)> = names(&devices).iter().filter_map(hub).collect();
    hubs.sort();
    let mut topology = Topology::default();
    for (_, devpath) in hubs {
        let Some(controller) = devpath.parent() else { continue };
        let hub = read_hub(root, devpath);
        let known = topology.controllers.iter_mut().find(|known| known.devpath == controller);
        if let Some(known) = known {
            known.root_hubs.push(hub);
        } else {
            let name = sysfs::controller_name(root, &controller);
            let root_hubs = vec![hub];
            topology.controllers.push(Controller { devpath: controller, name, root_hubs });
        }
    }
    topology.controllers.sort_by(|one, other| one.devpath.cmp(&other.devpath));
    topology
}

/// Reads one port by the DEVPATH that a device in it has. `None` if the host has no such port now.
pub fn port(root: &Root, devpath: &DevPath) -> Option<HubPort> {
    let (hub, number) = (devpath.parent()?, devpath.port()?.number());
    read_port(root, &hub, number, &port_directory(root, devpath)?)
}

/// The directory of the port that a device with this DEVPATH is in.
pub fn port_directory(root: &Root, devpath: &DevPath) -> Option<PathBuf> {
    let number = devpath.port()?.number();
    let mut ports = port_folders(root, &devpath.parent()?).into_iter();
    ports.find_map(|(found, directory)| (found == number).then_some(directory))
}

fn read_hub(root: &Root, devpath: DevPath) -> Hub {
    let directory = sysfs::directory(root, &devpath);
    let ports = port_folders(root, &devpath)
        .into_iter()
        .filter_map(|(number, directory)| read_port(root, &devpath, number, &directory))
        .collect();
    let speed = attribute(directory.join("speed")).ok().and_then(|speed| speed.parse().ok());
    Hub { devpath, speed, ports }
}

/// The directories of a hub's ports: `<hub>/<interface>/<hub>-port<number>`.
fn port_folders(root: &Root, hub: &DevPath) -> Vec<(u8, PathBuf)> {
    let prefix = format!("{}-port", hub.sysname());
    let directory = sysfs::directory(root, hub);
    let mut ports: Vec<(u8, PathBuf)> = Vec::new();
    for interface in names(&directory).iter().filter(|name| name.contains(':')) {
        let interface = directory.join(interface);
        let port =
            |name: &String| Some((name.strip_prefix(&prefix)?.parse().ok()?, interface.join(name)));
        ports.extend(names(&interface).iter().filter_map(port));
    }
    ports.sort();
    ports
}

fn read_port(root: &Root, hub: &DevPath, number: u8, directory: &Path) -> Option<HubPort> {
    let devpath = hub.port_of_hub(number)?;
    let plugged = sysfs::usb_device(root, &devpath).ok().flatten().map(|device| {
        if device.is_hub() {
            Plugged::Hub(device, read_hub(root, devpath.clone()))
        } else {
            Plugged::Device(device)
        }
    });
    let connector = connector(root, &devpath, directory);
    Some(HubPort { port: devpath.port()?, devpath, connector, plugged })
}

fn connector(root: &Root, devpath: &DevPath, directory: &Path) -> Connector {
    let text = |name: &str| attribute(directory.join(name)).ok();
    let located = text("location").is_some_and(|location| {
        location.trim_start_matches("0x").bytes().any(|digit| digit != b'0')
    });
    let peer = peer_port(root, devpath).and_then(|peer| devpath.on_same_controller(&peer));
    let companion = if peer.is_none() { companion(root, devpath) } else { Companion::default() };
    let known = |value: &String| !matches!(value.as_str(), "" | "unknown");
    let place = |name: &str| text(&format!("physical_location/{name}")).filter(known);
    let position: Vec<String> = ["panel", "vertical_position", "horizontal_position"]
        .iter()
        .filter_map(|name| place(name))
        .collect();
    Connector {
        peer_guessed: companion.guessed || peer.is_some() && !located,
        peer: peer.or(companion.port),
        companions: companion.controllers,
        type_c: fs::read_link(directory.join("connector"))
            .ok()
            .and_then(|link| Some(sanitize(link.file_name()?.to_str()?, 32))),
        connect_type: text("connect_type").filter(known).map(|kind| sanitize(&kind, 32)),
        position: (!position.is_empty()).then(|| sanitize(&position.join(", "), 64)),
    }
}

pub(crate) fn devpath_of(sys: &Path, path: &Path) -> Option<DevPath> {
    let path = fs::canonicalize(path).ok()?;
    let below = path.strip_prefix(fs::canonicalize(sys).ok()?).ok()?;
    format!("/{}", below.to_str()?).parse().ok()
}

pub fn usb_location(root: &Root, devpath: &DevPath) -> UsbLocation {
    UsbLocation::gather(devpath, |devpath| port_location(root, devpath), |port| peer(root, port))
}

/// Reads the peer ports of a device's port and of the hubs above it, nearest first. It costs one
/// readlink(2) for each port on the way to the root hub, of a link that the kernel makes up from
/// memory: some microseconds for each, where the program's start takes hundreds.
pub fn peers(root: &Root, devpath: &DevPath) -> PeerPorts {
    let mut peers = PeerPorts::default();
    for port in devpath.ports_up() {
        match peer_port(root, &port) {
            Some(peer) => peers.same_controller.push(peer),
            None => peers.companion = companion(root, &port).port,
        }
    }
    peers
}

pub fn port_location(root: &Root, devpath: &DevPath) -> PortLocation {
    let unresolved = PortLocation::of(devpath.clone());
    let Some((hub, controller)) = devpath.root_hub().and_then(|hub| {
        let controller = hub.parent()?;
        Some((hub, controller))
    }) else {
        return unresolved;
    };
    let directory = sysfs::directory(root, &hub);
    let generation = match attribute(directory.join("speed")).map(|speed| speed.parse::<Speed>()) {
        Ok(Ok(speed)) => Some(Generation::of_root_hub(speed)),
        // It went away, and the device with it: any of the controller's may have been the one.
        Err(_) if !directory.exists() => None,
        _ => return unresolved,
    };
    PortLocation { controller: sysfs::controller_name(root, &controller), generation, ..unresolved }
}

/// The peer port of a port. Both are on the same controller
/// (`drivers/usb/core/port.c`: `find_and_link_peer`), so that the link's name is sufficient.
/// Without a link it may be a port of a companion.
fn peer(root: &Root, port: &DevPath) -> Option<DevPath> {
    match peer_port(root, port) {
        Some(peer) => port.on_same_controller(&peer),
        None => companion(root, port).port,
    }
}

fn peer_port(root: &Root, devpath: &DevPath) -> Option<Port> {
    let (hub, port) = devpath.as_str().rsplit_once('/')?;
    let number = port.parse::<Port>().ok()?.number();
    let (_, name) = hub.rsplit_once('/')?;
    // `1-4` has `1-4:1.0`, but `usb1` has `1-0:1.0`.
    let (stem, zero) = name.strip_prefix("usb").map_or((name, ""), |bus| (bus, "-0"));
    let first = root.path(["/sys", hub, "/", stem, zero, ":1.0"].concat());
    let link = |interface: &Path| {
        fs::read_link(interface.join([name, "-port", &number.to_string(), "/peer"].concat())).ok()
    };
    let target = match link(&first) {
        Some(target) => target,
        None if first.exists() => return None,
        None => {
            let hub = devpath.parent()?;
            if !sysfs::directory(root, &hub).exists() {
                // The hub is gone with the device. Hubs' ports are paired by equal numbers if their
                // hubs are a pair (the same function), so the peer port is still known.
                return Port::of_hub(&peer_port(root, &hub)?.to_string(), number);
            }
            // A hub in another than its first configuration.
            let (_, directory) =
                port_folders(root, &hub).into_iter().find(|(port, _)| *port == number)?;
            link(directory.parent()?)?
        }
    };
    let (hub, number) = target.file_name()?.to_str()?.rsplit_once("-port")?;
    Port::of_hub(hub, number.parse().ok()?)
}

impl Topology {
    pub fn usb_location(&self, devpath: &DevPath) -> UsbLocation {
        UsbLocation::gather(
            devpath,
            |devpath| self.port_location(devpath),
            |port| self.port(port)?.connector.peer.clone(),
        )
    }

    pub fn port_location(&self, devpath: &DevPath) -> PortLocation {
        let hub = devpath.root_hub();
        let known = self.controllers.iter().find_map(|controller| {
            let root_hub =
                controller.root_hubs.iter().find(|known| Some(&known.devpath) == hub.as_ref())?;
            Some((controller.name.clone()?, Generation::of_root_hub(root_hub.speed?)))
        });
        let (controller, generation) = known.unzip();
        PortLocation { devpath: devpath.clone(), controller, generation }
    }

    /// The DEVPATHs that a device in that port, or the root hub, has today; whether there is such a
    /// port is not read. `None` if the controller is not there.
    pub fn devpaths(&self, name: &PortName) -> Vec<DevPath> {
        let (controller, generation, chain) = match name {
            PortName::DevPath(devpath) => return vec![devpath.clone()],
            PortName::DevPathEnd(_) => {
                let ports = self.ports().into_iter().map(|port| &port.devpath);
                let is_meant =
                    |port: &&DevPath| name.names_exactly(&PortLocation::of((*port).clone()));
                return ports.filter(is_meant).cloned().collect();
            }
            PortName::Stable { controller, generation, chain } => (controller, generation, chain),
        };
        let known = self.controllers.iter().filter(|known| known.is_named(controller));
        let hubs = known.flat_map(|known| known.root_hubs.iter().map(move |hub| (known, hub)));
        let meant = hubs.filter(|(_, hub)| {
            generation.is_none_or(|wanted| hub.speed.map(Generation::of_root_hub) == Some(wanted))
        });
        let devpath = |(known, hub): (&Controller, &Hub)| {
            let bus = hub.devpath.sysname().strip_prefix("usb")?.parse().ok()?;
            match chain {
                Some(chain) => {
                    known.devpath.controllers_port(&Port::new(BusNum(bus), chain.clone()))
                }
                None => Some(hub.devpath.clone()),
            }
        };
        meant.filter_map(devpath).collect()
    }

    pub fn port_locations(&self) -> Vec<PortLocation> {
        let hubs = self.controllers.iter().flat_map(|controller| &controller.root_hubs);
        let hubs = hubs.map(|hub| &hub.devpath);
        let ports = self.ports().into_iter().map(|port| &port.devpath);
        hubs.chain(ports).map(|devpath| self.port_location(devpath)).collect()
    }
}

#[cfg(test)]
mod read_tests {
    use super::*;
    use crate::config::port::PortName;
    use std::os::unix::fs::symlink;

    /// A controller with a USB 2 and a USB 3 root hub of two ports each, paired; a hub in 1-1.
    fn host() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let pci = root.path("/sys/devices/pci0000:00/0000:00:14.0");
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let bus = root.path("/sys/bus/usb/devices");
        fs::create_dir_all(&bus).unwrap();
        for (number, speed) in [(1, "480\n"), (2, "5000\n")] {
            let hub = pci.join(format!("usb{number}"));
            write(hub.join("speed"), speed);
            symlink(&hub, bus.join(format!("usb{number}"))).unwrap();
            for port in [1, 2] {
                let directory = hub.join(format!("{number}-0:1.0/usb{number}-port{port}"));
                write(directory.join("connect_type"), "unknown\n");
                write(
                    directory.join("location"),
                    if port == 1 { "0x00000000\n" } else { "0x80000001\n" },
                );
                let other = 3 - number;
                symlink(
                    pci.join(format!("usb{other}/{other}-0:1.0/usb{other}-port{port}")),
                    directory.join("peer"),
                )
                .unwrap();
            }
        }
        let second = pci.join("usb1/1-0:1.0/usb1-port2");
        write(second.join("physical_location/panel"), "back\n");
        write(second.join("physical_location/vertical_position"), "upper\n");
        fs::write(second.join("connect_type"), "hotplug\n").unwrap();
        symlink("../../../../typec/port0", second.join("connector")).unwrap();
        for (path, class) in [("usb1/1-1", "09\n"), ("usb1/1-1/1-1.4", "00\n")] {
            let device = pci.join(path);
            for (name, value) in [
                ("busnum", "1\n"),
                ("devnum", "7\n"),
                ("bDeviceClass", class),
                ("idVendor", "0627\n"),
                ("idProduct", "0001\n"),
            ] {
                write(device.join(name), value);
            }
        }
        write(pci.join("usb1/1-1/1-1:1.0/1-1-port4/connect_type"), "unknown\n");
        (dir, root)
    }

    fn names(topology: &Topology) -> Vec<String> {
        topology.ports().iter().map(|port| port.port.to_string()).collect()
    }

    #[test]
    fn the_tree_is_read_with_its_pairs() {
        let (_dir, root) = host();
        let topology = read_topology(&root);
        assert_eq!(names(&topology), ["1-1", "1-1.4", "1-2", "2-1", "2-2"]);
        assert_eq!(topology.controllers[0].devpath.sysname(), "0000:00:14.0");
        let ports = topology.ports();
        assert!(matches!(ports[0].plugged, Some(Plugged::Hub(..))));
        assert!(matches!(ports[1].plugged, Some(Plugged::Device(_))));
        assert_eq!(ports[2].plugged, None);
        assert_eq!(
            ports[0].connector.peer.as_ref().unwrap().as_str(),
            "/devices/pci0000:00/0000:00:14.0/usb2/2-1"
        );
        assert!(ports[0].connector.peer_guessed && !ports[2].connector.peer_guessed);
        assert_eq!(ports[2].connector.position.as_deref(), Some("back, upper"));
        assert_eq!(ports[2].connector.connect_type.as_deref(), Some("hotplug"));
        assert_eq!(ports[2].connector.type_c.as_deref(), Some("port0"));
        assert_eq!(ports[1].connector, Connector::default());
    }

    #[test]
    fn one_port_is_read_by_its_devpath() {
        let (_dir, root) = host();
        let devpath: DevPath = "/devices/pci0000:00/0000:00:14.0/usb1/1-1/1-1.4".parse().unwrap();
        assert_eq!(port(&root, &devpath).as_ref(), read_topology(&root).port(&devpath));
        let name = PortName::recommended(&super::port_location(&root, &devpath));
        assert_eq!(name.to_string(), "pci-0000:00:14.0/usb2:1.4");
        assert_eq!(name, PortName::recommended(&read_topology(&root).port_location(&devpath)));
        let none = "/devices/pci0000:00/0000:00:14.0/usb1/1-9".parse().unwrap();
        assert_eq!(port(&root, &none), None);
    }

    #[test]
    fn a_host_without_usb_has_no_ports() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_topology(&Root::at(dir.path())), Topology::default());
    }
}

#[cfg(test)]
mod location_tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const PCI: &str = "/devices/pci0000:00/0000:00:14.0";

    fn path(below: &str) -> DevPath {
        format!("{PCI}/{below}").parse().unwrap()
    }

    /// Root hub port 2 of usb1 is paired with port 5 of usb2; there is a hub in both.
    fn host() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let sys = root.path(format!("/sys{PCI}"));
        for (directory, peer) in [
            ("usb1/1-0:1.0/usb1-port2", "../../../usb2/2-0:1.0/usb2-port5"),
            ("usb2/2-0:1.0/usb2-port5", "../../../usb1/1-0:1.0/usb1-port2"),
            ("usb2/2-5/2-5:1.0/2-5-port3", "../../../../usb1/1-2/1-2:1.0/1-2-port3"),
        ] {
            fs::create_dir_all(sys.join(directory)).unwrap();
            symlink(peer, sys.join(directory).join("peer")).unwrap();
        }
        fs::write(sys.join("usb1/speed"), "480\n").unwrap();
        fs::write(sys.join("usb2/speed"), "10000\n").unwrap();
        symlink("../../../bus/pci", sys.join("subsystem")).unwrap();
        (dir, root)
    }

    #[test]
    fn a_device_behind_a_hub_is_in_two_connectors() {
        let (_dir, root) = host();
        let location = usb_location(&root, &path("usb2/2-5/2-5.3"));
        assert_eq!(location.own.controller.as_ref().unwrap().to_string(), "pci-0000:00:14.0");
        assert_eq!(location.own.generation, Some(Generation::Usb3));
        let others: Vec<_> = location.peers.iter().map(|peer| peer.devpath.clone()).collect();
        assert_eq!(others, [path("usb1/1-2/1-2.3"), path("usb1/1-2")]);
        assert_eq!(location.peers[0].generation, Some(Generation::Usb2));
        assert_eq!(peers(&root, &path("usb2/2-4")), PeerPorts::default());
    }

    #[test]
    fn what_was_behind_a_hub_that_is_gone_is_told_by_its_numbers() {
        let (_dir, root) = host();
        fs::remove_dir_all(root.path(format!("/sys{PCI}/usb2/2-5"))).unwrap();
        let wanted = ["1-2.3", "1-2"].map(|port| port.parse().unwrap());
        assert_eq!(peers(&root, &path("usb2/2-5/2-5.3")).same_controller, wanted);
        fs::remove_dir_all(root.path(format!("/sys{PCI}"))).unwrap();
        let gone = usb_location(&root, &path("usb2/2-5"));
        assert_eq!(gone.own.controller.unwrap().to_string(), "pci-0000:00:14.0");
        assert_eq!((gone.own.generation, gone.peers), (None, vec![]));
    }
}
