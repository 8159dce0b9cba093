//! DEVPATH: the place of a device in the kernel's device tree.
//!
//! Compared component by component, never as text: `…/3-1` is not above `…/3-10`. Pure.

use std::fmt;
use std::iter;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::port::Port;

/// The path of a device below `/sys`, such as `/devices/pci0000:00/0000:00:14.0/usb3/3-3`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct DevPath(String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DevPathError {
    /// It does not begin with `/devices/`.
    NotBelowDevices,
    /// It has an empty component, or one that is `.` or `..`.
    BadComponent,
    /// It has a control character, or is longer than the kernel's 4096 bytes.
    BadText,
}

const TOP: &str = "/devices/";

impl DevPath {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last component, the kernel's name of the device.
    pub fn sysname(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The path without its last component, if that is still a DEVPATH.
    pub fn parent(&self) -> Option<Self> {
        let above = self.0.rsplit_once('/')?.0;
        above.starts_with(TOP).then(|| Self(above.to_owned()))
    }

    pub fn is_at_or_below(&self, other: &Self) -> bool {
        self.0
            .strip_prefix(other.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The port that a device with this path is plugged into. `None` for root hubs, interfaces and
    /// all that is no USB device.
    pub fn port(&self) -> Option<Port> {
        self.sysname().parse().ok()
    }

    /// The root hub that it is or is below. `None` if the path is not on a USB bus.
    pub fn root_hub(&self) -> Option<Self> {
        let path = self.from_root_hub()?;
        let below = path.find('/').map_or(0, |end| path.len() - end);
        Some(Self(self.0[..self.0.len() - below].to_owned()))
    }

    /// The ports from this one up to the root hub's, if this is a device on a USB bus: `3-1.4`,
    /// `3-1`.
    pub fn ports_up(&self) -> impl Iterator<Item = Self> {
        let first = self.port().map(|port| (self.clone(), port));
        // Not longer than a chain may be, even for an invented DEVPATH.
        let above = iter::successors(first, |(path, port)| {
            let (path, port) = (path.parent()?, port.parent()?);
            (path.port().as_ref() == Some(&port)).then_some((path, port))
        });
        above.map(|(path, _)| path)
    }

    pub fn port_of_hub(&self, number: u8) -> Option<Self> {
        format!("{self}/{}", Port::of_hub(self.sysname(), number)?).parse().ok()
    }

    /// A port of the controller that this path is below.
    pub fn on_same_controller(&self, port: &Port) -> Option<Self> {
        self.root_hub()?.parent()?.controllers_port(port)
    }

    pub fn controllers_port(&self, port: &Port) -> Option<Self> {
        let above: Vec<Port> = iter::successors(Some(port.clone()), Port::parent).collect();
        let names: Vec<String> = above.iter().rev().map(|port| format!("/{port}")).collect();
        format!("{self}/usb{}{}", port.bus().0, names.concat()).parse().ok()
    }

    /// The components from the root hub (`usb3`) down; empty if the path is on no USB bus.
    ///
    /// The last root hub counts: there is only one in every path the kernel makes today.
    pub fn usb_components(&self) -> impl Iterator<Item = &str> {
        self.from_root_hub().into_iter().flat_map(|path| path.split('/'))
    }

    /// The part of the path that begins with the root hub: `usb3/3-3`.
    pub fn from_root_hub(&self) -> Option<&str> {
        let mut end = self.0.len();
        self.0.rmatch_indices('/').find_map(|(slash, _)| {
            let name = &self.0[slash + 1..end];
            end = slash;
            is_root_hub(name).then(|| &self.0[slash + 1..])
        })
    }
}

pub fn is_root_hub(sysname: &str) -> bool {
    sysname
        .strip_prefix("usb")
        .is_some_and(|bus| !bus.is_empty() && bus.bytes().all(|byte| byte.is_ascii_digit()))
}

impl FromStr for DevPath {
    type Err = DevPathError;

    fn from_str(text: &str) -> Result<Self, DevPathError> {
        let control = if text.is_ascii() {
            text.bytes().any(|byte| byte.is_ascii_control())
        } else {
            text.chars().any(char::is_control)
        };
        if text.len() > 4096 || control {
            return Err(DevPathError::BadText);
        }
        let below = text.strip_prefix(TOP).ok_or(DevPathError::NotBelowDevices)?;
        if below.split('/').any(|component| matches!(component, "" | "." | "..")) {
            return Err(DevPathError::BadComponent);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for DevPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for DevPathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotBelowDevices => "does not begin with /devices/",
            Self::BadComponent => "has an empty component, `.` or `..`",
            Self::BadText => "has control characters or is too long",
        })
    }
}

impl std::error::Error for DevPathError {}

impl<'de> Deserialize<'de> for DevPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(text: &str) -> DevPath {
        text.parse().unwrap()
    }

    #[test]
    fn port_1_is_not_port_10() {
        let port = path("/devices/pci0000:00/0000:00:14.0/usb1/1-1");
        assert!(path("/devices/pci0000:00/0000:00:14.0/usb1/1-1").is_at_or_below(&port));
        assert!(path("/devices/pci0000:00/0000:00:14.0/usb1/1-1/1-1.4").is_at_or_below(&port));
        assert!(!path("/devices/pci0000:00/0000:00:14.0/usb1/1-10").is_at_or_below(&port));
        assert!(!path("/devices/pci0000:00/0000:00:14.0/usb1").is_at_or_below(&port));
    }

    #[test]
    fn hostile_paths_are_refused() {
        assert_eq!("/sys/devices/x".parse::<DevPath>(), Err(DevPathError::NotBelowDevices));
        assert_eq!("/devices/../etc".parse::<DevPath>(), Err(DevPathError::BadComponent));
        assert_eq!("/devices//x".parse::<DevPath>(), Err(DevPathError::BadComponent));
        assert_eq!("/devices/x/".parse::<DevPath>(), Err(DevPathError::BadComponent));
        assert_eq!("/devices/x\0".parse::<DevPath>(), Err(DevPathError::BadText));
        assert_eq!(
            format!("/devices/{}", "x".repeat(5000)).parse::<DevPath>(),
            Err(DevPathError::BadText)
        );
    }

    #[test]
    fn usb_components_begin_at_the_root_hub() {
        let names = |text: &str| path(text).usb_components().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            names("/devices/pci0000:00/0000:00:14.0/usb3/3-1/3-1.4"),
            ["usb3", "3-1", "3-1.4"]
        );
        assert_eq!(names("/devices/virtual/net/lo"), [""; 0]);
    }

    #[test]
    fn the_way_up_and_down_is_the_same() {
        let device = path("/devices/pci0000:00/0000:00:14.0/usb3/3-1/3-1.4");
        let names: Vec<String> = device.ports_up().map(|port| port.sysname().to_owned()).collect();
        assert_eq!(names, ["3-1.4", "3-1"]);
        let controller = device.root_hub().unwrap().parent().unwrap();
        assert_eq!(controller.sysname(), "0000:00:14.0");
        assert_eq!(controller.controllers_port(&"3-1.4".parse().unwrap()), Some(device));
        assert_eq!(path("/devices/virtual/net/lo").root_hub(), None);
    }

    proptest! {
        #[test]
        fn below_means_the_leading_components_are_the_same(
            above in prop::collection::vec("[ab1]{1,2}", 1..4),
            below in prop::collection::vec("[ab1]{1,2}", 1..5),
        ) {
            let text = |names: &[String]| path(&format!("/devices/{}", names.join("/")));
            prop_assert_eq!(text(&below).is_at_or_below(&text(&above)), below.starts_with(&above));
        }
    }
}
