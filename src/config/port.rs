//! The names of ports in the config: a DEVPATH, or controller, root hub and chain of ports. Pure.
//!
//! Each has one form that it is printed in; udev's `ID_PATH` is read too. Which port of this boot a
//! name means results from comparing it with a [`PortLocation`], component by component, never as text.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::devpath::{DevPath, is_root_hub};
use crate::location::{ControllerName, Generation, PortLocation, UsbLocation};
use crate::port::{Chain, Port};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortName {
    DevPath(DevPath),
    /// The end of a DEVPATH, such as `usb3/3-3`, which the original accepts. Its bus number makes it one
    /// port's. It stands for its own half of the connector only: `config::prefilter` searches for peer ports
    /// only where the config names their controller.
    DevPathEnd(String),
    Stable {
        controller: ControllerName,
        /// Its root hub. `None`: the root hubs of every generation.
        generation: Option<Generation>,
        /// The chain of ports. `None`: the whole root hub.
        chain: Option<Chain>,
    },
}

/// How closely a name fits a location; the greater fits better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortMatch {
    /// How many port numbers it names: 0 is a whole root hub.
    pub length: usize,
    /// Whether the location is the device's own, not a peer port.
    pub is_own: bool,
    /// Whether it names one half of the connector only.
    pub one_half: bool,
}

impl PortName {
    /// The name to recommend for a location, which no change of bus numbers touches; the DEVPATH where
    /// the controller is not known.
    pub fn recommended(location: &PortLocation) -> Self {
        match (&location.controller, location.generation) {
            (Some(controller), Some(generation)) => Self::Stable {
                controller: controller.clone(),
                generation: Some(generation),
                chain: location.chain(),
            },
            _ => Self::DevPath(location.devpath.clone()),
        }
    }

    /// How this port, or a port above it, matches the location, which is the device's own. `None` if
    /// it does not.
    pub fn match_location(&self, location: &PortLocation) -> Option<PortMatch> {
        let (matches, one_half) = match self {
            Self::DevPath(port) => (location.devpath.is_at_or_below(port), true),
            Self::DevPathEnd(end) => {
                let mut ports = location.devpath.ports_up();
                (ports.any(|port| is_end(port.as_str(), end)), true)
            }
            Self::Stable { controller, generation, .. } => {
                let is_other =
                    |wanted: Generation| location.generation.is_some_and(|own| own != wanted);
                let chain = location.chain();
                let numbers = chain.as_ref().map_or(&[][..], Chain::numbers);
                let matches = location.is_on(controller)
                    && !generation.is_some_and(is_other)
                    && numbers.starts_with(&self.chain());
                (matches, generation.is_some())
            }
        };
        matches.then(|| PortMatch { length: self.chain().len(), is_own: true, one_half })
    }

    /// How it matches a location that is the device's own, or a peer port.
    pub fn match_half(&self, location: &PortLocation, is_own: bool) -> Option<PortMatch> {
        let stands_for_it = is_own || !matches!(self, Self::DevPathEnd(_));
        let fit = self.match_location(location).filter(|_| stands_for_it)?;
        Some(PortMatch { is_own, ..fit })
    }

    /// Whether the port contains the location, in its own half of the connector or, with `peers`,
    /// in a peer port.
    pub fn contains(&self, location: &UsbLocation, peers: bool) -> bool {
        let fits = |location, is_own| self.match_half(location, is_own).is_some();
        fits(&location.own, true) || peers && location.peers.iter().any(|peer| fits(peer, false))
    }

    /// Whether this names the location itself, not one above it.
    pub fn names_exactly(&self, location: &PortLocation) -> bool {
        let length = location.chain().map_or(0, |chain| chain.numbers().len());
        self.match_location(location).is_some_and(|fit| fit.length == length)
    }

    /// Whether both are the same port, or one is a half of the other, as far as the names show:
    /// they do not show the generation of a DEVPATH's bus.
    pub fn is_equivalent(&self, other: &Self) -> bool {
        let controllers = |one: &Self, other: &Self| match (one, other) {
            (Self::DevPath(path), Self::Stable { controller, generation: None, .. }) => {
                let above = path.root_hub().and_then(|hub| hub.parent());
                above.is_some_and(|above| controller.to_string().ends_with(above.sysname()))
            }
            (
                Self::Stable { controller, generation: None, .. },
                Self::Stable { controller: same, .. },
            ) => controller == same,
            (Self::DevPath(path), Self::DevPathEnd(end)) => is_end(path.as_str(), end),
            (Self::DevPathEnd(longer), Self::DevPathEnd(end)) => is_end(longer, end),
            _ => false,
        };
        self == other
            || self.chain() == other.chain()
                && (controllers(self, other) || controllers(other, self))
    }

    /// Whether it may mean another port, or none, after a boot.
    pub fn is_devpath(&self) -> bool {
        matches!(self, Self::DevPath(_))
    }

    /// The text as far as it names a port: without slashes and the line end of a block scalar at its
    /// end, and of an interface's path (`…/3-3/3-3:1.0`) that of the device. The original accepts slashes
    /// and interfaces.
    pub fn trim(text: &str) -> &str {
        let text = text.trim_end_matches(['/', '\n']);
        let last = text.rsplit('/').next().unwrap_or_default();
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let interface = last.split_once(':').filter(|(device, numbers)| {
            let numbers = numbers.split_once('.');
            device.parse::<Port>().is_ok()
                && numbers.is_some_and(|(one, other)| is_number(one) && is_number(other))
        });
        let Some((device, numbers)) = interface else { return text };
        let path = &text[..text.len() - numbers.len() - 1];
        let above = path.strip_suffix(device).and_then(|above| above.strip_suffix('/'));
        above.filter(|above| is_end(above, device)).unwrap_or(path)
    }

