//! YAML text to [`Config`], with one error that has its place. Pure.
//!
//! A mistake is an error while its value is read, so that the YAML reader knows the line and column.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::edit::key;
use super::usb_host::{self, UsbHostProperties};
use super::{CLASS_NAMES, Config, DeviceMatcher, DeviceRules, Spelling, VirtualMachine};
use crate::config::access::{Access, AccessMode, User};
use crate::config::port::PortName;
use crate::monitor::Monitor;
use crate::port::Port;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The line, from 1. `None` if the error concerns the whole text.
    pub line: Option<usize>,
    /// The column, from 1.
    pub column: Option<usize>,
    /// The line where the element began that the YAML reader could not read to its end, if it says so.
    pub begun: Option<usize>,
    pub message: String,
}

pub fn parse(text: &str) -> Result<Config, ConfigError> {
    if is_deeply_nested(text) {
        return Err(ConfigError::at(None, None, "too many brackets within brackets"));
    }
    // A byte order mark at the start is no text. It takes no column either.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some(error) = unreadable_character(text) {
        return Err(error);
    }
    let file: Option<File> =
        serde_yaml::from_str(text).map_err(|error| ConfigError::new(&error, text))?;
    let File { virtual_machines, exclude } = file.unwrap_or_default();
    Ok(Config {
        broken: Vec::new(),
        virtual_machines: virtual_machines.unwrap_or_default().0,
        exclude: exclude.unwrap_or_default().0,
    })
}

/// A character that editors and file transfers leave, and for which the YAML reader has no place or
/// another error.
fn unreadable_character(text: &str) -> Option<ConfigError> {
    for (index, line) in text.lines().enumerate() {
        let error = |column: usize, message: &str| {
            Some(ConfigError::at(Some(index + 1), Some(column + 1), message))
        };
        let indentation = line.chars().take_while(|character| character.is_whitespace());
        for (column, character) in indentation.enumerate() {
            if !matches!(character, ' ' | '\t' | '\r') {
                return error(column, "not a plain space: indent with spaces of the space bar");
            }
        }
        if let Some(column) = other_space_after_mark(line) {
            return error(column, "not a plain space: write a space of the space bar");
        }
        for (column, character) in line.chars().enumerate() {
            match character {
                '\u{feff}' => return error(column, "a byte order mark: delete this character"),
                '\t' | '\r' | '\u{85}' => {}
                '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => {
                    return error(column, "a control character: delete this character");
                }
                _ => {}
            }
        }
    }
    None
}

/// The column of a no-break space or the like right behind the line's `- ` or `key:`, where YAML needs a
/// plain one.
fn other_space_after_mark(line: &str) -> Option<usize> {
    let is_of_key = |c: char| c.is_ascii_alphanumeric() || "_-'\"".contains(c);
    let mut rest = line.trim_start_matches([' ', '-']);
    if rest.len() == line.trim_start_matches(' ').len() || rest.starts_with(is_of_key) {
        let after_key = rest.trim_start_matches(is_of_key);
        rest = after_key.strip_prefix(':').unwrap_or(rest);
    }
    let is_other = |c: char| c.is_whitespace() && !matches!(c, ' ' | '\t' | '\r' | '\u{85}');
    let before = line[..line.len() - rest.len()].chars().count();
    (before > 0 && rest.starts_with(is_other)).then_some(before)
}

/// The line and column of the second key of that name in the block mapping that begins there: the YAML
/// reader reports where the mapping begins.
fn second_key(text: &str, line: usize, column: usize, name: &str) -> Option<(usize, usize)> {
    let (first, indent) = (line.checked_sub(1)?, column.checked_sub(1)?);
    let mut found = false;
    for (index, text) in text.lines().enumerate().skip(first) {
        let (before, after) = text.split_at_checked(indent.min(text.len()))?;
        let is_in_mapping = before.bytes().all(|byte| byte == b' ') || index == first;
        if !is_in_mapping && !before.trim_start().starts_with('#') {
            return None;
        }
        if !after.starts_with(' ') && key(index, after).is_some_and(|key| key.name == name) {
            if found {
                return Some((index + 1, column));
            }
            found = true;
        }
    }
    None
}

