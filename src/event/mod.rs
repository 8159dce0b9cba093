//! One uevent, from its variables to the report about it.
//!
//! [`may_concern_port`] rejects most events from their DEVPATH and the raw config text.
//! [`handle`] does the rest: read, plan, act, report.

pub mod plan;

use std::env;

use anyhow::Result;

use self::plan::{Candidate, Plan, plan};
use crate::attach::{self, AttachJob, Trigger};
use crate::config::file::ConfigFile;
use crate::config::{Config, prefilter};
use crate::detach;
use crate::devpath::DevPath;
use crate::driver_guard::DriverGuard;
use crate::host::{Host, topology};
use crate::location::UsbLocation;
use crate::outcome::{EventContext, Outcome, Report, SkipReason};
use crate::policy::Assignment;
use crate::root::Root;
use crate::state::dir::may_have_record;
use crate::state::record::Record;
use crate::uevent::{EventKind, Uevent, UsbEvent};

/// A uevent of a USB device, with everything that is needed to handle it.
struct UsbCall<'a> {
    host: &'a dyn Host,
    event: &'a UsbEvent,
    config: &'a Config,
    location: &'a UsbLocation,
}

/// A variable of the environment, in which udev passes the uevent.
pub fn variable(name: &str) -> Option<String> {
    let value = env::var_os(name)?.into_string();
    Some(value.unwrap_or_else(|value| value.to_string_lossy().into_owned()))
}

