//! Which peers receive a file descriptor, tested with peers that try to get one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with a panic"
)]

use std::fs::{self, File, Permissions};
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hotplugger::deadline::Deadline;
use hotplugger::host::session::Session;
use hotplugger::monitor::Monitor;
use hotplugger::qmp::peer::PeerPolicy;
use hotplugger::qmp::{Error, Qmp};
use hotplugger::root::Root;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Uid, geteuid};
use rustix::thread::set_thread_res_uid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The user that listens if root runs the tests.
const NOBODY: u32 = 65534;

/// A peer at a socket, which keeps all that it receives.
struct Peer {
    dir: TempDir,
    socket: PathBuf,
    /// The user that listens.
    user: u32,
    /// Returns the inodes of the file descriptors that it received.
    thread: JoinHandle<Vec<u64>>,
}

impl Peer {
    /// Listens in a directory of that mode, which belongs to the user that listens.
    fn in_directory_of_mode(mode: u32) -> Self {
        let user = if geteuid().is_root() { NOBODY } else { geteuid().as_raw() };
        let dir = tempfile::tempdir().unwrap();
        // The directories above depend on the machine.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let directory = dir.path().join("vm");
        fs::create_dir(&directory).unwrap();
        chown(&directory, Some(user), None).unwrap();
        fs::set_permissions(&directory, Permissions::from_mode(mode)).unwrap();
        let socket = directory.join("qmp");
        let path = socket.clone();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            if geteuid().is_root() {
                let user = Uid::from_raw(NOBODY);
                set_thread_res_uid(user, user, user).unwrap();
            }
            let listener = UnixListener::bind(path).unwrap();
            ready.send(()).unwrap();
            let (stream, _) = listener.accept().unwrap();
            take(&stream).unwrap()
        });
        is_ready.recv().unwrap();
        Self { dir, socket, user, thread }
    }

    /// Executes a command with the file descriptor of a file. Returns the reply, and whether the peer
    /// received that file.
    fn offer(self, user: Option<u32>, trust_directory: bool) -> (Result<Value, String>, bool) {
        let file = self.dir.path().join("device");
        File::create(&file).unwrap();
        let inode = file.metadata().unwrap().ino();
        let policy = PeerPolicy { uid: user, trust_directory };
        let open = || File::open(&file).map(OwnedFd::from);
        let deadline = Deadline::after(Duration::from_secs(30));
        let mut qmp =
            Session::connect(&Root::at("/"), &Monitor::Socket(self.socket.clone()), deadline, None)
                .unwrap();
        let answer = qmp.execute_with_fd("add-fd", json!({"opaque": "x"}), &policy, &open);
        let refused = matches!(answer, Err(Error::PeerRejected { .. }));
        assert_eq!(refused, answer.is_err());
        drop(qmp);
        let came = self.thread.join().unwrap();
        assert!(came.iter().all(|other| *other == inode) && came.len() < 2);
        (answer.map_err(|error| error.to_string()), !came.is_empty())
    }
}

/// Sends the greeting, accepts all commands and keeps all file descriptors.
fn take(mut stream: &UnixStream) -> io::Result<Vec<u64>> {
    stream.write_all(b"{\"QMP\": {}}\r\n")?;
    let mut inodes = Vec::new();
    let mut text = Vec::new();
    loop {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        let came = recvmsg(stream, &mut into, &mut control, RecvFlags::empty())?.bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                for descriptor in descriptors {
                    inodes.push(File::from(descriptor).metadata()?.ino());
                }
            }
        }
        if came == 0 {
            return Ok(inodes);
        }
        text.extend_from_slice(&bytes[..came]);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let command: Value = serde_json::from_slice(&line)?;
            // One write, because a client that closes with unread bytes resets the connection.
            let reply = format!("{}\n", json!({"return": {"fdset-id": 1}, "id": command["id"]}));
            stream.write_all(reply.as_bytes())?;
        }
    }
}

fn directories_above(path: &Path) -> impl Iterator<Item = &Path> {
    path.ancestors().skip(1)
}

#[test]
fn expected_user_receives_the_fd_with_the_command() {
    for named in [true, false] {
        let peer = Peer::in_directory_of_mode(0o700);
        let user = named.then_some(peer.user);
        // Without a configured user the directory of the tests, which may be below /tmp, is unsafe.
        let (answer, came) = peer.offer(user, !named);
        assert_eq!(answer, Ok(json!({"fdset-id": 1})));
        assert!(came);
    }
}

#[test]
fn user_other_than_the_configured_one_receives_nothing() {
    let peer = Peer::in_directory_of_mode(0o700);
    let (listens, other) = (peer.user, peer.user - 1);
    let (answer, came) = peer.offer(Some(other), true);
    let said = answer.unwrap_err();
    assert!(!came, "{said}");
    let hint =
        format!("it runs as user {listens} and must run as user {other}; if QEMU runs as user");
    assert!(said.contains(&hint), "{said}");
}

/// The socket may belong to a user other than the one that listens.
#[test]
fn user_other_than_the_sockets_owner_receives_nothing() {
    if !geteuid().is_root() {
        return;
    }
    let peer = Peer::in_directory_of_mode(0o700);
    chown(&peer.socket, Some(1), None).unwrap();
    let (answer, came) = peer.offer(None, true);
    assert!(answer.unwrap_err().contains("it runs as user 65534 and must run as user 1"));
    assert!(!came);
}

#[test]
fn writable_directory_is_unsafe_unless_the_config_trusts_it() {
    let peer = Peer::in_directory_of_mode(0o777);
    let user = Some(peer.user);
    let (answer, came) = peer.offer(user, false);
    let said = answer.unwrap_err();
    assert!(said.contains("vm (mode 777), so another user could replace the socket"), "{said}");
    assert!(!came && said.contains("`trust_socket_directory: true`"), "{said}");
    let (answer, came) = Peer::in_directory_of_mode(0o777).offer(user, true);
    assert!(answer.is_ok() && came);
}

/// In /tmp everybody can be the first to create the socket. With a configured user that is harmless.
#[test]
fn sticky_bit_suffices_only_with_a_configured_user() {
    let peer = Peer::in_directory_of_mode(0o1777);
    let user = Some(peer.user);
    let sticky = |path: &Path| path.metadata().unwrap().mode() & 0o1022 == 0o1022;
    assert!(directories_above(&peer.socket).any(sticky));
    let (answer, came) = peer.offer(None, false);
    assert!(answer.unwrap_err().contains("others can write to "));
    assert!(!came);
    let (answer, came) = Peer::in_directory_of_mode(0o1777).offer(user, false);
    assert!(answer.is_ok() && came, "{answer:?}");
}