/// Keys that had other names before the first release.
const RENAMED_KEYS: [(&str, &str); 4] = [
    ("hands_off", "unbind_host_drivers"),
    ("companions", "peer_ports"),
    ("reclaim", "return_to_host"),
    ("trust_socket_folder", "trust_socket_directory"),
];

impl ConfigError {
    pub(super) fn at(line: Option<usize>, column: Option<usize>, message: &str) -> Self {
        Self { line, column, begun: None, message: message.to_owned() }
    }

    fn new(error: &serde_yaml::Error, text: &str) -> Self {
        let location = error.location();
        let mut message =
            error.to_string().replace("expected a boolean", "expected `true` or `false`");
        if let Some(location) = &location {
            let suffix = format!(" at line {} column {}", location.line(), location.column());
            message = message.replace(&suffix, "");
            let line = text.lines().nth(location.line().saturating_sub(1)).unwrap_or_default();
            if line.trim_start_matches(' ').starts_with('\t') {
                message.push_str(": indent with spaces, YAML allows no tab there");
            }
        }
        if message.contains("more than one document") {
            let starts = text.lines().enumerate().filter(|(_, line)| line.starts_with("---"));
            // A mark in the first line begins the first document.
            let later = starts.map(|(index, _)| index + 1).filter(|line| *line > 1).last();
            let message = "a second document begins here: delete the line";
            return Self::at(later, later.map(|_| 1), message);
        }
        for (old, new) in RENAMED_KEYS {
            if let Some((before, _)) = message.split_once(&format!("unknown field `{old}`")) {
                message = format!("{before}`{old}` is now called `{new}`; rename the key");
            }
        }
        let begun = message
            .rsplit_once(" at line ")
            .and_then(|(_, line)| line.split(' ').next()?.parse().ok());
        let mut place = location.map(|location| (location.line(), location.column()));
        if let (Some((line, column)), Some((_, key))) =
            (place, message.split_once("duplicate field `"))
        {
            place = second_key(text, line, column, key.trim_end_matches('`')).or(place);
        }
        let (line, column) = place.unzip();
        Self { line, column, begun, message }
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
    exclude: Option<List<DeviceMatcher>>,
}

/// Whether far more brackets are open somewhere than in any config. For each further one the YAML reader
/// visits all that are open, so 1 MiB of them would take it minutes. Those in comments and strings
/// count as well, they are few.
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

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    socket: Option<One<SocketPath>>,
    domain: Option<One<DomainName>>,
    delay: Option<One<Seconds<0, 120_000>>>,
    timeout: Option<One<Seconds<100, 60_000>>>,
    hubs: Option<List<BusName>>,
    peer_ports: Option<bool>,
    exclude: Option<List<DeviceMatcher>>,
    only: Option<List<DeviceMatcher>>,
    usb_host: Option<UsbHost>,
    unbind_host_drivers: Option<bool>,
    access: Option<One<AccessMode>>,
    user: Option<One<User>>,
    trust_socket_directory: Option<bool>,
    return_to_host: Option<bool>,
    ports: List<PortEntry>,
}

impl Fields {
    fn named<E: de::Error>(self, name: String) -> Result<VirtualMachine, E> {
        let mode = match self.access.map(|mode| mode.0).unwrap_or_default() {
            // libvirt gives QEMU no device's node that it does not know of.
            AccessMode::Auto if self.domain.is_some() => AccessMode::Fd,
            mode => mode,
        };
        let monitor = match (self.socket, self.domain) {
            (Some(One(SocketPath(path))), None) => Monitor::Socket(path),
            (None, Some(One(DomainName(domain)))) => Monitor::Domain(domain),
            (None, None) => return Err(E::missing_field("socket")),
            (Some(_), Some(_)) => {
                return Err(E::custom("both `socket:` and `domain:`: leave one out"));
            }
        };
        let delay = self.delay.map_or(VirtualMachine::DEFAULT_DELAY, |seconds| seconds.0.0);
        let timeout = self.timeout.map_or(VirtualMachine::DEFAULT_TIMEOUT, |seconds| seconds.0.0);
        if delay + timeout > VirtualMachine::MAX_DELAY_AND_TIMEOUT {
            return Err(E::custom(format_args!(
                "`delay:` and `timeout:` add up to {} s: write at most {} s, because udev ends a call \
                 after 180 s",
                (delay + timeout).as_secs_f64(),
                VirtualMachine::MAX_DELAY_AND_TIMEOUT.as_secs()
            )));
        }
        let (mut ports, mut port_rules, mut spellings) = (Vec::new(), Vec::new(), Vec::new());
        for PortEntry { name, rules, written } in self.ports.0 {
            port_rules.extend(rules.map(|rules| (name.clone(), rules)));
            spellings.extend(written.map(|written| Spelling { written, meant: name.to_string() }));
            ports.push(name);
        }
        Ok(VirtualMachine {
            name,
            monitor,
            delay,
            timeout,
            hubs: self.hubs.unwrap_or_default().0.into_iter().map(|bus| bus.0).collect(),
            peer_ports: self.peer_ports.unwrap_or(true),
            rules: rules(self.exclude, self.only, self.usb_host),
            unbind_host_drivers: self.unbind_host_drivers.unwrap_or(true),
            ports,
            port_rules,
            spellings,
            return_to_host: self.return_to_host.unwrap_or_default(),
            access: Access {
                mode,
                user: self.user.map(|user| user.0),
                trust_socket_directory: self.trust_socket_directory.unwrap_or_default(),
            },
        })
    }
}

