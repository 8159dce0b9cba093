//! A USB device of the host, and the exclusive opens of its disks.

use std::os::fd::OwnedFd;

use crate::port::{BusNum, DevNum};
use crate::speed::Speed;

/// The class of hubs (USB 2.0 specification, 11.23.1).
pub const CLASS_HUB: u8 = 9;

/// A USB device as sysfs has it (`drivers/usb/core/sysfs.c`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsbDevice {
    pub busnum: BusNum,
    pub devnum: DevNum,
    /// `bDeviceClass`.
    pub class: u8,
    pub authorized: bool,
    pub vendor_id: u16,
    pub product_id: u16,
    /// `None` if the kernel does not know it.
    pub speed: Option<Speed>,
    /// The device's name for itself, sanitized.
    pub product: Option<String>,
    /// As the device reports it, for comparisons.
    pub serial: Option<String>,
}

impl UsbDevice {
    pub fn is_hub(&self) -> bool {
        self.class == CLASS_HUB
    }

    /// The product name and IDs: `QEMU USB Tablet (0627:0001)`.
    pub fn label(&self) -> String {
        let product = self.product.as_deref().unwrap_or("USB device");
        format!("{product} ({:04x}:{:04x})", self.vendor_id, self.product_id)
    }
}

/// While this lives, nothing on the host can mount or otherwise claim the device's disks.
#[derive(Debug, Default)]
pub struct DiskClaims {
    /// Closed when they are dropped.
    _files: Vec<OwnedFd>,
}

impl DiskClaims {
    pub fn new(files: Vec<OwnedFd>) -> Self {
        Self { _files: files }
    }
}
