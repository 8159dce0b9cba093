//! What an event of a port that nobody configured costs: less than half of `/bin/true`, with 500 ports
//! about as much, and a look at two files.
//!
//! An event of a configured port: its system calls, printed, and that there is one connection.
//!
//! Measured on the released program, which `make` names in `HOTPLUGGER_RELEASE`; what is under test
//! otherwise is built for other ends. Instructions, not time: they are the same in each run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test ends with a panic and says what it measured"
)]

mod support;

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use support::qemu::Qemu;
use support::report::report;
use support::root::Root;
use support::udev::Event;

/// A controller that is not on PCI, below /devices.
const SOC: &str = "platform/fe980000.usb";

/// The released program, if it and the tool are there; says so loudly if not.
fn released(tool: &str) -> Option<OsString> {
    let missing = |what: &str| report(&format!("cost of an event: skipped, {what}"));
    let Some(program) = env::var_os("HOTPLUGGER_RELEASE") else {
        missing("HOTPLUGGER_RELEASE does not name the released program; `make unit` does");
        return None;
    };
    assert!(Path::new(&program).is_absolute(), "HOTPLUGGER_RELEASE must be an absolute path");
    assert!(Path::new(&program).exists(), "{} is not there", Path::new(&program).display());
    if Command::new(tool).arg("--version").output().is_err() {
        missing(&format!("{tool} is not installed"));
        return None;
    }
    Some(program)
}

/// A host with a keyboard in port 1-1, and so many other ports of a controller configured.
fn host(controller: &str, ports: usize) -> Root {
    host_with("/devices/pci0000:00/0000:00:14.0", controller, ports)
}

/// The same, where the keyboard's controller has that DEVPATH.
fn host_with(own: &str, controller: &str, ports: usize) -> Root {
    let mut root = Root::new();
    root.controller_at(own, 4);
    root.plug("1-1", "keyboard", 5);
    let mut config = "virtual_machines:\n".to_owned();
    for port in 0..ports {
        let (machine, number) = (port / 10, port % 10 + 1);
        if port % 10 == 0 {
            let socket = format!("/run/vm{machine}.qmp");
            write!(config, "  vm{machine}:\n    socket: {socket}\n    ports:\n").unwrap();
        }
        // Never port 1, and never the same twice.
        let (one, two) = (machine % 8 + 2, machine / 8 + 1);
        writeln!(config, "      - pci-{controller}/usb2:{one}.{two}.{number}").unwrap();
    }
    root.config(&config);
    root
}

/// Runs a program on an event below a tool, and returns what the tool writes.
fn below(tool: &[&str], program: &OsString, event: &Event, root: &Root) -> String {
    let mut command = Command::new(tool[0]);
    event.set_up(&mut command, root);
    let output = command
        .args(&tool[1..])
        .arg(program)
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .output()
        .unwrap();
    let trace = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{trace}");
    trace
}

fn instructions(program: &OsString, event: &Event, root: &Root) -> u64 {
    let tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"];
    let trace = below(&tool, program, event, root);
    let count = trace.lines().find_map(|line| line.split_once("Collected : "));
    count.and_then(|(_, count)| count.trim().parse().ok()).unwrap_or_else(|| panic!("{trace}"))
}

#[test]
fn it_costs_less_than_bin_true_and_little_more_with_many_ports() {
    let Some(program) = released("valgrind") else { return };
    let (limits, target) = limits();
    for (ports, most) in limits {
        let mut root = host("0000:00:14.0", ports);
        for (action, most) in ["add", "bind", "remove"].into_iter().zip(most) {
            let event = root.event(action, "1-1");
            let baseline = instructions(&"/bin/true".into(), &event, &root);
            let own = instructions(&program, &event, &root);
            report(&format!(
                "{target}: {action} with {ports} unconfigured ports: {own} instructions, {} % of \
                 /bin/true",
                own * 100 / baseline
            ));
            assert!(
                own * 100 <= baseline * most,
                "{ports} ports, {action}: {own} instructions, more than {most} % of {baseline}"
            );
        }
    }
}

/// The most that `add`, `bind` and `remove` may cost where so many ports are configured, in
/// hundredths of `/bin/true`. `remove` looks for a record first.
const MAX_MUSL: [(usize, [u64; 3]); 3] =
    [(1, [40, 40, 50]), (50, [40, 40, 50]), (500, [100, 100, 100])];

/// The same for a program with glibc, whose own start costs most of `/bin/true`'s.
const MAX_GLIBC: [(usize, [u64; 3]); 3] =
    [(1, [100, 100, 100]), (50, [100, 100, 100]), (500, [160, 160, 160])];

