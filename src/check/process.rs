//! QEMU's process, and whether it may open the nodes of the devices in its ports.
//!
//! This depends on QEMU's user, groups and capabilities, on the node's owner, mode and access list, on
//! QEMU's own /dev, and on an `AppArmor` profile. The device lists of cgroups cannot be read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::finding::Finding;
use super::vm::VmFacts;
use crate::config::access::AccessMode;
use crate::device_id::DeviceId;
use crate::devpath::DevPath;
use crate::host::sysfs::attribute;
use crate::host::usbfs;
use crate::root::Root;
use crate::text::sanitize;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub user: u32,
    pub groups: Vec<u32>,
    /// Whether it may open any file (`CAP_DAC_OVERRIDE`).
    pub opens_all: bool,
    pub profile: Option<String>,
    pub libvirt_rules: &'static str,
}

/// Where libvirt's `AppArmor` abstraction includes the administrator's rules: a directory since
/// libvirt 8.10 or so, a file in `local/` before.
const RULES_IN_DIRECTORY: &str = "/etc/apparmor.d/abstractions/libvirt-qemu.d/hotplugger";
const RULES_IN_LOCAL: &str = "/etc/apparmor.d/local/abstractions/libvirt-qemu";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub path: PathBuf,
    pub device: String,
    pub devpath: DevPath,
    pub id: DeviceId,
    pub owner: u32,
    pub group: u32,
    pub mode: u32,
    /// Its access list beyond the mode; empty if it has none.
    pub list: Vec<Entry>,
    /// Whether QEMU's own /dev has it. `None` if that cannot be seen.
    pub visible: Option<bool>,
}

/// An entry of a POSIX access list (acl(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub who: Who,
    pub permissions: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    User(u32),
    OwningGroup,
    Group(u32),
    /// The most that users, groups and the owning group are given.
    Mask,
}

const BOTH: u32 = 0o6;

impl Process {
    pub(super) fn may_open(&self, node: &Node) -> bool {
        let both = |permissions: u32| permissions & BOTH == BOTH;
        if self.opens_all {
            return true;
        }
        if self.user == node.owner {
            return both(node.mode >> 6);
        }
        let of = |who: Who| node.list.iter().find(|entry| entry.who == who);
        let mask = of(Who::Mask).map_or(BOTH, |entry| entry.permissions);
        if let Some(entry) = of(Who::User(self.user)) {
            return both(entry.permissions & mask);
        }
        // With an access list the mode's group bits are the mask.
        let owning = of(Who::OwningGroup).map_or(node.mode >> 3, |entry| entry.permissions);
        let groups: Vec<u32> = self
            .groups
            .iter()
            .filter_map(|group| of(Who::Group(*group)))
            .map(|entry| entry.permissions)
            .chain(self.groups.contains(&node.group).then_some(owning))
            .collect();
        if groups.is_empty() {
            both(node.mode)
        } else {
            groups.into_iter().any(|permissions| both(permissions & mask))
        }
    }
}

/// Reads the `system.posix_acl_access` attribute (`include/uapi/linux/posix_acl_xattr.h`).
pub fn parse_list(attribute: &[u8]) -> Vec<Entry> {
    let Some(entries) = attribute.strip_prefix(&[2, 0, 0, 0]) else { return Vec::new() };
    let entry = |bytes: &[u8]| {
        let [tag, _, permissions, _, id @ ..] = bytes else { return None };
        let id = u32::from_le_bytes(id.try_into().ok()?);
        let who = match tag {
            0x02 => Who::User(id),
            0x04 => Who::OwningGroup,
            0x08 => Who::Group(id),
            0x10 => Who::Mask,
            _ => return None,
        };
        Some(Entry { who, permissions: u32::from(*permissions) })
    };
    entries.chunks_exact(8).filter_map(entry).collect()
}

pub(super) fn file(root: &Root, pid: u32, name: &str) -> PathBuf {
    root.path(format!("/proc/{pid}/{name}"))
}

