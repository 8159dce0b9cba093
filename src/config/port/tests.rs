use super::*;
use proptest::prelude::*;

fn name(text: &str) -> PortName {
    text.parse().unwrap_or_else(|error| panic!("{text} {error}"))
}

fn place(controller: &str, generation: u8, chain: &str) -> PortLocation {
    let mut devpath = "/devices/x/usb7".to_owned();
    for (index, _) in chain.match_indices('.').chain([(chain.len(), "")]) {
        if index > 0 {
            devpath = format!("{devpath}/7-{}", &chain[..index]);
        }
    }
    PortLocation {
        devpath: devpath.parse().unwrap(),
        controller: controller.parse().ok(),
        generation: Generation::from_number(&generation.to_string()),
    }
}

#[test]
fn each_form_is_read() {
    for (text, printed) in [
        ("/devices/x/usb1/1-1/1-1.4", "/devices/x/usb1/1-1/1-1.4"),
        ("/devices/x/usb1", "/devices/x/usb1"),
        ("pci-0000:00:14.0/usb2:1.4", "pci-0000:00:14.0/usb2:1.4"),
        ("pci-0000:00:14.0/usb3", "pci-0000:00:14.0/usb3"),
        ("platform-vhci_hcd.0/usb2:1", "platform-vhci_hcd.0/usb2:1"),
        ("pci-0000:00:14.0-usb-0:1.4", "pci-0000:00:14.0-usb-0:1.4"),
        ("pci-0000:00:14.0-usbv2-0:1.4", "pci-0000:00:14.0/usb2:1.4"),
        ("platform-fe980000.usb-usb-0:1", "platform-fe980000.usb-usb-0:1"),
        ("pci-0000:00:14.0-usb-0", "pci-0000:00:14.0-usb-0"),
        ("/devices/x/usb1/1-1/", "/devices/x/usb1/1-1"),
        ("/devices/x/usb1/1-1/1-1:1.0", "/devices/x/usb1/1-1"),
        ("/devices/x/usb1/1-1:1.0/", "/devices/x/usb1/1-1"),
        ("pci-0000:00:14.0/usb2:1.4/", "pci-0000:00:14.0/usb2:1.4"),
        ("usb1/1-1/1-1.4", "usb1/1-1/1-1.4"),
        ("/usb1/1-1", "usb1/1-1"),
        ("pci0000:00/0000:00:14.0/usb1/1-1", "pci0000:00/0000:00:14.0/usb1/1-1"),
        ("1-1/1-1.4", "1-1/1-1.4"),
        ("1-1.4:1.0", "1-1.4"),
    ] {
        assert_eq!(name(text).to_string(), printed);
    }
}

#[test]
fn what_names_no_port_is_refused() {
    for (bad, hint) in [
        ("usb3", "no port"),
        ("/usb3/3-0:1.0", "begin with /devices/"),
        ("usb1/1-1.4", "write /devices/…/usb1/1-1/1-1.4"),
        ("usb2/1-1", "must be usb1"),
        ("3-3:1", "no port"),
        ("/", "names no port"),
        ("pci-0000:00:14.0", "no port"),
        ("0000:00:14.0/usb2:1", "subsystem"),
        ("pci-0000:00:14.0/usb4:1", "generation"),
        ("pci-0000:00:14.0/usb22:1", "no port"),
        ("pci-0000:00:14.0/usb2:0", "`0`"),
        ("pci-0000:00:14.0/usb2:01", "`01`"),
        ("pci-0000:00:14.0/usb2:", "``"),
        ("pci-0000:00:14.0-usb-3:1", "no port"),
        ("pci-0000:00:14.0-usbv4-0:1", "no port"),
        ("pci-0000:00:14.0-usb-0:1:1.0", "write pci-0000:00:14.0-usb-0:1"),
        ("pci-0000:14:00.0-usb-0:1.4:1.0-scsi-0:0:0:0", "write pci-0000:14:00.0-usb-0:1.4"),
        ("/sys/devices/x/usb1", "leaves out"),
        ("/devices/x/usb1/1-1.4", "write /devices/x/usb1/1-1/1-1.4"),
        ("/devices/x/usb2/1-1.4", "must be 1-1"),
    ] {
        let said = bad.parse::<PortName>().unwrap_err();
        assert!(said.contains(hint), "{bad}: {said}");
    }
}

#[test]
fn port_1_is_not_port_10() {
    let device = place("pci-a", 2, "10");
    for other in ["pci-a/usb2:1", "pci-a-usb-0:1", "pci-b/usb2:10", "pci-a/usb3:10"] {
        assert_eq!(name(other).match_location(&device), None, "{other}");
    }
    for own in ["pci-a/usb2:10", "pci-a-usb-0:10", "pci-a-usbv2-0:10"] {
        assert!(name(own).names_exactly(&device), "{own}");
    }
    assert!(
        name("pci-a/usb2").match_location(&device).is_some()
            && !name("pci-a/usb2").names_exactly(&device)
    );
}

