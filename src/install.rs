//! The items that `install` installs, as data: paths, texts, modes, and which machines have a use
//! for them. [`ItemState`] compares an item with the disk, [`PathUnit`] is the path unit of a VM.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::{fmt, fs};

use crate::config::{Config, VirtualMachine};
use crate::root::Root;
use crate::text::shell_word;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstallItem {
    pub group: Group,
    pub path: String,
    pub content: Content,
    /// The directory without which a machine has no use for it.
    pub requires_dir: Option<&'static str>,
    /// Whether it is left out without that directory even if the group was requested.
    pub only_if_present: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    Base,
    Systemd,
    Sleep,
    Libvirt,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    File {
        text: String,
        mode: u32,
    },
    /// A file that is the administrator's once it is there.
    ConfigTemplate(String),
    Link(String),
}

const RULE: &str = "/etc/udev/rules.d/99-hotplugger.rules";
pub const CONFIG: &str = "/etc/hotplugger/config.yaml";
/// `journalctl --update-catalog` compiles it. That reads no directory below /etc.
pub const CATALOG: &str = "/usr/local/lib/systemd/catalog/hotplugger.catalog";
/// The directory that is there while systemd runs (`sd_booted(3)`).
pub const SYSTEMD_RUNS: &str = "/run/systemd/system";
/// The socket that is there while udevd runs, systemd's or eudev's.
pub const UDEVD_RUNS: &str = "/run/udev/control";

pub const PACKAGED_PROGRAM: &str = "/usr/bin/hotplugger";

const RULE_TEXT: &str = include_str!("../rules/99-hotplugger.rules");
const CONFIG_TEXT: &str = include_str!("../config.yaml");
const SERVICE_TEXT: &str = include_str!("../dist/systemd/hotplugger-sync@.service");
const SLEEP_TEXT: &str = include_str!("../dist/hooks/sleep");
const LIBVIRT_TEXT: &str = include_str!("../dist/hooks/libvirt-qemu");
const CATALOG_TEXT: &str = include_str!("../dist/catalog/hotplugger.catalog");
/// Made at boot, before any user can log in, and never aged (tmpfiles.d(5)). `!` keeps it to the
/// boot: later the directory may be another user's, and systemd-tmpfiles would give it to root with
/// that user's files and locks in it. `D` empties one that is left of the last boot.
const TMPFILES_TEXT: &str = "# hotplugger's state; see tmpfiles.d(5).\n\
    D! /tmp/hotplugger 0700 root root -\n\
    x /tmp/hotplugger\n";

/// All items for this config, which start this program; without a config those that need none.
///
/// The program's name has neither blanks nor quotes: udev could not start it.
pub fn items(program: &str, config: Option<&Config>) -> Vec<InstallItem> {
    let file = |group, path: &str, text: &str, mode, requires_dir| InstallItem {
        group,
        path: path.to_owned(),
        content: Content::File { text: text.to_owned(), mode },
        requires_dir,
        only_if_present: false,
    };
    let script = |group, path: &str, text: &str, requires_dir| {
        let text = text.replace(PACKAGED_PROGRAM, &shell_word(program));
        file(group, path, &text, 0o755, Some(requires_dir))
    };
    let text = |text: &str| text.replace(PACKAGED_PROGRAM, program);
    let mut items = vec![
        file(Group::Base, RULE, &text(RULE_TEXT), 0o644, None),
        InstallItem {
            content: Content::ConfigTemplate(example()),
            ..file(Group::Base, CONFIG, "", 0o644, None)
        },
        file(
            Group::Base,
            "/etc/tmpfiles.d/hotplugger.conf",
            TMPFILES_TEXT,
            0o644,
            Some("/etc/tmpfiles.d"),
        ),
        file(Group::Base, CATALOG, CATALOG_TEXT, 0o644, Some(SYSTEMD_RUNS)),
        file(
            Group::Systemd,
            "/etc/systemd/system/hotplugger-sync@.service",
            &text(SERVICE_TEXT),
            0o644,
            Some(SYSTEMD_RUNS),
        ),
        // systemd searches no other directory (systemd-sleep(8)).
        script(Group::Sleep, "/usr/lib/systemd/system-sleep/hotplugger", SLEEP_TEXT, SYSTEMD_RUNS),
        // Its directory below /usr has another name in each distribution; this one is read in all.
        InstallItem {
            only_if_present: true,
            ..script(
                Group::Sleep,
                "/etc/elogind/system-sleep/hotplugger",
                SLEEP_TEXT,
                "/etc/elogind",
            )
        },
        script(
            Group::Libvirt,
            "/etc/libvirt/hooks/qemu.d/hotplugger",
            LIBVIRT_TEXT,
            "/etc/libvirt",
        ),
    ];
    let machines = config.map_or(&[][..], |config| &config.virtual_machines);
    for unit in machines.iter().filter_map(|vm| PathUnit::of(vm).ok()) {
        let unit_file = file(Group::Systemd, &unit.path(), &unit.text(), 0o644, Some(SYSTEMD_RUNS));
        let link = InstallItem {
            path: unit.link(),
            content: Content::Link(unit.path()),
            ..unit_file.clone()
        };
        items.extend([unit_file, link]);
    }
    items
}

