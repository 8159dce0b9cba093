//! Programs of the host that take devices first, or keep them from everybody.

use std::path::PathBuf;

use super::finding::Finding;
use crate::devpath::DevPath;
use crate::text::shell_word;
use crate::usb_device::UsbDevice;

/// A device in a configured port.
#[derive(Debug)]
pub struct DeviceLook {
    /// Its DEVPATH.
    pub devpath: DevPath,
    /// Its folder in sysfs.
    pub folder: PathBuf,
    /// What it is.
    pub device: UsbDevice,
    /// Whether it has an interface of the mass storage class.
    pub storage: bool,
}

/// Which of the programs that matter run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Daemons {
    /// udisks2, which desktops mount with.
    pub udisks: bool,
    /// `USBGuard`.
    pub usbguard: bool,
}

/// Judges the devices in configured ports.
pub fn judge(devices: &[DeviceLook], daemons: &Daemons) -> Vec<Finding> {
    let mut findings = Vec::new();
    for look in devices {
        if !look.device.authorized {
            let what = format!("{} is not authorized, so nobody can use it", look.device.label());
            let finding = Finding::warning("not-authorized", &look.devpath, what);
            let authorized = look.folder.join("authorized");
            findings.push(if daemons.usbguard {
                finding.advice(
                    "USBGuard blocks it: `usbguard list-devices --blocked` tells its number, \
                     `usbguard allow-device NUMBER` lets it in",
                )
            } else {
                let authorized = shell_word(&authorized.to_string_lossy());
                finding.run(format!("echo 1 > {authorized}"))
            });
        }
        if look.storage && daemons.udisks {
            let what = format!(
                "udisks2 runs and may mount {} before the guest has it",
                look.device.label()
            );
            let port = &look.devpath;
            findings.push(Finding::note("udisks", port, what).add_line(
                "/etc/udev/rules.d/70-hotplugger-udisks.rules",
                format!("DEVPATH==\"{port}/*\", SUBSYSTEM==\"block\", ENV{{UDISKS_IGNORE}}=\"1\""),
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::{BusNum, DevNum};

    #[test]
    fn only_devices_in_the_way_are_told() {
        let look = |authorized, storage| DeviceLook {
            devpath: "/devices/x/usb1/1-1".parse().unwrap(),
            folder: "/sys/devices/x/usb1/1-1".into(),
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
        let codes = |devices: &[DeviceLook], udisks| {
            let daemons = Daemons { udisks, usbguard: false };
            judge(devices, &daemons).iter().map(|finding| finding.code).collect::<Vec<_>>()
        };
        assert!(codes(&[look(true, false)], true).is_empty());
        assert!(codes(&[look(true, true)], false).is_empty());
        assert_eq!(codes(&[look(true, true)], true), ["udisks"]);
        assert_eq!(codes(&[look(false, false)], true), ["not-authorized"]);
    }
}
