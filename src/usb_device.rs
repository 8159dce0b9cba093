//! A USB device of the host. Pure: `host::sysfs` reads it.

use crate::port::{BusNum, DevNum};
use crate::speed::Speed;

/// The class of hubs (USB 2.0 specification, 11.23.1).
pub const CLASS_HUB: u8 = 9;

/// A USB device as sysfs has it (`drivers/usb/core/sysfs.c`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsbDevice {
    /// `busnum`.
    pub busnum: BusNum,
    /// `devnum`.
    pub devnum: DevNum,
    /// `bDeviceClass`; 9 is a hub.
    pub class: u8,
    /// Whether `authorized` is not 0.
    pub authorized: bool,
    /// `idVendor`.
    pub vendor_id: u16,
    /// `idProduct`.
    pub product_id: u16,
    /// `speed`, where the kernel knows it.
    pub speed: Option<Speed>,
    /// `product`, the device's name for itself, sanitized.
    pub product: Option<String>,
    /// `serial`, as the device reports it, for comparisons.
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
