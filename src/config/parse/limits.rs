//! What a config may have at most, so that reading one takes milliseconds whatever is in it. Pure.

use serde::de;

/// No list is longer: each entry is compared with those before it, and no host has more ports.
pub(super) const MAX_ENTRIES: usize = 255;

/// The error of a list with more.
pub(super) fn too_many<E: de::Error>() -> E {
    E::custom(format_args!("more than {MAX_ENTRIES} entries: no host has so many ports"))
}

/// Whether far more brackets are open somewhere than any config has: for each further one the YAML
/// reader looks at all that are, so that 1 MiB of them would take it minutes. Those in comments and
/// strings count as well, they are few.
pub(super) fn is_deeply_nested(text: &str) -> bool {
    let mut open = 0_usize;
    text.bytes().any(|byte| {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        open > 200
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse::parse;

    fn said(text: &str) -> String {
        parse(text).map(|config| config.virtual_machines.len()).unwrap_err().to_string()
    }

    /// Not parsed, which would take minutes.
    #[test]
    fn brackets_within_brackets_without_end_are_refused_at_once() {
        for open in ["[", "{", "a: [", "{\"\":"] {
            let deep = format!("virtual_machines: {}", open.repeat(250_000));
            assert_eq!(said(&deep), "too many brackets within brackets");
        }
        let one_after_the_other = format!("{}virtual_machines:\n", "#[] {}\n".repeat(10_000));
        assert!(parse(&one_after_the_other).is_ok());
    }

    #[test]
    fn lists_without_end_are_refused() {
        let most = MAX_ENTRIES;
        let list = |count: usize, entry: fn(usize) -> String| -> String {
            (0..count)
                .flat_map(|number| ["    - ".to_owned(), entry(number), "\n".to_owned()])
                .collect()
        };
        let port = |number: usize| format!("pci-0000:{number:02x}:14.0/usb2:1");
        let model = |number: usize| format!("{number:04x}:0001");
        let bus = |number: usize| format!("xhci{number}.0");
        let config = |ports, hubs, models| {
            format!(
                "virtual_machines:\n  w:\n    socket: /s\n    ports:\n{}    hubs:\n{}    exclude:\n{}",
                list(ports, port),
                list(hubs, bus),
                list(models, model)
            )
        };
        assert!(parse(&config(most, most, most)).is_ok());
        for (ports, hubs, models) in [(most + 1, 1, 1), (1, most + 1, 1), (1, 1, most + 1)] {
            assert!(said(&config(ports, hubs, models)).contains("more than 255 entries"));
        }
        let vm = |number| format!("  w{number}:\n    socket: /s\n    ports: [pci-{number}/usb2]\n");
        let vms = (0..=most).map(vm).collect::<Vec<_>>().concat();
        assert!(said(&format!("virtual_machines:\n{vms}")).contains("more than 255 entries"));
    }
}
