//! `install` and `uninstall`: the rule, the example config, units and hooks on this machine, or
//! below another root for packagers.
//!
//! What there is to put is in [`pieces`](crate::install).

use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::{CommandStatus, Context};
use crate::config::Config;
use crate::install::unit::{self, PathUnit};
use crate::install::{
    CONFIG, Content, Group, PACKAGED_PROGRAM, Piece, SYSTEMD_RUNS, UDEVD_RUNS, pieces,
};
use crate::install::{Found, found, has_sign, in_use, is_of_package, path_units};
use crate::output::{Line, Output, Style};
use crate::permissions::weakness_on_the_way;
use crate::root::Root;
use crate::text::shell_word;

/// Arguments of `install`.
#[derive(Debug, Args)]
pub struct Install {
    /// The program that the rule starts, as an absolute path [default: this program].
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,

    /// Puts what a package has, where packages have it: below /usr/lib, and neither a config nor
    /// what depends on one.
    #[arg(long, requires = "root")]
    package: bool,

    #[command(flatten)]
    options: Options,

    #[command(flatten)]
    choices: Choices,
}

/// What is put beside the rule. Without a choice: what the machine has a use for, and what is
/// there already.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "they are flags of the command line")]
struct Choices {
    /// Puts systemd's units: `sync` for each virtual machine of the config when its socket appears
    /// or goes away [default: where systemd runs].
    #[arg(long, conflicts_with = "no_systemd")]
    systemd: bool,

    /// Leaves them out, and removes them if they are there.
    #[arg(long)]
    no_systemd: bool,

    /// Puts the hook that runs `sync` when the host wakes up, for systemd and, where it is, elogind
    /// [default: where they are].
    #[arg(long, conflicts_with = "no_sleep")]
    sleep: bool,

    /// Leaves it out, and removes it if it is there.
    #[arg(long)]
    no_sleep: bool,

    /// Puts libvirt's hook: `sync` when a guest has started or ended; libvirt 6.5 or later
    /// [default: where /etc/libvirt is].
    #[arg(long, conflicts_with = "no_libvirt")]
    libvirt: bool,

    /// Leaves it out, and removes it if it is there.
    #[arg(long)]
    no_libvirt: bool,
}

/// Arguments of `uninstall`.
#[derive(Debug, Args)]
pub struct Uninstall {
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct Options {
    /// Puts everything below this folder and touches nothing that runs: for packagers.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// Says what would be done and does nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Whether a group is put.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    Yes,
    No,
    /// Where there is a use for it.
    Fit,
}

impl Choices {
    fn of(&self, group: Group) -> Choice {
        let (yes, no) = match group {
            Group::Base => (false, false),
            Group::Systemd => (self.systemd, self.no_systemd),
            Group::Sleep => (self.sleep, self.no_sleep),
            Group::Libvirt => (self.libvirt, self.no_libvirt),
        };
        match (yes, no) {
            (true, _) => Choice::Yes,
            (_, true) => Choice::No,
            _ => Choice::Fit,
        }
    }
}

impl Install {
    /// Installs, and says each thing it does.
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let program = match (&self.program, &self.options.root) {
            (Some(program), _) => program.clone(),
            (None, Some(_)) => PACKAGED_PROGRAM.into(),
            (None, None) => env::current_exe().context("where this program is")?,
        };
        let program = usable(&program, self.options.root.is_none())?;
        let mut machine = Machine::new(context.root, &self.options, output);
        if self.package {
            return self.fill_package(&mut machine, &program);
        }
        let config = Context { root: &machine.root, config: context.config }.config();
        let pieces = pieces(&program, config.as_ref().ok());
        let mut skipped = None;
        let (put, left): (Vec<_>, Vec<_>) =
            pieces.iter().partition(|piece| self.is_put(&machine, piece));
        self.clear(&mut machine, &put, config.is_ok())?;
        for piece in put {
            machine.put(piece, self.choices.of(piece.group) == Choice::Fit)?;
        }
        for piece in left {
            if self.choices.of(piece.group) == Choice::Fit
                && !piece.needs_sign
                && skipped.replace(piece.group) != Some(piece.group)
            {
                let why = format!("this system has no {}", piece.sign.unwrap_or("use for it"));
                machine.say("skip", &piece.path, &why)?;
            }
        }
        self.tell_of_the_unfit(&mut machine, config.as_ref().ok())?;
        machine.reload()?;
        config.context(
            "the virtual machines' units are left as they are: mend the config and install again",
        )?;
        Ok(CommandStatus::Ok)
    }

    fn fill_package(&self, machine: &mut Machine<'_>, program: &str) -> Result<CommandStatus> {
        for piece in pieces(program, None).iter().filter_map(Piece::in_package) {
            if self.choices.of(piece.group) != Choice::No {
                machine.put(&piece, false)?;
            }
        }
        Ok(CommandStatus::Ok)
    }

