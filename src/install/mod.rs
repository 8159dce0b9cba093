//! What `install` puts on a machine, as data: paths, texts, modes, and which machines have a use
//! for them. Pure but for [`disk`], which tells what is there.

pub mod disk;
pub mod package;
pub mod unit;

use self::unit::PathUnit;
use crate::config::Config;
use crate::text::shell_word;

/// One file or link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// What it is part of.
    pub group: Group,
    /// Where it belongs, absolute.
    pub path: String,
    /// What is there.
    pub content: Content,
    /// The folder without which a machine has no use for it.
    pub sign: Option<&'static str>,
    /// Whether it is left out without the sign even when somebody asks for the group.
    pub needs_sign: bool,
}

/// What belongs together and is chosen together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// The rule, the config, the state folder.
    Base,
    /// systemd's units: a virtual machine's socket appears or goes away.
    Systemd,
    /// The hooks that run when the host wakes up.
    Sleep,
    /// libvirt's hook: a guest has started or ended.
    Libvirt,
}

/// What a piece is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file.
    File {
        /// Its text.
        text: String,
        /// Its mode.
        mode: u32,
    },
    /// A file that is the administrator's once it is there.
    Example(String),
    /// A symbolic link, and what it points to.
    Link(String),
}

/// The rule.
pub const RULE: &str = "/etc/udev/rules.d/99-hotplugger.rules";
/// The config.
pub const CONFIG: &str = "/etc/hotplugger/config.yaml";
/// The folder that is there while systemd runs (`sd_booted(3)`).
pub const SYSTEMD_RUNS: &str = "/run/systemd/system";
/// The socket that is there while udevd runs, systemd's or eudev's.
pub const UDEVD_RUNS: &str = "/run/udev/control";

/// The program that the files in the source tree start.
pub const PACKAGED_PROGRAM: &str = "/usr/bin/hotplugger";

const RULE_TEXT: &str = include_str!("../../rules/99-hotplugger.rules");
const CONFIG_TEXT: &str = include_str!("../../config.yaml");
const SERVICE_TEXT: &str = include_str!("../../systemd/hotplugger-sync@.service");
const SLEEP_TEXT: &str = include_str!("../../hooks/sleep");
const LIBVIRT_TEXT: &str = include_str!("../../hooks/libvirt-qemu");
/// Made before any user can log in, and never aged (tmpfiles.d(5)).
const TMPFILES_TEXT: &str = "# hotplugger's state; see tmpfiles.d(5).\n\
    d /tmp/hotplugger 0700 root root -\n\
    x /tmp/hotplugger\n";

/// All pieces for this config, which start this program; without a config those that need none.
///
/// The program's name has neither blanks nor quotes: udev could not start it.
pub fn pieces(program: &str, config: Option<&Config>) -> Vec<Piece> {
    let file = |group, path: &str, text: &str, mode, sign| Piece {
        group,
        path: path.to_owned(),
        content: Content::File { text: text.to_owned(), mode },
        sign,
        needs_sign: false,
    };
    let script = |group, path: &str, text: &str, sign| {
        let text = text.replace(PACKAGED_PROGRAM, &shell_word(program));
        file(group, path, &text, 0o755, Some(sign))
    };
    let text = |text: &str| text.replace(PACKAGED_PROGRAM, program);
    let mut pieces = vec![
        file(Group::Base, RULE, &text(RULE_TEXT), 0o644, None),
        Piece {
            content: Content::Example(example()),
            ..file(Group::Base, CONFIG, "", 0o644, None)
        },
        file(
            Group::Base,
            "/etc/tmpfiles.d/hotplugger.conf",
            TMPFILES_TEXT,
            0o644,
            Some("/etc/tmpfiles.d"),
        ),
        file(
            Group::Systemd,
            "/etc/systemd/system/hotplugger-sync@.service",
            &text(SERVICE_TEXT),
            0o644,
            Some(SYSTEMD_RUNS),
        ),
        // systemd looks nowhere else (systemd-sleep(8)).
        script(Group::Sleep, "/usr/lib/systemd/system-sleep/hotplugger", SLEEP_TEXT, SYSTEMD_RUNS),
        // Its folder below /usr has another name in each distribution; this one is read in all.
        Piece {
            needs_sign: true,
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
        let link =
            Piece { path: unit.link(), content: Content::Link(unit.path()), ..unit_file.clone() };
        pieces.extend([unit_file, link]);
    }
    pieces
}

/// The example with nothing configured: its ports are somebody else's.
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
        let pieces = pieces("/opt/a&b/hotplugger", None);
        let text = |path: &str| match &pieces.iter().find(|piece| piece.path == path) {
            Some(Piece { content: Content::File { text, mode }, .. }) => (text.as_str(), *mode),
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
