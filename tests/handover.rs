//! Which peers receive commands and file descriptors, tested with peers that try to get some.

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
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hotplugger::clock::Deadline;
use hotplugger::config::access::{Access, User};
use hotplugger::host::session::Session;
use hotplugger::monitor::Monitor;
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
    /// Returns the inodes of the file descriptors that it received, and the text.
    thread: JoinHandle<(Vec<u64>, String)>,
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
        let access = Access {
            user: user.map(User::Id),
            trust_socket_directory: trust_directory,
            ..Access::DEFAULT
        };
        let open = || File::open(&file).map(OwnedFd::from);
        let deadline = Deadline::after(Duration::from_secs(30));
        let monitor = Monitor::Socket(self.socket.clone());
        let answer = Session::connect(&Root::at("/"), &monitor, &access, deadline, None)
            .and_then(|mut qmp| qmp.execute_with_fd("add-fd", json!({"opaque": "x"}), &open));
        let is_rejected = matches!(answer, Err(Error::PeerRejected { .. }));
        assert_eq!(is_rejected, answer.is_err(), "{answer:?}");
        // The peer may not have been connected to.
        drop(UnixStream::connect(&self.socket));
        let (came, text) = self.thread.join().unwrap();
        assert_eq!(text.is_empty(), is_rejected, "{text}");
        assert!(came.iter().all(|other| *other == inode) && came.len() < 2);
        (answer.map_err(|error| error.to_string()), !came.is_empty())
    }
}

/// Sends the greeting, accepts all commands and keeps all file descriptors.
fn take(mut stream: &UnixStream) -> io::Result<(Vec<u64>, String)> {
    let (mut inodes, mut all) = (Vec::new(), Vec::new());
    // A client that leaves at once does not read it.
    let _ = stream.write_all(b"{\"QMP\": {}}\r\n");
    let mut text = Vec::new();
    loop {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        // A client that leaves without having read the greeting resets the connection.
        let came = recvmsg(stream, &mut into, &mut control, RecvFlags::empty());
        let came = came.map_or(0, |message| message.bytes);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                for descriptor in descriptors {
                    inodes.push(File::from(descriptor).metadata()?.ino());
                }
            }
        }
        if came == 0 {
            return Ok((inodes, String::from_utf8_lossy(&all).into_owned()));
        }
        all.extend_from_slice(&bytes[..came]);
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
    let hint = format!(
        "belongs to user {listens} and must belong to user {other} or to root; if QEMU runs as"
    );
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

/// A link in a directory of another user, who could point it anywhere.
#[test]
fn link_of_another_user_is_not_followed() {
    if !geteuid().is_root() {
        return;
    }
    for trusted in [false, true] {
        let peer = Peer::in_directory_of_mode(0o700);
        let own = peer.dir.path().join("own");
        fs::create_dir(&own).unwrap();
        chown(&own, Some(1), None).unwrap();
        let link = own.join("qmp");
        symlink(&peer.socket, &link).unwrap();
        lchown(&link, Some(1), None).unwrap();
        let peer = Peer { socket: link, ..peer };
        let (answer, came) = peer.offer(None, trusted);
        let said = answer.unwrap_err();
        assert!(said.contains("qmp is a symbolic link of user 1"), "{said}");
        assert!(!came);
    }
}

/// The same with a directory on the way.
#[test]
fn directory_that_is_a_link_of_another_user_is_not_followed() {
    if !geteuid().is_root() {
        return;
    }
    let peer = Peer::in_directory_of_mode(0o700);
    let link = peer.dir.path().join("link");
    symlink(peer.socket.parent().unwrap(), &link).unwrap();
    lchown(&link, Some(1), None).unwrap();
    let user = Some(peer.user);
    let peer = Peer { socket: link.join("qmp"), ..peer };
    let (answer, came) = peer.offer(user, false);
    assert!(answer.unwrap_err().contains("link belongs to user 1, so another user could"));
    assert!(!came);
    // Root's links are as good as root's directories.
    let peer = Peer::in_directory_of_mode(0o700);
    let link = peer.dir.path().join("link");
    symlink(peer.socket.parent().unwrap(), &link).unwrap();
    let peer = Peer { socket: link.join("qmp"), ..peer };
    let (answer, came) = peer.offer(user, false);
    assert!(answer.is_ok() && came, "{answer:?}");
}

/// Root listens at a user's socket: the user passed the connection to another process.
#[test]
fn root_is_trusted_only_at_a_socket_of_its_own() {
    if !geteuid().is_root() {
        return;
    }
    for (owner, is_trusted) in [(0, true), (NOBODY, false)] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        chown(&socket, Some(owner), None).unwrap();
        let thread = thread::spawn(move || take(&listener.accept().unwrap().0).unwrap());
        let peer = Peer { dir, socket, user: owner, thread };
        let (answer, came) = peer.offer(None, true);
        assert_eq!((answer.is_ok(), came), (is_trusted, is_trusted), "{answer:?}");
    }
}
