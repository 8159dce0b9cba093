//! Whether the host uses a disk of a USB device, and who.
//!
//! Evidence in sysfs and proc names the user: a mount, swap, a loop device, a volume, a process. It
//! is not complete (other mount namespaces, ZFS, bcache), so the kernel is asked as well: an
//! exclusive open of a block device fails while anybody has claimed it (`block/bdev.c`:
//! `bd_prepare_to_claim`). The opens are kept, so that nothing claims the disk between the check and
//! the unbinding of host drivers.
//!
//! The opens have no side effects: with `O_NONBLOCK` the kernel neither needs a medium nor closes a
//! tray (`drivers/cdrom/cdrom.c`: `cdrom_open`), and udevd sends a `change` event only after a
//! device was open for writing.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::Duration;
use std::{fmt, fs, process, thread};

use rustix::fs::{FileType, Mode, OFlags, fstat, lstat, major, minor, open};
use rustix::io::Errno;

use crate::clock::Deadline;
use crate::devpath::DevPath;
use crate::host::sysfs::{attribute, names};
use crate::host::usbfs::{self, Program};
use crate::root::Root;
use crate::text::sanitize;
use crate::usb_device::DiskClaims;

/// How long a use is waited out that may end by itself: udevd and udisks open each new disk for a
/// moment, and so does another hotplugger.
const TRANSIENT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);

/// The host's block devices, and those that it uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Disks {
    /// All block devices, partitions too.
    blocks: Vec<Block>,
    /// `None` if the mounts cannot be read.
    mounts: Option<Vec<Mount>>,
    swaps: Vec<Source>,
    /// The names of the block devices of each btrfs file system that is mounted somewhere.
    btrfs: Vec<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    /// The kernel's name: `sda1`.
    name: String,
    /// A partition's is below its disk's.
    devpath: DevPath,
    /// Major and minor number, `8:1`.
    number: String,
    /// The name of a device-mapper device below `/dev/mapper`.
    mapped: Option<String>,
    /// The file or block device that a loop device is set up on.
    backing: Option<Source>,
    /// The names of the devices that are made of it: device-mapper, md.
    holders: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    /// The number of its device. btrfs and bcachefs have one of their own.
    number: String,
    sources: Vec<Source>,
    at: String,
}

/// A file by which something names a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    path: String,
    /// The number of the block device there, if one is.
    number: Option<String>,
}

/// The use that the host makes of a disk. `block` is the device's own block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskUse {
    Mounted {
        block: String,
        at: String,
        /// A process in the mount namespace that has the mount, if it is not the host's.
        namespace: Option<Program>,
    },
    Swap {
        block: String,
    },
    /// A loop device is set up on it.
    Loop {
        block: String,
        device: String,
    },
    /// A device-mapper or md device that is made of it is in use.
    Volume {
        block: String,
        device: String,
    },
    Open {
        block: String,
        program: Program,
    },
    /// The kernel has claimed it for a user that is not found.
    Claimed {
        block: String,
    },
    /// It has disks, and the mounts cannot be read.
    Unknown,
}

/// Claims all disks of the device at `devpath`, so that nothing else can while the result lives.
///
/// With `exclusively` false, only evidence is read and nothing is claimed.
///
/// # Errors
///
/// How the host uses a disk.
pub fn claim(root: &Root, devpath: &DevPath, exclusively: bool) -> Result<DiskClaims, DiskUse> {
    // Most devices have no disk, and a host may have dozens, loop devices of snaps above all.
    if !locations(root).iter().any(|(_, location)| location.is_at_or_below(devpath)) {
        return Ok(DiskClaims::default());
    }
    let deadline = Deadline::after(TRANSIENT);
    loop {
        let disks = read(root);
        if let Some(used) = disks.known_use(devpath) {
            return Err(used);
        }
        if !exclusively {
            return Ok(DiskClaims::default());
        }
        let own = || disks.own(devpath);
        let claimed = disks.claim(root, devpath).and_then(|claims| {
            let opened = own().find_map(|block| disks.opened(root, block));
            opened.map_or(Ok(claims), Err)
        });
        match claimed {
            Ok(claims) => return Ok(DiskClaims::new(claims)),
            Err(used) if deadline.remaining().is_none() => return Err(used),
            Err(_) => thread::sleep(POLL),
        }
    }
}

