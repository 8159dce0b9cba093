//! The config: is there one, can it be read, may root trust it, does it say one thing.

use std::path::{Path, PathBuf};

use super::excerpt::Excerpt;
use super::finding::Finding;
use super::report::several;
use crate::config::Config;
use crate::config::parse::ConfigError;
use crate::permissions::{PermissionIssue, PermissionKind};
use crate::text::shell_word;

/// What was found where the config should be.
#[derive(Debug)]
pub enum ConfigLook {
    /// No file.
    None {
        /// Where one would be found.
        path: PathBuf,
    },
    /// A file that cannot be read, and why.
    Unreadable {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it cannot be read, its path included.
        why: String,
        /// Whether root could.
        denied: bool,
    },
    /// A file.
    File(Box<ConfigFileLook>),
}

/// A config file that was read.
#[derive(Debug)]
pub struct ConfigFileLook {
    /// Its path.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// What it says.
    pub parsed: Result<Config, ConfigError>,
    /// What lets others change it.
    pub weakness: Option<PermissionIssue>,
    /// Whether it was named for this run alone and no rule names it.
    pub unknown_to_udev: bool,
}

static NOTHING: Config = Config { virtual_machines: Vec::new(), exclude: Vec::new() };

impl ConfigLook {
    /// What is configured; nothing if the file cannot be understood.
    pub fn config(&self) -> &Config {
        self.understood().unwrap_or(&NOTHING)
    }

    /// What is configured, if there is a file that can be understood.
    pub fn understood(&self) -> Option<&Config> {
        match self {
            Self::File(file) => file.parsed.as_ref().ok(),
            _ => None,
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::None { path } | Self::Unreadable { path, .. } => path,
            Self::File(file) => &file.path,
        }
    }
}

/// Judges the file.
pub fn judge(look: &ConfigLook) -> Vec<Finding> {
    match look {
        ConfigLook::None { path } => vec![
            Finding::fault(
                "config-none",
                path.display(),
                "there is no config, so no port belongs to a virtual machine",
            )
            .advice(format!("write {}; `hotplugger identify` finds the ports", path.display())),
        ],
        // Said among what was not looked at.
        ConfigLook::Unreadable { denied: true, .. } => Vec::new(),
        ConfigLook::Unreadable { path, why, .. } => vec![
            Finding::fault("config-unreadable", path.display(), why.clone())
                .advice("put a plain file of less than 1 MiB there"),
        ],
        ConfigLook::File(file) => judge_file(file),
    }
}

fn judge_file(file: &ConfigFileLook) -> Vec<Finding> {
    let path = file.path.display();
    let mut findings = vec![match &file.parsed {
        Err(error) => unparsed(file, error),
        Ok(config) if config.virtual_machines.is_empty() => {
            Finding::fault("config-empty", path, "it has no virtual machine")
                .advice("add one below `virtual_machines:`, with its `socket:` and `ports:`")
        }
        Ok(config) => Finding::ok(
            "config-read",
            path,
            format!("{} configured", several(config.virtual_machines.len(), "virtual machine")),
        ),
    }];
    findings.push(match &file.weakness {
        None => Finding::ok("config-safe", file.path.display(), "only root can change it"),
        Some(weakness) => {
            let what = match weakness.door {
                PermissionKind::Owner(user) => format!("belongs to user {user}"),
                PermissionKind::Mode(mode) => format!("can be written by others (mode {mode:o})"),
            };
            let weak = weakness.path.display();
            Finding::fault(
                "config-writable",
                file.path.display(),
                format!("{weak} {what}, so hotplugger refuses the config"),
            )
            .run(weakness.remedy())
        }
    });
    let machines = file.parsed.as_ref().map_or(&[][..], |config| &config.virtual_machines);
    findings.extend(machines.iter().filter(|vm| vm.ports.is_empty()).map(|vm| {
        Finding::warning("ports-none", &vm.name, "it lists no port, so nothing goes to it")
            .run(format!("hotplugger identify --write {}", shell_word(&vm.name)))
    }));
    if file.unknown_to_udev {
        findings.push(
            Finding::warning(
                "config-not-udevs",
                file.path.display(),
                "it was named for this check alone; udev's rule runs hotplugger without it",
            )
            .advice("move it to /etc/hotplugger/config.yaml"),
        );
    }
    findings
}

fn unparsed(file: &ConfigFileLook, error: &ConfigError) -> Finding {
    let path = file.path.display();
    let located = error.line.zip(error.column);
    let place = located
        .map_or_else(|| path.to_string(), |(line, column)| format!("{path}:{line}:{column}"));
    let excerpt = located.and_then(|(line, column)| Excerpt::of(&file.text, line, column));
    let advice = match error.line {
        Some(line) => format!("mend line {line} of {path} as the message says"),
        None => format!("mend {path} as the message says"),
    };
    Finding::fault("config-syntax", place, error.message.clone()).showing(excerpt).advice(advice)
}

/// Judges which machines share a socket.
pub fn judge_sockets(config: &Config, path: &Path) -> Vec<Finding> {
    let vms = &config.virtual_machines;
    let shared = vms.iter().enumerate().filter_map(|(index, second)| {
        let first = vms[..index].iter().find(|first| first.socket == second.socket)?;
        Some(
            Finding::warning(
                "socket-shared",
                path.display(),
                format!(
                    "`{}` and `{}` have the same socket {}, so the devices of both go to the one \
                     guest that listens there",
                    first.name,
                    second.name,
                    second.socket.display()
                ),
            )
            .advice(format!(
                "give `{}` the socket of its own QEMU, or make one entry of the two",
                second.name
            )),
        )
    });
    shared.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse::parse;

    fn look(text: &str) -> ConfigLook {
        ConfigLook::File(Box::new(ConfigFileLook {
            path: "/etc/hotplugger/config.yaml".into(),
            text: text.to_owned(),
            parsed: parse(text),
            weakness: None,
            unknown_to_udev: false,
        }))
    }

    #[test]
    fn an_error_shows_its_line() {
        let look = look(
            "virtual_machines:\n  win:\n    socket: run/q\n    ports: [/devices/x/usb1/1-1]\n",
        );
        let found = &judge(&look)[0];
        assert_eq!((found.code, found.excerpt.as_ref().unwrap().line), ("config-syntax", 3));
        assert_eq!(found.place, "/etc/hotplugger/config.yaml:3:13");
        assert_eq!(look.config(), &Config::default());
    }

    #[test]
    fn two_with_one_socket_are_told() {
        let look = look(
            "virtual_machines:\n  a: {socket: /run/q, ports: [/devices/x/usb1/1-1]}\n  \
             b: {socket: /run/q, ports: [/devices/x/usb1/1-2]}\n",
        );
        let found = judge_sockets(look.config(), look.path());
        assert_eq!(found.len(), 1);
        assert!(found[0].what.contains("`a` and `b`"), "{}", found[0].what);
    }
}
