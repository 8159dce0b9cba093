//! The path unit of a VM: its name, its text, and which machines can have one. Pure.

use std::fmt;

use crate::config::VirtualMachine;

const DIRECTORY: &str = "/etc/systemd/system";
const WANTS: &str = "/etc/systemd/system/paths.target.wants";
const PREFIX: &str = "hotplugger-sync@";
const SUFFIX: &str = ".path";
/// The most bytes of a unit's name (systemd's `UNIT_NAME_MAX`, with a NUL), less those by which
/// `.service` is longer than `.path`.
const MAX_NAME: usize = 255 - 3;

/// The path unit of a VM, which starts `hotplugger-sync@….service`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathUnit {
    name: String,
    socket: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitNameError {
    /// Its name is too long when it is escaped.
    Long,
    /// Its name has a `$`, which `ExecStart=` replaces.
    Dollar,
    /// The path of its socket cannot be written in a unit.
    Socket,
}

impl PathUnit {
    pub fn of(vm: &VirtualMachine) -> Result<Self, UnitNameError> {
        let name = format!("{PREFIX}{}{SUFFIX}", escape(&vm.name));
        let file = vm.monitor.file();
        let Some(socket) = file.to_str() else { return Err(UnitNameError::Socket) };
        // A line ends, goes on (`\`) or is trimmed there; and `..` is refused (systemd.path(5)).
        let strange = socket.contains(char::is_control)
            || socket.ends_with(|last: char| last.is_whitespace() || last == '\\')
            || socket.split('/').any(|part| part == "..");
        match () {
            () if name.len() > MAX_NAME => Err(UnitNameError::Long),
            () if vm.name.contains('$') => Err(UnitNameError::Dollar),
            () if strange => Err(UnitNameError::Socket),
            () => Ok(Self { name, socket: socket.to_owned() }),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> String {
        format!("{DIRECTORY}/{}", self.name)
    }

    pub fn link(&self) -> String {
        format!("{WANTS}/{}", self.name)
    }

    /// What it says.
    ///
    /// `PathChanged=` and not `PathExists=`: a socket that a killed QEMU has left would start the
    /// service again and again.
    pub fn text(&self) -> String {
        format!(
            "# Written by `hotplugger install`; run it again when the config changes.\n\
             \n\
             [Unit]\n\
             Description=Socket of the virtual machine %I\n\
             \n\
             [Path]\n\
             {WATCHES}{}\n\
             \n\
             [Install]\n\
             WantedBy=paths.target\n",
            self.socket.replace('%', "%%")
        )
    }
}

const WATCHES: &str = "PathChanged=";

pub fn watched(text: &str) -> Option<String> {
    let path = text.lines().find_map(|line| line.strip_prefix(WATCHES))?;
    Some(path.replace("%%", "%"))
}

pub const FOLDERS: [&str; 2] = [DIRECTORY, WANTS];

pub fn is_path_unit(file_name: &str) -> bool {
    file_name.starts_with(PREFIX) && file_name.ends_with(SUFFIX)
}

impl fmt::Display for UnitNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Long => "its name is too long for a unit's",
            Self::Dollar => "no unit can pass on a name with a `$`",
            Self::Socket => "no unit can watch such a path as its socket's",
        })
    }
}

/// The text as part of a unit's name, as `systemd-escape` writes it (systemd.unit(5), "String
/// escaping for inclusion in unit names").
pub fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'/' => escaped.push('-'),
            b'.' if at == 0 => escaped.push_str("\\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.extend(format!("\\x{byte:02x}").chars()),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse::parse;

    fn vm(name: &str, socket: &str) -> VirtualMachine {
        let text = format!(
            "virtual_machines:\n  {name:?}:\n    socket: {socket:?}\n    ports: [/devices/usb1/1-1]\n"
        );
        parse(&text).unwrap().virtual_machines.remove(0)
    }

    #[test]
    fn names_are_escaped_as_systemd_escape_does() {
        // Each what systemd-escape 252 printed.
        for (name, escaped) in [
            ("windows", "windows"),
            ("my vm", r"my\x20vm"),
            ("a-b", r"a\x2db"),
            ("a/b", "a-b"),
            (".x", r"\x2ex"),
            ("ü", r"\xc3\xbc"),
            (r"a\b", r"a\x5cb"),
            ("-w", r"\x2dw"),
            ("a.b:c_d", "a.b:c_d"),
            ("50%", r"50\x25"),
        ] {
            assert_eq!(escape(name), escaped, "{name}");
        }
    }

    #[test]
    fn a_unit_watches_the_socket_and_is_started_at_boot() {
        let unit = PathUnit::of(&vm("my vm", "/run/100% mine.qmp")).unwrap();
        assert_eq!(unit.path(), r"/etc/systemd/system/hotplugger-sync@my\x20vm.path");
        assert_eq!(
            unit.link(),
            r"/etc/systemd/system/paths.target.wants/hotplugger-sync@my\x20vm.path"
        );
        assert!(unit.text().contains("\nPathChanged=/run/100%% mine.qmp\n"), "{}", unit.text());
        assert_eq!(watched(&unit.text()).as_deref(), Some("/run/100% mine.qmp"));
        assert!(is_path_unit(unit.name()));
        assert!(!is_path_unit("hotplugger-sync@.service"));
    }

    #[test]
    fn what_no_unit_can_say_gets_none() {
        let unsupported = |name: &str, socket: &str| PathUnit::of(&vm(name, socket)).unwrap_err();
        assert_eq!(unsupported(&"ü".repeat(40), "/run/q"), UnitNameError::Long);
        assert_eq!(unsupported("$HOME", "/run/q"), UnitNameError::Dollar);
        for socket in ["/run/q ", "/run/q\\", "/run/../q", "/run/a\nb"] {
            assert_eq!(unsupported("x", socket), UnitNameError::Socket, "{socket:?}");
        }
        assert!(PathUnit::of(&vm("x", "/run/..q/a..")).is_ok());
    }
}
