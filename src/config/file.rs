//! The config file: where it is, whether it can be trusted, its text.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::parse::ConfigError;
use super::section::parse_sections;
use super::{Config, Spelling};
use crate::monitor::Monitor;
use crate::permissions::{PermissionIssue, PermissionKind, open_file_issue};
use crate::root::Root;

pub const VARIABLE: &str = "HOTPLUGGER_CONFIG";

const MAX_BYTES: u64 = 1 << 20;

/// A config file that was found and read, not yet parsed.
#[derive(Debug)]
pub struct ConfigFile {
    pub path: PathBuf,
    pub text: Vec<u8>,
    metadata: Metadata,
    root: Root,
}

impl ConfigFile {
    /// The first place that is searched for the config, unless a path is given.
    pub const SYSTEM: &str = "/etc/hotplugger/config.yaml";

    /// Finds and reads the config: `given`, else `$HOTPLUGGER_CONFIG`, else
    /// `/etc/hotplugger/config.yaml`, else `config.yaml` beside the program.
    ///
    /// `None` if no path is given and the last two places have no file: then nothing is
    /// configured.
    pub fn find(root: &Root, given: Option<&Path>) -> Result<Option<Self>> {
        let named = given.map(Path::to_path_buf);
        let named = named
            .or_else(|| env::var_os(VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from));
        if let Some(path) = named {
            let path = root.path(path);
            return match Self::read(root, &path)? {
                Some(file) => Ok(Some(file)),
                None => bail!("{}: there is no such config file", path.display()),
            };
        }
        if let Some(file) = Self::read(root, &root.path(Self::SYSTEM))? {
            return Ok(Some(file));
        }
        match env::current_exe() {
            Ok(program) => Self::read(root, &program.with_file_name("config.yaml")),
            Err(_) => Ok(None),
        }
    }

