//! A connection to a machine's QEMU, by its own socket or through libvirt.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::client::{self, QmpClient};
use super::handover::{Handover, Recipient};
use super::message::Version;
use super::virsh::Virsh;
use super::{Error, Qmp};
use crate::deadline::Deadline;
use crate::libvirt;
use crate::root::Root;

/// A connection on which commands are accepted.
#[derive(Debug)]
pub enum Connection {
    /// By its socket.
    Socket(QmpClient),
    /// Through libvirt.
    Libvirt(Virsh),
}

/// Connects to the QEMU of the machine that has that path in the config.
///
/// # Errors
///
/// As [`QmpClient::connect`]; of libvirt's machines, that it does not run.
pub fn connect(root: &Root, path: &Path, deadline: Deadline) -> Result<Connection, Error> {
    match libvirt::domain(path) {
        None => QmpClient::connect(&root.path(path), deadline).map(Connection::Socket),
        Some(_) if !root.path(path).exists() => {
            Err(Error::NotRunning { socket: path.to_path_buf(), stale: false })
        }
        Some(domain) => Ok(Connection::Libvirt(Virsh::new(root, domain, deadline))),
    }
}

/// Whether that machine runs, told without a word to QEMU.
pub fn runs(root: &Root, path: &Path) -> bool {
    let real = root.path(path);
    if libvirt::domain(path).is_some() { real.exists() } else { client::listens(&real) }
}

impl Connection {
    /// QEMU's version, where its greeting is heard.
    pub fn version(&self) -> Option<Version> {
        match self {
            Self::Socket(client) => client.version(),
            Self::Libvirt(_) => None,
        }
    }

    /// The process that listens, where that can be seen.
    pub fn peer_pid(&self) -> Option<u32> {
        match self {
            Self::Socket(client) => client.peer_pid(),
            Self::Libvirt(_) => None,
        }
    }

    /// Whether the partner may be handed a descriptor. libvirt may: it is root's.
    ///
    /// # Errors
    ///
    /// [`Error::NotHandedOver`] if not.
    pub fn check(&self, recipient: &dyn Recipient) -> Result<(), Error> {
        match self {
            Self::Socket(client) => client.check(recipient),
            Self::Libvirt(_) => Ok(()),
        }
    }

    fn qmp(&mut self) -> &mut dyn Qmp {
        match self {
            Self::Socket(client) => client,
            Self::Libvirt(virsh) => virsh,
        }
    }
}

impl Qmp for Connection {
    fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        self.qmp().execute(command, arguments)
    }

    fn hand_over(
        &mut self,
        command: &'static str,
        arguments: Value,
        handover: &dyn Handover,
    ) -> Result<Value, Error> {
        self.qmp().hand_over(command, arguments, handover)
    }

    fn pause(&mut self, time: Duration) -> Result<(), Error> {
        self.qmp().pause(time)
    }
}
