//! Who is handed a descriptor over a socket, and who is not: with partners that try to get one.

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
use hotplugger::qmp::client::QmpClient;
use hotplugger::qmp::handover::{Handover, Recipient};
use hotplugger::qmp::{Error, Qmp};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Uid, geteuid};
use rustix::thread::set_thread_res_uid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Nobody, as whom a partner listens if root runs the tests.
const NOBODY: u32 = 65534;

/// A partner at a socket, who takes what he gets.
struct Partner {
    dir: TempDir,
    socket: PathBuf,
    /// The user who listens.
    user: u32,
    /// Ends with the inodes of the descriptors that came.
    thread: JoinHandle<Vec<u64>>,
}

impl Partner {
    /// Listens in a folder of that mode, which is the listener's.
    fn in_folder_of_mode(mode: u32) -> Self {
        let user = if geteuid().is_root() { NOBODY } else { geteuid().as_raw() };
        let dir = tempfile::tempdir().unwrap();
        // Up to there it is the tests' machine's.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let folder = dir.path().join("vm");
        fs::create_dir(&folder).unwrap();
        chown(&folder, Some(user), None).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(mode)).unwrap();
        let socket = folder.join("qmp");
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

    /// Executes a command that hands over an open file, and returns what came of it, and whether
    /// the partner has that file.
    fn offer(self, user: Option<u32>, trusts_folder: bool) -> (Result<Value, String>, bool) {
        let file = self.dir.path().join("device");
        File::create(&file).unwrap();
        let inode = file.metadata().unwrap().ino();
        let offer = Offer { file, user, trusts_folder };
        let deadline = Deadline::after(Duration::from_secs(30));
        let mut qmp = QmpClient::connect(&self.socket, deadline).unwrap();
        let answer = qmp.hand_over("add-fd", json!({"opaque": "x"}), &offer);
        let refused = matches!(answer, Err(Error::NotHandedOver { .. }));
        assert_eq!(refused, answer.is_err());
        drop(qmp);
        let came = self.thread.join().unwrap();
        assert!(came.iter().all(|other| *other == inode) && came.len() < 2);
        (answer.map_err(|error| error.to_string()), !came.is_empty())
    }
}

struct Offer {
    file: PathBuf,
    user: Option<u32>,
    trusts_folder: bool,
}

impl Recipient for Offer {
    fn user(&self) -> io::Result<Option<u32>> {
        Ok(self.user)
    }

    fn trusts_folder(&self) -> bool {
        self.trusts_folder
    }
}

impl Handover for Offer {
    fn open(&self) -> io::Result<OwnedFd> {
        File::open(&self.file).map(OwnedFd::from)
    }
}

/// Greets, agrees to all that comes, and keeps all descriptors that come along.
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
            // In one piece: who goes with a byte unread resets the connection.
            let reply = format!("{}\n", json!({"return": {"fdset-id": 1}, "id": command["id"]}));
            stream.write_all(reply.as_bytes())?;
        }
    }
}

fn folders_above(path: &Path) -> impl Iterator<Item = &Path> {
    path.ancestors().skip(1)
}

#[test]
fn who_is_meant_gets_it_with_the_command() {
    for named in [true, false] {
        let partner = Partner::in_folder_of_mode(0o700);
        let user = named.then_some(partner.user);
        // Without a name the tests' own folder, which may be below /tmp, is none to rely on.
        let (answer, came) = partner.offer(user, !named);
        assert_eq!(answer, Ok(json!({"fdset-id": 1})));
        assert!(came);
    }
}

#[test]
fn another_user_than_the_config_says_gets_nothing() {
    let partner = Partner::in_folder_of_mode(0o700);
    let (listens, other) = (partner.user, partner.user - 1);
    let (answer, came) = partner.offer(Some(other), true);
    let said = answer.unwrap_err();
    assert!(!came, "{said}");
    let hint = format!("it is user {listens}, and must be user {other}; if QEMU is run by user");
    assert!(said.contains(&hint), "{said}");
}

/// Who listens may be another than the one whom the socket belongs to.
#[test]
fn another_user_than_the_sockets_owner_gets_nothing() {
    if !geteuid().is_root() {
        return;
    }
    let partner = Partner::in_folder_of_mode(0o700);
    chown(&partner.socket, Some(1), None).unwrap();
    let (answer, came) = partner.offer(None, true);
    assert!(answer.unwrap_err().contains("it is user 65534, and must be user 1"));
    assert!(!came);
}

#[test]
fn a_folder_that_others_can_write_is_none_to_rely_on_unless_the_config_says_so() {
    let partner = Partner::in_folder_of_mode(0o777);
    let user = Some(partner.user);
    let (answer, came) = partner.offer(user, false);
    let said = answer.unwrap_err();
    assert!(said.contains("vm (mode 777), who could put another socket there"), "{said}");
    assert!(!came && said.contains("`trust_socket_directory: true`"), "{said}");
    let (answer, came) = Partner::in_folder_of_mode(0o777).offer(user, true);
    assert!(answer.is_ok() && came);
}

/// In /tmp everybody can be the first to make the socket; with a user named that helps nobody.
#[test]
fn the_sticky_bit_suffices_only_where_the_user_is_named() {
    let partner = Partner::in_folder_of_mode(0o1777);
    let user = Some(partner.user);
    let sticky = |path: &Path| path.metadata().unwrap().mode() & 0o1022 == 0o1022;
    assert!(folders_above(&partner.socket).any(sticky));
    let (answer, came) = partner.offer(None, false);
    assert!(answer.unwrap_err().contains("others can write to "));
    assert!(!came);
    let (answer, came) = Partner::in_folder_of_mode(0o1777).offer(user, false);
    assert!(answer.is_ok() && came, "{answer:?}");
}
