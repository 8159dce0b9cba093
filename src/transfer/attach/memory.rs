//! What attaching remembers, beside siblings that do the same.

use super::Attach;
use crate::config::VirtualMachine;
use crate::device_id::DeviceId;
use crate::guest::ports::LastPort;
use crate::state::record::{Attachment, Record};
use crate::transfer::not_kept;

impl Attach<'_> {
    /// Notes that this interface has come, so that an older one's event leaves the device to it.
    pub(super) fn note_interface(&self, record: &Record, seqnum: u64) -> Option<String> {
        not_kept(self.world.remember(&record.port, &mut |stored| {
            // Siblings run at the same time: what one of them has noted meanwhile counts.
            let known = stored.take().filter(|stored| stored.devnum == record.devnum);
            let mut known = known.unwrap_or_else(|| record.clone());
            known.newest_interface = known.newest_interface.max(Some(seqnum));
            *stored = Some(known);
        }))
    }

    /// Notes which port of the guest it has, for the next device in its port.
    pub(super) fn note_seat(&self, seat: &LastPort) -> Option<String> {
        not_kept(self.world.remember_seat(&self.vm().name, self.port, seat))
    }

    /// Notes where the device is; what siblings have noted meanwhile stays.
    pub(super) fn note_attached(
        &self,
        vm: &VirtualMachine,
        record: Record,
        id: DeviceId,
        device: String,
    ) -> Option<String> {
        let attached = Attachment {
            vm: vm.name.clone(),
            socket: vm.socket.clone(),
            socket_file: self.world.socket_file(&vm.socket),
            id,
            device,
            at: self.world.now(),
        };
        let port = record.port.clone();
        let mut record = Some(record);
        not_kept(self.world.remember(&port, &mut |stored| {
            let known = stored.take().filter(|stored| stored.devnum == attached.id.devnum);
            *stored = known.or_else(|| record.take()).map(|mut known| {
                let before = known.attached.take().filter(|before| before.is_same(&attached));
                known.attached = Some(before.unwrap_or_else(|| attached.clone()));
                known.detached_manual = false;
                known
            });
        }))
    }
}
