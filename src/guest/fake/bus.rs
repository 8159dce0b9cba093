//! The buses of a guest that is not there.

/// How a bus of the guest behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// An xHCI of 15 ports that takes any device at its own speed.
    Good,
    /// An xHCI of one port, and that is taken.
    Full,
    /// A UHCI.
    Uhci,
    /// An EHCI that gives any device its own speed.
    Ehci,
    /// An xHCI of 15 ports that takes the object, and QEMU does not open the device.
    Refuses,
    /// A controller that nobody has heard of, with 4 ports of 12 Mb/s.
    Unknown,
}

impl Bus {
    /// QEMU's name of its controller.
    pub(super) fn controller(self) -> &'static str {
        match self {
            Self::Good | Self::Full | Self::Refuses => "qemu-xhci",
            Self::Uhci => "piix3-usb-uhci",
            Self::Ehci => "usb-ehci",
            Self::Unknown => "usb-tomorrow",
        }
    }

    /// How many ports it has.
    pub(super) fn ports(self) -> usize {
        match self {
            Self::Good | Self::Refuses => 15,
            Self::Full => 1,
            Self::Uhci => 2,
            Self::Ehci => 6,
            Self::Unknown => 4,
        }
    }

    /// The speed that it gives a device of that one.
    pub(super) fn gives(self, speed: &str) -> &str {
        match (self, speed) {
            (Self::Uhci | Self::Unknown, "480" | "5000" | "10000") => "12",
            (Self::Ehci, "5000" | "10000") => "480",
            (_, "10000") => "5000",
            (_, other) => other,
        }
    }
}

pub(super) fn occupant(port: usize, speed: &str, product: &str, attached: bool) -> String {
    let attached = if attached { ", attached" } else { "" };
    format!("        addr 0.1, port {port}, speed {speed}, name {product}{attached}")
}
