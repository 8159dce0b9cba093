//! Plays the scenarios in `tests/scenarios/`, each on a host of its own and with a real QEMU, and
//! compares what comes of each step with what the scenario tells.
//!
//! A new case is a new file there and no code. `SCENARIOS=overwrite cargo test --test scenarios` writes
//! what came into the files, to be looked at with `git diff`. The steps:
//!
//! | step | |
//! |---|---|
//! | `config` | writes `/etc/hotplugger/config.yaml` |
//! | `write FILE`, `rm FILE`, `rm -r FOLDER`, `chmod MODE FILE` | whatever else is to be done to a file |
//! | `controller N [at DEVPATH]` | root hubs `usb1` and `usb2` with N ports each, which are each other's other halves; of the next controller `usb3` and `usb4` |
//! | `ports HUB N` | N ports of a hub that is plugged in |
//! | `path_id PORT` | udev's `ID_PATH_WITH_USB_REVISION` and `ID_PATH` of the device in it |
//! | `pair PORT PORT` | two ports that are the halves of one connector |
//! | `plug PORT KIND devnum=N`, `pull PORT` | a keyboard, tablet, audio, storage or hub; no event |
//! | `attribute PORT NAME VALUE` | writes one of its files in sysfs |
//! | `driver INTERFACE NAME\|none` | binds a driver of the host's to an interface (`1-3:1.0`), which appears with it |
//! | `disk PORT NAME NUMBER` | gives the device a block device: `sda 8:0` |
//! | `program PID EXECUTABLE FILE` | a process that has the file open |
//! | `cat FILE` | what is in a file |
//! | `udev ACTION NAME [VARIABLE=VALUE…] [&]` | the event of a device or an interface (`1-3:1.0`); with `&` the next step comes at once |
//! | `wait` | for all that were begun with `&`, in their order |
//! | `sigkill` | kills the one that was begun last |
//! | `await FILE` | until the file is there |
//! | `state` | what is remembered |
//! | `findings KIND` | what `hotplugger check` finds of that kind: those whose code begins with it |
//! | `hotplugger [ARGUMENT…]` | the program, run by hand |
//! | `qemu VM [running] [bare] [ARGUMENT…]` | a virtual machine: paused unless `running`, with the controller `xhci0` unless `bare`; its socket is `/run/VM.qmp` |
//! | `objects VM` | the ids of its USB devices |
//! | `monitor VM COMMAND…` | a command for its monitor |
//! | `hold VM`, `release VM` | another client on its socket |
//! | `freeze VM`, `kill VM` | stops it, kills it |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with a panic"
)]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use hotplugger::clock::Deadline;
use hotplugger::host::session::Session;
use serde_json::Value;

use support::qemu::{CONTROLLER, PATIENCE, Qemu};
use support::root::Root;
use support::scenario::{Scenario, Step};
use support::udev::{Ended, Running, run_manual};

#[test]
fn each_scenario_gives_its_expected_result() {
    play_all("tests/scenarios");
}

fn play_all(folder: &str) {
    let entries = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).read_dir().unwrap();
    let mut scenarios: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    scenarios.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    assert!(!scenarios.is_empty(), "no scenarios in {folder}");
    scenarios.sort();

    let queue = Mutex::new(scenarios.into_iter());
    let next = || queue.lock().unwrap().next();
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(path) = next() {
                    let played = catch_unwind(|| play(&path));
                    let failure = played.unwrap_or(Some("  a step panicked, see above\n".into()));
                    let name = path.file_name().unwrap().to_string_lossy();
                    let told = failure.map(|failure| format!("\n{folder}/{name}\n{failure}"));
                    failures.lock().unwrap().extend(told);
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "told (-) and come (+) differ:\n{}", failures.concat());
}

/// Plays one scenario; returns what came otherwise than told.
fn play(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).unwrap();
    let mut scenario = match Scenario::parse(&text) {
        Ok(scenario) => scenario,
        Err(error) => return Some(format!("  {error}\n")),
    };
    let mut stage = Stage::new();
    scenario.play(|step| {
        // With the step named, a panic says what it is about.
        let done = catch_unwind(AssertUnwindSafe(|| stage.run(step)));
        done.unwrap_or_else(|_| panic!("in {}: $ {}", path.display(), step.command))
    });
    if std::env::var_os("SCENARIOS").is_some_and(|value| value == "overwrite") {
        fs::write(path, scenario.as_it_came()).unwrap();
        return None;
    }
    scenario.differences()
}