enum Opened {
    Held(OwnedFd),
    Busy,
    /// There is no medium, or no such device any more.
    Nothing,
}

impl Disks {
    fn own(&self, devpath: &DevPath) -> impl Iterator<Item = &Block> {
        self.blocks.iter().filter(move |block| block.devpath.is_at_or_below(devpath))
    }

    /// The use that sysfs and proc show.
    fn known_use(&self, devpath: &DevPath) -> Option<DiskUse> {
        self.own(devpath).find_map(|block| {
            let Some(mounts) = &self.mounts else { return Some(DiskUse::Unknown) };
            let made_of_it = self.dependents(block);
            let name = || block.name.clone();
            let is_one = |source: &Source| made_of_it.iter().any(|block| block.is_at(source));
            if self.swaps.iter().any(is_one) {
                return Some(DiskUse::Swap { block: name() });
            }
            if let Some(mount) = mounts.iter().find(|mount| mount.is_of(&made_of_it)) {
                let at = mount.at.clone();
                return Some(DiskUse::Mounted { block: name(), at, namespace: None });
            }
            let loop_device = made_of_it.iter().find(|block| block.backing.is_some())?;
            Some(DiskUse::Loop { block: name(), device: loop_device.name.clone() })
        })
    }

    /// The block device and all that is made of it: loop, device-mapper and md devices on it and
    /// theirs in turn, the partitions of those, the other devices of a btrfs file system.
    fn dependents<'a>(&'a self, block: &'a Block) -> Vec<&'a Block> {
        let mut seen = BTreeSet::from([block.name.as_str()]);
        let mut found = vec![block];
        let mut next = 0;
        while let Some(&one) = found.get(next) {
            next += 1;
            let with_it = self.btrfs.iter().filter(|devices| devices.contains(&one.name)).flatten();
            let names: Vec<&String> = one.holders.iter().chain(with_it).collect();
            let upper = self.blocks.iter().filter(|upper| {
                // Partitions of a device that is made of the block are part of it; those of the disk
                // itself are read one by one.
                let is_partition = next > 1 && upper.devpath.is_at_or_below(&one.devpath);
                let is_loop = upper.backing.as_ref().is_some_and(|backing| one.is_at(backing));
                names.contains(&&upper.name) || is_partition || is_loop
            });
            for upper in upper {
                if seen.insert(&upper.name) {
                    found.push(upper);
                }
            }
        }
        found
    }

    /// Claims each disk. A claim on a whole disk covers its partitions. Of a disk that is claimed
    /// already, the part that is claimed is determined.
    fn claim(&self, root: &Root, devpath: &DevPath) -> Result<Vec<OwnedFd>, DiskUse> {
        let mut claims = Vec::new();
        let is_whole = |block: &&Block| {
            !self.own(devpath).any(|other| {
                other.name != block.name && block.devpath.is_at_or_below(&other.devpath)
            })
        };
        for disk in self.own(devpath).filter(is_whole) {
            match open_exclusively(root, disk) {
                Opened::Held(claim) => claims.push(claim),
                Opened::Nothing => {}
                Opened::Busy => {
                    let partitions = self.own(&disk.devpath).filter(|part| part.name != disk.name);
                    let mut claimed = Vec::new();
                    for partition in partitions {
                        match open_exclusively(root, partition) {
                            Opened::Held(claim) => claims.push(claim),
                            Opened::Nothing => {}
                            Opened::Busy => claimed.push(partition),
                        }
                    }
                    if claimed.is_empty() {
                        claimed.push(disk);
                    }
                    for block in claimed {
                        claims.extend(self.claim_idle_volumes(root, block)?);
                    }
                }
            }
        }
        Ok(claims)
    }

