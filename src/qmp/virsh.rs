//! QMP through libvirt, for a machine that has no monitor but libvirt's own: each command is one
//! `virsh qemu-monitor-command`.
//!
//! libvirt hands descriptors on to QEMU (8.2 and later). Its library is loaded by virsh alone, and
//! virsh is run only for machines that are configured so.

use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::event::PollFlags;
use serde_json::{Value, json};

use super::framing::Framer;
use super::handover::Handover;
use super::message::Message;
use super::{Error, Qmp, Stage};
use crate::deadline::Deadline;
use crate::libvirt;
use crate::root::Root;
use crate::text::sanitize;

/// libvirt's client program.
const PROGRAM: &str = "/usr/bin/virsh";

/// A machine of libvirt's.
#[derive(Debug)]
pub struct Virsh {
    program: PathBuf,
    domain: String,
    deadline: Deadline,
}

impl Virsh {
    /// The machine of that name; whether it runs shows with the first command.
    pub fn new(root: &Root, domain: &str, deadline: Deadline) -> Self {
        Self { program: root.path(PROGRAM), domain: domain.to_owned(), deadline }
    }

    fn say(
        &self,
        command: &'static str,
        arguments: &Value,
        descriptor: Option<OwnedFd>,
    ) -> Result<Value, Error> {
        // libvirt gives each command an id of its own.
        let mut text = json!({ "execute": command });
        if !arguments.is_null() {
            text["arguments"] = arguments.clone();
        }
        let said = self.run(&text.to_string(), descriptor, Stage::Command(command))?;
        // What libvirt warns of comes first.
        let reply = said.find('{').map(|start| &said.as_bytes()[start..]).unwrap_or_default();
        match Message::parse(reply.trim_ascii_end()) {
            Ok(Message::Reply(_, result)) => {
                result.map_err(|refusal| Error::refused(command, &refusal))
            }
            Ok(_) => Err(Error::Protocol("virsh prints no reply".to_owned())),
            Err(error) => Err(Error::Protocol(format!("virsh prints no reply: {error}"))),
        }
    }

    /// Runs virsh, with the descriptor as its standard input; returns what it prints.
    fn run(&self, text: &str, descriptor: Option<OwnedFd>, stage: Stage) -> Result<String, Error> {
        let (reader, writer) = io::pipe().map_err(|error| self.unusable(error))?;
        let mut command = Command::new(&self.program);
        command.env_clear().env("LC_ALL", "C").current_dir("/");
        command.args(["--quiet", "--connect", "qemu:///system", "qemu-monitor-command"]);
        command.arg(format!("--domain={}", self.domain));
        match descriptor {
            Some(descriptor) => command.args(["--pass-fds", "0"]).stdin(descriptor),
            None => command.stdin(Stdio::null()),
        };
        let errors = writer.try_clone().map_err(|error| self.unusable(error))?;
        command.args(["--cmd", text]).stdout(writer).stderr(errors);
        let spawned = command.spawn();
        // The pipe's other end, which it holds too.
        drop(command);
        let mut child = spawned.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                self.unusable(io::Error::other("virsh is not there; install libvirt-clients"))
            }
            _ => self.unusable(error),
        })?;
        let ended = self.read(reader, stage).and_then(|said| {
            let success = self.wait(&mut child, stage)?;
            Ok((said, success))
        });
        if ended.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let (said, success) = ended?;
        if success { Ok(said) } else { Err(self.failed(&said)) }
    }

    /// Reads to the end, which is the end of virsh.
    fn read(&self, mut reader: PipeReader, stage: Stage) -> Result<String, Error> {
        let mut said = Vec::new();
        loop {
            stage
                .wait(&self.deadline, &reader, PollFlags::IN)?
                .map_err(|error| self.unusable(error.into()))?;
            let mut bytes = [0; 16 * 1024];
            match reader.read(&mut bytes) {
                Ok(0) => return Ok(String::from_utf8_lossy(&said).into_owned()),
                Ok(read) => said.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.unusable(error)),
            }
            if said.len() > Framer::MAX_BYTES {
                return Err(Error::Protocol("a message without end".to_owned()));
            }
        }
    }

    fn wait(&self, child: &mut Child, stage: Stage) -> Result<bool, Error> {
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status.success()),
                Ok(None) => {
                    let pause = Duration::from_millis(2);
                    thread::sleep(stage.remaining(&self.deadline)?.min(pause));
                }
                Err(error) => return Err(self.unusable(error)),
            }
        }
    }

    /// Why virsh failed, by its words (`src/conf/virdomainobjlist.c`, `src/qemu/qemu_driver.c`).
    fn failed(&self, said: &str) -> Error {
        let off = ["domain is not running", "failed to get domain"];
        if off.iter().any(|words| said.contains(words)) {
            return Error::NotRunning { socket: libvirt::running(&self.domain), stale: false };
        }
        let said = said.trim().replace("error: ", "").replace('\n', "; ");
        self.unusable(io::Error::other(sanitize(&said, 300)))
    }

    fn unusable(&self, source: io::Error) -> Error {
        Error::Libvirt { domain: self.domain.clone(), source }
    }
}

impl Qmp for Virsh {
    fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        self.say(command, &arguments, None)
    }

    /// libvirt is root's, and knows whose QEMU that machine's is.
    fn hand_over(
        &mut self,
        command: &'static str,
        arguments: Value,
        handover: &dyn Handover,
    ) -> Result<Value, Error> {
        let descriptor = handover.open().map_err(Error::NotOpened)?;
        self.say(command, &arguments, Some(descriptor))
    }

    fn pause(&mut self, time: Duration) -> Result<(), Error> {
        Stage::pause(&self.deadline, time)
    }
}
