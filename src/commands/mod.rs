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

use anyhow::Result;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use crate::config::Config;
use crate::config::file::ConfigFile;
use crate::journal;
use crate::outcome::Report;
use crate::output::{Line, Output, Style};
use crate::root::Root;
use crate::state::history;

pub struct Context<'a> {
    /// Where paths begin.
    pub root: &'a Root,
    pub config: Option<&'a Path>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandStatus {
    Ok,
    Problems,
}

/// Asks a question on the terminal. `None` at the end of the input.
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

impl Context<'_> {
    /// Reports a manual change of a device: on standard output, in the journal and for
    /// `status`.
    pub fn report(&self, outcome: &Report, tone: Style, output: &mut Output) -> io::Result<()> {
        output.line_untruncated(&Line::from((tone, outcome.to_string())))?;
        journal::report_manual(self.root, outcome);
        history::append(self.root, outcome);
        Ok(())
    }

    /// The config; empty if there is no file.
    ///
    /// # Errors
    ///
    /// What is wrong with the file, and where.
    pub fn config(&self) -> Result<Config> {
        match ConfigFile::find(self.root, self.config)? {
            Some(file) => file.parse(),
            None => Ok(Config::default()),
        }
    }

    /// The config, for what hands devices to VMs.
    ///
    /// # Errors
    ///
    /// Users other than root can change it, or it does not parse.
    pub fn trusted_config(&self) -> Result<Config> {
        match ConfigFile::find(self.root, self.config)? {
            Some(file) => file.parse_trusted(),
            None => Ok(Config::default()),
        }
    }
}
