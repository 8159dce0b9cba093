//! Where a device is, also without its bus number: the host controller, which of its root hubs,
//! the chain of ports. Pure.
//!
//! Bus numbers are given out in the order in which controllers appear, so that they change from boot
//! to boot; the controller's own name and the USB generation of the root hub do not.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::devpath::DevPath;
use crate::port::{Chain, Port};
use crate::speed::Speed;

/// The name of a host controller: the subsystem and the sysname of its device,
/// `pci-0000:00:14.0`, `platform-vhci_hcd.0`. udev's `path_id` writes a part for each subsystem on the
/// way to it, `platform-fd500000.pcie-pci-0000:01:00.0`, which names it as well.
///
/// A device whose sysname ends with `.auto` is numbered when its driver finds it (the kernel's
/// `drivers/base/platform.c`: `PLATFORM_DEVID_AUTO`), perhaps otherwise after the next boot. Its
/// controller is named by the nearest device above it that is not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ControllerName(String);

/// The prefix of the sysname of a device that is gone.
const UNKNOWN_SUBSYSTEM: &str = "device-";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAController;

/// Which of a controller's root hubs: an xHCI has one for USB 2 and one for USB 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Generation {
    /// 12 Mb/s: OHCI, UHCI.
    Usb1,
    /// 480 Mb/s.
    Usb2,
    /// 5000 Mb/s and more.
    Usb3,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortLocation {
    pub devpath: DevPath,
    /// The host controller. `None` if it was not read or is not known.
    pub controller: Option<ControllerName>,
    /// The root hub's generation. `None` if the root hub no longer exists: then it may be any.
    pub generation: Option<Generation>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsbLocation {
    pub own: PortLocation,
    /// The peer ports of the port and of the hubs above it, nearest first. A peer port of a hub stands
    /// for all ports below it, so none is longer than the own location.
    pub peers: Vec<PortLocation>,
}

/// The peer ports of a device's port and of the hubs above it, nearest first, read at little cost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerPorts {
    /// Those on the device's own controller.
    pub same_controller: Vec<Port>,
    /// That of the root hub's port, if it is on a companion of the controller.
    pub companion: Option<DevPath>,
}

impl ControllerName {
    /// The name of a controller in that subsystem. Without a subsystem the form of a PCI address decides:
    /// the device may be gone, and with it what links to its subsystem. Others can be in any subsystem.
    pub fn new(subsystem: Option<&str>, sysname: &str) -> Option<Self> {
        let prefix = match subsystem {
            Some(subsystem) => format!("{subsystem}-"),
            None if is_pci_address(sysname) => "pci-".to_owned(),
            None => UNKNOWN_SUBSYSTEM.to_owned(),
        };
        format!("{prefix}{sysname}").parse().ok()
    }

    /// Whether this names the controller at that DEVPATH, whose own name is `own`.
    ///
    /// The parts before the own name are components of the DEVPATH
    /// (systemd, `src/udev/udev-builtin-path_id.c`: `builtin_path_id`).
    pub fn names(&self, own: &Self, controller: &DevPath) -> bool {
        let is_gone = own.0.starts_with(UNKNOWN_SUBSYSTEM);
        if self == own || is_gone && self.sysname() == own.sysname() {
            return true;
        }
        let components: Vec<&str> = controller.as_str().split('/').rev().collect();
        let above = |end: &str| self.0.strip_suffix(end)?.strip_suffix('-');
        if is_gone || is_numbered_at_probe(components[0]) {
            // As udev names it, in whichever subsystem.
            return above(components[0]).is_some_and(|above| match above.rsplit_once('-') {
                None => !above.is_empty(),
                Some((parts, _)) => are_components(parts, &components[1..]),
            });
        }
        above(&own.0).is_some_and(|above| are_components(above, &components[1..]))
    }

    /// Whether the name may be another after the next boot.
    pub fn is_unstable(&self) -> bool {
        is_numbered_at_probe(&self.0)
    }

    /// The controller's own name in its subsystem, without the subsystem.
    pub fn sysname(&self) -> &str {
        self.0.split_once('-').map_or("", |(_, sysname)| sysname)
    }
}

/// Whether the device of that sysname got its number from the kernel when it was found.
pub fn is_numbered_at_probe(sysname: &str) -> bool {
    sysname.as_bytes().ends_with(b".auto")
}

