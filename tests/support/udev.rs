//! Runs the program as udev's RUN does: the event in an environment that holds nothing else, no
//! arguments, `/` as working directory, no input.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::root::Root;

/// No run takes longer, on however slow a machine, or it hangs.
const ENDLESS: Duration = Duration::from_secs(30);

/// The variables of an event.
#[derive(Clone)]
pub(crate) struct Event(BTreeMap<OsString, OsString>);

/// A program that runs.
pub(crate) struct Running(Child);

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit status.
    pub(crate) status: i32,
    /// What it wrote to standard output.
    pub(crate) stdout: String,
    /// What it wrote to standard error, where its lines for the journal go.
    pub(crate) stderr: String,
}

impl Event {
    /// An event that udevd 252 had for a device of that kind. Where none was recorded, that of
    /// `bind` with another ACTION.
    pub(crate) fn recorded(kind: &str, action: &str, of_interface: bool) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/env").join(kind);
        let (recorded, otherwise) = if of_interface {
            (format!("interface-{action}.txt"), "interface-add.txt")
        } else {
            (format!("{action}.txt"), "bind.txt")
        };
        let text = fs::read_to_string(folder.join(recorded))
            .or_else(|_| fs::read_to_string(folder.join(otherwise)))
            .expect("a recorded event of that kind of device");
        let variables = text.lines().filter_map(|line| line.split_once('='));
        let mut event = Self(variables.map(|(name, value)| (name.into(), value.into())).collect());
        event.set("ACTION", action);
        event
    }

    /// Gives a variable another value.
    pub(crate) fn set(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) {
        self.0.insert(name.into(), value.into());
    }

    /// Takes a variable away.
    pub(crate) fn unset(&mut self, name: &str) {
        self.0.remove(OsStr::new(name));
    }

    /// The program with this event; where its output goes is for the caller to say.
    pub(crate) fn command(&self, root: &Root) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hotplugger"));
        self.set_up(&mut command, root);
        command
    }

    /// Sets up the environment for a command that will start the program.
    pub(crate) fn set_up(&self, command: &mut Command, root: &Root) {
        bare(command, root).envs(&self.0);
    }

    /// Starts the program.
    pub(crate) fn start(&self, root: &Root) -> Running {
        Running::start(&mut self.command(root))
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, root: &Root) -> Ended {
        self.start(root).end()
    }
}

/// Runs the program with arguments and without an event, as a person does.
pub(crate) fn run_manual(root: &Root, arguments: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hotplugger"));
    Running::start(bare(&mut command, root).args(arguments)).end()
}

fn bare<'a>(command: &'a mut Command, root: &Root) -> &'a mut Command {
    command.env_clear().env("HOTPLUGGER_ROOT", root.path("/")).current_dir("/").stdin(Stdio::null())
}

impl Running {
    /// Starts a command and collects what it writes.
    pub(crate) fn start(command: &mut Command) -> Self {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().expect("the program starts"))
    }

    /// Wraps what was started otherwise.
    pub(crate) fn of(child: Child) -> Self {
        Self(child)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Kills it, as the kernel does when memory is short.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// If it does not end, is killed by a signal, or panics.
    pub(crate) fn end(self) -> Ended {
        let pid = Pid::from_child(&self.0);
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send(self.0.wait_with_output()));
        let Ok(output) = receiver.recv_timeout(ENDLESS) else {
            let _ = kill_process(pid, Signal::KILL);
            panic!("the program still ran after {ENDLESS:?}");
        };
        Ended::from(output.unwrap())
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let Output { status, stdout, stderr } = output;
        let stderr = String::from_utf8(stderr).expect("UTF-8 on standard error");
        let status = status.code().unwrap_or_else(|| panic!("{status}: {stderr}"));
        assert!(status != 101 && !stderr.contains("panicked"), "{stderr}");
        let stdout = String::from_utf8(stdout).expect("UTF-8 on standard output");
        Self { status, stdout, stderr }
    }
}

impl Ended {
    /// The one line for the journal, without the program's name, which must be all there is and
    /// fit for a terminal.
    pub(crate) fn line(&self) -> &str {
        assert_eq!(self.stdout, "");
        let line =
            self.stderr.strip_prefix("hotplugger: ").and_then(|line| line.strip_suffix('\n'));
        let line = line.unwrap_or_else(|| panic!("one line, not {:?}", self.stderr));
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(line.len() < 2000, "a line of {} bytes", line.len());
        line
    }
}
