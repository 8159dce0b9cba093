//! The client for QEMU's QMP socket.
//!
//! The socket never blocks: every wait is a poll(2) for the remaining time. Bytes are received with
//! recv(2), so the kernel drops file descriptors that the peer sends.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, UCred, connect, recv, sendmsg, socket_with,
};
use serde_json::Value;

use super::message::{Command, Framer, Message, Version};
use super::peer::{PeerError, PeerPolicy};
use super::{Error, Step};
use crate::clock::Deadline;
use crate::monitor::Monitor;

#[derive(Debug)]
pub struct QmpClient {
    socket: OwnedFd,
    path: PathBuf,
    deadline: Deadline,
    framer: Framer,
    last_id: u64,
    pub version: Option<Version>,
}

/// Returns whether a process listens at the socket's path, without sending it anything.
pub fn is_listening(path: &Path) -> bool {
    // With a full backlog the kernel answers EAGAIN, so a process listens.
    let connected = open(path).and_then(|(socket, address)| connect(&socket, &address));
    matches!(connected, Ok(()) | Err(Errno::AGAIN))
}

fn not_running(path: &Path, stale: bool) -> Error {
    Error::NotRunning { monitor: Monitor::Socket(path.to_path_buf()), stale }
}

fn open(path: &Path) -> Result<(OwnedFd, SocketAddrUnix), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok((socket, SocketAddrUnix::new(path)?))
}

impl QmpClient {
    /// Connects, verifies the peer, reads the greeting and completes the negotiation of capabilities.
    pub fn connect(path: &Path, policy: &PeerPolicy, deadline: Deadline) -> Result<Self, Error> {
        let rejected = |source| Error::PeerRejected { socket: path.to_path_buf(), source };
        let failed = |source| Error::Socket { socket: path.to_path_buf(), source };
        let file = match policy.open(path).map_err(rejected)? {
            Ok(Some(file)) => file,
            Ok(None) => return Err(failed(io::Error::other("it is not a socket"))),
            Err(Errno::NOENT) => return Err(not_running(path, false)),
            Err(error) => return Err(failed(error.into())),
        };
        let (socket, address) = open(&file.path()).map_err(|error| failed(error.into()))?;
        let framer = Framer::default();
        // QEMU may still reply to a client that has just left: IDs must differ from that client's.
        let last_id = u64::from(process::id()) << 20;
        let owned = path.to_path_buf();
        let mut client = Self { socket, path: owned, deadline, framer, last_id, version: None };
        client.connect_to(&address)?;
        let peer = client.peer().map_err(PeerError::Unknown);
        peer.and_then(|peer| file.check_peer(peer.uid.as_raw())).map_err(rejected)?;
        client.version = client.read_greeting()?;
        client.send("qmp_capabilities", Value::Null, None)?;
        Ok(client)
    }

    pub fn peer(&self) -> io::Result<UCred> {
        Ok(socket_peercred(&self.socket)?)
    }

    fn connect_to(&mut self, address: &SocketAddrUnix) -> Result<(), Error> {
        loop {
            let source = match connect(&self.socket, address) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => continue,
                // QEMU's backlog is 1. With one client served and others waiting, the kernel answers
                // EAGAIN.
                Err(Errno::AGAIN) => {
                    Step::Connect.sleep(&self.deadline, Duration::from_millis(20))?;
                    continue;
                }
                Err(Errno::NOENT) => return Err(not_running(&self.path, false)),
                Err(Errno::CONNREFUSED) => return Err(not_running(&self.path, true)),
                Err(Errno::PROTOTYPE) => io::Error::other("it is a datagram socket"),
                Err(other) => other.into(),
            };
            return Err(Error::Socket { socket: self.path.clone(), source });
        }
    }

    /// Waits for QEMU's greeting.
    ///
    /// Replies to an earlier client that left may come before and after it: QEMU sends them to the
    /// client that is connected (`monitor/qmp.c`: `monitor_qmp_dispatcher_co`).
    fn read_greeting(&mut self) -> Result<Option<Version>, Error> {
        loop {
            match self.receive(Step::Greeting) {
                Ok(Message::Greeting(version)) => return Ok(version),
                Ok(Message::Event | Message::Reply(..)) => {}
                // The kernel accepted the connection while QEMU was ending.
                Err(Error::Closed(_)) if !is_listening(&self.path) => {
                    return Err(not_running(&self.path, self.path.exists()));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a command, with a file descriptor if there is one, and waits for the reply.
    pub fn send(
        &mut self,
        command: &'static str,
        arguments: Value,
        fd: Option<OwnedFd>,
    ) -> Result<Value, Error> {
        let step = Step::Command(command);
        self.last_id += 1;
        let id = self.last_id;
        let mut bytes = serde_json::to_vec(&Command { execute: command, arguments, id })
            .map_err(|error| Error::Protocol(error.to_string()))?;
        bytes.push(b'\n');
        self.write(&bytes, fd, step)?;
        loop {
            match self.receive(step)? {
                Message::Reply(Some(answered), result) if answered == id => {
                    return result.map_err(|reply| Error::from_reply(command, reply));
                }
                Message::Event | Message::Reply(..) => {}
                Message::Greeting(_) => {
                    return Err(Error::Protocol("a second greeting".to_owned()));
                }
            }
        }
    }

    /// Writes all bytes. The file descriptor goes with the first of them.
    fn write(
        &mut self,
        mut bytes: &[u8],
        mut fd: Option<OwnedFd>,
        step: Step,
    ) -> Result<(), Error> {
        while !bytes.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let borrowed = fd.as_ref().map(AsFd::as_fd);
            if let Some(fd) = &borrowed {
                control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
            }
            let sent =
                sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
            match sent {
                Ok(sent) => (bytes, fd) = (&bytes[sent..], None),
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, step)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.broken(error, step)),
            }
        }
        Ok(())
    }

    fn receive(&mut self, step: Step) -> Result<Message, Error> {
        loop {
            // Also between messages, so that a peer that never stops sending cannot hold the client.
            step.remaining(&self.deadline)?;
            match self.framer.next_object() {
                Ok(Some(object)) => return Message::parse(object).map_err(Error::Protocol),
                Ok(None) => {}
                Err(error) => return Err(Error::Protocol(error.to_string())),
            }
            let mut bytes = [0; 16 * 1024];
            match recv(&self.socket, &mut bytes, RecvFlags::empty()) {
                Ok((0, _)) => return Err(Error::Closed(step)),
                Ok((received, _)) => self.framer.push(&bytes[..received]),
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, step)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.broken(error, step)),
            }
        }
    }

    fn wait(&self, events: PollFlags, step: Step) -> Result<(), Error> {
        step.wait(&self.deadline, &self.socket, events)?.map_err(|error| self.broken(error, step))
    }

    fn broken(&self, error: Errno, step: Step) -> Error {
        match error {
            Errno::CONNRESET | Errno::PIPE => Error::Closed(step),
            other => Error::Socket { socket: self.path.clone(), source: other.into() },
        }
    }
}
