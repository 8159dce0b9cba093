//! QMP through libvirt, for a domain without a QMP socket of its own. Each command is one run of
//! `virsh qemu-monitor-command`.
//!
//! libvirt 8.2 and later pass file descriptors to QEMU. hotplugger does not load the libvirt library.

use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::PollFlags;
use serde_json::{Value, json};

use super::framing::Framer;
use super::message::Message;
use super::{Error, Step};
use crate::deadline::Deadline;
use crate::monitor::Monitor;
use crate::root::Root;
use crate::text::sanitize;

const PROGRAM: &str = "/usr/bin/virsh";

/// A libvirt domain.
#[derive(Debug)]
pub struct Virsh {
    program: PathBuf,
    domain: String,
    deadline: Deadline,
}

impl Virsh {
    /// The first command shows whether the domain runs.
    pub fn new(root: &Root, domain: &str, deadline: Deadline) -> Self {
        Self { program: root.path(PROGRAM), domain: domain.to_owned(), deadline }
    }

    /// Sends a command, with a file descriptor if there is one, and returns the reply.
    pub fn send(
        &self,
        command: &'static str,
        arguments: &Value,
        fd: Option<OwnedFd>,
    ) -> Result<Value, Error> {
        // libvirt adds an ID of its own.
        let mut text = json!({ "execute": command });
        if !arguments.is_null() {
            text["arguments"] = arguments.clone();
        }
        let output = self.run(&text.to_string(), fd, Step::Command(command))?;
        // libvirt prints warnings before the reply.
        let reply = output.find('{').map(|start| &output.as_bytes()[start..]).unwrap_or_default();
        match Message::parse(reply.trim_ascii_end()) {
            Ok(Message::Reply(_, result)) => {
                result.map_err(|reply| Error::from_reply(command, reply))
            }
            Ok(_) => Err(Error::Protocol("virsh prints no reply".to_owned())),
            Err(error) => Err(Error::Protocol(format!("virsh prints no reply: {error}"))),
        }
    }

    /// Runs virsh, with the file descriptor as its standard input, and returns its output.
    fn run(&self, text: &str, fd: Option<OwnedFd>, step: Step) -> Result<String, Error> {
        let mut command = Command::new(&self.program);
        command.env_clear().env("LC_ALL", "C").current_dir("/");
        command.args(["--quiet", "--connect", "qemu:///system", "qemu-monitor-command"]);
        command.arg(format!("--domain={}", self.domain)).args(["--cmd", text]);
        match fd {
            Some(fd) => command.args(["--pass-fds", "0"]).stdin(fd),
            None => command.stdin(Stdio::null()),
        };
        let (mut child, reader) = spawn(command).map_err(|error| self.failed(error))?;
        let output = self.read(reader, step);
        let ended = output.and_then(|output| Ok((output, self.wait(&mut child, step)?)));
        if ended.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let (output, success) = ended?;
        if success { Ok(output) } else { Err(self.failure(&output)) }
    }

    /// Reads until virsh ends.
    fn read(&self, mut reader: PipeReader, step: Step) -> Result<String, Error> {
        let mut output = Vec::new();
        loop {
            step.wait(&self.deadline, &reader, PollFlags::IN)?
                .map_err(|error| self.failed(error.into()))?;
            let mut bytes = [0; 16 * 1024];
            match reader.read(&mut bytes) {
                Ok(0) => return Ok(String::from_utf8_lossy(&output).into_owned()),
                Ok(read) => output.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
            if output.len() > Framer::MAX_BYTES {
                return Err(Error::Protocol("a message without end".to_owned()));
            }
        }
    }

    fn wait(&self, child: &mut Child, step: Step) -> Result<bool, Error> {
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status.success()),
                Ok(None) => step.sleep(&self.deadline, Duration::from_millis(2))?,
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    /// The error that virsh printed (`src/conf/virdomainobjlist.c`, `src/qemu/qemu_driver.c`).
    fn failure(&self, output: &str) -> Error {
        let off = ["domain is not running", "failed to get domain"];
        if off.iter().any(|words| output.contains(words)) {
            return Error::NotRunning {
                monitor: Monitor::Domain(self.domain.clone()),
                stale: false,
            };
        }
        let text = output.trim().replace("error: ", "").replace('\n', "; ");
        self.failed(io::Error::other(sanitize(&text, 300)))
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Libvirt { domain: self.domain.clone(), source }
    }
}

/// Starts virsh with one pipe for its output and its errors.
fn spawn(mut command: Command) -> io::Result<(Child, PipeReader)> {
    let (reader, writer) = io::pipe()?;
    let spawned = command.stdout(writer.try_clone()?).stderr(writer).spawn();
    let child = spawned.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            io::Error::other("virsh is not installed; install libvirt-clients")
        }
        _ => error,
    })?;
    Ok((child, reader))
}
