use super::Found;
use super::*;
use crate::config::parse::parse;
use crate::host::topology::{Connector, Hub, Plugged};
use crate::location::{Generation, PortLocation, UsbLocation};
use crate::port::{BusNum, DevNum};

const PCI: &str = "/devices/pci0000:00/0000:00:14.0";

fn device(product: &str, class: u8) -> UsbDevice {
    UsbDevice {
        busnum: BusNum(1),
        devnum: DevNum(5),
        class,
        authorized: true,
        vendor_id: 0x46d,
        product_id: 0xc52b,
        speed: "12".parse().ok(),
        product: Some(product.to_owned()),
        serial: None,
    }
}

fn port(path: &str, peer: Option<&str>, plugged: Option<Plugged>) -> HubPort {
    let devpath: DevPath = format!("{PCI}/{path}").parse().unwrap();
    let connector = Connector {
        companions: Vec::new(),
        peer: peer.map(|peer| format!("{PCI}/{peer}").parse().unwrap()),
        peer_guessed: peer.is_some(),
        connect_type: Some("hotplug".to_owned()),
        type_c: Some("port0".to_owned()),
        position: Some("back, upper".to_owned()),
    };
    HubPort { port: devpath.port().unwrap(), devpath, connector, plugged }
}

fn report(event: Event, port: &HubPort) -> PortReport {
    let config =
        parse(&format!("virtual_machines:\n  w:\n    socket: /s\n    ports: [{PCI}/usb2/2-1]\n"))
            .unwrap();
    let place = |path: &DevPath| PortLocation {
        devpath: path.clone(),
        controller: "pci-0000:00:14.0".parse().ok(),
        generation: Generation::from_number(if path.as_str().contains("usb2") { "3" } else { "2" }),
    };
    let peer = port.connector.peer.clone();
    let places = |path: &DevPath| {
        let other = peer.iter().chain([&port.devpath]).find(|other| *other != path);
        let other = other.filter(|_| peer.is_some() && path.port().unwrap().parent().is_none());
        UsbLocation { own: place(path), peers: other.map(place).into_iter().collect() }
    };
    let behind = port.behind().into_iter().cloned().collect();
    let event = PortEvent { event, port: port.clone(), behind };
    Reporter { config: &config, location_of: &places }.report(&event)
}

#[test]
fn the_object_has_the_documented_shape() {
    let mouse = port("usb1/1-1/1-1.4", None, Some(Plugged::Device(device("Mouse", 0))));
    let devpath = format!("{PCI}/usb1/1-1").parse().unwrap();
    let hub = Hub { devpath, speed: None, ports: vec![mouse] };
    let hub = port("usb1/1-1", Some("usb2/2-1"), Some(Plugged::Hub(device("Hub", 9), hub)));
    let told = serde_json::to_value(report(Event::Plug, &hub)).unwrap();
    let wanted = serde_json::json!({
        "event": "plug",
        "devpath": "/devices/pci0000:00/0000:00:14.0/usb1/1-1",
        "name": "pci-0000:00:14.0/usb2:1",
        "port": "1-1",
        "usb": 2,
        "vms": ["w"],
        "hub": null,
        "device": {
            "product": "Hub", "vendor_id": "046d", "product_id": "c52b",
            "speed": "12", "is_hub": true
        },
        "peer": {
            "devpath": "/devices/pci0000:00/0000:00:14.0/usb2/2-1",
            "name": "pci-0000:00:14.0/usb3:1",
            "port": "2-1", "usb": 3, "vms": ["w"], "guessed": true
        },
        "connect_type": "hotplug",
        "type_c": "port0",
        "position": "back, upper",
        "companions": [],
        "behind": [{
            "devpath": "/devices/pci0000:00/0000:00:14.0/usb1/1-1/1-1.4",
            "name": "pci-0000:00:14.0/usb2:1.4",
            "port": "1-1.4", "usb": 2, "vms": [],
            "device": {
                "product": "Mouse", "vendor_id": "046d", "product_id": "c52b",
                "speed": "12", "is_hub": false
            }
        }]
    });
    assert_eq!(told, wanted);
}

#[test]
fn each_connector_is_found_once() {
    let mut found = Found::default();
    let keyboard = || Some(Plugged::Device(device("Keyboard", 0)));
    for (path, peer) in [
        ("usb1/1-1", Some("usb2/2-1")),
        ("usb1/1-1", Some("usb2/2-1")),
        ("usb2/2-1", Some("usb1/1-1")),
        ("usb1/1-1/1-1.4", None),
        ("usb1/1-10", None),
    ] {
        found.add(&report(Event::Plug, &port(path, peer, keyboard())));
    }
    assert_eq!(found.count(), 2);
    let config =
        parse(&format!("virtual_machines:\n  w:\n    socket: /s\n    ports: [{PCI}/usb1/1-10]\n"))
            .unwrap();
    assert_eq!(
        found.yaml(&config),
        [
            "    ports:".to_owned(),
            format!(
                "      - pci-0000:00:14.0/usb2:1 # USB 2: Keyboard (046d:c52b); back, upper; {PCI}/usb1/1-1"
            ),
            format!(
                "      - pci-0000:00:14.0/usb3:1 # USB 3: Keyboard (046d:c52b); back, upper; {PCI}/usb2/2-1"
            ),
            format!(
                "      # - pci-0000:00:14.0/usb2:10 # USB 2: Keyboard (046d:c52b); back, upper; {PCI}/usb1/1-10 (`w` has it already)"
            ),
        ]
    );
}

#[test]
fn a_guessed_half_is_told_as_one() {
    let mut found = Found::default();
    let seen = report(Event::Pull, &port("usb1/1-1", Some("usb2/2-1"), None));
    found.add(&seen);
    let yaml = found.yaml(&Config::default());
    assert_eq!(
        yaml[1],
        format!("      - pci-0000:00:14.0/usb2:1 # USB 2: a device; back, upper; {PCI}/usb1/1-1")
    );
    assert_eq!(
        yaml[2],
        format!(
            "      - pci-0000:00:14.0/usb3:1 # USB 3: the peer port of 1-1, a guess; {PCI}/usb2/2-1"
        )
    );
    let lines: Vec<String> = seen.lines().iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "pulled 1-1  unknown device".to_owned(),
            format!("  pci-0000:00:14.0/usb2:1  USB 2  {PCI}/usb1/1-1, w has it already"),
            format!(
                "  pci-0000:00:14.0/usb3:1  USB 3  {PCI}/usb2/2-1, w has it already, the peer port (a guess, by the numbers of ports)"
            ),
            "  connector: back, upper; hotplug; Type-C port0".to_owned(),
        ]
    );
}
