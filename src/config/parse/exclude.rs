//! `exclude:`, read with a located error for each entry that cannot be one. Pure.

use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::limits::{MAX_ENTRIES, too_many};
use super::list::{Scalar, Text};
use super::values::ConfiguredPort;
use crate::config::exclude::{CLASS_NAMES, Exclusion};

const EXPECTED: &str = "`0627:0001` (vendor and product id), `class: 08`, `serial: XYZ` or a \
                        port's DEVPATH";

/// The list; an empty one is no error, as nothing has to be excluded.
#[derive(Default)]
pub(super) struct Exclude(pub(super) Vec<Exclusion>);

impl<'de> Deserialize<'de> for Exclude {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor;

        impl<'de> Visitor<'de> for ListVisitor {
            type Value = Exclude;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list, each entry on a line of its own after `- `: {EXPECTED}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Exclude, A::Error> {
                let mut list = Vec::new();
                while let Some(entry) = seq.next_element_seed(NewEntry { known: &list })? {
                    if list.len() == MAX_ENTRIES {
                        return Err(too_many());
                    }
                    list.push(entry);
                }
                Ok(Exclude(list))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Exclude, E> {
                Ok(Exclude::default())
            }
        }

        deserializer.deserialize_any(ListVisitor)
    }
}

/// An entry that the list does not have yet.
struct NewEntry<'a> {
    known: &'a [Exclusion],
}

impl<'de> DeserializeSeed<'de> for NewEntry<'_> {
    type Value = Exclusion;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Exclusion, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl NewEntry<'_> {
    fn unless_known<E: de::Error>(&self, entry: Exclusion) -> Result<Exclusion, E> {
        if self.known.contains(&entry) {
            return Err(E::custom(format_args!("{entry} is listed twice: leave one out")));
        }
        Ok(entry)
    }
}

impl<'de> Visitor<'de> for NewEntry<'_> {
    type Value = Exclusion;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Exclusion, E> {
        let entry = if text.contains('/') || text.contains("-usb") {
            ConfiguredPort::read(text)
                .map(|port| Exclusion::Port(port.0))
                .map_err(|problem| format!("{problem}; write {}", ConfiguredPort::EXPECTED))
        } else {
            model(text).ok_or_else(|| format!("is nothing to exclude; write {EXPECTED}"))
        };
        let entry = entry.map_err(|problem| E::custom(format_args!("`{text}` {problem}")))?;
        self.unless_known(entry)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Exclusion, A::Error> {
        let Some(key) = map.next_key_seed(Text(Word { what: "`class` or `serial`" }))? else {
            return Err(de::Error::invalid_length(0, &self));
        };
        let entry = match key.as_str() {
            "class" => Exclusion::Class(map.next_value_seed(Text(ClassCode))?),
            "serial" => {
                let what = "a serial number, as in the file `serial` of the device in sysfs";
                Exclusion::Serial(map.next_value_seed(Text(Word { what }))?)
            }
            _ => return Err(de::Error::unknown_field(&key, &["class", "serial"])),
        };
        if let Some(second) = map.next_key_seed(Text(Word { what: "nothing more" }))? {
            return Err(de::Error::custom(format_args!(
                "`{second}` in the same entry as `{key}`: give each an entry of its own, after `- `"
            )));
        }
        self.unless_known(entry)
    }
}

/// Vendor and product id, four hexadecimal digits each as `lsusb` has them.
fn model(text: &str) -> Option<Exclusion> {
    let id = |text: &str| {
        let hex = text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex.then(|| u16::from_str_radix(text, 16).ok()).flatten()
    };
    let (vendor_id, product_id) = text.split_once(':')?;
    Some(Exclusion::Model { vendor_id: id(vendor_id)?, product_id: id(product_id)? })
}

/// A scalar's text as it stands there, so that a serial number `0012` keeps its zeros.
struct Word {
    what: &'static str,
}

impl Visitor<'_> for Word {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        match text.trim() {
            "" => Err(E::invalid_length(0, &self)),
            text => Ok(text.to_owned()),
        }
    }
}

