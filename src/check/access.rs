//! Whether QEMU may open the nodes of the devices in its ports.
//!
//! What decides is QEMU's user, groups and capabilities, the node's owner, mode and access list,
//! QEMU's own view of /dev, and an `AppArmor` profile. Cgroups' device lists cannot be read.

use super::finding::Finding;
use super::machine::{Answer, MachineLook};
use super::process::{Node, Process};
use crate::config::access::AccessMode;

/// Judges what QEMU's process may do, if it was seen, and whether it is handed what it may not
/// open.
pub fn judge(look: &MachineLook) -> Vec<Finding> {
    let Ok(answer) = &look.answer else { return Vec::new() };
    let way = look.vm.access.way;
    let name = &look.vm.name;
    match &answer.not_handed {
        _ if way == AccessMode::Node => by_itself(look, answer),
        None => {
            let what = format!("QEMU of `{name}` is handed the devices that it may not open");
            vec![Finding::ok("node-handed", name, what)]
        }
        Some(why) if way == AccessMode::Fd => vec![not_handed(Finding::fault, look, why)],
        Some(why) => {
            let mut findings = by_itself(look, answer);
            // What it can open by itself it need not be handed.
            if findings.iter().any(|finding| finding.code != "node-open") {
                findings.insert(0, not_handed(Finding::warning, look, why));
            }
            findings
        }
    }
}

fn not_handed(
    level: fn(&'static str, String, String) -> Finding,
    look: &MachineLook,
    why: &str,
) -> Finding {
    level("not-handed", look.socket.display().to_string(), why.to_owned()).advice(
        "let QEMU make the socket in a folder that is root's or its own, and name the user it runs \
         as with `user:`",
    )
}

/// Judges what it may open by itself.
fn by_itself(look: &MachineLook, answer: &Answer) -> Vec<Finding> {
    let Some(process) = &look.process else { return Vec::new() };
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
            Some(_) => {
                Finding::warning("apparmor", name, what).add_line(process.libvirt_rules, rule)
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::machine::tests::look;
    use crate::check::process::tests::{node, qemu};

    #[test]
    fn each_obstacle_has_its_name() {
        let codes = |process: Process, nodes: Vec<Node>, attached: &[&str]| {
            let attached = attached.iter().map(|id| id.parse().unwrap()).collect();
            let mut look = look(Ok(Answer { attached, ..Answer::default() }));
            (look.process, look.nodes) = (Some(process), nodes);
            look.vm.access.way = AccessMode::Node;
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

    #[test]
    fn what_it_is_handed_it_need_not_open() {
        let codes = |way, nodes: Vec<Node>, not_handed: Option<&str>| {
            let not_handed = not_handed.map(str::to_owned);
            let mut look = look(Ok(Answer { not_handed, ..Answer::default() }));
            (look.process, look.nodes, look.vm.access.way) = (Some(qemu()), nodes, way);
            judge(&look).iter().map(|finding| finding.code).collect::<Vec<_>>()
        };
        let denied = || vec![node(0, 0, 0o664)];
        assert_eq!(codes(AccessMode::Auto, denied(), None), ["node-handed"]);
        assert_eq!(codes(AccessMode::Fd, denied(), None), ["node-handed"]);
        assert_eq!(codes(AccessMode::Auto, denied(), Some("no")), ["not-handed", "node-denied"]);
        let open = || vec![node(0, 0, 0o666)];
        assert_eq!(codes(AccessMode::Auto, open(), Some("no")), ["node-open"]);
        assert_eq!(codes(AccessMode::Fd, open(), Some("no")), ["not-handed"]);
    }
}
