//! Whether QEMU may open the nodes of the devices in its ports.
//!
//! What decides is QEMU's user, groups and capabilities, the node's owner, mode and access list,
//! QEMU's own view of /dev, and an `AppArmor` profile. Cgroups' device lists cannot be read.

use std::path::PathBuf;

use super::finding::Finding;
use super::machine::MachineLook;
use crate::device_id::DeviceId;
use crate::devpath::DevPath;

/// QEMU's process, as /proc has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// The user as which it opens files.
    pub user: u32,
    /// The groups as which it does.
    pub groups: Vec<u32>,
    /// Whether it may open any file (`CAP_DAC_OVERRIDE`).
    pub opens_all: bool,
    /// The `AppArmor` profile that is enforced on it.
    pub profile: Option<String>,
}

/// A device's node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its path.
    pub path: PathBuf,
    /// What is behind it.
    pub device: String,
    /// Its port's DEVPATH.
    pub devpath: DevPath,
    /// The id it has in a guest.
    pub id: DeviceId,
    /// Its owner.
    pub owner: u32,
    /// Its group.
    pub group: u32,
    /// Its mode.
    pub mode: u32,
    /// Its access list beyond the mode; empty if it has none.
    pub list: Vec<Entry>,
    /// Whether QEMU's own /dev has it; none if that cannot be seen.
    pub visible: Option<bool>,
}

/// An entry of a POSIX access list (acl(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// To whom it applies.
    pub who: Who,
    /// The permission bits, as in a mode.
    pub permissions: u32,
}

/// To whom an entry applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A user.
    User(u32),
    /// The node's group.
    OwningGroup,
    /// A group.
    Group(u32),
    /// The most that users, groups and the owning group are given.
    Mask,
}

/// To read and to write.
const BOTH: u32 = 0o6;

impl Process {
    /// Whether it may read and write the node.
    fn may_open(&self, node: &Node) -> bool {
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

/// Judges what QEMU's process may do, if it was seen.
pub fn judge(look: &MachineLook) -> Vec<Finding> {
    let (Ok(answer), Some(process)) = (&look.answer, &look.process) else { return Vec::new() };
    let name = &look.vm.name;
    // A device that QEMU has open proves more than what is looked at here.
    let closed: Vec<&Node> =
        look.nodes.iter().filter(|node| !answer.attached.contains(&node.id)).collect();
    let mut findings: Vec<Finding> =
        closed.iter().map(|node| judge_node(name, process, node)).collect();
    if let Some(profile) = process.profile.as_ref().filter(|_| answer.attached.is_empty()) {
        let what = format!(
            "QEMU runs under the AppArmor profile {profile}, which must allow it the nodes of USB \
             devices"
        );
        let rule = "/dev/bus/usb/[0-9]*/[0-9]* rw,";
        findings.push(match profile.strip_prefix("libvirt-") {
            Some(_) => Finding::warning("apparmor", name, what)
                .add_line("/etc/apparmor.d/abstractions/libvirt-qemu.d/hotplugger", rule),
            None => Finding::warning("apparmor", name, what)
                .advice(format!("let the profile have the line: {rule}")),
        });
    }
    if look.nodes.is_empty() && process.user != 0 && !process.opens_all {
        let what = format!(
            "QEMU runs as user {}; whether it may open devices shows when one is in its ports",
            process.user
        );
        findings.push(Finding::note("access-unknown", name, what));
    }
    findings
}

fn judge_node(name: &str, process: &Process, node: &Node) -> Finding {
    let path = node.path.display();
    if node.visible == Some(false) {
        let what = format!("QEMU of `{name}` has a /dev of its own without it ({})", node.device);
        return Finding::fault("node-hidden", path, what).advice(
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
    Finding::fault("node-denied", path, what).add_line(
        "/etc/udev/rules.d/70-hotplugger-access.rules",
        format!(
            "SUBSYSTEM==\"usb\", ENV{{DEVTYPE}}==\"usb_device\", \
             DEVPATH==\"{port}|{port}/*\", OWNER=\"{}\"",
            process.user
        ),
    )
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::machine::Answer;
    use crate::check::machine::tests::look;

    fn node(owner: u32, group: u32, mode: u32) -> Node {
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

    fn qemu() -> Process {
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
    fn each_obstacle_has_its_name() {
        let codes = |process: Process, nodes: Vec<Node>, attached: &[&str]| {
            let attached = attached.iter().map(|id| id.parse().unwrap()).collect();
            let mut look = look(Ok(Answer { attached, ..Answer::default() }));
            (look.process, look.nodes) = (Some(process), nodes);
            judge(&look).iter().map(|finding| finding.code).collect::<Vec<_>>()
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
}