    /// Claims the volumes and arrays that are made of the block device. The host assembles them by
    /// itself when it sees the disk, so that alone is no use.
    fn claim_idle_volumes(&self, root: &Root, block: &Block) -> Result<Vec<OwnedFd>, DiskUse> {
        let made_of_it = self.dependents(block);
        let volumes: Vec<&&Block> = made_of_it.iter().skip(1).collect();
        if volumes.is_empty() {
            return Err(self.user(root, block, &made_of_it));
        }
        let mut claims = Vec::new();
        // One that other volumes are made of is claimed by these.
        for volume in volumes.iter().filter(|volume| volume.holders.is_empty()) {
            match open_exclusively(root, volume) {
                Opened::Held(claim) => claims.push(claim),
                // Its partitions are claimed by themselves.
                Opened::Busy if volumes.iter().any(|part| part.is_part_of(volume)) => {}
                Opened::Nothing => {}
                Opened::Busy => return Err(self.user(root, block, &made_of_it)),
            }
        }
        Ok(claims)
    }

    /// Who uses the block device, or a volume on it, that the kernel has claimed.
    fn user(&self, root: &Root, block: &Block, made_of_it: &[&Block]) -> DiskUse {
        let name = block.name.clone();
        if let Some((at, program)) = mount_elsewhere(root, made_of_it) {
            return DiskUse::Mounted { block: name, at, namespace: Some(program) };
        }
        if let Some(used) = self.opened(root, block) {
            return used;
        }
        match made_of_it {
            [_, .., volume] => {
                let device = volume.mapped.as_ref().unwrap_or(&volume.name);
                DiskUse::Volume { block: name, device: device.clone() }
            }
            _ => DiskUse::Claimed { block: name },
        }
    }

    /// The process that has the block device open, or a volume on it. A raw open claims nothing.
    fn opened(&self, root: &Root, block: &Block) -> Option<DiskUse> {
        let made_of_it = self.dependents(block);
        let program = program_with(root, &made_of_it)?;
        Some(DiskUse::Open { block: block.name.clone(), program })
    }
}

fn open_exclusively(root: &Root, block: &Block) -> Opened {
    // The kernel writes `!` for `/` in names (`drivers/base/core.c`).
    let path = root.path(format!("/dev/{}", block.name.replace('!', "/")));
    let is_it = |stat: &rustix::fs::Stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice
            && number(stat.st_rdev) == block.number
    };
    // Opening another device could have effects.
    if !lstat(&path).is_ok_and(|stat| is_it(&stat)) {
        return Opened::Nothing;
    }
    let flags =
        OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match open(&path, flags, Mode::empty()) {
        Ok(file) if fstat(&file).is_ok_and(|stat| is_it(&stat)) => Opened::Held(file),
        Err(Errno::BUSY) => Opened::Busy,
        Ok(_) | Err(_) => Opened::Nothing,
    }
}

fn number(device: u64) -> String {
    format!("{}:{}", major(device), minor(device))
}

/// A mount of one of the block devices in a mount namespace that is neither ours nor the host's, with
/// a process in it.
fn mount_elsewhere(root: &Root, blocks: &[&Block]) -> Option<(String, Program)> {
    let mut seen = BTreeSet::new();
    usbfs::pids(root).into_iter().find_map(|pid| {
        let namespace = fs::read_link(root.path(format!("/proc/{pid}/ns/mnt"))).ok()?;
        if !seen.insert(namespace) {
            return None;
        }
        let table = fs::read(root.path(format!("/proc/{pid}/mountinfo"))).ok()?;
        let table = String::from_utf8_lossy(&table);
        let mut mounts = table.lines().filter_map(|line| mount(root, line));
        let mount = mounts.find(|mount| mount.is_of(blocks))?;
        Some((mount.at, usbfs::program(root, pid)))
    })
}

/// A process other than this one that has one of the block devices open.
fn program_with(root: &Root, blocks: &[&Block]) -> Option<Program> {
    let pids = usbfs::pids(root).into_iter().filter(|pid| *pid != process::id());
    let has_open = |pid: &u32| {
        usbfs::open_files(root, *pid).into_iter().flatten().any(|(file, target)| {
            // Other files may be on a file system that hangs.
            let metadata = target.starts_with("/dev").then(|| fs::metadata(file).ok()).flatten();
            metadata.is_some_and(|metadata| {
                metadata.file_type().is_block_device()
                    && blocks.iter().any(|block| block.number == number(metadata.rdev()))
            })
        })
    };
    pids.into_iter().find(has_open).map(|pid| usbfs::program(root, pid))
}

