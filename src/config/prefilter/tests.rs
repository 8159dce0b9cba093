use super::*;
use crate::config::parse::parse;
use crate::config::port::tests::any_name;
use crate::location::{Generation, PortLocation, UsbLocation};
use proptest::prelude::*;

const CONFIG: &str = "virtual_machines:\n  w:\n    socket: /s\n    ports: [/devices/x/usb1/1-1]\n";

/// The answer for a device without peer ports.
fn alone(text: &str, device: &str) -> bool {
    may_match(text.as_bytes(), &format!("/devices/{device}").parse().unwrap(), no_peers)
}

fn with_port(port: &str) -> String {
    format!("virtual_machines:\n  w:\n    socket: /s\n    ports: [{port}]\n")
}

#[test]
fn other_ports_are_ruled_out() {
    for (device, may) in [
        ("x/usb1/1-1", true),
        ("x/usb1/1-1/1-1.3", true),
        ("x/usb1/1-10", false),
        ("x/usb1/1-2", false),
        ("x/usb2/2-1", false),
        ("x/usb2/2-1/2-1.3", false),
    ] {
        assert_eq!(alone(CONFIG, device), may, "{device}");
    }
}

/// The mistake is reported then.
#[test]
fn text_in_utf_16_is_not_ruled_out() {
    for (mark, encode) in [
        (vec![0xff, 0xfe], u16::to_le_bytes as fn(u16) -> [u8; 2]),
        (vec![0xfe, 0xff], u16::to_be_bytes),
        (Vec::new(), u16::to_le_bytes),
        // Then it does not begin as UTF-16 does.
        (b"\n".to_vec(), u16::to_le_bytes),
    ] {
        let text = CONFIG.encode_utf16().flat_map(encode);
        let text: Vec<u8> = mark.into_iter().chain(text).collect();
        let device = "/devices/y/usb3/3-9".parse().unwrap();
        assert!(may_match(&text, &device, no_peers));
    }
}

#[test]
fn hub_on_the_way_to_a_port_is_ruled_out() {
    let text = with_port("/devices/x/usb1/1-1/1-1.2");
    for (device, may) in [
        ("x/usb1/1-1/1-1.3", false),
        ("x/usb1/1-1/1-1.2", true),
        ("x/usb1/1-1/1-1.2/1-1.2.4", true),
    ] {
        assert_eq!(alone(&text, device), may, "{device}");
    }
    assert!(alone(&with_port("/devices/x/usb1/1-1/1-1:1.0"), "x/usb1/1-1"));
}

#[test]
fn other_names_without_a_bus_are_ruled_out() {
    for (controller, port) in [
        ("0000:00:14.0", "pci-0000:00:14.0/usb2:1.4"),
        ("0:00:14.0", "pci-0:00:14.0-usb-0:1.4"),
        ("b.usb", "a-b.usb-usbv3-0:1.4"),
        ("0000:01:00.0", "platform-fd500000.pcie-pci-0000:01:00.0-usb-0:1.4"),
        ("xhci-hcd.2.auto", "pci-0000:04:00.3-platform-xhci-hcd.2.auto-usb-0:1.4"),
    ] {
        let text = with_port(port);
        for (device, may) in [
            ("usb1/1-1/1-1.4", true),
            ("usb1/1-1/1-1.4/1-1.4.2", true),
            ("usb1/1-1", false),
            ("usb1/1-1/1-1.40", false),
            ("usb1/1-14", false),
            ("usb2/2-14", false),
            ("usb3/3-1/3-1.5", false),
            ("usb2/2-1/2-1.4", true),
        ] {
            assert_eq!(alone(&text, &format!("{controller}/{device}")), may, "{port} {device}");
            assert!(!alone(&text, &format!("0000:00:1a.0/{device}")), "another controller");
        }
    }
    let whole_bus = |port, device| alone(&with_port(port), device);
    assert!(whole_bus("pci-a/usb2", "a/usb9/9-1") && whole_bus("a-b-usb-0", "b/usb9/9-1"));
    assert!(whole_bus("/devices/x/usb12", "x/usb12/12-1"));
    assert!(!whole_bus("/devices/x/usb2/2-1", "x/usb9/9-1"));
}

#[test]
fn what_is_wrong_but_meant_is_not_ruled_out() {
    for port in ["1-3", "usb1", "/devices/x/usb1/1-3/1-3:1.0", "/sys/devices/x/usb1/1-3", "/x/1-3/"]
    {
        assert!(alone(&with_port(port), "x/usb1/1-3"), "{port}");
    }
    assert!(alone("virtual_machines: {w: {ports: [pci-x/usb2: 3]}}", "x/usb1/1-3"));
    assert!(!alone("virtual_machines: {w: {ports: [pci-x/usb2: 4]}}", "x/usb1/1-3"));
}

