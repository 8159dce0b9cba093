//! The state directory: `/tmp/hotplugger`, safe in a directory that everybody may write to.
//!
//! Everything is opened relative to the directory's own descriptor and no link is followed. A directory
//! that is not ours alone is not used, repaired or deleted: `/run/hotplugger`, where nobody else
//! can put one, takes its place.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, mkdirat, openat, renameat, unlinkat,
};
use rustix::io::Errno;

use super::lock::Lock;
use super::record::{Record, VERSION};
use crate::deadline::Deadline;
use crate::devpath::DevPath;
use crate::port::Port;
use crate::root::Root;

/// The directory's name in `/tmp` and `/run`.
const NAME: &str = "hotplugger";

/// No record is larger.
const MAX_BYTES: u64 = 1 << 20;

/// The state directory.
#[derive(Debug)]
pub struct StateDir {
    directory: OwnedFd,
    boot_id: String,
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
        let (directory, fallback) = match open_in(root, "/tmp", true) {
            Ok(directory) => (directory, None),
            Err(error) => {
                let why = format!("{error:#}");
                let directory = open_in(root, "/run", true).with_context(|| why.clone())?;
                (directory, Some(why))
            }
        };
        Ok(Self { directory, boot_id: boot_id(root), fallback })
    }

    /// Opens the directory to read in it. `None` if it does not exist or this user may not read it.
    pub(crate) fn open_read_only(root: &Root) -> Option<Self> {
        let directory =
            open_in(root, "/tmp", false).or_else(|_| open_in(root, "/run", false)).ok()?;
        Some(Self { directory, boot_id: boot_id(root), fallback: None })
    }

    /// The id of this boot.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Takes hold of the records, waiting for others until the deadline.
    pub fn records(&self, deadline: &Deadline) -> Result<Records<'_>> {
        let lock =
            Lock::acquire(self.open_lock("records.lock")?, deadline).context("state directory")?;
        Ok(Records { dir: self, _lock: lock })
    }

    /// The lock file for exchanges over the QMP socket at `path`: QEMU serves one client at a time.
    pub fn qmp_lock(&self, path: &Path) -> Result<File> {
        self.open_lock(&format!("qmp-{}.lock", name_of_socket(path)))
    }

    /// The lock file of the port's device.
    pub fn port_lock(&self, port: &Port) -> Result<File> {
        self.open_lock(&format!("hold-{port}.lock"))
    }

    fn read(&self, name: &str) -> Option<Record> {
        let file = self.open_to_read(name).ok()?;
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        (record.version == VERSION && record.boot_id == self.boot_id).then_some(record)
    }

    pub(super) fn open_to_read(&self, name: &str) -> io::Result<File> {
        self.open_file(name, OFlags::RDONLY)
    }

    pub(super) fn append_to(&self, name: &str) -> io::Result<File> {
        self.open_file(name, OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND)
    }

    /// Replaces a file: whole, or not at all if it fails.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = format!("{name}.new");
        let write = || -> io::Result<()> {
            let _ = unlinkat(&self.directory, &temporary, AtFlags::empty());
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            self.open_file(&temporary, flags)?.write_all(bytes)?;
            renameat(&self.directory, &temporary, &self.directory, name)?;
            Ok(())
        };
        write().inspect_err(|_| {
            let _ = unlinkat(&self.directory, &temporary, AtFlags::empty());
        })
    }

    fn open_lock(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE;
        self.open_file(name, flags).with_context(|| format!("lock file {name}"))
    }

    /// Opens a regular file that belongs to this user, and nothing else.
    fn open_file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR)?;
        if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("not a regular file"));
        }
        Ok(File::from(file))
    }
}

impl Records<'_> {
    /// The directory they are in.
    pub(super) fn dir(&self) -> &StateDir {
        self.dir
    }

    /// The record of the port. A file that is damaged, of another boot or of another version
    /// counts as absent.
    pub fn get(&self, port: &Port) -> Option<Record> {
        let file = self.dir.open_file(&file_name(port), OFlags::RDONLY).ok()?;
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        let valid =
            record.version == VERSION && record.boot_id == self.dir.boot_id && record.port == *port;
        valid.then_some(record)
    }

    /// Stores the record: whole or, when it fails, not at all.
    pub fn save(&self, record: &Record) -> Result<()> {
        let name = file_name(&record.port);
        let bytes = serde_json::to_vec_pretty(record)?;
        self.dir.replace(&name, &bytes).with_context(|| format!("state file {name}"))
    }

    /// Forgets the port.
    pub fn delete(&self, port: &Port) -> Result<()> {
        let name = file_name(port);
        match unlinkat(&self.dir.directory, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("state file {name}")),
        }
    }
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
    StateDir::open_read_only(root)?.read(&file_name(port)).filter(|record| record.port == *port)
}

/// All records, read without changing or waiting for anything, in the order of their ports.
pub fn read_all_unlocked(root: &Root) -> Vec<Record> {
    let Some(state) = StateDir::open_read_only(root) else { return Vec::new() };
    let Ok(entries) = rustix::fs::Dir::read_from(&state.directory) else { return Vec::new() };
    let names = entries.filter_map(Result::ok);
    let names = names.filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
    let of_port = |name: &String| {
        let port = name.strip_prefix("port-").and_then(|rest| rest.strip_suffix(".json"));
        port.is_some_and(|port| port.parse::<Port>().is_ok())
    };
    // As for one port: a record in another port's file does not count.
    let of_its_own =
        |name: &str, record: Record| (file_name(&record.port) == name).then_some(record);
    let mut records: Vec<Record> =
        names.filter(of_port).filter_map(|name| of_its_own(&name, state.read(&name)?)).collect();
    records.sort_by(|one, other| one.port.cmp(&other.port));
    records
}

/// Whether there is a state directory that this user may not read.
pub fn is_unreadable(root: &Root) -> bool {
    let directory = root.path(format!("/tmp/{NAME}"));
    directory.symlink_metadata().is_ok() && StateDir::open_read_only(root).is_none()
}

fn boot_id(root: &Root) -> String {
    let id = fs::read_to_string(root.path("/proc/sys/kernel/random/boot_id"));
    id.map(|id| id.trim().to_owned()).unwrap_or_default()
}

fn file_name(port: &Port) -> String {
    format!("port-{port}.json")
}

fn open_in(root: &Root, parent: &str, create: bool) -> Result<OwnedFd> {
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
    if !(owned(&stat, true) && (sticky || stat.st_mode & 0o022 == 0)) {
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
    if !owned(&stat, false) || stat.st_mode & 0o077 != 0 {
        bail!(
            "{path} is not safe (owner {}, mode {:o}); delete it",
            stat.st_uid,
            stat.st_mode & 0o7777
        );
    }
    Ok(directory)
}

/// Whether it belongs to the user who runs this, or, where `or_root`, to root.
fn owned(stat: &Stat, or_root: bool) -> bool {
    stat.st_uid == rustix::process::geteuid().as_raw() || (or_root && stat.st_uid == 0)
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
