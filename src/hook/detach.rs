//! The `remove` event: what stood for the device is deleted, and the port forgotten.

use std::path::Path;

use super::attach::Trouble;
use super::{Hook, STATE_TIMEOUT};
use crate::deadline::Deadline;
use crate::guest::attach::AttachError;
use crate::guest::detach::detach;
use crate::outcome::{End, Outcome, Subject};
use crate::plan::Target;
use crate::qmp::client::QmpClient;
use crate::qmp::{Error, Stage};
use crate::state::dir::StateDir;
use crate::state::lock::{Lock, LockError};
use crate::state::record::Record;
use crate::sysfs;
use crate::uevent::UsbEvent;

impl Hook<'_> {
    /// Detaches the device from the first of the targets that has it. Goes on past errors: one
    /// virtual machine that is stuck keeps no other from letting go.
    pub(super) fn detach(
        &self,
        event: &UsbEvent,
        mut subject: Subject,
        targets: &[Target<'_>],
        state: Option<&StateDir>,
        record: Option<&Record>,
    ) -> Outcome {
        let mut deleted = Vec::new();
        let mut errors = Vec::new();
        for target in targets {
            match self.detach_from(event, target, state) {
                Ok(ids) if ids.is_empty() => {}
                Ok(ids) => {
                    subject.vm = Some(target.vm.to_owned());
                    deleted = ids;
                    break;
                }
                // Nothing of it is left in a guest that is not there.
                Err(Trouble::Attach(AttachError::Qmp(Error::NotRunning { .. }))) => {}
                Err(Trouble::Attach(error)) => errors.push(format!("{}: {error}", target.vm)),
                Err(Trouble::State(error)) => errors.push(format!("{}: {error:#}", target.vm)),
            }
        }
        let mut outcome = Outcome::new(Some(subject), End::Detached(deleted));
        if let End::Detached(ids) = &outcome.end
            && ids.is_empty()
            && !errors.is_empty()
        {
            let errors = errors.join("; ");
            outcome.end = End::Failed(format!("gone, and not detached: {errors}"));
        } else {
            outcome.notes.extend(errors);
        }
        // A record of the device that came after stays.
        let of_device = |record: &Record| event.devnum.is_none_or(|devnum| devnum == record.devnum);
        if let (Some(state), true) = (state, record.is_none_or(of_device)) {
            let forget = state
                .records(&Deadline::after(STATE_TIMEOUT))
                .and_then(|records| records.forget(&event.port));
            outcome.notes.extend(forget.err().map(|error| format!("{error:#}")));
        }
        outcome
    }

    fn detach_from(
        &self,
        event: &UsbEvent,
        target: &Target<'_>,
        state: Option<&StateDir>,
    ) -> Result<Vec<crate::device_id::DeviceId>, Trouble> {
        let (lock, mut qmp) =
            self.connect(target.socket, Deadline::after(target.timeout), state)?;
        // The next device may be there already, and `sync` may have attached it.
        let present = sysfs::usb_device(self.root, &event.device)
            .map(|device| device.devnum)
            .filter(|devnum| Some(*devnum) != event.devnum);
        let deleted = detach(&mut qmp, &event.port, present)?;
        if let Some(lock) = lock {
            lock.progress();
        }
        Ok(deleted)
    }

    /// Connects to QEMU when it is this process' turn. The lock is none where no state is kept;
    /// then QEMU's own queue decides.
    pub(super) fn connect(
        &self,
        socket: &Path,
        deadline: Deadline,
        state: Option<&StateDir>,
    ) -> Result<(Option<Lock>, QmpClient), Trouble> {
        let path = self.root.path(socket);
        let (lock, deadline) = match state {
            None => (None, deadline),
            Some(state) => {
                let file = state.qmp_lock(socket).map_err(Trouble::State)?;
                match Lock::acquire_in_queue(file, deadline) {
                    Ok((lock, deadline)) => (Some(lock), deadline),
                    Err(LockError::Busy(budget)) => {
                        return Err(Error::Timeout { stage: Stage::Lock, budget }.into());
                    }
                    Err(LockError::Io(error)) => return Err(Trouble::State(error.into())),
                }
            }
        };
        Ok((lock, QmpClient::connect(&path, deadline)?))
    }
}