fn rules(
    exclude: Option<List<DeviceMatcher>>,
    only: Option<List<DeviceMatcher>>,
    usb_host: Option<UsbHost>,
) -> DeviceRules {
    DeviceRules {
        exclude: exclude.unwrap_or_default().0,
        only: only.unwrap_or_default().0,
        usb_host: usb_host.unwrap_or_default().0,
    }
}

/// Reads the keys of the VM of this name. They are checked within the visitor, where the YAML reader
/// knows the place.
struct VirtualMachineSeed(String);

impl<'de> DeserializeSeed<'de> for VirtualMachineSeed {
    type Value = VirtualMachine;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for VirtualMachineSeed {
    type Value = VirtualMachine;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the keys of a virtual machine: `socket:` (or `domain:`) and `ports:`, and \
             perhaps `delay:`, `timeout:`, `hubs:`, `peer_ports:`, `exclude:`, `only:`, `usb_host:`, \
             `unbind_host_drivers:`, `return_to_host:`, `access:`, `user:` and `trust_socket_directory:`",
        )
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<VirtualMachine, A::Error> {
        Fields::deserialize(MapAccessDeserializer::new(map))?.named(self.0)
    }
}

#[derive(Default)]
struct VirtualMachines(Vec<VirtualMachine>);

impl<'de> Deserialize<'de> for VirtualMachines {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self::default())
    }
}

impl<'de> Visitor<'de> for VirtualMachines {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the virtual machines: a name and a colon, and their keys indented below it")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        let mut names = Vec::new();
        while let Some(VmName(name)) = map.next_key_seed(New { known: &names })? {
            let vm = map.next_value_seed(VirtualMachineSeed(name.clone()))?;
            add(&mut names, VmName(name))?;
            self.0.push(vm);
        }
        Ok(self)
    }
}

/// No list is longer: each entry is compared with those before it, and no host has more ports.
pub(super) const MAX_ENTRIES: usize = 255;

fn add<T, E: de::Error>(list: &mut Vec<T>, entry: T) -> Result<(), E> {
    if list.len() == MAX_ENTRIES {
        return Err(E::custom(format_args!(
            "more than {MAX_ENTRIES} entries: no host has so many ports"
        )));
    }
    list.push(entry);
    Ok(())
}

/// A value that is written as one YAML scalar, read as text whatever YAML would take it for.
trait Scalar: Sized {
    const EXPECTED: &str = "";
    fn expected() -> String {
        Self::EXPECTED.to_owned()
    }
    /// The error of a text, to follow it.
    fn wrong<T>(problem: impl fmt::Display) -> Result<T, String> {
        Err(format!("{problem}; write {}", Self::expected()))
    }
    fn read(text: &str) -> Result<Self, String>;
    /// The error if it is in the list already.
    fn repeats(&self, _known: &[Self]) -> Option<String> {
        None
    }
    /// Whether a list of them may be empty.
    const OPTIONAL: bool = true;
    const IS_MAP: bool = false;
    fn read_map<'de, A: MapAccess<'de>>(_map: A) -> Result<Self, A::Error> {
        Err(de::Error::invalid_type(de::Unexpected::Map, &Self::expected().as_str()))
    }
}

