//! The qdev id of a device in a guest: `hotplugger-3-1.4-25`.
//!
//! It is computed from the event alone (port and device number), so that `remove` needs no memory,
//! and its prefix marks our objects: an object with an ID of another form is never deleted. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::port::{DevNum, Port};

/// The id of one device in one port, from its plug to its pull.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    /// The port on the host.
    pub port: Port,
    /// The device's number there.
    pub devnum: DevNum,
}

/// The text is not one of our IDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotOurs;

/// The mark of ownership. QEMU wants a letter first, then letters, digits, `-`, `.` and `_`
/// (`util/id.c`: `id_wellformed`).
const PREFIX: &str = "hotplugger-";

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}", self.port, self.devnum.0)
    }
}

impl FromStr for DeviceId {
    type Err = NotOurs;

    fn from_str(id: &str) -> Result<Self, NotOurs> {
        let (port, devnum) =
            id.strip_prefix(PREFIX).and_then(|rest| rest.rsplit_once('-')).ok_or(NotOurs)?;
        let parsed = Self {
            port: port.parse().map_err(|_| NotOurs)?,
            devnum: DevNum(devnum.parse().map_err(|_| NotOurs)?),
        };
        // `hotplugger-3-1-07` reads like ours and is not.
        if parsed.to_string() == id { Ok(parsed) } else { Err(NotOurs) }
    }
}

impl Serialize for DeviceId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DeviceId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(|NotOurs| serde::de::Error::custom("no device id of hotplugger's"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_of_others_are_not_ours() {
        for id in [
            "hotplugger",
            "hotplugger-",
            "hotplugger-3-1",
            "hotplugger-3-1-",
            "hotplugger-3-1-07",
            "hotplugger-3-1-256",
            "hotplugger-3-1.4-25-1",
            "xhotplugger-3-1-2",
            "hotplugger-kbd-1",
        ] {
            assert_eq!(id.parse::<DeviceId>(), Err(NotOurs), "{id}");
        }
    }

    proptest! {
        #[test]
        fn printing_and_reading_are_inverse(port in "[1-9][0-9]?-[1-9](\\.[1-9]){0,4}", devnum in 1..=127u8) {
            let id = DeviceId { port: port.parse().unwrap(), devnum: DevNum(devnum) };
            prop_assert_eq!(id.to_string(), format!("hotplugger-{port}-{devnum}"));
            prop_assert_eq!(id.to_string().parse::<DeviceId>(), Ok(id));
        }
    }
}
