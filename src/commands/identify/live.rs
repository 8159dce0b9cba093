//! This machine as a source: the kernel's uevents, sysfs, the user's Enter and Ctrl-C.

use std::io::{self, IsTerminal, stdin};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::source::{End, Happening, Source};
use crate::clock::Monotonic;
use crate::devpath::DevPath;
use crate::host::netlink::{Received, UeventSocket};
use crate::host::topology::{HubPort, Topology, read};
use crate::root::Root;

/// This machine.
pub(super) struct Live<'a> {
    root: &'a Root,
    uevents: UeventSocket,
    signals: UnixStream,
    input: Option<Input>,
}

/// What standard input is, if it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// A line or its end means enough.
    Terminal,
    /// A line means enough, its end only that none will come.
    Pipe,
}

impl<'a> Live<'a> {
    /// Listens from now on. Where standard input is no terminal it belongs to somebody's script:
    /// unless `input_ends`, not a byte of it is taken.
    pub(super) fn open(root: &'a Root, input_ends: bool) -> io::Result<Self> {
        let (signals, writer) = UnixStream::pair()?;
        signal_hook::low_level::pipe::register(SIGINT, writer.try_clone()?)?;
        signal_hook::low_level::pipe::register(SIGTERM, writer)?;
        let input = if stdin().is_terminal() {
            Some(Input::Terminal)
        } else {
            let kind = rustix::fs::fstat(stdin())
                .map(|metadata| FileType::from_raw_mode(metadata.st_mode));
            let is_pipe = matches!(kind, Ok(FileType::Fifo | FileType::Socket));
            (input_ends && is_pipe).then_some(Input::Pipe)
        };
        Ok(Self { root, uevents: UeventSocket::open()?, signals, input })
    }

    /// Whether somebody can press Enter.
    pub(super) fn has_terminal(&self) -> bool {
        self.input == Some(Input::Terminal)
    }

    /// Reads what there is of standard input.
    fn read_input(&mut self, input: Input) -> io::Result<Happening> {
        let mut bytes = [0; 4096];
        let read = match rustix::io::read(stdin(), &mut bytes) {
            Ok(read) => read,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(Happening::Nothing),
            // The terminal is gone.
            Err(Errno::IO) => 0,
            Err(error) => return Err(error.into()),
        };
        if input == Input::Terminal || bytes[..read].contains(&b'\n') {
            return Ok(Happening::End(End::Enter));
        }
        if read == 0 {
            self.input = None;
        }
        Ok(Happening::Nothing)
    }
}

impl Source for Live<'_> {
    fn next(&mut self, time: Option<Duration>) -> io::Result<Happening> {
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
            // After a signal its byte is there at the next look.
            Ok(0) | Err(Errno::INTR) => return Ok(Happening::Nothing),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        match (ready.as_slice(), self.input) {
            ([_, true, ..], _) => Ok(Happening::End(End::Signal)),
            // What happened before Enter is told before Enter ends it.
            ([true, ..], _) => Ok(match self.uevents.next(Duration::ZERO)? {
                Received::Uevent(uevent) => Happening::Uevent(uevent),
                Received::Lost => Happening::Lost,
                Received::Nothing => Happening::Nothing,
            }),
            ([_, _, true], Some(input)) => self.read_input(input),
            _ => Ok(Happening::Nothing),
        }
    }

    fn now(&self) -> Monotonic {
        Monotonic::now()
    }

    fn port(&self, devpath: &DevPath) -> Option<HubPort> {
        read::port(self.root, devpath)
    }

    fn topology(&self) -> Topology {
        read::topology(self.root)
    }
}
