use std::time::Duration;

use super::*;
use crate::location::{PortLocation, UsbLocation};
use proptest::prelude::*;

const EXAMPLE: &str = include_str!("../../../config.yaml");

fn config(vm: &str) -> String {
    format!("virtual_machines:\n  windows:\n{vm}")
}

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn port_may_be_a_mapping_with_rules_of_its_own() {
    let config = parse(
        "virtual_machines:\n  w:\n    socket: /s\n    usb_host: {pipeline: false, isobufs: 8}\n    \
         ports:\n      - /devices/x/usb1/1-1\n      - port: /devices/x/usb1/1-2\n        exclude: [class: \
         storage]\n        usb_host:\n          isobufs: 2\n          guest-reset: false\n",
    )
    .unwrap();
    let vm = &config.virtual_machines[0];
    let ports: Vec<String> = vm.ports.iter().map(ToString::to_string).collect();
    assert_eq!(ports, ["/devices/x/usb1/1-1", "/devices/x/usb1/1-2"]);
    let (port, rules) = &vm.port_rules[0];
    assert_eq!((port, vm.port_rules.len()), (&vm.ports[1], 1));
    assert_eq!(rules.exclude, [DeviceMatcher::Class(8)]);
    let properties = |port: &str| {
        let location = PortLocation::of(format!("/devices/x/usb1/{port}").parse().unwrap());
        let properties = vm.usb_host(&UsbLocation::of(location));
        properties.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
    };
    assert_eq!(properties("1-1"), ["isobufs=8", "pipeline=false"]);
    assert_eq!(properties("1-2"), ["guest-reset=false", "isobufs=2", "pipeline=false"]);
    assert_eq!(properties("1-3"), ["isobufs=8", "pipeline=false"], "in none of the ports");
    for (keys, hint) in [
        (
            "    usb_host: {guest_reset: false}\n",
            "4:15: virtual_machines.w.usb_host: `guest_reset` is written `guest-reset`",
        ),
        ("    usb_host: {pipeline: maybe}\n", "write `true` or `false`"),
        ("    usb_host: {pipeline: true, pipeline: false}\n", "set twice"),
        ("    usb_host: [pipeline]\n", "properties of QEMU's usb-host"),
        ("    only: [keyboards]\n", "`keyboards` is nothing to match"),
        ("      - {only: [class: hid]}\n", "missing field `port`"),
        ("      - {port: /devices/x/usb1/1-1}\n", "is listed twice"),
        ("      - {port: /devices/x/usb1/1-2, delay: 1}\n", "unknown field `delay`"),
    ] {
        let text = "virtual_machines:\n  w:\n    socket: /s\n";
        let ports = "    ports:\n      - /devices/x/usb1/1-1\n";
        let text = if keys.contains("- ") {
            format!("{text}{ports}{keys}")
        } else {
            format!("{text}{keys}{ports}")
        };
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains(hint) && error.starts_with(char::is_numeric), "{error}");
    }
}

#[test]
fn characters_that_editors_leave_are_read_or_reported_with_their_place() {
    let config = "virtual_machines:\n  w:\n    socket: /q\n    ports: []\n";
    for text in [
        format!("\u{feff}{config}"),
        format!("\u{feff}---\n{config}"),
        format!("%YAML 1.1\n---\n{config}"),
        config.replace('\n', "\r\n"),
        format!("{config}...\n"),
    ] {
        assert_eq!(parse(&text).unwrap().virtual_machines.len(), 1, "{text:?}");
    }
    for (text, expected) in [
        (format!("{config}\u{feff}exclude: []\n"), "5:1: a byte order mark"),
        (format!("{config}# x \u{feff}\n"), "5:5: a byte order mark"),
        (format!("{config}\u{1a}"), "5:1: a control character"),
        (config.replace("/q", "/\0q"), "3:14: a control character"),
        (config.replace("    ports", "\u{a0}\u{a0}  ports"), "4:1: not a plain space"),
        (config.replace("    ports", "  \u{a0} ports"), "4:3: not a plain space"),
        (config.replace(": /q", ":\u{a0}/q"), "3:12: not a plain space"),
        (config.replace(" []", "\n      -\u{a0}/devices/x/usb1/1-1"), "5:8: not a plain space"),
        (config.replace(" []", "\n      - port:\u{3000}/x"), "5:14: not a plain space"),
        (config.replace("/q", "/\u{80}q"), "3:14: a control character"),
        (config.replace("/q", "/\u{ffff}q"), "3:14: a control character"),
        (format!("{config}    ports: []\n"), "5:5: virtual_machines.w: duplicate field `ports`"),
        (format!("{config}  # x\n\n    delay: 1\n    delay: 2\n"), "8:5: "),
        (format!("{config}virtual_machines:\n"), "5:1: duplicate field"),
        (
            config.replace("[]", "\n      - port: /devices/x/usb1/1-1\n        port: usb1"),
            "6:9: virtual_machines.w.ports[0]: duplicate field `port`",
        ),
        (format!("{config}---\n{config}"), "5:1: a second document begins here"),
        (format!("---\n{config}---\nx: 1\n"), "6:1: a second document begins here"),
    ] {
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text:?}: {error}");
    }
}

