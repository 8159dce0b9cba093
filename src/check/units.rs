//! The units and hooks that run `sync`.

use std::{env, fs};

use super::finding::Finding;
use super::rules::Rules;
use crate::config::Config;
use crate::install::{Content, Group, InstallItem, items};
use crate::install::{Installed, has_selinux, in_use, installed, obstacle, path_units};
use crate::install::{PathUnit, UnitNameError, watched_socket};
use crate::root::Root;
use crate::text::shell_word;

#[derive(Debug, Default)]
pub struct UnitsFacts {
    pub items: Vec<UnitFacts>,
    /// Path units and links of VMs that the config does not have; empty if the config cannot be
    /// read.
    pub left_over: Vec<String>,
    /// The VMs that cannot have a unit, and why.
    pub unsupported: Vec<(String, UnitNameError)>,
    pub selinux: bool,
    /// Whether libvirt suspends running domains when the host shuts down.
    pub suspends_domains: bool,
}

#[derive(Debug)]
pub struct UnitFacts {
    pub item: InstallItem,
    pub is_applicable: bool,
    pub installed: Installed,
}

pub fn check(facts: &UnitsFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for group in [Group::Systemd, Group::Sleep, Group::Libvirt] {
        let items: Vec<&UnitFacts> = facts
            .items
            .iter()
            .filter(|one| one.item.group == group)
            .filter(|one| one.is_applicable || one.installed != Installed::Missing)
            .collect();
        let Some(first) = items.first() else { continue };
        if items.iter().all(|one| one.installed == Installed::Missing) {
            findings.push(none(group, first));
            continue;
        }
        let wrong: Vec<Finding> = items.iter().filter_map(|one| check_one(one)).collect();
        if wrong.is_empty() {
            let what = format!("`sync` runs {}", when(group));
            findings.push(Finding::ok("unit-installed", &first.item.path, what));
        }
        findings.extend(wrong);
        if group == Group::Libvirt && facts.selinux {
            let what = "SELinux may not allow libvirt to run this hook; then no domain starts";
            let hook = Finding::warning("unit-selinux", &first.item.path, what);
            findings.push(hook.run("hotplugger install --no-libvirt"));
        }
        if group == Group::Systemd {
            findings.extend(facts.unsupported.iter().map(|(vm, why)| unsupported(vm, *why)));
        }
    }
    let runs_at_start = |one: &UnitFacts| one.is_applicable && one.item.group != Group::Sleep;
    if findings.is_empty() && !facts.items.iter().any(runs_at_start) {
        let what =
            "this host has neither systemd nor libvirt, so nothing runs `sync` when a VM starts";
        findings.push(
            Finding::note("unit-none", "sync", what)
                .advice("run `hotplugger sync NAME --wait 30` in the script that starts the VM"),
        );
    }
    findings.extend(facts.left_over.iter().map(|path| {
        Finding::warning("unit-left-over", path, "it belongs to a VM that the config no longer has")
            .run(INSTALL)
    }));
    if facts.suspends_domains {
        let what = "libvirt saves the state of running domains when the host shuts down; QEMU cannot restore \
                    one that was saved with a device attached";
        findings.push(Finding::note("libvirt-guests", LIBVIRT_GUESTS[0], what).advice(
            "set ON_SHUTDOWN=shutdown there, or run `hotplugger detach --vm NAME` before a shutdown",
        ));
    }
    findings
}

/// The settings of libvirt-guests.service, of Debian and of Fedora.
const LIBVIRT_GUESTS: [&str; 2] = ["/etc/default/libvirt-guests", "/etc/sysconfig/libvirt-guests"];

/// To suspend is the default (libvirt, `tools/libvirt-guests.sh.in`).
fn suspends_domains(root: &Root) -> bool {
    let wants = "/etc/systemd/system/multi-user.target.wants/libvirt-guests.service";
    let is_enabled = root.path(wants).is_symlink();
    let files = LIBVIRT_GUESTS.map(|path| fs::read_to_string(root.path(path)).unwrap_or_default());
    let mut lines = files.iter().flat_map(|text| text.lines());
    let set = lines.rfind(|line| line.starts_with("ON_SHUTDOWN="));
    is_enabled && set.is_none_or(|line| line.contains("suspend"))
}

const INSTALL: &str = "hotplugger install";

fn when(group: Group) -> &'static str {
    match group {
        Group::Sleep => "when the host wakes up",
        Group::Libvirt => "when a libvirt domain has started or ended",
        Group::Base | Group::Systemd => "when the socket of a VM appears or disappears",
    }
}

/// This may be intended: there are other ways to start a VM.
fn none(group: Group, first: &UnitFacts) -> Finding {
    let what = format!("it is not installed: `sync` does not run {}", when(group));
    Finding::note("unit-none", &first.item.path, what).run(INSTALL)
}

