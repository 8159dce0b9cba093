//! The state directory: `/tmp/hotplugger`, safe in a directory that everybody may write to.
//!
//! Everything is opened relative to the directory's own descriptor and no link is followed. A directory
//! that is not ours alone is not used, repaired or deleted: `/run/hotplugger`, where no other user
//! can make one, takes its place.
//!
//! The directory may have been another user's before it became ours, and that user may still hold
//! locks on files in it or read them. A file that is not ours alone therefore counts as absent, and
//! is replaced before it is written to or locked.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, flock, fstat, inotify, mkdirat, openat,
    renameat, statat, unlinkat,
};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::lock::{Lock, LockFile};
use super::record::{Record, VERSION};
use crate::clock::Deadline;
use crate::devpath::DevPath;
use crate::port::Port;
use crate::root::Root;

/// In `/tmp` and `/run`.
const NAME: &str = "hotplugger";

/// The most that is read of a file.
const MAX_BYTES: u64 = 1 << 20;

/// How long to wait for another hotplugger that replaces a file. Only a user who opened the
/// directory before it became ours can take longer.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct StateDir {
    directory: OwnedFd,
    /// The user who runs this process.
    user: u32,
    root: Root,
    boot_id: OnceLock<String>,
    /// Why `/tmp/hotplugger` is not used, if it is not.
    pub fallback: Option<String>,
}

/// The records, while no other process can change them.
#[derive(Debug)]
pub struct Records<'a> {
    dir: &'a StateDir,
    _lock: Lock,
}

impl StateDir {
    /// Opens the directory, making it where it is not there.
    pub fn open(root: &Root) -> Result<Self> {
        let user = rustix::process::geteuid().as_raw();
        let (directory, fallback) = match open_in(root, "/tmp", user, true) {
            Ok(directory) => (directory, None),
            Err(error) => {
                let why = format!("{error:#}");
                let directory = open_in(root, "/run", user, true).with_context(|| why.clone())?;
                (directory, Some(why))
            }
        };
        Ok(Self { directory, user, root: root.clone(), boot_id: OnceLock::new(), fallback })
    }

    /// Opens the directory to read in it. `None` if it does not exist or this user may not read it.
    pub(crate) fn open_read_only(root: &Root) -> Option<Self> {
        let user = rustix::process::geteuid().as_raw();
        let open = |parent| open_in(root, parent, user, false);
        let directory = open("/tmp").or_else(|_| open("/run")).ok()?;
        let (root, boot_id) = (root.clone(), OnceLock::new());
        Some(Self { directory, user, root, boot_id, fallback: None })
    }

    /// Adds the directory to those whose changed and replaced files `inotify` reports. Without /proc it
    /// reports nothing.
    pub(super) fn watch(&self, inotify: &OwnedFd) {
        // This very directory, whatever its name now stands for.
        let path = format!("/proc/self/fd/{}", self.directory.as_raw_fd());
        let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVED_TO;
        let _ = inotify::add_watch(inotify, path, flags);
    }

    pub fn boot_id(&self) -> &str {
        self.boot_id.get_or_init(|| {
            let id = fs::read_to_string(self.root.path("/proc/sys/kernel/random/boot_id"));
            id.map(|id| id.trim().to_owned()).unwrap_or_default()
        })
    }