/// The user of a QEMU that libvirt has started for a domain of that name
/// (libvirt, `src/qemu/qemu_command.c`: `qemuBuildNameCommandLine`).
pub fn user_of_domain(root: &Root, domain: &str) -> Option<u32> {
    let name = format!("guest={}", domain.replace(',', ",,"));
    let is_domain = |pid: &u32| {
        let arguments = fs::read(file(root, *pid, "cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        let mut arguments = arguments.split('\0').skip_while(|argument| *argument != "-name");
        let value = arguments.nth(1).unwrap_or_default();
        value
            .strip_prefix(&name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(",debug-threads="))
    };
    let pid = usbfs::pids(root).into_iter().find(is_domain)?;
    fs::metadata(file(root, pid, "cmdline")).ok().map(|metadata| metadata.uid())
}

/// Reads the rights of a process; `None` if they cannot be read.
pub fn gather(root: &Root, pid: u32) -> Option<Process> {
    let status = fs::read_to_string(file(root, pid, "status")).ok()?;
    let profile = attribute(file(root, pid, "attr/current")).ok();
    let profile = profile.and_then(|profile| {
        let enforced = profile.trim_end().strip_suffix(" (enforce)")?;
        Some(sanitize(enforced, 100))
    });
    let libvirt_rules = libvirt_rules(root);
    Some(Process { pid, profile, libvirt_rules, ..parse(&status)? })
}

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

/// Judges what QEMU may open, if its process is visible, and whether it is passed file descriptors.
pub fn check(facts: &VmFacts) -> Vec<Finding> {
    let Ok(answer) = &facts.answer else { return Vec::new() };
    let name = &facts.vm.name;
    if facts.vm.access.mode != AccessMode::Node {
        let what = format!("QEMU of `{name}` is passed the devices that it may not open");
        return vec![Finding::ok("fd-passed", name, what)];
    }
    let Some(process) = &facts.process else { return Vec::new() };
    // A device that QEMU has open needs no further proof.
    let closed = facts.nodes.iter().filter(|node| !answer.attached.contains(&node.id));
    let mut findings: Vec<Finding> = closed.map(|node| check_node(name, process, node)).collect();
    if let Some(profile) = process.profile.as_ref().filter(|_| answer.attached.is_empty()) {
        let what = format!(
            "QEMU runs under the AppArmor profile {profile}, which must allow the nodes of USB \
             devices"
        );
        let rule = "/dev/bus/usb/[0-9]*/[0-9]* rw,";
        let finding = Finding::warning("apparmor", name, what);
        findings.push(if profile.starts_with("libvirt-") {
            finding.add_line(process.libvirt_rules, rule)
        } else {
            finding.advice(format!("add this line to the profile: {rule}"))
        });
    }
    if facts.nodes.is_empty() && process.user != 0 && !process.opens_all {
        let what = format!(
            "QEMU runs as user {}; whether it may open devices is known once one is in its ports",
            process.user
        );
        findings.push(Finding::note("access-unknown", name, what));
    }
    findings
}

fn check_node(name: &str, process: &Process, node: &Node) -> Finding {
    let path = node.path.display();
    if node.visible == Some(false) {
        let what = format!("QEMU of `{name}` has its own /dev without it ({})", node.device);
        return Finding::error("node-hidden", path, what).advice(
            "let QEMU use the host's /dev: with libvirt `namespaces = []` in /etc/libvirt/qemu.conf",
        );
    }
    if process.may_open(node) {
        return Finding::ok("node-open", path, format!("QEMU of `{name}` may open it"));
    }
    let what = format!(
        "QEMU of `{name}` runs as user {} and may not open it ({}; owner {}, group {}, mode {:o})",
        process.user,
        node.device,
        node.owner,
        node.group,
        node.mode & 0o777
    );
    let port = &node.devpath;
    Finding::error("node-denied", path, what).add_line(
        "/etc/udev/rules.d/70-hotplugger-access.rules",
        format!(
            "SUBSYSTEM==\"usb\", ENV{{DEVTYPE}}==\"usb_device\", \
             DEVPATH==\"{port}|{port}/*\", OWNER=\"{}\"",
            process.user
        ),
    )
}

#[cfg(test)]
pub(in crate::check) mod tests {
    use super::*;

    pub(in crate::check) fn node(owner: u32, group: u32, mode: u32) -> Node {
        Node {
            path: "/dev/bus/usb/001/005".into(),
            device: "Stick".to_owned(),
            devpath: "/devices/x/usb1/1-1".parse().unwrap(),
            id: "hotplugger-1-1-5".parse().unwrap(),
            owner,
            group,
            mode,
            list: Vec::new(),
            visible: Some(true),
        }
    }

    pub(in crate::check) fn qemu() -> Process {
        Process { pid: 9, user: 64055, groups: vec![64055, 109], ..Process::default() }
    }

    #[test]
    fn owner_group_and_others_count_in_this_order() {
        let may = |node: Node| qemu().may_open(&node);
        assert!(!may(node(0, 0, 0o664)));
        assert!(may(node(0, 0, 0o666)));
        assert!(may(node(0, 109, 0o660)));
        assert!(!may(node(0, 109, 0o646)));
        assert!(may(node(64055, 0, 0o600)));
        assert!(!may(node(64055, 109, 0o066)));
        let root = Process { user: 0, opens_all: true, ..Process::default() };
        assert!(root.may_open(&node(7, 7, 0)));
    }

    /// As `setfacl -m u:64055:rw` and `-m m::r` write it.
    #[test]
    fn access_lists_count_below_their_mask() {
        let mut bytes = vec![2, 0, 0, 0];
        for (tag, permissions, id) in
            [(1u16, 6u16, !0u32), (2, 6, 64055), (4, 4, !0), (16, 6, !0), (32, 4, !0)]
        {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        let mut node = node(0, 0, 0o664);
        node.list = parse_list(&bytes);
        assert_eq!(node.list.len(), 3);
        assert!(qemu().may_open(&node));
        for entry in &mut node.list {
            if entry.who == Who::Mask {
                entry.permissions = 4;
            }
        }
        assert!(!qemu().may_open(&node));
        assert_eq!(parse_list(b"\x03\0\0\0nonsense"), []);
        assert_eq!(parse_list(b"\x02\0\0\0short"), []);
    }

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

#[cfg(test)]
mod access_tests {
    use super::*;
    use crate::check::process::tests::{node, qemu};
    use crate::check::vm::Answer;
    use crate::check::vm::tests::facts;

    #[test]
    fn each_obstacle_has_a_code() {
        let codes = |process: Process, nodes: Vec<Node>, attached: &[&str]| {
            let attached = attached.iter().map(|id| id.parse().unwrap()).collect();
            let mut facts = facts(Ok(Answer { attached, ..Answer::default() }));
            (facts.process, facts.nodes) = (Some(process), nodes);
            facts.vm.access.mode = AccessMode::Node;
            check(&facts).iter().map(|finding| finding.code).collect::<Vec<_>>()
        };
        assert_eq!(codes(qemu(), vec![node(0, 0, 0o664)], &[]), ["node-denied"]);
        assert_eq!(codes(qemu(), vec![node(0, 0, 0o666)], &[]), ["node-open"]);
        assert!(codes(qemu(), vec![node(0, 0, 0o664)], &["hotplugger-1-1-5"]).is_empty());
        let hidden = Node { visible: Some(false), ..node(0, 0, 0o666) };
        assert_eq!(codes(qemu(), vec![hidden], &[]), ["node-hidden"]);
        assert_eq!(codes(qemu(), vec![], &[]), ["access-unknown"]);
        let confined = Process { profile: Some("libvirt-1".to_owned()), ..qemu() };
        assert_eq!(codes(confined, vec![node(0, 0, 0o666)], &[]), ["node-open", "apparmor"]);
        assert!(codes(Process { opens_all: true, ..Process::default() }, vec![], &[]).is_empty());
    }

    #[test]
    fn device_passed_as_fd_need_not_be_opened() {
        let codes = |mode, nodes: Vec<Node>| {
            let mut facts = facts(Ok(Answer::default()));
            (facts.process, facts.nodes, facts.vm.access.mode) = (Some(qemu()), nodes, mode);
            check(&facts).iter().map(|finding| finding.code).collect::<Vec<_>>()
        };
        let denied = || vec![node(0, 0, 0o664)];
        assert_eq!(codes(AccessMode::Auto, denied()), ["fd-passed"]);
        assert_eq!(codes(AccessMode::Fd, denied()), ["fd-passed"]);
        assert_eq!(codes(AccessMode::Node, denied()), ["node-denied"]);
        assert_eq!(codes(AccessMode::Node, vec![node(0, 0, 0o666)]), ["node-open"]);
    }
}