/// Whether the parts, each a subsystem and a sysname, are among the components, nearest last.
fn are_components(parts: &str, components: &[&str]) -> bool {
    let is_word = |text: &str| !text.is_empty() && !text.contains('-');
    components.iter().enumerate().any(|(index, component)| {
        let rest = parts.strip_suffix(component).and_then(|rest| rest.strip_suffix('-'));
        rest.is_some_and(|rest| match rest.rsplit_once('-') {
            None => is_word(rest),
            Some((parts, subsystem)) => {
                is_word(subsystem) && are_components(parts, &components[index + 1..])
            }
        })
    })
}

/// Whether it reads `0000:00:14.0`.
pub(crate) fn is_pci_address(sysname: &str) -> bool {
    let mut parts = sysname.split([':', '.']);
    let hex = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    parts.clone().count() == 4 && parts.all(hex) && sysname.matches('.').count() == 1
}

impl FromStr for ControllerName {
    type Err = NotAController;

    fn from_str(text: &str) -> Result<Self, NotAController> {
        let (subsystem, sysname) = text.split_once('-').ok_or(NotAController)?;
        let is_bad = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        // sysfs names have at most NAME_MAX bytes (`limits.h`).
        if subsystem.is_empty() || sysname.is_empty() || text.len() > 512 || text.contains(is_bad) {
            return Err(NotAController);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ControllerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Generation {
    pub fn of_root_hub(speed: Speed) -> Self {
        match speed {
            _ if speed >= Speed::SUPER => Self::Usb3,
            _ if speed >= Speed::HIGH => Self::Usb2,
            _ => Self::Usb1,
        }
    }

    /// 1, 2 or 3.
    pub fn number(self) -> u8 {
        match self {
            Self::Usb1 => 1,
            Self::Usb2 => 2,
            Self::Usb3 => 3,
        }
    }

    pub fn from_number(number: &str) -> Option<Self> {
        match number {
            "1" => Some(Self::Usb1),
            "2" => Some(Self::Usb2),
            "3" => Some(Self::Usb3),
            _ => None,
        }
    }
}

impl PortLocation {
    /// A location of which only the DEVPATH is known.
    pub fn of(devpath: DevPath) -> Self {
        Self { devpath, controller: None, generation: None }
    }

    /// Whether that name is the one of its controller.
    pub fn is_on(&self, name: &ControllerName) -> bool {
        let Some(own) = &self.controller else { return false };
        let controller = || self.devpath.root_hub().and_then(|hub| hub.parent());
        own == name || controller().is_some_and(|controller| name.names(own, &controller))
    }

    /// The chain of ports. `None` for a root hub.
    pub fn chain(&self) -> Option<Chain> {
        self.devpath.port().map(|port| port.chain().clone())
    }
}

impl UsbLocation {
    pub fn of(own: PortLocation) -> Self {
        Self { own, peers: Vec::new() }
    }

    /// The peer ports, without their controllers.
    pub fn peer_ports(&self) -> PeerPorts {
        let controller = |location: &PortLocation| location.devpath.root_hub()?.parent();
        let (own, others): (Vec<&PortLocation>, Vec<&PortLocation>) =
            self.peers.iter().partition(|peer| controller(peer) == controller(&self.own));
        PeerPorts {
            same_controller: own.iter().filter_map(|peer| peer.devpath.port()).collect(),
            companion: others.first().map(|peer| peer.devpath.clone()),
        }
    }

    pub fn gather(
        devpath: &DevPath,
        place: impl Fn(&DevPath) -> PortLocation,
        peer: impl Fn(&DevPath) -> Option<DevPath>,
    ) -> Self {
        let peers = devpath.ports_up().filter_map(|port| peer(&port));
        Self { own: place(devpath), peers: peers.map(|peer| place(&peer)).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As udev's `path_id` names them on a Raspberry Pi 4, with a dwc3 on PCI, behind a VMD, and below two
    /// subsystems.
    #[test]
    fn parts_of_a_path_id_are_components_of_the_devpath() {
        for (name, own, devpath, expected) in [
            (
                "platform-fd500000.pcie-pci-0000:01:00.0",
                "pci-0000:01:00.0",
                "/devices/platform/scb/fd500000.pcie/pci0000:00/0000:00:00.0/0000:01:00.0",
                true,
            ),
            (
                "pci-0000:04:00.3-platform-xhci-hcd.2.auto",
                "platform-xhci-hcd.2.auto",
                "/devices/pci0000:00/0000:00:08.1/0000:04:00.3/dwc3.1.auto/xhci-hcd.2.auto",
                true,
            ),
            (
                "pci-0000:04:00.3-platform-xhci-hcd.2.auto",
                "pci-0000:04:00.3",
                "/devices/pci0000:00/0000:00:08.1/0000:04:00.3/dwc3.1.auto/xhci-hcd.2.auto",
                true,
            ),
            (
                "platform-xhci-hcd.8.auto",
                "platform-fc400000.usb",
                "/devices/platform/fc400000.usb/xhci-hcd.8.auto",
                true,
            ),
            (
                "platform-xhci-hcd.9.auto",
                "platform-fc400000.usb",
                "/devices/platform/fc400000.usb/xhci-hcd.8.auto",
                false,
            ),
            (
                "pci-0000:04:00.4-platform-xhci-hcd.2.auto",
                "pci-0000:04:00.3",
                "/devices/pci0000:00/0000:00:08.1/0000:04:00.3/dwc3.1.auto/xhci-hcd.2.auto",
                false,
            ),
            (
                "pci-0000:00:0e.0-pci-10000:e1:00.0",
                "pci-10000:e1:00.0",
                "/devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0",
                true,
            ),
            (
                "acpi-PNP0A08:00-platform-x.1-pci-0000:01:00.0",
                "pci-0000:01:00.0",
                "/devices/PNP0A08:00/x.1/pci0000:00/0000:01:00.0",
                true,
            ),
            (
                "platform-fd600000.pcie-pci-0000:01:00.0",
                "pci-0000:01:00.0",
                "/devices/platform/scb/fd500000.pcie/pci0000:00/0000:00:00.0/0000:01:00.0",
                false,
            ),
            (
                "platform-fd500000.pcie-pci-0000:02:00.0",
                "pci-0000:01:00.0",
                "/devices/platform/scb/fd500000.pcie/pci0000:00/0000:00:00.0/0000:01:00.0",
                false,
            ),
            ("xpci-0000:01:00.0", "pci-0000:01:00.0", "/devices/x/0000:01:00.0", false),
            // The controller is gone, and with it the link to its subsystem.
            ("platform-fe98.usb", "device-fe98.usb", "/devices/platform/fe98.usb", true),
            ("acpi-Y:00-platform-fe98.usb", "device-fe98.usb", "/devices/Y:00/fe98.usb", true),
            ("acpi-Z:00-platform-fe98.usb", "device-fe98.usb", "/devices/Y:00/fe98.usb", false),
            ("platform-fe99.usb", "device-fe98.usb", "/devices/platform/fe98.usb", false),
        ] {
            let (name, own): (ControllerName, ControllerName) =
                (name.parse().unwrap(), own.parse().unwrap());
            assert_eq!(name.names(&own, &devpath.parse().unwrap()), expected, "{name}");
        }
    }

    #[test]
    fn controllers_are_named_by_subsystem_or_form() {
        let name = |subsystem, sysname| {
            ControllerName::new(subsystem, sysname).map(|name| name.to_string())
        };
        assert_eq!(name(Some("pci"), "0000:00:14.0").unwrap(), "pci-0000:00:14.0");
        assert_eq!(name(Some("platform"), "vhci_hcd.0").unwrap(), "platform-vhci_hcd.0");
        assert_eq!(name(None, "0000:3e:00.0").unwrap(), "pci-0000:3e:00.0");
        assert_eq!(name(None, "xhci-hcd.1.auto").unwrap(), "device-xhci-hcd.1.auto");
        let name: ControllerName = "platform-xhci-hcd.1.auto".parse().unwrap();
        assert_eq!(name.sysname(), "xhci-hcd.1.auto");
        for bad in ["", "pci", "-x", "pci-", "pci-a/b", "pci-a b"] {
            assert_eq!(bad.parse::<ControllerName>(), Err(NotAController), "{bad}");
        }
    }
}
