//! The QMP client: one connection, one deadline over all of it.
//!
//! The socket never blocks; every wait is a poll(2) for the time that is left. Bytes are taken with
//! recv(2), so descriptors that a partner sends along are dropped by the kernel.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, send, sendmsg, socket_with,
};
use serde_json::Value;

use super::framing::{FrameError, Framer};
use super::handover::{self, Handover, Recipient, Refused};
use super::message::{Command, Message, Version};
use super::{Error, Qmp, Stage};
use crate::deadline::Deadline;

/// A connection to QEMU on which commands are accepted.
#[derive(Debug)]
pub struct QmpClient {
    socket: OwnedFd,
    path: PathBuf,
    deadline: Deadline,
    framer: Framer,
    last_id: u64,
    version: Option<Version>,
}

/// Whether somebody listens at the socket's path, told without a word to them.
pub fn listens(path: &Path) -> bool {
    // With its backlog full, the kernel asks to come again: there is somebody.
    let connected = open(path).and_then(|(socket, address)| connect(&socket, &address));
    matches!(connected, Ok(()) | Err(Errno::AGAIN))
}

/// A socket that does not block, and the address to connect it to.
fn open(path: &Path) -> Result<(OwnedFd, SocketAddrUnix), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok((socket, SocketAddrUnix::new(path)?))
}

impl QmpClient {
    /// Connects to the socket at `path`, takes the greeting and leaves capabilities negotiation.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] if nobody listens there; [`Error::Timeout`] when the deadline, which
    /// holds for all later commands too, is over.
    pub fn connect(path: &Path, deadline: Deadline) -> Result<Self, Error> {
        let (socket, address) = open(path)
            .map_err(|error| Error::Socket { socket: path.to_path_buf(), source: error.into() })?;
        let path = path.to_path_buf();
        let framer = Framer::default();
        // Those of no other client that may just have left.
        let last_id = u64::from(process::id()) << 20;
        let mut client = Self { socket, path, deadline, framer, last_id, version: None };
        client.connect_to(&address)?;
        client.version = client.greeting()?;
        client.execute("qmp_capabilities", Value::Null)?;
        Ok(client)
    }

    /// QEMU's version, as its greeting says.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// The process that listens, if it is in a PID namespace that this one sees.
    pub fn peer_pid(&self) -> Option<u32> {
        let credentials = socket_peercred(&self.socket).ok()?;
        u32::try_from(credentials.pid.as_raw_nonzero().get()).ok()
    }

