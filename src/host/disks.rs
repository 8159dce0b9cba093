//! Whether the host uses a disk of a USB device: mounted, swapped on, or part of a set that is.
//!
//! Decided from the facts that [`read`] gathers from sysfs and proc. A use that the kernel does not show there is
//! not seen: a member of an imported ZFS pool (it has no `holders`), and mounts that only a
//! container's mount namespace has.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::{fmt, fs};

use crate::devpath::DevPath;
use crate::host::sysfs::attribute;
use crate::root::Root;
use crate::text::sanitize;

/// The host's block devices, and those that it uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disks {
    /// All block devices, partitions too.
    pub blocks: Vec<Block>,
    /// The mounts. `None` if they cannot be read.
    pub mounts: Option<Vec<Mount>>,
    /// What is swapped on.
    pub swaps: Vec<Source>,
    /// The names of the block devices of each btrfs file system that is mounted somewhere.
    pub btrfs: Vec<Vec<String>>,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The kernel's name: `sda1`.
    pub name: String,
    /// Its place; a partition's is below its disk's.
    pub devpath: DevPath,
    /// Major and minor number, `8:1`.
    pub number: String,
    /// The name of a device-mapper device below `/dev/mapper`.
    pub mapped: Option<String>,
    /// The names of the devices that are made of it: device-mapper, md.
    pub holders: Vec<String>,
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The number of its device. btrfs and bcachefs have one of their own.
    pub number: String,
    /// What is mounted.
    pub sources: Vec<Source>,
    /// Where.
    pub at: String,
}

/// A file by which something names a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its path.
    pub path: String,
    /// The number of the block device there, if one is.
    pub number: Option<String>,
}

/// What a disk is used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// It is mounted.
    Mounted {
        /// The block device, the device's own.
        block: String,
        /// Where.
        at: String,
    },
    /// The host swaps on it.
    Swap {
        /// The block device, the device's own.
        block: String,
    },
    /// It has disks, and the mounts cannot be read.
    Unknown,
}

/// What the host uses a disk of the device at `devpath` for, if it does.
pub fn in_use(devpath: &DevPath, disks: &Disks) -> Option<Use> {
    let own = disks.blocks.iter().filter(|block| block.devpath.is_at_or_below(devpath));
    own.into_iter().find_map(|block| {
        let Some(mounts) = &disks.mounts else { return Some(Use::Unknown) };
        let made_of_it = dependents(block, disks);
        let is_one = |source: &Source| made_of_it.iter().any(|block| block.is_at(source));
        if disks.swaps.iter().any(is_one) {
            return Some(Use::Swap { block: block.name.clone() });
        }
        let mounted = mounts.iter().find(|mount| {
            made_of_it.iter().any(|block| block.number == mount.number)
                || mount.sources.iter().any(is_one)
        })?;
        Some(Use::Mounted { block: block.name.clone(), at: mounted.at.clone() })
    })
}

/// The block device and all that is made of it: device-mapper and md devices on it and theirs in
/// turn, the partitions of those, the other devices of a btrfs file system.
fn dependents<'a>(block: &'a Block, disks: &'a Disks) -> Vec<&'a Block> {
    let mut seen = BTreeSet::from([block.name.as_str()]);
    let mut found = vec![block];
    let mut next = 0;
    while let Some(&one) = found.get(next) {
        next += 1;
        let with_it = disks.btrfs.iter().filter(|devices| devices.contains(&one.name)).flatten();
        let names: Vec<&String> = one.holders.iter().chain(with_it).collect();
        let upper = disks.blocks.iter().filter(|upper| {
            // Partitions of a device that is made of the block are part of it; those of the disk
            // itself are read one by one.
            let is_partition = next > 1 && upper.devpath.is_at_or_below(&one.devpath);
            names.contains(&&upper.name) || is_partition
        });
        for upper in upper {
            if seen.insert(&upper.name) {
                found.push(upper);
            }
        }
    }
    found
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
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { block, at } => write!(
                f,
                "the host uses its disk, {} is mounted at {}; unmount it and plug it again",
                sanitize(block, 32),
                sanitize(at, 128)
            ),
            Self::Swap { block } => write!(
                f,
                "the host swaps on its disk, {}; swap it off and plug it again",
                sanitize(block, 32)
            ),
            Self::Unknown => f.write_str(
                "it has a disk, and it is unknown whether the host uses it: /proc/self/mountinfo \
                 is not to be read",
            ),
        }
    }
}