#[test]
fn nothing_is_looked_up_where_no_port_of_the_controller_is() {
    let device = "/devices/pci0000:00/0000:00:14.0/usb1/1-1".parse().unwrap();
    let mut looked = 0;
    for port in ["pci-0000:00:1a.0/usb2:1", "pci-0000:00:14.0/usb3:7"] {
        let may = may_match(with_port(port).as_bytes(), &device, |_| {
            looked += 1;
            let same_controller = vec!["2-7".parse().unwrap()];
            PeerPorts { same_controller, companion: None }
        });
        assert_eq!((may, looked), if port.contains("14.0") { (true, 1) } else { (false, 0) });
    }
}

/// Configs that name one port, each in another way that YAML has for it; `N` is the port.
const STYLES: [&str; 23] = [
    "ports: [N]",
    "ports: ['N']",
    "ports: [\"N\"]",
    "ports: [ESCAPED]",
    "ports: [&p N]",
    "ports: [!!str N]",
    "ports: [!!str 'N']",
    "ports:\n      - N",
    "ports:\n    - N # its port",
    "ports:\r\n      - N\r\n",
    "ports:\n      - |-\n        N",
    "ports:\n      - >-\n        N",
    "ports:\n      - >-\n        N\n\n",
    "ports:\n      - |\n        N",
    "ports:\n      - >\n        N",
    "ports:\n      -\n        N",
    "ports:\n      - \"CONTINUED\"",
    "'ports': [\n      \"N\",\n    ]",
    "? ports\n    : - N",
    "exclude: [&p N]\n    ports: [*p]",
    "ports: [{port: N}]",
    "ports: [{port: \"N\", only: [class: hid]}]",
    "ports:\n      - only: [class: hid]\n        port: N",
];

fn in_style(port: &str, style: &str) -> String {
    let escaped = port.replace('-', "\\x2d").replace('/', "\\u002f").replace('b', "\\x62");
    let (left, right) = port.split_at(port.len() / 2);
    let style = style.replace("ESCAPED", &format!("\"{escaped}\""));
    let style = style.replace("CONTINUED", &format!("{left}\\\n        {right}"));
    format!("virtual_machines:\n  w:\n    socket: /s\n    {}\n", style.replace('N', port))
}

fn place_at(
    devpath: &str,
    controller: &str,
    bus: u8,
    generation: u8,
    chain: &[u8],
) -> PortLocation {
    let mut devpath = format!("{devpath}/usb{bus}");
    for end in 1..=chain.len() {
        let numbers: Vec<String> = chain[..end].iter().map(u8::to_string).collect();
        devpath = format!("{devpath}/{bus}-{}", numbers.join("."));
    }
    PortLocation {
        devpath: devpath.parse().unwrap(),
        controller: controller.parse().ok(),
        generation: Generation::from_number(&generation.to_string()),
    }
}

/// Controllers: the own name, that of udev, and the DEVPATH. Some are named by the device above them.
const CONTROLLERS: [(&str, &str, &str); 9] = [
    ("pci-0000:00:14.0", "pci-0000:00:14.0", "/devices/pci0000:00/0000:00:14.0"),
    (
        "pci-0000:00:14.0",
        "platform-z.pcie-pci-0000:00:14.0",
        "/devices/platform/z.pcie/pci0000:00/0000:00:14.0",
    ),
    ("platform-x.usb", "platform-x.usb", "/devices/platform/x.usb"),
    ("platform-x.usb", "platform-x.usb", "/devices/platform/x.usb/xhci-hcd.2.auto"),
    ("platform-x.usb", "platform-x.usb", "/devices/pci0000:00/0000:00:08.1/x.usb"),
    ("platform-x.usb", "platform-x.usb", "/devices/pci0000:00/0000:00:08.1/x.usb/xhci-hcd.2.auto"),
    (
        "pci-0000:00:08.1",
        "pci-0000:00:08.1-platform-x.2.auto",
        "/devices/pci0000:00/0000:00:08.1/x.2.auto",
    ),
    ("platform-x.2.auto", "platform-x.2.auto", "/devices/platform/x.2.auto"),
    ("a-usbv2-0", "a-usbv2-0", "/devices/usbv2-0"),
];

/// A part of the text to replace, by its place and length, and the new bytes.
type Change = (usize, usize, Vec<u8>);

fn any_changes() -> impl Strategy<Value = Vec<Change>> {
    let marks = ["\u{feff}", "\u{a0}", "\u{85}", "\u{2028}", "\r", "\t", "\0", "\u{1b}", " ", "\n"];
    let yaml = ["|", ">-", "\"", "'", "#", "- ", "]", "{", "ports:"];
    let texts: Vec<Vec<u8>> =
        marks.iter().chain(&yaml).map(|text| text.as_bytes().into()).collect();
    let new = prop_oneof![
        Just(Vec::new()),
        prop::sample::select(texts),
        prop::collection::vec(any::<u8>(), 1..4),
        Just(vec![0xff, 0xfe]),
        Just(vec![0xfe, 0xff]),
    ];
    let at = prop_oneof![Just(0), any::<usize>()];
    prop::collection::vec((at, 0..4usize, new), 0..4)
}

