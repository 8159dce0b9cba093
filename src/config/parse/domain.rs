//! `domain:`. Pure.

use std::fmt;

use serde::de::{Deserialize, Deserializer};

use super::list::{Scalar, single};

/// The name of a machine of libvirt's.
#[derive(PartialEq)]
pub(super) struct Domain(pub(super) String);

impl Scalar for Domain {
    const EXPECTED: &str = "the name of a domain of libvirt's, as `virsh list --all` has it";

    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty()
            || text.len() > 200
            || text.contains('/')
            || text.contains(char::is_control)
        {
            return Err("is no name of a domain".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Domain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        single(deserializer)
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::access::AccessMode;
    use crate::config::parse::parse;
    use crate::libvirt;

    fn text(keys: &str) -> String {
        format!("virtual_machines:\n  w:\n    ports: [/devices/x/usb1/1-1]\n{keys}")
    }

    #[test]
    fn a_domain_takes_the_place_of_the_socket() {
        let config = parse(&text("    domain: windows 11\n")).unwrap();
        assert_eq!(config.virtual_machines[0].socket, libvirt::running("windows 11"));
        assert_eq!(config.virtual_machines[0].access.way, AccessMode::Fd);
        for (keys, hint) in [
            ("", "missing field `socket`"),
            ("    domain: a/b\n", "4:13: "),
            ("    domain: ''\n", "is no name of a domain"),
            ("    domain: w\n    socket: /run/w\n", "leave one out"),
        ] {
            let said = parse(&text(keys)).unwrap_err().to_string();
            assert!(said.contains(hint) && said.lines().count() == 1, "{said}");
            assert!(said.starts_with(|digit: char| digit.is_ascii_digit()), "{said}");
        }
    }
}