/// Where a scenario is played.
struct Stage {
    root: Root,
    vms: BTreeMap<String, Qemu>,
    /// Other clients on the sockets of virtual machines.
    clients: BTreeMap<String, Session>,
    /// Programs that were begun and not yet waited for.
    begun: Vec<Running>,
}

impl Stage {
    fn new() -> Self {
        let (vms, clients) = (BTreeMap::new(), BTreeMap::new());
        Self { root: Root::new(), vms, clients, begun: Vec::new() }
    }

    /// Does a step and returns what came of it, without what differs from run to run.
    fn run(&mut self, step: &Step) -> Vec<String> {
        let root = self.root.path("/").display().to_string();
        let lines = self.perform(step);
        lines.into_iter().map(|line| without_times(&line.replace(&root, "[ROOT]/"))).collect()
    }

    fn perform(&mut self, step: &Step) -> Vec<String> {
        let root = &mut self.root;
        match step.words()[..] {
            ["config"] => root.config(&step.input),
            ["write", path] => root.write(path, &step.input),
            ["rm", path] => fs::remove_file(root.path(path)).unwrap(),
            ["rm", "-r", path] => fs::remove_dir_all(root.path(path)).unwrap(),
            ["chmod", mode, path] => {
                let mode = u32::from_str_radix(mode, 8).expect("an octal mode");
                fs::set_permissions(root.path(path), Permissions::from_mode(mode)).unwrap();
            }
            ["controller", ports] => root.controller(ports.parse().expect("a number of ports")),
            ["controller", ports, "at", devpath] => {
                root.controller_at(devpath, ports.parse().expect("a number of ports"));
            }
            ["ports", hub, ports] => root.hub_ports(hub, ports.parse().expect("a number of ports")),
            ["path_id", port] => return root.path_id(port).into(),
            ["pair", one, other] => root.pair(one, other),
            ["plug", port, kind, devnum] => {
                let devnum = devnum.strip_prefix("devnum=").expect("devnum=N");
                root.plug(port, kind, devnum.parse().unwrap());
            }
            ["pull", port] => root.pull(port),
            ["driver", interface, driver] => root.bind_driver(interface, driver),
            ["disk", port, name, number] => root.add_disk(port, name, number),
            ["program", pid, executable, node] => root.add_program(pid, executable, node),
            ["cat", path] => {
                let text = fs::read_to_string(root.path(path)).unwrap();
                return or_nothing(text.lines().map(str::to_owned).collect());
            }
            ["attribute", port, name, value] => root.set_attribute(port, name, value),
            ["udev", action, name, ref rest @ ..] => return self.udev(action, name, rest),
            ["sigkill"] => self.begun.pop().expect("a program that runs").kill(),
            ["wait"] => return self.begun.drain(..).flat_map(|run| told(&run.end())).collect(),
            ["await", path] => {
                let (path, deadline) = (root.path(path), Deadline::after(PATIENCE));
                while !path.exists() {
                    assert!(deadline.remaining().is_some(), "there never was {}", path.display());
                    thread::sleep(Duration::from_millis(5));
                }
            }
            ["state"] => return state(root),
            ["findings", kind] => return findings(root, kind),
            ["hotplugger", ref arguments @ ..] => return told(&run_manual(root, arguments)),
            ["qemu", vm, ref arguments @ ..] => {
                let said = |word| arguments.contains(&word);
                let mut all = if said("running") { vec![] } else { vec!["-S"] };
                all.extend(CONTROLLER.iter().filter(|_| !said("bare")));
                all.extend(arguments.iter().filter(|word| !["running", "bare"].contains(word)));
                self.vms.insert(vm.to_owned(), Qemu::start(root, vm, &all));
            }
            ["objects", vm] => return or_nothing(self.vms[vm].objects()),
            ["monitor", vm, ref command @ ..] => {
                let said = self.vms[vm].monitor(&command.join(" "));
                return said.lines().map(str::to_owned).collect();
            }
            ["hold", vm] => {
                self.clients.insert(vm.to_owned(), self.vms[vm].connect());
            }
            ["release", vm] => drop(self.clients.remove(vm).expect("a client")),
            ["freeze", vm] => self.vms[vm].freeze(),
            ["kill", vm] => self.vms.get_mut(vm).expect("a virtual machine").kill(),
            _ => panic!("no such step; tests/scenarios.rs has a list"),
        }
        Vec::new()
    }

