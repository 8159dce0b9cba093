//! The units and hooks that run `sync`.

use std::{env, fs};

use super::finding::Finding;
use super::rules::Rules;
use crate::config::{Config, VirtualMachine};
use crate::install::{
    Content, Group, Installed, ItemState, PathUnit, has_selinux, path_units, states, watched_socket,
};
use crate::root::Root;
use crate::text::shell_word;

/// Checks the units and hooks. Without a config the units of VMs are not checked.
pub fn check(root: &Root, rules: &Rules, config: Option<&Config>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let states = states(root, &program(rules), config);
    let vms = config.map_or(&[][..], |config| &config.virtual_machines);
    for group in [Group::Systemd, Group::Sleep, Group::Libvirt] {
        let states: Vec<&ItemState> = states
            .iter()
            .filter(|state| state.item.group == group)
            .filter(|state| state.obstacle.is_none() || state.installed != Installed::Missing)
            .collect();
        let Some(first) = states.first() else { continue };
        if states.iter().all(|state| state.installed == Installed::Missing) {
            // This may be intended: there are other ways to start a VM.
            let what = format!("it is not installed: `sync` does not run {}", when(group));
            findings.push(Finding::note("unit-none", first.path(), what).run(INSTALL));
            continue;
        }
        let wrong: Vec<Finding> = states.iter().filter_map(|state| check_state(state)).collect();
        if wrong.is_empty() {
            let what = format!("`sync` runs {}", when(group));
            findings.push(Finding::ok("unit-installed", first.path(), what));
        }
        findings.extend(wrong);
        if group == Group::Libvirt && has_selinux(root) {
            let what = "SELinux may not allow libvirt to run this hook; then no domain starts";
            let hook = Finding::warning("unit-selinux", first.path(), what);
            findings.push(hook.run("hotplugger install --no-libvirt"));
        }
        if group == Group::Systemd {
            findings.extend(vms.iter().filter_map(unsupported));
        }
    }
    let runs_at_start = |state: &ItemState| {
        state.obstacle.is_none() && [Group::Systemd, Group::Libvirt].contains(&state.item.group)
    };
    if findings.is_empty() && !states.iter().any(runs_at_start) {
        let what =
            "this host has neither systemd nor libvirt, so nothing runs `sync` when a VM starts";
        findings.push(
            Finding::note("unit-none", "sync", what)
                .advice("run `hotplugger sync NAME --wait 30` in the script that starts the VM"),
        );
    }
    let mut left_over = if config.is_some() { path_units(root) } else { Vec::new() };
    left_over.retain(|path| !states.iter().any(|state| state.item.path == *path));
    findings.extend(left_over.iter().map(|path| {
        Finding::warning("unit-left-over", path, "it belongs to a VM that the config no longer has")
            .run(INSTALL)
    }));
    if !vms.is_empty() && suspends_domains(root) {
        let what = "libvirt saves the state of running domains when the host shuts down; QEMU cannot restore \
                    one that was saved with a device attached";
        findings.push(Finding::note("libvirt-guests", LIBVIRT_GUESTS[0], what).advice(
            "set ON_SHUTDOWN=shutdown there, or run `hotplugger detach --vm NAME` before a shutdown",
        ));
    }
    findings
}

/// The program of the rule, which units and hooks should run too.
fn program(rules: &Rules) -> String {
    let named = rules.programs().into_iter().find(|program| program.starts_with('/'));
    let this = || env::current_exe().map(|path| path.to_string_lossy().into_owned());
    named.or_else(|| this().ok()).unwrap_or_default()
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

fn check_state(state: &ItemState) -> Option<Finding> {
    let path = &state.item.path;
    let there = match &state.installed {
        Installed::UpToDate | Installed::Packaged(_) => return None,
        Installed::Missing => {
            let what =
                "it is not installed, but its counterpart is: `sync` does not run when it should";
            return Some(Finding::warning("unit-missing", path, what).run(INSTALL));
        }
        Installed::Modified(there) => there,
    };
    let wanted = match &state.item.content {
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

fn unsupported(vm: &VirtualMachine) -> Option<Finding> {
    let what = format!("{}: `sync` does not run when it starts", PathUnit::of(vm).err()?);
    let sync = format!("hotplugger sync {} --wait 30", shell_word(&vm.name));
    let finding = Finding::warning("unit-impossible", &vm.name, what);
    Some(finding.advice(format!("run `{sync}` when the VM starts")))
}

#[cfg(test)]
pub(in crate::check) mod tests {
    use super::*;
    use crate::config::parse::parse;
    use crate::install::SYSTEMD_RUNS;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// The findings on a host with systemd, two VMs and their units; `change` plants a fault.
    fn findings(change: impl Fn(&Root)) -> Vec<Finding> {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let text = "virtual_machines:\n  a: {socket: /run/a, ports: [/devices/usb1/1-1]}\n  \
                    b: {socket: /run/b, ports: [/devices/usb1/1-2]}\n";
        let (rules, config) = (Rules::read(&root), parse(text).unwrap());
        fs::create_dir_all(root.path(SYSTEMD_RUNS)).unwrap();
        for ItemState { item, obstacle, .. } in states(&root, &program(&rules), Some(&config)) {
            if obstacle.is_some() || item.group == Group::Base {
                continue;
            }
            let path = root.path(&item.path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match item.content {
                Content::File { text, mode } => {
                    fs::write(&path, text).unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                }
                Content::Link(target) => symlink(target, path).unwrap(),
                Content::ConfigTemplate(_) => unreachable!(),
            }
        }
        change(&root);
        check(&root, &rules, Some(&config))
    }

    fn codes(change: impl Fn(&Root)) -> Vec<&'static str> {
        findings(change).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn each_group_is_complete_missing_or_incomplete() {
        let remove = |root: &Root, path: &str| fs::remove_dir_all(root.path(path)).unwrap();
        // Of the path units and of the hook for suspend.
        assert_eq!(codes(|_| {}), ["unit-installed"; 2]);
        assert_eq!(codes(|root| remove(root, "/etc/systemd")), ["unit-none", "unit-installed"]);
        // Neither systemd nor libvirt: the script of the VM runs `sync`.
        let nothing =
            |root: &Root| ["/etc", "/usr", "/run"].iter().for_each(|path| remove(root, path));
        let found = findings(nothing);
        assert_eq!((found.len(), found[0].place.as_str()), (1, "sync"));
        for path in ["hotplugger-sync@b.path", "paths.target.wants/hotplugger-sync@b.path"] {
            let path = format!("/etc/systemd/system/{path}");
            let lose = |root: &Root| fs::remove_file(root.path(&path)).unwrap();
            assert_eq!(codes(lose), ["unit-missing", "unit-installed"]);
        }
    }

    #[test]
    fn unit_with_another_socket_is_reported_with_both() {
        let path = "/etc/systemd/system/hotplugger-sync@a.path";
        let text = "[Path]\nPathChanged=/run/old\n";
        let found = findings(|root| fs::write(root.path(path), text).unwrap());
        assert_eq!(found[0].what, "it watches /run/old, but the config has /run/a");
        assert_eq!(found[0].code, "unit-stale");
    }
}
