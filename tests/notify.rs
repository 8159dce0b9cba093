//! The script of the user unit for notifications, with a real journal and journalctl, a real session
//! bus and dunst, a real notification daemon, below Xvfb.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test ends with a panic and says why it was skipped"
)]

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hotplugger::clock::Deadline;
use hotplugger::guest::attach::GuestLocation;
use hotplugger::guest::hmp::GuestDeviceInfo;
use hotplugger::outcome::{EventContext, Outcome, Report, Until};
use rustix::process::{Pid, Signal, geteuid, kill_process_group};
use serde_json::Value;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dist/notify/notify");
const REMOTE: &str = "/lib/systemd/systemd-journal-remote";
const PATIENCE: Duration = Duration::from_secs(30);
const NOBODY: u32 = 65534;

/// A process and all that it has started.
struct Group(Child);

impl Group {
    fn start(command: &mut Command) -> Self {
        Self(command.process_group(0).spawn().unwrap())
    }

    /// The first line of its output.
    fn line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

/// A journal in a directory, and the process that writes what it is fed.
struct Journal {
    dir: tempfile::TempDir,
    writer: Group,
}

impl Journal {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let journal = dir.path().join("journal");
        fs::create_dir(&journal).unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        let file = journal.join("system.journal");
        let mut command = Command::new(REMOTE);
        command.arg(format!("--output={}", file.display())).arg("-").stdin(Stdio::piped());
        let writer = Group::start(command.stderr(Stdio::null()));
        let journal = format!(
            "#!/bin/sh\nexec /usr/bin/journalctl --directory={} \"$@\"\n",
            journal.display()
        );
        let this = Self { dir, writer };
        let wrapper = this.path("bin/journalctl");
        fs::write(&wrapper, journal).unwrap();
        fs::set_permissions(wrapper, Permissions::from_mode(0o755)).unwrap();
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Adds what the program would, or another program of this user.
    fn add(&mut self, user: u32, report: &Report) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
        let mut entry = format!(
            "__REALTIME_TIMESTAMP={now}\n__MONOTONIC_TIMESTAMP={now}\n\
             _BOOT_ID=0123456789abcdef0123456789abcdef\n_UID={user}\nSYSLOG_IDENTIFIER=hotplugger\n"
        );
        for (name, value) in report.fields() {
            writeln!(entry, "{name}={value}").unwrap();
        }
        write!(entry, "MESSAGE={report}\n\n").unwrap();
        let input = self.writer.0.stdin.as_mut().unwrap();
        input.write_all(entry.as_bytes()).unwrap();
    }

    /// The script, which reads this journal.
    fn script(&self) -> Command {
        let mut command = Command::new("sh");
        command.env_clear().env("PATH", format!("{}:/usr/bin:/bin", self.path("bin").display()));
        command
    }
}

fn report(port: &str, outcome: Outcome) -> Report {
    let devpath = format!("/devices/x/usb1/{port}").parse().unwrap();
    let context = EventContext::new(&port.parse().unwrap(), &devpath, None);
    let device = Some("<b>Disk</b> & Co (46f4:0001)".to_owned());
    let vm = Some("windows".to_owned());
    Report::new(Some(EventContext { device, vm, ..context }), outcome)
}

fn attached() -> Outcome {
    let location = GuestLocation {
        bus: None,
        device: GuestDeviceInfo::default(),
        below_native_speed: false,
        via_fd: false,
    };
    Outcome::Attached { location, times: None }
}

/// Whether they are all there; says so if not.
fn are_installed(programs: &[&str]) -> bool {
    let is_there = |program: &&&str| {
        ["", "/usr/bin/", "/bin/"].iter().any(|dir| Path::new(&format!("{dir}{program}")).is_file())
    };
    let missing: Vec<_> = programs.iter().filter(|program| !is_there(program)).collect();
    if !missing.is_empty() {
        println!("notifications: skipped, not installed: {missing:?}");
    }
    missing.is_empty()
}

