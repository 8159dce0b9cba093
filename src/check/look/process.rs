//! Processes, as /proc has them: QEMU's rights, and which programs of the host run.

use std::fs;
use std::path::PathBuf;

use crate::check::grabbers::Daemons;
use crate::check::process::{Process, RULES_IN_DIRECTORY, RULES_IN_LOCAL};
use crate::host::sysfs::attribute;
use crate::root::Root;
use crate::text::sanitize;

/// A file of a process.
pub(super) fn file(root: &Root, pid: u32, name: &str) -> PathBuf {
    root.path(format!("/proc/{pid}/{name}"))
}

/// A process's rights; none if it cannot be seen.
pub(super) fn look(root: &Root, pid: u32) -> Option<Process> {
    let status = fs::read_to_string(file(root, pid, "status")).ok()?;
    let profile = attribute(file(root, pid, "attr/current")).ok();
    let profile = profile.and_then(|profile| {
        let enforced = profile.trim_end().strip_suffix(" (enforce)")?;
        Some(sanitize(enforced, 100))
    });
    let libvirt_rules = libvirt_rules(root);
    Some(Process { pid, profile, libvirt_rules, ..parse(&status)? })
}

/// The file for rules of libvirt's QEMUs, by what the abstraction on this machine includes.
fn libvirt_rules(root: &Root) -> &'static str {
    let abstraction = root.path("/etc/apparmor.d/abstractions/libvirt-qemu");
    let includes = fs::read_to_string(&abstraction).unwrap_or_default();
    let has_directory = root.path("/etc/apparmor.d/abstractions/libvirt-qemu.d").is_dir();
    if includes.contains("<abstractions/libvirt-qemu.d>") || has_directory {
        RULES_IN_DIRECTORY
    } else {
        RULES_IN_LOCAL
    }
}

/// Reads /proc/PID/status (proc(5)): of four ids the last one is for files.
fn parse(status: &str) -> Option<Process> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::split_whitespace)
    };
    let mut groups: Vec<u32> = field("Groups")?.filter_map(|group| group.parse().ok()).collect();
    groups.push(field("Gid")?.nth(3)?.parse().ok()?);
    let capabilities = field("CapEff").and_then(|mut value| value.next());
    let capabilities = capabilities.and_then(|value| u64::from_str_radix(value, 16).ok());
    // CAP_DAC_OVERRIDE (capabilities(7)).
    let opens_all = capabilities.is_some_and(|set| set & 0b10 != 0);
    let user = field("Uid")?.nth(3)?.parse().ok()?;
    Some(Process { user, groups, opens_all, ..Process::default() })
}

/// Which of the programs that matter run.
pub(super) fn daemons(root: &Root) -> Daemons {
    let mut daemons = Daemons::default();
    for pid in pids(root) {
        match attribute(file(root, pid, "comm")).as_deref() {
            Ok("udisksd") => daemons.udisks = true,
            Ok("usbguard-daemon") => daemons.usbguard = true,
            _ => {}
        }
    }
    daemons
}

/// The processes there are.
pub(super) fn pids(root: &Root) -> Vec<u32> {
    let entries = fs::read_dir(root.path("/proc")).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libvirt_rules_go_where_the_abstraction_includes_them() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        assert_eq!(libvirt_rules(&root), RULES_IN_LOCAL);
        let abstractions = root.path("/etc/apparmor.d/abstractions");
        fs::create_dir_all(&abstractions).unwrap();
        let file = abstractions.join("libvirt-qemu");
        fs::write(&file, "  include if exists <local/abstractions/libvirt-qemu>\n").unwrap();
        assert_eq!(libvirt_rules(&root), RULES_IN_LOCAL);
        fs::write(&file, "  include if exists <abstractions/libvirt-qemu.d>\n").unwrap();
        assert_eq!(libvirt_rules(&root), RULES_IN_DIRECTORY);
        fs::write(&file, "").unwrap();
        fs::create_dir(abstractions.join("libvirt-qemu.d")).unwrap();
        assert_eq!(libvirt_rules(&root), RULES_IN_DIRECTORY);
    }

    #[test]
    fn the_ids_for_files_and_the_capability_are_read() {
        let status = "Name:\tqemu-system-x86\nState:\tS (sleeping)\nUid:\t0\t0\t0\t64055\n\
            Gid:\t0\t0\t0\t109\nGroups:\t5 7 \nCapEff:\t0000000000000000\n";
        let process = parse(status).unwrap();
        assert_eq!((process.user, process.opens_all), (64055, false));
        assert_eq!(process.groups, [5, 7, 109]);
        assert!(parse(&status.replace("0000000000000000", "000001ffffffffff")).unwrap().opens_all);
        assert_eq!(parse("nonsense"), None);
    }
}
