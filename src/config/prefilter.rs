//! A look at the raw config that tells, before anything is parsed, that no port in it can match.
//!
//! Most events are of ports nobody configured; for them this scan is all that happens. Sound, not
//! exact: it may say yes in vain, never no. Pure.

use crate::devpath::DevPath;

/// Returns whether some port in the config `text` may be at or above `device`.
///
/// A port at or above the device ends with one of the device's own components from the root hub
/// down, and that component stands in the text as it is: YAML can spell a word otherwise only with
/// a backslash.
pub fn may_match(text: &[u8], device: &DevPath) -> bool {
    text.contains(&b'\\') || device.usb_components().any(|name| ends_a_path(text, name.as_bytes()))
}

/// Whether a path in the text ends with that component.
fn ends_a_path(text: &[u8], name: &[u8]) -> bool {
    let goes_on = |byte: &u8| byte.is_ascii_alphanumeric() || b"/.-:_".contains(byte);
    (1..text.len()).any(|start| {
        text[start - 1] == b'/'
            && text[start..].starts_with(name)
            && !text.get(start + name.len()).is_some_and(goes_on)
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
