//! The rule that starts hotplugger for configured ports only, so that udev starts nothing for all
//! others. Pure.
//!
//! It may start it in vain, for what hotplugger itself then leaves alone, but it leaves out nothing
//! that is somebody's: the ports below which all configured ports and the other halves of their
//! connectors are, on whatever bus.

use std::collections::BTreeSet;

use super::{Content, Piece};
use crate::config::port::PortName;
use crate::config::{Config, VirtualMachine};
use crate::host::topology::{Controller, Topology};

/// Where the plain rule goes on to start hotplugger.
const LABEL: &str = "LABEL=\"hotplugger_run\"\n";
/// With a dot before it, it is kept in no database and told to no program (udev(7), ENV).
const FOUND: &str = "ENV{.HOTPLUGGER}";
/// What tells such a rule from the plain one.
const MARK: &str = "# The ports of the config, as `hotplugger install --exact` found them: run it \
    again when the config\n# or the machine's controllers change. What has a record may leave \
    whatever the config says.\n";

/// Whether the text of a rule is of this kind.
pub fn is_exact(rule: &str) -> bool {
    rule.contains(MARK)
}

/// Puts the ports of this config into the plain rule's piece.
pub fn narrow(piece: &mut Piece, config: &Config, topology: &Topology) {
    if let Content::File { text, .. } = &mut piece.content {
        *text = rule(text, config, topology);
    }
}

/// The plain rule with the ports of this config put in.
fn rule(plain: &str, config: &Config, topology: &Topology) -> String {
    let records = ["/tmp", "/run"]
        .map(|folder| format!("ACTION==\"remove\", TEST==\"{folder}/hotplugger/port-%k.json\""));
    let ports = patterns(config, topology);
    let ports = ports.iter().map(|pattern| format!("DEVPATH==\"{pattern}\""));
    let found: Vec<String> = records
        .into_iter()
        .chain(ports)
        .map(|matches| format!("{matches}, {FOUND}=\"1\"\n"))
        .collect();
    let rest = format!("{FOUND}!=\"1\", GOTO=\"hotplugger_end\"\n");
    plain.replace(LABEL, &[LABEL, MARK, &found.concat(), &rest].concat())
}

/// The patterns of udev(7), of which one matches the DEVPATH of each device that is a machine's.
/// There a `*` stands for slashes too.
fn patterns(config: &Config, topology: &Topology) -> BTreeSet<String> {
    let mut patterns = BTreeSet::new();
    for vm in &config.virtual_machines {
        for port in &vm.ports {
            patterns.insert(of_port(port));
            patterns.extend(of_companions(vm, port, topology));
        }
    }
    // A name that has a pattern's own signs in it is no kernel's.
    if patterns.iter().any(|pattern| pattern.contains(['[', ']', '?', '"', '\\'])) {
        return BTreeSet::from(["*".to_owned()]);
    }
    patterns
}

/// The port itself and what is below it.
fn of_port(port: &PortName) -> String {
    match port {
        PortName::DevPath(path) if path.port().is_some() => format!("{path}|{path}/*"),
        PortName::DevPath(path) => format!("{path}/*"),
        PortName::Stable { controller, chain: None, .. } => whole(controller.sysname()),
        PortName::Stable { controller, chain: Some(chain), .. } => {
            below(controller.sysname(), &chain.to_string())
        }
    }
}

/// The other halves. What is behind a hub has its own behind the hub's other half, so that the ports
/// of the root hubs tell all; which they are is the machine's matter.
fn of_companions(vm: &VirtualMachine, port: &PortName, topology: &Topology) -> Vec<String> {
    let (sysname, first) = match port {
        PortName::DevPath(path) => {
            let chain = path.port().map(|port| port.chain().clone());
            (path.controller().unwrap_or_default(), chain)
        }
        PortName::Stable { controller, chain, .. } => (controller.sysname(), chain.clone()),
    };
    if !vm.peer_ports {
        return Vec::new();
    }
    let Some(first) = first.and_then(|chain| chain.numbers().first().copied()) else {
        return vec![whole(sysname)];
    };
    let is_it = |one: &&Controller| one.devpath.sysname() == sysname;
    // It is away now.
    let Some(controller) = topology.controllers.iter().find(is_it) else {
        return vec![whole(sysname)];
    };
    let ports = controller.root_hubs.iter().flat_map(|hub| &hub.ports);
    let peers = ports.filter(|port| port.port.number() == first).filter_map(|port| {
        let peer = port.connector.peer.as_ref()?.port()?;
        Some(below(sysname, &peer.hostport()))
    });
    peers.collect()
}

fn whole(controller: &str) -> String {
    format!("*/{controller}/usb*/*")
}