/// Whether a line of strace's is a system call that returned. Short ones are filled up with spaces.
fn is_call(line: &str) -> bool {
    line.rsplit_once(" = ").is_some_and(|(call, _)| call.trim_end().ends_with(')'))
}

/// The limits for the build that is measured, and its target.
fn limits() -> ([(usize, [u64; 3]); 3], String) {
    let target = env::var("HOTPLUGGER_RELEASE_TARGET").unwrap_or_default();
    let limits = if target.contains("-gnu") { MAX_GLIBC } else { MAX_MUSL };
    (limits, target)
}

/// Printed, so that a change shows; what is pinned is that nothing is done twice.
#[test]
fn a_configured_port_costs_one_connection_and_no_program() {
    let Some(program) = released("strace") else { return };
    let mut root = host("0000:00:14.0", 50);
    root.config(
        "virtual_machines:\n  windows:\n    socket: /run/windows.qmp\n    delay: 0\n    \
         ports: [pci-0000:00:14.0/usb2:1]\n",
    );
    root.add_disk("1-2", "sda", "8:0");
    let _qemu = Qemu::paused(&root, "windows");
    let event = root.event("bind", "1-1");
    let trace = below(&["strace", "-f"], &program, &event, &root);
    let calls = |name: &str| trace.lines().filter(|line| line.starts_with(name)).count();
    let all = trace.lines().filter(|line| is_call(line)).count();
    println!("{trace}\n{all} system calls");
    assert_eq!(calls("connect("), 1, "{trace}");
    for never in ["clone(", "clone3(", "fork(", "execve(\"/usr"] {
        assert_eq!(calls(never), 0, "{never}: {trace}");
    }
    // A disk of another device's is known by its link.
    let disk = "/sys/class/block/sda";
    assert!(trace.contains(disk) && !trace.contains(&format!("{disk}/")), "{trace}");
    // Each command is one message; of eight with qmp_capabilities none is sent in parts.
    assert!(calls("sendmsg(") <= 8, "{trace}");
    assert!(all <= MAX_CALLS, "{all} system calls: {trace}");
}

/// The most system calls that attaching may take.
const MAX_CALLS: usize = 285;

#[test]
fn it_looks_at_the_config_and_the_other_half_and_nothing_else() {
    let Some(program) = released("strace") else { return };
    let config = "/etc/hotplugger/config.yaml";
    let peer = "/sys/devices/pci0000:00/0000:00:14.0/usb1/1-0:1.0/usb1-port1/peer";
    let soc_peer = "/sys/devices/platform/fe980000.usb/usb1/1-0:1.0/usb1-port1/peer";
    let records = ["/tmp/hotplugger/port-1-1.json", "/run/hotplugger/port-1-1.json"];
    for (controller, action, wanted) in [
        ("0000:00:14.0", "add", &[config, peer][..]),
        ("0000:00:14.0", "bind", &[config, peer]),
        ("0000:00:14.0", "remove", &[config, peer, records[0], records[1]]),
        ("0000:00:1a.0", "bind", &[config]),
        // Off PCI a peer port may be on a controller of any name.
        (SOC, "bind", &[config, soc_peer]),
    ] {
        let mut root = match controller {
            SOC => host_with(&format!("/devices/{SOC}"), "0000:00:1a.0", 50),
            _ => host(controller, 50),
        };
        let event = root.event(action, "1-1");
        let trace = below(&["strace", "-f"], &program, &event, &root);
        println!("{action}:\n{trace}");
        let below = root.path("/").display().to_string();
        let paths: Vec<&str> = trace
            .lines()
            .filter_map(|line| line.split_once(&below)?.1.split('"').next())
            .map(|path| path.trim_start_matches('/'))
            .collect();
        let wanted: Vec<&str> = wanted.iter().map(|path| &path[1..]).collect();
        assert_eq!(paths, wanted, "{trace}");
        for never in
            ["socket(", "connect(", "write(", "mkdir", "O_CREAT", "clone(", "clone3(", "fork("]
        {
            assert!(!trace.contains(never), "{never}: {trace}");
        }
        let calls = trace.lines().filter(|line| is_call(line)).count();
        assert!(calls <= 40, "{calls} system calls: {trace}");
    }
}

/// The released program has no unwinder, which the backtrace of an error would use.
#[test]
fn released_program_prints_errors_with_backtraces_on() {
    let Some(program) = released("true") else { return };
    let output = Command::new(program)
        .args(["--config", "/nonexistent", "status"])
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(printed.contains("/nonexistent"), "{printed}");
}
