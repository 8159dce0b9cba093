//! The commands for people, one file each.

pub mod check;
pub mod complete;
pub mod edit;
pub mod guest_args;
pub mod identify;
pub mod install;
pub mod manual;
pub mod ports;
pub mod replug;
pub mod simulate;
pub mod status;
pub mod sync;
pub mod watch;

use std::io::{self, stdin};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use rustix::event::{PollFd, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use crate::config::Config;
use crate::config::file::ConfigFile;
use crate::journal;
use crate::outcome::Report;
use crate::output::{Line, Output, Style};
use crate::root::Root;
use crate::speed::Speed;
use crate::state::history;
use crate::usb_device::UsbDevice;

pub struct Context<'a> {
    pub root: &'a Root,
    pub config: Option<&'a Path>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandStatus {
    Ok,
    Problems,
}

/// The part of a device that each command prints as JSON; docs/json.md has the form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct DeviceJson {
    product: Option<String>,
    vendor_id: String,
    product_id: String,
    speed: Option<String>,
}

impl From<&UsbDevice> for DeviceJson {
    fn from(device: &UsbDevice) -> Self {
        Self {
            product: device.product.clone(),
            vendor_id: format!("{:04x}", device.vendor_id),
            product_id: format!("{:04x}", device.product_id),
            speed: device.speed.map(Speed::number),
        }
    }
}

/// Parses an option's value: seconds, with a fraction or without.
fn seconds(text: &str, most: u32) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=f64::from(most)).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err(format!("a number of seconds from 0 to {most}")),
    }
}

/// `None` at the end of the input.
fn ask(output: &mut Output, question: &str) -> io::Result<Option<String>> {
    output.text(question)?;
    let mut answer = String::new();
    let length = stdin().read_line(&mut answer)?;
    Ok((length > 0).then(|| answer.trim().to_owned()))
}

/// Becomes readable when the user ends the command, as with Ctrl-C.
fn end_signals() -> io::Result<UnixStream> {
    let (signals, writer) = UnixStream::pair()?;
    pipe::register(SIGINT, writer.try_clone()?)?;
    pipe::register(SIGTERM, writer)?;
    Ok(signals)
}

/// Waits until a descriptor is ready, a signal comes or the time is over.
fn wait(descriptors: &mut [PollFd<'_>], time: Option<Duration>) -> io::Result<()> {
    let time = time.and_then(|time| Timespec::try_from(time).ok());
    match poll(descriptors, time.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Context<'_> {
    /// Reports a manual change of a device: on standard output, in the journal and for
    /// `status`.
    pub fn report(&self, report: &Report, style: Style, output: &mut Output) -> io::Result<()> {
        output.line_untruncated(&Line::from((style, report.to_string())))?;
        journal::report_manual(self.root, report);
        history::append(self.root, report);
        Ok(())
    }

    /// Empty if there is no config file.
    pub fn config(&self) -> Result<Config> {
        let file = ConfigFile::find(self.root, self.config)?;
        file.map_or_else(|| Ok(Config::default()), |file| file.parse())
    }

    /// The config for commands that attach devices.
    ///
    /// # Errors
    ///
    /// Users other than root can change it, or it does not parse.
    pub fn trusted_config(&self) -> Result<Config> {
        let file = ConfigFile::find(self.root, self.config)?;
        file.map_or_else(|| Ok(Config::default()), |file| file.parse_trusted())
    }
}
