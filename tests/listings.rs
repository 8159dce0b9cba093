//! What the listings print, for people and as JSON, compared with `tests/listings/*`.
//!
//! `LISTINGS=overwrite cargo test --test listings` writes those files anew; their form is promised
//! in docs/json.md.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by them, also in the helpers"
)]

mod support;

use std::env;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use support::qemu::Qemu;
use support::root::Root;
use support::udev::run_manual;

const CONFIG: &str = "\
virtual_machines:
  windows:
    socket: /run/windows.qmp
    delay: 0
    ports:
      - /devices/pci0000:00/0000:00:14.0/usb1/1-1
      - /devices/pci0000:00/0000:00:14.0/usb1/1-9
  linux:
    socket: /run/linux.qmp
    ports: [/devices/pci0000:00/0000:00:14.0/usb2/2-2]
";

/// A host with a hub, a keyboard behind it that a paused guest has, and a disk for a guest that does
/// not run.
fn host() -> (Root, Qemu) {
    let mut root = Root::new();
    root.controller(3);
    root.config(CONFIG);
    root.plug("1-1", "hub", 2);
    root.hub_ports("1-1", 2);
    root.plug("1-1.2", "keyboard", 3);
    root.plug("2-2", "storage", 2);
    root.plug("1-3", "tablet", 4);
    let qemu = Qemu::paused(&root, "windows");
    root.event("bind", "1-1.2").run(&root);
    root.event("bind", "2-2").run(&root);
    (root, qemu)
}

/// Compares what a command prints with a file.
fn compare(root: &Root, arguments: &[&str], name: &str) {
    let run = run_manual(root, arguments);
    assert_eq!((run.status, run.stderr.as_str()), (0, ""), "{arguments:?}");
    let temporary = root.path("/").to_string_lossy().trim_end_matches('/').to_owned();
    compare_text(name, &without_times(&run.stdout.replace(&temporary, "")));
}

fn compare_text(name: &str, printed: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/listings").join(name);
    if env::var_os("LISTINGS").is_some_and(|wish| wish == "overwrite") {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, printed).unwrap();
        return;
    }
    let promised = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(promised, printed, "is tests/listings/{name} to be changed?");
}

/// Times and ages are replaced by T.
fn without_times(text: &str) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let line = match line.split_once("\"time\": ").or(line.split_once("\"seconds\": ")) {
            Some((before, value)) if value.starts_with(|digit: char| digit.is_ascii_digit()) => {
                let comma = if value.ends_with(',') { "," } else { "" };
                let key = &line[before.len()..line.len() - value.len()];
                format!("{before}{key}0{comma}")
            }
            _ => match line.split_once(" s ago") {
                Some((_, rest)) => format!("       T ago{rest}"),
                None => line.split_once(" for ").map_or(line.to_owned(), |(before, age)| {
                    let is_age =
                        age.split(' ').next().is_some_and(|age| age.parse::<u64>().is_ok());
                    if is_age { format!("{before} for T") } else { line.to_owned() }
                }),
            },
        };
        lines.push(line + "\n");
    }
    lines.concat()
}

#[test]
fn listings_are_as_promised() {
    let (root, _qemu) = host();
    for command in ["ports", "status"] {
        compare(&root, &[command], &format!("{command}.txt"));
        compare(&root, &[command, "--json"], &format!("{command}.json"));
    }
    compare(&root, &["qemu-args", "windows"], "qemu-args.txt");
    compare(&root, &["qemu-args", "windows", "--json"], "qemu-args.json");
    compare(&root, &["libvirt-xml", "windows"], "libvirt-xml.txt");
}

#[test]
fn a_recording_is_played_as_promised() {
    let (root, _qemu) = host();
    let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/traces/kbd.txt");
    fs::copy(recording, root.path("/run/kbd.txt")).unwrap();
    let file = root.path("/run/kbd.txt");
    let simulate = ["simulate", file.to_str().unwrap(), "--running"];
    compare(&root, &simulate, "simulate.txt");
    compare(&root, &[&simulate[..], &["--json"]].concat(), "simulate.json");
}

/// What the recorded events of each kind of device come to: the same as the live path made of them.
#[test]
fn each_recording_comes_to_its_end() {
    let root = Root::new();
    root.config(&CONFIG.replace("usb1/1-9", "usb1/1-2").replace("usb2/2-2", "usb1/1-3").replace(
        "    ports:\n",
        "    ports:\n      - /devices/pci0000:00/0000:00:14.0/usb2/2-1\n      \
         - /devices/pci0000:00/0000:00:14.0/usb2/2-2\n",
    ));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/traces");
    let mut recordings: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    recordings.sort();
    let mut ends = String::new();
    for recording in recordings {
        writeln!(ends, "{}", recording.file_name().unwrap().display()).unwrap();
        let run =
            run_manual(&root, &["simulate", recording.to_str().unwrap(), "--running", "--json"]);
        let events: Vec<serde_json::Value> = serde_json::from_str(&run.stdout).unwrap();
        for event in events {
            let text = |key: &str| event[key].as_str().unwrap().to_owned();
            let device = text("devpath").rsplit('/').next().unwrap().to_owned();
            writeln!(ends, "  {:6} {device:8} {}", text("action"), text("outcome")).unwrap();
        }
    }
    compare_text("recordings.txt", &ends);
}