#[test]
fn delay_and_timeout_fit_into_a_call() {
    let with = |delay: u32, timeout: u32| {
        let keys = format!("    delay: {delay}\n    timeout: {timeout}\n");
        parse(&format!("virtual_machines:\n  w:\n    socket: /q\n{keys}    ports: []\n"))
    };
    assert!(with(90, 60).is_ok() && with(120, 30).is_ok());
    let error = with(91, 60).unwrap_err().to_string();
    assert!(error.contains("add up to 151 s: write at most 150 s"), "{error}");
}

#[test]
fn the_example_parses() {
    let config = parse(EXAMPLE).unwrap();
    assert!(!config.virtual_machines.is_empty());
}

#[test]
fn the_originals_file_parses_as_it_is() {
    let config = parse(
        "virtual_machines:\n\n  windows:\n    socket: /home/user/vm/windows/qmp-sock\n    delay: 1\n    \
         hubs:\n      - xhci0.0\n      - xhci1.0\n    ports:\n      \
         - /devices/pci0000:00/0000:00:14.0/usb3/3-3\n      - /devices/pci0000:00/0000:00:14.0/usb4/4-3\n",
    )
    .unwrap();
    let vm = &config.virtual_machines[0];
    assert_eq!(vm.name, "windows");
    assert_eq!(vm.delay, Duration::from_secs(1));
    assert_eq!(vm.hubs, ["xhci0.0", "xhci1.0"]);
    assert_eq!(vm.ports.len(), 2);
}

#[test]
fn what_is_left_out_has_its_default() {
    let vm = "    socket: /run/qmp\n    ports: [/devices/x/usb1/1-1]\n";
    let vm = parse(&config(vm)).unwrap().virtual_machines.remove(0);
    assert_eq!((vm.delay, vm.timeout), (Duration::from_secs(1), Duration::from_secs(5)));
    assert!(vm.hubs.is_empty() && vm.peer_ports);
    assert!(vm.rules == DeviceRules::default() && vm.unbind_host_drivers && !vm.return_to_host);
    for (delay, millis) in [("0", 0), ("0.25", 250), ("\"2\"", 2000), ("120", 120_000)] {
        let vm =
            format!("    socket: /run/qmp\n    delay: {delay}\n    ports: [/devices/x/usb1/1-1]\n");
        let vm = parse(&config(&vm)).unwrap().virtual_machines.remove(0);
        assert_eq!(vm.delay, Duration::from_millis(millis));
    }
}

#[test]
fn nothing_configured_is_no_error() {
    for text in ["", "# nothing\n", "virtual_machines:\n", "virtual_machines: {}\n"] {
        assert_eq!(parse(text), Ok(Config::default()), "{text:?}");
    }
}

#[test]
fn a_machine_may_have_no_port_yet() {
    for ports in ["", " []"] {
        let vm = format!("    socket: /run/qmp\n    ports:{ports}\n");
        assert!(parse(&config(&vm)).unwrap().virtual_machines[0].ports.is_empty());
    }
}

#[test]
fn a_whole_root_hub_may_be_a_port() {
    let vm = "    socket: /run/qmp\n    ports: [/devices/x/usb1]\n";
    assert!(parse(&config(vm)).is_ok());
}

