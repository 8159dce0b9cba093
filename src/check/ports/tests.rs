use super::*;
use crate::check::finding::{Level, Remedy};
use crate::config::tests::vm;
use crate::host::topology::Connector;
use crate::host::topology::{HubPort, Plugged};
use crate::port::{BusNum, DevNum};
use crate::usb_device::UsbDevice;

const PCI: &str = "/devices/pci0000:00/0000:00:14.0";

fn path(below: &str) -> DevPath {
    format!("{PCI}/{below}").parse().unwrap()
}

fn port(below: &str, peer: Option<&str>, plugged: Option<Plugged>) -> HubPort {
    let devpath = path(below);
    let connector = Connector { peer: peer.map(path), peer_guessed: true, ..Connector::default() };
    HubPort { port: devpath.port().unwrap(), devpath, connector, plugged }
}

/// usb3 (USB 2) and usb4 (USB 3) with two paired ports each; a two-port hub in 3-2.
fn topology() -> Topology {
    let device = UsbDevice {
        busnum: BusNum(3),
        devnum: DevNum(2),
        class: 9,
        authorized: true,
        vendor_id: 1,
        product_id: 2,
        speed: None,
        product: None,
        serial: None,
    };
    let inner = Hub {
        devpath: path("usb3/3-2"),
        speed: None,
        ports: vec![port("usb3/3-2/3-2.1", None, None), port("usb3/3-2/3-2.2", None, None)],
    };
    let hub = |bus: &str, speed: &str, ports| Hub {
        devpath: path(bus),
        speed: speed.parse().ok(),
        ports,
    };
    let usb2 = vec![
        port("usb3/3-1", Some("usb4/4-1"), None),
        port("usb3/3-2", Some("usb4/4-2"), Some(Plugged::Hub(device, inner))),
    ];
    let usb3 =
        vec![port("usb4/4-1", Some("usb3/3-1"), None), port("usb4/4-2", Some("usb3/3-2"), None)];
    Topology {
        controllers: vec![Controller {
            devpath: PCI.parse().unwrap(),
            name: "pci-0000:00:14.0".parse().ok(),
            root_hubs: vec![hub("usb3", "480", usb2), hub("usb4", "5000", usb3)],
        }],
    }
}

fn found(vms: &[(&str, &[&str])]) -> Vec<Finding> {
    let config = Config {
        virtual_machines: vms.iter().map(|(vm, ports)| machine(vm, ports)).collect(),
        ..Config::default()
    };
    let mut findings = check(&config, Path::new("/c.yaml"), &topology());
    findings.retain(|finding| finding.level > Level::Ok);
    findings
}

fn machine(name: &str, ports: &[&str]) -> VirtualMachine {
    VirtualMachine {
        ports: ports.iter().filter(|port| **port != "alone").map(|port| port_name(port)).collect(),
        peer_ports: !ports.contains(&"alone"),
        ..vm(name, &[])
    }
}

/// A name, or a DEVPATH below the controller.
fn port_name(text: &str) -> PortName {
    if text.starts_with("usb") { PortName::DevPath(path(text)) } else { text.parse().unwrap() }
}

fn codes(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.code).collect()
}

