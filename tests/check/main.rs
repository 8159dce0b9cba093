//! `hotplugger check` on an intact host, and with problems injected one by one: each must be found, and
//! its remedy must clear it.

// A test that cannot go on has failed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod host;
mod server;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use host::{Host, PCI, RULE, XHCI};
use serde_json::Value;

/// A problem: its code, how to inject it, how to fix it.
#[derive(Clone, Copy)]
struct Case(&'static str, fn(&mut Host), Fix);

#[derive(Clone, Copy)]
enum Fix {
    /// As the finding says: run the command, edit the config.
    Remedy,
    /// Manually, as the finding says in words.
    Hand(fn(&mut Host)),
}

use Fix::{Hand, Remedy};

fn config_again(host: &mut Host) {
    host.write("/etc/hotplugger/config.yaml", &host::config());
}

fn rule_again(host: &mut Host) {
    host.write_rule(RULE);
}

const UUID: &str = "c7a5fdbd-edaf-9455-926a-d65c16db1809";

fn domain(name: &str) -> String {
    format!("<domain type='kvm'>\n  <name>{name}</name>\n  <uuid>{UUID}</uuid>\n</domain>\n")
}

fn no_socket(host: &mut Host) {
    host.remove("/run/windows.qmp");
}

/// With `access: auto` and `fd` QEMU need not open any node.
fn start_qemu_that_opens_nodes(host: &mut Host) -> u32 {
    host.config_with("timeout: 6", "timeout: 6\n    access: node");
    host.start_qemu(&[XHCI])
}

fn qemu_again(host: &mut Host) {
    host.start_qemu(&[XHCI]);
}

const CONFIG: &[Case] = &[
    Case("config-none", |host| host.remove("/etc/hotplugger/config.yaml"), Hand(config_again)),
    Case("config-syntax", |host| host.config_with("timeout:", "timeuot:"), Hand(config_again)),
    Case(
        "config-syntax",
        |host| fs::write(host.path("/etc/hotplugger/config.yaml"), b"\n\xff").unwrap(),
        Hand(config_again),
    ),
    Case(
        "config-spelling",
        |host| host.config_with("socket: /run/windows.qmp", "socket: ../../run/windows.qmp"),
        Hand(config_again),
    ),
    Case(
        "config-spelling",
        |host| host.config_with("usb1/1-2\n", "usb1/1-2/\n"),
        Hand(config_again),
    ),
    Case(
        "config-empty",
        |host| host.write("/etc/hotplugger/config.yaml", "virtual_machines:\n"),
        Hand(config_again),
    ),
    Case("config-writable", |host| host.chmod("/etc/hotplugger/config.yaml", 0o666), Remedy),
    Case("config-writable", |host| host.chmod("/etc/hotplugger", 0o777), Remedy),
    Case(
        "config-unreadable",
        |host| {
            host.remove("/etc/hotplugger/config.yaml");
            fs::create_dir(host.path("/etc/hotplugger/config.yaml")).unwrap();
        },
        Hand(|host| {
            fs::remove_dir(host.path("/etc/hotplugger/config.yaml")).unwrap();
            config_again(host);
        }),
    ),
    Case(
        "socket-shared",
        |host| host.config_with("/run/linux.qmp", "/run/windows.qmp"),
        Hand(config_again),
    ),
];

const PORTS: &[Case] = &[
    Case(
        "ports-none",
        |host| {
            let more = "  new:\n    socket: /run/new.qmp\n    ports:\n";
            host.write("/etc/hotplugger/config.yaml", &(host::config() + more));
        },
        Hand(config_again),
    ),
    Case("port-missing", |host| host.config_with("usb1/1-2", "usb1/1-9"), Hand(config_again)),
    Case(
        "port-incomplete",
        |host| host.config_with("/devices/pci0000:00/0000:00:14.0/usb1/1-2", "usb1/1-2"),
        Remedy,
    ),
    Case(
        "port-missing",
        |host| host.config_with(&format!("{PCI}/usb1/1-2"), "1-9"),
        Hand(config_again),
    ),
    Case(
        "port-bus-moved",
        |host| {
            let config = host::config().replace("usb2/2-", "usb6/6-").replace("usb1/1-", "usb5/5-");
            host.write("/etc/hotplugger/config.yaml", &config);
        },
        Remedy,
    ),
    Case(
        "port-no-controller",
        |host| host.config_with("0000:00:14.0/usb1/1-2", "0000:00:1d.0/usb1/1-2"),
        Hand(config_again),
    ),
    Case(
        "port-twice",
        |host| host.config_with("usb1/1-2\n", "usb1/1-2\n      - pci-0000:00:14.0/usb2:2\n"),
        Remedy,
    ),
    Case(
        "port-peer-apart",
        |host| {
            let config = host::config();
            let config = config.replace("usb1/1-1", "x").replace("usb1/1-2", "usb1/1-1");
            host.write("/etc/hotplugger/config.yaml", &config.replace('x', "usb1/1-2"));
        },
        Hand(config_again),
    ),
    Case(
        "port-nested",
        |host| host.config_with("usb1/1-2\n", &format!("usb1/1-2\n      - {PCI}/usb1/1-1/1-1.3\n")),
        Hand(config_again),
    ),
];

const RULES: &[Case] = &[
    Case("rule-none", |host| host.remove("/etc/udev/rules.d/99-hotplugger.rules"), INSTALL),
    Case(
        "rule-masked",
        |host| {
            host.write("/usr/lib/udev/rules.d/99-hotplugger.rules", RULE);
            host.remove("/etc/udev/rules.d/99-hotplugger.rules");
            symlink("/dev/null", host.path("/etc/udev/rules.d/99-hotplugger.rules")).unwrap();
        },
        Remedy,
    ),
    Case(
        "rule-old",
        |host| {
            host.write_rule(
                "SUBSYSTEM==\"usb\", ACTION==\"add\", RUN+=\"/usr/bin/hotplugger\"\n\
                 SUBSYSTEM==\"usb\", ACTION==\"remove\", RUN+=\"/usr/bin/hotplugger\"\n",
            );
        },
        Hand(rule_again),
    ),
    Case(
        "rule-never-attaches",
        |host| host.write_rule(&RULE.replace("add|bind|remove", "remove")),
        Hand(rule_again),
    ),
    Case(
        "rule-never-detaches",
        |host| host.write_rule(&RULE.replace("add|bind|remove", "add|bind")),
        Hand(rule_again),
    ),
    Case(
        "rule-twice",
        |host| {
            let rule = "SUBSYSTEM==\"usb\", RUN+=\"/usr/bin/hotplugger\"\n";
            host.write("/etc/udev/rules.d/50-old.rules", rule);
        },
        Hand(|host| host.remove("/etc/udev/rules.d/50-old.rules")),
    ),
    Case("udevd-stopped", Host::stop_udevd, Hand(Host::start_udevd)),
    Case("program-missing", |host| host.remove("/usr/bin/hotplugger"), Remedy),
    Case(
        "program-not-executable",
        |host| {
            host.copy_program();
            host.chmod("/usr/bin/hotplugger", 0o644);
        },
        Remedy,
    ),
    Case("program-writable", |host| host.chmod("/usr/bin", 0o777), Remedy),
    Case(
        "program-other",
        |host| {
            host.remove("/usr/bin/hotplugger");
            host.write("/usr/bin/hotplugger", "#!/bin/sh\n");
            host.chmod("/usr/bin/hotplugger", 0o755);
        },
        Remedy,
    ),
];

const UNITS: &[Case] = &[
    Case(
        "libvirt-guests",
        |host| {
            let wants = host.path("/etc/systemd/system/multi-user.target.wants");
            fs::create_dir_all(&wants).unwrap();
            symlink(
                "/lib/systemd/system/libvirt-guests.service",
                wants.join("libvirt-guests.service"),
            )
            .unwrap();
            host.write("/etc/default/libvirt-guests", "# ON_SHUTDOWN=shutdown\n");
        },
        Hand(|host| host.write("/etc/default/libvirt-guests", "ON_SHUTDOWN=shutdown\n")),
    ),
    Case(
        "unit-selinux",
        |host| host.write("/sys/fs/selinux/enforce", "1"),
        Hand(|host| host.install_with(&["--no-libvirt"])),
    ),
    Case(
        "unit-missing",
        |host| host.remove(&format!("{WANTS}/hotplugger-sync@linux.path")),
        INSTALL,
    ),
    Case(
        "unit-missing",
        |host| host.remove(&format!("{UNIT_DIR}/hotplugger-sync@linux.path")),
        INSTALL,
    ),
    Case(
        "unit-missing",
        |host| {
            let more =
                "  third:\n    socket: /run/third.qmp\n    ports: [pci-0000:00:14.0/usb2:3]\n";
            host.write("/etc/hotplugger/config.yaml", &(host::config() + more));
        },
        INSTALL,
    ),
    Case("unit-stale", |host| host.config_with("/run/linux.qmp", "/run/l2.qmp"), INSTALL),
    Case("unit-stale", |host| host.chmod("/etc/libvirt/hooks/qemu.d/hotplugger", 0o644), INSTALL),
    Case(
        "unit-stale",
        |host| host.write(&format!("{UNIT_DIR}/hotplugger-sync@.service"), "[Service]\n"),
        INSTALL,
    ),
    Case(
        "unit-left-over",
        |host| host.write(&format!("{UNIT_DIR}/hotplugger-sync@old.path"), "[Path]\n"),
        INSTALL,
    ),
    Case(
        "unit-impossible",
        |host| {
            host.config_with("  linux:", "  $linux:");
            host.install();
        },
        Hand(|host| {
            config_again(host);
            host.install();
        }),
    ),
];

const UNIT_DIR: &str = "/etc/systemd/system";
const WANTS: &str = "/etc/systemd/system/paths.target.wants";
/// The remedy is `hotplugger install`; below another root it wants to be told so.
const INSTALL: Fix = Hand(|host| host.install());

const STATE: &[Case] = &[
    Case("tmp-unsafe", |host| host.chmod("/tmp", 0o777), Remedy),
    Case("state-unsafe", |host| host.write("/tmp/hotplugger/x", ""), Remedy),
    Case("state-unsafe", |host| symlink("/etc", host.path("/tmp/hotplugger")).unwrap(), Remedy),
];

const SOCKETS: &[Case] = &[
    Case("socket-directory-writable", |host| host.chmod("/run", 0o777), Remedy),
    // Everybody can create `vm` while it does not exist, and the config names no user.
    Case(
        "socket-directory-writable",
        |host| {
            fs::create_dir(host.path("/run/vm")).unwrap();
            host.chmod("/run/vm", 0o755);
            host.chmod("/run", 0o1777);
            let config = host::config().replace("/run/", "/run/vm/");
            host.write("/etc/hotplugger/config.yaml", &config);
        },
        Hand(|host| host.chmod("/run", 0o755)),
    ),
    Case(
        "socket-stale",
        |host| drop(UnixListener::bind(host.path("/run/windows.qmp")).unwrap()),
        Remedy,
    ),
    Case("socket-not-qmp", |host| host.write("/run/windows.qmp", ""), Hand(no_socket)),
    Case(
        "socket-not-qmp",
        |host| server::serve(&host.path("/run/windows.qmp"), "QEMU 7.2 monitor", server::intact),
        Hand(no_socket),
    ),
    Case(
        "qemu-old",
        |host| {
            let old = r#"{"QMP": {"version": {"qemu": {"major": 4, "minor": 2, "micro": 1}}}}"#;
            server::serve(&host.path("/run/windows.qmp"), old, server::intact);
        },
        Hand(no_socket),
    ),
    Case(
        "qemu-no-usb-host",
        |host| {
            let socket = host.path("/run/windows.qmp");
            server::serve(&socket, r#"{"QMP": {}}"#, server::without_usb_host);
        },
        Hand(no_socket),
    ),
];

const GUESTS: &[Case] = &[
    Case(
        "domain-in-session",
        |host| {
            host.config_with("socket: /run/linux.qmp", "domain: linux");
            host.start_session_domain("linux");
        },
        Hand(config_again),
    ),
    // Renamed from `linux`.
    Case(
        "domain-unknown",
        |host| {
            host.config_with("socket: /run/linux.qmp", "domain: linux");
            host.write("/etc/libvirt/qemu/debian.xml", &domain("debian"));
        },
        Hand(config_again),
    ),
    Case(
        "domain-unknown",
        |host| {
            host.config_with("socket: /run/linux.qmp", &format!("domain: {UUID}"));
            host.write("/etc/libvirt/qemu/debian.xml", &domain("debian"));
            let (report, _) = host.check();
            let finding = found(&report, "domain-unknown").next().unwrap();
            assert_eq!(finding["remedy"]["text"], "write `domain: debian`");
        },
        Hand(config_again),
    ),
    Case(
        "socket-busy",
        |host| {
            host.start_qemu(&[XHCI]);
            let client = UnixStream::connect(host.path("/run/windows.qmp")).unwrap();
            // QEMU takes it before the check comes.
            thread::sleep(Duration::from_millis(300));
            host.kept.push(Box::new(client));
            let (report, _) = host.check();
            let what = found(&report, "socket-busy").next().unwrap()["what"].as_str().unwrap();
            let this = format!("(process {}) is connected to the socket", std::process::id());
            assert!(what.contains(&this), "{what}");
        },
        Hand(|host| host.kept.clear()),
    ),
    Case(
        "qemu-stopped",
        |host| {
            let pid = host.start_qemu(&[XHCI]);
            run(&format!("kill -STOP {pid}"));
        },
        Remedy,
    ),
    Case("guest-no-controller", |host| _ = host.start_qemu(&[]), Hand(qemu_again)),
    Case("guest-no-xhci", |host| _ = host.start_qemu(&["usb-ehci,id=xhci0"]), Hand(qemu_again)),
    Case(
        "guest-no-bus",
        |host| _ = host.start_qemu(&["qemu-xhci,id=usb,p2=15,p3=15"]),
        Hand(qemu_again),
    ),
];

const ACCESS: &[Case] = &[
    Case(
        "node-denied",
        |host| {
            let pid = start_qemu_that_opens_nodes(host);
            host.make_proc(pid, Path::new("/"), "unconfined\n");
        },
        // As udev would make the node with the remedy's rule: open to QEMU.
        Hand(|host| host.chmod("/dev/bus/usb/001/005", 0o666)),
    ),
    Case(
        "node-hidden",
        |host| {
            let pid = start_qemu_that_opens_nodes(host);
            host.chmod("/dev/bus/usb/001/005", 0o666);
            host.make_proc(pid, &host.path("/run"), "unconfined\n");
        },
        Hand(|host| {
            let process = fs::read_dir(host.path("/proc")).unwrap().next().unwrap().unwrap();
            let root = process.path().join("root");
            fs::remove_file(&root).unwrap();
            symlink("/", root).unwrap();
        }),
    ),
    Case(
        "apparmor",
        |host| {
            let pid = start_qemu_that_opens_nodes(host);
            host.chmod("/dev/bus/usb/001/005", 0o666);
            host.make_proc(pid, Path::new("/"), "libvirt-1234 (enforce)\n");
        },
        Hand(|host| {
            let process = fs::read_dir(host.path("/proc")).unwrap().next().unwrap().unwrap();
            fs::write(process.path().join("attr/current"), "libvirt-1234 (complain)\n").unwrap();
        }),
    ),
    Case("not-authorized", |host| host.set_attribute("1-1", "authorized", "0"), Remedy),
    Case(
        "interface-not-authorized",
        |host| {
            host.bind_driver("1-1:1.0", "none");
            host.write(&format!("/sys{PCI}/usb1/1-1/1-1:1.0/authorized"), "0\n");
        },
        Remedy,
    ),
];

#[test]
fn injected_problems_of_the_config_are_found_and_fixed() {
    inject_each(CONFIG);
}

#[test]
fn injected_problems_of_ports_are_found_and_fixed() {
    inject_each(PORTS);
}

#[test]
fn injected_problems_of_the_rule_are_found_and_fixed() {
    inject_each(RULES);
}

#[test]
fn injected_problems_of_the_state_folder_are_found_and_fixed() {
    inject_each(STATE);
}

#[test]
fn injected_problems_of_sockets_are_found_and_fixed() {
    inject_each(SOCKETS);
}

#[test]
fn injected_problems_of_guests_are_found_and_fixed() {
    inject_each(GUESTS);
}

#[test]
fn injected_problems_of_access_are_found_and_fixed() {
    inject_each(ACCESS);
}

#[test]
fn injected_problems_of_units_and_hooks_are_found_and_fixed() {
    inject_each_in(UNITS, || {
        let host = Host::new();
        for folder in ["/run/systemd/system", "/etc/libvirt"] {
            fs::create_dir_all(host.path(folder)).unwrap();
        }
        host.install();
        host
    });
}

#[test]
fn a_machine_without_units_and_hooks_is_told_so_as_a_note() {
    let host = Host::new();
    fs::create_dir_all(host.path("/run/systemd/system")).unwrap();
    let (report, success) = host.check();
    let codes: Vec<&Value> = found(&report, "unit-none").collect();
    assert!(success && codes.len() == 2, "{report:#}");
    assert!(codes.iter().all(|finding| finding["level"] == "note"), "{report:#}");
}

fn inject_each(cases: &[Case]) {
    inject_each_in(cases, Host::new);
}

fn inject_each_in(cases: &[Case], intact: impl Fn() -> Host) {
    for Case(code, inject, fix) in cases {
        let mut host = intact();
        inject(&mut host);
        let (report, success) = host.check();
        let findings: Vec<&Value> = found(&report, code).collect();
        assert!(!findings.is_empty(), "{code} is not found: {report:#}");
        let is_error = findings.iter().any(|finding| finding["level"] == "error");
        assert!(!(is_error && success), "{code} is an error, and the exit status is 0");
        for finding in findings {
            assert!(!finding["remedy"].is_null(), "{code} has no remedy: {finding:#}");
            match fix {
                Remedy => apply(&host, &finding["remedy"]),
                Hand(_) => {}
            }
        }
        if let Hand(hand) = fix {
            hand(&mut host);
        }
        let output = host.run(&[]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("no problem found: "), "{code} is not cleared:\n{text}");
        assert_eq!((text.lines().count(), output.status.code()), (1, Some(0)), "{code}: {text}");
    }
}

fn found<'a>(report: &'a Value, code: &'a str) -> impl Iterator<Item = &'a Value> {
    report["findings"].as_array().unwrap().iter().filter(move |finding| finding["code"] == code)
}

fn apply(host: &Host, remedy: &Value) {
    match remedy["kind"].as_str().unwrap() {
        "command" => run(remedy["run"].as_str().unwrap()),
        "edit" => {
            let file = remedy["file"].as_str().unwrap();
            assert_eq!(Path::new(file), host.path("/etc/hotplugger/config.yaml"));
            let text = fs::read_to_string(file).unwrap();
            fs::write(file, edit(&text, remedy)).unwrap();
        }
        other => panic!("{other} cannot be applied: {remedy:#}"),
    }
}

/// Does what an `edit` says: a line of a machine's `ports:` goes, comes, or both.
fn edit(text: &str, remedy: &Value) -> String {
    let mut vm = "";
    let mut edited = String::new();
    for line in text.lines() {
        if line.starts_with("  ") && !line.starts_with("   ") {
            vm = line.trim().trim_end_matches(':');
        }
        let here = remedy["vm"] == vm;
        let goes = here && remedy["remove"] == line.trim();
        let comes = goes || here && remedy["remove"].is_null() && line.trim() == "ports:";
        if !goes {
            edited.extend([line, "\n"]);
        }
        if let (true, Some(add)) = (comes, remedy["add"].as_str()) {
            edited.extend(["      ", add, "\n"]);
        }
    }
    assert_ne!(text, edited, "{remedy:#}");
    edited
}

fn run(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

#[test]
fn intact_host_gets_one_line() {
    let mut host = Host::new();
    host.start_qemu(&[XHCI]);
    let output = host.run(&[]);
    let line = String::from_utf8(output.stdout).unwrap();
    // That the keyboard is not attached is a note, unless a hotplugger of another test is running.
    let notes = [3, 4].map(|notes| format!("({notes} notes with -v)\n"));
    let expected = "no problem found: 2 VMs (1 not running), 4 ports, rule, state ";
    let rest = line.strip_prefix(expected).unwrap_or_else(|| panic!("{line}"));
    assert!(notes.iter().any(|notes| notes == rest), "{line}");
    assert!(output.status.success() && output.stderr.is_empty());
    assert!(!host.path("/tmp/hotplugger").exists(), "check has created the state directory");
    let told = String::from_utf8(host.run(&["-v"]).stdout).unwrap();
    for part in
        ["ok      ", "note    ", "QEMU ", "xhci0.0", "is passed the devices", "no problem found"]
    {
        assert!(told.contains(part), "{part} is missing:\n{told}");
    }
    assert!(!told.contains('\u{1b}'), "{told:?}");
}

#[test]
fn wrong_line_of_the_config_is_shown_and_marked() {
    let host = Host::new();
    host.config_with("timeout:", "timeuot:");
    let output = host.run(&[]);
    let told = String::from_utf8(output.stdout).unwrap();
    let config = host.path("/etc/hotplugger/config.yaml");
    assert!(told.contains(&format!("error   {}:4:5: ", config.display())), "{told}");
    assert!(told.contains("          4 |     timeuot: 6\n            |     ^^^^^^^^\n"), "{told}");
    assert!(told.ends_with("1 error (2 notes with -v)\n"), "the other VM is checked: {told}");
    assert_eq!(output.status.code(), Some(1));
}

/// The listing is the output on such a host. The example in the documentation has its warning only.
#[test]
fn json_is_as_documented() {
    let host = Host::new();
    let config = format!(
        "virtual_machines:\n  windows:\n    socket: /run/windows.qmp\n    \
         ports: [pci-0000:00:14.0/usb2:1, {PCI}/usb1/1-1]\n"
    );
    host.write("/etc/hotplugger/config.yaml", &config);
    let json = String::from_utf8(host.run(&["--json"]).stdout).unwrap();
    let json = json.replace(host.path("/").to_str().unwrap(), "/");
    assert_eq!(
        json,
        include_str!("../listings/check.json"),
        "is tests/listings/check.json to be changed?"
    );
    let section = include_str!("../../docs/json.md").split("## `check --json`").nth(1);
    let example = section.and_then(|section| section.split("```json\n").nth(1));
    let example = example.and_then(|example| example.split("```").next()).unwrap();
    let mut report: Value = serde_json::from_str(&json).unwrap();
    report["findings"].as_array_mut().unwrap().retain(|finding| finding["level"] == "warning");
    assert_eq!(serde_json::from_str::<Value>(example).unwrap(), report, "docs/json.md has another");
}

/// The codes in the source of the findings.
fn codes_in(directory: &Path) -> Vec<String> {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let (directories, files): (Vec<_>, Vec<_>) = paths.partition(|path| path.is_dir());
    let mut codes: Vec<String> = directories.iter().flat_map(|path| codes_in(path)).collect();
    for text in files.iter().map(|path| fs::read_to_string(path).unwrap()) {
        let (product, _) = text.split_once("#[cfg(test)]").unwrap_or((&text, ""));
        for call in product.split("Finding::").skip(1) {
            let (_, arguments) = call.split_once('(').unwrap_or_default();
            let code =
                arguments.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
            codes.extend(code.map(str::to_owned));
        }
    }
    codes
}

/// Every code is documented.
#[test]
fn codes_are_documented() {
    let documented = include_str!("../../docs/json.md");
    let codes = codes_in(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/check")));
    assert!(codes.len() > 80, "{codes:?}");
    for code in codes {
        assert!(documented.contains(&format!("`{code}`")), "{code}");
    }
    for Case(code, ..) in [CONFIG, PORTS, RULES, UNITS, STATE, SOCKETS, GUESTS, ACCESS].concat() {
        assert!(documented.contains(&format!("`{code}`")), "{code}");
    }
}

/// What a QEMU without USB controllers answers, in which the device of port 1-1 is attached.
const VIRSH: &str = r#"#!/bin/sh
case "$*" in
*qom-list*) echo '{"return": [{"name": "hotplugger-1-1-5", "type": "child<usb-host>"}]}' ;;
*attached*) echo '{"return": true}' ;;
*query-status*) echo '{"return": {"running": true}}' ;;
*qtree*) echo '{"return": ""}' ;;
*) echo '{"return": {}}' ;;
esac
"#;