/// Each fault gets one line that says where it is and what to write instead.
#[test]
fn each_fault_is_told_with_its_place() {
    let ok = "    socket: /run/qmp\n    ports: [/devices/x/usb1/1-1]\n";
    untold([
        (config(&format!("{ok}    dellay: 1\n")), "5:5", ["dellay", "`delay`"]),
        (
            config(&format!("{ok}  windows:\n{ok}")),
            "5:3",
            ["`windows` is defined twice", "another name"],
        ),
        (config(&format!("{ok}    delay: soon\n")), "5:12", ["soon", "such as 1 or 0.5"]),
        (config(&format!("{ok}    delay: -1\n")), "5:12", ["-1", "from 0 to 120"]),
        (config(&format!("{ok}    delay: .nan\n")), "5:12", [".nan", "such as 1 or 0.5"]),
        (config(&format!("{ok}    timeout: 0\n")), "5:14", ["0", "from 0.1 to 60"]),
        (config(&format!("{ok}    hubs: xhci0.0\n")), "5:11", ["a list", "xhci0.0"]),
        (
            config(&format!("{ok}    hubs: [a.0, a.0]\n")),
            "5:17",
            ["a.0 is listed twice", "leave one out"],
        ),
        (
            config(&format!("{ok}    unbind_host_drivers: no\n")),
            "5:26",
            ["no", "`true` or `false`"],
        ),
        (config("    socket: /run/qmp\n    ports: [usb3]\n"), "4:13", ["`usb3`", "/devices/"]),
        (config("    socket: /run/qmp\n    ports: [7]\n"), "4:13", ["7", "DEVPATH"]),
        (
            config("    socket: /run/qmp\n    ports: [/sys/devices/x/usb1/1-1]\n"),
            "4:13",
            ["/sys", "leaves out"],
        ),
        (
            config("    socket: /run/qmp\n    ports: [/devices/x/usb1/1-0:1.0]\n"),
            "4:13",
            ["1-0:1.0", "USB port"],
        ),
        (
            config("    socket: /run/qmp\n    ports: [/devices/x/usb1/1-1.4]\n"),
            "4:13",
            ["cannot be a device", "write /devices/x/usb1/1-1/1-1.4"],
        ),
        (
            config(
                "    socket: /run/qmp\n    ports:\n      - /devices/x/usb1/1-1\n      - /devices/x/usb1/1-1\n",
            ),
            "6:9",
            ["listed twice", "leave one out"],
        ),
        (
            config("    socket: ~/qmp\n    ports: [/devices/x/usb1/1-1]\n"),
            "3:13",
            ["`~/qmp` is not a path", "absolute path"],
        ),
        (
            config("    socket: unix:/run/qmp\n    ports: [/devices/x/usb1/1-1]\n"),
            "3:13",
            ["`unix:/run/qmp` is not a path", "absolute path"],
        ),
        (
            config("    socket: ''\n    ports: [/devices/x/usb1/1-1]\n"),
            "3:13",
            ["`` is not a path", "absolute path"],
        ),
        (
            config("    socket: /run/qmp\n    ports: [{port: {port: /devices/x/usb1/1-1}}]\n"),
            "4:13",
            ["map", "DEVPATH"],
        ),
        (config("    ports: [/devices/x/usb1/1-1]\n"), "3:5", ["missing field", "socket"]),
        (config("    socket: /run/qmp\n"), "3:5", ["missing field", "ports"]),
        (
            "virtual_machines: [windows]\n".to_owned(),
            "1:19",
            ["the virtual machines", "a name and a colon"],
        ),
        ("- windows\n".to_owned(), "1:1", ["sequence", "`virtual_machines:`"]),
        (
            "virtual_machines:\n  windows: /run/qmp\n".to_owned(),
            "2:12",
            ["string", "`ports:`, and perhaps"],
        ),
        ("vms:\n".to_owned(), "1:1", ["vms", "virtual_machines"]),
        ("virtual_machines:\n\twindows:\n".to_owned(), "2:1", ["token", "tab"]),
    ]);
}

#[test]
fn each_fault_of_names_and_companions_is_told_with_its_place() {
    let ok = "    socket: /run/qmp\n    ports: [/devices/x/usb1/1-1]\n";
    untold([
        (config(&format!("{ok}    peer_ports: no\n")), "5:17", ["\"no\"", "`true` or `false`"]),
        (
            config("    socket: /run/qmp\n    ports: [pci-0000:00:14.0/usb9:1]\n"),
            "4:13",
            ["usb1, usb2 or usb3", "pci-0000:00:14.0/usb2:3"],
        ),
        (
            config("    socket: /s\n    ports: [pci-a/usb2:1, pci-a-usbv2-0:1]\n"),
            "4:27",
            ["pci-a/usb2:1 is listed twice", "leave one out"],
        ),
        (
            config("    socket: /s\n    ports: [/devices/a/usb1/1-1, pci-a-usb-0:1]\n"),
            "4:34",
            ["pci-a-usb-0:1 is listed twice", "also as /devices/a/usb1/1-1"],
        ),
    ]);
}

/// Fails with all faults that are told otherwise than at this place with these words.
fn untold<const FAULTS: usize>(faults: [(String, &str, [&str; 2]); FAULTS]) {
    let mut untold = Vec::new();
    for (text, place, hints) in faults {
        let said = error(&text);
        let told = said.starts_with(&format!("{place}: "))
            && hints.iter().all(|hint| said.contains(hint))
            && said.lines().count() == 1;
        if !told {
            untold.push(format!("{text}{said}\nwanted {place} {hints:?}"));
        }
    }
    assert!(untold.is_empty(), "{}", untold.join("\n\n"));
}

#[test]
fn former_names_of_keys_are_errors_that_say_the_new_name() {
    for (old, new) in [
        ("hands_off", "unbind_host_drivers"),
        ("companions", "peer_ports"),
        ("reclaim", "return_to_host"),
        ("trust_socket_folder", "trust_socket_directory"),
    ] {
        let text = format!(
            "virtual_machines:\n  windows:\n    socket: /run/qmp\n    {old}: true\n    ports:\n"
        );
        let error = parse(&text).unwrap_err().to_string();
        let expected =
            format!("4:5: virtual_machines.windows: `{old}` is now called `{new}`; rename the key");
        assert_eq!(error, expected);
    }
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }
}