/// Gathers it; on a host where the device at `devpath` has no disk, nothing at all.
///
/// A file system is in use as long as any mount namespace has it mounted. udevd has one of its own
/// (systemd.exec(5), `PrivateMounts`), so the host's is read by way of process 1 and our own
/// besides: a mount that is left there keeps the disk busy as well. Without the right to read that
/// of process 1 (only root has it) our own counts as the host's, because only udevd starts us elsewhere.
pub fn read(root: &Root, devpath: &DevPath) -> Disks {
    // Of most devices that is all: a host may have dozens of disks, loop devices of snaps above all.
    let places = places(root);
    if !places.iter().any(|(_, place)| place.is_at_or_below(devpath)) {
        return Disks::default();
    }
    let tables = ["/proc/1/mountinfo", "/proc/self/mountinfo"];
    let text = |path: &str| {
        fs::read(root.path(path)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).ok()
    };
    let tables = tables.map(text);
    let mounts = tables.into_iter().flatten().reduce(|all, table| all + "\n" + &table);
    let swaps = text("/proc/swaps").unwrap_or_default();
    let swaps = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    Disks {
        blocks: places.into_iter().filter_map(|place| block(root, place)).collect(),
        mounts: mounts.map(|table| table.lines().filter_map(|line| mount(root, line)).collect()),
        swaps: swaps.map(|path| source(root, &unescape(path))).collect(),
        btrfs: btrfs(root),
    }
}

/// The name and the place of each block device.
fn places(root: &Root) -> Vec<(String, DevPath)> {
    let class = root.path("/sys/class/block");
    let place = |name: String| {
        // Links such as `../../devices/…/block/sda/sda1`, which say the DEVPATH.
        let link = fs::read_link(class.join(&name)).ok()?;
        let (_, place) = link.to_str()?.split_once("/devices/")?;
        Some((name, format!("/devices/{place}").parse().ok()?))
    };
    names(&class).into_iter().filter_map(place).collect()
}

fn block(root: &Root, (name, devpath): (String, DevPath)) -> Option<Block> {
    let directory = root.path("/sys/class/block").join(&name);
    Some(Block {
        devpath,
        number: attribute(directory.join("dev")).ok()?,
        mapped: attribute(directory.join("dm/name")).ok(),
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

/// Looks only into `/dev`: elsewhere may be a network file system that hangs.
fn source(root: &Root, path: &str) -> Source {
    let in_dev = path.starts_with("/dev/").then(|| root.path(path));
    let metadata = in_dev.and_then(|path| fs::metadata(path).ok());
    let number = metadata.filter(|metadata| metadata.file_type().is_block_device());
    let number = number.map(|metadata| {
        let device = metadata.rdev();
        format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
    });
    Source { path: path.to_owned(), number }
}

/// The members of each mounted btrfs (`/sys/fs/btrfs/UUID/devices`).
fn btrfs(root: &Root) -> Vec<Vec<String>> {
    let directory = root.path("/sys/fs/btrfs");
    names(&directory).into_iter().map(|id| names(&directory.join(id).join("devices"))).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
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
        in_use(&STICK.parse().unwrap(), disks).map(|it| match it {
            Use::Mounted { block, at } => format!("{block} {at}"),
            Use::Swap { block } => format!("{block} swap"),
            Use::Unknown => "unknown".to_owned(),
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
        let message = Use::Mounted { block: "sda1".to_owned(), at }.to_string();
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
    use super::in_use;
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
        assert_eq!(read(&root, &stick), Disks::default());
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
        assert_eq!(in_use(&stick, &read(&root, &stick)), Some(super::Use::Unknown));
        write("/proc/1/mountinfo", "22 1 8:16 / / rw - ext4 /dev/sdb rw\n");
        write("/proc/swaps", "Filename Type Size Used Priority\n");
        assert_eq!(in_use(&stick, &read(&root, &stick)), None);
        // In udevd's own namespace only, and on a device made of the stick.
        write("/sys/class/block/sda1/holders/dm-0", "");
        write(
            "/proc/self/mountinfo",
            "22 1 8:16 / / rw - ext4 /dev/sdb rw\n\
             36 22 253:0 / /mnt/my\\040stick rw,noatime master:1 - ext4 /dev/mapper/x rw\n",
        );
        let message = in_use(&stick, &read(&root, &stick)).unwrap().to_string();
        assert!(message.contains("sda1 is mounted at /mnt/my stick;"), "{message}");
        fs::remove_file(root.path("/proc/self/mountinfo")).unwrap();
        write(
            "/proc/swaps",
            "Filename Type\n/dev/sda1\\040(deleted) partition\n/dev/sda1 partition\n",
        );
        let message = in_use(&stick, &read(&root, &stick)).unwrap().to_string();
        assert!(message.contains("swaps on its disk, sda1"), "{message}");
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