impl Block {
    /// Whether the file names this block device. Its name is enough where the file is not to be
    /// read, as in another mount namespace's `/dev`.
    fn is_at(&self, source: &Source) -> bool {
        if let Some(number) = &source.number {
            return *number == self.number;
        }
        let below = |directory: &str| source.path.strip_prefix(directory);
        below("/dev/") == Some(&self.name)
            || self.mapped.as_deref().is_some_and(|name| below("/dev/mapper/") == Some(name))
    }

    fn is_part_of(&self, disk: &Self) -> bool {
        self.name != disk.name && self.devpath.is_at_or_below(&disk.devpath)
    }
}

impl Mount {
    fn is_of(&self, blocks: &[&Block]) -> bool {
        blocks.iter().any(|block| block.number == self.number)
            || self.sources.iter().any(|source| blocks.iter().any(|block| block.is_at(source)))
    }
}

impl fmt::Display for DiskUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |text: &str| sanitize(text, 64);
        let prefix = if *self == Self::Unknown {
            "it is unknown whether the host uses its disk: "
        } else {
            "the host uses its disk: "
        };
        f.write_str(prefix)?;
        let action = match self {
            Self::Mounted { block, at, namespace } => {
                write!(f, "{} is mounted at {}", name(block), sanitize(at, 128))?;
                if let Some(program) = namespace {
                    write!(f, " in the mount namespace of {program}")?;
                }
                "unmount it"
            }
            Self::Swap { block } => {
                write!(f, "{} is swap space", name(block))?;
                "run swapoff"
            }
            Self::Loop { block, device } => {
                write!(f, "the loop device {} is set up on {}", name(device), name(block))?;
                "detach the loop device"
            }
            Self::Volume { block, device } => {
                write!(
                    f,
                    "the volume {}, which is made of {}, is in use",
                    name(device),
                    name(block)
                )?;
                "close the volume"
            }
            Self::Open { block, program } => {
                write!(f, "{program} has {} open", name(block))?;
                "stop the program"
            }
            Self::Claimed { block } => {
                write!(
                    f,
                    "the kernel has claimed {} (bcache, ZFS, a journal, or a mount that is not shown)",
                    name(block)
                )?;
                "release it"
            }
            Self::Unknown => {
                f.write_str("/proc/self/mountinfo cannot be read")?;
                "mount /proc"
            }
        };
        write!(f, "; {action} and run `hotplugger sync`")
    }
}

/// Reads the block devices and their uses.
///
/// A file system is in use as long as any mount namespace has it mounted. udevd has one of its own
/// (systemd.exec(5), `PrivateMounts`), so the host's is read by way of process 1 and our own
/// besides. Without the right to read that of process 1 (only root has it) our own counts as the
/// host's, because only udevd starts us elsewhere. The exclusive opens reveal mounts in others.
fn read(root: &Root) -> Disks {
    let tables = ["/proc/1/mountinfo", "/proc/self/mountinfo"];
    let text = |path: &str| {
        fs::read(root.path(path)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).ok()
    };
    let tables = tables.map(text);
    let mounts = tables.into_iter().flatten().reduce(|all, table| all + "\n" + &table);
    let swaps = text("/proc/swaps").unwrap_or_default();
    let swaps = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    Disks {
        blocks: locations(root).into_iter().filter_map(|block| read_block(root, block)).collect(),
        mounts: mounts.map(|table| table.lines().filter_map(|line| mount(root, line)).collect()),
        swaps: swaps.map(|path| source(root, &unescape(path))).collect(),
        btrfs: btrfs(root),
    }
}

fn locations(root: &Root) -> Vec<(String, DevPath)> {
    let class = root.path("/sys/class/block");
    let location = |name: String| {
        // Links such as `../../devices/…/block/sda/sda1`.
        let link = fs::read_link(class.join(&name)).ok()?;
        let (_, devpath) = link.to_str()?.split_once("/devices/")?;
        Some((name, format!("/devices/{devpath}").parse().ok()?))
    };
    names(&class).into_iter().filter_map(location).collect()
}

