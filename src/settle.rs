//! Settling: a device is attached once it has been quiet for the configured delay.
//!
//! [`Settle`] is the pure clock; [`wait`] runs it against the kernel's uevents.

use std::io;
use std::thread;
use std::time::Duration;

use crate::clock::Monotonic;
use crate::devpath::DevPath;
use crate::netlink::{Heard, UeventSocket};
use crate::uevent::{Action, Uevent};

/// How long a device has to be quiet, and since when it has been.
#[derive(Clone, Debug)]
pub struct Settle<'a> {
    device: &'a DevPath,
    delay: Duration,
    quiet_since: Monotonic,
    /// The moment after which no further event is waited out.
    cap: Monotonic,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The device has been quiet for its delay, or the cap was reached.
    Quiet,
    /// The device is gone.
    Removed,
}

/// No wait is longer, whatever the delay: udevd kills what runs for 180 s (udev.conf(5),
/// `event_timeout`).
const LONGEST: Duration = Duration::from_secs(120);

impl<'a> Settle<'a> {
    /// A device that was last heard of at `quiet_since`; a restless one is taken after three times
    /// the delay from `now`.
    pub fn new(
        device: &'a DevPath,
        delay: Duration,
        quiet_since: Monotonic,
        now: Monotonic,
    ) -> Self {
        Self { device, delay, quiet_since, cap: now.after((delay * 3).min(LONGEST)) }
    }

    /// When the device may be attached.
    pub fn due(&self) -> Monotonic {
        self.quiet_since.after(self.delay).min(self.cap)
    }

    /// Takes note of what the kernel sent at `now`: an event of the device or of what is below it
    /// starts the clock anew. Returns whether the device is gone.
    pub fn hear(&mut self, uevent: &Uevent, now: Monotonic) -> bool {
        if uevent.action == Action::Remove && self.device.is_at_or_below(&uevent.devpath) {
            return true;
        }
        if uevent.devpath.is_at_or_below(self.device) && !uevent.synthetic {
            self.quiet_since = now;
        }
        false
    }

    /// Takes note that uevents were lost, which may have been the device's.
    pub fn lost(&mut self, now: Monotonic) {
        self.quiet_since = now;
    }
}

/// Waits until the device has settled. Ends on the clock, not on a poll; returns at once when
/// nothing is left to wait for.
pub fn wait(mut settle: Settle<'_>) -> io::Result<Settled> {
    if settle.due() <= Monotonic::now() {
        return Ok(Settled::Quiet);
    }
    let Ok(socket) = UeventSocket::open() else {
        // Without ears there is still the time.
        thread::sleep(settle.due().since(Monotonic::now()));
        return Ok(Settled::Quiet);
    };
    loop {
        let now = Monotonic::now();
        if settle.due() <= now {
            return Ok(Settled::Quiet);
        }
        match socket.next(settle.due().since(now))? {
            Heard::Uevent(uevent) if settle.hear(&uevent, Monotonic::now()) => {
                return Ok(Settled::Removed);
            }
            Heard::Lost => settle.lost(Monotonic::now()),
            Heard::Uevent(_) | Heard::Nothing => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn uevent(action: &str, devpath: &str) -> Uevent {
        Uevent::from_variables(|name| match name {
            "ACTION" => Some(action.to_owned()),
            "DEVPATH" => Some(devpath.to_owned()),
            _ => None,
        })
        .unwrap()
    }

    fn seconds(seconds: u64) -> Monotonic {
        Monotonic(seconds * 1_000_000)
    }

    #[test]
    fn time_already_spent_counts() {
        let device = "/devices/x/usb1/1-1".parse().unwrap();
        assert_eq!(Settle::new(&device, SECOND, seconds(10), seconds(11)).due(), seconds(11));
        assert_eq!(Settle::new(&device, SECOND, seconds(10), seconds(30)).due(), seconds(11));
    }

    #[test]
    fn its_own_events_restart_the_clock_and_others_do_not() {
        let device = "/devices/x/usb1/1-1".parse().unwrap();
        let mut settle = Settle::new(&device, SECOND, seconds(10), seconds(10));
        assert!(!settle.hear(&uevent("add", "/devices/x/usb1/1-1/1-1:1.0/host0"), seconds(11)));
        assert_eq!(settle.due(), seconds(12));
        assert!(!settle.hear(&uevent("add", "/devices/x/usb1/1-10"), seconds(12)));
        assert!(!settle.hear(&uevent("remove", "/devices/x/usb1/1-10"), seconds(12)));
        assert!(!settle.hear(&uevent("remove", "/devices/x/usb1/1-1/1-1:1.0"), seconds(12)));
        assert_eq!(settle.due(), seconds(13));
        settle.lost(seconds(13));
        assert_eq!(settle.due(), seconds(13), "the cap holds: 10 s and three times the delay");
    }

    #[test]
    fn the_removal_of_the_device_or_of_its_hub_ends_the_wait() {
        let device = "/devices/x/usb1/1-1/1-1.4".parse().unwrap();
        let mut settle = Settle::new(&device, SECOND, seconds(10), seconds(10));
        assert!(settle.hear(&uevent("remove", "/devices/x/usb1/1-1/1-1.4"), seconds(10)));
        assert!(settle.hear(&uevent("remove", "/devices/x/usb1/1-1"), seconds(10)));
    }

    #[test]
    fn a_device_that_is_never_quiet_is_taken_at_the_cap() {
        let device = "/devices/x/usb1/1-1".parse().unwrap();
        let mut settle = Settle::new(&device, SECOND, seconds(10), seconds(10));
        for time in 10..100 {
            settle.hear(&uevent("change", "/devices/x/usb1/1-1"), seconds(time));
            assert!(settle.due() <= seconds(13));
        }
    }
}