fn listed_twice<T: PartialEq + fmt::Display>(
    entry: &T,
    known: &[T],
    is_same: impl Fn(&T, &T) -> bool,
) -> Option<String> {
    let known = known.iter().find(|known| is_same(known, entry))?;
    let name = if known == entry { String::new() } else { format!(", also as {known}") };
    Some(format!("{entry} is listed twice{name}: leave one out"))
}

/// Reads an entry that its list does not have yet.
struct New<'a, T> {
    known: &'a [T],
}

impl<T: Scalar> New<'_, T> {
    fn unless_known<E: de::Error>(&self, entry: T) -> Result<T, E> {
        entry.repeats(self.known).map_or(Ok(entry), |problem| Err(E::custom(problem)))
    }
}

impl<'de, T: Scalar> DeserializeSeed<'de> for New<'_, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        if T::IS_MAP {
            return deserializer.deserialize_any(self);
        }
        deserializer.deserialize_str(self)
    }
}

impl<'de, T: Scalar> Visitor<'de> for New<'_, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&T::expected())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        let entry = T::read(text);
        self.unless_known(entry.map_err(|wrong| E::custom(format_args!("`{text}` {wrong}")))?)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        self.unless_known(T::read_map(map)?)
    }
}

struct One<T>(T);

impl<'de, T: Scalar> Deserialize<'de> for One<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        New { known: &[] }.deserialize(deserializer).map(Self)
    }
}

struct List<T>(Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Scalar> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self::default())
    }
}

impl<'de, T: Scalar> Visitor<'de> for List<T> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list, each entry on a line of its own after `- `: {}", T::expected())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Self, A::Error> {
        while let Some(entry) = seq.next_element_seed(New { known: &self.0 })? {
            add(&mut self.0, entry)?;
        }
        if self.0.is_empty() { self.visit_unit() } else { Ok(self) }
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self, E> {
        if T::OPTIONAL { Ok(self) } else { Err(E::invalid_length(0, &self)) }
    }
}

struct VmName(String);

impl Scalar for VmName {
    const EXPECTED: &str = "a virtual machine's name";

    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.chars().any(char::is_control) {
            return Self::wrong("is not a name of printable characters");
        }
        Ok(Self(text.to_owned()))
    }

    /// YAML would let the last one win.
    fn repeats(&self, known: &[Self]) -> Option<String> {
        known.iter().any(|known| known.0 == self.0).then(|| {
            format!("virtual machine `{}` is defined twice: give one of them another name", self.0)
        })
    }
}

struct SocketPath(PathBuf);

impl Scalar for SocketPath {
    const EXPECTED: &str = "the absolute path of the QMP socket, such as /run/vm/windows.qmp";

    fn read(text: &str) -> Result<Self, String> {
        // The kernel's sun_path has 108 bytes, the last one NUL (unix(7)).
        // A home directory, a variable or QEMU's `unix:` is not resolved.
        let is_relative = !text.is_empty() && !text.starts_with('~') && !text.contains([':', '$']);
        match text {
            _ if !text.starts_with('/') && !is_relative => Self::wrong("is not a path"),
            _ if text.len() > 107 => {
                Self::wrong("is longer than a socket's path may be (107 bytes)")
            }
            _ if text.contains('\0') => Self::wrong("has a NUL character"),
            _ => Ok(Self(text.into())),
        }
    }
}

struct DomainName(String);

impl Scalar for DomainName {
    const EXPECTED: &str = "the name of a libvirt domain, as `virsh list --all` prints it";

    fn read(text: &str) -> Result<Self, String> {
        let is_other = |character: char| character == '/' || character.is_control();
        if text.is_empty() || text.len() > 200 || text.contains(is_other) {
            return Self::wrong("is not the name of a domain");
        }
        Ok(Self(text.to_owned()))
    }
}

struct BusName(String);

impl Scalar for BusName {
    const OPTIONAL: bool = false;

    const EXPECTED: &str =
        "the name of a USB bus of the guest, such as xhci0.0 (the controller's id and `.0`)";

    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Self::wrong("is not the name of a bus");
        }
        Ok(Self(text.to_owned()))
    }

    fn repeats(&self, known: &[Self]) -> Option<String> {
        let known: Vec<&str> = known.iter().map(|bus| bus.0.as_str()).collect();
        listed_twice(&self.0.as_str(), &known, PartialEq::eq)
    }
}