fn read_block(root: &Root, (name, devpath): (String, DevPath)) -> Option<Block> {
    let directory = root.path("/sys/class/block").join(&name);
    let backing = attribute(directory.join("loop/backing_file")).ok();
    Some(Block {
        devpath,
        number: attribute(directory.join("dev")).ok()?,
        mapped: attribute(directory.join("dm/name")).ok(),
        backing: backing.map(|path| source(root, &path)),
        holders: names(&directory.join("holders")),
        name,
    })
}

/// One line of mountinfo (`Documentation/filesystems/proc.rst`, 3.5):
/// `36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw`.
fn mount(root: &Root, line: &str) -> Option<Mount> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(2);
    let number = fields.next()?.to_owned();
    let at = unescape(fields.nth(1)?);
    // bcachefs names all its devices, with colons between them.
    let sources = unescape(file_system.split(' ').nth(1)?);
    let sources = sources.split(':').filter(|source| source.starts_with('/'));
    // Only a number that stands for no block device (major 0) leaves it to the source.
    let sources = if number.starts_with("0:") {
        sources.map(|path| source(root, path)).collect()
    } else {
        Vec::new()
    };
    Some(Mount { number, sources, at })
}

/// Only files in `/dev` are read: others may be on a network file system that hangs.
fn source(root: &Root, path: &str) -> Source {
    let in_dev = path.starts_with("/dev/").then(|| root.path(path));
    let metadata = in_dev.and_then(|path| fs::metadata(path).ok());
    let block = metadata.filter(|metadata| metadata.file_type().is_block_device());
    Source { path: path.to_owned(), number: block.map(|metadata| number(metadata.rdev())) }
}

/// The members of each mounted btrfs (`/sys/fs/btrfs/UUID/devices`).
fn btrfs(root: &Root) -> Vec<Vec<String>> {
    let directory = root.path("/sys/fs/btrfs");
    names(&directory).into_iter().map(|id| names(&directory.join(id).join("devices"))).collect()
}