fn added(finding: &Finding) -> String {
    match &finding.remedy {
        Some(Remedy::Edit { add: Some(add), .. }) => add.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn hardwired_port_and_unstable_name_are_reported() {
    let mut topology = topology();
    let controller = &mut topology.controllers[0];
    controller.root_hubs[0].ports[0].connector.connect_type = Some("hardwired".to_owned());
    let config =
        |port: &str| Config { virtual_machines: vec![machine("w", &[port])], ..Config::default() };
    let problems = |port: &str, topology: &Topology| {
        let mut findings = check(&config(port), Path::new("/c.yaml"), topology);
        findings.retain(|finding| finding.level > Level::Ok);
        findings
    };
    assert_eq!(codes(&problems("usb3/3-1", &topology)), ["port-hardwired"]);
    let auto = |path: &DevPath| {
        let below = path.as_str().replace(PCI, "/devices/platform/fc4.usb/xhci-hcd.8.auto");
        below.parse::<DevPath>().unwrap()
    };
    let controller = &mut topology.controllers[0];
    controller.devpath = auto(&controller.devpath);
    controller.name = "platform-fc4.usb".parse().ok();
    for hub in &mut controller.root_hubs {
        hub.devpath = auto(&hub.devpath);
        for port in &mut hub.ports {
            port.devpath = auto(&port.devpath);
            port.connector.peer = port.connector.peer.as_ref().map(auto);
        }
    }
    let findings = problems("platform-xhci-hcd.8.auto-usb-0:2", &topology);
    assert_eq!(codes(&findings), ["port-unstable"]);
    assert_eq!(added(&findings[0]), "- platform-fc4.usb/usb2:2");
    assert_eq!(problems("platform-fc4.usb/usb2:2", &topology), []);
}

#[test]
fn both_halves_of_a_port_are_well() {
    assert_eq!(found(&[("w", &["usb3/3-1", "usb4/4-1"])]), []);
    assert_eq!(found(&[("w", &["usb3", "usb4"])]), []);
}

#[test]
fn one_half_is_told_the_other() {
    assert_eq!(found(&[("w", &["usb3/3-1"])]), []);
    let findings = found(&[("w", &["usb3/3-1", "alone"])]);
    assert_eq!(codes(&findings), ["port-without-peer"]);
    assert!(findings[0].what.contains("USB 2 port") && findings[0].what.contains("guessed"));
    assert_eq!(added(&findings[0]), "- pci-0000:00:14.0/usb3:1");
    assert_eq!(codes(&found(&[("w", &["usb3/3-1"]), ("l", &["usb4/4-1"])])), ["port-peer-apart"]);
}

#[test]
fn buses_that_moved_are_found_again() {
    let findings = found(&[("w", &["usb1/1-1", "usb2/2-1"])]);
    assert_eq!(codes(&findings), ["port-bus-moved", "port-bus-moved"]);
    assert_eq!(added(&findings[0]), "- pci-0000:00:14.0/usb2:1");
    assert_eq!(added(&findings[1]), "- pci-0000:00:14.0/usb3:1");
    // One of the two numbers is another half's today.
    let findings = found(&[("w", &["usb2/2-2", "usb3/3-2"])]);
    assert_eq!(added(&findings[0]), "- pci-0000:00:14.0/usb3:2");
    let findings = found(&[("w", &["usb1/1-1"])]);
    assert_eq!(added(&findings[0]), "- pci-0000:00:14.0/usb2:1");
    let findings = found(&[("w", &["usb1/1-1", "alone"])]);
    assert!(matches!(findings[0].remedy, Some(Remedy::Advice { .. })));
}

#[test]
fn what_the_host_does_not_have_is_a_fault_and_a_hubs_port_is_not() {
    assert_eq!(codes(&found(&[("w", &["usb3/3-9"])])), ["port-missing"]);
    assert_eq!(codes(&found(&[("w", &["usb3/3-9/3-9.1"])])), ["port-missing"]);
    let away = found(&[("w", &["usb3/3-2/3-2.7", "usb4/4-1/4-1.2"])]);
    assert_eq!(codes(&away), ["port-hub-away", "port-hub-away"]);
    assert!(away[0].what.contains("only 2 ports") && away[1].what.contains("not plugged"));
    let config = Config {
        virtual_machines: vec![vm("w", &["/devices/pci0000:00/0000:00:15.0/usb3/3-1"])],
        ..Config::default()
    };
    let findings = check(&config, Path::new("/c.yaml"), &topology());
    assert_eq!(codes(&findings), ["port-no-controller"]);
}

#[test]
fn ports_below_one_another_are_told() {
    let both = ["usb3/3-2", "usb4/4-2"];
    let findings = found(&[("w", &both), ("l", &["usb3/3-2/3-2.1"])]);
    assert_eq!(codes(&findings), ["port-nested"]);
    assert!(findings[0].what.contains("devices go to `l`, all others there to `w`"));
    let findings = found(&[("w", &["usb3/3-2", "usb4/4-2", "usb3/3-2/3-2.1"])]);
    assert_eq!(codes(&findings), ["port-redundant"]);
}

#[test]
fn names_without_a_bus_are_judged_as_what_they_mean_today() {
    assert_eq!(found(&[("w", &["pci-0000:00:14.0/usb2:1", "pci-0000:00:14.0-usb-0:2"])]), []);
    let findings = found(&[("w", &["pci-0000:00:14.0/usb2:1", "usb3/3-1"])]);
    assert_eq!(codes(&findings), ["port-twice"]);
    assert!(findings[0].what.contains("pci-0000:00:14.0/usb2:1"));
    for (port, code) in [
        ("pci-0000:00:14.0/usb2:9", "port-missing"),
        ("pci-0000:00:14.0/usb1:1", "port-missing"),
        ("pci-0000:00:15.0/usb2:1", "port-no-controller"),
        ("pci-0000:00:14.0/usb2:2.7", "port-hub-away"),
    ] {
        assert_eq!(codes(&found(&[("w", &[port])])), [code], "{port}");
    }
    let nested = [("w", &["pci-0000:00:14.0/usb2:2"][..]), ("l", &["usb3/3-2/3-2.1"])];
    assert_eq!(codes(&found(&nested)), ["port-nested"]);
}
