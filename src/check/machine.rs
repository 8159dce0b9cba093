//! A virtual machine's socket: is it safe, does QEMU answer at it, who else holds it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::finding::Finding;
use super::process::{Node, Process};
use crate::config::VirtualMachine;
use crate::device_id::DeviceId;
use crate::guest::bus::GuestBus;
use crate::libvirt;
use crate::permissions::{PermissionIssue, PermissionKind};
use crate::qmp::message::Version;
use crate::qmp::{Error, Stage, UsbHostProblem};
use crate::text::shell_word;

/// What was found of a virtual machine.
#[derive(Debug)]
pub struct MachineLook {
    /// The machine as it is configured.
    pub vm: VirtualMachine,
    /// Its socket, as paths begin here.
    pub socket: PathBuf,
    /// What lets others than root and the socket's owner put another socket in its place.
    pub weakness: Option<PermissionIssue>,
    /// What QEMU said, or why it said nothing.
    pub answer: Result<Answer, Error>,
    /// Who has the socket open, looked at where nobody answered.
    pub holders: Holders,
    /// Whether this process is root.
    pub root: bool,
    /// QEMU's process.
    pub process: Option<Process>,
    /// The nodes of the devices that are in its ports now.
    pub nodes: Vec<Node>,
}

/// What QEMU said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its version.
    pub version: Option<Version>,
    /// Whether it has usb-host devices.
    pub no_usb_host: Option<UsbHostProblem>,
    /// Whether the guest runs.
    pub running: bool,
    /// The guest's USB buses.
    pub buses: Vec<GuestBus>,
    /// The devices of ours that it has open.
    pub attached: Vec<DeviceId>,
    /// Its process.
    pub pid: Option<u32>,
    /// Why it would not be handed a descriptor; none if it would.
    pub not_handed: Option<String>,
}

/// Who has a socket open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// The process that listens at it.
    pub listener: Option<Holder>,
    /// The processes that are connected to it.
    pub clients: Vec<Holder>,
}

/// A process that has a socket open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Whether it is stopped (SIGSTOP).
    pub stopped: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

impl MachineLook {
    /// Whether the machine is off.
    pub fn is_off(&self) -> bool {
        matches!(self.answer, Err(Error::NotRunning { .. }))
    }

    /// Whether only root could have looked.
    pub fn is_hidden(&self) -> bool {
        !self.root && is_denied(&self.answer)
    }
}

