//! YAML text to [`Config`], with one located error for what is wrong in it. Pure.
//!
//! What is wrong is refused while it is read, so that the YAML reader knows the line and column.

mod access;
mod domain;
mod exclude;
mod limits;
mod list;
mod values;

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use self::access::{ConfiguredUser, ConfiguredWay};
use self::domain::Domain;
use self::exclude::Exclude;
use self::limits::{MAX_ENTRIES, is_deeply_nested, too_many};
use self::list::{List, Text};
use self::values::{Bus, ConfiguredPort, Seconds, Socket, Switch};
use super::access::{Access, AccessMode};
use super::{Config, VirtualMachine};
use crate::libvirt;

/// What is wrong with a config, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The line, from 1; none if the error is of the whole text.
    pub line: Option<usize>,
    /// The column, from 1.
    pub column: Option<usize>,
    /// What is wrong and what to write instead.
    pub message: String,
}

/// Parses the text of a config file.
pub fn parse(text: &str) -> Result<Config, ConfigError> {
    if is_deeply_nested(text) {
        let message = "too many brackets within brackets".to_owned();
        return Err(ConfigError { line: None, column: None, message });
    }
    let file: Option<File> =
        serde_yaml::from_str(text).map_err(|error| ConfigError::new(&error, text))?;
    let File { virtual_machines, exclude } = file.unwrap_or_default();
    Ok(Config {
        virtual_machines: virtual_machines.unwrap_or_default().0,
        exclude: exclude.unwrap_or_default().0,
    })
}

/// Keys that had other names before the first release.
const RENAMED_KEYS: [(&str, &str); 4] = [
    ("hands_off", "unbind_host_drivers"),
    ("companions", "peer_ports"),
    ("reclaim", "return_to_host"),
    ("trust_socket_folder", "trust_socket_directory"),
];

impl ConfigError {
    fn new(error: &serde_yaml::Error, text: &str) -> Self {
        let location = error.location();
        let mut message = error.to_string();
        if let Some(location) = &location {
            let suffix = format!(" at line {} column {}", location.line(), location.column());
            message = message.replace(&suffix, "");
            let line = text.lines().nth(location.line().saturating_sub(1)).unwrap_or_default();
            if line.trim_start_matches(' ').starts_with('\t') {
                message.push_str(": indent with spaces, YAML allows no tab there");
            }
        }
        for (old, new) in RENAMED_KEYS {
            if let Some((before, _)) = message.split_once(&format!("unknown field `{old}`")) {
                message = format!("{before}`{old}` is now called `{new}`; rename the key");
            }
        }
        Self {
            line: location.as_ref().map(serde_yaml::Location::line),
            column: location.as_ref().map(serde_yaml::Location::column),
            message,
        }
    }
}

impl fmt::Display for ConfigError {
    /// `LINE:COLUMN: MESSAGE`, to be put after the file's name and a colon.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

#[derive(Default, serde::Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "`virtual_machines:`, and the virtual machines indented below it"
)]
struct File {
    virtual_machines: Option<VirtualMachines>,
    exclude: Option<Exclude>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    socket: Option<Socket>,
    domain: Option<Domain>,
    delay: Option<Seconds<0, 120_000>>,
    timeout: Option<Seconds<100, 60_000>>,
    hubs: Option<List<Bus>>,
    peer_ports: Option<Switch>,
    exclude: Option<Exclude>,
    unbind_host_drivers: Option<Switch>,
    access: Option<ConfiguredWay>,
    user: Option<ConfiguredUser>,
    trust_socket_directory: Option<Switch>,
    return_to_host: Option<Switch>,
    ports: List<ConfiguredPort>,
}

impl Fields {
    /// The machine, still without a name.
    fn checked<E: de::Error>(self) -> Result<VirtualMachine, E> {
        let way = match self.access.map(|way| way.0).unwrap_or_default() {
            // libvirt gives QEMU no device's node that it does not know of.
            AccessMode::Auto if self.domain.is_some() => AccessMode::Fd,
            way => way,
        };
        let socket = match (self.socket, self.domain) {
            (Some(socket), None) => socket.0,
            (None, Some(domain)) => libvirt::running(&domain.0),
            (None, None) => return Err(E::missing_field("socket")),
            (Some(_), Some(_)) => {
                return Err(E::custom("both `socket:` and `domain:`: leave one out"));
            }
        };
        Ok(VirtualMachine {
            name: String::new(),
            socket,
            delay: self.delay.map_or(VirtualMachine::DEFAULT_DELAY, |seconds| seconds.0),
            timeout: self.timeout.map_or(VirtualMachine::DEFAULT_TIMEOUT, |seconds| seconds.0),
            hubs: self
                .hubs
                .map(|hubs| hubs.0.into_iter().map(|bus| bus.0).collect())
                .unwrap_or_default(),
            peer_ports: self.peer_ports.is_none_or(|switch| switch.0),
            exclude: self.exclude.unwrap_or_default().0,
            unbind_host_drivers: self.unbind_host_drivers.is_none_or(|switch| switch.0),
            ports: self.ports.0.into_iter().map(|port| port.0).collect(),
            return_to_host: self.return_to_host.is_some_and(|switch| switch.0),
            access: Access {
                way,
                user: self.user.map(|user| user.0),
                trust_socket_directory: self.trust_socket_directory.is_some_and(|switch| switch.0),
            },
        })
    }
}

/// A virtual machine without its name.
struct Unnamed(VirtualMachine);

impl<'de> Deserialize<'de> for Unnamed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UnnamedVisitor;

        impl<'de> Visitor<'de> for UnnamedVisitor {
            type Value = Unnamed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "the keys of a virtual machine: `socket:` (or `domain:`) and `ports:`, and \
                     perhaps `delay:`, `timeout:`, `hubs:`, `peer_ports:`, `exclude:`, \
                     `unbind_host_drivers:`, `return_to_host:`, `access:`, `user:` and `trust_socket_directory:`",
                )
            }

            // Checked in here, where the YAML reader knows the place.
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Unnamed, A::Error> {
                Fields::deserialize(MapAccessDeserializer::new(map))?.checked().map(Unnamed)
            }
        }

        deserializer.deserialize_map(UnnamedVisitor)
    }
}

#[derive(Default)]
struct VirtualMachines(Vec<VirtualMachine>);

impl<'de> Deserialize<'de> for VirtualMachines {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(VirtualMachinesVisitor)
    }
}

struct VirtualMachinesVisitor;

impl<'de> Visitor<'de> for VirtualMachinesVisitor {
    type Value = VirtualMachines;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the virtual machines: a name and a colon, and their keys indented below it")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VirtualMachines, A::Error> {
        let mut vms: Vec<VirtualMachine> = Vec::new();
        while let Some(name) = map.next_key_seed(Text(NewName { known: &vms }))? {
            let Unnamed(vm) = map.next_value()?;
            if vms.len() == MAX_ENTRIES {
                return Err(too_many());
            }
            vms.push(VirtualMachine { name, ..vm });
        }
        Ok(VirtualMachines(vms))
    }
}

/// A virtual machine's name that is not among the known ones: YAML would let the last one win.
struct NewName<'a> {
    known: &'a [VirtualMachine],
}

impl Visitor<'_> for NewName<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a virtual machine's name")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<String, E> {
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(E::custom("a virtual machine needs a name of printable characters"));
        }
        if self.known.iter().any(|vm| vm.name == name) {
            return Err(E::custom(format_args!(
                "virtual machine `{name}` is defined twice: give one of them another name"
            )));
        }
        Ok(name.to_owned())
    }
}

#[cfg(test)]
mod tests;
