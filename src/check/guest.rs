//! QEMU and the guest: version, usb-host, controllers, the buses of `hubs:`.

use super::finding::Finding;
use super::vm::{Answer, VmFacts};
use crate::guest::bus::GuestBus;
use crate::qmp::UsbHostProblem;
use crate::qmp::message::Version;
use crate::speed::Speed;

const OLDEST: Version = Version { major: 5, minor: 0, micro: 0 };

const MAX_PORTS: usize = 15;

const DEVICE: &str = "-device qemu-xhci,id=xhci0,p2=15,p3=15";

/// Judges what QEMU replied, if it did.
pub fn check(facts: &VmFacts) -> Vec<Finding> {
    let Ok(answer) = &facts.answer else { return Vec::new() };
    let name = &facts.vm.name;
    let mut findings = version(name, answer);
    findings.extend(controllers(name, answer));
    findings.extend(buses(facts, answer));
    if !answer.stale.is_empty() {
        let ids: Vec<String> = answer.stale.iter().map(ToString::to_string).collect();
        let what = format!("{} of unplugged devices are left in the guest", ids.join(", "));
        findings.push(Finding::warning("object-stale", name, what).run("hotplugger sync"));
    }
    if !answer.running {
        let what = "the guest is paused; QEMU opens devices when it resumes";
        findings.push(Finding::note("guest-paused", name, what));
    }
    findings
}

fn version(name: &str, answer: &Answer) -> Vec<Finding> {
    let mut findings = Vec::new();
    let version = answer.version.map_or_else(|| "?".to_owned(), |version| version.to_string());
    findings.push(match answer.no_usb_host {
        None => Finding::ok("qemu-usb-host", name, format!("QEMU {version} has usb-host devices")),
        Some(UsbHostProblem::Missing) => {
            let what =
                format!("QEMU {version} has no usb-host devices, so it cannot take host devices");
            let fix = "install your distribution's QEMU package for USB host devices, then restart \
                       the VM";
            Finding::error("qemu-no-usb-host", name, what).advice(fix)
        }
        Some(UsbHostProblem::Upgraded) => {
            let what = format!(
                "the QEMU of VM {name} was upgraded while it runs; restart the VM. Until then no \
                 device can be attached: QEMU would abort if it loaded usb-host"
            );
            Finding::error("qemu-upgraded", name, what).advice("restart the VM")
        }
    });
    if answer.version.is_some_and(|version| version < OLDEST) {
        let what = format!("QEMU {version} is older than {OLDEST}, the oldest that is supported");
        findings.push(Finding::warning("qemu-old", name, what).advice("use a newer QEMU"));
    }
    findings
}

fn controllers(name: &str, answer: &Answer) -> Vec<Finding> {
    if answer.buses.is_empty() {
        let what = "the guest has no USB controller, so no device can be attached";
        return vec![
            Finding::error("guest-no-controller", name, what)
                .advice(format!("start QEMU with {DEVICE}")),
        ];
    }
    let xhci: Vec<&GuestBus> =
        answer.buses.iter().filter(|bus| bus.controller.ends_with("xhci")).collect();
    if xhci.is_empty() {
        let what = "the guest has no xHCI controller, so USB 3 devices are slow or do not work";
        return vec![
            Finding::warning("guest-no-xhci", name, what)
                .advice(format!("start QEMU with {DEVICE}")),
        ];
    }
    xhci.into_iter().map(|bus| ports(name, bus)).collect()
}

fn ports(name: &str, bus: &GuestBus) -> Finding {
    let model = &bus.controller;
    let takes = |speed| bus.ports.iter().filter(move |port| port.min <= speed && speed <= port.max);
    let (usb2, usb3) = (takes(Speed::HIGH).count(), takes(Speed::SUPER).count());
    let what = format!("{} ({model}) has {usb2} USB 2 and {usb3} USB 3 ports", bus.name);
    if usb2.min(usb3) < MAX_PORTS {
        let id = bus.id.as_deref().unwrap_or("xhci0");
        Finding::note("guest-few-ports", name, format!("{what}; it could have {MAX_PORTS} of each"))
            .advice(format!("start QEMU with -device {model},id={id},p2=15,p3=15"))
    } else {
        Finding::ok("guest-ports", name, what)
    }
}

