//! The speed of a USB device, as sysfs and QEMU write it. Pure.

use std::fmt;
use std::str::FromStr;

/// A speed; the greater is the faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Speed {
    /// Tenths of Mb/s: low speed is 1.5 Mb/s.
    tenths: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotASpeed;

impl Speed {
    /// 1.5 Mb/s.
    pub const LOW: Self = Self { tenths: 15 };
    /// 12 Mb/s.
    pub const FULL: Self = Self { tenths: 120 };
    /// 480 Mb/s.
    pub const HIGH: Self = Self { tenths: 4800 };
    /// 5000 Mb/s, the highest speed of a device in a QEMU guest (`hw/usb/bus.c`: `usb_speed`).
    pub const SUPER: Self = Self { tenths: 50_000 };

    /// 20000 Mb/s: USB 3.2 on two lanes.
    pub const SUPER_PLUS_X2: Self = Self { tenths: 200_000 };

    pub fn number(self) -> String {
        match (self.tenths / 10, self.tenths % 10) {
            (whole, 0) => whole.to_string(),
            (whole, tenth) => format!("{whole}.{tenth}"),
        }
    }
}

impl FromStr for Speed {
    type Err = NotASpeed;

    /// Reads `1.5`, `12`, `480`, `5000`, `10000` … (sysfs, `drivers/usb/core/sysfs.c`:
    /// `speed_show`) and `5000+` (QEMU, `hw/usb/host-libusb.c`: `speed_name`).
    fn from_str(text: &str) -> Result<Self, NotASpeed> {
        let text = if text == "5000+" { "10000" } else { text };
        let (whole, tenth) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty()
            || whole.len() > 7
            || !digits(whole)
            || tenth.len() != 1
            || !digits(tenth)
        {
            return Err(NotASpeed);
        }
        let number = |part: &str| part.parse::<u32>().map_err(|_| NotASpeed);
        Ok(Self { tenths: number(whole)? * 10 + number(tenth)? })
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Mb/s", self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_read_print_and_compare() {
        let speed = |text: &str| text.parse::<Speed>().unwrap();
        assert_eq!(speed("1.5").to_string(), "1.5 Mb/s");
        assert_eq!(speed("480").to_string(), "480 Mb/s");
        assert_eq!(speed("5000"), Speed::SUPER);
        assert!(speed("1.5") < speed("12") && speed("12") < speed("480"));
        assert!(speed("5000+") > Speed::SUPER);
        for bad in ["", "?", "12 Mb/s", "-1", "1.55", ".5", "99999999", "unknown"] {
            assert_eq!(bad.parse::<Speed>(), Err(NotASpeed), "{bad}");
        }
    }
}
