//! The processes that use a Unix socket: the kernel's list of sockets and their peers (`sock_diag(7)`,
//! which `ss -x` reads too), and the file descriptors of the processes in /proc.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use super::process::file;
use crate::clock::wait_for;
use crate::host::usbfs::{self, Program};
use crate::root::Root;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketUsers {
    pub listener: Option<Program>,
    /// Whether the listener is stopped.
    pub is_stopped: bool,
    pub clients: Vec<Program>,
}

/// A Unix socket in the kernel's list.
#[derive(Debug, Default, PartialEq, Eq)]
struct Socket {
    /// Its inode, which /proc shows for file descriptors.
    inode: u32,
    listens: bool,
    file: Option<(u32, u32)>,
    peer: Option<u32>,
}

/// Finds the process that listens at the socket and the others that are connected to it, as far as
/// this user may see them.
pub fn gather(root: &Root, path: &Path) -> SocketUsers {
    let (Ok(metadata), Ok(sockets)) = (fs::metadata(path), sockets()) else {
        return SocketUsers::default();
    };
    let number = metadata.dev();
    let device = rustix::fs::major(number) << 20 | rustix::fs::minor(number);
    // The kernel reports 32 bits of each.
    let inode = u32::try_from(metadata.ino() & u64::from(u32::MAX)).unwrap_or_default();
    let ours: Vec<&Socket> =
        sockets.iter().filter(|socket| socket.file == Some((inode, device))).collect();
    let programs = programs(root);
    let of = |inode: u32| programs.get(&inode).cloned();
    let mut clients: Vec<Program> = ours.iter().filter_map(|socket| of(socket.peer?)).collect();
    clients.sort_by_key(|program| program.pid);
    clients.dedup();
    let listener = ours.iter().find(|socket| socket.listens).and_then(|socket| of(socket.inode));
    let is_stopped = listener.as_ref().is_some_and(|program| is_stopped(root, program.pid));
    SocketUsers { listener, is_stopped, clients }
}

/// The processes by the sockets they have open, without this one.
fn programs(root: &Root) -> HashMap<u32, Program> {
    let mut found = HashMap::new();
    for pid in usbfs::pids(root).into_iter().filter(|pid| *pid != std::process::id()) {
        for (_, target) in usbfs::open_files(root, pid).into_iter().flatten() {
            let inode = target.to_str().and_then(|target| {
                target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
            });
            if let Some(inode) = inode {
                found.entry(inode).or_insert_with(|| usbfs::program(root, pid));
            }
        }
    }
    found
}

fn is_stopped(root: &Root, pid: u32) -> bool {
    let status = fs::read_to_string(file(root, pid, "status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:\tT"))
}

/// `SOCK_DIAG_BY_FAMILY`, and the flags of a request for all there are.
const BY_FAMILY: u16 = 20;
const REQUEST_DUMP: u16 = 0x301;
/// The messages that end the reply: `NLMSG_DONE`, `NLMSG_ERROR`.
const END: [u16; 2] = [3, 2];
/// Show the file and the peer.
const SHOW: u32 = 0b110;
/// A socket that listens (`TCP_LISTEN`).
const LISTENS: u8 = 10;

/// All Unix sockets of this network namespace.
fn sockets() -> io::Result<Vec<Socket>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = Some(netlink::SOCK_DIAG);
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?;
    send(&socket, &request(), SendFlags::empty())?;
    let mut sockets = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let mut fds = [PollFd::new(&socket, PollFlags::IN)];
        if !wait_for(&mut fds, Duration::from_secs(1))? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let (received, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        if parse(&buffer[..received], &mut sockets) {
            return Ok(sockets);
        }
    }
}

/// `struct nlmsghdr` and `struct unix_diag_req` (`include/uapi/linux/unix_diag.h`).
fn request() -> Vec<u8> {
    let mut bytes = 40u32.to_ne_bytes().to_vec();
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST_DUMP.to_ne_bytes());
    bytes.extend([0; 8]);
    // AF_UNIX, of any protocol, in any state, of any number.
    bytes.extend([1, 0, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(SHOW.to_ne_bytes());
    bytes.extend([0xff; 8]);
    bytes
}

/// Reads the messages of a packet; returns whether the reply ends there.
fn parse(mut packet: &[u8], sockets: &mut Vec<Socket>) -> bool {
    while let (Some(length), Some(kind)) = (number(packet, 0), packet.get(4..6)) {
        let kind = u16::from_ne_bytes([kind[0], kind[1]]);
        let length = usize::try_from(length).unwrap_or_default();
        let Some(body) = packet.get(16..length) else { return true };
        if END.contains(&kind) {
            return true;
        }
        if kind == BY_FAMILY
            && let Some(socket) = parse_socket(body)
        {
            sockets.push(socket);
        }
        packet = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// `struct unix_diag_msg` and its attributes.
fn parse_socket(body: &[u8]) -> Option<Socket> {
    let mut socket =
        Socket { inode: number(body, 4)?, listens: *body.get(2)? == LISTENS, ..Socket::default() };
    let mut rest = body.get(16..)?;
    while let Some([low, high, kind, _]) = rest.get(..4) {
        let length = usize::from(u16::from_ne_bytes([*low, *high]));
        let value = rest.get(4..length)?;
        match kind {
            1 => socket.file = Some((number(value, 0)?, number(value, 4)?)),
            2 => socket.peer = number(value, 0),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(socket)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
pub(in crate::check) mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::os::unix::net::UnixStream;

    #[test]
    fn socket_is_found_by_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q");
        let listener = UnixListener::bind(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        // Clients that are not accepted yet are not listed.
        let _accepted = listener.accept().unwrap();
        let Ok(sockets) = sockets() else { return };
        let inode = u32::try_from(fs::metadata(&path).unwrap().ino() & 0xffff_ffff).unwrap();
        let at = |listens| {
            let mut found = sockets.iter().filter(|socket| {
                socket.listens == listens && socket.file.is_some_and(|file| file.0 == inode)
            });
            found.next()
        };
        assert!(at(true).is_some(), "{sockets:?}");
        assert!(at(false).unwrap().peer.is_some());
        let device = fs::metadata(&path).unwrap().dev();
        let device = rustix::fs::major(device) << 20 | rustix::fs::minor(device);
        assert_eq!(at(true).unwrap().file.unwrap().1, device);
    }

    #[test]
    fn parser_accepts_any_packet() {
        for packet in [&b""[..], b"\x01", b"\xff\xff\xff\xff\x14\0\0\0", &[0; 64]] {
            parse(packet, &mut Vec::new());
        }
    }
}
