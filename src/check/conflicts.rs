//! Programs of the host that use devices before the guest does, or block them.

use std::fs;
use std::path::PathBuf;

use super::finding::Finding;
use super::process::{file, pids};
use crate::config::Config;
use crate::devpath::DevPath;
use crate::host::sysfs::{self, attribute};
use crate::host::topology::Topology;
use crate::root::Root;
use crate::text::shell_word;
use crate::usb_device::UsbDevice;

/// A device in a configured port.
#[derive(Debug)]
pub struct DeviceFacts {
    pub devpath: DevPath,
    /// Its directory in sysfs.
    pub directory: PathBuf,
    pub device: UsbDevice,
    /// Whether it has an interface of the mass storage class.
    pub storage: bool,
}

/// Which of these programs run.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunningPrograms {
    /// udisks2, which desktops mount with.
    pub udisks: bool,
    /// `USBGuard`.
    pub usbguard: bool,
}

/// Reads the devices in configured ports.
pub fn gather(root: &Root, config: &Config, topology: &Topology) -> Vec<DeviceFacts> {
    let devices = topology.devices().filter_map(|(port, device)| {
        if !config.is_configured(&topology.places(&port.devpath)) {
            return None;
        }
        let directory = sysfs::directory(root, &port.devpath);
        let interfaces = fs::read_dir(&directory).into_iter().flatten().filter_map(Result::ok);
        let storage = interfaces
            .filter_map(|entry| attribute(entry.path().join("bInterfaceClass")).ok())
            .any(|class| class == "08");
        Some(DeviceFacts {
            devpath: port.devpath.clone(),
            directory,
            device: device.clone(),
            storage,
        })
    });
    devices.collect()
}

/// Reads which of these programs run.
pub fn running_programs(root: &Root) -> RunningPrograms {
    let mut running = RunningPrograms::default();
    for pid in pids(root) {
        match attribute(file(root, pid, "comm")).as_deref() {
            Ok("udisksd") => running.udisks = true,
            Ok("usbguard-daemon") => running.usbguard = true,
            _ => {}
        }
    }
    running
}

/// Judges the devices in configured ports.
pub fn check(devices: &[DeviceFacts], daemons: &RunningPrograms) -> Vec<Finding> {
    let mut findings = Vec::new();
    for facts in devices {
        if !facts.device.authorized {
            let what =
                format!("{} is not authorized, so no program can use it", facts.device.label());
            let finding = Finding::warning("not-authorized", &facts.devpath, what);
            let authorized = facts.directory.join("authorized");
            findings.push(if daemons.usbguard {
                finding.advice(
                    "USBGuard blocks it: `usbguard list-devices --blocked` prints its number, \
                     `usbguard allow-device NUMBER` allows it",
                )
            } else {
                let authorized = shell_word(&authorized.to_string_lossy());
                finding.run(format!("echo 1 > {authorized}"))
            });
        }
        if facts.storage && daemons.udisks {
            let what = format!(
                "udisks2 runs and may mount {} before it is attached",
                facts.device.label()
            );
            let port = &facts.devpath;
            findings.push(Finding::note("udisks", port, what).add_line(
                "/etc/udev/rules.d/70-hotplugger-udisks.rules",
                format!("DEVPATH==\"{port}/*\", SUBSYSTEM==\"block\", ENV{{UDISKS_IGNORE}}=\"1\""),
            ));
        }
    }
    findings
}

#[cfg(test)]
pub(in crate::check) mod tests {
    use super::*;
    use crate::port::BusNum;
    use crate::port::DevNum;

    #[test]
    fn only_affected_devices_are_reported() {
        let facts = |authorized, storage| DeviceFacts {
            devpath: "/devices/x/usb1/1-1".parse().unwrap(),
            directory: "/sys/devices/x/usb1/1-1".into(),
            device: UsbDevice {
                busnum: BusNum(1),
                devnum: DevNum(5),
                class: 0,
                authorized,
                vendor_id: 1,
                product_id: 2,
                speed: None,
                product: None,
                serial: None,
            },
            storage,
        };
        let codes = |devices: &[DeviceFacts], udisks| {
            let daemons = RunningPrograms { udisks, usbguard: false };
            check(devices, &daemons).iter().map(|finding| finding.code).collect::<Vec<_>>()
        };
        assert!(codes(&[facts(true, false)], true).is_empty());
        assert!(codes(&[facts(true, true)], false).is_empty());
        assert_eq!(codes(&[facts(true, true)], true), ["udisks"]);
        assert_eq!(codes(&[facts(false, false)], true), ["not-authorized"]);
    }
}
