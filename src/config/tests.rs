use super::*;
use crate::location::Generation;
use proptest::prelude::*;

const PCI: &str = "/devices/pci0000:00/0000:00:14.0";

/// A VM of that name with these ports, `@` being the PCI device of a controller.
pub(crate) fn vm(name: &str, ports: &[&str]) -> VirtualMachine {
    VirtualMachine {
        name: name.to_owned(),
        monitor: crate::monitor::Monitor::Socket("/run/q".into()),
        delay: VirtualMachine::DEFAULT_DELAY,
        timeout: VirtualMachine::DEFAULT_TIMEOUT,
        hubs: Vec::new(),
        ports: ports.iter().map(|port| port.replace('@', PCI).parse().unwrap()).collect(),
        peer_ports: true,
        rules: DeviceRules::default(),
        port_rules: Vec::new(),
        unbind_host_drivers: true,
        access: Access::default(),
        return_to_host: false,
        spellings: Vec::new(),
    }
}

fn config(vms: &[(&str, &[&str])]) -> Config {
    Config {
        virtual_machines: vms.iter().map(|(name, ports)| vm(name, ports)).collect(),
        ..Config::default()
    }
}

/// A place below the controller: `usb1` is its USB 2 root hub, `usb2` its USB 3 one.
fn place(below: &str) -> PortLocation {
    PortLocation {
        devpath: format!("{PCI}/{below}").parse().unwrap(),
        controller: "pci-0000:00:14.0".parse().ok(),
        generation: Some(if below.starts_with("usb1") {
            Generation::Usb2
        } else {
            Generation::Usb3
        }),
    }
}

fn owners<'a>(config: &'a Config, device: &str, peers: &[&str]) -> Vec<&'a str> {
    let peers = peers.iter().map(|below| place(below)).collect();
    let places = UsbLocation { own: place(device), peers };
    let owners: Vec<&str> = config.owners(&places).iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(config.is_configured(&places), !owners.is_empty());
    owners
}

fn owner<'a>(config: &'a Config, device: &str, peers: &[&str]) -> Option<&'a str> {
    owners(config, device, peers).first().copied()
}

#[test]
fn port_1_1_leaves_1_10_alone() {
    for port in ["@/usb1/1-1", "pci-0000:00:14.0/usb2:1", "pci-0000:00:14.0-usb-0:1"] {
        let config = config(&[("windows", &[port])]);
        assert_eq!(owner(&config, "usb1/1-1", &[]), Some("windows"));
        assert_eq!(owner(&config, "usb1/1-1/1-1.2/1-1.2.3", &[]), Some("windows"));
        assert_eq!(owner(&config, "usb1/1-10", &[]), None);
        assert_eq!(owner(&config, "usb1/1-11/1-11.1", &[]), None);
    }
}

#[test]
fn the_longest_port_wins_whatever_the_order() {
    let mut config = config(&[
        ("windows", &["@/usb1/1-1"]),
        ("linux", &["pci-0000:00:14.0/usb2:1.4", "@/usb1/1-2"]),
    ]);
    for _ in 0..2 {
        assert_eq!(owner(&config, "usb1/1-1/1-1.4/1-1.4.1", &[]), Some("linux"));
        assert_eq!(owner(&config, "usb1/1-1/1-1.3", &[]), Some("windows"));
        assert_eq!(owner(&config, "usb1/1-1", &[]), Some("windows"));
        config.virtual_machines.reverse();
    }
}

#[test]
fn one_half_has_the_other_unless_that_is_anothers() {
    let mut config = config(&[("w", &["@/usb1/1-1"]), ("l", &["@/usb1/1-2", "@/usb2/2-3"])]);
    assert_eq!(owner(&config, "usb2/2-1", &["usb1/1-1"]), Some("w"));
    // The pair has other numbers.
    assert_eq!(owner(&config, "usb2/2-7", &["usb1/1-2"]), Some("l"));
    assert_eq!(owner(&config, "usb2/2-3", &["usb1/1-1"]), Some("l"));
    assert_eq!(owner(&config, "usb2/2-7", &["usb1/1-7"]), None);
    // Behind a hub in a port whose other half is configured.
    assert_eq!(owner(&config, "usb2/2-1/2-1.3", &["usb1/1-1/1-1.3", "usb1/1-1"]), Some("w"));
    config.virtual_machines[0].peer_ports = false;
    assert_eq!(owner(&config, "usb2/2-1", &["usb1/1-1"]), None);
    assert_eq!(owner(&config, "usb1/1-1", &["usb2/2-1"]), Some("w"));
}

