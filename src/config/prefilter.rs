//! A look at the raw config that tells, before anything is parsed, that no port in it can match.
//!
//! Most events are of ports nobody configured; for them this scan is all that happens. Sound, not
//! exact: it may say yes in vain, never no. Pure.

use crate::devpath::{DevPath, is_root_hub};

/// Returns whether some port in the config `text` may be at or above `device`.
///
/// A port at or above the device ends with one of the device's own components from the root hub
/// down, and that component stands in the text as it is: YAML can spell a word otherwise only with
/// a backslash. Ports that are written wrong but were meant for the device are not ruled out, so
/// that somebody hears of the mistake.
pub fn may_match(text: &[u8], device: &DevPath) -> bool {
    text.contains(&b'\\')
        || device.usb_components().any(|name| {
            // Every path goes through a root hub; only one that ends there is a port.
            let within_path: &[u8] = if is_root_hub(name) { b"/" } else { b"" };
            has_word(text, name.as_bytes(), within_path)
        })
}

/// Whether the word stands in the text by itself, not followed by any of `not_before`.
fn has_word(text: &[u8], word: &[u8], not_before: &[u8]) -> bool {
    let of_word = |byte: &u8| byte.is_ascii_alphanumeric() || b".-_".contains(byte);
    let last = text.len().saturating_sub(word.len());
    (0..=last).any(|start| {
        text[start..].starts_with(word)
            && !text[..start].last().is_some_and(of_word)
            && !text[start + word.len()..]
                .first()
                .is_some_and(|byte| of_word(byte) || not_before.contains(byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse::parse;
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

    proptest! {
        /// However a port may be written, a no means that the config has no owner.
        #[test]
        fn no_means_no_owner(
            port in "usb[12](/1-[1-3](/1-[1-3]\\.[1-3])?)?",
            device in "usb[12]/1-[1-3](/1-[1-3]\\.[1-3])?",
            style in 0..5usize,
        ) {
            let path = format!("/devices/pci0000:00/{port}");
            let written = match style {
                0 => path,
                1 => format!("'{path}'"),
                2 => format!("\"{path}\""),
                3 => format!("\"{}\"", path.replace('-', "\\x2d")),
                _ => format!("&p {path}"),
            };
            let text = format!("virtual_machines:\n  w:\n    socket: /s\n    ports: [{written}]\n");
            let device: DevPath = format!("/devices/pci0000:00/{device}").parse().unwrap();
            if let Ok(config) = parse(&text) && !may_match(text.as_bytes(), &device) {
                prop_assert_eq!(config.owner(&device), None);
            }
        }
    }
}
