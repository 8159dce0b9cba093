//! Replaces the config file by one with another text: at once and whole, with a backup.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::file::ConfigFile;

/// Says who must come if this user cannot replace the file.
pub fn refuse_if_not_writable(file: &ConfigFile) -> Result<()> {
    let (_, folder) = target(file)?;
    if rustix::fs::access(&folder, rustix::fs::Access::WRITE_OK).is_err() {
        bail!("{}: this user cannot write it; run the command with sudo", file.path.display());
    }
    Ok(())
}

/// Writes `text` in place of the file, which becomes `<name>.bak` beside it. Mode and owner stay;
/// a link stays a link. Returns the backup's path.
pub fn replace(file: &ConfigFile, text: &str) -> Result<PathBuf> {
    let (path, folder) = target(file)?;
    let name = || format!("config {}", path.display());
    let mut backup: OsString = path.clone().into_os_string();
    backup.push(".bak");
    let backup = PathBuf::from(backup);
    let saved = copy(&file.text, &path, &folder).with_context(name)?;
    let new = copy(text.as_bytes(), &path, &folder).with_context(name)?;
    if fs::read(&path).with_context(name)? != file.text {
        bail!("{}: somebody changed it meanwhile; nothing was written", path.display());
    }
    saved.persist(&backup).map_err(|error| error.error).with_context(name)?;
    new.persist(&path).map_err(|error| error.error).with_context(name)?;
    // The new name is on the disk only with its folder.
    File::open(&folder).and_then(|folder| folder.sync_all()).with_context(name)?;
    Ok(backup)
}

/// The file itself, links resolved, and its folder.
fn target(file: &ConfigFile) -> Result<(PathBuf, PathBuf)> {
    let path =
        file.path.canonicalize().with_context(|| format!("config {}", file.path.display()))?;
    let folder = path.parent().context("the config is in no folder")?.to_path_buf();
    Ok((path, folder))
}

/// A file with these bytes in the folder, on the disk, with mode and owner of `like`.
fn copy(bytes: &[u8], like: &Path, folder: &Path) -> Result<tempfile::NamedTempFile> {
    let metadata = fs::metadata(like)?;
    let mut file = tempfile::Builder::new().prefix(".hotplugger-").tempfile_in(folder)?;
    file.write_all(bytes)?;
    let own = file.as_file().metadata()?;
    if (own.uid(), own.gid()) != (metadata.uid(), metadata.gid()) {
        fchown(file.as_file(), Some(metadata.uid()), Some(metadata.gid()))
            .context("its owner and group cannot be kept; run the command with sudo")?;
    }
    // After the owner: a change of owner clears bits of the mode.
    file.as_file().set_permissions(Permissions::from_mode(metadata.mode() & 0o7777))?;
    file.as_file().sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::Root;
    use std::os::unix::fs::symlink;

    fn open(path: &Path) -> ConfigFile {
        ConfigFile::find(&Root::at("/"), Some(path)).unwrap().unwrap()
    }

    #[test]
    fn mode_and_link_stay_and_the_old_text_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("real.yaml");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let link = dir.path().join("config.yaml");
        symlink("real.yaml", &link).unwrap();
        let backup = replace(&open(&link), "new").unwrap();
        assert_eq!(backup, dir.path().canonicalize().unwrap().join("real.yaml.bak"));
        assert_eq!(fs::read_to_string(&backup).unwrap(), "old");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert!(link.is_symlink());
        for file in [&path, &backup] {
            assert_eq!(fs::metadata(file).unwrap().mode() & 0o7777, 0o640);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing else is left");
        replace(&open(&link), "newer").unwrap();
        assert_eq!(fs::read_to_string(&backup).unwrap(), "new");
    }

    #[test]
    fn a_file_that_changed_meanwhile_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        fs::write(&path, "old").unwrap();
        let file = open(&path);
        fs::write(&path, "theirs").unwrap();
        let said = replace(&file, "ours").unwrap_err().to_string();
        assert!(said.contains("changed it meanwhile"), "{said}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
