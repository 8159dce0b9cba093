//! A proxy before a real QEMU's QMP socket, which stops at a chosen command as a QEMU does that is
//! stopped or killed at that moment.

use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde_json::Value;

/// What happens at the chosen command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// QEMU executes it and does not reply.
    Executed,
    /// QEMU executes it when it is resumed.
    Delayed,
    /// QEMU executes it, and the connection is closed without a reply.
    Closed,
}

#[derive(Default)]
struct State {
    /// After how many commands to stop, and how.
    stop: Option<(usize, Stop)>,
    /// Whether nothing is answered.
    stopped: bool,
    /// The commands since [`Proxy::stop_at`].
    commands: Vec<String>,
}

pub(crate) struct Proxy {
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Proxy {
    /// Listens at `socket` for clients of the QEMU at `qemu`.
    pub(crate) fn start(socket: &Path, qemu: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let state = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let proxy = Self { state: Arc::clone(&state) };
        let qemu = qemu.to_path_buf();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                wait_until_resumed(&state);
                // A client that has left ends its own session only.
                let _ = serve(&state, client, &UnixStream::connect(&qemu).unwrap());
            }
        });
        proxy
    }

    /// Stops at the command after `count` others.
    pub(crate) fn stop_at(&self, count: usize, stop: Stop) {
        let mut state = self.state.0.lock().unwrap();
        *state = State { stop: Some((count, stop)), ..State::default() };
    }

    /// Resumes QEMU. Returns the commands that it got until then.
    pub(crate) fn resume(&self) -> Vec<String> {
        let mut state = self.state.0.lock().unwrap();
        state.stop = None;
        state.stopped = false;
        self.state.1.notify_all();
        std::mem::take(&mut state.commands)
    }
}

fn wait_until_resumed(state: &(Mutex<State>, Condvar)) {
    let guard = state.0.lock().unwrap();
    drop(state.1.wait_while(guard, |state| state.stopped).unwrap());
}

fn serve(
    state: &(Mutex<State>, Condvar),
    mut client: UnixStream,
    qemu: &UnixStream,
) -> std::io::Result<()> {
    let mut replies = BufReader::new(qemu.try_clone()?);
    let mut greeting = String::new();
    replies.read_line(&mut greeting)?;
    client.write_all(greeting.as_bytes())?;
    while let Some((line, fds)) = read_command(&client)? {
        let command: Value = serde_json::from_str(&line)?;
        let stop = {
            let mut state = state.0.lock().unwrap();
            let number = state.commands.len();
            state.commands.push(command["execute"].as_str().unwrap().to_owned());
            let stop = state.stop.filter(|(at, _)| *at == number).map(|(_, stop)| stop);
            state.stopped = matches!(stop, Some(Stop::Executed | Stop::Delayed));
            stop
        };
        if stop == Some(Stop::Delayed) {
            wait_until_resumed(state);
        }
        send(qemu, &line, &fds)?;
        let reply = read_reply(&mut replies, &command["id"])?;
        match stop {
            None => client.write_all(reply.as_bytes())?,
            Some(Stop::Closed) => return Ok(()),
            Some(_) => {
                wait_until_resumed(state);
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Reads a command and the file descriptors that come with it. The client sends one at a time.
fn read_command(client: &UnixStream) -> std::io::Result<Option<(String, Vec<OwnedFd>)>> {
    let (mut line, mut fds) = (Vec::new(), Vec::new());
    while line.last() != Some(&b'\n') {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(client, &mut into, &mut control, RecvFlags::empty())?.bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if received == 0 {
            return Ok(None);
        }
        line.extend_from_slice(&bytes[..received]);
    }
    Ok(Some((String::from_utf8(line).unwrap(), fds)))
}

fn send(qemu: &UnixStream, line: &str, fds: &[OwnedFd]) -> std::io::Result<()> {
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    sendmsg(qemu, &[IoSlice::new(line.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// All lines up to the reply with that ID.
fn read_reply(replies: &mut impl BufRead, id: &Value) -> std::io::Result<String> {
    let mut all = String::new();
    loop {
        let start = all.len();
        if replies.read_line(&mut all)? == 0 {
            return Ok(all);
        }
        let message: Value = serde_json::from_str(&all[start..])?;
        if message["id"] == *id {
            return Ok(all);
        }
    }
}