    pub fn records(&self, deadline: &Deadline) -> Result<Records<'_>> {
        let file = self.open_lock("records.lock")?;
        let lock = Lock::acquire(file, deadline).context("state directory")?;
        Ok(Records { dir: self, _lock: lock })
    }

    /// The lock file for exchanges over the QMP socket at `path`: QEMU serves one client at a time.
    pub fn qmp_lock(&self, path: &Path) -> Result<LockFile<'_>> {
        self.open_lock(&format!("qmp-{}.lock", name_of_socket(path)))
    }

    pub fn port_lock(&self, port: &Port) -> Result<LockFile<'_>> {
        self.open_lock(&format!("hold-{port}.lock"))
    }

    /// The record of the port. A file that is damaged, of another boot, of another version or of
    /// another port counts as absent.
    fn read(&self, port: &Port) -> Option<Record> {
        let record: Record = self.read_json(&file_name(port))?;
        let valid =
            record.version == VERSION && record.boot_id == self.boot_id() && record.port == *port;
        valid.then_some(record)
    }

    /// Reads a file that is ours alone. Any other file counts as absent, and is left as it is.
    fn read_file(&self, name: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = self.open_if_ours(name, OFlags::RDONLY).ok()??;
        file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    pub(super) fn read_json<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&self.read_file(name)?).ok()
    }

    /// Empty if the file cannot be read.
    pub(super) fn read_text(&self, name: &str) -> String {
        String::from_utf8_lossy(&self.read_file(name).unwrap_or_default()).into_owned()
    }

    pub(super) fn read_lines<T: DeserializeOwned>(&self, name: &str) -> Vec<T> {
        parse_lines(&self.read_text(name))
    }

    pub(super) fn append_to(&self, name: &str) -> io::Result<File> {
        self.open_or_replace(name, OFlags::WRONLY | OFlags::APPEND)
    }

    /// Replaces a file: whole, or not at all if it fails.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = format!("{name}.new");
        let rename = || renameat(&self.directory, &temporary, &self.directory, name);
        let write = || -> io::Result<()> {
            self.remove(&temporary)?;
            self.create(&temporary, OFlags::WRONLY)?.write_all(bytes)?;
            if rename() == Err(Errno::ISDIR) {
                self.remove(name)?;
                rename()?;
            }
            Ok(())
        };
        write().inspect_err(|_| {
            let _ = unlinkat(&self.directory, &temporary, AtFlags::empty());
        })
    }

    fn open_lock(&self, name: &str) -> Result<LockFile<'_>> {
        LockFile::open(self, name.to_owned()).with_context(|| format!("lock file {name}"))
    }

    pub(super) fn open_to_lock(&self, name: &str) -> io::Result<File> {
        self.open_or_replace(name, OFlags::RDWR)
    }

    /// Opens a file that is ours alone. It is made if it does not exist, and made again if it is not
    /// ours alone.
    fn open_or_replace(&self, name: &str, flags: OFlags) -> io::Result<File> {
        if let Some(file) = self.open_if_ours(name, flags | OFlags::CREATE)? {
            return Ok(file);
        }
        // Of two processes that find the file, the second must not remove the new file of the first.
        let _replacing = self.lock_directory();
        if let Some(file) = self.open_if_ours(name, flags | OFlags::CREATE)? {
            return Ok(file);
        }
        self.remove(name)?;
        // Not exclusively: another process may just have made it.
        let file = self.open_if_ours(name, flags | OFlags::CREATE)?;
        file.ok_or_else(|| io::Error::other("not a private file"))
    }

    fn create(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::CREATE | OFlags::EXCL;
        self.open_if_ours(name, flags)?.ok_or_else(|| io::Error::other("not a private file"))
    }

    /// Opens the file, without following a link. `None` if it is not a regular file, belongs to
    /// another user, is open to others or has a second name.
    fn open_if_ours(&self, name: &str, flags: OFlags) -> io::Result<Option<File>> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => file,
            // A link, a directory, a fifo or a socket, a file of another user (with
            // fs.protected_regular, or if we are not root), a device without a driver.
            Err(
                Errno::LOOP
                | Errno::ISDIR
                | Errno::NXIO
                | Errno::ACCESS
                | Errno::PERM
                | Errno::NODEV,
            ) if statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let stat = fstat(&file)?;
        let is_ours = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_uid == self.user
            && stat.st_mode & 0o7077 == 0
            && stat.st_nlink == 1;
        Ok(is_ours.then(|| File::from(file)))
    }

    /// Removes whatever has that name, if anything has.
    fn remove(&self, name: &str) -> io::Result<()> {
        let removed = match unlinkat(&self.directory, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => unlinkat(&self.directory, name, AtFlags::REMOVEDIR),
            removed => removed,
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                Err(io::Error::other("a directory has its name; delete it"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps other processes from replacing files in the directory. Goes ahead without the lock if
    /// it is held for too long.
    fn lock_directory(&self) -> DirectoryLock<'_> {
        let deadline = Deadline::after(REPLACE_TIMEOUT);
        while flock(&self.directory, FlockOperation::NonBlockingLockExclusive)
            == Err(Errno::WOULDBLOCK)
            && deadline.remaining().is_some()
        {
            thread::sleep(Duration::from_millis(5));
        }
        DirectoryLock(&self.directory)
    }
}

struct DirectoryLock<'a>(&'a OwnedFd);

impl Drop for DirectoryLock<'_> {
    fn drop(&mut self) {
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}

impl Records<'_> {
    pub(super) fn dir(&self) -> &StateDir {
        self.dir
    }

    pub fn get(&self, port: &Port) -> Option<Record> {
        self.dir.read(port)
    }

    /// Stores the record: whole or, when it fails, not at all.
    pub fn save(&self, record: &Record) -> Result<()> {
        let name = file_name(&record.port);
        let bytes = serde_json::to_vec_pretty(record)?;
        self.dir.replace(&name, &bytes).with_context(|| format!("state file {name}"))
    }

    pub(super) fn replace_lines<T: Serialize>(&self, name: &str, lines: &[T]) -> Result<()> {
        let mut text = String::new();
        for line in lines {
            text += &serde_json::to_string(line)?;
            text.push('\n');
        }
        self.dir.replace(name, text.as_bytes()).with_context(|| format!("state file {name}"))
    }

    pub fn delete(&self, port: &Port) -> Result<()> {
        let name = file_name(port);
        self.dir.remove(&name).with_context(|| format!("state file {name}"))
    }
}