fn is_denied(answer: &Result<Answer, Error>) -> bool {
    matches!(answer, Err(Error::Socket { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied)
}

/// Judges the socket.
pub fn judge(look: &MachineLook) -> Vec<Finding> {
    folder(look).into_iter().chain(answer(look)).collect()
}

fn folder(look: &MachineLook) -> Option<Finding> {
    let weakness = look.weakness.as_ref()?;
    let folder = weakness.path.display();
    let who = match weakness.door {
        PermissionKind::Owner(user) => format!("user {user} can"),
        PermissionKind::Mode(mode) => format!("others can (mode {mode:o})"),
    };
    let finding = Finding::warning(
        "socket-folder-writable",
        look.socket.display(),
        format!(
            "{who} put a socket of their own into {folder} and be given `{}`'s devices",
            look.vm.name
        ),
    );
    Some(match weakness.door {
        // Everybody's folder stays that.
        PermissionKind::Mode(mode) if mode & 0o1000 != 0 => {
            finding.advice("let QEMU make the socket in a folder of its own, such as /run/vm")
        }
        _ => finding.run(weakness.remedy()),
    })
}

fn answer(look: &MachineLook) -> Option<Finding> {
    let place = look.socket.display();
    let name = &look.vm.name;
    let rm = || format!("rm {}", shell_word(&look.socket.to_string_lossy()));
    let own = format!("give hotplugger a QMP socket of its own: `hotplugger qemu-args {name}`");
    let Err(error) = &look.answer else {
        return Some(Finding::ok("socket-answers", place, format!("`{name}` answers")));
    };
    Some(match error {
        // Nothing is handed over by who only looks.
        Error::Lock(_)
        | Error::NoUsbHost(_)
        | Error::NotHandedOver { .. }
        | Error::NotOpened(_) => return None,
        Error::Libvirt { domain, .. } => Finding::fault("libvirt", name, error.to_string()).advice(
            format!("does `virsh -c qemu:///system domstate {}` work?", shell_word(domain)),
        ),
        Error::NotRunning { stale: false, .. } if libvirt::domain(&look.vm.socket).is_some() => {
            Finding::note("vm-off", name, format!("`{name}` is {error}"))
        }
        Error::NotRunning { stale: false, .. } => {
            Finding::note("vm-off", place, format!("`{name}` is off: there is no socket"))
        }
        Error::NotRunning { stale: true, .. } => Finding::warning(
            "socket-stale",
            place,
            format!("nobody listens: a QEMU that was killed left it; `{name}` is off"),
        )
        .run(rm()),
        Error::Socket { .. } if is_denied(&look.answer) => {
            // Without root that is how it should be.
            look.root.then_some(())?;
            Finding::fault(
                "socket-denied",
                place,
                "root may not connect to it: a security module (AppArmor, SELinux) forbids it",
            )
            .advice("the kernel's log says which rule it was: `journalctl -k --grep DENIED`")
        }
        Error::Socket { source, .. } => Finding::fault("socket-not-qmp", place, source.to_string())
            .advice(format!("let `socket:` of `{name}` name QEMU's QMP socket")),
        Error::Timeout { stage: Stage::Lock | Stage::Connect | Stage::Greeting, .. } => {
            busy(look, &own)
        }
        Error::Timeout { .. } => Finding::fault("qemu-stuck", place, error.to_string())
            .advice("QEMU hangs; its own log and the host's (`journalctl -k`) may say in what"),
        Error::Closed(_) | Error::Command { .. } => {
            Finding::fault("qemu-refuses", place, error.to_string()).advice(own)
        }
        Error::Protocol(_) => Finding::fault("socket-not-qmp", place, error.to_string()).advice(
            format!("let `socket:` of `{name}` name a QMP socket (`-qmp unix:…`, not `-monitor`)"),
        ),
    })
}

fn busy(look: &MachineLook, own: &str) -> Finding {
    let place = look.socket.display();
    if let Some(qemu) = look.holders.listener.as_ref().filter(|qemu| qemu.stopped) {
        let what = format!("{qemu} is stopped and answers nobody");
        return Finding::fault("qemu-stopped", place, what).run(format!("kill -CONT {}", qemu.pid));
    }
    let clients: Vec<String> = look.holders.clients.iter().map(Holder::to_string).collect();
    let what = if clients.is_empty() {
        "QEMU does not answer: another client holds the socket, or QEMU is stuck".to_owned()
    } else {
        format!("{} holds the socket, and QEMU serves one client at a time", clients.join(", "))
    };
    Finding::fault("socket-busy", place, what).advice(own)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::access::Access;
    use std::time::Duration;

    /// A machine whose QEMU said that.
    pub(in crate::check) fn look(answer: Result<Answer, Error>) -> MachineLook {
        MachineLook {
            vm: VirtualMachine {
                name: "windows".to_owned(),
                socket: "/run/q".into(),
                delay: VirtualMachine::DEFAULT_DELAY,
                timeout: VirtualMachine::DEFAULT_TIMEOUT,
                hubs: Vec::new(),
                exclude: Vec::new(),
                unbind_host_drivers: true,
                access: Access::default(),
                return_to_host: false,
                ports: Vec::new(),
                peer_ports: true,
            },
            socket: "/run/q".into(),
            weakness: None,
            answer,
            holders: Holders::default(),
            root: true,
            process: None,
            nodes: Vec::new(),
        }
    }

    fn code(answer: Result<Answer, Error>) -> &'static str {
        judge(&look(answer))[0].code
    }

    #[test]
    fn each_silence_has_its_name() {
        let socket = || PathBuf::from("/run/q");
        let timeout = |stage| Err(Error::Timeout { stage, budget: Duration::from_secs(5) });
        let failed = |source| Err(Error::Socket { socket: socket(), source });
        assert_eq!(code(Ok(Answer::default())), "socket-answers");
        assert_eq!(code(Err(Error::NotRunning { socket: socket(), stale: false })), "vm-off");
        assert_eq!(code(Err(Error::NotRunning { socket: socket(), stale: true })), "socket-stale");
        assert_eq!(code(failed(io::ErrorKind::PermissionDenied.into())), "socket-denied");
        assert_eq!(code(failed(io::Error::other("it is no socket"))), "socket-not-qmp");
        assert_eq!(code(timeout(Stage::Greeting)), "socket-busy");
        assert_eq!(code(timeout(Stage::Command("qom-list"))), "qemu-stuck");
        assert_eq!(code(Err(Error::Closed(Stage::Greeting))), "qemu-refuses");
    }

    #[test]
    fn without_root_a_forbidden_socket_is_no_finding() {
        let denied = io::ErrorKind::PermissionDenied.into();
        let mut look = look(Err(Error::Socket { socket: "/run/q".into(), source: denied }));
        look.root = false;
        assert_eq!(judge(&look), []);
        assert!(look.is_hidden());
    }

    #[test]
    fn the_one_who_holds_it_is_named() {
        let stage = Stage::Greeting;
        let mut look = look(Err(Error::Timeout { stage, budget: Duration::from_secs(5) }));
        let holder = |stopped| Holder { pid: 7, name: "virsh".to_owned(), stopped };
        look.holders.clients.push(holder(false));
        assert!(judge(&look)[0].what.starts_with("virsh (process 7) holds the socket"));
        look.holders.listener = Some(holder(true));
        assert_eq!(judge(&look)[0].code, "qemu-stopped");
    }
}
