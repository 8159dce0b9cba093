//! The config: whether there is one, whether it can be read and trusted, and whether it is consistent.

use std::env;
use std::path::{Path, PathBuf};

use super::finding::Excerpt;
use super::finding::{Finding, plural};
use super::rules::RulesFacts;
use super::trusted_owners;
use crate::config::file::{ConfigFile, VARIABLE};
use crate::config::parse::ConfigError;
use crate::config::{Config, Spelling};
use crate::permissions::{PermissionIssue, PermissionKind};
use crate::root::Root;
use crate::text::shell_word;

#[derive(Debug)]
pub enum ConfigFacts {
    None {
        path: PathBuf,
    },
    /// A file that cannot be read, and why.
    Unreadable {
        path: PathBuf,
        /// Why it cannot be read, with its path.
        why: String,
        denied: bool,
    },
    File(Box<ConfigFileFacts>),
}

#[derive(Debug)]
pub struct ConfigFileFacts {
    pub path: PathBuf,
    pub text: String,
    pub parsed: Result<Config, ConfigError>,
    pub issue: Option<PermissionIssue>,
    /// Whether it was named for this run only, and no rule names it.
    pub unknown_to_udev: bool,
}

static NOTHING: Config =
    Config { virtual_machines: Vec::new(), exclude: Vec::new(), broken: Vec::new() };

impl ConfigFacts {
    /// The config; empty if the file cannot be parsed.
    pub fn config(&self) -> &Config {
        self.parsed().unwrap_or(&NOTHING)
    }

    /// The config, if there is a file of which all can be parsed.
    pub fn understood(&self) -> Option<&Config> {
        self.parsed().filter(|config| config.broken.is_empty())
    }

    fn parsed(&self) -> Option<&Config> {
        match self {
            Self::File(file) => file.parsed.as_ref().ok(),
            _ => None,
        }
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::None { path } | Self::Unreadable { path, .. } => path,
            Self::File(file) => &file.path,
        }
    }
}

pub fn gather(root: &Root, given: Option<&Path>, rules: &RulesFacts) -> ConfigFacts {
    let named = given
        .map(Path::to_path_buf)
        .or_else(|| env::var_os(VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from));
    let path = root.path(named.clone().unwrap_or_else(|| ConfigFile::SYSTEM.into()));
    let file = match ConfigFile::find(root, given) {
        Ok(Some(file)) => file,
        Ok(None) => return ConfigFacts::None { path },
        Err(error) => {
            let denied = error
                .root_cause()
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
            return ConfigFacts::Unreadable { path, why: format!("{error:#}"), denied };
        }
    };
    let text = String::from_utf8_lossy(&file.text).into_owned();
    let parsed = file.config();
    ConfigFacts::File(Box::new(ConfigFileFacts {
        unknown_to_udev: named.is_some_and(|named| {
            root.path(&named) != root.path(ConfigFile::SYSTEM) && !rules.mentions(&named)
        }),
        // If the owner of a file cannot be read, the failure to open it is reported.
        issue: file.issue(&trusted_owners(root)).unwrap_or_default(),
        path: file.path,
        text,
        parsed,
    }))
}

pub fn check(facts: &ConfigFacts) -> Vec<Finding> {
    match facts {
        ConfigFacts::None { path } => vec![
            Finding::error(
                "config-none",
                path.display(),
                "there is no config, so no port is assigned to a VM",
            )
            .advice(format!("write {}; `hotplugger identify` shows the ports", path.display())),
        ],
        // Reported among the skipped facts.
        ConfigFacts::Unreadable { denied: true, .. } => Vec::new(),
        ConfigFacts::Unreadable { path, why, .. } => vec![
            Finding::error("config-unreadable", path.display(), why.clone())
                .advice("replace it by a regular file of less than 1 MiB"),
        ],
        ConfigFacts::File(file) => check_file(file),
    }
}

