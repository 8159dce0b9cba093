//! The udev call: one uevent from the environment to its outcome.
//!
//! Read, plan, apply, record. What is decided is `plan`'s; this file fetches what it needs and
//! carries out what it says, and each branch ends in one [`Report`].

pub mod plan;
pub mod prefilter;
pub mod uevent;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use crate::clock::Monotonic;
use crate::config::file::ConfigFile;
use crate::config::{Config, VirtualMachine};
use crate::devpath::DevPath;
use crate::event::plan::{Plan, plan};
use crate::event::uevent::{EventKind, Uevent, UsbEvent, properties};
use crate::host::Host;
use crate::host::real::RealHost;
use crate::host::topology::location;
use crate::location::UsbLocation;
use crate::outcome::{EventContext, Outcome, Report, SkipReason};
use crate::port::DevNum;
use crate::root::Root;
use crate::state::dir::may_have_record;
use crate::state::record::{Record, UeventMark};
use crate::transfer::attach::{Attach, Trigger};
use crate::transfer::candidate::{Assignment, Candidate};
use crate::transfer::detach::detach;
use crate::transfer::{keep, new_record, recall};

/// One udev call.
pub struct Hook<'a> {
    /// Where paths begin.
    pub root: &'a Root,
    /// The config file that was named on the command line.
    pub config: Option<&'a Path>,
    /// Looks up a variable of the event.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// Lists all variables of the event.
    pub variables: &'a dyn Fn() -> Vec<(String, String)>,
    /// Another world than this machine.
    pub world: Option<&'a dyn Host>,
}