#[test]
fn the_same_port_in_two_forms_is_told() {
    let same = |one: &str, other: &str| {
        assert_eq!(name(one).is_equivalent(&name(other)), name(other).is_equivalent(&name(one)));
        name(one).is_equivalent(&name(other))
    };
    assert!(same("pci-a/usb2:1", "pci-a-usbv2-0:1"));
    assert!(same("pci-a/usb2:1", "pci-a-usb-0:1"));
    assert!(same("pci-a-usb-0:1", "/devices/a/usb1/1-1"));
    assert!(!same("pci-a/usb2:1", "/devices/a/usb1/1-1"), "the bus is not known");
    assert!(!same("pci-a/usb2:1", "pci-a/usb3:1"));
    assert!(!same("pci-a-usb-0:1", "pci-a-usb-0:1.1"));
    assert!(same("a/usb1/1-1", "/devices/a/usb1/1-1") && same("1-1", "usb1/1-1"));
    assert!(!same("b/usb1/1-1", "/devices/a/usb1/1-1") && !same("11-1", "1-1"));
}

#[test]
fn end_of_a_devpath_is_compared_by_components() {
    let location = |path: &str| PortLocation::of(path.parse().unwrap());
    let device = location("/devices/a/usb1/1-1/1-1.4");
    for (end, fits, exactly) in [
        ("1-1", true, false),
        ("a/usb1/1-1", true, false),
        ("1-1.4", true, true),
        ("devices/a/usb1/1-1/1-1.4", true, true),
        ("1-4", false, false),
        ("b/usb1/1-1", false, false),
    ] {
        assert_eq!(name(end).match_location(&device).is_some(), fits, "{end}");
        assert_eq!(name(end).names_exactly(&device), exactly, "{end}");
        assert_eq!(name(end).match_half(&device, false), None, "{end}");
    }
    assert_eq!(name("1-1").match_location(&location("/devices/a/usb11/11-1")), None);
    assert_eq!(name("1-1").match_location(&location("/devices/a/usb1/1-10")), None);
}

/// One subsystem or several, and a controller that is numbered at probe.
const CONTROLLERS: &str = "(pci-0000:00:1[45]\\.[07]|platform-[xy]\\.usb|a-usbv2-0|\
                           platform-z\\.pcie-pci-0000:00:14\\.0|\
                           pci-0000:00:08\\.[01]-platform-x\\.usb|platform-xhci-hcd\\.[23]\\.auto)";

prop_compose! {
    /// A name in any form, of which some are much alike.
    pub(crate) fn any_name()(
        controller in CONTROLLERS,
        chain in prop::collection::vec(1..4u8, 0..4),
        form in 0..8u8,
        parts in 1..3usize,
    ) -> String {
        let numbers: Vec<String> = chain.iter().map(u8::to_string).collect();
        let tail = if chain.is_empty() { String::new() } else { format!(":{}", numbers.join(".")) };
        let mut path = format!("/devices/{}/usb1", controller.rsplit_once('-').unwrap().1);
        for end in 1..=numbers.len() {
            path = format!("{path}/1-{}", numbers[..end].join("."));
        }
        match form {
            0 => path,
            5 => format!("{path}/"),
            6 if !chain.is_empty() => format!("{path}/1-{}:1.0", numbers.join(".")),
            7 if !chain.is_empty() => {
                let (start, _) = path.rmatch_indices('/').nth(parts - 1).unwrap();
                path[start + 1..].to_owned()
            }
            1 => format!("{controller}/usb2{tail}"),
            2 => format!("{controller}/usb3{tail}"),
            3 => format!("{controller}-usb-0{tail}"),
            _ => format!("{controller}-usbv3-0{tail}"),
        }
    }
}

proptest! {
    #[test]
    fn printing_and_reading_are_inverse(text in any_name()) {
        let name = name(&text);
        prop_assert_eq!(name.to_string().parse::<PortName>(), Ok(name.clone()));
    }

    #[test]
    fn any_text_is_refused_or_read_back(text in "(\\PC|usb|-usb-0|/usb2|pci-|[:.1-3/-]){0,12}") {
        if let Ok(name) = text.parse::<PortName>() {
            prop_assert_eq!(name.to_string().parse::<PortName>(), Ok(name));
        }
    }

    /// A name matches if each number does, in every form.
    #[test]
    fn a_name_fits_what_a_naive_look_says(
        port in prop::collection::vec(1..3u8, 1..4),
        device in prop::collection::vec(1..3u8, 1..5),
        (wanted, has) in (2..4u8, 2..4u8),
        form in 0..3u8,
    ) {
        let text = |chain: &[u8]| {
            chain.iter().map(u8::to_string).collect::<Vec<_>>().join(".")
        };
        let (tail, place) = (text(&port), place("pci-a", has, &text(&device)));
        let name = name(&match form {
            0 => format!("pci-a/usb{wanted}:{tail}"),
            1 => format!("pci-a-usbv{wanted}-0:{tail}"),
            _ => format!("pci-a-usb-0:{tail}"),
        });
        let fits = device.starts_with(&port) && (form == 2 || wanted == has);
        prop_assert_eq!(name.match_location(&place).is_some(), fits);
        prop_assert_eq!(name.names_exactly(&place), fits && device == port);
    }
}
