//! A QMP server that gives the replies of a script, one after the other.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use hotplugger::guest::attach::{Unavailable, UsbSource};
use hotplugger::qmp::{Error, OpenDevice, Qmp, Step};
use hotplugger::text::sanitize;
use hotplugger::usb_device::DiskClaims;
use serde_json::Value;

/// The rest of the script: replies with NUL between them.
pub struct Script<'a> {
    replies: std::str::Split<'a, char>,
}

impl<'a> Script<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { replies: text.split('\0') }
    }
}

impl Qmp for Script<'_> {
    /// A reply is JSON, an error whose class and words follow `!` or, as it is, the monitor's text.
    fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        if command == "device_del" || command == "device_add" {
            let id = arguments["id"].as_str().expect("an id");
            assert!(id.starts_with("hotplugger-1-3-"), "{command} of {id}");
        }
        let over = Error::Timeout { step: Step::Command(command), budget: Duration::ZERO };
        let reply = self.replies.next().ok_or(over)?;
        if let Some(error) = reply.strip_prefix('!') {
            let (class, desc) = error.split_once(' ').unwrap_or((error, ""));
            // As the client does.
            let (class, desc) = (class.to_owned(), sanitize(desc, 300));
            return Err(Error::Command { command, class, desc });
        }
        Ok(serde_json::from_str(reply).unwrap_or_else(|_| Value::from(reply)))
    }

    /// The device is not opened, because no process receives it.
    fn execute_with_fd(
        &mut self,
        command: &'static str,
        arguments: Value,
        _: &OpenDevice<'_>,
    ) -> Result<Value, Error> {
        self.execute(command, arguments)
    }

    fn pause(&mut self, _: Duration) -> Result<(), Error> {
        Ok(())
    }
}

/// A device that stays in its port.
pub struct Device;

impl UsbSource for Device {
    fn recheck(&self) -> Result<DiskClaims, Unavailable> {
        Ok(DiskClaims::default())
    }

    fn may_be_listed(&self) -> bool {
        true
    }

    fn check_present(&self) -> Result<(), Unavailable> {
        self.recheck().map(drop)
    }

    fn open_node(&self) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
