//! The file that a rule starts, and whether it is this program.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::owners;
use crate::check::program::{ProgramFound, ProgramLook};
use crate::permissions::weakness_on_the_way;
use crate::root::Root;

pub(super) fn look(root: &Root, named: &str) -> ProgramLook {
    // udev looks for a relative path in its own folder (udev(7), RUN).
    let path = root.path(Path::new("/usr/lib/udev").join(named));
    let this = env::current_exe().unwrap_or_else(|_| PathBuf::from("hotplugger"));
    let found = match fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() && metadata.mode() & 0o111 != 0 => {
            ProgramFound::Program {
                weakness: weakness_on_the_way(&path, &owners(root)).unwrap_or_default(),
                same: same(&path, &this).ok(),
            }
        }
        Ok(_) => ProgramFound::NotExecutable,
        Err(_) => ProgramFound::Missing,
    };
    ProgramLook { path, this, found }
}

fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let (of_one, of_other) = (fs::metadata(one)?, fs::metadata(other)?);
    if (of_one.dev(), of_one.ino()) == (of_other.dev(), of_other.ino()) {
        return Ok(true);
    }
    if of_one.len() != of_other.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (BufReader::new(File::open(one)?), File::open(other)?);
    let (mut left, mut right) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let read = one.read(&mut left)?;
        if read == 0 {
            return Ok(true);
        }
        other.read_exact(&mut right[..read])?;
        if left[..read] != right[..read] {
            return Ok(false);
        }
    }
}