/// The example with nothing configured, because its ports are those of another machine.
fn example() -> String {
    let mut in_machines = false;
    let lines = CONFIG_TEXT.lines().map(|line| {
        in_machines |= line.starts_with("virtual_machines:");
        match line {
            _ if !in_machines || line.starts_with("virtual_machines:") || line.is_empty() => {
                line.to_owned()
            }
            _ => format!("# {line}"),
        }
    });
    lines.map(|line| line + "\n").collect()
}

/// Folders of the administrator's, and those for packages that are read after them: udev(7),
/// tmpfiles.d(5), systemd.unit(5).
const PACKAGE_DIRS: [(&str, &str); 4] = [
    ("/etc/udev/rules.d", "/usr/lib/udev/rules.d"),
    ("/etc/tmpfiles.d", "/usr/lib/tmpfiles.d"),
    ("/etc/systemd/system", "/usr/lib/systemd/system"),
    ("/usr/local/lib/systemd/catalog", "/usr/lib/systemd/catalog"),
];

const PACKAGE_RULE: &str = "/usr/lib/udev/rules.d/99-hotplugger.rules";

impl InstallItem {
    /// The item as a package has it. `None` if it depends on the machine or its config.
    pub fn in_package(&self) -> Option<Self> {
        let name = Path::new(&self.path).file_name()?.to_str()?;
        let is_file = matches!(self.content, Content::File { .. });
        if !is_file || self.only_if_present || is_path_unit(name) {
            return None;
        }
        let directory = Path::new(&self.path).parent()?.to_str()?;
        let path = PACKAGE_DIRS.iter().find(|(own, _)| *own == directory).map_or_else(
            // The hooks, which are searched for in one directory only.
            || self.path.clone(),
            |(_, packages)| format!("{packages}/{name}"),
        );
        Some(Self { path, ..self.clone() })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    Missing,
    /// The package has it, at this path.
    Packaged(String),
    UpToDate,
    Modified(String),
}

#[derive(Debug)]
pub struct ItemState {
    pub item: InstallItem,
    pub installed: Installed,
    /// Why this host has no use for the item; `None` if it has.
    pub obstacle: Option<String>,
}

/// All items for this config, which start this program, with their states.
pub fn states(root: &Root, program: &str, config: Option<&Config>) -> Vec<ItemState> {
    items(program, config).into_iter().map(|item| ItemState::read(root, item)).collect()
}

impl ItemState {
    pub fn read(root: &Root, item: InstallItem) -> Self {
        let packaged = || {
            let packaged = item.in_package()?;
            let is_current = installed(root, &packaged) == Installed::UpToDate;
            is_current.then_some(Installed::Packaged(packaged.path))
        };
        let installed = match installed(root, &item) {
            Installed::Missing => packaged().unwrap_or(Installed::Missing),
            own => own,
        };
        Self { installed, obstacle: obstacle(root, &item), item }
    }

    /// Whether its own file exists, not only the package's.
    pub fn is_present(&self) -> bool {
        matches!(self.installed, Installed::UpToDate | Installed::Modified(_))
    }