fn check_one(facts: &UnitFacts) -> Option<Finding> {
    let path = &facts.item.path;
    let there = match &facts.installed {
        Installed::UpToDate => return None,
        Installed::Missing => {
            let what =
                "it is not installed, but its counterpart is: `sync` does not run when it should";
            return Some(Finding::warning("unit-missing", path, what).run(INSTALL));
        }
        Installed::Modified(there) => there,
    };
    let wanted = match &facts.item.content {
        Content::File { text, .. } => watched_socket(text),
        _ => None,
    };
    let what = match (watched_socket(there), wanted) {
        (Some(there), Some(wanted)) if there != wanted => {
            format!("it watches {there}, but the config has {wanted}")
        }
        _ => "it differs from what this version of hotplugger installs".to_owned(),
    };
    Some(Finding::warning("unit-stale", path, what).run(INSTALL))
}

fn unsupported(vm: &str, why: UnitNameError) -> Finding {
    let what = format!("{why}: `sync` does not run when it starts");
    Finding::warning("unit-impossible", vm, what)
        .advice(format!("run `hotplugger sync {} --wait 30` when the VM starts", shell_word(vm)))
}

pub fn gather(root: &Root, rules: &Rules, config: Option<&Config>) -> UnitsFacts {
    // They run the same program as the rule.
    let named = rules.programs().into_iter().find(|program| program.starts_with('/'));
    let this = || env::current_exe().map(|path| path.to_string_lossy().into_owned());
    let program = named.or_else(|| this().ok()).unwrap_or_default();
    let items: Vec<_> =
        items(&program, config).into_iter().filter(|item| item.group != Group::Base).collect();
    let facts = |item| UnitFacts {
        is_applicable: obstacle(root, &item).is_none(),
        installed: installed(root, &item),
        item,
    };
    let items: Vec<UnitFacts> = items.iter().map(|item| in_use(root, item)).map(facts).collect();
    let machines = config.map_or(&[][..], |config| &config.virtual_machines);
    let unsupported =
        machines.iter().filter_map(|vm| Some((vm.name.clone(), PathUnit::of(vm).err()?)));
    let mut left_over = if config.is_some() { path_units(root) } else { Vec::new() };
    left_over.retain(|path| !items.iter().any(|facts| facts.item.path == *path));
    UnitsFacts {
        unsupported: unsupported.collect(),
        selinux: has_selinux(root),
        suspends_domains: !machines.is_empty() && suspends_domains(root),
        left_over,
        items,
    }
}

#[cfg(test)]
pub(in crate::check) mod tests {
    use super::*;
    use crate::config::parse::parse;
    use crate::install::items;

    /// Those of a machine with systemd and two VMs; `change` plants a fault.
    fn codes(change: impl Fn(&mut UnitFacts)) -> Vec<&'static str> {
        let text = "virtual_machines:\n  a: {socket: /run/a, ports: [/devices/usb1/1-1]}\n  \
                    b: {socket: /run/b, ports: [/devices/usb1/1-2]}\n";
        let config = parse(text).unwrap();
        let facts = items("/usr/bin/hotplugger", Some(&config)).into_iter().map(|item| {
            let is_applicable = item.group == Group::Systemd;
            let installed = if is_applicable { Installed::UpToDate } else { Installed::Missing };
            let mut facts = UnitFacts { item, is_applicable, installed };
            change(&mut facts);
            facts
        });
        let facts = UnitsFacts { items: facts.collect(), ..UnitsFacts::default() };
        check(&facts).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn each_group_is_complete_missing_or_incomplete() {
        assert_eq!(codes(|_| {}), ["unit-installed"]);
        assert_eq!(codes(|facts| facts.installed = Installed::Missing), ["unit-none"]);
        // Neither systemd nor libvirt: the script of the VM runs `sync`.
        assert_eq!(
            codes(|facts| (facts.installed, facts.is_applicable) = (Installed::Missing, false)),
            ["unit-none"]
        );
        let lose = |end: &'static str| {
            move |facts: &mut UnitFacts| {
                if facts.item.path.ends_with(end) {
                    facts.installed = Installed::Missing;
                }
            }
        };
        assert_eq!(codes(lose("system/hotplugger-sync@b.path")), ["unit-missing"]);
        assert_eq!(codes(lose("wants/hotplugger-sync@b.path")), ["unit-missing"]);
    }

    #[test]
    fn unit_with_another_socket_is_reported_with_both() {
        let text = "virtual_machines:\n  a: {socket: /run/a, ports: [/devices/usb1/1-1]}\n";
        let items = items("/usr/bin/hotplugger", Some(&parse(text).unwrap()));
        let item = items.into_iter().find(|item| item.path.ends_with("@a.path")).unwrap();
        let installed = Installed::Modified("[Path]\nPathChanged=/run/old\n".to_owned());
        let finding = check_one(&UnitFacts { item, is_applicable: true, installed }).unwrap();
        assert_eq!(finding.what, "it watches /run/old, but the config has /run/a");
        assert_eq!(finding.code, "unit-stale");
    }
}