#[test]
fn device_that_is_authorized_late_is_attached_when_its_interfaces_appear() {
    let root = Root::new();
    root.config(CONFIG);
    let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/traces/kbd.txt");
    let recording = fs::read_to_string(recording).unwrap();
    let mut blocks: Vec<&str> = recording.split("\n\n").collect();
    let is_bind = |block: &&str| block.contains("] bind ") && block.contains("=usb_device");
    let bind = blocks.iter().position(is_bind).unwrap();
    let bind = blocks.remove(bind);
    let change = blocks.iter().position(|block| block.contains("] change ")).unwrap();
    blocks.insert(change, bind);
    let outcomes = |recording: &str| -> Vec<(String, String)> {
        fs::write(root.path("/run/recording.txt"), recording).unwrap();
        let file = root.path("/run/recording.txt");
        let run = run_manual(&root, &["simulate", file.to_str().unwrap(), "--running", "--json"]);
        let events: Vec<serde_json::Value> = serde_json::from_str(&run.stdout).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        events.iter().map(|event| (text(&event["action"]), text(&event["outcome"]))).collect()
    };
    let expected = |events: &[(&str, &str)]| -> Vec<(String, String)> {
        events.iter().map(|(action, outcome)| ((*action).into(), (*outcome).into())).collect()
    };
    let late =
        [("add", "recorded"), ("bind", "rejected"), ("add", "attached"), ("remove", "detached")];
    assert_eq!(outcomes(&blocks.join("\n\n")), expected(&late));
    // Without its interfaces, nothing is known about the authorization.
    blocks.retain(|block| !block.contains("DEVTYPE=usb_interface"));
    let usual = [("add", "recorded"), ("bind", "attached"), ("remove", "detached")];
    assert_eq!(outcomes(&blocks.join("\n\n")), expected(&usual));
}

#[test]
fn a_rehearsal_touches_nothing() {
    let (root, qemu) = host();
    let before = (listing(&root.path("/tmp/hotplugger")), qemu.objects());
    for target in ["1-1.2", "2-2", "1-3"] {
        for action in ["add", "bind", "remove"] {
            let path = format!("/sys/devices/pci0000:00/0000:00:14.0/usb{}", &target[..1]);
            let path = match target {
                "1-1.2" => format!("{path}/1-1/1-1.2"),
                _ => format!("{path}/{target}"),
            };
            root.write(&format!("{path}/uevent"), "DEVTYPE=usb_device\nBUSNUM=001\nTYPE=0/0/0\n");
            let run = run_manual(&root, &["simulate", &path, "--action", action]);
            assert_eq!(run.status, 0, "{}", run.stderr);
            assert!(run.stdout.contains("exit status 0"), "{}", run.stdout);
        }
    }
    assert_eq!((listing(&root.path("/tmp/hotplugger")), qemu.objects()), before);
}

/// The files of a folder and what is in them.
fn listing(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.map(|path| (path.display().to_string(), fs::read(&path).unwrap())).collect();
    files.sort();
    files
}

/// A device may call itself what it likes: escape sequences, text that runs the other way, 4 KB.
#[test]
fn no_product_name_harms_a_listing() {
    let (mut root, _qemu) = host();
    let evil =
        format!("\u{1b}[2J\u{1b}]0;owned\u{7}\u{202e}drowssap\r\n\u{200b}{}", "A".repeat(4096));
    root.set_attribute("1-1.2", "product", &evil);
    root.set_attribute("2-2", "product", &evil);
    let told = root.event("bind", "2-2").run(&root);
    let folder = "/sys/devices/pci0000:00/0000:00:14.0/usb1/1-1/1-1.2";
    root.write(&format!("{folder}/uevent"), "DEVTYPE=usb_device\nDEVNUM=003\nTYPE=0/0/0\n");
    symlink(root.path(folder), root.path("/sys/bus/usb/devices/1-1.2")).unwrap();
    let listings = [
        told.stderr,
        run_manual(&root, &["ports"]).stdout,
        run_manual(&root, &["status"]).stdout,
        run_manual(&root, &["ports", "--json"]).stdout,
        run_manual(&root, &["status", "--json"]).stdout,
        run_manual(&root, &["identify", "--plugged"]).stdout,
        run_manual(&root, &["identify", "--plugged", "--json"]).stdout,
        run_manual(&root, &["simulate", "1-1.2", "--running"]).stdout,
    ];
    for listing in listings {
        for line in listing.lines() {
            let strange = |c: char| c.is_control() || "\u{202e}\u{200b}".contains(c);
            assert!(!line.contains(strange), "{line:?}");
            assert!(line.chars().count() < 1500, "{line}");
        }
        assert!(listing.contains("[2J"), "the name is shown, harmless: {listing}");
    }
}

#[test]
fn usage_errors_end_with_2_and_failures_with_1() {
    let root = Root::new();
    for arguments in [&["--nonsense"][..], &["simulate"], &["no-such-command"], &[]] {
        assert_eq!(run_manual(&root, arguments).status, 2, "{arguments:?}");
    }
    root.config("virtual_machines: [1]\n");
    for command in ["ports", "status"] {
        let run = run_manual(&root, &[command]);
        assert_eq!(run.status, 1);
        assert!(run.stderr.contains("config.yaml:1:19: "), "{}", run.stderr);
    }
}