#[test]
fn a_name_of_one_half_wins_over_one_of_both_and_that_over_the_other_half() {
    let mut config = config(&[
        ("both", &["pci-0000:00:14.0-usb-0:1"]),
        ("half", &["pci-0000:00:14.0/usb3:1"]),
        ("other", &["@/usb1/1-2"]),
    ]);
    for _ in 0..2 {
        assert_eq!(owner(&config, "usb2/2-1", &["usb1/1-2"]), Some("half"));
        assert_eq!(owner(&config, "usb1/1-1", &["usb2/2-1"]), Some("both"));
        config.virtual_machines.reverse();
    }
}

#[test]
fn a_port_of_several_is_theirs_in_the_order_of_the_file() {
    let lists: [(&str, &[&str]); 4] = [
        ("hub", &["@/usb1/1-1"]),
        ("first", &["@/usb1/1-1/1-1.4"]),
        ("second", &["pci-0000:00:14.0/usb2:1.4"]),
        ("half", &["@/usb2/2-1/2-1.4"]),
    ];
    let mut config = config(&lists);
    assert_eq!(owners(&config, "usb1/1-1/1-1.4", &["usb2/2-1/2-1.4"]), ["first", "second"]);
    assert_eq!(owners(&config, "usb1/1-1/1-1.3", &["usb2/2-1/2-1.3"]), ["hub"]);
    config.virtual_machines.reverse();
    assert_eq!(owners(&config, "usb1/1-1/1-1.4", &[]), ["second", "first"]);
    let both = ("both", &["pci-0000:00:14.0-usb-0:1.4"][..]);
    let config = self::config(&[both, lists[1]]);
    assert_eq!(owners(&config, "usb1/1-1/1-1.4", &[]), ["first", "both"]);
}

#[test]
fn a_root_hub_that_is_gone_may_have_been_any_of_its_controllers() {
    let config = config(&[("w", &["pci-0000:00:14.0/usb2:1"])]);
    let mut places = UsbLocation::of(place("usb2/2-1"));
    assert!(!config.is_configured(&places));
    places.own.generation = None;
    assert!(config.is_configured(&places));
    places.own.controller = None;
    assert!(!config.is_configured(&places));
}

proptest! {
    #[test]
    fn the_owner_is_what_a_look_at_each_component_says(
        ports in prop::collection::vec((prop::collection::vec(1..3u8, 1..4), 0..3u8), 0..6),
        device in prop::collection::vec(1..3u8, 1..5),
    ) {
        let dots = |chain: &[u8]| chain.iter().map(u8::to_string).collect::<Vec<_>>().join(".");
        let below = |chain: &[u8]| {
            let names = (1..=chain.len()).map(|length| format!("/1-{}", dots(&chain[..length])));
            format!("usb1{}", names.collect::<String>())
        };
        let config = Config {
            virtual_machines: ports.iter().enumerate().map(|(index, (chain, form))| {
                vm(&index.to_string(), &[&match form {
                    0 => format!("@/{}", below(chain)),
                    1 => format!("pci-0000:00:14.0/usb2:{}", dots(chain)),
                    _ => format!("pci-0000:00:14.0-usbv2-0:{}", dots(chain)),
                }])
            }).collect(),
            ..Config::default()
        };
        let longest = (1..=device.len()).rev().find_map(|length| {
            ports.iter().position(|(chain, _)| chain[..] == device[..length])
        });
        let found = owner(&config, &below(&device), &[]).map(str::to_owned);
        prop_assert_eq!(found, longest.map(|index| index.to_string()));
    }
}
