//! Whether QEMU may open the nodes of the devices in its ports.
//!
//! This depends on QEMU's user, groups and capabilities, on the node's owner, mode and access list, on
//! QEMU's own /dev, and on an `AppArmor` profile. The device lists of cgroups cannot be read.

use super::finding::Finding;
use super::process::{Node, Process};
use super::vm::{Answer, VmFacts};
use crate::config::access::AccessMode;

/// Judges what QEMU may open, if its process is visible, and whether it is passed file descriptors.
pub fn check(facts: &VmFacts) -> Vec<Finding> {
    let Ok(answer) = &facts.answer else { return Vec::new() };
    let access = facts.vm.access.mode;
    let name = &facts.vm.name;
    if access == AccessMode::Node {
        return without_fd(facts, answer);
    }
    let what = format!("QEMU of `{name}` is passed the devices that it may not open");
    vec![Finding::ok("fd-passed", name, what)]
}

fn without_fd(facts: &VmFacts, answer: &Answer) -> Vec<Finding> {
    let Some(process) = &facts.process else { return Vec::new() };
    let name = &facts.vm.name;
    // A device that QEMU has open needs no further proof.
    let closed: Vec<&Node> =
        facts.nodes.iter().filter(|node| !answer.attached.contains(&node.id)).collect();
    let mut findings: Vec<Finding> =
        closed.iter().map(|node| check_node(name, process, node)).collect();
    if let Some(profile) = process.profile.as_ref().filter(|_| answer.attached.is_empty()) {
        let what = format!(
            "QEMU runs under the AppArmor profile {profile}, which must allow the nodes of USB \
             devices"
        );
        let rule = "/dev/bus/usb/[0-9]*/[0-9]* rw,";
        findings.push(match profile.strip_prefix("libvirt-") {
            Some(_) => {
                Finding::warning("apparmor", name, what).add_line(process.libvirt_rules, rule)
            }
            None => Finding::warning("apparmor", name, what)
                .advice(format!("add this line to the profile: {rule}")),
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
mod tests {
    use super::*;
    use crate::check::process::tests::{node, qemu};
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
