//! What a rehearsal finds that would be done. Pure.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

/// What would be done, one thing after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Step {
    /// A decision, in words.
    Decide {
        /// The decision.
        decision: String,
    },
    /// A driver of the host's is unbound from an interface.
    Unbind {
        /// The interface.
        interface: String,
        /// The driver.
        driver: String,
    },
    /// The kernel is to find a driver for an interface again.
    Probe {
        /// The interface.
        interface: String,
    },
    /// A wait for quiet.
    Settle {
        /// For so many seconds at most, if the device stays quiet.
        seconds: String,
    },
    /// A connection to QEMU.
    Connect {
        /// Its socket.
        socket: PathBuf,
    },
    /// A QMP command.
    Qmp(Sent),
    /// A state file is written.
    Remember {
        /// Of that port.
        port: String,
    },
    /// A state file is deleted.
    Forget {
        /// Of that port.
        port: String,
    },
}

/// A QMP command as it is sent, but for its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// Its name.
    pub execute: &'static str,
    /// Its arguments.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub arguments: Value,
}
