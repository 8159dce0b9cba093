//! Makes events of ports from uevents: a device was plugged or pulled. [`EventSource`] is the host:
//! the kernel's uevents, sysfs, the user's Enter and Ctrl-C.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, stdin};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Result;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::clock::Monotonic;
use crate::commands::{end_signals, wait};
use crate::devpath::{DevPath, is_root_hub};
use crate::host::netlink::{Received, UeventSocket};
use crate::host::topology::{self, Connector, HubPort, Topology, read_topology};
use crate::root::Root;
use crate::uevent::{Action, Uevent};

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event {
    Plug,
    Pull,
    Plugged,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortEvent {
    pub(super) event: Event,
    pub(super) port: HubPort,
    pub(super) behind: Vec<HubPort>,
}

/// How long a removed device behind a hub waits for the `remove` of its hub: the kernel removes the
/// devices behind a hub first (`drivers/usb/core/hub.c`: `usb_disconnect`).
const HUB: Duration = Duration::from_millis(300);

/// Calls `on_event` with each event until it returns true, `until` has come, or the user ends it.
pub(super) fn watch(
    source: &mut impl EventSource,
    before: &Topology,
    until: Option<Monotonic>,
    mut on_event: impl FnMut(PortEvent) -> Result<bool>,
) -> Result<EndReason> {
    let mut tracker = PortTracker::new(before);
    let mut end = None;
    loop {
        while let Some(event) = tracker.take(source) {
            if on_event(event)? {
                return Ok(EndReason::Count);
            }
        }
        if let Some(end) = end {
            return Ok(end);
        }
        let now = source.now();
        if until.is_some_and(|until| until <= now) {
            end = Some(EndReason::Timeout);
            tracker.flush();
            continue;
        }
        let next = tracker.due().into_iter().chain(until).min();
        match source.next(next.map(|next| next.since(now)))? {
            Input::Kernel(Received::Uevent(uevent)) => tracker.on_uevent(&uevent, source),
            Input::Kernel(Received::Lost) => tracker.compare(source),
            Input::Kernel(Received::Nothing) => {}
            Input::End(reason) => {
                end = Some(reason);
                tracker.flush();
            }
        }
    }
}

struct PortTracker {
    occupied: BTreeMap<DevPath, HubPort>,
    pending: Vec<Pending>,
}

struct Pending {
    devpath: DevPath,
    event: Event,
    due: Monotonic,
}

impl PortTracker {
    fn new(topology: &Topology) -> Self {
        Self { occupied: occupied(topology), pending: Vec::new() }
    }

    fn due(&self) -> Option<Monotonic> {
        self.pending.iter().map(|pending| pending.due).min()
    }

    fn flush(&mut self) {
        self.pending.iter_mut().for_each(|pending| pending.due = Monotonic(0));
    }

    fn on_uevent(&mut self, uevent: &Uevent, source: &impl EventSource) {
        let devpath = &uevent.devpath;
        let is_device = uevent.subsystem == "usb"
            && uevent.devtype == "usb_device"
            && !is_root_hub(devpath.sysname());
        let Some(port) = devpath.port().filter(|_| is_device && !uevent.synthetic) else { return };
        let now = source.now();
        match uevent.action {
            // Everything that is reported is in sysfs by now, and reading the name waits for the probing of
            // drivers to end (`drivers/usb/core/sysfs.c`: `usb_string_attr` takes the device's
            // lock). Devices behind a hub have events of their own.
            Action::Add => {
                self.read_port(devpath, source);
                self.later(devpath, Event::Plug, now);
            }
            Action::Remove => {
                let wait = if port.parent().is_some() { HUB } else { Duration::ZERO };
                self.pending.retain(|pending| !pending.devpath.is_at_or_below(devpath));
                self.later(devpath, Event::Pull, now.after(wait));
            }
            Action::Bind | Action::Unbind | Action::Other => {}
        }
    }

    fn compare(&mut self, source: &impl EventSource) {
        let (now, new) = (source.now(), occupied(&source.topology()));
        let devnum = |port: &HubPort| port.device().map(|device| device.devnum);
        let old: Vec<(DevPath, HubPort)> =
            self.occupied.iter().map(|(path, port)| (path.clone(), port.clone())).collect();
        for (devpath, _) in old.iter().filter(|(devpath, _)| !new.contains_key(devpath)) {
            let hub_gone = devpath
                .parent()
                .is_some_and(|hub| self.occupied.contains_key(&hub) && !new.contains_key(&hub));
            if !hub_gone {
                self.later(devpath, Event::Pull, now);
            }
        }
        for (devpath, port) in new {
            if self.occupied.get(&devpath).and_then(devnum) != devnum(&port) {
                self.later(&devpath, Event::Plug, now);
                self.occupied.insert(devpath, port);
            }
        }
    }

    fn later(&mut self, devpath: &DevPath, event: Event, due: Monotonic) {
        self.pending.retain(|pending| pending.devpath != *devpath);
        self.pending.push(Pending { devpath: devpath.clone(), event, due });
    }

    fn read_port(&mut self, devpath: &DevPath, source: &impl EventSource) {
        if let Some(port) = source.port(devpath).filter(|port| port.plugged.is_some()) {
            self.occupied.insert(devpath.clone(), port);
        }
    }

    fn take(&mut self, source: &impl EventSource) -> Option<PortEvent> {
        let now = source.now();
        let index = self.pending.iter().position(|pending| pending.due <= now)?;
        let Pending { devpath, event, .. } = self.pending.remove(index);
        if event == Event::Plug {
            self.read_port(&devpath, source);
            let port = self.occupied.get(&devpath).cloned().or_else(|| unknown_port(&devpath))?;
            let behind = port.behind().into_iter().filter(|port| port.plugged.is_some());
            return Some(PortEvent { event, behind: behind.cloned().collect(), port });
        }
        let mut gone: Vec<HubPort> = Vec::new();
        self.occupied.retain(|path, port| {
            let stays = !path.is_at_or_below(&devpath);
            if !stays {
                gone.push(port.clone());
            }
            stays
        });
        let (mut at, behind): (Vec<_>, Vec<_>) =
            gone.into_iter().partition(|port| port.devpath == devpath);
        let port = at.pop().or_else(|| source.port(&devpath)).or_else(|| unknown_port(&devpath))?;
        Some(PortEvent { event, port, behind })
    }
}

fn occupied(topology: &Topology) -> BTreeMap<DevPath, HubPort> {
    let occupied = topology.ports().into_iter().filter(|port| port.plugged.is_some());
    occupied.map(|port| (port.devpath.clone(), port.clone())).collect()
}

/// A port of which nothing but its DEVPATH is known.
fn unknown_port(devpath: &DevPath) -> Option<HubPort> {
    let (devpath, connector) = (devpath.clone(), Connector::default());
    Some(HubPort { port: devpath.port()?, devpath, connector, plugged: None })
}

pub(super) trait EventSource {
    /// Waits for the next input, at most for `time`.
    fn next(&mut self, time: Option<Duration>) -> io::Result<Input>;
    fn now(&self) -> Monotonic;
    fn port(&self, devpath: &DevPath) -> Option<HubPort>;
    fn topology(&self) -> Topology;
}

#[derive(Debug)]
pub(super) enum Input {
    Kernel(Received),
    End(EndReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum EndReason {
    Enter,
    /// A signal came, as with Ctrl-C.
    Signal,
    Count,
    Timeout,
    Listed,
}

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
        let signals = end_signals()?;
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
            Err(Errno::INTR | Errno::AGAIN) => return Ok(Input::Kernel(Received::Nothing)),
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
        Ok(Input::Kernel(Received::Nothing))
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
        wait(&mut fds, time)?;
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        match (ready.as_slice(), self.input) {
            ([_, true, ..], _) => Ok(Input::End(EndReason::Signal)),
            // Events before Enter are reported before Enter ends the command.
            ([true, ..], _) => Ok(Input::Kernel(self.uevents.next(Duration::ZERO)?)),
            ([_, _, true], Some(input)) => self.read_input(input),
            _ => Ok(Input::Kernel(Received::Nothing)),
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

#[cfg(test)]
mod tests;