    fn is_put(&self, machine: &Machine<'_>, piece: &Piece) -> bool {
        let has_sign = has_sign(&machine.root, piece);
        match self.choices.of(piece.group) {
            Choice::No => false,
            Choice::Yes => has_sign || !piece.needs_sign,
            // Packagers get all that hotplugger itself needs.
            Choice::Fit if piece.group == Group::Base => has_sign || self.options.root.is_some(),
            Choice::Fit => has_sign || found(&machine.root, piece) != Found::Nothing,
        }
    }

    /// Removes what is not wanted, and the units of virtual machines that the config has no more.
    fn clear(&self, machine: &mut Machine<'_>, put: &[&Piece], knows_units: bool) -> Result<()> {
        let unwanted = |path: &String| !put.iter().any(|piece| piece.path == *path);
        let units_go = knows_units || self.choices.no_systemd;
        let mut units = if units_go { path_units(&machine.root) } else { Vec::new() };
        units.retain(unwanted);
        machine.remove_units(&units)?;
        for piece in pieces("", None) {
            if self.choices.of(piece.group) == Choice::No
                && found(&machine.root, &piece) != Found::Nothing
            {
                machine.remove(&piece.path)?;
            }
        }
        Ok(())
    }

    fn tell_of_the_unfit(&self, machine: &mut Machine<'_>, config: Option<&Config>) -> Result<()> {
        let wanted = match self.choices.of(Group::Systemd) {
            Choice::Yes => true,
            Choice::No => false,
            Choice::Fit => machine.root.path(SYSTEMD_RUNS).is_dir(),
        };
        let machines = config.filter(|_| wanted).map_or(&[][..], |config| &config.virtual_machines);
        for vm in machines {
            if let Err(why) = PathUnit::of(vm) {
                machine.say("skip", &format!("the unit of `{}`", vm.name), &why.to_string())?;
            }
        }
        Ok(())
    }
}

impl Uninstall {
    /// Removes what `install` put, but for the config, and says each thing it does.
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let mut machine = Machine::new(context.root, &self.options, output);
        let units = path_units(&machine.root);
        machine.remove_units(&units)?;
        for piece in pieces("", None) {
            let is_there = found(&machine.root, &piece) != Found::Nothing;
            if piece.path == CONFIG {
                continue;
            }
            if is_there && is_of_package(&machine.root, &piece) {
                machine.say("keep", &piece.path, "the package's")?;
            } else if is_there {
                machine.remove(&piece.path)?;
            } else if piece.group == Group::Base {
                machine.say("skip", &piece.path, "it is not there")?;
            }
        }
        if machine.root.path(CONFIG).exists() {
            machine.say("keep", CONFIG, "your config; delete it yourself if you like")?;
        }
        machine.reload()?;
        Ok(CommandStatus::Ok)
    }
}

/// The machine.
struct Machine<'a> {
    /// Where its paths begin.
    root: Root,
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
    fn new(root: &Root, options: &Options, output: &'a mut Output) -> Self {
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
    fn put(&mut self, piece: &Piece, may_fail: bool) -> Result<()> {
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
    fn remove(&mut self, path: &str) -> Result<()> {
        self.say("remove", path, "")?;
        self.note_unit(path);
        if self.dry_run {
            return Ok(());
        }
        fs::remove_file(self.root.path(path)).map_err(|error| self.told(error, path))
    }

    /// Stops path units and removes their files and links.
    fn remove_units(&mut self, paths: &[String]) -> Result<()> {
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
    fn reload(&mut self) -> Result<()> {
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

    fn say(&mut self, what: &str, path: &str, why: &str) -> Result<()> {
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

/// Refuses a program that udev could not start or that others could replace, since root runs it.
fn usable(program: &Path, must_exist: bool) -> Result<String> {
    let shown = program.display();
    let Some(text) = program.to_str().filter(|text| text.starts_with('/')) else {
        bail!("{shown}: the rule needs an absolute path");
    };
    if text.contains(|character: char| character.is_whitespace() || "\"'\\%$".contains(character)) {
        bail!(
            "{shown}: a udev rule cannot start a program with such a name; move it to /usr/local/bin"
        );
    }
    if must_exist {
        let weakness = weakness_on_the_way(program, &[0]).with_context(|| format!("{shown}"))?;
        if weakness.is_some() {
            let word = shell_word(text);
            bail!(
                "others than root can change {shown}, which root would run; put it where they cannot:\n  \
                 install -m 755 {word} /usr/local/bin/hotplugger && /usr/local/bin/hotplugger install"
            );
        }
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod program_tests {
    use super::*;

    #[test]
    fn programs_that_a_rule_cannot_start_are_refused() {
        for bad in ["hotplugger", "/opt/my tools/hotplugger", "/opt/%p/hotplugger", "/opt/\"/h"] {
            assert!(usable(Path::new(bad), false).is_err(), "{bad}");
        }
        assert!(usable(Path::new("/usr/bin/hotplugger"), false).is_ok());
    }
}