#[test]
fn device_that_the_qemu_of_a_domain_has_open_is_not_claimed() {
    let host = Host::new();
    host.config_with("socket: /run/windows.qmp", "domain: windows");
    host.write("/usr/bin/virsh", VIRSH);
    host.chmod("/usr/bin/virsh", 0o755);
    host.bind_driver("1-1:1.0", "usbfs");
    host.make_proc(4711, Path::new("/"), "unconfined\n");
    fs::create_dir(host.path("/proc/4711/fd")).unwrap();
    symlink("/dev/bus/usb/001/005", host.path("/proc/4711/fd/9")).unwrap();
    for (pid, claimed) in [("4711", 0), ("4712", 1)] {
        host.write("/run/libvirt/qemu/windows.pid", pid);
        let (report, _) = host.check();
        assert_eq!(found(&report, "socket-answers").count(), 1, "{report:#}");
        assert_eq!(found(&report, "device-claimed").count(), claimed, "{report:#}");
    }
}

#[test]
fn notes_are_not_errors() {
    let mut host = Host::new();
    host.start_qemu(&["qemu-xhci,id=xhci0"]);
    host.write("/tmp/hotplugger/port-1-3.json", "{}");
    host.chmod("/tmp/hotplugger", 0o700);
    host.config_with("usb1/1-2\n", &format!("usb1/1-2\n      - {PCI}/usb1/1-2/1-2.3\n"));
    let (report, success) = host.check();
    assert!(success, "{report:#}");
    assert_eq!((&report["ok"], &report["counts"]["warning"]), (&true.into(), &0.into()));
    for code in [
        "guest-few-ports",
        "guest-paused",
        "state-leftovers",
        "port-hub-away",
        "port-redundant",
        "vm-off",
    ] {
        assert_eq!(found(&report, code).count(), 1, "{code}: {report:#}");
    }
    for code in ["state-leftovers", "port-redundant"] {
        apply(&host, &found(&report, code).next().unwrap()["remedy"]);
    }
    let (report, _) = host.check();
    assert_eq!(
        found(&report, "state-leftovers").chain(found(&report, "port-redundant")).count(),
        0
    );
}

#[test]
fn facts_for_root_only_are_listed_once() {
    let mut host = Host::new();
    host.start_qemu(&[XHCI]);
    host.write("/tmp/hotplugger/port-1-1.json", "{}");
    host.chmod("/tmp/hotplugger", 0o700);
    let Some(output) = host.run_as_nobody() else { return };
    let told = String::from_utf8(output.stdout).unwrap();
    let last = told.lines().last().unwrap();
    let folder = host.path("/tmp/hotplugger");
    let skipped = format!("the files in {}, the socket and QEMU of `windows`", folder.display());
    assert_eq!(last, format!("skipped without root: {skipped}"), "{told}");
    assert!(
        told.starts_with("no problem in what could be read (") && output.status.success(),
        "{told}"
    );

    host.chmod("/etc/hotplugger/config.yaml", 0o600);
    let told = String::from_utf8(host.run_as_nobody().unwrap().stdout).unwrap();
    assert!(told.contains("skipped without root: the config "), "{told}");
    assert!(!told.contains("error"), "{told}");
}
