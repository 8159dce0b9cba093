//! A real QEMU, killed when it is dropped.
//!
//! It takes no device of the host that the tests run on: while it is paused QEMU opens none, and a
//! test that lets it run uses a bus that no host has, such as 200.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use hotplugger::clock::Deadline;
use hotplugger::config::access::Access;
use hotplugger::host::session::Session;
use hotplugger::monitor::Monitor;
use hotplugger::qmp::Error;
use hotplugger::qmp::client::QmpClient;
use hotplugger::qmp::peer::PeerPolicy;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::root::Root;

/// The controller of a guest that is not about controllers.
pub(crate) const CONTROLLER: [&str; 2] = ["-device", "qemu-xhci,id=xhci0,p2=4,p3=4"];

/// What no QEMU needs longer for, on however slow a machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A QEMU that runs.
pub(crate) struct Qemu {
    child: Child,
    /// The QMP socket that is the program's.
    pub(crate) socket: PathBuf,
    /// The QMP socket that is the tests': QEMU serves one client at a time on each.
    control: PathBuf,
}

impl Qemu {
    /// Starts a paused virtual machine with the usual controller.
    pub(crate) fn paused(root: &Root, name: &str) -> Self {
        Self::start(root, name, &[&["-S"], &CONTROLLER[..]].concat())
    }

    /// Starts a virtual machine with its QMP socket at `/run/NAME.qmp`.
    pub(crate) fn start(root: &Root, name: &str, arguments: &[&str]) -> Self {
        Self::start_speaking(root, name, "-qmp", arguments)
    }

    /// Starts a virtual machine with another option for its QMP socket, such as `-qmp-pretty`.
    pub(crate) fn start_speaking(root: &Root, name: &str, qmp: &str, arguments: &[&str]) -> Self {
        Self::spawn(root, name, Command::new("qemu-system-x86_64"), qmp, arguments)
    }

    /// Starts this executable, which loads its modules from that directory.
    pub(crate) fn start_program(
        root: &Root,
        name: &str,
        program: &Path,
        modules: &Path,
        arguments: &[&str],
    ) -> Self {
        let mut command = Command::new(program);
        command.env("QEMU_MODULE_DIR", modules);
        // QEMU looks for its firmware beside the executable.
        command.args(["-L", "/usr/share/qemu", "-L", "/usr/share/seabios"]);
        Self::spawn(root, name, command, "-qmp", arguments)
    }

    fn spawn(root: &Root, name: &str, mut program: Command, qmp: &str, arguments: &[&str]) -> Self {
        let socket = root.path(format!("/run/{name}.qmp"));
        let control = root.path(format!("/run/{name}.tests"));
        let messages = root.path(format!("/run/{name}.stderr"));
        let listen = |path: &Path| format!("unix:{},server=on,wait=off", path.display());
        program
            .args(["-machine", "q35,usb=off", "-accel", "tcg", "-m", "16"])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(arguments)
            .args([qmp, &listen(&socket), "-qmp", &listen(&control)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&messages).unwrap());
        let started = Deadline::after(PATIENCE);
        let child = loop {
            match program.spawn() {
                // Another thread that forks has the executable open, which a test has just written.
                Err(error)
                    if error.kind() == ErrorKind::ExecutableFileBusy
                        && started.remaining().is_some() =>
                {
                    thread::sleep(Duration::from_millis(10));
                }
                Ok(child) => break child,
                Err(error) => panic!(
                    "qemu-system-x86_64 does not start: {error}. These tests run against a real \
                     QEMU: `make test` installs it, or install your distribution's \
                     qemu-system-x86 yourself"
                ),
            }
        };
        let mut qemu = Self { child, socket, control };
        let deadline = Deadline::after(PATIENCE);
        while let Err(error) = connect(&qemu.control, deadline) {
            let ended = qemu.child.try_wait().unwrap().is_some();
            if ended || deadline.remaining().is_none() {
                let messages = fs::read_to_string(&messages).unwrap_or_default();
                panic!("QEMU does not come up: {error}; it says: {messages}");
            }
            thread::sleep(Duration::from_millis(10));
        }
        qemu
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Connects to the program's socket, as the program does.
    pub(crate) fn connect(&self) -> Session {
        connect(&self.socket, Deadline::after(PATIENCE)).unwrap()
    }

    /// Executes a command on the tests' socket. No guard keeps a command from an upgraded QEMU.
    pub(crate) fn execute(&self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        let policy = PeerPolicy { uid: None, trust_directory: true, root: PathBuf::from("/") };
        let mut client = QmpClient::connect(&self.control, &policy, Deadline::after(PATIENCE))?;
        client.send(command, arguments, None)
    }

    /// Gives a command to the monitor for people, and returns what it says.
    pub(crate) fn monitor(&self, line: &str) -> String {
        let arguments = json!({ "command-line": line });
        let said = self.execute("human-monitor-command", arguments).unwrap();
        said.as_str().unwrap().replace('\r', "")
    }

    /// The ids of the guest's USB devices, attached or not, whoever made them.
    pub(crate) fn objects(&self) -> Vec<String> {
        let children = self.execute("qom-list", json!({ "path": "/machine/peripheral" })).unwrap();
        let mut ids: Vec<String> = children
            .as_array()
            .unwrap()
            .iter()
            .filter(|child| child["type"].as_str().unwrap().starts_with("child<usb-"))
            .map(|child| child["name"].as_str().unwrap().to_owned())
            .collect();
        ids.sort();
        ids
    }

    /// Kills it, as the kernel does when memory is short: its sockets stay behind.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops it: it lives and does not answer.
    pub(crate) fn freeze(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap();
    }

    /// Lets it go on after [`Qemu::freeze`].
    pub(crate) fn thaw(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self) {
        let deadline = Deadline::after(PATIENCE);
        while self.child.try_wait().unwrap().is_none() {
            assert!(deadline.remaining().is_some(), "QEMU does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Connects to a socket of this machine.
pub(crate) fn connect(socket: &Path, deadline: Deadline) -> Result<Session, Error> {
    let monitor = Monitor::Socket(socket.to_path_buf());
    // The directory of the tests is below /tmp.
    let access = Access { trust_socket_directory: true, ..Access::DEFAULT };
    Session::connect(&hotplugger::root::Root::at("/"), &monitor, &access, deadline, None)
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
