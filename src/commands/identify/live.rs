//! This machine as a source: the kernel's uevents, sysfs, the user's Enter and Ctrl-C.

use std::io::{self, IsTerminal, stdin};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::watch::{EndReason, EventSource, Input};
use crate::clock::Monotonic;
use crate::devpath::DevPath;
use crate::host::netlink::{Received, UeventSocket};
use crate::host::topology::{self, HubPort, Topology, read_topology};
use crate::root::Root;

pub(super) struct LiveSource<'a> {
    root: &'a Root,
    uevents: UeventSocket,
    signals: UnixStream,
    input: Option<Stdin>,
}

/// The kind of standard input, if it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stdin {
    Terminal,
    /// A line ends the command; its end only means that no line will come.
    Pipe,
}

impl<'a> LiveSource<'a> {
    /// Starts to receive events. Standard input that is not a terminal may belong to a script: it is not
    /// read unless `input_ends`.
    pub(super) fn open(root: &'a Root, input_ends: bool) -> io::Result<Self> {
        let (signals, writer) = UnixStream::pair()?;
        signal_hook::low_level::pipe::register(SIGINT, writer.try_clone()?)?;
        signal_hook::low_level::pipe::register(SIGTERM, writer)?;
        let input = if stdin().is_terminal() {
            Some(Stdin::Terminal)
        } else {
            let kind = rustix::fs::fstat(stdin())
                .map(|metadata| FileType::from_raw_mode(metadata.st_mode));
            let is_pipe = matches!(kind, Ok(FileType::Fifo | FileType::Socket));
            (input_ends && is_pipe).then_some(Stdin::Pipe)
        };
        Ok(Self { root, uevents: UeventSocket::open()?, signals, input })
    }

    pub(super) fn has_terminal(&self) -> bool {
        self.input == Some(Stdin::Terminal)
    }

    fn read_input(&mut self, input: Stdin) -> io::Result<Input> {
        let mut bytes = [0; 4096];
        let read = match rustix::io::read(stdin(), &mut bytes) {
            Ok(read) => read,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(Input::Nothing),
            // The terminal is gone.
            Err(Errno::IO) => 0,
            Err(error) => return Err(error.into()),
        };
        if input == Stdin::Terminal || bytes[..read].contains(&b'\n') {
            return Ok(Input::End(EndReason::Enter));
        }
        if read == 0 {
            self.input = None;
        }
        Ok(Input::Nothing)
    }
}

impl EventSource for LiveSource<'_> {
    fn next(&mut self, time: Option<Duration>) -> io::Result<Input> {
        let input = stdin();
        let mut fds = vec![
            PollFd::new(&self.uevents, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
        ];
        if self.input.is_some() {
            fds.push(PollFd::new(&input, PollFlags::IN));
        }
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        match poll(&mut fds, time.as_ref()) {
            // After a signal its byte is there at the next read.
            Ok(0) | Err(Errno::INTR) => return Ok(Input::Nothing),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        match (ready.as_slice(), self.input) {
            ([_, true, ..], _) => Ok(Input::End(EndReason::Signal)),
            // Events before Enter are reported before Enter ends the command.
            ([true, ..], _) => Ok(match self.uevents.next(Duration::ZERO)? {
                Received::Uevent(uevent) => Input::Uevent(uevent),
                Received::Lost => Input::Lost,
                Received::Nothing => Input::Nothing,
            }),
            ([_, _, true], Some(input)) => self.read_input(input),
            _ => Ok(Input::Nothing),
        }
    }

    fn now(&self) -> Monotonic {
        Monotonic::now()
    }

    fn port(&self, devpath: &DevPath) -> Option<HubPort> {
        topology::port(self.root, devpath)
    }

    fn topology(&self) -> Topology {
        read_topology(self.root)
    }
}
