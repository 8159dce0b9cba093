//! Gathers from `/sys/class/block`, `/proc` and `/sys/fs/btrfs` what tells whether a disk is used.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::{Block, Disks, Mount, Source};
use crate::devpath::DevPath;
use crate::host::sysfs::attribute;
use crate::root::Root;

/// Gathers it; on a host where the device at `devpath` has no disk, nothing at all.
///
/// A file system is in use as long as any mount namespace has it mounted. udevd has one of its own
/// (systemd.exec(5), `PrivateMounts`), so the host's is read by way of process 1 and our own
/// besides: what is left mounted there keeps the disk busy as well. Without the right to read that
/// of process 1 (only root has it) our own is the host's, as nobody but udevd starts us elsewhere.
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
    let folder = root.path("/sys/class/block").join(&name);
    Some(Block {
        devpath,
        number: attribute(folder.join("dev")).ok()?,
        mapped: attribute(folder.join("dm/name")).ok(),
        holders: names(&folder.join("holders")),
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
    let folder = root.path("/sys/fs/btrfs");
    names(&folder).into_iter().map(|id| names(&folder.join(id).join("devices"))).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
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
    use super::super::in_use;
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
        assert_eq!(in_use(&stick, &read(&root, &stick)), Some(super::super::Use::Unknown));
        write("/proc/1/mountinfo", "22 1 8:16 / / rw - ext4 /dev/sdb rw\n");
        write("/proc/swaps", "Filename Type Size Used Priority\n");
        assert_eq!(in_use(&stick, &read(&root, &stick)), None);
        // In udevd's own namespace only, and on what is made of the stick.
        write("/sys/class/block/sda1/holders/dm-0", "");
        write(
            "/proc/self/mountinfo",
            "22 1 8:16 / / rw - ext4 /dev/sdb rw\n\
             36 22 253:0 / /mnt/my\\040stick rw,noatime master:1 - ext4 /dev/mapper/x rw\n",
        );
        let told = in_use(&stick, &read(&root, &stick)).unwrap().to_string();
        assert!(told.contains("sda1 is mounted at /mnt/my stick;"), "{told}");
        fs::remove_file(root.path("/proc/self/mountinfo")).unwrap();
        write(
            "/proc/swaps",
            "Filename Type\n/dev/sda1\\040(deleted) partition\n/dev/sda1 partition\n",
        );
        let told = in_use(&stick, &read(&root, &stick)).unwrap().to_string();
        assert!(told.contains("swaps on its disk, sda1"), "{told}");
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