    fn udev(&mut self, action: &str, name: &str, rest: &[&str]) -> Vec<String> {
        let mut event = self.root.event(action, name);
        let (in_background, changes) = match rest {
            [changes @ .., "&"] => (true, changes),
            changes => (false, changes),
        };
        for change in changes {
            let (variable, value) = change.split_once('=').expect("VARIABLE=VALUE");
            event.set(variable, value);
        }
        let run = event.start(&self.root);
        if in_background {
            self.begun.push(run);
            return Vec::new();
        }
        told(&run.end())
    }
}

/// All that a run told the world.
fn told(run: &Ended) -> Vec<String> {
    let lines = run.stdout.lines().chain(run.stderr.lines());
    // An empty line would end the step.
    let lines = lines.filter(|line| !line.is_empty()).map(str::to_owned);
    lines.chain((run.status != 0).then(|| format!("exit {}", run.status))).collect()
}

/// The records, one a line, in `/tmp` or where that cannot be used.
fn state(root: &Root) -> Vec<String> {
    let mut lines = Vec::new();
    for parent in ["/tmp", "/run"] {
        let Ok(files) = root.path(format!("{parent}/hotplugger")).read_dir() else { continue };
        let paths = files.map(|file| file.unwrap().path());
        for path in paths.filter(|path| path.extension().is_some_and(|end| end == "json")) {
            let record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let device = format!("{}: devnum {}", text(&record["port"]), record["devnum"]);
            let attached = match &record["attached"] {
                Value::Null => String::new(),
                to => format!(", attached to {} as {}", text(&to["vm"]), text(&to["id"])),
            };
            let place = if parent == "/tmp" { "" } else { " (in /run)" };
            lines.push(format!("{device}{attached}{place}"));
        }
    }
    lines.sort();
    or_nothing(lines)
}

fn findings(root: &Root, kind: &str) -> Vec<String> {
    let report: Value =
        serde_json::from_str(&run_manual(root, &["check", "--json"]).stdout).unwrap();
    let mut lines = Vec::new();
    for finding in report["findings"].as_array().unwrap() {
        let text = |key: &str| finding[key].as_str().unwrap();
        if text("code").starts_with(kind) {
            lines.push(format!("{} {}: {}", text("level"), text("where"), text("what")));
            lines.extend(finding["remedy"]["add"].as_str().map(|line| format!("    add {line}")));
        }
    }
    or_nothing(lines)
}

fn or_nothing(lines: Vec<String>) -> Vec<String> {
    if lines.is_empty() { vec!["nothing".to_owned()] } else { lines }
}

/// Puts `[T] s` for each measured time, which are those with three decimals.
fn without_times(line: &str) -> String {
    let mut words: Vec<&str> = line.split(' ').collect();
    let timed: Vec<usize> = words
        .windows(2)
        .enumerate()
        .filter(|(_, pair)| pair[1].starts_with('s'))
        .filter(|(_, pair)| {
            let (whole, decimals) = pair[0].split_once('.').unwrap_or_default();
            let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            digits(whole.trim_start_matches('(')) && digits(decimals) && decimals.len() == 3
        })
        .map(|(index, _)| index)
        .collect();
    for index in timed {
        words[index] = if words[index].starts_with('(') { "([T]" } else { "[T]" };
    }
    words.join(" ")
}

#[test]
fn measured_times_are_left_out_and_configured_ones_are_not() {
    let line = "attached, 1.234 s after the kernel's add (1.000 s settling, 0.123 s with QEMU)";
    let bare = "attached, [T] s after the kernel's add ([T] s settling, [T] s with QEMU)";
    assert_eq!(without_times(line), bare);
    assert_eq!(without_times("no reply within 0.5 s: 1.2.3 s"), "no reply within 0.5 s: 1.2.3 s");
}
