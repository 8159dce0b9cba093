//! `watch` as it is run: while other processes add events, replace the file or take it away.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test ends with a panic and says why it was skipped"
)]

mod support;

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use hotplugger::clock::Deadline;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;

use support::qemu::PATIENCE;
use support::root::Root;
use support::udev::{Running, run_manual};

const HISTORY: &str = "/tmp/hotplugger/history.jsonl";
/// How long it has to show nothing: longer than it ever waits.
const QUIET: Duration = Duration::from_millis(1200);
const NOBODY: u32 = 65534;

/// Runs the program for an event, as udev does, and returns what `status` now knows as the last event.
fn event(root: &mut Root, action: &str) -> Value {
    assert_eq!(root.event(action, "1-3").run(root).status, 0);
    known(root, 1).pop().unwrap()
}

fn known(root: &Root, count: usize) -> Vec<Value> {
    let status = run_manual(root, &["status", "--json", "--events", &count.to_string()]);
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    status["events"].as_array().unwrap().clone()
}

/// Adds entries to the history as another process does, and returns them.
fn append(root: &Root, numbers: std::ops::Range<u64>) -> Vec<Value> {
    let mut options = File::options();
    let mut file = options.append(true).create(true).mode(0o600).open(root.path(HISTORY)).unwrap();
    let entry = |number: u64| {
        let line = format!("windows: port 1-3: number {number} {}", "x".repeat(100));
        serde_json::json!({
            "time": number, "port": "1-3", "vm": "windows", "outcome": "failed", "line": line
        })
    };
    let entries: Vec<Value> = numbers.map(entry).collect();
    for entry in &entries {
        file.write_all(format!("{entry}\n").as_bytes()).unwrap();
    }
    entries
}

