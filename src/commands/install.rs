//! `install` and `uninstall`: the rule, the example config and the tmpfiles.d entry on this machine,
//! or below another root for packagers.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::{Context, Verdict};
use crate::output::{Line, Output, Tone};
use crate::root::Root;
use crate::text::shell_word;
use crate::trust::weakness_on_the_way;

/// Arguments of `install`.
#[derive(Debug, Args)]
pub struct Install {
    /// The program that the rule starts, as an absolute path [default: this program].
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,

    #[command(flatten)]
    options: Options,
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

const RULE: &str = "/etc/udev/rules.d/99-hotplugger.rules";
const CONFIG: &str = "/etc/hotplugger/config.yaml";
const TMPFILES: &str = "/etc/tmpfiles.d/hotplugger.conf";

const RULE_TEXT: &str = include_str!("../../rules/99-hotplugger.rules");
const CONFIG_TEXT: &str = include_str!("../../config.yaml");
/// Made before any user can log in, and never aged (tmpfiles.d(5)).
const TMPFILES_TEXT: &str = "# hotplugger's state; see tmpfiles.d(5).\n\
    d /tmp/hotplugger 0700 root root -\n\
    x /tmp/hotplugger\n";

/// The program that the rule in the source tree starts.
const PACKAGED_PROGRAM: &str = "/usr/bin/hotplugger";

impl Install {
    /// Installs, and says each thing it does.
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<Verdict> {
        let machine = Machine::new(context.root, &self.options);
        let program = match (&self.program, &self.options.root) {
            (Some(program), _) => program.clone(),
            (None, Some(_)) => PACKAGED_PROGRAM.into(),
            (None, None) => env::current_exe().context("where this program is")?,
        };
        let program = usable(&program, self.options.root.is_none())?;
        let rule = RULE_TEXT.replace(PACKAGED_PROGRAM, &program);
        machine.write(RULE, &rule, output)?;
        if machine.path(CONFIG).exists() {
            say(output, "keep", CONFIG, "your config")?;
        } else {
            machine.write(CONFIG, &example(), output)?;
        }
        if self.options.root.is_some() || machine.path("/etc/tmpfiles.d").is_dir() {
            machine.write(TMPFILES, TMPFILES_TEXT, output)?;
        } else {
            say(output, "skip", TMPFILES, "this system has no /etc/tmpfiles.d")?;
        }
        machine.reload(output)?;
        Ok(Verdict::Good)
    }
}

impl Uninstall {
    /// Removes what `install` put, but for the config, and says each thing it does.
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<Verdict> {
        let machine = Machine::new(context.root, &self.options);
        machine.remove(RULE, output)?;
        machine.remove(TMPFILES, output)?;
        if machine.path(CONFIG).exists() {
            say(output, "keep", CONFIG, "your config; delete it yourself if you like")?;
        }
        machine.reload(output)?;
        Ok(Verdict::Good)
    }
}

/// The example with nothing configured: its ports are somebody else's.
fn example() -> String {
    let mut in_machines = false;
    let lines = CONFIG_TEXT.lines().map(|line| {
        in_machines |= line.starts_with("virtual_machines:");
        match line {
            _ if !in_machines || line.starts_with("virtual_machines:") || line.is_empty() => {
                line.to_owned()
            }
            _ => format!("# {line}"),
        }
    });
    lines.map(|line| line + "\n").collect()
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

/// Where things are put.
struct Machine {
    root: Root,
    dry_run: bool,
    /// Whether this is the machine that runs, whose udev is told.
    runs: bool,
}

impl Machine {
    fn new(root: &Root, options: &Options) -> Self {
        Self {
            root: options.root.as_ref().map_or_else(|| root.clone(), Root::at),
            dry_run: options.dry_run,
            runs: options.root.is_none() && !root.is_moved(),
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path(path)
    }

    fn write(&self, path: &str, text: &str, output: &mut Output) -> Result<()> {
        let target = self.path(path);
        if fs::read_to_string(&target).is_ok_and(|there| there == text) {
            return say(output, "keep", path, "it is as it should be");
        }
        say(output, "write", path, "")?;
        if self.dry_run {
            return Ok(());
        }
        let write = || -> io::Result<()> {
            // Whatever the umask: udev's hotplugger refuses a config that others can write.
            if let Some(folder) = target.parent() {
                fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
            }
            let mut temporary = target.clone().into_os_string();
            temporary.push(".new");
            fs::write(&temporary, text)?;
            fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644))?;
            fs::rename(&temporary, &target)
        };
        write().map_err(|error| self.told(error, path))
    }

    fn remove(&self, path: &str, output: &mut Output) -> Result<()> {
        let target = self.path(path);
        if target.symlink_metadata().is_err() {
            return say(output, "skip", path, "it is not there");
        }
        say(output, "remove", path, "")?;
        if self.dry_run {
            return Ok(());
        }
        fs::remove_file(&target).map_err(|error| self.told(error, path))
    }

    fn told(&self, error: io::Error, path: &str) -> anyhow::Error {
        let root =
            if error.kind() == io::ErrorKind::PermissionDenied { "; run it as root" } else { "" };
        anyhow::Error::from(error).context(format!("{}{root}", self.path(path).display()))
    }

    /// Lets udevd read the rules anew; it would within seconds of the next event anyway.
    fn reload(&self, output: &mut Output) -> Result<()> {
        const RELOAD: &str = "udevadm control --reload";
        if !self.runs {
            return Ok(());
        }
        say(output, "run", RELOAD, "")?;
        if self.dry_run {
            return Ok(());
        }
        let mut words = RELOAD.split(' ');
        let program = words.next().unwrap_or_default();
        let ended = Command::new(program).args(words).stdin(Stdio::null()).status();
        match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => bail!("`{RELOAD}` failed ({status}); is udevd running?"),
            Err(error) => bail!("`{RELOAD}` cannot be run ({error}); is udev installed?"),
        }
    }
}

fn say(output: &mut Output, what: &str, path: &str, why: &str) -> Result<()> {
    let line = Line::default().with(Tone::Strong, format!("{what:6}")).plain(format!("  {path}"));
    let line = if why.is_empty() { line } else { line.with(Tone::Faint, format!("  ({why})")) };
    Ok(output.line(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::parse::parse;

    #[test]
    fn the_example_that_is_installed_configures_nothing_and_keeps_its_words() {
        assert_eq!(parse(&example()), Ok(Config::default()));
        assert!(example().contains("\n# "));
        for line in CONFIG_TEXT.lines() {
            assert!(example().contains(line), "{line}");
        }
    }

    #[test]
    fn the_rule_names_the_program_once() {
        assert_eq!(RULE_TEXT.matches(PACKAGED_PROGRAM).count(), 1);
    }

    #[test]
    fn programs_that_a_rule_cannot_start_are_refused() {
        for bad in ["hotplugger", "/opt/my tools/hotplugger", "/opt/%p/hotplugger", "/opt/\"/h"] {
            assert!(usable(Path::new(bad), false).is_err(), "{bad}");
        }
        assert!(usable(Path::new("/usr/bin/hotplugger"), false).is_ok());
    }
}
