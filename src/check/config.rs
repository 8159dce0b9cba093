//! The config: whether there is one, whether it can be read and trusted, and whether it is consistent.

use std::path::{Path, PathBuf};
use std::{env, io};

use super::finding::{Excerpt, Finding, plural};
use super::rules::Rules;
use super::trusted_owners;
use crate::config::file::{ConfigFile, VARIABLE};
use crate::config::parse::ConfigError;
use crate::config::{Config, Spelling};
use crate::root::Root;
use crate::text::shell_word;

/// The config as far as it can be read.
pub struct CheckedConfig {
    pub path: PathBuf,
    /// Empty if there is no file, or it cannot be parsed.
    pub config: Config,
    /// Whether there is a file, and all of it can be parsed.
    pub is_whole: bool,
    /// Whether only root can read it.
    pub is_hidden: bool,
    pub findings: Vec<Finding>,
}

pub fn check(root: &Root, given: Option<&Path>, rules: &Rules) -> CheckedConfig {
    let named = given
        .map(Path::to_path_buf)
        .or_else(|| env::var_os(VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from));
    let path = root.path(named.as_deref().unwrap_or(Path::new(ConfigFile::SYSTEM)));
    let mut checked = CheckedConfig {
        config: Config::default(),
        is_whole: false,
        is_hidden: false,
        findings: Vec::new(),
        path: path.clone(),
    };
    let file = match ConfigFile::find(root, given) {
        Ok(Some(file)) => file,
        Ok(None) => {
            let what = "there is no config, so no port is assigned to a VM";
            checked.findings.push(Finding::error("config-none", path.display(), what).advice(
                format!("write {}; `hotplugger identify` shows the ports", path.display()),
            ));
            return checked;
        }
        Err(error) => {
            let cause = error.root_cause().downcast_ref::<io::Error>();
            checked.is_hidden =
                cause.is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied);
            if !checked.is_hidden {
                checked.findings.push(
                    Finding::error("config-unreadable", path.display(), format!("{error:#}"))
                        .advice("replace it by a regular file of less than 1 MiB"),
                );
            }
            return checked;
        }
    };
    let parsed = file.config();
    checked.findings = check_file(root, &file, &parsed);
    if named.is_some_and(|named| path != root.path(ConfigFile::SYSTEM) && !rules.mentions(&named)) {
        let what = "it was named for this check only; the udev rule runs hotplugger without it";
        checked.findings.push(
            Finding::warning("config-not-udevs", file.path.display(), what)
                .advice("move it to /etc/hotplugger/config.yaml"),
        );
    }
    checked.is_whole = parsed.as_ref().is_ok_and(|config| config.broken.is_empty());
    checked.config = parsed.unwrap_or_default();
    checked.findings.extend(check_sockets(&checked.config, &file.path));
    CheckedConfig { path: file.path, ..checked }
}

fn check_file(
    root: &Root,
    file: &ConfigFile,
    parsed: &Result<Config, ConfigError>,
) -> Vec<Finding> {
    let path = file.path.display();
    let mut findings = vec![match parsed {
        Err(error) => unparsed(file, error),
        Ok(config) if config.virtual_machines.is_empty() => {
            Finding::error("config-empty", &path, "it has no VM")
                .advice("add one below `virtual_machines:`, with its `socket:` and `ports:`")
        }
        Ok(config) => {
            let what = format!("{} configured", plural(config.virtual_machines.len(), "VM"));
            Finding::ok("config-read", &path, what)
        }
    }];
    // If the owner of a file cannot be read, the failure to open it is reported.
    findings.push(match file.issue(&trusted_owners(root)).unwrap_or_default() {
        None => Finding::ok("config-safe", path, "only root can change it"),
        Some(issue) => {
            let what = format!("{issue}; hotplugger rejects the config");
            Finding::error("config-writable", path, what).run(issue.remedy())
        }
    });
    let Ok(config) = parsed else { return findings };
    findings.extend(config.broken.iter().map(|broken| unparsed(file, &broken.error)));
    let vms = &config.virtual_machines;
    findings.extend(vms.iter().flat_map(|vm| vm.spellings.iter().map(spelling)));
    findings.extend(vms.iter().filter(|vm| vm.ports.is_empty()).map(|vm| {
        Finding::warning("ports-none", &vm.name, "it lists no port, so no device is attached to it")
            .run(format!("hotplugger identify --write {}", shell_word(&vm.name)))
    }));
    findings
}

fn spelling(spelling: &Spelling) -> Finding {
    let Spelling { written, meant } = spelling;
    Finding::note("config-spelling", written, format!("it is taken for {meant}"))
        .advice(format!("write {meant}"))
}

fn unparsed(file: &ConfigFile, error: &ConfigError) -> Finding {
    let (path, text) = (file.path.display(), String::from_utf8_lossy(&file.text));
    let located = error.line.zip(error.column);
    let place = located
        .map_or_else(|| path.to_string(), |(line, column)| format!("{path}:{line}:{column}"));
    let excerpt = located.and_then(|(line, column)| Excerpt::of(&text, line, column));
    let advice = match error.line {
        Some(line) => format!("fix line {line} of {path}"),
        None => format!("fix {path}"),
    };
    Finding::error("config-syntax", place, error.message.clone()).showing(excerpt).advice(advice)
}

fn check_sockets(config: &Config, path: &Path) -> Vec<Finding> {
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
    use std::fs;

    #[test]
    fn an_error_shows_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let text = "virtual_machines:\n  win:\n    socket: ~/q\n    ports: [/devices/x/usb1/1-1]\n";
        fs::write(&path, text).unwrap();
        let root = Root::at("/");
        let checked = check(&root, Some(&path), &Rules::read(&root));
        let found = &checked.findings[0];
        assert_eq!((found.code, found.excerpt.as_ref().unwrap().line), ("config-syntax", 3));
        assert_eq!(found.place, format!("{}:3:13", path.display()));
        assert_eq!(checked.config, Config::default());
    }

    #[test]
    fn two_with_one_socket_are_told() {
        let config = parse_sections(
            "virtual_machines:\n  a: {socket: /run/q, ports: [/devices/x/usb1/1-1]}\n  \
             b: {socket: /run/q, ports: [/devices/x/usb1/1-2]}\n",
        );
        let found = check_sockets(&config.unwrap(), Path::new("/etc/hotplugger/config.yaml"));
        assert_eq!(found.len(), 1);
        assert!(found[0].what.contains("`a` and `b`"), "{}", found[0].what);
    }
}