    fn chain(&self) -> Vec<u8> {
        let chain = match self {
            Self::DevPath(devpath) => devpath.port().map(|port| port.chain().numbers().to_vec()),
            Self::DevPathEnd(end) => last_port(end).map(|port| port.chain().numbers().to_vec()),
            Self::Stable { chain, .. } => chain.as_ref().map(|chain| chain.numbers().to_vec()),
        };
        chain.unwrap_or_default()
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DevPath(devpath) => devpath.fmt(f),
            Self::DevPathEnd(end) => f.write_str(end),
            Self::Stable { controller, generation, chain } => {
                match generation {
                    Some(generation) => write!(f, "{controller}/usb{}", generation.number())?,
                    None => write!(f, "{controller}-usb-0")?,
                }
                chain.as_ref().map_or(Ok(()), |chain| write!(f, ":{chain}"))
            }
        }
    }
}

impl FromStr for PortName {
    /// The problem, to follow the text.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = Self::trim(text);
        let is_whole = text.starts_with("/devices/") || text.starts_with("/sys/");
        match last_port(text) {
            Some(_) if !is_whole => devpath_end(text.trim_start_matches('/')),
            None if !text.starts_with('/') => stable(text),
            _ => devpath(text),
        }
    }
}

/// The port that the last component of a path is the name of.
fn last_port(path: &str) -> Option<Port> {
    path.rsplit('/').next()?.parse().ok()
}

/// Whether the last components of the path are those of `end`.
fn is_end(path: &str, end: &str) -> bool {
    path.strip_suffix(end).is_some_and(|above| above.is_empty() || above.ends_with('/'))
}

fn devpath_end(end: &str) -> Result<PortName, String> {
    if end.contains('/') {
        devpath(&format!("/devices/…/{end}"))?;
    }
    Ok(PortName::DevPathEnd(end.to_owned()))
}

fn devpath(text: &str) -> Result<PortName, String> {
    if text.starts_with("/sys/") {
        return Err("begins with /sys, which a DEVPATH leaves out".to_owned());
    }
    let devpath: DevPath = text.parse().map_err(|error| format!("{error}"))?;
    if is_root_hub(devpath.sysname()) {
        return Ok(PortName::DevPath(devpath));
    }
    let Some(port) = devpath.port() else {
        return Err("does not end with a USB port such as 3-3".to_owned());
    };
    // Behind a hub the path has the hub's own port before it, else it could never match.
    let above = port.parent().map_or_else(|| format!("usb{}", port.bus().0), |hub| hub.to_string());
    match devpath.parent() {
        Some(parent) if parent.sysname() == above => Ok(PortName::DevPath(devpath)),
        _ => Err(match path_of(&devpath, &port) {
            Some(path) => format!("cannot be a device's path: write {path}"),
            None => format!("cannot be a device's path: the part before {port} must be {above}"),
        }),
    }
}

/// The path of the port below the root hub that the DEVPATH has.
fn path_of(devpath: &DevPath, port: &Port) -> Option<DevPath> {
    let is_on_bus = devpath.root_hub()?.sysname() == format!("usb{}", port.bus().0);
    is_on_bus.then(|| devpath.on_same_controller(port))?
}

/// Reads `CONTROLLER/usb2:CHAIN`, and as udev's `path_id` writes `ID_PATH` and
/// `ID_PATH_WITH_USB_REVISION` (`udev-builtin-path_id.c`: `handle_usb`) `CONTROLLER-usb-0:CHAIN` and
/// `CONTROLLER-usbv2-0:CHAIN`, with 0 in the place of the bus number.
fn stable(text: &str) -> Result<PortName, String> {
    let no_port = || "names no port".to_owned();
    let (controller, generation, rest) = if let Some((controller, bus)) = text.rsplit_once("/usb") {
        let (number, rest) = bus.split_at_checked(1).unwrap_or((bus, ""));
        let generation = Generation::from_number(number).ok_or_else(|| {
            "must have usb1, usb2 or usb3 behind the controller: the generation of the root hub, \
             not the number of the bus"
                .to_owned()
        })?;
        (controller, Some(generation), rest)
    } else {
        // A chain has no letters, so the last one is udev's.
        let (controller, bus) = text.rsplit_once("-usb").ok_or_else(no_port)?;
        let (generation, rest) = match bus.strip_prefix('v').map(|bus| bus.split_at_checked(1)) {
            None => (None, bus),
            Some(Some((number, rest))) => {
                (Some(Generation::from_number(number).ok_or_else(no_port)?), rest)
            }
            Some(None) => return Err(no_port()),
        };
        (controller, generation, rest.strip_prefix("-0").ok_or_else(no_port)?)
    };
    let chain = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        None => return Err(no_port()),
        Some(chain) if chain.contains(':') => {
            // An interface, or a disk as `pci-0000:14:00.0-usb-0:1:1.0-scsi-0:0:0:0`.
            let port = &text[..text.len() - chain.len() + chain.find(':').unwrap_or_default()];
            return Err(format!("names a part of a device: write {port}"));
        }
        Some(chain) => Some(chain.parse().map_err(|_| {
            format!("does not end with the numbers of ports such as 1.4, but `{chain}`")
        })?),
    };
    let controller = controller.parse().map_err(|_| {
        "does not begin with a controller's subsystem and name, such as pci-0000:00:14.0".to_owned()
    })?;
    Ok(PortName::Stable { controller, generation, chain })
}

impl Serialize for PortName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
pub(crate) mod tests;