fn change(text: &mut Vec<u8>, changes: Vec<Change>) {
    for (at, length, new) in changes {
        let at = at % (text.len() + 1);
        text.splice(at..text.len().min(at + length), new);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// However a port may be written, a no means that the config has no owner.
    #[test]
    fn no_means_no_owner(
        port in any_name(),
        style in prop::sample::select(STYLES.to_vec()),
        (controller, _, devpath) in prop::sample::select(CONTROLLERS.to_vec()),
        own in (1..4u8, 1..4u8, prop::collection::vec(1..4u8, 1..4)),
        // Other halves are on the same controller, with whatever number.
        peers in prop::collection::vec((1..4u8, 1..4u8, prop::collection::vec(1..4u8, 1..4)), 0..3),
        on_companion in prop::option::of((1..4u8, 1..4u8, prop::collection::vec(1..4u8, 1..4))),
    ) {
        let text = in_style(&port, style);
        let config = parse(&text).unwrap();
        let of_companion = |name: &str| name.replace(":14.0", ":14.7").replace("x.usb", "y.usb");
        let companion = (of_companion(controller), of_companion(devpath));
        let place_on = |(controller, devpath): (&str, &str), (bus, generation, chain): &(u8, u8, Vec<u8>)| {
            place_at(devpath, controller, *bus, *generation, chain)
        };
        let controller = (controller, devpath);
        let companion = (companion.0.as_str(), companion.1.as_str());
        let peers = peers.iter().map(|peer| place_on(controller, peer));
        let peers = peers.chain(on_companion.iter().map(|peer| place_on(companion, peer)));
        let mut places =
            UsbLocation { peers: peers.collect(), own: place_on(controller, &own) };
        // Also when the root hub is gone.
        for _ in 0..2 {
            if !may_match(text.as_bytes(), &places.own.devpath, |_| places.peer_ports()) {
                prop_assert!(!config.is_configured(&places), "{text}");
            }
            places.own.generation = None;
        }
    }

    /// A port that stands in the text is not ruled out, whatever the other bytes are: its event is
    /// handled, or the mistake is reported.
    #[test]
    fn no_bytes_around_a_name_rule_its_port_out(
        style in prop::sample::select(STYLES.to_vec()),
        (_, controller, above) in prop::sample::select(CONTROLLERS.to_vec()),
        (bus, generation, chain) in (1..4u8, 1..4u8, prop::collection::vec(1..40u8, 1..4)),
        form in 0..6u8,
        is_peer in any::<bool>(),
        encoding in 0..3u8,
        (changes_before, changes_after) in (any_changes(), any_changes()),
    ) {
        let devpath = place_at(above, controller, bus, generation, &chain).devpath;
        let port = devpath.port().unwrap();
        let name = match form {
            0 => devpath.to_string(),
            1 => format!("{controller}/usb{generation}:{}", port.chain()),
            2 => format!("{controller}-usb-0:{}", port.chain()),
            3 => format!("{controller}-usbv{generation}-0:{}", port.chain()),
            // The end of a DEVPATH does not stand for a peer port. UTF-16 is known by its letters `u`.
            4 if !is_peer && encoding == 0 => devpath.sysname().to_owned(),
            _ => format!("{controller}-usb-0"),
        };
        let encode = |text: &str| -> Vec<u8> {
            match encoding {
                0 => text.into(),
                1 => text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
                _ => text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
            }
        };
        let text = in_style("@", style);
        let (before, after) = text.split_once('@').unwrap();
        let (mut before, mut after) = (encode(before), encode(after));
        change(&mut before, changes_before);
        change(&mut after, changes_after);
        // A byte beside it may make it another name.
        let is_of_name = |byte: Option<&u8>| {
            encoding == 0 && byte.is_some_and(|byte| of_word(*byte) || b"/:".contains(byte))
        };
        prop_assume!(!is_of_name(before.last()) && !is_of_name(after.first()));
        let text = [before, encode(&name), after].concat();

        let companion = above.replace(":14.0", ":14.7");
        let other = if bus == 1 { &companion } else { above };
        let other = place_at(other, controller, 9, 3, &[9]).devpath;
        let (device, peers) = if is_peer {
            let own = PortLocation::of(other.clone());
            let peers = vec![PortLocation::of(devpath)];
            (other, UsbLocation { own, peers }.peer_ports())
        } else {
            (devpath, PeerPorts::default())
        };
        let may = may_match(&text, &device, |_| peers);
        prop_assert!(may, "{:?}", String::from_utf8_lossy(&text));
    }
}
