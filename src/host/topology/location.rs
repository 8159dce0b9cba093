//! Reads where a device is, and which other ports are the same connector, from a few links of sysfs.
//!
//! Works on `remove` too: it reads only files of the controller and of the hubs above the device,
//! and those are mostly still there.

use std::fs;
use std::path::Path;

use super::port_folders;
use super::{Controller, Hub, Topology};
use crate::config::port::PortName;
use crate::devpath::DevPath;
use crate::host::sysfs::{self, attribute};
use crate::location::{Generation, PortLocation, UsbLocation};
use crate::port::{BusNum, Port};
use crate::root::Root;
use crate::speed::Speed;

pub fn places(root: &Root, devpath: &DevPath) -> UsbLocation {
    UsbLocation::gather(devpath, |devpath| place(root, devpath), |port| peer(root, port))
}

/// Reads the other halves of the connectors a device is behind, nearest first. It costs one
/// readlink(2) for each port on the way to the root hub, of a link that the kernel makes up from
/// memory: some microseconds for each, where the program's start takes hundreds.
pub fn peers(root: &Root, devpath: &DevPath) -> Vec<Port> {
    devpath.ports_up().filter_map(|port| peer_port(root, &port)).collect()
}

pub fn place(root: &Root, devpath: &DevPath) -> PortLocation {
    let bare = PortLocation::of(devpath.clone());
    let Some((hub, controller)) = devpath.root_hub().and_then(|hub| {
        let controller = hub.parent()?;
        Some((hub, controller))
    }) else {
        return bare;
    };
    let directory = sysfs::directory(root, &hub);
    let generation = match attribute(directory.join("speed")).map(|speed| speed.parse::<Speed>()) {
        Ok(Ok(speed)) => Some(Generation::of_root_hub(speed)),
        // It went away, and the device with it: any of the controller's may have been the one.
        Err(_) if !directory.exists() => None,
        _ => return bare,
    };
    PortLocation { controller: sysfs::controller_name(root, &controller), generation, ..bare }
}

/// The other half of the connector of a port. Both are on the same controller
/// (`drivers/usb/core/port.c`: `find_and_link_peer`), so that the link's name is sufficient.
fn peer(root: &Root, port: &DevPath) -> Option<DevPath> {
    port.root_hub()?.parent()?.controllers_port(&peer_port(root, port)?)
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
                // hubs are a pair (the same function), so the other half is still known.
                return format!("{}.{number}", peer_port(root, &hub)?).parse().ok();
            }
            // A hub in another than its first configuration.
            let (_, directory) =
                port_folders(root, &hub).into_iter().find(|(port, _)| *port == number)?;
            link(directory.parent()?)?
        }
    };
    let (hub, number) = target.file_name()?.to_str()?.rsplit_once("-port")?;
    match hub.strip_prefix("usb") {
        Some(bus) => Some(Port::new(BusNum(bus.parse().ok()?), number.parse().ok()?)),
        None => format!("{hub}.{number}").parse().ok(),
    }
}

impl Topology {
    pub fn places(&self, devpath: &DevPath) -> UsbLocation {
        UsbLocation::gather(
            devpath,
            |devpath| self.place(devpath),
            |port| self.port(port)?.connector.peer.clone(),
        )
    }

    pub fn place(&self, devpath: &DevPath) -> PortLocation {
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
            PortName::Stable { controller, generation, chain } => (controller, generation, chain),
        };
        let known = self.controllers.iter().filter(|known| known.name.as_ref() == Some(controller));
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

    pub fn all_places(&self) -> Vec<PortLocation> {
        let hubs = self.controllers.iter().flat_map(|controller| &controller.root_hubs);
        let hubs = hubs.map(|hub| &hub.devpath);
        let ports = self.ports().into_iter().map(|port| &port.devpath);
        hubs.chain(ports).map(|devpath| self.place(devpath)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const PCI: &str = "/devices/pci0000:00/0000:00:14.0";

    fn path(below: &str) -> DevPath {
        format!("{PCI}/{below}").parse().unwrap()
    }

    /// Root hub port 2 of usb1 is paired with port 5 of usb2; there is a hub with both halves.
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
        let places = places(&root, &path("usb2/2-5/2-5.3"));
        assert_eq!(places.own.controller.as_ref().unwrap().to_string(), "pci-0000:00:14.0");
        assert_eq!(places.own.generation, Some(Generation::Usb3));
        let others: Vec<_> = places.peers.iter().map(|place| place.devpath.clone()).collect();
        assert_eq!(others, [path("usb1/1-2/1-2.3"), path("usb1/1-2")]);
        assert_eq!(places.peers[0].generation, Some(Generation::Usb2));
        assert_eq!(peers(&root, &path("usb2/2-4")), []);
    }

    #[test]
    fn what_was_behind_a_hub_that_is_gone_is_told_by_its_numbers() {
        let (_dir, root) = host();
        fs::remove_dir_all(root.path(format!("/sys{PCI}/usb2/2-5"))).unwrap();
        let wanted = ["1-2.3", "1-2"].map(|port| port.parse().unwrap());
        assert_eq!(peers(&root, &path("usb2/2-5/2-5.3")), wanted);
        fs::remove_dir_all(root.path(format!("/sys{PCI}"))).unwrap();
        let gone = places(&root, &path("usb2/2-5"));
        assert_eq!(gone.own.controller.unwrap().to_string(), "pci-0000:00:14.0");
        assert_eq!((gone.own.generation, gone.peers), (None, vec![]));
    }
}
