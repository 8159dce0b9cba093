//! Keeps the host's drivers off a device until it is attached, and returns it to them otherwise.

use std::mem;

use crate::host::Host;
use crate::policy::{self, Assignment};
use crate::port::DevNum;
use crate::usb_device::DiskClaims;

/// A device whose host drivers may be unbound. Unless [`keep`](Self::keep) is called, it returns
/// the device to them when it is dropped.
///
/// Without it usb-storage would read a disk one second after the plug (`delay_use`), and the
/// read would be cut off when the guest takes the disk; or a desktop would mount it.
pub struct DriverGuard<'a> {
    host: &'a dyn Host,
    assignment: Assignment<'a>,
    devnum: DevNum,
    unbound: bool,
    /// Whether nothing is left to do when it is dropped.
    released: bool,
    warnings: Vec<String>,
}

impl<'a> DriverGuard<'a> {
    pub fn new(host: &'a dyn Host, assignment: Assignment<'a>, devnum: DevNum) -> Self {
        Self { host, assignment, devnum, unbound: false, released: false, warnings: Vec::new() }
    }

    /// Unbinds the drivers, if the config lets it.
    ///
    /// For a device that has just passed the policy, with its disks claimed, and a VM that runs.
    pub fn unbind(&mut self, _claims: DiskClaims) {
        if !self.assignment.vm.unbind_host_drivers {
            return;
        }
        match self.host.unbind_drivers(self.assignment.devpath()) {
            Ok(unbound) => self.unbound |= unbound > 0,
            Err(error) => self.warnings.push(format!("the host keeps using it: {error}")),
        }
    }

    /// Unbinds the drivers if the VM runs, the device is still there and the policy allows it.
    ///
    /// Called again when a driver may have been bound since: udevd loads modules after the
    /// kernel's `bind`.
    pub fn unbind_if_allowed(&mut self) {
        let Assignment { vm, .. } = self.assignment;
        if !vm.unbind_host_drivers || self.host.socket_file(&vm.monitor).is_none() {
            return;
        }
        let Ok(Some(device)) = self.host.usb_device(self.assignment.devpath()) else { return };
        let interfaces = self.host.interfaces(self.assignment.devpath());
        if device.devnum != self.devnum {
            return;
        }
        if let Ok(claims) = policy::check(self.host, self.assignment, &device, &interfaces) {
            self.unbind(claims);
        }
    }

    /// Leaves the device without host drivers: it is attached, or a later event handles it.
    /// Returns the warnings.
    pub fn keep(mut self) -> Vec<String> {
        self.released = true;
        mem::take(&mut self.warnings)
    }

    /// Returns the device to the host's drivers. Returns the warnings.
    ///
    /// An interface without a driver counts as unbound by us: the process of an earlier event may
    /// have done it.
    pub fn return_to_host(mut self) -> Vec<String> {
        let result = self.probe();
        self.warnings.extend(result);
        mem::take(&mut self.warnings)
    }

    fn probe(&mut self) -> Option<String> {
        self.released = true;
        let devpath = self.assignment.devpath();
        let device = self.host.usb_device(devpath).ok().flatten()?;
        if !self.assignment.vm.unbind_host_drivers || device.devnum != self.devnum {
            return None;
        }
        let result = self.host.return_to_drivers(devpath);
        if result.after > result.before || (self.unbound && result.before > 0) {
            return Some("returned to the host's drivers".to_owned());
        }
        match result.probed {
            Err(error) => Some(format!("not returned to the host's drivers: {error}")),
            Ok(()) if self.unbound => {
                Some("no host driver took it back; unplug it and plug it in again".to_owned())
            }
            Ok(()) => None,
        }
    }
}

impl Drop for DriverGuard<'_> {
    fn drop(&mut self) {
        if !self.released {
            self.probe();
        }
    }
}
