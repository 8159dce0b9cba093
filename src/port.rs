//! Ports as the kernel counts them: bus number, port chain, device number.
//!
//! Pure values with their text forms; where a port is in the device tree is `devpath`'s matter.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The number of a USB bus, the kernel's `busnum` and QEMU's `hostbus`: 1 to 255.
///
/// The kernel gives out 1 to 64 (`drivers/usb/core/hcd.c`: `USB_MAXBUS`), in the order in which
/// the host controllers appear: it may change from one boot to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BusNum(pub u8);

/// The number of a device on its bus, the kernel's `devnum` and QEMU's `hostaddr`: 1 to 127.
///
/// Given out round-robin (`drivers/usb/core/hub.c`: `choose_devnum`), so that a device that is
/// plugged again gets another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DevNum(pub u8);

/// A place where a device can be plugged: a bus and the chain of port numbers below its root hub.
///
/// Its text form is the kernel's name of the device in it: `3-1.4` is port 4 of the hub in port 1
/// of the root hub `usb3`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    bus: BusNum,
    chain: Chain,
}

/// The way from a root hub to a port: the number of the port on each hub, `1.4`. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chain {
    /// Zeros, which no port has for a number, behind the last one: so shorter chains come first.
    numbers: [u8; MAX_CHAIN],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAPort;

/// The longest chain USB allows: seven tiers, the first of which is the root hub (USB 2.0
/// specification, 4.1.1).
const MAX_CHAIN: usize = 6;

impl Chain {
    pub fn numbers(&self) -> &[u8] {
        let length = self.numbers.iter().position(|number| *number == 0);
        &self.numbers[..length.unwrap_or(MAX_CHAIN)]
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.numbers().iter().enumerate().try_for_each(|(index, number)| {
            let dot = if index > 0 { "." } else { "" };
            write!(f, "{dot}{number}")
        })
    }
}

impl FromStr for Chain {
    type Err = NotAPort;

    fn from_str(text: &str) -> Result<Self, NotAPort> {
        let mut numbers = [0; MAX_CHAIN];
        for (index, text) in text.split('.').enumerate() {
            *numbers.get_mut(index).ok_or(NotAPort)? = number(text)?;
        }
        Ok(Self { numbers })
    }
}

impl Port {
    pub fn new(bus: BusNum, chain: Chain) -> Self {
        Self { bus, chain }
    }

    /// The port with that number of a hub, by the hub's sysname: `usb3` or `3-1`.
    pub fn of_hub(hub: &str, number: u8) -> Option<Self> {
        match hub.strip_prefix("usb") {
            Some(bus) => format!("{bus}-{number}").parse().ok(),
            None => format!("{hub}.{number}").parse().ok(),
        }
    }

    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    pub fn bus(&self) -> BusNum {
        self.bus
    }

    /// QEMU's `hostport`: the port chain joined by dots, `1.4`.
    pub fn hostport(&self) -> String {
        self.chain.to_string()
    }

    pub fn number(&self) -> u8 {
        self.chain.numbers().last().copied().unwrap_or_default()
    }

    /// The port that the hub is plugged into, if this one is on a hub that is not a root hub.
    pub fn parent(&self) -> Option<Self> {
        let last = self.chain.numbers().len() - 1;
        let mut numbers = self.chain.numbers;
        numbers[last] = 0;
        (last > 0).then_some(Self { bus: self.bus, chain: Chain { numbers } })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.bus.0, self.hostport())
    }
}

impl FromStr for Port {
    type Err = NotAPort;

    /// Reads the kernel's form (`drivers/usb/core/usb.c`: `usb_alloc_dev`), and nothing else:
    /// no leading zeros, no signs.
    fn from_str(name: &str) -> Result<Self, NotAPort> {
        let (bus, chain) = name.split_once('-').ok_or(NotAPort)?;
        Ok(Self { bus: BusNum(number(bus)?), chain: chain.parse()? })
    }
}

/// Reads 1 to 255, written the one way the kernel writes it.
fn number(text: &str) -> Result<u8, NotAPort> {
    match text.as_bytes().first() {
        Some(b'1'..=b'9') => text.parse().map_err(|_| NotAPort),
        _ => Err(NotAPort),
    }
}

impl Serialize for Port {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(|NotAPort| {
            serde::de::Error::custom(format_args!("`{name}` is no USB port such as 3-1.4"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_kernels_names_only() {
        for good in ["3-1", "1-10", "2-1.4", "10-1.2.3.4.5.6", "255-255"] {
            assert_eq!(good.parse::<Port>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "3",
            "3-",
            "-1",
            "usb3",
            "3-0",
            "03-1",
            "3-01",
            "3-1.",
            "3-.1",
            "3-1:1.0",
            "3-+1",
            "3-256",
            "1-1.1.1.1.1.1.1",
            "3-1 ",
            "3-1\n",
            "３-1",
        ] {
            assert_eq!(bad.parse::<Port>(), Err(NotAPort), "{bad:?}");
        }
    }

    #[test]
    fn a_port_knows_the_port_of_its_hub() {
        let port: Port = "3-1.4".parse().unwrap();
        assert_eq!(port.hostport(), "1.4");
        assert_eq!(port.parent(), Some("3-1".parse().unwrap()));
        assert_eq!(port.parent().unwrap().parent(), None);
    }

    proptest! {
        #[test]
        fn printing_and_reading_are_inverse(bus in 1..=255u8, chain in prop::collection::vec(1..=255u8, 1..=6)) {
            let chain: Vec<String> = chain.iter().map(u8::to_string).collect();
            let name = format!("{bus}-{}", chain.join("."));
            let port: Port = name.parse().unwrap();
            prop_assert_eq!(port.to_string(), name);
        }

        #[test]
        fn chains_are_ordered_as_their_numbers(
            one in prop::collection::vec(1..=3u8, 1..=6),
            other in prop::collection::vec(1..=3u8, 1..=6),
        ) {
            let chain = |numbers: &[u8]| -> Chain {
                let texts: Vec<String> = numbers.iter().map(u8::to_string).collect();
                texts.join(".").parse().unwrap()
            };
            let first = chain(&one);
            prop_assert_eq!(first.numbers(), &one);
            prop_assert_eq!(first.cmp(&chain(&other)), one.cmp(&other));
        }

        #[test]
        fn any_text_is_refused_or_reprinted_as_it_was(text in ".{0,12}") {
            if let Ok(port) = text.parse::<Port>() {
                prop_assert_eq!(port.to_string(), text);
            }
        }
    }
}