    fn connect_to(&mut self, address: &SocketAddrUnix) -> Result<(), Error> {
        loop {
            let error = match connect(&self.socket, address) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => continue,
                // QEMU's backlog is 1: with one client served and others waiting, the kernel asks
                // us to come again.
                Err(Errno::AGAIN) => {
                    let pause = Duration::from_millis(20);
                    thread::sleep(Stage::Connect.remaining(&self.deadline)?.min(pause));
                    continue;
                }
                Err(error) => error,
            };
            let socket = self.path.clone();
            let is_socket = || self.path.metadata().is_ok_and(|data| data.file_type().is_socket());
            return Err(match error {
                Errno::NOENT => Error::NotRunning { socket, stale: false },
                // Also what connecting to a file of another kind gives.
                Errno::CONNREFUSED if is_socket() => Error::NotRunning { socket, stale: true },
                Errno::CONNREFUSED | Errno::NOTSOCK => {
                    Error::Socket { socket, source: io::Error::other("it is no socket") }
                }
                Errno::PROTOTYPE => Error::Socket {
                    socket,
                    source: io::Error::other("it is a datagram socket, not QEMU's"),
                },
                other => Error::Socket { socket, source: other.into() },
            });
        }
    }

    /// Waits for QEMU's greeting.
    ///
    /// Before it and after it may come what another client asked for that left, or was killed,
    /// before it got it: QEMU replies to whoever is there (`monitor/qmp.c`:
    /// `monitor_qmp_dispatcher_co`).
    fn greeting(&mut self) -> Result<Option<Version>, Error> {
        loop {
            match self.receive(Stage::Greeting) {
                Ok(Message::Greeting(version)) => return Ok(version),
                Ok(Message::Event | Message::Reply(..)) => {}
                // The kernel still let us in, but QEMU was about to end.
                Err(Error::Closed(_)) if !listens(&self.path) => {
                    let (socket, stale) = (self.path.clone(), self.path.exists());
                    return Err(Error::NotRunning { socket, stale });
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn wait(&self, for_what: PollFlags, stage: Stage) -> Result<(), Error> {
        stage
            .wait(&self.deadline, &self.socket, for_what)?
            .map_err(|error| self.broken(error, stage))
    }

    /// Sends bytes; the descriptor goes with the first of them.
    fn send(
        &mut self,
        mut bytes: &[u8],
        mut descriptor: Option<BorrowedFd<'_>>,
        stage: Stage,
    ) -> Result<(), Error> {
        while !bytes.is_empty() {
            let sent = match descriptor {
                Some(descriptor) => send_with(&self.socket, bytes, descriptor),
                None => send(&self.socket, bytes, SendFlags::NOSIGNAL),
            };
            match sent {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    descriptor = None;
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, stage)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.broken(error, stage)),
            }
        }
        Ok(())
    }

    /// Receives the next message.
    fn receive(&mut self, stage: Stage) -> Result<Message, Error> {
        loop {
            // Also between messages, so that one who talks without end is left in time.
            stage.remaining(&self.deadline)?;
            match self.framer.next_object() {
                Ok(Some(object)) => return Message::parse(object).map_err(Error::Protocol),
                Ok(None) => {}
                Err(FrameError::TooLarge) => {
                    return Err(Error::Protocol("a message without end".to_owned()));
                }
                Err(FrameError::TooMany) => {
                    return Err(Error::Protocol("a message of too many values".to_owned()));
                }
                Err(FrameError::NoObject(byte)) => {
                    let byte = byte.escape_ascii();
                    return Err(Error::Protocol(format!("a message that begins with `{byte}`")));
                }
            }
            let mut bytes = [0; 16 * 1024];
            match recv(&self.socket, &mut bytes, RecvFlags::empty()) {
                Ok((0, _)) => return Err(Error::Closed(stage)),
                Ok((received, _)) => self.framer.push(&bytes[..received]),
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, stage)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.broken(error, stage)),
            }
        }
    }

    fn broken(&self, error: Errno, stage: Stage) -> Error {
        match error {
            Errno::CONNRESET | Errno::PIPE => Error::Closed(stage),
            other => Error::Socket { socket: self.path.clone(), source: other.into() },
        }
    }
}

impl QmpClient {
    /// Whether the partner may be handed a descriptor.
    ///
    /// # Errors
    ///
    /// [`Error::NotHandedOver`] if not.
    pub fn check(&self, recipient: &dyn Recipient) -> Result<(), Error> {
        let peer = socket_peercred(&self.socket).map_err(|error| Refused::Unknown(error.into()));
        let checked =
            peer.and_then(|peer| handover::check(&self.path, peer.uid.as_raw(), recipient));
        checked.map_err(|why| Error::NotHandedOver { socket: self.path.clone(), why })
    }

    fn say(
        &mut self,
        command: &'static str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Value, Error> {
        let stage = Stage::Command(command);
        self.last_id += 1;
        let id = self.last_id;
        let mut bytes = serde_json::to_vec(&Command { execute: command, arguments, id })
            .map_err(|error| Error::Protocol(error.to_string()))?;
        bytes.push(b'\n');
        self.send(&bytes, descriptor, stage)?;
        loop {
            match self.receive(stage)? {
                Message::Reply(Some(answered), result) if answered == id => {
                    return result.map_err(|refusal| Error::refused(command, &refusal));
                }
                Message::Event | Message::Reply(..) => {}
                Message::Greeting(_) => {
                    return Err(Error::Protocol("a second greeting".to_owned()));
                }
            }
        }
    }
}

/// Sends bytes and a descriptor with them.
fn send_with(socket: &OwnedFd, bytes: &[u8], descriptor: BorrowedFd<'_>) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    // There is space for one.
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
}

impl Qmp for QmpClient {
    fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        self.say(command, arguments, None)
    }

    fn hand_over(
        &mut self,
        command: &'static str,
        arguments: Value,
        handover: &dyn Handover,
    ) -> Result<Value, Error> {
        self.check(handover)?;
        let descriptor = handover.open().map_err(Error::NotOpened)?;
        self.say(command, arguments, Some(descriptor.as_fd()))
    }

    fn pause(&mut self, time: Duration) -> Result<(), Error> {
        Stage::pause(&self.deadline, time)
    }
}