impl Hook<'_> {
    /// Handles the event.
    pub fn run(&self) -> Report {
        // By its DEVPATH alone, most events are found to be of nobody's port.
        let device = (self.variable)("DEVPATH").and_then(|path| device(&path));
        let file = match ConfigFile::find(self.root, self.config) {
            Ok(file) => {
                let concerned =
                    |device| file.as_ref().is_some_and(|file| may_concern(self.root, file, device));
                if device.as_ref().is_some_and(|device| !concerned(device) && !self.known(device)) {
                    return Report::new(None, Outcome::Skipped(SkipReason::NotConfigured));
                }
                Ok(file)
            }
            Err(error) => Err(error),
        };
        match Uevent::from_variables(self.variable) {
            Ok(uevent) => match uevent.usb() {
                Some(event) => self.handle(&event, file),
                None => Report::new(None, Outcome::Skipped(SkipReason::NoUsbDevice)),
            },
            Err(error) => {
                Report::new(None, Outcome::Failed(format!("no event of udev's: {error}")))
            }
        }
    }

    /// Whether a device of whose going the event tells has a record, which is believed whatever the
    /// config says.
    fn known(&self, device: &DevPath) -> bool {
        (self.variable)("ACTION").is_some_and(|action| action == "remove")
            && may_have_record(self.root, device)
    }

    fn handle(&self, event: &UsbEvent, file: Result<Option<ConfigFile>>) -> Report {
        let idle = |why| Report::new(None, Outcome::Skipped(why));
        let known =
            event.kind == EventKind::DeviceRemove && may_have_record(self.root, &event.device);
        let parsed = file.and_then(|file| {
            file.map_or_else(|| Ok(Config::default()), |file| file.parse_trusted())
        });
        let (config, config_error) = match parsed {
            Ok(config) => (config, None),
            // What was attached is detached, whatever has become of the config since.
            Err(error) if known => (Config::default(), Some(error)),
            Err(error) => return failed(EventContext::of(event), &error),
        };
        let places = location::places(self.root, &event.device);
        if !known && !config.is_configured(&places) {
            return idle(SkipReason::NotConfigured);
        }
        let mut outcome = if let Some(world) = self.world {
            self.decide_and_act(event, &places, &config, world)
        } else {
            let (world, note) = RealHost::open(self.root);
            let mut outcome = self.decide_and_act(event, &places, &config, &world);
            outcome.notes.extend(note);
            outcome
        };
        outcome.notes.extend(config_error.map(|error| format!("{error:#}")));
        outcome
    }

    /// Plans what to do about the event and does it. A virtual machine that turns out not to run
    /// after all is left out then, if there is another one.
    fn decide_and_act(
        &self,
        event: &UsbEvent,
        places: &UsbLocation,
        config: &Config,
        world: &dyn Host,
    ) -> Report {
        // The names of those that do not run, and what was said of each.
        let mut down: Vec<(String, String)> = Vec::new();
        loop {
            let is_down = |vm: &VirtualMachine| down.iter().any(|(name, _)| *name == vm.name);
            let record = recall(world, &event.port, &event.device);
            let runs = |vm: &VirtualMachine| !is_down(vm) && world.runs(&vm.socket);
            let plan = plan(event, places, config, record.as_ref(), &runs);
            world.decided(&plan);
            let tried = match &plan {
                Plan::Attach { vm, .. } => Some((vm.name.clone(), is_down(vm))),
                _ => None,
            };
            let outcome = self.act(event, places, config, world, plan, record.as_ref());
            let (Some((vm, again)), Outcome::NotRunning(why)) = (tried, &outcome.end) else {
                return outcome;
            };
            if config.owners(places).len() < 2 {
                return outcome;
            }
            if again {
                let said: Vec<String> = down.into_iter().map(|(_, why)| why).collect();
                return Report { end: Outcome::NotRunning(said.join("; ")), ..outcome };
            }
            down.push((vm, why.clone()));
        }
    }

    fn act(
        &self,
        event: &UsbEvent,
        places: &UsbLocation,
        config: &Config,
        world: &dyn Host,
        plan: Plan<'_>,
        record: Option<&Record>,
    ) -> Report {
        let mut context = EventContext::of(event);
        context.vm = match &plan {
            Plan::Record(vm) | Plan::AttachEarly(vm) | Plan::Attach { vm, .. } => {
                Some(vm.name.clone())
            }
            Plan::Detach(targets) => targets.first().map(|target| target.vm.to_owned()),
            Plan::Nothing(_) => None,
        };
        match plan {
            Plan::Nothing(why) => Report::new(None, Outcome::Skipped(why)),
            Plan::Record(vm) => {
                self.record(event, context, Assignment { config, vm, places }, world)
            }
            Plan::AttachEarly(vm) => {
                let owner = Assignment { config, vm, places };
                let wish = Trigger::Udev { settle: true, interface: None };
                // Without its interfaces it is not known what it is.
                if world.has_interfaces(&event.device) {
                    let outcome = self.attach(event, owner, world, wish, context.clone(), record);
                    if outcome.is_as_wished() {
                        return outcome;
                    }
                }
                self.record(event, context, owner, world)
            }
            Plan::Attach { vm, settle, unless_newer } => {
                let owner = Assignment { config, vm, places };
                let interface = unless_newer.then_some(event.seqnum.unwrap_or(0));
                let wish = Trigger::Udev { settle, interface };
                self.attach(event, owner, world, wish, context, record)
            }
            Plan::Detach(targets) => detach(event, context, &targets, world, record),
        }
    }

    fn attach(
        &self,
        event: &UsbEvent,
        owner: Assignment<'_>,
        world: &dyn Host,
        wish: Trigger,
        context: EventContext,
        record: Option<&Record>,
    ) -> Report {
        let attach = Attach {
            world,
            owner,
            port: &event.port,
            devnum: event.devnum,
            new_record: &|devnum, seen| self.new_record(event, devnum, world, seen),
            wish,
        };
        attach.run(context, record.cloned())
    }

    /// Remembers the device.
    fn record(
        &self,
        event: &UsbEvent,
        context: EventContext,
        owner: Assignment<'_>,
        world: &dyn Host,
    ) -> Report {
        let mut outcome = Report::new(Some(context), Outcome::Recorded);
        if let Some(devnum) = event.devnum {
            // Only a device that was plugged is sure to have another event, which attaches it or
            // gives it back.
            if !event.synthetic {
                let candidate = Candidate::new(world, owner, devnum);
                outcome.notes.extend(candidate.keep_host_off());
            }
            // From here on it is quiet: the events of the unbinding have been sent.
            let record = self.new_record(event, devnum, world, world.seen());
            outcome.notes.extend(keep(world, &record));
        }
        outcome
    }

    /// What there is to remember of a device at this moment.
    fn new_record(
        &self,
        event: &UsbEvent,
        devnum: DevNum,
        world: &dyn Host,
        seen: UeventMark,
    ) -> Record {
        let record = new_record(world, &event.port, &event.device, devnum, seen);
        let (plugged, properties) = match event.kind {
            EventKind::InterfaceAdd => (None, BTreeMap::new()),
            _ => (self.initialized(), properties((self.variables)())),
        };
        let plugged = plugged.unwrap_or(record.plugged).min(record.plugged);
        Record { plugged, properties, ..record }
    }

    /// When udev first saw the device.
    fn initialized(&self) -> Option<Monotonic> {
        (self.variable)("USEC_INITIALIZED")?.parse().ok().map(Monotonic)
    }
}

/// The USB device that the DEVPATH of it or of its interface is below; none if it is of neither.
fn device(path: &str) -> Option<DevPath> {
    let path = match path.rsplit_once('/') {
        Some((device, interface)) if interface.contains(':') => device,
        _ => path,
    };
    path.parse().ok().filter(|device: &DevPath| device.port().is_some())
}

/// Whether a port in the raw config may be the device's. The other halves of its connectors are
/// looked up where the config has ports of its controller: some microseconds, and no file is opened.
fn may_concern(root: &Root, file: &ConfigFile, device: &DevPath) -> bool {
    prefilter::may_match(&file.text, device, |device| location::peers(root, device))
}

fn failed(context: EventContext, error: &anyhow::Error) -> Report {
    Report::new(Some(context), Outcome::Failed(format!("{error:#}")))
}
