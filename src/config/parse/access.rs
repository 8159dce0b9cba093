//! `access:` and `user:`. Pure.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};

use crate::config::access::{AccessMode, User};

/// An `access:`.
pub(super) struct ConfiguredWay(pub(super) AccessMode);

impl<'de> Deserialize<'de> for ConfiguredWay {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WayVisitor;

        impl Visitor<'_> for WayVisitor {
            type Value = ConfiguredWay;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "`auto`, `fd` (hotplugger opens the device for QEMU) or `node` (QEMU does)",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ConfiguredWay, E> {
                match text {
                    "auto" => Ok(ConfiguredWay(AccessMode::Auto)),
                    "fd" => Ok(ConfiguredWay(AccessMode::Fd)),
                    "node" => Ok(ConfiguredWay(AccessMode::Node)),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }
        }

        deserializer.deserialize_any(WayVisitor)
    }
}

/// A `user:`.
pub(super) struct ConfiguredUser(pub(super) User);

impl<'de> Deserialize<'de> for ConfiguredUser {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UserVisitor;

        impl Visitor<'_> for UserVisitor {
            type Value = ConfiguredUser;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the user whom QEMU is run by, as name or number: libvirt-qemu")
            }

            fn visit_u64<E: de::Error>(self, id: u64) -> Result<ConfiguredUser, E> {
                match u32::try_from(id) {
                    Ok(id) if id != u32::MAX => Ok(ConfiguredUser(User::Id(id))),
                    _ => Err(E::invalid_value(de::Unexpected::Unsigned(id), &self)),
                }
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<ConfiguredUser, E> {
                let fits =
                    |character: char| character.is_ascii_graphic() && !":/".contains(character);
                // A number in quotes is meant as one: no name is all digits.
                if let Ok(id) = name.parse() {
                    self.visit_u64(id)
                } else if !name.is_empty() && name.len() <= 256 && name.chars().all(fits) {
                    Ok(ConfiguredUser(User::Name(name.to_owned())))
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(name), &self))
                }
            }
        }

        deserializer.deserialize_any(UserVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::access::Access;
    use crate::config::parse::parse;

    fn access(keys: &str) -> Result<Access, String> {
        let vm = format!("    socket: /s\n    ports: [/devices/x/usb1/1-1]\n{keys}");
        let config = parse(&format!("virtual_machines:\n  windows:\n{vm}"));
        let mut config = config.map_err(|error| error.to_string())?;
        Ok(config.virtual_machines.remove(0).access)
    }

    #[test]
    fn each_way_and_form_of_a_user_is_read() {
        assert_eq!(access(""), Ok(Access::default()));
        let way = |text: &str| access(&format!("    access: {text}\n")).map(|access| access.way);
        assert_eq!(
            ["auto", "fd", "node"].map(way),
            [AccessMode::Auto, AccessMode::Fd, AccessMode::Node].map(Ok)
        );
        let user = |text: &str| access(&format!("    user: {text}\n")).unwrap().user.unwrap();
        assert_eq!(user("libvirt-qemu"), User::Name("libvirt-qemu".to_owned()));
        assert_eq!(user("64055"), User::Id(64055));
        assert_eq!(user("\"0\""), User::Id(0));
        assert!(access("    trust_socket_directory: true\n").unwrap().trust_socket_directory);
    }

    #[test]
    fn what_they_cannot_be_is_told_with_its_place() {
        for (keys, hints) in [
            ("    access: none\n", ["5:13: ", "`auto`, `fd`"]),
            ("    access: [fd]\n", ["5:13: ", "`auto`, `fd`"]),
            ("    user: -1\n", ["5:11: ", "name or number"]),
            ("    user: 4294967295\n", ["5:11: ", "name or number"]),
            ("    user: two words\n", ["5:11: ", "name or number"]),
            ("    user: a:b\n", ["5:11: ", "name or number"]),
            ("    trust_socket_directory: yes\n", ["5:29: ", "`true` or `false`"]),
        ] {
            let said = access(keys).unwrap_err();
            assert!(hints.iter().all(|hint| said.contains(hint)), "{keys}{said}");
            assert_eq!(said.lines().count(), 1);
        }
    }
}
