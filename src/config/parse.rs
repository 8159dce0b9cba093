//! YAML text to [`Config`], with one error that has its place. Pure.
//!
//! What is wrong is refused while it is read, so that the YAML reader knows the line and column.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{Config, VirtualMachine};
use crate::config::access::{Access, AccessMode, User};
use crate::config::exclude::{CLASS_NAMES, Exclusion};
use crate::config::port::PortName;
use crate::monitor::Monitor;

/// What is wrong with a config, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The line, from 1. `None` if the error concerns the whole text.
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
    /// `LINE:COLUMN: MESSAGE`, to follow the file's name and a colon.
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
    access: Option<ConfiguredMode>,
    user: Option<ConfiguredUser>,
    trust_socket_directory: Option<Switch>,
    return_to_host: Option<Switch>,
    ports: List<ConfiguredPort>,
}

impl Fields {
    /// The machine, still without a name.
    fn checked<E: de::Error>(self) -> Result<VirtualMachine, E> {
        let mode = match self.access.map(|mode| mode.0).unwrap_or_default() {
            // libvirt gives QEMU no device's node that it does not know of.
            AccessMode::Auto if self.domain.is_some() => AccessMode::Fd,
            mode => mode,
        };
        let monitor = match (self.socket, self.domain) {
            (Some(socket), None) => Monitor::Socket(socket.0),
            (None, Some(domain)) => Monitor::Domain(domain.0),
            (None, None) => return Err(E::missing_field("socket")),
            (Some(_), Some(_)) => {
                return Err(E::custom("both `socket:` and `domain:`: leave one out"));
            }
        };
        let delay = self.delay.map_or(VirtualMachine::DEFAULT_DELAY, |seconds| seconds.0);
        let timeout = self.timeout.map_or(VirtualMachine::DEFAULT_TIMEOUT, |seconds| seconds.0);
        if delay + timeout > VirtualMachine::MAX_DELAY_AND_TIMEOUT {
            return Err(E::custom(format_args!(
                "`delay:` and `timeout:` add up to {} s: write at most {} s, because udev ends a call \
                 after 180 s",
                (delay + timeout).as_secs_f64(),
                VirtualMachine::MAX_DELAY_AND_TIMEOUT.as_secs()
            )));
        }
        Ok(VirtualMachine {
            name: String::new(),
            monitor,
            delay,
            timeout,
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
                mode,
                user: self.user.map(|user| user.0),
                trust_socket_directory: self.trust_socket_directory.is_some_and(|switch| switch.0),
            },
        })
    }
}

/// A VM without its name.
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

/// A VM's name that is not among the known ones: YAML would let the last one win.
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

/// No list is longer: each entry is compared with those before it, and no host has more ports.
const MAX_ENTRIES: usize = 255;

/// The error of a list with more.
fn too_many<E: de::Error>() -> E {
    E::custom(format_args!("more than {MAX_ENTRIES} entries: no host has so many ports"))
}

/// Whether far more brackets are open somewhere than any config has: for each further one the YAML
/// reader visits all that are, so that 1 MiB of them would take it minutes. Those in comments and
/// strings count as well, they are few.
fn is_deeply_nested(text: &str) -> bool {
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

/// Reads one scalar as text, whatever YAML would take it for.
struct Text<V>(pub(super) V);

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Text<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        deserializer.deserialize_str(self.0)
    }
}

/// One scalar that is in no list.
fn single<'de, T: Scalar, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_str(NewEntry { known: &[] })
}

/// A value that is written as one YAML scalar.
trait Scalar: Sized + PartialEq + fmt::Display {
    /// What is to be written, for error messages.
    const EXPECTED: &str;
    fn read(text: &str) -> Result<Self, String>;
    /// Whether a list of them may be empty.
    const MAY_BE_NONE: bool = false;
    /// Whether a list with one of them needs no other.
    fn is_same(&self, other: &Self) -> bool {
        self == other
    }
}

/// A list of scalars with none twice.
struct List<T>(pub(super) Vec<T>);

impl<'de, T: Scalar> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor<T>(PhantomData<T>);

        impl<'de, T: Scalar> Visitor<'de> for ListVisitor<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list, each entry on a line of its own after `- `: {}", T::EXPECTED)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<List<T>, A::Error> {
                let mut list = Vec::new();
                while let Some(entry) = seq.next_element_seed(Text(NewEntry { known: &list }))? {
                    if list.len() == MAX_ENTRIES {
                        return Err(too_many());
                    }
                    list.push(entry);
                }
                if list.is_empty() && !T::MAY_BE_NONE {
                    return Err(de::Error::invalid_length(0, &self));
                }
                Ok(List(list))
            }

            fn visit_unit<E: de::Error>(self) -> Result<List<T>, E> {
                if T::MAY_BE_NONE {
                    return Ok(List(Vec::new()));
                }
                Err(E::invalid_length(0, &self))
            }
        }

        deserializer.deserialize_any(ListVisitor(PhantomData))
    }
}

/// An entry that its list does not have yet.
struct NewEntry<'a, T> {
    known: &'a [T],
}

impl<T: Scalar> Visitor<'_> for NewEntry<'_, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        let entry = T::read(text).map_err(|problem| {
            E::custom(format_args!("`{text}` {problem}; write {}", T::EXPECTED))
        })?;
        match self.known.iter().find(|known| known.is_same(&entry)) {
            Some(known) if *known == entry => {
                Err(E::custom(format_args!("{entry} is listed twice: leave one out")))
            }
            Some(known) => Err(E::custom(format_args!(
                "{entry} is listed twice, also as {known}: leave one out"
            ))),
            None => Ok(entry),
        }
    }
}

