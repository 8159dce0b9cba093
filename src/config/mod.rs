//! The configuration: which ports belong to which virtual machine.
//!
//! These are the values and what they mean; [`parse`] makes them from YAML text, [`edit`] adds
//! ports to that text, [`exclude`](mod@exclude) what stays with the host, [`file`](mod@file) finds, checks and reads it, [`write`](mod@write) replaces it,
//! [`prefilter`] tells cheaply that it cannot matter.

pub mod edit;
pub mod exclude;
pub mod file;
pub mod parse;
pub mod prefilter;
pub mod write;

use std::path::PathBuf;
use std::time::Duration;

use self::exclude::Exclusion;
use crate::devpath::DevPath;
use crate::sysfs::UsbDevice;

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The virtual machines, in the order of the file.
    pub virtual_machines: Vec<VirtualMachine>,
    /// What goes to none of them.
    pub exclude: Vec<Exclusion>,
}

/// One virtual machine and its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualMachine {
    /// Its name in the config.
    pub name: String,
    /// The path of its QMP socket, absolute.
    pub socket: PathBuf,
    /// How long a device must be quiet before it is attached: 0 to 120 s.
    pub delay: Duration,
    /// The most one exchange with QEMU may take, lock and connect included: 0.1 to 60 s.
    pub timeout: Duration,
    /// The guest's USB buses to use, in this order (`xhci0.0`); empty for QEMU's choice.
    pub hubs: Vec<String>,
    /// What does not go to it, beside what goes to none.
    pub exclude: Vec<Exclusion>,
    /// Whether the host's drivers are kept off a device while it settles.
    pub hands_off: bool,
    /// The ports, each with all that is below it.
    pub ports: Vec<DevPath>,
}

impl VirtualMachine {
    /// The settle delay where the config says none.
    pub const DEFAULT_DELAY: Duration = Duration::from_secs(1);
    /// The deadline where the config says none.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
}

impl Config {
    /// The entry that keeps a device from this virtual machine; of both lists the machine's own
    /// comes first.
    pub fn exclusion<'a>(
        &'a self,
        vm: &'a VirtualMachine,
        devpath: &DevPath,
        device: &UsbDevice,
        interfaces: &[u8],
    ) -> Option<&'a Exclusion> {
        let mut entries = vm.exclude.iter().chain(&self.exclude);
        entries.find(|entry| entry.is_of(devpath, device, interfaces))
    }

    /// The virtual machine whose port a device at `devpath` is in: of all ports at or above it,
    /// the longest wins.
    pub fn owner(&self, devpath: &DevPath) -> Option<&VirtualMachine> {
        let owned = |vm: &VirtualMachine| {
            vm.ports
                .iter()
                .filter(|port| devpath.is_at_or_below(port))
                .map(|port| port.components().count())
                .max()
        };
        self.virtual_machines
            .iter()
            .filter_map(|vm| owned(vm).map(|length| (length, vm)))
            // Of equals the first stays: `max_by_key` would take the last.
            .reduce(|best, next| if next.0 > best.0 { next } else { best })
            .map(|(_, vm)| vm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vm(name: &str, ports: &[&str]) -> VirtualMachine {
        VirtualMachine {
            name: name.to_owned(),
            socket: "/run/qmp".into(),
            delay: VirtualMachine::DEFAULT_DELAY,
            timeout: VirtualMachine::DEFAULT_TIMEOUT,
            hubs: Vec::new(),
            exclude: Vec::new(),
            hands_off: true,
            ports: ports
                .iter()
                .map(|port| format!("/devices/pci0000:00/0000:00:14.0/{port}").parse().unwrap())
                .collect(),
        }
    }

    fn owner(config: &Config, device: &str) -> Option<String> {
        let devpath = format!("/devices/pci0000:00/0000:00:14.0/{device}").parse().unwrap();
        config.owner(&devpath).map(|vm| vm.name.clone())
    }

    #[test]
    fn port_1_1_leaves_1_10_alone() {
        let config =
            Config { virtual_machines: vec![vm("windows", &["usb1/1-1"])], ..Config::default() };
        assert_eq!(owner(&config, "usb1/1-1"), Some("windows".to_owned()));
        assert_eq!(owner(&config, "usb1/1-1/1-1.2/1-1.2.3"), Some("windows".to_owned()));
        assert_eq!(owner(&config, "usb1/1-10"), None);
        assert_eq!(owner(&config, "usb1/1-11/1-11.1"), None);
    }

    #[test]
    fn the_longest_port_wins_whatever_the_order() {
        let mut config = Config {
            virtual_machines: vec![
                vm("windows", &["usb1/1-1"]),
                vm("linux", &["usb1/1-1/1-1.4", "usb1/1-2"]),
            ],
            ..Config::default()
        };
        for _ in 0..2 {
            assert_eq!(owner(&config, "usb1/1-1/1-1.4/1-1.4.1"), Some("linux".to_owned()));
            assert_eq!(owner(&config, "usb1/1-1/1-1.3"), Some("windows".to_owned()));
            assert_eq!(owner(&config, "usb1/1-1"), Some("windows".to_owned()));
            config.virtual_machines.reverse();
        }
    }

    proptest! {
        #[test]
        fn the_owner_is_what_a_look_at_each_component_says(
            ports in prop::collection::vec(prop::collection::vec(1..3u8, 1..4), 0..6),
            device in prop::collection::vec(1..3u8, 1..5),
        ) {
            let below = |chain: &[u8]| (1..=chain.len()).map(|length| {
                let numbers: Vec<String> = chain[..length].iter().map(u8::to_string).collect();
                format!("1-{}", numbers.join("."))
            }).collect::<Vec<_>>();
            let config = Config {
                virtual_machines: ports.iter().enumerate().map(|(index, chain)| {
                    vm(&index.to_string(), &[&format!("usb1/{}", below(chain).join("/"))])
                }).collect(),
                ..Config::default()
            };
            let longest = (1..=device.len()).rev().find_map(|length| {
                ports.iter().position(|chain| chain[..] == device[..length])
            });
            let found = owner(&config, &format!("usb1/{}", below(&device).join("/")));
            prop_assert_eq!(found, longest.map(|index| index.to_string()));
        }
    }
}