fn below(controller: &str, chain: &str) -> String {
    format!("*/{controller}/usb*/*-{chain}|*/{controller}/usb*/*-{chain}/*")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::udev_rules::glob::matches;
    use crate::config::parse::parse;
    use crate::host::topology::{Connector, Hub, HubPort};
    use proptest::prelude::*;

    const PLAIN: &str = include_str!("../../rules/99-hotplugger.rules");

    /// One controller with two root hubs, whose ports 1 and 2 are 5 and 6 of the other.
    fn topology() -> Topology {
        let controller = "/devices/pci0000:00/0000:00:14.0";
        let hub = |bus: u8, other: u8, numbers: [(u8, u8); 2]| Hub {
            devpath: format!("{controller}/usb{bus}").parse().unwrap(),
            speed: Some(if bus == 1 { "480" } else { "5000" }.parse().unwrap()),
            ports: numbers
                .map(|(own, its)| HubPort {
                    port: format!("{bus}-{own}").parse().unwrap(),
                    devpath: format!("{controller}/usb{bus}/{bus}-{own}").parse().unwrap(),
                    connector: Connector {
                        peer: format!("{controller}/usb{other}/{other}-{its}").parse().ok(),
                        ..Connector::default()
                    },
                    plugged: None,
                })
                .to_vec(),
        };
        Topology {
            controllers: vec![Controller {
                devpath: controller.parse().unwrap(),
                name: "pci-0000:00:14.0".parse().ok(),
                root_hubs: vec![hub(1, 2, [(1, 5), (2, 6)]), hub(2, 1, [(5, 1), (6, 2)])],
            }],
        }
    }

    fn config(port: &str, companions: bool) -> Config {
        let text = format!(
            "virtual_machines:\n  w:\n    socket: /s\n    peer_ports: {companions}\n    ports: ['{port}']\n"
        );
        parse(&text).unwrap()
    }

    fn is_started(config: &Config, path: &str) -> bool {
        patterns(config, &topology()).iter().any(|pattern| matches(pattern, path))
    }

    #[test]
    fn the_other_half_is_found_and_other_ports_are_not() {
        let usb1 = "/devices/pci0000:00/0000:00:14.0/usb1";
        let usb2 = "/devices/pci0000:00/0000:00:14.0/usb2";
        for name in [format!("{usb1}/1-1"), "pci-0000:00:14.0/usb2:1".to_owned()] {
            let config = config(&name, true);
            for path in ["1-1", "1-1/1-1:1.0", "1-1/1-1.4/1-1.4.2"] {
                assert!(is_started(&config, &format!("{usb1}/{path}")), "{name} {path}");
            }
            for path in ["2-5", "2-5/2-5.1"] {
                assert!(is_started(&config, &format!("{usb2}/{path}")), "{name} {path}");
            }
            for path in ["1-2", "1-10", "1-2/1-2.1"] {
                assert!(!is_started(&config, &format!("{usb1}/{path}")), "{name} {path}");
            }
        }
        assert!(!is_started(&config(&format!("{usb1}/1-1"), false), &format!("{usb2}/2-5")));
        assert!(is_started(
            &config("pci-0000:00:15.0/usb2:1", true),
            "/devices/x/0000:00:15.0/usb9/9-3"
        ));
    }

    #[test]
    fn the_rule_is_the_plain_one_with_a_way_past_it() {
        let config = config("pci-0000:00:14.0/usb2:1", false);
        let exact = rule(PLAIN, &config, &topology());
        assert!(is_exact(&exact) && !is_exact(PLAIN));
        for line in PLAIN.lines() {
            assert!(exact.contains(line), "{line}");
        }
        assert_eq!(exact.matches("ENV{.HOTPLUGGER}=\"1\"\n").count(), 3);
        assert_eq!(exact.matches("GOTO=\"hotplugger_end\"\nRUN+=").count(), 1);
    }

    proptest! {
        /// What the config has, the rule starts hotplugger for.
        #[test]
        fn nothing_that_is_configured_is_left_out(
            bus in 1..=2u8,
            wanted in prop::collection::vec(1..=6u8, 0..=3),
            chain in prop::collection::vec(1..=6u8, 1..=4),
            form in 0..3u8,
            companions: bool,
        ) {
            let path = |bus: u8, chain: &[u8]| {
                let numbers: Vec<String> = chain.iter().map(u8::to_string).collect();
                let parts = (1..=numbers.len()).map(|end| format!("/{bus}-{}", numbers[..end].join(".")));
                format!("/devices/pci0000:00/0000:00:14.0/usb{bus}{}", parts.collect::<String>())
            };
            let numbers: Vec<String> = wanted.iter().map(u8::to_string).collect();
            let port = match form {
                0 => path(1, &wanted),
                _ if wanted.is_empty() => "pci-0000:00:14.0/usb2".to_owned(),
                1 => format!("pci-0000:00:14.0/usb2:{}", numbers.join(".")),
                _ => format!("pci-0000:00:14.0-usb-0:{}", numbers.join(".")),
            };
            let config = config(&port, companions);
            let device = path(bus, &chain);
            let topology = topology();
            if config.is_configured(&topology.places(&device.parse().unwrap())) {
                prop_assert!(is_started(&config, &device), "{} {}", port, device);
            }
        }
    }
}
