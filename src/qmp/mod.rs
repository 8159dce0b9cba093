//! QMP, QEMU's machine protocol: a blocking client that cannot be held up.
//!
//! [`client`] speaks to a socket, [`virsh`] through libvirt, [`connection`] is either; [`handover`]
//! says who may be handed a descriptor over it, [`framing`] cuts what comes into JSON values,
//! [`message`] reads them. What the commands mean for a guest is `guest`'s matter, which knows only [`Qmp`].

pub mod client;
pub mod connection;
pub mod framing;
pub mod handover;
pub mod message;
pub mod virsh;

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::Value;

use self::handover::{Handover, Refused};
use self::message::ErrorReply;
use crate::deadline::Deadline;
use crate::libvirt;
use crate::text::sanitize;

/// A partner that executes QMP commands.
pub trait Qmp {
    /// Executes a command and returns its `return` value.
    ///
    /// # Errors
    ///
    /// [`Error::Command`] if QEMU refuses it; any other error ends the exchange.
    fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error>;

    /// The same, with a descriptor that goes along with the command.
    ///
    /// # Errors
    ///
    /// Also [`Error::NotHandedOver`], if the partner may not have it, and [`Error::NotOpened`]:
    /// then nothing was sent.
    fn hand_over(
        &mut self,
        command: &'static str,
        arguments: Value,
        handover: &dyn Handover,
    ) -> Result<Value, Error>;

    /// Waits before something is asked again.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when the exchange's time is over.
    fn pause(&mut self, time: Duration) -> Result<(), Error>;
}

/// Why an exchange with QEMU failed.
#[derive(Debug)]
pub enum Error {
    /// No QEMU listens: there is no socket, or one that a killed QEMU left behind.
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// Whether a socket without a listener is there.
        stale: bool,
    },
    /// The lock of the socket cannot be used.
    Lock(anyhow::Error),
    /// The socket cannot be used.
    Socket {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// libvirt does not let the machine be asked.
    Libvirt {
        /// The machine.
        domain: String,
        /// Why.
        source: io::Error,
    },
    /// The time for the exchange was over.
    Timeout {
        /// What was waited for.
        stage: Stage,
        /// The whole time there was.
        budget: Duration,
    },
    /// QEMU closed the connection.
    Closed(Stage),
    /// What came is no QMP.
    Protocol(String),
    /// The partner may not be handed a descriptor.
    NotHandedOver {
        /// The socket.
        socket: PathBuf,
        /// Why.
        why: Refused,
    },
    /// What was to be handed over could not be opened.
    NotOpened(io::Error),
    /// This QEMU cannot use usb-host. The command was not sent, or QEMU said so.
    NoUsbHost(UsbHostProblem),
    /// QEMU refused a command.
    Command {
        /// The command.
        command: &'static str,
        /// The error's class, mostly `GenericError`.
        class: String,
        /// QEMU's own words.
        desc: String,
    },
}

/// Why a QEMU cannot use usb-host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsbHostProblem {
    /// QEMU's package was upgraded while the VM runs, so the module no longer fits.
    Upgraded,
    /// QEMU has no such device model: its module is not installed, or did not fit.
    Missing,
}

/// The steps of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for other hotpluggers that use the same socket.
    Lock,
    /// Connecting to the socket.
    Connect,
    /// Waiting for QEMU's greeting.
    Greeting,
    /// Waiting for the reply to a command.
    Command(&'static str),
}

impl Stage {
    /// The time that is left for it.
    fn remaining(self, deadline: &Deadline) -> Result<Duration, Error> {
        deadline.remaining().ok_or(Error::Timeout { stage: self, budget: deadline.budget() })
    }

    /// Waits until the descriptor is ready, or may be: whoever reads it must not block.
    fn wait(
        self,
        deadline: &Deadline,
        descriptor: impl AsFd,
        for_what: PollFlags,
    ) -> Result<Result<(), Errno>, Error> {
        loop {
            let time = Timespec::try_from(self.remaining(deadline)?)
                .unwrap_or(Timespec { tv_sec: 60, tv_nsec: 0 });
            match poll(&mut [PollFd::new(&descriptor, for_what)], Some(&time)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(Ok(())),
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Waits before something is asked again.
    fn pause(deadline: &Deadline, time: Duration) -> Result<(), Error> {
        let left = Self::Command("the next look").remaining(deadline)?;
        thread::sleep(time.min(left));
        Ok(())
    }
}

impl Error {
    /// QEMU refused the command.
    fn refused(command: &'static str, refusal: &ErrorReply) -> Self {
        let (class, desc) = (refusal.class.clone(), sanitize(&refusal.desc, 300));
        Self::Command { command, class, desc }
    }

    /// Whether QEMU refused a command because it knows no such device or path.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Command { class, .. } if class == "DeviceNotFound")
    }

    /// QEMU's own words, if it refused a command.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Command { desc, .. } => Some(desc),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRunning { socket, stale: false } => match libvirt::domain(socket) {
                Some(domain) => write!(f, "not running: libvirt's domain {domain} is off"),
                None => write!(f, "not running: there is no socket {}", socket.display()),
            },
            Self::NotRunning { socket, stale: true } => {
                write!(f, "not running: nobody listens at {}", socket.display())
            }
            Self::Socket { socket, source } if source.kind() == io::ErrorKind::PermissionDenied => {
                write!(f, "this user may not use the QMP socket {}; run as root", socket.display())
            }
            Self::Socket { socket, source } => {
                write!(f, "the QMP socket {} cannot be used: {source}", socket.display())
            }
            Self::Lock(error) => write!(f, "{error:#}"),
            Self::Libvirt { domain, source } => {
                write!(f, "libvirt's domain {domain} cannot be asked: {source}")
            }
            Self::Timeout { stage, budget } => {
                write!(f, "no answer within {} s: {stage}", budget.as_secs_f64())
            }
            Self::Closed(stage) => write!(f, "QEMU closed the connection while {stage}"),
            Self::NotHandedOver { socket, why } => {
                write!(f, "no descriptor for who listens at {}: {why}", socket.display())
            }
            Self::NotOpened(error) => write!(f, "it cannot be opened: {error}"),
            Self::NoUsbHost(UsbHostProblem::Upgraded) => {
                f.write_str("QEMU was upgraded while it runs; restart the VM")
            }
            Self::NoUsbHost(UsbHostProblem::Missing) => f.write_str(
                "this QEMU has no usb-host device; install your distribution's QEMU package for USB \
                 host devices, then restart the VM",
            ),
            // The JSON reader repeats whole strings of the partner's.
            Self::Protocol(what) => {
                write!(f, "what answers does not speak QMP: {}", sanitize(what, 300))
            }
            Self::Command { command, desc, .. } => write!(f, "QEMU refused {command}: {desc}"),
        }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lock => f.write_str("waiting for other hotpluggers at the same socket"),
            Self::Connect => f.write_str("connecting; too many clients wait at the socket"),
            Self::Greeting => f.write_str(
                "waiting for QEMU's greeting; another client holds the socket, or QEMU is stuck",
            ),
            Self::Command(command) => write!(f, "waiting for the reply to {command}"),
        }
    }
}
