//! Settling: a device is attached once it has been quiet for the configured delay.
//!
//! [`Settle`] is the pure clock; [`wait`] runs it against the kernel's uevents.

use std::io;
use std::thread;
use std::time::Duration;

use crate::clock::Monotonic;
use crate::devpath::DevPath;
use crate::host::netlink::{self, UeventSocket};
use crate::uevent::{Action, Uevent};

/// How long a device has to be quiet, and since when it has been.
#[derive(Clone, Debug)]
pub struct Settle<'a> {
    device: &'a DevPath,
    delay: Duration,
    quiet_since: Monotonic,
    unbind_host_drivers: bool,
    /// The moment after which no further event is waited out.
    cap: Monotonic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    Quiet,
    Removed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UeventEffect {
    Noted,
    Driver,
    Removed,
}

/// No wait is longer, whatever the delay.
const MAX_SETTLE: Duration = Duration::from_secs(120);

impl<'a> Settle<'a> {
    /// A device that was last heard of at `quiet_since`; a restless one is taken after three times
    /// the delay from `now`.
    pub fn new(
        device: &'a DevPath,
        delay: Duration,
        quiet_since: Monotonic,
        now: Monotonic,
    ) -> Self {
        let cap = now.after((delay * 3).min(MAX_SETTLE));
        Self { device, delay, quiet_since, unbind_host_drivers: false, cap }
    }

    /// Ends the wait no later than that.
    #[must_use]
    pub fn no_later_than(self, end: Monotonic) -> Self {
        Self { cap: self.cap.min(end), ..self }
    }

    /// If host drivers are unbound, the events that they cause do not count as activity of the device.
    #[must_use]
    pub fn unbind_host_drivers(self, unbind_host_drivers: bool) -> Self {
        Self { unbind_host_drivers, ..self }
    }

    pub fn ready_at(&self) -> Monotonic {
        self.quiet_since.after(self.delay).min(self.cap)
    }

    /// Handles an event that the kernel sent at `now`: one of the device or of its descendants
    /// starts the wait again.
    ///
    /// An `unbind` or `remove` below it does not: hotplugger causes some of them itself, and a new driver
    /// or child has events of its own.
    pub fn on_uevent(&mut self, uevent: &Uevent, now: Monotonic) -> UeventEffect {
        let leaves = matches!(uevent.action, Action::Remove | Action::Unbind);
        if uevent.action == Action::Remove && self.device.is_at_or_below(&uevent.devpath) {
            return UeventEffect::Removed;
        }
        if !uevent.devpath.is_at_or_below(self.device) || uevent.synthetic || leaves {
            return UeventEffect::Noted;
        }
        let of_device = uevent.devpath == *self.device;
        let of_interface = uevent.devpath.parent().as_ref() == Some(self.device);
        let of_driver = !of_device && (!of_interface || uevent.action == Action::Bind);
        if !(of_driver && self.unbind_host_drivers) {
            self.quiet_since = now;
        }
        if of_interface && uevent.action == Action::Bind {
            UeventEffect::Driver
        } else {
            UeventEffect::Noted
        }
    }

    pub fn on_overrun(&mut self, now: Monotonic) {
        self.quiet_since = now;
    }
}

