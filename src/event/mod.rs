//! One uevent, from its variables to the report about it.
//!
//! [`may_concern_port`] rejects most events from their DEVPATH and the raw config text.
//! [`handle`] does the rest: read, plan, act, report.

pub mod plan;

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;

use anyhow::Result;

use self::plan::{Candidate, Plan, plan};
use crate::attach::{self, AttachJob, Trigger};
use crate::clock::Monotonic;
use crate::config::file::ConfigFile;
use crate::config::{Config, prefilter};
use crate::detach;
use crate::devpath::DevPath;
use crate::driver_guard::DriverGuard;
use crate::host::topology;
use crate::host::{Host, UdevProperties};
use crate::location::UsbLocation;
use crate::outcome::{EventContext, Outcome, Report, SkipReason};
use crate::policy::Assignment;
use crate::root::Root;
use crate::state::dir::may_have_record;
use crate::state::record::Record;
use crate::uevent::{EventKind, Uevent, UsbEvent, properties};

/// The variables of a uevent: the environment of a udev call, or a recorded event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables(BTreeMap<String, String>);

/// A uevent of a USB device, with everything that is needed to handle it.
struct UsbCall<'a> {
    host: &'a dyn Host,
    variables: &'a Variables,
    event: &'a UsbEvent,
    config: &'a Config,
    location: &'a UsbLocation,
}

/// Returns whether the event may concern a configured port, or a device with a record.
///
/// Most calls end here, so this only searches the raw text of the config. It may return true for
/// an event that concerns nothing, never false for one that does.
pub fn may_concern_port(root: &Root, config: Option<&[u8]>, action: &str, devpath: &str) -> bool {
    let Some(device) = usb_device(devpath) else { return true };
    config.is_some_and(|text| {
        prefilter::may_match(text, &device, |device| topology::peers(root, device))
    }) || (action == "remove" && may_have_record(root, &device))
}

/// Handles one uevent. `config` is the config file as it was found, not parsed yet.
pub fn handle(
    variables: &Variables,
    config: Result<Option<ConfigFile>>,
    host: &dyn Host,
) -> Report {
    let event = match Uevent::from_variables(|name| variables.get(name).map(str::to_owned)) {
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
    let call = UsbCall { host, variables, event: &event, config: &config, location: &location };
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
            Plan::Record { candidates, early } => {
                let candidate = first_running(candidates, self.host);
                if *early && candidate.attaches_on_add() && self.host.has_interfaces(self.device())
                {
                    let report = attach::attach(&self.attach_job(candidate, false, record));
                    if report.outcome.is_attached() {
                        return report;
                    }
                }
                self.record(candidate)
            }
            Plan::Attach { candidates, unless_newer } => {
                self.attach_to_first(candidates, *unless_newer, record)
            }
            Plan::Detach(targets) => detach::detach(self.host, self.event, targets, record),
        }
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
        if let [only] = candidates {
            return attach::attach(&self.attach_job(only, unless_newer, record));
        }
        let mut reasons: Vec<String> = Vec::new();
        for candidate in candidates.iter().filter(|one| self.host.is_running(&one.vm.monitor)) {
            let report = attach::attach(&self.attach_job(candidate, unless_newer, record));
            let Outcome::NotRunning(why) = &report.outcome else { return report };
            reasons.push(why.clone());
        }
        let first = first_running(candidates, self.host);
        let mut report = attach::attach(&self.attach_job(first, unless_newer, record));
        if let Outcome::NotRunning(why) = &report.outcome {
            if !reasons.contains(why) {
                reasons.push(why.clone());
            }
            report.outcome = Outcome::NotRunning(reasons.join("; "));
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
                settle: !candidate.has_device,
                interface: unless_newer.then(|| self.event.seqnum.unwrap_or(0)),
            },
            record: record.cloned(),
            udev: self.udev_properties(),
        }
    }

    /// Saves a record of the device, and unbinds the host's drivers: a later event attaches it.
    fn record(&self, candidate: &Candidate<'_>) -> Report {
        let mut context = EventContext::of(self.event);
        context.vm = Some(candidate.vm.name.clone());
        let mut report = Report::new(Some(context), Outcome::Recorded);
        let Some(devnum) = self.event.devnum else { return report };
        // Only the `add` of a plug is certainly followed by an event that attaches the device or
        // returns it.
        if !self.event.synthetic {
            let mut drivers = DriverGuard::new(self.host, self.assignment(candidate), devnum);
            drivers.unbind_if_allowed();
            report.warnings.extend(drivers.keep());
        }
        // The mark is set after the unbinding, so that its uevents are not taken for activity.
        let (event, mark) = (self.event, self.host.uevent_mark());
        let udev = self.udev_properties();
        let record = self.host.new_record(&event.port, &event.device, devnum, mark, udev);
        report.warnings.extend(self.host.save_record_or_warn(&record));
        report
    }

    fn udev_properties(&self) -> UdevProperties {
        if self.event.kind == EventKind::InterfaceAdd {
            return UdevProperties::default();
        }
        let initialized = self.variables.get("USEC_INITIALIZED");
        UdevProperties {
            initialized_at: initialized.and_then(|usec| usec.parse().ok()).map(Monotonic),
            properties: properties(self.variables.0.clone()),
        }
    }

    fn assignment<'a>(&'a self, candidate: &Candidate<'a>) -> Assignment<'a> {
        Assignment { config: self.config, vm: candidate.vm, location: self.location }
    }

    fn device(&self) -> &DevPath {
        &self.event.device
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

impl Variables {
    /// The environment of this process.
    pub fn from_environment() -> Self {
        let text = |text: OsString| {
            text.into_string().unwrap_or_else(|text| text.to_string_lossy().into_owned())
        };
        env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub fn insert(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }
}

impl FromIterator<(String, String)> for Variables {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
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
