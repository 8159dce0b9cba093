//! `install` and `uninstall`: the rule, the example config, units and hooks, on this host or below
//! another root for packagers. The items themselves are in src/install.rs.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::{CommandStatus, Context};
use crate::config::Config;
use crate::install::{
    self, CATALOG, CONFIG, Content, Group, InstallItem, Installed, ItemState, PACKAGED_PROGRAM,
    PathUnit, SYSTEMD_RUNS, UDEVD_RUNS, is_of_package, items, path_units, states,
};
use crate::output::{Line, Output, Style};
use crate::permissions::path_issue;
use crate::root::Root;
use crate::text::shell_word;

#[derive(Debug, Args)]
pub struct Install {
    /// The program that the rule runs, as an absolute path [default: this program]
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,

    /// Install the files of a package in the directories of packages, below /usr/lib, without a config
    /// and without the files that depend on one
    #[arg(long, requires = "root")]
    package: bool,

    #[command(flatten)]
    options: Options,

    #[command(flatten)]
    choices: Choices,
}

/// The items besides the rule. By default: those that this host can use, and those that are already
/// installed.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "they are flags of the command line")]
struct Choices {
    /// Install the systemd units that run `sync` for a VM when its socket appears or disappears
    /// [default: where systemd runs]
    #[arg(long, conflicts_with = "no_systemd")]
    systemd: bool,

    /// Do not install them, and remove them if they are installed
    #[arg(long)]
    no_systemd: bool,

    /// Install the hook that runs `sync` when the host wakes up, for systemd and elogind [default:
    /// where they are installed]
    #[arg(long, conflicts_with = "no_sleep")]
    sleep: bool,

    /// Do not install it, and remove it if it is installed
    #[arg(long)]
    no_sleep: bool,

    /// Install the libvirt hook that runs `sync` when a domain has started or ended, for libvirt 6.5
    /// or later [default: where /etc/libvirt exists and SELinux is off]
    #[arg(long, conflicts_with = "no_libvirt")]
    libvirt: bool,

    /// Do not install it, and remove it if it is installed
    #[arg(long)]
    no_libvirt: bool,
}

#[derive(Debug, Args)]
pub struct Uninstall {
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct Options {
    /// Work below this directory, without touching what runs: for packagers
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// Print what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    Yes,
    No,
    Auto,
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
            _ => Choice::Auto,
        }
    }
}

impl Install {
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let program = match (&self.program, &self.options.root) {
            (Some(program), _) => program.clone(),
            (None, Some(_)) => PACKAGED_PROGRAM.into(),
            (None, None) => env::current_exe().context("the path of this program")?,
        };
        let program = usable(&program, self.options.root.is_none())?;
        let mut installer = Installer::new(context.root, &self.options, output);
        if self.package {
            return self.install_package_files(&mut installer, &program);
        }
        let config = Context { root: &installer.root, config: context.config }.config();
        let config = config.and_then(Config::whole);
        let states = states(&installer.root, &program, config.as_ref().ok());
        let (wanted, left): (Vec<_>, Vec<_>) =
            states.iter().partition(|state| self.is_wanted(state));
        self.remove_unwanted(&mut installer, &wanted, config.is_ok())?;
        for state in &wanted {
            installer.install(state, self.choices.of(state.item.group) == Choice::Auto)?;
        }
        let mut skipped = None;
        for ItemState { item, obstacle, .. } in left {
            if self.choices.of(item.group) == Choice::Auto
                && !item.only_if_present
                && skipped.replace(item.group) != Some(item.group)
                && let Some(why) = obstacle
            {
                installer.print("skip", &item.path, why)?;
            }
        }
        let has_units = wanted.iter().any(|state| state.item.group == Group::Systemd);
        for vm in config.iter().filter(|_| has_units).flat_map(|config| &config.virtual_machines) {
            if let Err(why) = PathUnit::of(vm) {
                installer.print("skip", &format!("the unit of `{}`", vm.name), &why.to_string())?;
            }
        }
        installer.reload()?;
        config.context(
            "the units of the VMs are not changed: fix the config and run `hotplugger install` again",
        )?;
        Ok(CommandStatus::Ok)
    }

    fn install_package_files(
        &self,
        installer: &mut Installer<'_>,
        program: &str,
    ) -> Result<CommandStatus> {
        for item in items(program, None).iter().filter_map(InstallItem::in_package) {
            if self.choices.of(item.group) != Choice::No {
                let state = ItemState::read(&installer.root, item);
                installer.install(&state, false)?;
            }
        }
        Ok(CommandStatus::Ok)
    }

    fn is_wanted(&self, state: &ItemState) -> bool {
        let is_applicable = state.obstacle.is_none();
        match self.choices.of(state.item.group) {
            Choice::No => false,
            Choice::Yes => is_applicable || !state.item.only_if_present,
            // Packagers get everything that hotplugger itself needs.
            Choice::Auto if state.item.group == Group::Base => {
                is_applicable || self.options.root.is_some()
            }
            Choice::Auto => is_applicable || state.is_present(),
        }
    }

    /// Removes the files that are not wanted, and the units of VMs that the config no longer has.
    fn remove_unwanted(
        &self,
        installer: &mut Installer<'_>,
        wanted: &[&ItemState],
        knows_units: bool,
    ) -> Result<()> {
        let unwanted = |path: &String| !wanted.iter().any(|state| state.item.path == *path);
        let units_go = knows_units || self.choices.no_systemd;
        let mut units = if units_go { path_units(&installer.root) } else { Vec::new() };
        units.retain(unwanted);
        installer.remove_units(&units)?;
        for state in states(&installer.root, "", None) {
            if self.choices.of(state.item.group) == Choice::No && state.is_present() {
                installer.remove(&state.item.path)?;
            }
        }
        Ok(())
    }
}