/// A class: its name, or its code in the two hexadecimal digits of sysfs. One digit or three would
/// leave open whether `lsusb -v` was copied, which prints it decimal.
struct ClassCode;

impl Visitor<'_> for ClassCode {
    type Value = u8;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = CLASS_NAMES.map(|(name, _)| name).join(", ");
        write!(f, "a class as two hexadecimal digits, such as 08, or one of {names}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u8, E> {
        let named = CLASS_NAMES.iter().find(|(name, _)| *name == text).map(|(_, code)| *code);
        let hex = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let code = || hex.then(|| u8::from_str_radix(text, 16).ok()).flatten();
        named.or_else(code).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::parse::parse;
    use proptest::prelude::*;

    const VM: &str = "virtual_machines:\n  w:\n    socket: /s\n    ports: [/devices/x/usb1/1-1]\n";

    #[test]
    fn entries_are_read_for_one_machine_and_for_all() {
        let text = format!(
            "exclude: [0627:0001, class: storage, /devices/x/usb1/1-1/1-1.2]\n{VM}    exclude:\n      \
             - class: 03\n      - serial: 0012\n      - 1234:ABCD\n      - class: 10\n"
        );
        let config = parse(&text).unwrap();
        let told = |list: &[super::Exclusion]| {
            list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
        };
        assert_eq!(told(&config.exclude), "0627:0001 | class: 08 | /devices/x/usb1/1-1/1-1.2");
        let own = "class: 03 | serial: 0012 | 1234:abcd | class: 10";
        assert_eq!(told(&config.virtual_machines[0].exclude), own);
        assert!(parse(&format!("exclude:\n{VM}")).unwrap().exclude.is_empty());
    }

    #[test]
    fn each_fault_is_told_with_its_place() {
        for (entry, place, hints) in [
            ("0627", "6:9", ["0627", "`class: 08`"]),
            ("627:1", "6:9", ["`627:1`", "`0627:0001`"]),
            ("8", "6:9", ["8", "`class: 08`"]),
            ("class: 8", "6:16", ["\"8\"", "08"]),
            ("class: 0x08", "6:16", ["0x08", "two hexadecimal digits"]),
            ("class: disk", "6:16", ["disk", "storage"]),
            ("klass: 08", "6:9", ["klass", "`class` or `serial`"]),
            ("serial: ''", "6:17", ["serial number", "sysfs"]),
            ("{}", "6:9", ["length 0", "`class: 08`"]),
            ("/devices/x/1-1:1.0", "6:9", ["1-1:1.0", "DEVPATH"]),
            ("/sys/devices/x/usb1/1-1", "6:9", ["/sys", "leaves out"]),
            ("[0627:0001]", "6:9", ["sequence", "`class: 08`"]),
            ("0627:0001\n      - 0627:0001", "7:9", ["listed twice", "leave one out"]),
            ("class: 08\n        serial: X", "6:9", ["`serial`", "an entry of its own"]),
        ] {
            let said =
                parse(&format!("{VM}    exclude:\n      - {entry}\n")).unwrap_err().to_string();
            let told = said.starts_with(&format!("{place}: ")) && said.lines().count() == 1;
            assert!(told && hints.iter().all(|hint| said.contains(hint)), "{entry}: {said}");
        }
        let said = parse(&format!("{VM}    exclude: 0627:0001\n")).unwrap_err().to_string();
        assert!(said.starts_with("5:14: ") && said.contains("a list"), "{said}");
    }

    proptest! {
        #[test]
        fn what_is_printed_can_be_read_again(vendor: u16, product: u16, class: u8) {
            let text = format!("exclude: ['{vendor:04x}:{product:04x}', class: '{class:02x}']\n");
            let config = parse(&text).unwrap();
            let again: Vec<String> = config.exclude.iter().map(ToString::to_string).collect();
            let text = format!("exclude:\n- {}\n- {}\n", again[0], again[1]);
            prop_assert_eq!(parse(&text), Ok(config));
        }
    }
}