/// `watch` while it runs.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    fn start(root: &Root, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hotplugger"));
        command.env_clear().env("HOTPLUGGER_ROOT", root.path("/")).stdin(Stdio::null());
        let mut child =
            command.arg("watch").args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    #[track_caller]
    fn shows(&self, events: &[Value]) {
        for event in events {
            assert_eq!(self.json(), *event);
        }
    }

    #[track_caller]
    fn shows_nothing(&self) {
        assert_eq!(self.lines.recv_timeout(QUIET), Err(RecvTimeoutError::Timeout));
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The clock ticks of processor time that it has used.
    fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    /// Whether the kernel wakes it when a file in that directory changes.
    fn has_inotify_on(&self, directory: &Path) -> bool {
        let inode = format!(" ino:{:x} ", directory.metadata().unwrap().ino());
        let entries = fs::read_dir(format!("/proc/{}/fdinfo", self.child.id())).unwrap();
        let infos = entries.flatten().map(|entry| fs::read_to_string(entry.path()));
        infos.map_while(Result::ok).any(|info| info.contains(&inode))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The exit status.
#[track_caller]
fn end_of(child: &mut Child) -> Option<i32> {
    let deadline = Deadline::after(PATIENCE);
    while deadline.remaining().is_some() {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("it does not end");
}

#[test]
fn plug_and_pull_are_shown_as_status_shows_them() {
    let mut root = Root::with_tablet();
    // There is no state directory yet.
    let (json, text) = (Watch::start(&root, &["--json"]), Watch::start(&root, &[]));
    for (action, outcome) in [("bind", "not-running"), ("remove", "detached")] {
        if action == "remove" {
            root.pull("1-3");
        }
        let event = event(&mut root, action);
        assert_eq!(event["outcome"], outcome);
        json.shows(std::slice::from_ref(&event));
        let line = text.line();
        assert!(line.contains(" s ago  windows: port 1-3"), "{line}");
        assert!(line.ends_with(event["line"].as_str().unwrap()), "{line}");
    }
    // From the first event on it does not have to wait for its next search.
    for watch in [&json, &text] {
        assert!(watch.has_inotify_on(&root.path("/tmp/hotplugger")));
        watch.shows_nothing();
    }
}

#[test]
fn restarted_it_has_missed_nothing() {
    let mut root = Root::with_tablet();
    let watch = Watch::start(&root, &["--json"]);
    let first = event(&mut root, "bind");
    watch.shows(std::slice::from_ref(&first));
    drop(watch);
    root.pull("1-3");
    let second = event(&mut root, "remove");
    let watch = Watch::start(&root, &["--json"]);
    watch.shows(&[first, second.clone()]);
    watch.shows_nothing();
    let watch = Watch::start(&root, &["--json", "--events", "1"]);
    watch.shows(&[second]);
    let many = append(&root, 0..20);
    watch.shows(&many);
    // By default as many as with `status`.
    let watch = Watch::start(&root, &["--json"]);
    watch.shows(&known(&root, 10));
    let watch = Watch::start(&root, &["--json", "--events", "0"]);
    watch.shows_nothing();
    root.plug("1-3", "tablet", 17);
    watch.shows(&[event(&mut root, "bind")]);
}

#[test]
fn each_event_is_shown_once_whatever_becomes_of_the_file() {
    let mut root = Root::with_tablet();
    event(&mut root, "bind");
    let watch = Watch::start(&root, &["--json", "--events", "0"]);
    watch.shows_nothing();
    // The next event drops the older half.
    let many = append(&root, 0..350);
    watch.shows(&many);
    let large = root.path(HISTORY).metadata().unwrap().len();
    let last = event(&mut root, "bind");
    assert!(root.path(HISTORY).metadata().unwrap().len() < large * 2 / 3, "it was shortened");
    watch.shows(&[last]);
    let more = append(&root, 400..402);
    watch.shows(&more);

    fs::remove_file(root.path(HISTORY)).unwrap();
    watch.shows(&[event(&mut root, "bind")]);
    let directory = root.path("/tmp/hotplugger");
    fs::remove_dir_all(&directory).unwrap();
    watch.shows_nothing();
    watch.shows(&[event(&mut root, "bind")]);

    // A directory that others may read is not used, and /run takes its place.
    fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
    watch.shows(&[event(&mut root, "bind")]);
    assert!(root.path("/run/hotplugger/history.jsonl").exists());
    watch.shows_nothing();
    fs::set_permissions(&directory, Permissions::from_mode(0o700)).unwrap();
    watch.shows_nothing();
    watch.shows(&[event(&mut root, "bind")]);
    watch.shows_nothing();
}

#[test]
fn names_of_devices_do_no_harm() {
    let root = Root::with_tablet();
    let watch = Watch::start(&root, &[]);
    DirBuilder::new().mode(0o700).create(root.path("/tmp/hotplugger")).unwrap();
    let line =
        r#"{"time":1,"port":null,"vm":null,"outcome":"failed","line":"a\u001b[2J\u202eb\nc"}"#;
    let mut options = File::options();
    let file = options.create_new(true).write(true).mode(0o600).open(root.path(HISTORY));
    file.unwrap().write_all(format!("not JSON\n{line}\n").as_bytes()).unwrap();
    let line = watch.line();
    assert!(line.ends_with("a\u{fffd}[2J\u{fffd}b\u{fffd}c"), "{line:?}");
}

#[test]
fn between_events_it_costs_nothing_and_it_ends_when_nobody_reads_or_waits() {
    let mut root = Root::with_tablet();
    event(&mut root, "bind");
    append(&root, 0..350);
    let mut watch = Watch::start(&root, &["--json", "--events", "0"]);
    watch.shows_nothing();
    let more = append(&root, 400..401);
    watch.shows(&more);
    let before = watch.ticks();
    thread::sleep(Duration::from_secs(3));
    let used = watch.ticks() - before;
    assert!(used < 10, "{used} ticks in 3 s");
    kill_process(watch.pid(), Signal::INT).unwrap();
    assert_eq!(end_of(&mut watch.child), Some(0));
    // No event comes that it could not write.
    let mut command = Command::new(env!("CARGO_BIN_EXE_hotplugger"));
    command.env_clear().env("HOTPLUGGER_ROOT", root.path("/"));
    let command = command.args(["watch", "--events", "1"]).stdout(Stdio::piped());
    let mut unread = Watch { child: command.spawn().unwrap(), lines: channel().1 };
    let mut reader = BufReader::new(unread.child.stdout.take().unwrap());
    reader.read_line(&mut String::new()).unwrap();
    drop(reader);
    assert_eq!(end_of(&mut unread.child), Some(0));
}

#[test]
fn a_user_who_may_not_read_the_events_is_sent_to_sudo() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can start a program as another user");
        return;
    }
    let mut root = Root::with_tablet();
    let program = root.path("/run/hotplugger-program");
    // By another process: a program that this one has open for writing could not be started.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_hotplugger")).arg(&program).status();
    assert!(copied.unwrap().success());
    let folder = root.path("/");
    fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
    let start = || {
        let mut command = Command::new(&program);
        command.env_clear().env("HOTPLUGGER_ROOT", &folder).arg("watch").uid(NOBODY);
        Running::start(command.gid(NOBODY).current_dir("/"))
    };
    // Before there are any.
    let early = start();
    thread::sleep(QUIET);
    event(&mut root, "bind");
    for running in [early, start()] {
        let ended = running.end();
        assert_eq!((ended.status, ended.stdout.as_str()), (1, ""));
        assert_eq!(
            ended.stderr,
            "hotplugger: only root can see the events: sudo hotplugger watch\n"
        );
    }
}