impl Uninstall {
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let mut installer = Installer::new(context.root, &self.options, output);
        let units = path_units(&installer.root);
        installer.remove_units(&units)?;
        for state in states(&installer.root, "", None) {
            let item = &state.item;
            if item.path == CONFIG {
                continue;
            }
            if state.is_present() && is_of_package(&installer.root, item) {
                installer.print("keep", &item.path, "it belongs to the package")?;
            } else if state.is_present() {
                installer.remove(&item.path)?;
            } else if item.group == Group::Base {
                installer.print("skip", &item.path, "it is not installed")?;
            }
        }
        if installer.root.path(CONFIG).exists() {
            installer.print("keep", CONFIG, "your config; delete it if you no longer need it")?;
        }
        installer.reload()?;
        Ok(CommandStatus::Ok)
    }
}

struct Installer<'a> {
    root: Root,
    dry_run: bool,
    /// Whether this is the running host, where udev and systemd must reload.
    runs: bool,
    /// The paths that were written or removed.
    changed: Vec<String>,
    units: Vec<String>,
    output: &'a mut Output,
}

impl<'a> Installer<'a> {
    fn new(root: &Root, options: &Options, output: &'a mut Output) -> Self {
        Self {
            root: options.root.as_ref().map_or_else(|| root.clone(), Root::at),
            dry_run: options.dry_run,
            runs: options.root.is_none() && !root.is_moved(),
            changed: Vec::new(),
            units: Vec::new(),
            output,
        }
    }