/// An entry of `ports:`.
struct PortEntry {
    name: PortName,
    /// If it is a mapping.
    rules: Option<DeviceRules>,
    /// The text, if it has more than the name.
    written: Option<String>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct PortFields {
    port: One<PortEntry>,
    exclude: Option<List<DeviceMatcher>>,
    only: Option<List<DeviceMatcher>>,
    usb_host: Option<UsbHost>,
}

/// A list may be empty until `identify --write` fills it in.
impl Scalar for PortEntry {
    const IS_MAP: bool = true;

    const EXPECTED: &str = PortName::EXPECTED;

    fn read(text: &str) -> Result<Self, String> {
        let written =
            (PortName::trim(text) != text.trim_end_matches('\n')).then(|| text.to_owned());
        PortName::read(text).map(|name| Self { name, rules: None, written })
    }

    fn read_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let PortFields { port, exclude, only, usb_host } =
            PortFields::deserialize(MapAccessDeserializer::new(map))?;
        if port.0.rules.is_some() {
            return Err(de::Error::invalid_type(de::Unexpected::Map, &Self::EXPECTED));
        }
        Ok(Self { rules: Some(rules(exclude, only, usb_host)), ..port.0 })
    }

    fn repeats(&self, known: &[Self]) -> Option<String> {
        let known: Vec<&PortName> = known.iter().map(|known| &known.name).collect();
        listed_twice(&&self.name, &known, |one, other| one.is_equivalent(other))
    }
}

impl Scalar for PortName {
    const EXPECTED: &str = "a port's name, such as pci-0000:00:14.0/usb2:3, or its DEVPATH, such as \
         /devices/pci0000:00/0000:00:14.0/usb3/3-3";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().or_else(Self::wrong)
    }
}

/// The mapping of `usb_host:`.
#[derive(Default)]
struct UsbHost(UsbHostProperties);

impl<'de> Deserialize<'de> for UsbHost {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self::default())
    }
}

impl<'de> Visitor<'de> for UsbHost {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("properties of QEMU's usb-host, such as `guest-reset: false`")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some(One(Text(name))) = map.next_key()? {
            let One(Text(value)) = map.next_value()?;
            let (name, value) = usb_host::read(&name, &value).map_err(de::Error::custom)?;
            if self.0.insert(name, value).is_some() {
                return Err(de::Error::custom(format_args!(
                    "`{name}` is set twice: leave one out"
                )));
            }
        }
        Ok(self)
    }
}

/// Any text.
struct Text(String);

impl Scalar for Text {
    const EXPECTED: &str = "a word";

    fn read(text: &str) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }
}

struct Seconds<const MIN: u64, const MAX: u64>(Duration);

impl<const MIN: u64, const MAX: u64> Scalar for Seconds<MIN, MAX> {
    fn expected() -> String {
        let [min, max] = [MIN, MAX].map(|limit| Duration::from_millis(limit).as_secs_f64());
        format!("a number of seconds from {min} to {max}, such as 1 or 0.5")
    }

    fn read(text: &str) -> Result<Self, String> {
        let seconds = text.parse().or_else(|_| Self::wrong("is not a number of seconds"))?;
        let limits = Duration::from_millis(MIN)..=Duration::from_millis(MAX);
        let time = Duration::try_from_secs_f64(seconds).ok();
        let time = time.filter(|time| limits.contains(time));
        time.map(Self).map_or_else(|| Self::wrong("is out of range"), Ok)
    }
}

impl Scalar for AccessMode {
    const EXPECTED: &str =
        "`auto`, `fd` (hotplugger opens the device for QEMU) or `node` (QEMU does)";

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "fd" => Ok(Self::Fd),
            "node" => Ok(Self::Node),
            _ => Self::wrong("is not an access mode"),
        }
    }
}

impl Scalar for User {
    const EXPECTED: &str = "the user whom QEMU is run by, as name or number: libvirt-qemu";