/// Returns whether the event may concern a configured port, or a device with a record.
///
/// Most calls end here, so this only searches the raw text of the config. It may return true for
/// an event that concerns nothing, never false for one that does. A config file that cannot be read
/// concerns every port.
pub fn may_concern_port(
    root: &Root,
    config: &Result<Option<ConfigFile>>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> bool {
    let Ok(config) = config else { return true };
    let Some(device) = usb_device(&variable("DEVPATH").unwrap_or_default()) else { return true };
    config.as_ref().is_some_and(|config| {
        prefilter::may_match(&config.text, &device, |device| topology::peers(root, device))
    }) || (variable("ACTION").is_some_and(|action| action == "remove")
        && may_have_record(root, &device))
}

/// Handles one uevent. `config` is the config file as it was found, not parsed yet. `variable` returns
/// the variables of the uevent.
pub fn handle(
    variable: &dyn Fn(&str) -> Option<String>,
    config: Result<Option<ConfigFile>>,
    host: &dyn Host,
) -> Report {
    let event = match Uevent::from_variables(variable) {
        Ok(uevent) => match uevent.usb() {
            Some(event) => event,
            None => return Report::skipped(SkipReason::NotUsbDevice),
        },
        Err(error) => {
            let why = format!("not handled: the environment is not that of a uevent: {error}");
            return Report::new(None, Outcome::Failed(why));
        }
    };
    let has_record = event.kind == EventKind::DeviceRemove && host.may_have_record(&event.device);
    let (config, config_error) = match parse(config) {
        Ok(config) => (config, None),
        Err(error) => (Config::default(), Some(format!("{error:#}"))),
    };
    let location = host.location(&event.device);
    let config_error =
        config_error.or_else(|| config.broken_at(&location).map(ToString::to_string));
    // A device that was attached is detached even if the config is broken by now.
    if let (false, Some(error)) = (has_record, &config_error) {
        return Report::new(Some(EventContext::of(&event)), Outcome::Failed(error.clone()));
    }
    if !has_record && !config.is_configured(&location) {
        return Report::skipped(SkipReason::NotConfigured);
    }
    let record = host.load_record(&event.port, &event.device);
    let is_kept = host.is_kept(&event.device);
    let plan = plan(&event, &location, &config, record.as_ref(), is_kept);
    let call = UsbCall { host, event: &event, config: &config, location: &location };
    let mut report = call.carry_out(&plan, record.as_ref());
    report.decision = Some(plan.to_string());
    report.warnings.extend(host.warnings());
    report.warnings.extend(config_error);
    report
}

fn parse(config: Result<Option<ConfigFile>>) -> Result<Config> {
    match config? {
        Some(file) => file.parse_trusted(),
        None => Ok(Config::default()),
    }
}

impl UsbCall<'_> {
    fn carry_out(&self, plan: &Plan<'_>, record: Option<&Record>) -> Report {
        match plan {
            Plan::Skip(reason) => Report::skipped(*reason),
            Plan::Record(candidates) => self.record(first_running(candidates, self.host)),
            Plan::AttachOnAdd(candidates) => {
                self.attach_on_add(first_running(candidates, self.host), record)
            }
            Plan::Attach { candidates, unless_newer } => {
                self.attach_to_first(candidates, *unless_newer, record)
            }
            Plan::Detach(targets) => detach::detach(self.host, self.event, targets, record),
        }
    }

    /// Attaches the device at once if the VM takes it on `add` and the kernel has created its
    /// interfaces. Otherwise a later event attaches it.
    fn attach_on_add(&self, candidate: &Candidate<'_>, record: Option<&Record>) -> Report {
        if candidate.attaches_on_add() && self.host.has_interfaces(&self.event.device) {
            let report = attach::attach(&self.attach_job(candidate, false, record));
            if report.outcome.is_attached() {
                return report;
            }
        }
        self.record(candidate)
    }

    /// Attaches the device to the first of the VMs that runs.
    ///
    /// A VM that turns out not to run after all is passed over. If none runs, the first one is
    /// tried, so that its report says why.
    fn attach_to_first(
        &self,
        candidates: &[Candidate<'_>],
        unless_newer: bool,
        record: Option<&Record>,
    ) -> Report {
        let attach_to =
            |candidate| attach::attach(&self.attach_job(candidate, unless_newer, record));
        if let [only] = candidates {
            return attach_to(only);
        }
        let mut reasons: Vec<String> = Vec::new();
        for candidate in candidates.iter().filter(|one| self.host.is_running(&one.vm.monitor)) {
            let report = attach_to(candidate);
            let Outcome::NotRunning(why) = report.outcome else { return report };
            reasons.push(why);
        }
        let mut report = attach_to(&candidates[0]);
        if let Outcome::NotRunning(why) = &mut report.outcome {
            if !reasons.contains(why) {
                reasons.push(why.clone());
            }
            *why = reasons.join("; ");
        }
        report
    }

    fn attach_job<'b>(
        &'b self,
        candidate: &Candidate<'b>,
        unless_newer: bool,
        record: Option<&Record>,
    ) -> AttachJob<'b> {
        AttachJob {
            host: self.host,
            assignment: self.assignment(candidate),
            port: &self.event.port,
            devnum: self.event.devnum,
            trigger: Trigger::Udev {
                has_device: candidate.has_device,
                interface: unless_newer.then(|| self.event.seqnum.unwrap_or(0)),
                initialized_at: self.event.initialized_at,
            },
            record: record.cloned(),
        }
    }

    /// Saves a record of the device, and unbinds the host's drivers: a later event attaches it.
    fn record(&self, candidate: &Candidate<'_>) -> Report {
        let UsbEvent { port, device, initialized_at, .. } = self.event;
        let context = EventContext::of(self.event).with_vm(&candidate.vm.name);
        let mut report = Report::new(Some(context), Outcome::Recorded);
        let Some(devnum) = self.event.devnum else { return report };
        // Only the `add` of a plug is certainly followed by an event that attaches the device or
        // returns it.
        if !self.event.synthetic {
            let mut drivers = DriverGuard::new(self.host, self.assignment(candidate), devnum);
            drivers.unbind_if_allowed();
            report.warnings.extend(drivers.keep());
        }
        // Made after the unbinding, so that its uevents are not taken for activity.
        let record = self.host.new_record(port, device, devnum, *initialized_at);
        report.warnings.extend(self.host.save_record_or_warn(&record));
        report
    }

    fn assignment<'a>(&'a self, candidate: &Candidate<'a>) -> Assignment<'a> {
        Assignment { config: self.config, vm: candidate.vm, location: self.location }
    }
}

/// The first candidate that runs, else the first one. A single candidate is not asked.
pub fn first_running<'c, 'a>(
    candidates: &'c [Candidate<'a>],
    host: &dyn Host,
) -> &'c Candidate<'a> {
    match candidates {
        [only] => only,
        _ => candidates
            .iter()
            .find(|candidate| host.is_running(&candidate.vm.monitor))
            .unwrap_or(&candidates[0]),
    }
}

/// The USB device that `path`, the DEVPATH of a device or of an interface, belongs to.
fn usb_device(path: &str) -> Option<DevPath> {
    let path = match path.rsplit_once('/') {
        Some((device, interface)) if interface.contains(':') => device,
        _ => path,
    };
    path.parse().ok().filter(|device: &DevPath| device.port().is_some())
}