#[test]
fn a_port_has_one_notification_with_its_last_event() {
    if !are_installed(&["Xvfb", "dbus-daemon", "dunst", "busctl", "journalctl", REMOTE]) {
        return;
    }
    let mut journal = Journal::new();
    let mut server = Group::start(
        Command::new("Xvfb")
            .args(["-displayfd", "1", "-screen", "0", "640x480x24"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null()),
    );
    let display = format!(":{}", server.line());
    let mut bus = Group::start(
        Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--print-address=1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null()),
    );
    let address = bus.line();
    let config = journal.path("dunstrc");
    fs::write(&config, "[urgency_normal]\ntimeout = 0\n").unwrap();
    let in_session = |command: &mut Command| {
        command.env("DISPLAY", &display).env("DBUS_SESSION_BUS_ADDRESS", &address);
        command.env("HOME", "/nowhere").stderr(Stdio::null());
    };
    let mut dunst = Command::new("dunst");
    in_session(dunst.arg("-conf").arg(config));
    let _dunst = Group::start(&mut dunst);
    let busctl = |arguments: &[&str]| {
        let mut command = Command::new("busctl");
        in_session(command.args(["--user", "--json=short"]).args(arguments));
        let output = command.output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).ok()
    };
    let (name, path) = ("org.freedesktop.Notifications", "/org/freedesktop/Notifications");
    let dunst = "org.dunstproject.cmd0";
    let displayed =
        || busctl(&["get-property", name, path, dunst, "displayedLength"])?["data"].as_u64();
    wait("dunst", || displayed().is_some());

    // An earlier event, which is not shown.
    journal.add(0, &report("7-7", attached()));
    wait("the journal", || {
        let mut command = Command::new(journal.path("bin/journalctl"));
        command
            .args(["-q", "HOTPLUGGER_PORT=7-7"])
            .output()
            .is_ok_and(|found| !found.stdout.is_empty())
    });
    let mut script = journal.script();
    in_session(script.arg(SCRIPT));
    let _script = Group::start(&mut script);
    // It has started when it shows something. However often that is reported, it is one notification.
    wait("the first notification", || {
        journal.add(0, &report("9-9", attached()));
        thread::sleep(Duration::from_millis(200));
        displayed() == Some(1)
    });

    journal.add(0, &report("1-3", attached()));
    journal.add(0, &report("1-3", Outcome::Detached(Vec::new())));
    journal.add(0, &report("1-3.4", Outcome::Failed("no free guest port".to_owned())));
    journal.add(1000, &report("6-1", attached()));
    journal.add(0, &report("6-2", Outcome::NotRunning("off".to_owned())));
    journal.add(0, &report("1-3", attached()));
    let until = Until::Unplugged;
    journal.add(0, &report("2-1", Outcome::DetachedManually { ids: Vec::new(), until }));
    journal.add(0, &Report::new(None, Outcome::Failed("config.yaml:1:1: bad".to_owned())));
    // They are shown in order.
    wait("the last notification", || displayed() >= Some(5));
    assert_eq!(displayed(), Some(5));

    busctl(&["call", name, path, dunst, "NotificationCloseAll"]);
    wait("the end of all", || displayed() == Some(0));
    let history = busctl(&["call", name, path, dunst, "NotificationListHistory"]).unwrap();
    let texts = |key: &str| -> Vec<String> {
        let all = history["data"][0].as_array().unwrap().iter();
        let mut texts: Vec<_> =
            all.map(|one| one[key]["data"].as_str().unwrap().to_owned()).collect();
        texts.sort();
        texts
    };
    assert_eq!(
        texts("summary"),
        [
            "USB port 1-3.4: failed",
            "USB port 1-3: attached",
            "USB port 2-1: detached",
            "USB port 9-9: attached",
            "USB: failed",
        ]
    );
    let device = "&lt;b&gt;Disk&lt;/b&gt; &amp; Co (46f4:0001)";
    assert_eq!(
        texts("body"),
        [
            "config.yaml:1:1: bad".to_owned(),
            format!("windows: port 1-3, {device}: attached"),
            format!("windows: port 1-3.4, {device}: no free guest port"),
            format!(
                "windows: port 2-1, {device}: it stays with the host until it is unplugged or \
                 attached manually"
            ),
            format!("windows: port 9-9, {device}: attached"),
        ]
    );
}

/// Waits until it is so.
fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Deadline::after(PATIENCE);
    while !is_so() {
        assert!(deadline.remaining().is_some(), "no {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_user_who_may_not_read_the_journal_gets_the_name_of_the_group() {
    if !geteuid().is_root() {
        println!("notifications: skipped, only root can start a program as another user");
        return;
    }
    if !are_installed(&["journalctl", REMOTE]) {
        return;
    }
    let mut journal = Journal::new();
    journal.add(0, &report("1-3", attached()));
    let file = journal.path("journal/system.journal");
    wait("journal", || file.exists());
    // That user's own journal does not help.
    let own = journal.path("journal/user-65534.journal");
    fs::copy(&file, &own).unwrap();
    for (file, mode) in [(file, 0o640), (own, 0o644)] {
        fs::set_permissions(file, Permissions::from_mode(mode)).unwrap();
    }
    let script = fs::read(SCRIPT).unwrap();
    let copy = journal.path("script");
    fs::write(&copy, script).unwrap();
    let mut command = journal.script();
    command.arg(copy).uid(NOBODY).gid(NOBODY).current_dir("/");
    let mut ended = Group::start(command.stderr(Stdio::piped()));
    wait("end of the script", || ended.0.try_wait().unwrap().is_some());
    assert_eq!(ended.0.wait().unwrap().code(), Some(1));
    let message = std::io::read_to_string(ended.0.stderr.take().unwrap()).unwrap();
    assert!(message.contains("insufficient permissions"), "{message}");
    assert!(message.contains("the group adm or systemd-journal"), "{message}");
}