/// A `socket:` path.
#[derive(PartialEq)]
struct Socket(pub(super) PathBuf);

impl Scalar for Socket {
    const EXPECTED: &str = "the absolute path of the QMP socket, such as /run/vm/windows.qmp";

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
struct Bus(pub(super) String);

impl Scalar for Bus {
    const EXPECTED: &str =
        "the name of a USB bus of the guest, such as xhci0.0 (the controller's id and `.0`)";

    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty()
            || text.chars().any(|character| character.is_whitespace() || character.is_control())
        {
            return Err("is not the name of a bus".to_owned());
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
struct ConfiguredPort(pub(super) PortName);

impl Scalar for ConfiguredPort {
    // Until `identify --write` fills them in.
    const MAY_BE_NONE: bool = true;
    const EXPECTED: &str = "a port's name, such as pci-0000:00:14.0/usb2:3, or its DEVPATH, such \
        as /devices/pci0000:00/0000:00:14.0/usb3/3-3";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error| format!("{error}"))
    }

    fn is_same(&self, other: &Self) -> bool {
        self.0.is_equivalent(&other.0)
    }
}

impl fmt::Display for ConfiguredPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `true` or `false`.
struct Switch(pub(super) bool);

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
struct Seconds<const MIN: u64, const MAX: u64>(pub(super) Duration);

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

/// The name of a libvirt domain.
#[derive(PartialEq)]
struct Domain(pub(super) String);

impl Scalar for Domain {
    const EXPECTED: &str = "the name of a libvirt domain, as `virsh list --all` prints it";

    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty()
            || text.len() > 200
            || text.contains('/')
            || text.contains(char::is_control)
        {
            return Err("is not the name of a domain".to_owned());
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

/// An `access:`.
struct ConfiguredMode(pub(super) AccessMode);

impl<'de> Deserialize<'de> for ConfiguredMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WayVisitor;

        impl Visitor<'_> for WayVisitor {
            type Value = ConfiguredMode;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "`auto`, `fd` (hotplugger opens the device for QEMU) or `node` (QEMU does)",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ConfiguredMode, E> {
                match text {
                    "auto" => Ok(ConfiguredMode(AccessMode::Auto)),
                    "fd" => Ok(ConfiguredMode(AccessMode::Fd)),
                    "node" => Ok(ConfiguredMode(AccessMode::Node)),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }
        }

        deserializer.deserialize_any(WayVisitor)
    }
}

/// A `user:`.
struct ConfiguredUser(pub(super) User);

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

const EXPECTED: &str = "`0627:0001` (vendor and product id), `class: 08`, `serial: XYZ` or a \
                        port's DEVPATH";

/// The list; an empty one is no error, as nothing has to be excluded.
#[derive(Default)]
struct Exclude(pub(super) Vec<Exclusion>);

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
                while let Some(entry) = seq.next_element_seed(NewExclusion { known: &list })? {
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
struct NewExclusion<'a> {
    known: &'a [Exclusion],
}

impl<'de> DeserializeSeed<'de> for NewExclusion<'_> {
    type Value = Exclusion;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Exclusion, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl NewExclusion<'_> {
    fn unless_known<E: de::Error>(&self, entry: Exclusion) -> Result<Exclusion, E> {
        if self.known.contains(&entry) {
            return Err(E::custom(format_args!("{entry} is listed twice: leave one out")));
        }
        Ok(entry)
    }
}

impl<'de> Visitor<'de> for NewExclusion<'_> {
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
mod tests;

#[cfg(test)]
mod limits_tests {
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

#[cfg(test)]
mod domain_tests {
    use crate::config::access::AccessMode;
    use crate::config::parse::parse;
    use crate::monitor::Monitor;

    fn text(keys: &str) -> String {
        format!("virtual_machines:\n  w:\n    ports: [/devices/x/usb1/1-1]\n{keys}")
    }

    #[test]
    fn a_domain_takes_the_place_of_the_socket() {
        let config = parse(&text("    domain: windows 11\n")).unwrap();
        assert_eq!(config.virtual_machines[0].monitor, Monitor::Domain("windows 11".to_owned()));
        assert_eq!(config.virtual_machines[0].access.mode, AccessMode::Fd);
        for (keys, hint) in [
            ("", "missing field `socket`"),
            ("    domain: a/b\n", "4:13: "),
            ("    domain: ''\n", "is not the name of a domain"),
            ("    domain: w\n    socket: /run/w\n", "leave one out"),
        ] {
            let said = parse(&text(keys)).unwrap_err().to_string();
            assert!(said.contains(hint) && said.lines().count() == 1, "{said}");
            assert!(said.starts_with(|digit: char| digit.is_ascii_digit()), "{said}");
        }
    }
}

#[cfg(test)]
mod access_tests {
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
        let mode = |text: &str| access(&format!("    access: {text}\n")).map(|access| access.mode);
        assert_eq!(
            ["auto", "fd", "node"].map(mode),
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

#[cfg(test)]
mod exclude_tests {
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
        let shown = |list: &[super::Exclusion]| {
            list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
        };
        assert_eq!(shown(&config.exclude), "0627:0001 | class: 08 | /devices/x/usb1/1-1/1-1.2");
        let own = "class: 03 | serial: 0012 | 1234:abcd | class: 10";
        assert_eq!(shown(&config.virtual_machines[0].exclude), own);
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
            let has_place = said.starts_with(&format!("{place}: ")) && said.lines().count() == 1;
            assert!(has_place && hints.iter().all(|hint| said.contains(hint)), "{entry}: {said}");
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