fn buses(facts: &VmFacts, answer: &Answer) -> Vec<Finding> {
    let has: Vec<&str> = answer.buses.iter().map(|bus| bus.name.as_str()).collect();
    let check = |hub: &String| {
        if has.contains(&hub.as_str()) {
            return Finding::ok(
                "guest-bus",
                &facts.vm.name,
                format!("the guest has {hub} of `hubs:`"),
            );
        }
        let what = format!("the guest has no bus {hub}, which `hubs:` names");
        let finding = Finding::error("guest-no-bus", &facts.vm.name, what);
        match (has.as_slice(), hub.strip_suffix(".0")) {
            ([], None) => finding.advice(format!("start QEMU with {DEVICE} and write xhci0.0")),
            ([], Some(id)) => {
                finding.advice(format!("start QEMU with -device qemu-xhci,id={id},p2=15,p3=15"))
            }
            (has, _) => {
                finding.advice(format!("set `hubs:` to the buses it has: {}", has.join(", ")))
            }
        }
    };
    facts.vm.hubs.iter().map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Level;
    use crate::check::vm::tests::facts;
    use crate::guest::bus::SpeedRange;

    fn bus(controller: &str, ports: usize) -> GuestBus {
        GuestBus {
            name: "xhci0.0".to_owned(),
            controller: controller.to_owned(),
            id: Some("xhci0".to_owned()),
            ports: vec![SpeedRange { min: Speed::LOW, max: Speed::SUPER }; ports],
            devices: Vec::new(),
        }
    }

    fn codes(change: impl FnOnce(&mut Answer), hubs: &[&str]) -> Vec<&'static str> {
        let mut answer = Answer {
            version: Some(Version { major: 7, minor: 2, micro: 0 }),
            running: true,
            buses: vec![bus("qemu-xhci", 15)],
            ..Answer::default()
        };
        change(&mut answer);
        let mut facts = facts(Ok(answer));
        facts.vm.hubs = hubs.iter().map(|hub| (*hub).to_owned()).collect();
        let findings = check(&facts).into_iter().filter(|finding| finding.level > Level::Ok);
        findings.map(|finding| finding.code).collect()
    }

    #[test]
    fn complete_guest_has_no_findings() {
        assert!(codes(|_| {}, &["xhci0.0"]).is_empty());
    }

    #[test]
    fn each_deficiency_has_a_code() {
        assert_eq!(
            codes(|answer| answer.no_usb_host = Some(UsbHostProblem::Missing), &[]),
            ["qemu-no-usb-host"]
        );
        assert_eq!(
            codes(|answer| answer.no_usb_host = Some(UsbHostProblem::Upgraded), &[]),
            ["qemu-upgraded"]
        );
        let old = Version { major: 4, minor: 2, micro: 1 };
        assert_eq!(codes(|answer| answer.version = Some(old), &[]), ["qemu-old"]);
        assert_eq!(codes(|answer| answer.buses.clear(), &[]), ["guest-no-controller"]);
        assert_eq!(codes(|answer| answer.buses = vec![bus("usb-ehci", 6)], &[]), ["guest-no-xhci"]);
        assert_eq!(
            codes(|answer| answer.buses = vec![bus("qemu-xhci", 4)], &[]),
            ["guest-few-ports"]
        );
        assert_eq!(codes(|_| {}, &["usb.0"]), ["guest-no-bus"]);
        assert_eq!(codes(|answer| answer.running = false, &[]), ["guest-paused"]);
    }
}