fn check_file(file: &ConfigFileFacts) -> Vec<Finding> {
    let path = file.path.display();
    let mut findings = vec![match &file.parsed {
        Err(error) => unparsed(file, error),
        Ok(config) if config.virtual_machines.is_empty() => {
            Finding::error("config-empty", path, "it has no VM")
                .advice("add one below `virtual_machines:`, with its `socket:` and `ports:`")
        }
        Ok(config) => Finding::ok(
            "config-read",
            path,
            format!("{} configured", plural(config.virtual_machines.len(), "VM")),
        ),
    }];
    findings.push(match &file.issue {
        None => Finding::ok("config-safe", file.path.display(), "only root can change it"),
        Some(issue) => {
            let what = match issue.kind {
                PermissionKind::Owner(user) => format!("belongs to user {user}"),
                PermissionKind::Mode(mode) => {
                    format!("can be written by other users (mode {mode:o})")
                }
            };
            let weak = issue.path.display();
            Finding::error(
                "config-writable",
                file.path.display(),
                format!("{weak} {what}; hotplugger rejects the config"),
            )
            .run(issue.remedy())
        }
    });
    let config = file.parsed.as_ref().unwrap_or(&NOTHING);
    findings.extend(config.broken.iter().map(|broken| unparsed(file, &broken.error)));
    findings
        .extend(config.virtual_machines.iter().flat_map(|vm| vm.spellings.iter().map(spelling)));
    let machines = &config.virtual_machines;
    findings.extend(machines.iter().filter(|vm| vm.ports.is_empty()).map(|vm| {
        Finding::warning("ports-none", &vm.name, "it lists no port, so no device is attached to it")
            .run(format!("hotplugger identify --write {}", shell_word(&vm.name)))
    }));
    if file.unknown_to_udev {
        findings.push(
            Finding::warning(
                "config-not-udevs",
                file.path.display(),
                "it was named for this check only; the udev rule runs hotplugger without it",
            )
            .advice("move it to /etc/hotplugger/config.yaml"),
        );
    }
    findings
}

fn spelling(spelling: &Spelling) -> Finding {
    let Spelling { written, meant } = spelling;
    Finding::note("config-spelling", written, format!("it is taken for {meant}"))
        .advice(format!("write {meant}"))
}

fn unparsed(file: &ConfigFileFacts, error: &ConfigError) -> Finding {
    let path = file.path.display();
    let located = error.line.zip(error.column);
    let place = located
        .map_or_else(|| path.to_string(), |(line, column)| format!("{path}:{line}:{column}"));
    let excerpt = located.and_then(|(line, column)| Excerpt::of(&file.text, line, column));
    let advice = match error.line {
        Some(line) => format!("fix line {line} of {path}"),
        None => format!("fix {path}"),
    };
    Finding::error("config-syntax", place, error.message.clone()).showing(excerpt).advice(advice)
}

pub fn check_sockets(config: &Config, path: &Path) -> Vec<Finding> {
    let vms = &config.virtual_machines;
    let shared = vms.iter().enumerate().filter_map(|(index, second)| {
        let first = vms[..index].iter().find(|first| first.monitor == second.monitor)?;
        Some(
            Finding::warning(
                "socket-shared",
                path.display(),
                format!(
                    "`{}` and `{}` have the same socket {}; the devices of both go to the one \
                     guest behind it",
                    first.name, second.name, second.monitor
                ),
            )
            .advice(format!(
                "set `socket:` of `{}` to the socket of its own QEMU, or merge the two entries",
                second.name
            )),
        )
    });
    shared.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::section::parse_sections;

    fn facts(text: &str) -> ConfigFacts {
        ConfigFacts::File(Box::new(ConfigFileFacts {
            path: "/etc/hotplugger/config.yaml".into(),
            text: text.to_owned(),
            parsed: parse_sections(text),
            issue: None,
            unknown_to_udev: false,
        }))
    }

    #[test]
    fn an_error_shows_its_line() {
        let facts =
            facts("virtual_machines:\n  win:\n    socket: ~/q\n    ports: [/devices/x/usb1/1-1]\n");
        let found = &check(&facts)[0];
        assert_eq!((found.code, found.excerpt.as_ref().unwrap().line), ("config-syntax", 3));
        assert_eq!(found.place, "/etc/hotplugger/config.yaml:3:13");
        assert_eq!(facts.config(), &Config::default());
    }

    #[test]
    fn two_with_one_socket_are_told() {
        let facts = facts(
            "virtual_machines:\n  a: {socket: /run/q, ports: [/devices/x/usb1/1-1]}\n  \
             b: {socket: /run/q, ports: [/devices/x/usb1/1-2]}\n",
        );
        let found = check_sockets(facts.config(), facts.path());
        assert_eq!(found.len(), 1);
        assert!(found[0].what.contains("`a` and `b`"), "{}", found[0].what);
    }
}
