//! YAML text to [`Config`], with one located error for what is wrong in it. Pure.
//!
//! What is wrong is refused while it is read, so that the YAML reader knows the line and column.

mod access;
mod domain;
mod exclude;
mod limits;

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use self::access::{ConfiguredUser, ConfiguredWay};
use self::domain::Domain;
use self::exclude::Exclude;
use self::limits::{MOST_ENTRIES, is_deeply_nested, too_many};
use super::access::{Access, Way};
use super::port::PortName;
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
    companions: Option<Switch>,
    exclude: Option<Exclude>,
    hands_off: Option<Switch>,
    access: Option<ConfiguredWay>,
    user: Option<ConfiguredUser>,
    trust_socket_folder: Option<Switch>,
    reclaim: Option<Switch>,
    ports: List<ConfiguredPort>,
}

impl Fields {
    /// The machine, still without a name.
    fn checked<E: de::Error>(self) -> Result<VirtualMachine, E> {
        let way = match self.access.map(|way| way.0).unwrap_or_default() {
            // libvirt gives QEMU no device's node that it does not know of.
            Way::Auto if self.domain.is_some() => Way::Fd,
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
            companions: self.companions.is_none_or(|switch| switch.0),
            exclude: self.exclude.unwrap_or_default().0,
            hands_off: self.hands_off.is_none_or(|switch| switch.0),
            ports: self.ports.0.into_iter().map(|port| port.0).collect(),
            reclaim: self.reclaim.is_some_and(|switch| switch.0),
            access: Access {
                way,
                user: self.user.map(|user| user.0),
                trust_socket_folder: self.trust_socket_folder.is_some_and(|switch| switch.0),
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
                     perhaps `delay:`, `timeout:`, `hubs:`, `companions:`, `exclude:`, \
                     `hands_off:`, `reclaim:`, `access:`, `user:` and `trust_socket_folder:`",
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
        while let Some(name) = map.next_key_seed(NewName { known: &vms })? {
            let Unnamed(vm) = map.next_value()?;
            if vms.len() == MOST_ENTRIES {
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

impl<'de> DeserializeSeed<'de> for NewName<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
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

/// A value that is written as one YAML scalar.
trait Scalar: Sized + PartialEq + fmt::Display {
    /// What is to be written, for error messages.
    const EXPECTED: &str;
    fn read(text: &str) -> Result<Self, String>;
    /// Whether a list with one of them needs no other.
    fn is_same(&self, other: &Self) -> bool {
        self == other
    }
}

/// A list of scalars with at least one element and none twice.
struct List<T>(Vec<T>);

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
                while let Some(entry) = seq.next_element_seed(NewEntry { known: &list })? {
                    if list.len() == MOST_ENTRIES {
                        return Err(too_many());
                    }
                    list.push(entry);
                }
                if list.is_empty() {
                    return Err(de::Error::invalid_length(0, &self));
                }
                Ok(List(list))
            }

            fn visit_unit<E: de::Error>(self) -> Result<List<T>, E> {
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

impl<'de, T: Scalar> DeserializeSeed<'de> for NewEntry<'_, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_str(self)
    }
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
struct Socket(PathBuf);

impl Scalar for Socket {
    const EXPECTED: &str = "the absolute path of QEMU's QMP socket, such as /run/vm/windows.qmp";

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
        NewEntry { known: &[] }.deserialize(deserializer)
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())
    }
}

/// An entry of `hubs:`: a USB bus of the guest.
#[derive(PartialEq)]
struct Bus(String);

impl Scalar for Bus {
    const EXPECTED: &str =
        "the name of a USB bus of the guest, such as xhci0.0 (the controller's id and `.0`)";

    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty()
            || text.chars().any(|character| character.is_whitespace() || character.is_control())
        {
            return Err("is no name of a bus".to_owned());
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
struct ConfiguredPort(PortName);

impl Scalar for ConfiguredPort {
    const EXPECTED: &str = "a port's name, such as pci-0000:00:14.0/usb2:3, or its DEVPATH, such \
        as /devices/pci0000:00/0000:00:14.0/usb3/3-3";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error| format!("{error}"))
    }

    fn is_same(&self, other: &Self) -> bool {
        self.0.is_same(&other.0)
    }
}

impl fmt::Display for ConfiguredPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `true` or `false`.
struct Switch(bool);

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
struct Seconds<const MIN: u64, const MAX: u64>(Duration);

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXAMPLE: &str = include_str!("../../config.yaml");

    fn config(vm: &str) -> String {
        format!("virtual_machines:\n  windows:\n{vm}")
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_example_parses() {
        let config = parse(EXAMPLE).unwrap();
        assert!(!config.virtual_machines.is_empty());
    }

    #[test]
    fn the_originals_file_parses_as_it_is() {
        let config = parse(
            "virtual_machines:\n\n  windows:\n    socket: /home/user/vm/windows/qmp-sock\n    delay: 1\n    \
             hubs:\n      - xhci0.0\n      - xhci1.0\n    ports:\n      \
             - /devices/pci0000:00/0000:00:14.0/usb3/3-3\n      - /devices/pci0000:00/0000:00:14.0/usb4/4-3\n",
        )
        .unwrap();
        let vm = &config.virtual_machines[0];
        assert_eq!(vm.name, "windows");
        assert_eq!(vm.delay, Duration::from_secs(1));
        assert_eq!(vm.hubs, ["xhci0.0", "xhci1.0"]);
        assert_eq!(vm.ports.len(), 2);
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let vm = "    socket: /run/qmp\n    ports: [/devices/x/usb1/1-1]\n";
        let vm = parse(&config(vm)).unwrap().virtual_machines.remove(0);
        assert_eq!((vm.delay, vm.timeout), (Duration::from_secs(1), Duration::from_secs(5)));
        assert!(vm.hubs.is_empty() && vm.companions);
        assert!(vm.exclude.is_empty() && vm.hands_off && !vm.reclaim);
        for (delay, millis) in [("0", 0), ("0.25", 250), ("\"2\"", 2000), ("120", 120_000)] {
            let vm = format!(
                "    socket: /run/qmp\n    delay: {delay}\n    ports: [/devices/x/usb1/1-1]\n"
            );
            let vm = parse(&config(&vm)).unwrap().virtual_machines.remove(0);
            assert_eq!(vm.delay, Duration::from_millis(millis));
        }
    }

    #[test]
    fn nothing_configured_is_no_error() {
        for text in ["", "# nothing\n", "virtual_machines:\n", "virtual_machines: {}\n"] {
            assert_eq!(parse(text), Ok(Config::default()), "{text:?}");
        }
    }

    #[test]
    fn a_whole_root_hub_may_be_a_port() {
        let vm = "    socket: /run/qmp\n    ports: [/devices/x/usb1]\n";
        assert!(parse(&config(vm)).is_ok());
    }

    /// Each fault gets one line that says where it is and what to write instead.
    #[test]
    fn each_fault_is_told_with_its_place() {
        let ok = "    socket: /run/qmp\n    ports: [/devices/x/usb1/1-1]\n";
        untold([
            (config(&format!("{ok}    dellay: 1\n")), "5:5", ["dellay", "`delay`"]),
            (
                config(&format!("{ok}  windows:\n{ok}")),
                "5:3",
                ["`windows` is defined twice", "another name"],
            ),
            (config(&format!("{ok}    delay: soon\n")), "5:12", ["soon", "such as 1 or 0.5"]),
            (config(&format!("{ok}    delay: -1\n")), "5:12", ["-1", "from 0 to 120"]),
            (config(&format!("{ok}    delay: .nan\n")), "5:12", ["NaN", "such as 1 or 0.5"]),
            (config(&format!("{ok}    timeout: 0\n")), "5:14", ["0", "from 0.1 to 60"]),
            (config(&format!("{ok}    hubs: xhci0.0\n")), "5:11", ["a list", "xhci0.0"]),
            (
                config(&format!("{ok}    hubs: [a.0, a.0]\n")),
                "5:17",
                ["a.0 is listed twice", "leave one out"],
            ),
            (config(&format!("{ok}    hands_off: no\n")), "5:16", ["no", "`true` or `false`"]),
            (config("    socket: /run/qmp\n    ports:\n"), "4:11", ["a list", "/devices/"]),
            (config("    socket: /run/qmp\n    ports: []\n"), "4:12", ["a list", "/devices/"]),
            (config("    socket: /run/qmp\n    ports: [3-3]\n"), "4:13", ["`3-3`", "/devices/"]),
            (config("    socket: /run/qmp\n    ports: [7]\n"), "4:13", ["7", "DEVPATH"]),
            (
                config("    socket: /run/qmp\n    ports: [/sys/devices/x/usb1/1-1]\n"),
                "4:13",
                ["/sys", "leaves out"],
            ),
            (
                config("    socket: /run/qmp\n    ports: [/devices/x/usb1/1-1:1.0]\n"),
                "4:13",
                ["1-1:1.0", "USB port"],
            ),
            (
                config("    socket: /run/qmp\n    ports: [/devices/x/usb1/1-1.4]\n"),
                "4:13",
                ["before 1-1.4", "must be 1-1"],
            ),
            (
                config(
                    "    socket: /run/qmp\n    ports:\n      - /devices/x/usb1/1-1\n      - /devices/x/usb1/1-1\n",
                ),
                "6:9",
                ["listed twice", "leave one out"],
            ),
            (
                config("    socket: qmp\n    ports: [/devices/x/usb1/1-1]\n"),
                "3:13",
                ["`qmp`", "absolute path"],
            ),
            (config("    ports: [/devices/x/usb1/1-1]\n"), "3:5", ["missing field", "socket"]),
            (config("    socket: /run/qmp\n"), "3:5", ["missing field", "ports"]),
            (
                "virtual_machines: [windows]\n".to_owned(),
                "1:19",
                ["the virtual machines", "a name and a colon"],
            ),
            ("- windows\n".to_owned(), "1:1", ["sequence", "`virtual_machines:`"]),
            (
                "virtual_machines:\n  windows: /run/qmp\n".to_owned(),
                "2:12",
                ["string", "`ports:`, and perhaps"],
            ),
            ("vms:\n".to_owned(), "1:1", ["vms", "virtual_machines"]),
            ("virtual_machines:\n\twindows:\n".to_owned(), "2:1", ["token", "tab"]),
        ]);
    }

    #[test]
    fn each_fault_of_names_and_companions_is_told_with_its_place() {
        let ok = "    socket: /run/qmp\n    ports: [/devices/x/usb1/1-1]\n";
        untold([
            (config(&format!("{ok}    companions: no\n")), "5:17", ["\"no\"", "`true` or `false`"]),
            (
                config("    socket: /run/qmp\n    ports: [pci-0000:00:14.0/usb9:1]\n"),
                "4:13",
                ["usb1, usb2 or usb3", "pci-0000:00:14.0/usb2:3"],
            ),
            (
                config("    socket: /s\n    ports: [pci-a/usb2:1, pci-a-usbv2-0:1]\n"),
                "4:27",
                ["pci-a/usb2:1 is listed twice", "leave one out"],
            ),
            (
                config("    socket: /s\n    ports: [/devices/a/usb1/1-1, pci-a-usb-0:1]\n"),
                "4:34",
                ["pci-a-usb-0:1 is listed twice", "also as /devices/a/usb1/1-1"],
            ),
        ]);
    }

    /// Fails with all faults that are told otherwise than at this place with these words.
    fn untold<const FAULTS: usize>(faults: [(String, &str, [&str; 2]); FAULTS]) {
        let mut untold = Vec::new();
        for (text, place, hints) in faults {
            let said = error(&text);
            let told = said.starts_with(&format!("{place}: "))
                && hints.iter().all(|hint| said.contains(hint))
                && said.lines().count() == 1;
            if !told {
                untold.push(format!("{text}{said}\nwanted {place} {hints:?}"));
            }
        }
        assert!(untold.is_empty(), "{}", untold.join("\n\n"));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,200}") {
            let _ = parse(&text);
        }
    }
}