/// The kernel writes blanks, line ends and backslashes as octal numbers (`fs/seq_file.c`:
/// `mangle_path`).
fn unescape(text: &str) -> String {
    let mut pieces = text.split('\\');
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let code = piece.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(code) if code.is_ascii() => {
                plain.push(char::from(code));
                plain.push_str(&piece[3..]);
            }
            _ => {
                plain.push('\\');
                plain.push_str(piece);
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STICK: &str = "/devices/x/usb2/2-1";

    fn block(name: &str, place: &str, number: &str, holders: &[&str]) -> Block {
        Block {
            name: name.to_owned(),
            devpath: format!("/devices/{place}").parse().unwrap(),
            number: number.to_owned(),
            mapped: None,
            backing: None,
            holders: holders.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    /// A stick with two partitions; on the second one a mapped device, with the host's disk beside.
    fn disks() -> Disks {
        let scsi = "x/usb2/2-1/2-1:1.0/host0/target0:0:0/0:0:0:0/block/sda";
        let mut luks = block("dm-0", "virtual/block/dm-0", "253:0", &[]);
        luks.mapped = Some("secret".to_owned());
        Disks {
            blocks: vec![
                block("sda", scsi, "8:0", &[]),
                block("sda1", &format!("{scsi}/sda1"), "8:1", &[]),
                block("sda2", &format!("{scsi}/sda2"), "8:2", &["dm-0"]),
                block("sdb", "x/usb2/2-10/2-10:1.0/block/sdb", "8:16", &[]),
                luks,
            ],
            mounts: Some(Vec::new()),
            ..Disks::default()
        }
    }

    fn source(path: &str, number: Option<&str>) -> Source {
        Source { path: path.to_owned(), number: number.map(str::to_owned) }
    }

    fn mount(number: &str, path: &str) -> Vec<Mount> {
        let sources = vec![source(path, None)];
        vec![Mount { number: number.to_owned(), sources, at: "/media/x".to_owned() }]
    }

    fn used(disks: &Disks) -> Option<String> {
        disks.known_use(&STICK.parse().unwrap()).map(|it| match it {
            DiskUse::Mounted { block, at, .. } => format!("{block} {at}"),
            DiskUse::Swap { block } => format!("{block} swap"),
            DiskUse::Loop { block, device } => format!("{block} {device}"),
            DiskUse::Unknown => "unknown".to_owned(),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn mounts_and_swap_of_its_own_count_and_of_others_do_not() {
        let mut disks = disks();
        assert_eq!(used(&disks), None);
        disks.mounts = Some(mount("8:16", "/dev/sdb"));
        disks.swaps = vec![source("/dev/sdb", None), source("/swapfile", None)];
        assert_eq!(used(&disks), None);
        disks.mounts = Some(mount("8:1", "/dev/disk/by-label/x"));
        assert_eq!(used(&disks).as_deref(), Some("sda1 /media/x"));
        disks.mounts = Some(mount("8:0", "/dev/sda"));
        assert_eq!(used(&disks).as_deref(), Some("sda /media/x"));
        disks.swaps = vec![source("/dev/sda2", None)];
        disks.mounts = Some(Vec::new());
        assert_eq!(used(&disks).as_deref(), Some("sda2 swap"));
        disks.swaps = vec![source("/dev/disk/by-uuid/1", Some("8:2"))];
        assert_eq!(used(&disks).as_deref(), Some("sda2 swap"));
        disks.mounts = None;
        assert_eq!(used(&disks).as_deref(), Some("unknown"));
    }

    #[test]
    fn what_is_made_of_it_counts_to_any_depth() {
        let mut disks = disks();
        disks.swaps = vec![source("/dev/mapper/secret", None)];
        assert_eq!(used(&disks).as_deref(), Some("sda2 swap"));
        disks.swaps.clear();
        disks.blocks[4].holders = vec!["md0".to_owned()];
        disks.blocks.push(block("md0", "virtual/block/md0", "9:0", &["dm-0"]));
        disks.blocks.push(block("md0p1", "virtual/block/md0/md0p1", "259:0", &[]));
        assert_eq!(used(&disks), None, "and a circle ends");
        disks.mounts = Some(mount("259:0", "/dev/md0p1"));
        assert_eq!(used(&disks).as_deref(), Some("sda2 /media/x"));
    }

    #[test]
    fn loop_devices_count_to_any_depth() {
        let mut disks = disks();
        let loop_on = |name: &str, number: &str, backing: Source| {
            let mut device = block(name, &format!("virtual/block/{name}"), number, &[]);
            device.backing = Some(backing);
            device
        };
        disks.blocks.push(loop_on("loop0", "7:0", source("/dev/sdb", Some("8:16"))));
        disks.blocks.push(loop_on("loop1", "7:1", source("/home/image", None)));
        assert_eq!(used(&disks), None);
        disks.blocks.push(loop_on("loop2", "7:2", source("/dev/disk/by-id/x", Some("8:1"))));
        assert_eq!(used(&disks).as_deref(), Some("sda1 loop2"));
        disks.blocks.push(loop_on("loop3", "7:3", source("/dev/loop2", None)));
        disks.mounts = Some(mount("7:3", "/dev/loop3"));
        assert_eq!(used(&disks).as_deref(), Some("sda1 /media/x"));
    }

    #[test]
    fn a_file_system_with_a_number_of_its_own_is_known_by_its_source_and_its_members() {
        let mut disks = disks();
        disks.mounts = Some(mount("0:45", "/dev/sda1"));
        assert_eq!(used(&disks).as_deref(), Some("sda1 /media/x"));
        disks.mounts = Some(mount("0:45", "/dev/sdb"));
        assert_eq!(used(&disks), None);
        disks.btrfs = vec![vec!["sdb".to_owned(), "sda1".to_owned()]];
        assert_eq!(used(&disks).as_deref(), Some("sda1 /media/x"));
    }

    #[test]
    fn a_mount_point_cannot_steer_the_terminal() {
        let at = "/media/\u{1b}[2J\n".to_owned();
        let message =
            DiskUse::Mounted { block: "sda1".to_owned(), at, namespace: None }.to_string();
        assert!(message.contains("sda1 is mounted at /media/\u{fffd}[2J"), "{message}");
    }

    proptest! {
        /// However devices stand on one another, a mount is found exactly when a path of holders
        /// leads to it.
        #[test]
        fn a_mount_is_found_when_a_path_of_holders_leads_to_it(
            edges in prop::collection::vec((0..6usize, 0..6usize), 0..12),
            mounted in 0..6usize,
        ) {
            let blocks = (0..6).map(|at| {
                let holders = edges.iter().filter(|(from, _)| *from == at);
                let place = if at == 0 { "x/usb2/2-1/block/b0".to_owned() } else { format!("virtual/block/b{at}") };
                Block {
                    name: format!("b{at}"),
                    devpath: format!("/devices/{place}").parse().unwrap(),
                    number: format!("9:{at}"),
                    mapped: None,
                    backing: None,
                    holders: holders.map(|(_, to)| format!("b{to}")).collect(),
                }
            }).collect();
            let disks = Disks { blocks, mounts: Some(mount(&format!("9:{mounted}"), "none")), ..Disks::default() };
            let mut reached = [true, false, false, false, false, false];
            for _ in 0..6 {
                for (from, to) in &edges {
                    reached[*to] |= reached[*from];
                }
            }
            prop_assert_eq!(used(&disks).is_some(), reached[mounted]);
        }
    }
}

#[cfg(test)]
mod read_tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_mount_is_found_from_sysfs_and_proc() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let write = |path: &str, text: &str| {
            let path = root.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let stick: DevPath = "/devices/x/usb2/2-1".parse().unwrap();
        assert_eq!(read(&root), Disks::default());
        fs::create_dir_all(root.path("/sys/class/block")).unwrap();
        for (name, place, number) in [
            ("sda", "x/usb2/2-1/2-1:1.0/host0/block/sda", "8:0"),
            ("sda1", "x/usb2/2-1/2-1:1.0/host0/block/sda/sda1", "8:1"),
            ("dm-0", "virtual/block/dm-0", "253:0"),
        ] {
            write(&format!("/sys/devices/{place}/dev"), &format!("{number}\n"));
            let link = root.path(format!("/sys/class/block/{name}"));
            symlink(format!("../../devices/{place}"), link).unwrap();
        }
        assert_eq!(read(&root).known_use(&stick), Some(DiskUse::Unknown));
        write("/proc/1/mountinfo", "22 1 8:16 / / rw - ext4 /dev/sdb rw\n");
        write("/proc/swaps", "Filename Type Size Used Priority\n");
        assert_eq!(read(&root).known_use(&stick), None);
        // In udevd's own namespace only, and on a device made of the stick.
        write("/sys/class/block/sda1/holders/dm-0", "");
        write(
            "/proc/self/mountinfo",
            "22 1 8:16 / / rw - ext4 /dev/sdb rw\n\
             36 22 253:0 / /mnt/my\\040stick rw,noatime master:1 - ext4 /dev/mapper/x rw\n",
        );
        let message = read(&root).known_use(&stick).unwrap().to_string();
        assert!(message.contains("sda1 is mounted at /mnt/my stick;"), "{message}");
        fs::remove_file(root.path("/proc/self/mountinfo")).unwrap();
        write(
            "/proc/swaps",
            "Filename Type\n/dev/sda1\\040(deleted) partition\n/dev/sda1 partition\n",
        );
        let message = read(&root).known_use(&stick).unwrap().to_string();
        assert!(message.contains("sda1 is swap space"), "{message}");
    }

    proptest! {
        #[test]
        fn any_table_is_survived(line in "[0-9: /-]{0,10}( - )?[\\\\0-9a-z/é: ]{0,20}") {
            let _ = mount(&Root::at("/nowhere"), &line);
            let _ = unescape(&line);
        }

        #[test]
        fn unescaping_undoes_the_kernels_escapes(text in "[a-z \\\\\t]{0,12}") {
            let escaped = text.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011");
            prop_assert_eq!(unescape(&escaped), text);
        }
    }
}
