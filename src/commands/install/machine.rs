//! Where things are put: files, links, and those who are told of them.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use super::Options;
use crate::install::disk::{Found, found, in_use};
use crate::install::{Content, Piece, SYSTEMD_RUNS, UDEVD_RUNS, unit};
use crate::output::{Line, Output, Style};
use crate::root::Root;
use crate::text::shell_word;

/// The machine.
pub(super) struct Machine<'a> {
    /// Where its paths begin.
    pub(super) root: Root,
    dry_run: bool,
    /// Whether this is the machine that runs, whose udev and systemd are told.
    runs: bool,
    /// Whether systemd must read its units anew.
    units_changed: bool,
    /// The path units that are to run.
    units: Vec<String>,
    output: &'a mut Output,
}

impl<'a> Machine<'a> {
    pub(super) fn new(root: &Root, options: &Options, output: &'a mut Output) -> Self {
        Self {
            root: options.root.as_ref().map_or_else(|| root.clone(), Root::at),
            dry_run: options.dry_run,
            runs: options.root.is_none() && !root.is_moved(),
            units_changed: false,
            units: Vec::new(),
            output,
        }
    }

    /// Puts the piece there; with `may_fail`, a file system that is read-only is no error.
    pub(super) fn put(&mut self, piece: &Piece, may_fail: bool) -> Result<()> {
        let path = &piece.path;
        if let Some(name) = Path::new(path).file_name().and_then(|name| name.to_str())
            && unit::is_path_unit(name)
            && !self.units.iter().any(|unit| unit == name)
        {
            self.units.push(name.to_owned());
        }
        let used = in_use(&self.root, piece);
        if used.path != *path {
            return self.say("keep", &used.path, "the package's");
        }
        if found(&self.root, piece) == Found::Same {
            let why = match piece.content {
                Content::Example(_) => "your config",
                _ => "it is as it should be",
            };
            return self.say("keep", path, why);
        }
        let written =
            if self.dry_run { Ok(()) } else { write(&self.root.path(path), &piece.content) };
        match written {
            Err(error) if may_fail && error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                return self.say("skip", path, "the file system is read-only");
            }
            Err(error) => return Err(self.told(error, path)),
            Ok(()) => {}
        }
        self.note_unit(path);
        self.say("write", path, "")
    }

    /// Removes what is there.
    pub(super) fn remove(&mut self, path: &str) -> Result<()> {
        self.say("remove", path, "")?;
        self.note_unit(path);
        if self.dry_run {
            return Ok(());
        }
        fs::remove_file(self.root.path(path)).map_err(|error| self.told(error, path))
    }

    /// Stops path units and removes their files and links.
    pub(super) fn remove_units(&mut self, paths: &[String]) -> Result<()> {
        let names = paths.iter().filter_map(|path| path.rsplit('/').next());
        let mut names: Vec<&str> = names.collect();
        names.sort_unstable();
        names.dedup();
        if !names.is_empty() && self.has_systemd() {
            self.run(&[&["systemctl", "stop"], names.as_slice()].concat())?;
        }
        paths.iter().try_for_each(|path| self.remove(path))?;
        if !self.dry_run && !paths.is_empty() {
            // If it has no other links; as `systemctl disable` does.
            let _ = fs::remove_dir(self.root.path(unit::FOLDERS[1]));
        }
        Ok(())
    }

    fn note_unit(&mut self, path: &str) {
        self.units_changed |= path.starts_with(unit::FOLDERS[0]);
    }

    fn has_systemd(&self) -> bool {
        self.runs && self.root.path(SYSTEMD_RUNS).is_dir()
    }

    fn told(&self, error: io::Error, path: &str) -> anyhow::Error {
        let root =
            if error.kind() == io::ErrorKind::PermissionDenied { "; run it as root" } else { "" };
        anyhow::Error::from(error).context(format!("{}{root}", self.root.path(path).display()))
    }

    /// Lets udevd read the rules anew, which it would within seconds of the next event anyway, and
    /// systemd its units.
    pub(super) fn reload(&mut self) -> Result<()> {
        if !self.runs {
            return Ok(());
        }
        // In a folder that is going to be a machine nobody listens.
        if self.root.path(UDEVD_RUNS).exists() {
            self.run(&["udevadm", "control", "--reload"])?;
        }
        if !self.has_systemd() {
            return Ok(());
        }
        if self.units_changed {
            self.run(&["systemctl", "daemon-reload"])?;
        }
        let units = std::mem::take(&mut self.units);
        if units.is_empty() {
            return Ok(());
        }
        // Anew: one that runs watches what it was told when it began.
        let units: Vec<&str> = units.iter().map(String::as_str).collect();
        self.run(&[&["systemctl", "restart"], units.as_slice()].concat())
    }

    fn run(&mut self, words: &[&str]) -> Result<()> {
        let line = words.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ");
        self.say("run", &line, "")?;
        let (false, Some((program, arguments))) = (self.dry_run, words.split_first()) else {
            return Ok(());
        };
        match Command::new(program).args(arguments).stdin(Stdio::null()).status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => bail!("`{line}` failed ({status}); does udevd or systemd run?"),
            Err(error) => bail!("`{line}` cannot be run ({error}); is it installed?"),
        }
    }

    pub(super) fn say(&mut self, what: &str, path: &str, why: &str) -> Result<()> {
        let line =
            Line::default().with(Style::Strong, format!("{what:6}")).plain(format!("  {path}"));
        let line =
            if why.is_empty() { line } else { line.with(Style::Faint, format!("  ({why})")) };
        Ok(self.output.line(&line)?)
    }
}

fn write(target: &Path, content: &Content) -> io::Result<()> {
    // Whatever the umask: udev's hotplugger refuses a config that others can write.
    if let Some(folder) = target.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    let mut temporary = target.to_path_buf().into_os_string();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    match content {
        Content::Link(to) => {
            let _ = fs::remove_file(&temporary);
            symlink(to, &temporary)?;
        }
        Content::Example(text) | Content::File { text, .. } => {
            let mode = if let Content::File { mode, .. } = content { *mode } else { 0o644 };
            fs::write(&temporary, text)?;
            fs::set_permissions(&temporary, fs::Permissions::from_mode(mode))?;
        }
    }
    fs::rename(&temporary, target)
}