    /// Reads the file at `path`. `None` if it does not exist.
    fn read(root: &Root, path: &Path) -> Result<Option<Self>> {
        let read = || -> io::Result<(Vec<u8>, Metadata)> {
            // Not blocking, so that a FIFO in its place cannot hold udev.
            let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
            let file = File::options().read(true).custom_flags(nonblock).open(path)?;
            let metadata = file.metadata()?;
            if !metadata.is_file() {
                return Err(io::Error::other("this is not a regular file"));
            }
            // With room for all of it and a byte more, two reads take it and find its end.
            let size = metadata.len().min(MAX_BYTES) + 1;
            let mut text = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
            file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
            if text.len() as u64 > MAX_BYTES {
                return Err(io::Error::other("larger than 1 MiB"));
            }
            Ok((text, metadata))
        };
        match read() {
            Ok((text, metadata)) => {
                Ok(Some(Self { path: path.to_path_buf(), text, metadata, root: root.clone() }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("config {}", path.display())),
        }
    }

    /// Parses the text. A relative socket is in the directory of the file.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let error = |line, message| Err(ConfigError::at(Some(line), Some(1), message));
        if is_utf_16(&self.text) {
            return error(1, "the file is UTF-16 text: save it as UTF-8");
        }
        let text = match std::str::from_utf8(&self.text) {
            Ok(text) => text,
            Err(invalid) => {
                let before = &self.text[..invalid.valid_up_to()];
                let lines = memchr::memchr_iter(b'\n', before).count();
                return error(lines + 1, "not UTF-8 text: save the file as UTF-8");
            }
        };
        let mut config = parse_sections(text)?;
        for section in &mut config.broken {
            section.path.clone_from(&self.path);
        }
        for vm in &mut config.virtual_machines {
            let Monitor::Socket(path) = &mut vm.monitor else { continue };
            if path.is_relative() {
                let written = path.display().to_string();
                *path = self.root.strip(&self.path).with_file_name(&*path);
                vm.spellings.push(Spelling { written, meant: path.display().to_string() });
            }
        }
        Ok(config)
    }

    /// Parses the text. The error reads `PATH:LINE:COLUMN: MESSAGE`.
    pub fn parse(&self) -> Result<Config> {
        self.config().map_err(|error| anyhow::anyhow!("{}:{error}", self.path.display()))
    }

    /// Parses the text of a file that only root can change, because it decides which devices go to
    /// VMs by it.
    ///
    /// # Errors
    ///
    /// Others can change the file, or it does not parse.
    pub fn parse_trusted(&self) -> Result<Config> {
        self.refuse_if_others_can_write()?;
        self.parse()
    }

    /// Refuses a file that others than root (and the user who runs this) could change, be it the
    /// file itself or a directory on the way to it: it decides to whom root hands devices.
    fn refuse_if_others_can_write(&self) -> Result<()> {
        let owners = [0, rustix::process::geteuid().as_raw()];
        let Some(issue) = self.issue(&owners)? else { return Ok(()) };
        let path = issue.path.display();
        match issue.kind {
            PermissionKind::Owner(owner) => bail!(
                "config refused: {path} belongs to user {owner}, who could hand himself devices; \
                 run `chown root {path}` or move the config to {}",
                Self::SYSTEM
            ),
            PermissionKind::Mode(mode) => bail!(
                "config refused: others can write {path} (mode {mode:o}); run `chmod go-w {path}`"
            ),
        }
    }

    pub fn issue(&self, owners: &[u32]) -> Result<Option<PermissionIssue>> {
        open_file_issue(&self.path, &self.metadata, owners)
            .with_context(|| format!("config {}", self.path.display()))
    }
}

/// Whether the text is UTF-16, as some editors save "Unicode". Its first character is ASCII.
fn is_utf_16(text: &[u8]) -> bool {
    match text {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => true,
        [one, other, ..] => (*one == 0) != (*other == 0),
        _ => false,
    }
}

/// Says who must come if this user cannot replace the file.
pub fn refuse_if_not_writable(file: &ConfigFile) -> Result<()> {
    let (_, directory) = target(file)?;
    if rustix::fs::access(&directory, rustix::fs::Access::WRITE_OK).is_err() {
        bail!("{}: this user cannot write it; run the command with sudo", file.path.display());
    }
    Ok(())
}

/// Writes `text` in place of the file, which becomes `<name>.bak` beside it. Mode and owner stay;
/// a link stays a link. Returns the backup's path.
pub fn replace(file: &ConfigFile, text: &str) -> Result<PathBuf> {
    let (path, directory) = target(file)?;
    let name = || format!("config {}", path.display());
    let mut backup: OsString = path.clone().into_os_string();
    backup.push(".bak");
    let backup = PathBuf::from(backup);
    let saved = copy(&file.text, &path, &directory).with_context(name)?;
    let new = copy(text.as_bytes(), &path, &directory).with_context(name)?;
    if fs::read(&path).with_context(name)? != file.text {
        bail!("{}: it was changed in the meantime; nothing was written", path.display());
    }
    saved.persist(&backup).map_err(|error| error.error).with_context(name)?;
    new.persist(&path).map_err(|error| error.error).with_context(name)?;
    // The new name is on the disk only with its directory.
    File::open(&directory).and_then(|directory| directory.sync_all()).with_context(name)?;
    Ok(backup)
}

fn target(file: &ConfigFile) -> Result<(PathBuf, PathBuf)> {
    let path =
        file.path.canonicalize().with_context(|| format!("config {}", file.path.display()))?;
    let directory = path.parent().context("the config is in no directory")?.to_path_buf();
    Ok((path, directory))
}

fn copy(bytes: &[u8], like: &Path, directory: &Path) -> Result<tempfile::NamedTempFile> {
    let metadata = fs::metadata(like)?;
    let mut file = tempfile::Builder::new().prefix(".hotplugger-").tempfile_in(directory)?;
    file.write_all(bytes)?;
    let own = file.as_file().metadata()?;
    if (own.uid(), own.gid()) != (metadata.uid(), metadata.gid()) {
        fchown(file.as_file(), Some(metadata.uid()), Some(metadata.gid()))
            .context("its owner and group cannot be kept; run the command with sudo")?;
    }
    // After the owner: a change of owner clears bits of the mode.
    // Set-user-ID and the like have no meaning for a config.
    file.as_file().set_permissions(Permissions::from_mode(metadata.mode() & 0o777))?;
    file.as_file().sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn config_with_modes(file: u32, directory: u32) -> Result<()> {
        let dir = tempfile::tempdir()?;
        let folder_path = dir.path().join("hotplugger");
        fs::create_dir(&folder_path)?;
        let path = folder_path.join("config.yaml");
        fs::write(&path, "virtual_machines:\n")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file))?;
        fs::set_permissions(&folder_path, fs::Permissions::from_mode(directory))?;
        ConfigFile::read(&Root::at("/"), &path)?.context("no file")?.refuse_if_others_can_write()
    }

    #[test]
    fn replaced_config_and_its_backup_lose_special_mode_bits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6640)).unwrap();
        let backup =
            replace(&ConfigFile::read(&Root::at("/"), &path).unwrap().unwrap(), "new").unwrap();
        for (path, text) in [(path, "new"), (backup, "old")] {
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        }
    }

    #[test]
    fn what_others_can_write_is_refused_with_the_remedy() {
        assert!(config_with_modes(0o644, 0o755).is_ok());
        let said = config_with_modes(0o664, 0o755).unwrap_err().to_string();
        assert!(said.contains("config.yaml (mode 664); run `chmod go-w "), "{said}");
        let said = config_with_modes(0o644, 0o777).unwrap_err().to_string();
        assert!(said.contains("hotplugger (mode 777)"), "{said}");
    }

    #[test]
    fn what_is_no_plain_small_file_is_refused_and_never_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(
            format!("{:#}", ConfigFile::read(&Root::at("/"), &fifo).unwrap_err())
                .contains("not a regular file")
        );
        let large = dir.path().join("large");
        fs::write(&large, vec![b'#'; 2 << 20]).unwrap();
        assert!(
            format!("{:#}", ConfigFile::read(&Root::at("/"), &large).unwrap_err())
                .contains("1 MiB")
        );
        assert!(ConfigFile::read(&Root::at("/"), &dir.path().join("none")).unwrap().is_none());
    }
}

#[cfg(test)]
mod write_tests {
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
        assert!(said.contains("changed in the meantime"), "{said}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn encoding_that_is_not_utf_8_is_reported_with_its_line() {
        let text = "virtual_machines:\n  w:\n    socket: /q\n    ports: []\n";
        let with_mark = format!("\u{feff}{text}");
        let le = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let be = |text: &str| text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let mut latin: Vec<u8> = text.into();
        latin.extend(b"# f\xfcr die Maus\n");
        for (bytes, expected) in [
            (le(text), "1:1: the file is UTF-16 text: save it as UTF-8"),
            (be(text), "1:1: the file is UTF-16 text: save it as UTF-8"),
            (le(&with_mark), "1:1: the file is UTF-16 text: save it as UTF-8"),
            (be(&with_mark), "1:1: the file is UTF-16 text: save it as UTF-8"),
            (latin, "5:1: not UTF-8 text: save the file as UTF-8"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("config.yaml");
            fs::write(&path, bytes).unwrap();
            assert_eq!(open(&path).config().unwrap_err().to_string(), expected);
        }
    }
}