    /// Installs the item. With `may_fail`, a read-only file system is not an error.
    fn install(&mut self, state: &ItemState, may_fail: bool) -> Result<()> {
        let InstallItem { path, content, .. } = &state.item;
        let name = path.rsplit('/').next().unwrap_or_default();
        if install::is_path_unit(name) && !self.units.iter().any(|unit| unit == name) {
            self.units.push(name.to_owned());
        }
        match (&state.installed, content) {
            (Installed::Packaged(path), _) => {
                return self.print("keep", path, "it belongs to the package");
            }
            (Installed::UpToDate, Content::ConfigTemplate(_)) => {
                return self.print("keep", path, "your config");
            }
            (Installed::UpToDate, _) => return self.print("keep", path, "it is up to date"),
            (Installed::Missing | Installed::Modified(_), _) => {}
        }
        let written = if self.dry_run { Ok(()) } else { write(&self.root.path(path), content) };
        match written {
            Err(error) if may_fail && error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                return self.print("skip", path, "the file system is read-only");
            }
            Err(error) => return Err(self.error(error, path)),
            Ok(()) => {}
        }
        self.changed.push(path.clone());
        self.print("write", path, "")
    }

    fn remove(&mut self, path: &str) -> Result<()> {
        self.print("remove", path, "")?;
        self.changed.push(path.to_owned());
        if self.dry_run {
            return Ok(());
        }
        fs::remove_file(self.root.path(path)).map_err(|error| self.error(error, path))
    }

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
            // As `systemctl disable` does, if the directory has no other links.
            let _ = fs::remove_dir(self.root.path(install::FOLDERS[1]));
        }
        Ok(())
    }

    fn has_systemd(&self) -> bool {
        self.runs && self.root.path(SYSTEMD_RUNS).is_dir()
    }

    fn error(&self, error: io::Error, path: &str) -> anyhow::Error {
        let root =
            if error.kind() == io::ErrorKind::PermissionDenied { "; run it as root" } else { "" };
        anyhow::Error::from(error).context(format!("{}{root}", self.root.path(path).display()))
    }

    /// Lets udevd reload the rules, which it would do within seconds of the next event anyway,
    /// systemd its units and the journal its catalog.
    fn reload(&mut self) -> Result<()> {
        if !self.runs {
            return Ok(());
        }
        // Below another root no daemon runs.
        if self.root.path(UDEVD_RUNS).exists() {
            self.run(&["udevadm", "control", "--reload"])?;
        }
        if !self.has_systemd() {
            return Ok(());
        }
        if self.changed.iter().any(|path| path.starts_with(install::FOLDERS[0])) {
            self.run(&["systemctl", "daemon-reload"])?;
        }
        let units = std::mem::take(&mut self.units);
        if !units.is_empty() {
            // A unit that runs still watches the former path.
            let units: Vec<&str> = units.iter().map(String::as_str).collect();
            self.run(&[&["systemctl", "restart"], units.as_slice()].concat())?;
        }
        if self.changed.iter().any(|path| path == CATALOG) {
            self.run(&["journalctl", "--update-catalog"])?;
        }
        Ok(())
    }

    fn run(&mut self, words: &[&str]) -> Result<()> {
        let line = words.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ");
        self.print("run", &line, "")?;
        let (false, Some((program, arguments))) = (self.dry_run, words.split_first()) else {
            return Ok(());
        };
        match Command::new(program).args(arguments).stdin(Stdio::null()).status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => bail!("`{line}` failed ({status}); does udevd or systemd run?"),
            Err(error) => bail!("`{line}` cannot be run ({error}); is it installed?"),
        }
    }

    fn print(&mut self, what: &str, path: &str, why: &str) -> Result<()> {
        let line =
            Line::default().with(Style::Strong, format!("{what:6}")).plain(format!("  {path}"));
        let line =
            if why.is_empty() { line } else { line.with(Style::Faint, format!("  ({why})")) };
        Ok(self.output.line(&line)?)
    }
}

fn write(target: &Path, content: &Content) -> io::Result<()> {
    // Independent of the umask: hotplugger rejects a config that other users can write to.
    if let Some(directory) = target.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    let mut temporary = target.to_path_buf().into_os_string();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    match content {
        Content::Link(to) => {
            let _ = fs::remove_file(&temporary);
            symlink(to, &temporary)?;
        }
        Content::ConfigTemplate(text) | Content::File { text, .. } => {
            let mode = if let Content::File { mode, .. } = content { *mode } else { 0o644 };
            fs::write(&temporary, text)?;
            fs::set_permissions(&temporary, fs::Permissions::from_mode(mode))?;
        }
    }
    fs::rename(&temporary, target)
}

/// Rejects a program that udev cannot run, or that other users can replace, because root runs it.
fn usable(program: &Path, must_exist: bool) -> Result<String> {
    let shown = program.display();
    let Some(text) = program.to_str().filter(|text| text.starts_with('/')) else {
        bail!("{shown}: the rule needs an absolute path");
    };
    if text.contains(|character: char| character.is_whitespace() || "\"'\\%$".contains(character)) {
        bail!(
            "{shown}: a udev rule cannot run a program with such a name; move it to /usr/local/bin"
        );
    }
    if must_exist {
        let issue = path_issue(program, &[0]).with_context(|| format!("{shown}"))?;
        if issue.is_some() {
            let word = shell_word(text);
            bail!(
                "other users than root can change {shown}, which root would run; move it where they cannot:\n  \
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
