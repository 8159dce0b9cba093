//! The kernel's uevent socket: hears what happens while udevd still holds the events back.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recvfrom, socket_with,
};

use crate::clock::wait_for;
use crate::uevent::Uevent;

/// A socket in the multicast group to which the kernel sends its uevents.
#[derive(Debug)]
pub struct UeventSocket(OwnedFd);

#[derive(Debug)]
pub enum Received {
    Uevent(Box<Uevent>),
    /// Uevents were lost: more came than the socket's buffer holds.
    Lost,
    /// Nothing until the time was over.
    Nothing,
}

/// The kernel's group; 2 is udevd's.
const GROUP_KERNEL: u32 = 1;

/// The kernel's largest uevent (`include/linux/kobject.h`: `UEVENT_BUFFER_SIZE`) with room for its
/// header.
const PACKET_BYTES: usize = 8192;

impl UeventSocket {
    /// Opens the socket; from then on it keeps what comes.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            flags,
            Some(netlink::KOBJECT_UEVENT),
        )?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, GROUP_KERNEL))?;
        Ok(Self(socket))
    }

    /// Waits for the next uevent, at most for `time`.
    pub fn next(&self, time: Duration) -> io::Result<Received> {
        if !wait_for(&mut [PollFd::new(&self.0, PollFlags::IN)], time)? {
            return Ok(Received::Nothing);
        }
        let mut packet = [0; PACKET_BYTES];
        match recvfrom(&self.0, &mut packet, RecvFlags::empty()) {
            Ok((received, _, sender)) => {
                // Other processes may send to the group too; only the kernel has no port id.
                let from_kernel = sender
                    .and_then(|sender| netlink::SocketAddrNetlink::try_from(sender).ok())
                    .is_some_and(|sender| sender.pid() == 0);
                let uevent =
                    from_kernel.then(|| Uevent::from_packet(&packet[..received])).flatten();
                Ok(uevent.map_or(Received::Nothing, |uevent| Received::Uevent(Box::new(uevent))))
            }
            Err(Errno::NOBUFS) => Ok(Received::Lost),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Nothing),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for UeventSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
