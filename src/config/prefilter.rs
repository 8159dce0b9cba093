//! A look at the raw config that tells, before anything is parsed, that no port in it can match.
//!
//! Most events are of ports nobody configured; for them this scan is all that happens. Sound, not
//! exact: it may say yes in vain, never no. Pure.

use crate::devpath::{DevPath, is_root_hub};
use crate::port::Chain;

/// Returns whether some port in the config `text` may be at or above `device`, as far as its own
/// bus is concerned; the other halves of its connectors are to be asked for as devices of their own.
///
/// A port at or above the device stands in the text in one of two ways, and as it is: YAML can spell
/// a word otherwise only with a backslash. A DEVPATH ends with one of the device's own components
/// from the root hub down. Names without a bus number end with the root hub, whichever it may be,
/// and a chain that the device's begins with, or no chain. Ports that are written wrong but were
/// meant for the device are not ruled out, so that somebody hears of the mistake.
pub fn may_match(text: &[u8], device: &DevPath) -> bool {
    text.contains(&b'\\')
        || device.usb_components().any(|name| {
            // Every path goes through a root hub; only one that ends there is a port.
            let within_path: &[u8] = if is_root_hub(name) { b"/" } else { b"" };
            has_word(text, name.as_bytes(), within_path)
        })
        || may_name(text, device)
}

/// What stands before the chain in a name without a bus number; at its end, if there is no chain.
const ROOT_HUBS: [&[u8]; 7] =
    [b"/usb1", b"/usb2", b"/usb3", b"-usb-0", b"-usbv1-0", b"-usbv2-0", b"-usbv3-0"];

/// Whether a name without a bus number in the text may be at or above the device.
fn may_name(text: &[u8], device: &DevPath) -> bool {
    let port = device.port();
    let chain = port.as_ref().map_or(&[][..], |port| Chain::numbers(port.chain()));
    ROOT_HUBS.iter().any(|hub| {
        text.windows(hub.len()).enumerate().filter(|(_, window)| window == hub).any(|(at, _)| {
            let rest = &text[at + hub.len()..];
            match rest.first() {
                // As in DEVPATHs, of this bus or another.
                Some(b'/') => false,
                Some(b':') => is_start_of(chain, &rest[1..]),
                Some(byte) => !of_word(*byte),
                None => true,
            }
        })
    })
}

/// Whether the text begins with the first of these numbers, joined by dots, and nothing more.
fn is_start_of(chain: &[u8], text: &[u8]) -> bool {
    let end = text.iter().position(|byte| !byte.is_ascii_digit() && *byte != b'.');
    let mut numbers = text[..end.unwrap_or(text.len())].split(|byte| *byte == b'.');
    let mut own = chain.iter();
    numbers.all(|number| own.next().is_some_and(|own| own.to_string().as_bytes() == number))
}

fn of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b".-_".contains(&byte)
}

/// Whether the word stands in the text by itself, not followed by any of `not_before`.
fn has_word(text: &[u8], word: &[u8], not_before: &[u8]) -> bool {
    let last = text.len().saturating_sub(word.len());
    (0..=last).any(|start| {
        text[start..].starts_with(word)
            && !text[..start].last().is_some_and(|byte| of_word(*byte))
            && !text[start + word.len()..]
                .first()
                .is_some_and(|byte| of_word(*byte) || not_before.contains(byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse::parse;
    use crate::config::port::tests::any_name;
    use crate::place::{Generation, Place, Places};
    use proptest::prelude::*;

    const CONFIG: &str =
        "virtual_machines:\n  w:\n    socket: /s\n    ports: [/devices/x/usb1/1-1]\n";

    #[test]
    fn other_ports_are_ruled_out() {
        let may = |device: &str| may_match(CONFIG.as_bytes(), &device.parse().unwrap());
        assert!(may("/devices/x/usb1/1-1"));
        assert!(may("/devices/x/usb1/1-1/1-1.3"));
        assert!(!may("/devices/x/usb1/1-10"));
        assert!(!may("/devices/x/usb1/1-2"));
        assert!(!may("/devices/x/usb2/2-1"));
        assert!(!may("/devices/x/usb2/2-1/2-1.3"));
    }

    #[test]
    fn other_names_without_a_bus_are_ruled_out() {
        let may = |port: &str, device: &str| {
            let text = format!("virtual_machines:\n  w:\n    socket: /s\n    ports: [{port}]\n");
            may_match(text.as_bytes(), &format!("/devices/x/{device}").parse().unwrap())
        };
        for port in ["pci-0000:00:14.0/usb2:1.4", "pci-0:00:14.0-usb-0:1.4", "a-b-usbv3-0:1.4"] {
            assert!(may(port, "usb1/1-1/1-1.4"), "{port}");
            assert!(may(port, "usb1/1-1/1-1.4/1-1.4.2"), "{port}");
            assert!(!may(port, "usb1/1-1"), "{port}");
            assert!(!may(port, "usb1/1-1/1-1.40"), "{port}");
            assert!(!may(port, "usb1/1-14"), "{port}");
        }
        assert!(may("pci-0000:00:14.0/usb2", "usb9/9-1") && may("a-b-usb-0", "usb9/9-1"));
        assert!(!may("/devices/x/usb2/2-1", "usb9/9-1"));
    }

    proptest! {
        /// However a port may be written, a no means that the config has no owner.
        #[test]
        fn no_means_no_owner(
            port in any_name(),
            devices in prop::collection::vec(
                ("(pci-0000:00:14\\.0|platform-x\\.usb|a-usbv2-0)", 2..4u8, prop::collection::vec(1..4u8, 1..4)),
                1..3,
            ),
            style in 0..5usize,
        ) {
            let written = match style {
                0 => port,
                1 => format!("'{port}'"),
                2 => format!("\"{port}\""),
                3 => format!("\"{}\"", port.replace('-', "\\x2d")),
                _ => format!("&p {port}"),
            };
            let text = format!("virtual_machines:\n  w:\n    socket: /s\n    ports: [{written}]\n");
            let mut places = devices.iter().map(|(controller, generation, chain)| {
                let bus = generation - 1;
                let mut devpath = format!("/devices/{}/usb{bus}", controller.split_once('-').unwrap().1);
                for end in 1..=chain.len() {
                    let numbers: Vec<String> = chain[..end].iter().map(u8::to_string).collect();
                    devpath = format!("{devpath}/{bus}-{}", numbers.join("."));
                }
                Place {
                    devpath: devpath.parse().unwrap(),
                    controller: controller.parse().ok(),
                    generation: Generation::from_number(&generation.to_string()),
                }
            });
            let mut places = Places { own: places.next().unwrap(), companions: places.collect() };
            let config = parse(&text).unwrap();
            // Also when the root hub is gone.
            for _ in 0..2 {
                let mut all = std::iter::once(&places.own).chain(&places.companions);
                if !all.any(|place| may_match(text.as_bytes(), &place.devpath)) {
                    prop_assert!(!config.is_configured(&places));
                }
                places.own.generation = None;
            }
        }
    }
}
