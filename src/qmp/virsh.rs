//! QMP through libvirt, for a domain without a QMP socket of its own. Each command is one run of
//! `virsh qemu-monitor-command`.
//!
//! libvirt 8.2 and later pass file descriptors to QEMU. hotplugger does not load the libvirt library.

use std::fs;
use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::PollFlags;
use serde_json::{Value, json};

use super::message::{Framer, Message};
use super::{Error, Step};
use crate::clock::Deadline;
use crate::monitor::{LIBVIRT_DIRECTORY, Monitor};
use crate::root::Root;
use crate::text::sanitize;

/// Where distributions have it, and NixOS. udev's programs get no `PATH`.
const PROGRAMS: [&str; 2] = ["/usr/bin/virsh", "/run/current-system/sw/bin/virsh"];

#[derive(Debug)]
pub struct Virsh {
    program: PathBuf,
    domain: String,
    /// What virsh finds it by.
    key: String,
    deadline: Deadline,
}

impl Virsh {
    /// The first command shows whether the domain runs.
    ///
    /// virsh takes `--domain=` for an ID, a UUID or a name, in that order
    /// (`tools/virsh-util.c`: `virshLookupDomainInternal`). A domain with the name 1 is therefore
    /// addressed by its UUID.
    pub fn new(root: &Root, domain: &str, deadline: Deadline) -> Result<Self, Error> {
        let status = fs::read_to_string(root.path(format!("{LIBVIRT_DIRECTORY}/{domain}.xml")));
        let uuid = status.ok().and_then(|status| uuid_of(&status, domain));
        let is_ambiguous = domain.bytes().all(|byte| byte.is_ascii_digit()) || is_uuid(domain);
        let key = match uuid {
            Some(uuid) => uuid,
            None if !is_ambiguous => domain.to_owned(),
            None => {
                let why = "its UUID is not known, and virsh takes the name for an ID or a UUID; rename the \
                           domain";
                let (domain, source) = (domain.to_owned(), io::Error::other(why));
                return Err(Error::Libvirt { domain, source });
            }
        };
        let [usual, on_nixos] = PROGRAMS.map(|path| root.path(path));
        let program = if usual.exists() || !on_nixos.exists() { usual } else { on_nixos };
        Ok(Self { program, domain: domain.to_owned(), key, deadline })
    }

    pub fn send(
        &self,
        command: &'static str,
        arguments: Value,
        fd: Option<OwnedFd>,
    ) -> Result<Value, Error> {
        // libvirt adds an ID of its own.
        let mut text = json!({ "execute": command });
        if !arguments.is_null() {
            text["arguments"] = arguments;
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
        command.arg(format!("--domain={}", self.key)).args(["--cmd", text]);
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

/// The UUID of the domain with that name in its status or config file (`src/conf/domain_conf.c`:
/// `virDomainDefFormatInternal` writes name and UUID first).
pub fn uuid_of(status: &str, name: &str) -> Option<String> {
    let (_, domain) = status.split_once("<domain ")?;
    let element = |tag: &str| {
        let (_, rest) = domain.split_once(&format!("<{tag}>"))?;
        rest.split_once(&format!("</{tag}>")).map(|(text, _)| text)
    };
    let escaped = name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let uuid = element("uuid").filter(|uuid| is_uuid(uuid))?;
    (element("name")? == escaped).then(|| uuid.to_owned())
}

fn is_uuid(text: &str) -> bool {
    let is_hyphen = |index| [8, 13, 18, 23].contains(&index);
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| {
            if is_hyphen(index) { byte == b'-' } else { byte.is_ascii_hexdigit() }
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const UUID: &str = "c7a5fdbd-edaf-9455-926a-d65c16db1809";

    fn status(name: &str) -> String {
        format!(
            "<domstatus state='running' reason='booted' pid='7'>\n  <monitor path='/x' type='unix'/>\n  \
             <domain type='kvm' id='2'>\n    <name>{name}</name>\n    <uuid>{UUID}</uuid>\n  \
             </domain>\n</domstatus>\n"
        )
    }

    #[test]
    fn uuid_is_read_only_from_the_status_of_the_domain() {
        assert_eq!(uuid_of(&status("1"), "1").as_deref(), Some(UUID));
        assert_eq!(uuid_of(&status("a&amp;b"), "a&b").as_deref(), Some(UUID));
        assert_eq!(uuid_of(&status("other"), "1"), None);
        assert_eq!(uuid_of(&status("1").replace("c7a5", "x7a5"), "1"), None);
        assert_eq!(uuid_of("", "1"), None);
    }

    #[test]
    fn name_that_virsh_would_misread_is_rejected_without_the_uuid() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let virsh = |name: &str| Virsh::new(&root, name, Deadline::after(Duration::from_secs(1)));
        let key = |name: &str| virsh(name).map(|it| it.key).map_err(|error| error.to_string());
        assert_eq!(key("windows"), Ok("windows".to_owned()));
        assert!(key("1").unwrap_err().contains("its UUID is not known"));
        assert!(key(UUID).unwrap_err().contains("its UUID is not known"));
        fs::create_dir_all(root.path(LIBVIRT_DIRECTORY)).unwrap();
        fs::write(root.path(format!("{LIBVIRT_DIRECTORY}/1.xml")), status("1")).unwrap();
        assert_eq!(key("1"), Ok(UUID.to_owned()));
    }

    #[test]
    fn virsh_is_found_where_nixos_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let program = || {
            let deadline = Deadline::after(Duration::from_secs(1));
            Virsh::new(&root, "windows", deadline).unwrap().program
        };
        assert_eq!(program(), root.path("/usr/bin/virsh"));
        for path in ["/run/current-system/sw/bin/virsh", "/usr/bin/virsh"] {
            fs::create_dir_all(root.path(path).parent().unwrap()).unwrap();
            fs::write(root.path(path), "").unwrap();
            assert_eq!(program(), root.path(path));
        }
    }
}
