//! QMP, the QEMU Machine Protocol: a blocking client with one deadline for everything it does.
//!
//! [`client`] uses QEMU's socket, [`virsh`] uses libvirt.

pub mod client;
pub mod message;
pub mod peer;
pub mod virsh;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use serde_json::Value;

use self::message::ErrorReply;
use self::peer::PeerError;
use crate::clock::{Deadline, wait_for};
use crate::monitor::Monitor;
use crate::text::sanitize;

/// Opens the file descriptor that goes with a command.
pub type OpenDevice<'a> = dyn Fn() -> io::Result<OwnedFd> + 'a;

/// A peer that executes QMP commands.
pub trait Qmp {
    /// Executes a command and returns its `return` value. After any error but [`Error::Command`] the
    /// session is over.
    fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error>;

    /// Opens the device, and executes a command with its file descriptor. After
    /// [`Error::OpenDevice`] nothing was sent.
    fn execute_with_fd(
        &mut self,
        command: &'static str,
        arguments: Value,
        open: &OpenDevice<'_>,
    ) -> Result<Value, Error>;

    /// QEMU's process, if it is known.
    fn qemu_pid(&self) -> Option<u32> {
        None
    }

    fn pause(&mut self, time: Duration) -> Result<(), Error>;
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// QEMU does not listen. `stale`: a socket is there, which a killed QEMU left behind.
    #[error("not running: {}", not_running(monitor, *stale))]
    NotRunning { monitor: Monitor, stale: bool },
    /// The lock of the socket cannot be used.
    #[error("{0:#}")]
    Lock(anyhow::Error),
    #[error("{}", unusable_socket(socket, source))]
    Socket { socket: PathBuf, source: io::Error },
    #[error("libvirt domain {domain} cannot be reached: {source}")]
    Libvirt { domain: String, source: io::Error },
    #[error("no reply within {} s: {step}", budget.as_secs_f64())]
    Timeout { step: Step, budget: Duration },
    /// This QEMU cannot use usb-host. The command was not sent, or QEMU said so.
    #[error("{0}")]
    NoUsbHost(UsbHostProblem),
    #[error("QEMU closed the connection while {0}")]
    Closed(Step),
    // The JSON parser repeats whole strings of the peer.
    #[error("the peer does not speak QMP: {}", sanitize(.0, 300))]
    Protocol(String),
    /// Nothing was sent.
    #[error("the process at {} is not trusted: {source}", socket.display())]
    PeerRejected { socket: PathBuf, source: PeerError },
    #[error("the device cannot be opened: {0}")]
    OpenDevice(#[source] io::Error),
    /// QEMU answered with an error, `desc` in its own words.
    #[error("QEMU rejected {command}: {desc}")]
    Command { command: &'static str, class: String, desc: String },
}

fn not_running(monitor: &Monitor, stale: bool) -> String {
    match monitor {
        Monitor::Domain(_) => format!("{monitor} is off in qemu:///system"),
        Monitor::Socket(_) if stale => format!("no process listens at {monitor}"),
        Monitor::Socket(_) => format!("there is no socket {monitor}"),
    }
}

fn unusable_socket(socket: &Path, source: &io::Error) -> String {
    let socket = socket.display();
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("this user may not use the QMP socket {socket}; run as root")
        }
        _ => format!("the QMP socket {socket} cannot be used: {source}"),
    }
}

impl Error {
    fn from_reply(command: &'static str, reply: ErrorReply) -> Self {
        Self::Command { command, class: reply.class, desc: sanitize(&reply.desc, 300) }
    }

    /// Returns whether QEMU knows no such device or path.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Command { class, .. } if class == "DeviceNotFound")
    }

    /// Returns whether the session ended without QEMU's reply to a command that it may have got.
    pub fn is_without_reply(&self) -> bool {
        match self {
            Self::Timeout { step, .. } | Self::Closed(step) => {
                matches!(step, Step::Command(_) | Step::Poll)
            }
            Self::Socket { .. } | Self::Libvirt { .. } | Self::Protocol(_) => true,
            _ => false,
        }
    }

    pub fn desc(&self) -> Option<&str> {
        match self {
            Self::Command { desc, .. } => Some(desc),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsbHostProblem {
    /// QEMU's package was upgraded while the VM runs, so the module no longer fits.
    #[error("QEMU was upgraded while it runs; restart the VM")]
    Upgraded,
    /// QEMU has no such device model: its module is not installed, or did not fit.
    #[error(
        "this QEMU has no usb-host device; install your distribution's QEMU package for USB host \
         devices, then restart the VM"
    )]
    Missing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Lock,
    Connect,
    Greeting,
    Command(&'static str),
    Poll,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lock => "waiting for other hotpluggers at the same socket",
            Self::Connect => "connecting; too many clients wait at the socket",
            Self::Greeting => {
                "waiting for QEMU's greeting; another client holds the socket, or QEMU is stuck"
            }
            Self::Command(command) => return write!(f, "waiting for the reply to {command}"),
            Self::Poll => "waiting for QEMU to finish",
        })
    }
}

impl Step {
    fn remaining(self, deadline: &Deadline) -> Result<Duration, Error> {
        deadline.remaining().ok_or(Error::Timeout { step: self, budget: deadline.budget() })
    }

    /// Waits until the file descriptor may be ready.
    fn wait(
        self,
        deadline: &Deadline,
        fd: impl AsFd,
        events: PollFlags,
    ) -> Result<Result<(), Errno>, Error> {
        loop {
            let time = self.remaining(deadline)?;
            match wait_for(&mut [PollFd::new(&fd, events)], time) {
                Ok(false) => {}
                ready => return Ok(ready.map(drop)),
            }
        }
    }

    pub(crate) fn sleep(self, deadline: &Deadline, time: Duration) -> Result<(), Error> {
        thread::sleep(self.remaining(deadline)?.min(time));
        Ok(())
    }
}