    /// The path of the file in use, which may be the package's.
    pub fn path(&self) -> &str {
        match &self.installed {
            Installed::Packaged(path) => path,
            _ => &self.item.path,
        }
    }
}

fn installed(root: &Root, item: &InstallItem) -> Installed {
    let path = root.path(&item.path);
    if path.symlink_metadata().is_err() {
        return Installed::Missing;
    }
    let (there, is_current) = match &item.content {
        Content::ConfigTemplate(_) => return Installed::UpToDate,
        Content::Link(target) => {
            let there = fs::read_link(&path).unwrap_or_default();
            (there.to_string_lossy().into_owned(), there == Path::new(target))
        }
        Content::File { text, mode } => {
            let there = fs::read(&path).unwrap_or_default();
            // Whatever else an administrator did to the mode is his.
            let runs = |mode: u32| mode & 0o111 != 0;
            let as_it_runs =
                path.metadata().is_ok_and(|one| runs(one.permissions().mode()) == runs(*mode));
            let there = String::from_utf8_lossy(&there).into_owned();
            let is_current = there == *text && as_it_runs;
            (there, is_current)
        }
    };
    if is_current { Installed::UpToDate } else { Installed::Modified(there) }
}

pub fn is_of_package(root: &Root, item: &InstallItem) -> bool {
    root.path(PACKAGE_RULE).exists()
        && item.in_package().is_some_and(|packaged| packaged.path == item.path)
}

fn obstacle(root: &Root, item: &InstallItem) -> Option<String> {
    if let Some(directory) = item.requires_dir.filter(|path| !root.path(path).is_dir()) {
        return Some(format!("this system has no {directory}"));
    }
    (item.group == Group::Libvirt && has_selinux(root)).then(|| {
        "SELinux does not allow libvirt to run a hook; the systemd units do its work".into()
    })
}

/// Whether SELinux is on, or will be after the next boot. Its policy does not allow libvirt to run a
/// hook (Fedora's `virt.te`), and libvirt does not start a domain whose hook fails
/// (`src/qemu/qemu_process.c`: `qemuProcessPrepareHost`).
pub fn has_selinux(root: &Root) -> bool {
    let config = fs::read_to_string(root.path("/etc/selinux/config")).unwrap_or_default();
    let mut modes = config.lines().filter_map(|line| line.strip_prefix("SELINUX="));
    root.path("/sys/fs/selinux/enforce").exists() || modes.any(|mode| mode.trim() != "disabled")
}

pub fn path_units(root: &Root) -> Vec<String> {
    let mut paths = Vec::new();
    for directory in FOLDERS {
        let entries =
            fs::read_dir(root.path(directory)).into_iter().flatten().filter_map(Result::ok);
        for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
            if is_path_unit(&name) {
                paths.push(format!("{directory}/{name}"));
            }
        }
    }
    paths.sort();
    paths
}

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
    /// When it is escaped.
    Long,
    /// `ExecStart=` replaces it.
    Dollar,
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

pub fn watched_socket(text: &str) -> Option<String> {
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
fn escape(text: &str) -> String {
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

    #[test]
    fn the_example_that_is_installed_configures_nothing_and_keeps_its_words() {
        assert_eq!(parse(&example()), Ok(Config::default()));
        assert!(example().contains("\n# "));
        for line in CONFIG_TEXT.lines() {
            assert!(example().contains(line), "{line}");
        }
    }

    #[test]
    fn each_text_that_starts_the_program_names_it_once() {
        for text in [RULE_TEXT, SERVICE_TEXT, SLEEP_TEXT, LIBVIRT_TEXT] {
            assert_eq!(text.matches(PACKAGED_PROGRAM).count(), 1, "{text}");
        }
    }

    #[test]
    fn scripts_are_programs_and_quote_theirs() {
        let items = items("/opt/a&b/hotplugger", None);
        let text = |path: &str| match &items.iter().find(|item| item.path == path) {
            Some(InstallItem { content: Content::File { text, mode }, .. }) => {
                (text.as_str(), *mode)
            }
            other => panic!("{other:?}"),
        };
        let (hook, mode) = text("/etc/libvirt/hooks/qemu.d/hotplugger");
        assert!(hook.contains("setsid '/opt/a&b/hotplugger' sync "), "{hook}");
        assert_eq!(mode, 0o755);
        let (service, mode) = text("/etc/systemd/system/hotplugger-sync@.service");
        assert!(service.contains("ExecStart=/opt/a&b/hotplugger sync "), "{service}");
        assert_eq!(mode, 0o644);
    }
}

#[cfg(test)]
mod package_tests {
    use super::*;
    use crate::config::parse::parse;
    use crate::install::{PACKAGED_PROGRAM, items};

    #[test]
    fn a_package_has_what_is_the_same_everywhere() {
        let config = "virtual_machines:\n  a: {socket: /run/a, ports: [/devices/usb1/1-1]}\n";
        let items = items(PACKAGED_PROGRAM, Some(&parse(config).unwrap()));
        let packaged: Vec<_> =
            items.iter().filter_map(InstallItem::in_package).map(|one| one.path).collect();
        assert_eq!(
            packaged,
            [
                PACKAGE_RULE,
                "/usr/lib/tmpfiles.d/hotplugger.conf",
                "/usr/lib/systemd/catalog/hotplugger.catalog",
                "/usr/lib/systemd/system/hotplugger-sync@.service",
                "/usr/lib/systemd/system-sleep/hotplugger",
                "/etc/libvirt/hooks/qemu.d/hotplugger",
            ]
        );
    }
}

#[cfg(test)]
mod unit_tests {
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
        assert_eq!(watched_socket(&unit.text()).as_deref(), Some("/run/100% mine.qmp"));
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