/// Waits until the device has settled. Ends on the clock, not on a poll; returns at once when
/// nothing is left to wait for. `on_driver_bound` is called whenever a host driver may have
/// come.
pub fn wait(mut settle: Settle<'_>, on_driver_bound: &mut dyn FnMut()) -> io::Result<Settled> {
    if settle.ready_at() <= Monotonic::now() {
        return Ok(Settled::Quiet);
    }
    let Ok(socket) = UeventSocket::open() else {
        // Without ears there is still the time.
        thread::sleep(settle.ready_at().since(Monotonic::now()));
        on_driver_bound();
        return Ok(Settled::Quiet);
    };
    // One may have come before there were ears.
    on_driver_bound();
    loop {
        let now = Monotonic::now();
        if settle.ready_at() <= now {
            return Ok(Settled::Quiet);
        }
        match socket.next(settle.ready_at().since(now))? {
            netlink::Received::Uevent(uevent) => {
                match settle.on_uevent(&uevent, Monotonic::now()) {
                    UeventEffect::Removed => return Ok(Settled::Removed),
                    UeventEffect::Driver => on_driver_bound(),
                    UeventEffect::Noted => {}
                }
            }
            netlink::Received::Lost => {
                settle.on_overrun(Monotonic::now());
                on_driver_bound();
            }
            netlink::Received::Nothing => {}
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
        assert_eq!(Settle::new(&device, SECOND, seconds(10), seconds(11)).ready_at(), seconds(11));
        assert_eq!(Settle::new(&device, SECOND, seconds(10), seconds(30)).ready_at(), seconds(11));
    }

    #[test]
    fn its_own_events_restart_the_clock_and_others_do_not() {
        let device = "/devices/x/usb1/1-1".parse().unwrap();
        let mut settle = Settle::new(&device, SECOND, seconds(10), seconds(10));
        let mut on_uevent = |action, path, at| settle.on_uevent(&uevent(action, path), seconds(at));
        assert_eq!(on_uevent("add", "/devices/x/usb1/1-1/1-1:1.0/host0", 11), UeventEffect::Noted);
        assert_eq!(on_uevent("add", "/devices/x/usb1/1-10", 12), UeventEffect::Noted);
        assert_eq!(on_uevent("remove", "/devices/x/usb1/1-10", 12), UeventEffect::Noted);
        assert_eq!(on_uevent("unbind", "/devices/x/usb1/1-1/1-1:1.0", 12), UeventEffect::Noted);
        assert_eq!(
            on_uevent("remove", "/devices/x/usb1/1-1/1-1:1.0/host0", 12),
            UeventEffect::Noted
        );
        assert_eq!(settle.ready_at(), seconds(12));
        let bind = uevent("bind", "/devices/x/usb1/1-1/1-1:1.0");
        assert_eq!(settle.on_uevent(&bind, seconds(12)), UeventEffect::Driver);
        assert_eq!(settle.ready_at(), seconds(13));
        settle.on_overrun(seconds(13));
        assert_eq!(settle.ready_at(), seconds(13), "the cap holds: 10 s and three times the delay");
    }

    #[test]
    fn with_the_hosts_hands_off_its_drivers_do_not_restart_the_clock() {
        let device = "/devices/x/usb1/1-1".parse().unwrap();
        let mut settle =
            Settle::new(&device, SECOND, seconds(10), seconds(10)).unbind_host_drivers(true);
        let mut on_uevent = |action, path, at| settle.on_uevent(&uevent(action, path), seconds(at));
        assert_eq!(on_uevent("bind", "/devices/x/usb1/1-1/1-1:1.0", 11), UeventEffect::Driver);
        assert_eq!(on_uevent("add", "/devices/x/usb1/1-1/1-1:1.0/host0", 11), UeventEffect::Noted);
        assert_eq!(settle.ready_at(), seconds(11));
        settle.on_uevent(&uevent("add", "/devices/x/usb1/1-1/1-1:1.1"), seconds(11));
        assert_eq!(settle.ready_at(), seconds(12));
        settle.on_uevent(&uevent("change", "/devices/x/usb1/1-1"), seconds(12));
        assert_eq!(settle.ready_at(), seconds(13));
    }

    #[test]
    fn the_removal_of_the_device_or_of_its_hub_ends_the_wait() {
        let device = "/devices/x/usb1/1-1/1-1.4".parse().unwrap();
        let mut settle = Settle::new(&device, SECOND, seconds(10), seconds(10));
        for gone in ["/devices/x/usb1/1-1/1-1.4", "/devices/x/usb1/1-1"] {
            assert_eq!(
                settle.on_uevent(&uevent("remove", gone), seconds(10)),
                UeventEffect::Removed
            );
        }
    }

    #[test]
    fn a_device_that_is_never_quiet_is_taken_at_the_cap() {
        let device = "/devices/x/usb1/1-1".parse().unwrap();
        let mut settle = Settle::new(&device, SECOND, seconds(10), seconds(10));
        for time in 10..100 {
            settle.on_uevent(&uevent("change", "/devices/x/usb1/1-1"), seconds(time));
            assert!(settle.ready_at() <= seconds(13));
        }
    }
}
