//! The usb-host properties that the config may set (`hw/usb/host-libusb.c`:
//! `usb_host_dev_properties`). The others say which device it is.

use std::collections::BTreeMap;

use serde_json::Value;

/// The values by their properties' names.
pub type UsbHostProperties = BTreeMap<&'static str, Value>;

/// What a property takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Switch,
    /// A number of packets.
    Count,
}

const PROPERTIES: [(&str, Kind); 6] = [
    ("guest-reset", Kind::Switch),
    ("guest-resets-all", Kind::Switch),
    ("pipeline", Kind::Switch),
    ("suppress-remote-wake", Kind::Switch),
    ("isobufs", Kind::Count),
    ("isobsize", Kind::Count),
];

/// The most that the two numbers of isochronous buffers may be. QEMU has 4 and 32.
const MAX_COUNT: u32 = 1024;

/// Reads a property and its value.
///
/// # Errors
///
/// The mistake, and how to write it instead.
pub fn read(name: &str, text: &str) -> Result<(&'static str, Value), String> {
    let known = |wanted: &str| PROPERTIES.into_iter().find(|(known, _)| *known == wanted);
    let Some((name, kind)) = known(name) else {
        let names = PROPERTIES.map(|(name, _)| format!("`{name}`")).join(", ");
        return Err(match known(&name.replace('_', "-").to_ascii_lowercase()) {
            Some((close, _)) => format!("`{name}` is written `{close}`"),
            None => {
                format!("`{name}` is not a property of usb-host that may be set: these are {names}")
            }
        });
    };
    let value = match kind {
        Kind::Switch => match text {
            "true" | "on" => Some(Value::Bool(true)),
            "false" | "off" => Some(Value::Bool(false)),
            _ => None,
        },
        Kind::Count => {
            let number = text.parse().ok().filter(|number| (1..=MAX_COUNT).contains(number));
            number.map(Value::from)
        }
    };
    value.map(|value| (name, value)).ok_or_else(|| {
        let expected = match kind {
            Kind::Switch => "`true` or `false`".to_owned(),
            Kind::Count => format!("a number from 1 to {MAX_COUNT}"),
        };
        format!("`{text}` is not a value of `{name}`: write {expected}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_does_not_name_the_device_may_be_set() {
        assert_eq!(read("guest-reset", "false"), Ok(("guest-reset", Value::Bool(false))));
        assert_eq!(read("pipeline", "on"), Ok(("pipeline", Value::Bool(true))));
        assert_eq!(read("isobufs", "16"), Ok(("isobufs", Value::from(16))));
        let wrong = |name, text| read(name, text).unwrap_err();
        assert_eq!(wrong("guest_reset", "false"), "`guest_reset` is written `guest-reset`");
        assert!(wrong("hostaddr", "1").ends_with(
            "these are `guest-reset`, `guest-resets-all`, `pipeline`, `suppress-remote-wake`, \
             `isobufs`, `isobsize`"
        ));
        assert_eq!(
            wrong("isobsize", "0"),
            "`0` is not a value of `isobsize`: write a number from 1 to 1024"
        );
        assert_eq!(
            wrong("pipeline", "1"),
            "`1` is not a value of `pipeline`: write `true` or `false`"
        );
    }
}