/// Reads lines of JSON. A damaged line counts as absent.
pub(super) fn parse_lines<T: DeserializeOwned>(text: &str) -> Vec<T> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Whether `/tmp/hotplugger` or its stand-in seems to have a record of the port: a cheap test,
/// before anything is opened or believed.
pub fn may_have_record(root: &Root, device: &DevPath) -> bool {
    ["/tmp/", "/run/"].iter().any(|parent| {
        let path = [parent, NAME, "/port-", device.sysname(), ".json"].concat();
        root.path(path).symlink_metadata().is_ok()
    })
}

/// The record of the port, read without changing or waiting for anything.
pub fn read_unlocked(root: &Root, port: &Port) -> Option<Record> {
    StateDir::open_read_only(root)?.read(port)
}

/// All records, read without changing or waiting for anything, in the order of their ports.
pub fn read_all_unlocked(root: &Root) -> Vec<Record> {
    let Some(state) = StateDir::open_read_only(root) else { return Vec::new() };
    let Ok(entries) = rustix::fs::Dir::read_from(&state.directory) else { return Vec::new() };
    let names = entries.filter_map(Result::ok);
    let names = names.filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
    let port_of = |name: String| {
        let port = name.strip_prefix("port-")?.strip_suffix(".json")?.parse::<Port>().ok()?;
        (file_name(&port) == name).then_some(port)
    };
    let mut records: Vec<Record> =
        names.filter_map(port_of).filter_map(|port| state.read(&port)).collect();
    records.sort_by(|one, other| one.port.cmp(&other.port));
    records
}

/// Whether there is a state directory that this user may not read.
pub fn is_unreadable(root: &Root) -> bool {
    let is_there = |parent: &&str| root.path(format!("{parent}/{NAME}")).symlink_metadata().is_ok();
    ["/tmp", "/run"].iter().any(is_there) && StateDir::open_read_only(root).is_none()
}

fn file_name(port: &Port) -> String {
    format!("port-{port}.json")
}

/// Opens the state directory of that user.
fn open_in(root: &Root, parent: &str, user: u32, create: bool) -> Result<OwnedFd> {
    let parent_path = root.path(parent);
    let path = format!("{parent}/{NAME}");
    let at_parent = openat(
        CWD,
        &parent_path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .with_context(|| parent.to_owned())?;
    let stat = fstat(&at_parent).with_context(|| parent.to_owned())?;
    let sticky = stat.st_mode & Mode::SVTX.bits() != 0;
    if !([user, 0].contains(&stat.st_uid) && (sticky || stat.st_mode & 0o022 == 0)) {
        bail!("{parent} does not belong to root, or others may rename files in it");
    }
    if create {
        match mkdirat(&at_parent, NAME, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot make {path}")),
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match openat(&at_parent, NAME, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOTDIR | Errno::LOOP) => bail!("{path} is not a directory; delete it"),
        Err(error) => return Err(error).with_context(|| path.clone()),
    };
    let stat = fstat(&directory).with_context(|| path.clone())?;
    if stat.st_uid != user || stat.st_mode & 0o077 != 0 {
        bail!(
            "{path} is not safe (owner {}, mode {:o}); delete it",
            stat.st_uid,
            stat.st_mode & 0o7777
        );
    }
    Ok(directory)
}

/// A part of a file name that stands for the socket.
pub(super) fn name_of_socket(path: &Path) -> String {
    format!("{:016x}", fnv1a(path.as_os_str().as_bytes()))
}

/// The 64-bit FNV-1a hash: names a lock file after a path of any length and characters.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
