use super::*;
use crate::guest::fake::{Bus, FakeQemu};
use proptest::prelude::*;

/// As QEMU 10.0 printed it, without properties.
const QTREE: &str = "bus: main-system-bus\r\n  type System\r\n  dev: q35-pcihost, id \"\"\r\n    \
    bypass-iommu = false\r\n    bus: pcie.0\r\n      type PCIE\r\n      dev: nec-usb-xhci, id \"\"\r\n        \
    msi = \"auto\"\r\n        bus: usb-bus.0\r\n          type usb-bus\r\n      dev: piix3-usb-uhci, id \"uhci\"\r\n        \
    bus: uhci.0\r\n          type usb-bus\r\n      dev: qemu-xhci, id \"xhci0\"\r\n        addr = 01.0\r\n        \
    bus: xhci0.0\r\n          type usb-bus\r\n          dev: usb-mouse, id \"\"\r\n            port = \"3.2\"\r\n            \
    addr 0.0, port 3.2, speed 12, name QEMU USB Mouse, attached\r\n          dev: usb-hub, id \"\"\r\n            \
    addr 0.0, port 3, speed 12, name QEMU USB Hub, attached\r\n          dev: usb-host, id \"hotplugger-1-1-2\"\r\n            \
    hostport = \"1\"\r\n            addr 1.0, port 1, speed 480, name Foo, port 9, attached\r\n      dev: ich9-ahci, id \"\"\r\n        \
    bus: ide.5\r\n          type IDE\r\n  dev: kvmvapic, id \"\"\r\n\r\n";

#[test]
fn buses_and_devices_are_parsed() {
    let (buses, _) = parse_qtree(QTREE);
    let names: Vec<_> =
        buses.iter().map(|bus| (bus.name.as_str(), bus.controller.as_str())).collect();
    assert_eq!(
        names,
        [("xhci0.0", "qemu-xhci"), ("uhci.0", "piix3-usb-uhci"), ("usb-bus.0", "nec-usb-xhci")]
    );
    let xhci = &buses[0];
    assert_eq!(xhci.id.as_deref(), Some("xhci0"));
    let ports: Vec<_> = xhci.devices.iter().map(|device| device.port.as_str()).collect();
    assert_eq!(ports, ["3.2", "3", "1"]);
    let ours = &xhci.devices[2];
    assert_eq!(ours.id.as_deref(), Some("hotplugger-1-1-2"));
    assert_eq!((ours.product.as_str(), ours.attached), ("Foo, port 9", true));
}

/// As QEMU 7.2 printed them, with fewer properties.
#[test]
fn ports_of_ohci_and_companions_are_parsed() {
    let text = "      dev: ich9-usb-uhci2, id \"u2\"\r\n        masterbus = \"usb.0\"\r\n        \
        firstport = 2 (0x2)\r\n      dev: pci-ohci, id \"\"\r\n        masterbus = \"\"\r\n        \
        num-ports = 8 (0x8)\r\n        firstport = 0 (0x0)\r\n        bus: usb-bus.0\r\n          \
        type usb-bus\r\n";
    let (buses, companions) = parse_qtree(text);
    assert_eq!((buses.len(), buses[0].ports.len()), (1, 8));
    let uhci = Controller::new("ich9-usb-uhci2", Some("u2"));
    assert_eq!(companions, [Controller { master_bus: "usb.0".to_owned(), first_port: 2, ..uhci }]);
}

#[test]
fn suggestion_is_a_larger_controller_or_another_one() {
    let mut qmp = FakeQemu::new(&[], Vec::new());
    qmp.buses.clear();
    let mut suggest = |buses: &[(&str, &str, usize)], hubs: &[&str]| {
        qmp.buses.extend(buses.iter().map(|(id, ..)| (format!("{id}.0"), Bus::Good)));
        let range = SpeedRange { min: Speed::LOW, max: Speed::SUPER };
        let bus = |(id, kind, ports): &(&str, &str, usize)| GuestBus {
            ports: vec![range; *ports],
            ..GuestBus::new(&format!("{id}.0"), &Controller::new(kind, Some(id)))
        };
        let buses: Vec<GuestBus> = buses.iter().map(bus).collect();
        let hubs: Vec<String> = hubs.iter().map(|hub| (*hub).to_owned()).collect();
        suggest_controller(&mut qmp, &buses, &hubs)
    };
    assert_eq!(suggest(&[], &[]), "-device qemu-xhci,id=xhci0,p2=15,p3=15");
    let full = [("xhci0", "qemu-xhci", 15), ("xhci1", "qemu-xhci", 15)];
    assert_eq!(suggest(&full, &[]), "-device qemu-xhci,id=xhci2,p2=15,p3=15");
    // The guest has xhci1, and `hubs` does not name it.
    assert_eq!(
        suggest(&full[..1], &["xhci0.0"]),
        "-device qemu-xhci,id=xhci2,p2=15,p3=15 and add xhci2.0 to `hubs:`"
    );
    let small = [("xhci0", "qemu-xhci", 15), ("usb", "nec-usb-xhci", 4)];
    assert_eq!(suggest(&small, &[]), "-device nec-usb-xhci,id=usb,p2=15,p3=15 in place of its usb");
}

#[test]
fn free_ports_take_the_speed() {
    let mut bus = parse_qtree(QTREE).0.remove(0);
    let usb2 = SpeedRange { min: Speed::LOW, max: Speed::HIGH };
    let both = SpeedRange { min: Speed::LOW, max: Speed::SUPER };
    bus.ports = vec![both, both, both, usb2];
    assert_eq!(bus.free_ports_for(Speed::HIGH), [2, 4]);
    assert_eq!(bus.free_ports_for("10000".parse().unwrap()), [2]);
}

proptest! {
    #[test]
    fn parsers_survive_any_text(text in "( {0,12}(bus: |dev: |type usb-bus|masterbus = |num-ports = |firstport = |, id \"|addr |, port |, name |\\PC){0,4}\n){0,30}") {
        parse_qtree(&text);
    }
}
