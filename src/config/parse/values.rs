//! The values of a machine's keys. Pure.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

use super::list::{Scalar, single};
use crate::config::port::PortName;

/// A `socket:` path.
#[derive(PartialEq)]
pub(super) struct Socket(pub(super) PathBuf);

impl Scalar for Socket {
    const EXPECTED: &str = "the absolute path of QEMU's QMP socket, such as /run/vm/windows.qmp";

    fn read(text: &str) -> Result<Self, String> {
        // The kernel's sun_path has 108 bytes, the last one NUL (unix(7)).
        match text {
            _ if !text.starts_with('/') => Err("is not an absolute path".to_owned()),
            _ if text.len() > 107 => {
                Err("is longer than a socket's path may be (107 bytes)".to_owned())
            }
            _ if text.contains('\0') => Err("has a NUL character".to_owned()),
            _ => Ok(Self(text.into())),
        }
    }
}

impl<'de> Deserialize<'de> for Socket {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        single(deserializer)
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())
    }
}

/// An entry of `hubs:`: a USB bus of the guest.
#[derive(PartialEq)]
pub(super) struct Bus(pub(super) String);

impl Scalar for Bus {
    const EXPECTED: &str =
        "the name of a USB bus of the guest, such as xhci0.0 (the controller's id and `.0`)";

    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty()
            || text.chars().any(|character| character.is_whitespace() || character.is_control())
        {
            return Err("is no name of a bus".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An entry of `ports:`.
#[derive(PartialEq)]
pub(super) struct ConfiguredPort(pub(super) PortName);

impl Scalar for ConfiguredPort {
    // Until `identify --write` fills them in.
    const MAY_BE_NONE: bool = true;
    const EXPECTED: &str = "a port's name, such as pci-0000:00:14.0/usb2:3, or its DEVPATH, such \
        as /devices/pci0000:00/0000:00:14.0/usb3/3-3";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error| format!("{error}"))
    }

    fn is_same(&self, other: &Self) -> bool {
        self.0.is_same(&other.0)
    }
}

impl fmt::Display for ConfiguredPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `true` or `false`.
pub(super) struct Switch(pub(super) bool);

impl<'de> Deserialize<'de> for Switch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SwitchVisitor;

        impl Visitor<'_> for SwitchVisitor {
            type Value = Switch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`true` or `false`")
            }

            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Switch, E> {
                Ok(Switch(on))
            }
        }

        deserializer.deserialize_any(SwitchVisitor)
    }
}

/// A number of seconds between `MIN` and `MAX` milliseconds.
pub(super) struct Seconds<const MIN: u64, const MAX: u64>(pub(super) Duration);

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Seconds<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SecondsVisitor<const MIN: u64, const MAX: u64>;

        impl<const MIN: u64, const MAX: u64> Visitor<'_> for SecondsVisitor<MIN, MAX> {
            type Value = Seconds<MIN, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let (min, max) = (Duration::from_millis(MIN), Duration::from_millis(MAX));
                write!(
                    f,
                    "a number of seconds from {} to {}, such as 1 or 0.5",
                    min.as_secs_f64(),
                    max.as_secs()
                )
            }

            fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Self::Value, E> {
                match Duration::try_from_secs_f64(seconds) {
                    Ok(time)
                        if time >= Duration::from_millis(MIN)
                            && time <= Duration::from_millis(MAX) =>
                    {
                        Ok(Seconds(time))
                    }
                    _ => Err(E::invalid_value(de::Unexpected::Float(seconds), &self)),
                }
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Self::Value, E> {
                let seconds = u32::try_from(seconds)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(seconds), &self))?;
                self.visit_f64(seconds.into())
            }

            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Self::Value, E> {
                Err(E::invalid_value(de::Unexpected::Signed(seconds), &self))
            }

            // The original took `int()` of it, so a quoted number worked.
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                let seconds =
                    text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))?;
                self.visit_f64(seconds)
            }
        }

        deserializer.deserialize_any(SecondsVisitor)
    }
}