    fn read(text: &str) -> Result<Self, String> {
        // No name is all digits.
        let is_number = text.trim_start_matches(['+', '-']).bytes().all(|b| b.is_ascii_digit());
        let id = || text.parse().ok().filter(|id| *id != u32::MAX).map(Self::Id);
        let fits = |character: char| character.is_ascii_graphic() && !":/".contains(character);
        let name = || (text.len() <= 256 && text.chars().all(fits)).then(|| text.to_owned());
        let user = if is_number { id() } else { name().map(Self::Name) };
        user.map_or_else(|| Self::wrong("is not a user"), Ok)
    }
}

impl Scalar for DeviceMatcher {
    const IS_MAP: bool = true;

    const EXPECTED: &str = "`0627:0001` (vendor and product id), `class: 08`, `serial: XYZ` or a \
                            port's DEVPATH";

    fn read(text: &str) -> Result<Self, String> {
        let is_port = |text: &str| PortName::trim(text).parse::<Port>().is_ok();
        if text.contains('/') || text.contains("-usb") || is_port(text) {
            return PortName::read(text).map(Self::Port);
        }
        // As `lsusb` prints them.
        let ids = text.split_once(':').and_then(|(vendor_id, product_id)| {
            Some(Self::Model { vendor_id: hex(vendor_id, 4)?, product_id: hex(product_id, 4)? })
        });
        ids.map_or_else(|| Self::wrong("is nothing to match"), Ok)
    }

    fn read_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        let Some(One(Text(key))) = map.next_key()? else {
            return Err(de::Error::invalid_length(0, &Self::EXPECTED));
        };
        let entry = match key.as_str() {
            "class" => Self::Class(map.next_value::<One<Class>>()?.0.0),
            "serial" => Self::Serial(map.next_value::<One<Serial>>()?.0.0),
            _ => return Err(de::Error::unknown_field(&key, &["class", "serial"])),
        };
        if let Some(One(Text(second))) = map.next_key()? {
            return Err(de::Error::custom(format_args!(
                "`{second}` in the same entry as `{key}`: give each an entry of its own, after `- `"
            )));
        }
        Ok(entry)
    }

    fn repeats(&self, known: &[Self]) -> Option<String> {
        listed_twice(self, known, PartialEq::eq)
    }
}

fn hex(text: &str, digits: usize) -> Option<u16> {
    let is_hex = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u16::from_str_radix(text, 16).ok().filter(|_| is_hex)
}

/// Read as text, so `0012` keeps its zeros.
struct Serial(String);

impl Scalar for Serial {
    const EXPECTED: &str = "a serial number, as in the file `serial` of the device in sysfs";

    fn read(text: &str) -> Result<Self, String> {
        match text.trim() {
            "" => Self::wrong("is empty"),
            text => Ok(Self(text.to_owned())),
        }
    }
}

struct Class(u8);

impl Scalar for Class {
    fn expected() -> String {
        let names = CLASS_NAMES.map(|(name, _)| name).join(", ");
        format!("a class as two hexadecimal digits, such as 08, or one of {names}")
    }

    /// A name, or the code in the two hexadecimal digits of sysfs. One digit or three would leave
    /// open whether `lsusb -v` was copied, which prints it decimal.
    fn read(text: &str) -> Result<Self, String> {
        let named = CLASS_NAMES.iter().find(|(name, _)| *name == text).map(|(_, code)| *code);
        let code = named.or_else(|| hex(text, 2)?.try_into().ok());
        code.map(Self).map_or_else(|| Self::wrong("is not a class"), Ok)
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
        let shown = |list: &[crate::config::DeviceMatcher]| {
            list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
        };
        assert_eq!(shown(&config.exclude), "0627:0001 | class: 08 | /devices/x/usb1/1-1/1-1.2");
        let own = "class: 03 | serial: 0012 | 1234:abcd | class: 10";
        assert_eq!(shown(&config.virtual_machines[0].rules.exclude), own);
        assert!(parse(&format!("exclude:\n{VM}")).unwrap().exclude.is_empty());
    }

    #[test]
    fn each_fault_is_told_with_its_place() {
        for (entry, place, hints) in [
            ("0627", "6:9", ["0627", "`class: 08`"]),
            ("627:1", "6:9", ["`627:1`", "`0627:0001`"]),
            ("8", "6:9", ["8", "`class: 08`"]),
            ("class: 8", "6:16", ["`8`", "08"]),
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
