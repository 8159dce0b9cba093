//! What the watch needs of the world, as a trait: [`live`](super::live) is this machine, a test's is
//! a script.

use std::io;
use std::time::Duration;

use crate::clock::Monotonic;
use crate::devpath::DevPath;
use crate::host::topology::{HubPort, Topology};
use crate::uevent::Uevent;

/// Where happenings come from, and where one looks for what they mean.
pub(super) trait Source {
    /// Waits for the next happening, at most for `time`.
    fn next(&mut self, time: Option<Duration>) -> io::Result<Happening>;
    /// The time.
    fn now(&self) -> Monotonic;
    /// A port as it is now.
    fn port(&self, devpath: &DevPath) -> Option<HubPort>;
    /// All ports as they are now.
    fn topology(&self) -> Topology;
}

/// What may happen.
#[derive(Debug)]
pub(super) enum Happening {
    /// A uevent of the kernel's.
    Uevent(Box<Uevent>),
    /// Uevents were lost.
    Lost,
    /// The user has had enough.
    End(End),
    /// Nothing, or nothing of interest.
    Nothing,
}

/// How the watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    /// The user pressed Enter.
    Enter,
    /// A signal came, as with Ctrl-C.
    Signal,
    /// As many ports as wanted were seen.
    Count,
    /// The time was over.
    Timeout,
    /// There was nothing to wait for.
    Listed,
}
