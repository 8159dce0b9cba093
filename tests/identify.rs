//! `identify` as it is run: in a folder that looks like a machine, with its standard input, its
//! signals and its config file.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const PCI: &str = "/devices/pci0000:00/0000:00:14.0";
const CONFIG: &str = "# mine
virtual_machines:
  windows: # the games
    socket: /run/w.qmp
    ports:
      # the front
      - /devices/pci0000:00/0000:00:14.0/usb1/1-4 # wheel
    # delay: 2
  linux: {socket: /run/l.qmp, ports: [/devices/x/usb9/9-1]}
";

/// A folder that looks like a machine: two root hubs of four ports each, paired; a keyboard in
/// 1-1 with a name that attacks the terminal, a hub in 1-2 with a mouse behind it.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        let bus = machine.path("/sys/bus/usb/devices");
        fs::create_dir_all(&bus).unwrap();
        for (number, speed) in [(1, "480\n"), (2, "5000\n")] {
            let hub = machine.sys(&format!("usb{number}"));
            machine.write(&format!("usb{number}/speed"), speed);
            symlink(&hub, bus.join(format!("usb{number}"))).unwrap();
            for port in 1..=4 {
                let folder = format!("usb{number}/{number}-0:1.0/usb{number}-port{port}");
                machine.write(&format!("{folder}/connect_type"), "hotplug\n");
                let other = 3 - number;
                let peer = machine.sys(&format!("usb{other}/{other}-0:1.0/usb{other}-port{port}"));
                symlink(peer, machine.sys(&folder).join("peer")).unwrap();
            }
        }
        machine.write("usb1/1-2/1-2:1.0/1-2-port3/connect_type", "unknown\n");
        let evil = format!("Key\u{1b}[2J\u{202e}board {}", "x".repeat(4000));
        machine.plug("usb1/1-1", &evil, "00", "046d:c52b");
        machine.plug("usb1/1-2", "Hub", "09", "05e3:0608");
        machine.plug("usb1/1-2/1-2.3", "Mouse", "00", "046d:c077");
        machine.config(CONFIG);
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    fn sys(&self, path: &str) -> PathBuf {
        self.path(&format!("/sys{PCI}/{path}"))
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.sys(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn plug(&self, path: &str, product: &str, class: &str, ids: &str) {
        let (vendor, id) = ids.split_once(':').unwrap();
        for (name, value) in [
            ("busnum", "1"),
            ("devnum", "7"),
            ("bDeviceClass", class),
            ("idVendor", vendor),
            ("idProduct", id),
            ("speed", "12"),
            ("product", product),
        ] {
            self.write(&format!("{path}/{name}"), &format!("{value}\n"));
        }
    }

    fn config(&self, text: &str) {
        let path = self.path("/etc/hotplugger/config.yaml");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn config_text(&self) -> String {
        fs::read_to_string(self.path("/etc/hotplugger/config.yaml")).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hotplugger"));
        command.arg("identify").args(arguments).env("HOTPLUGGER_ROOT", self.0.path());
        command.env_remove("HOTPLUGGER_CONFIG").stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

fn objects(output: &[u8]) -> Vec<serde_json::Value> {
    text(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_is_plugged_is_listed_with_its_connector_and_hurts_no_terminal() {
    let output = Machine::new().run(&["--plugged"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let told = text(&output.stdout);
    for line in [
        "in port 1-2  hub Hub (05e3:0608), 12 Mb/s".to_owned(),
        format!("  pci-0000:00:14.0/usb2:2  USB 2  {PCI}/usb1/1-2"),
        format!(
            "  pci-0000:00:14.0/usb3:2  USB 3  {PCI}/usb2/2-2, the peer port (a guess, by the numbers of ports)"
        ),
        "  behind it, 1-2.3: Mouse (046d:c077), 12 Mb/s".to_owned(),
        format!("      - pci-0000:00:14.0/usb2:2 # USB 2: hub Hub (05e3:0608); {PCI}/usb1/1-2"),
        format!(
            "      - pci-0000:00:14.0/usb3:2 # USB 3: the peer port of 1-2, a guess; {PCI}/usb2/2-2"
        ),
    ] {
        assert!(told.lines().any(|known| known == line), "{line}\n{told}");
    }
    assert!(!told.contains(['\u{1b}', '\u{202e}']), "{told:?}");
    assert!(told.lines().all(|line| line.chars().count() < 200), "{told}");
}

#[test]
fn a_device_is_named_by_port_ids_or_name() {
    let machine = Machine::new();
    for word in ["1-2.3", "046d:C077", "mous"] {
        let told = objects(&machine.run(&["--plugged", "--json", word]).stdout);
        assert_eq!(told.len(), 2, "{word}");
        assert_eq!(told[0]["devpath"], format!("{PCI}/usb1/1-2/1-2.3"));
        assert_eq!(told[0]["hub"], format!("{PCI}/usb1/1-2"));
        assert_eq!(told[1]["ports"], serde_json::json!([format!("{PCI}/usb1/1-2/1-2.3")]));
    }
    let none = machine.run(&["--plugged", "tablet"]);
    assert_eq!(none.status.code(), Some(1));
    assert_eq!(text(&none.stdout), "No port was seen.\n");
}

#[test]
fn ports_are_written_into_the_config_and_nothing_else_changes() {
    let machine = Machine::new();
    let path = machine.path("/etc/hotplugger/config.yaml");
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    let output = machine.run(&["--plugged", "1-2", "--write", "windows"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let wheel = "1-4 # wheel\n";
    let added = format!(
        "{wheel}      - pci-0000:00:14.0/usb2:2 # USB 2: hub Hub (05e3:0608); {PCI}/usb1/1-2\n      \
         - pci-0000:00:14.0/usb3:2 # USB 3: the peer port of 1-2, a guess; {PCI}/usb2/2-2\n"
    );
    assert_eq!(machine.config_text(), CONFIG.replace(wheel, &added));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    let backup = machine.path("/etc/hotplugger/config.yaml.bak");
    assert_eq!(fs::read_to_string(&backup).unwrap(), CONFIG);
    // Once more: there already, nothing is written.
    let before = machine.config_text();
    let output = machine.run(&["--plugged", "1-2", "--write", "windows", "--json"]);
    let told = objects(&output.stdout);
    assert_eq!(told[1]["written"]["added"], serde_json::json!([]));
    assert_eq!(told[1]["written"]["backup"], serde_json::Value::Null);
    assert_eq!(told[1]["written"]["had"].as_array().unwrap().len(), 2);
    assert_eq!(machine.config_text(), before);
    assert_eq!(fs::read_to_string(&backup).unwrap(), CONFIG, "the backup is still the old text");
}

#[test]
fn what_cannot_be_written_is_told_and_the_lines_are_given() {
    let machine = Machine::new();
    for (arguments, config, said) in [
        (
            &["1-1", "--write", "mac"][..],
            CONFIG,
            "no virtual machine `mac`: the config has windows, linux",
        ),
        (&["--write", "windows"][..], CONFIG, "name those you mean"),
        (
            &["1-1", "--write", "linux"][..],
            CONFIG,
            "cannot be edited safely: line 9 has more than the key",
        ),
        (
            &["1-2", "--write", "linux"][..],
            "virtual_machines:\n  linux:\n    socket: /l\n    ports: [/devices/x/usb9/9-1]\n  w:\n    socket: /w\n    ports:\n    - /devices/pci0000:00/0000:00:14.0/usb2/2-2\n",
            "usb3:2 is listed by `w` already",
        ),
        (&["1-2", "--write", "linux"][..], "virtual_machines: 3\n", "config.yaml:1:19: "),
    ] {
        machine.config(config);
        let output = machine.run(&[&["--plugged"], arguments].concat());
        let stderr = text(&output.stderr);
        assert!(stderr.contains(said), "{said}: {stderr}");
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(machine.config_text(), config);
        assert!(!machine.path("/etc/hotplugger/config.yaml.bak").exists());
        let layout = stderr.contains("edited safely");
        let gives = text(&output.stdout).contains("      - pci-0000:00:14.0/usb2:1 # USB 2");
        assert_eq!(gives, layout, "{}", text(&output.stdout));
    }
    fs::remove_file(machine.path("/etc/hotplugger/config.yaml")).unwrap();
    let output = machine.run(&["--plugged", "1-1", "--write", "windows"]);
    assert!(text(&output.stderr).contains("no config file"), "{}", text(&output.stderr));
}

#[test]
fn a_wrong_config_is_no_reason_to_show_nothing() {
    let machine = Machine::new();
    machine.config("virtual_machines: 3\n");
    let output = machine.run(&["--plugged"]);
    assert!(output.status.success());
    assert!(text(&output.stderr).contains("config.yaml:1:19: "));
    assert!(text(&output.stdout).contains("1-1"));
}

#[test]
fn the_time_ends_it_whatever_standard_input_is() {
    let machine = Machine::new();
    let start = Instant::now();
    let output = machine.run(&["--timeout", "0.3", "--count", "1", "--json"]);
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(5), "{took:?}");
    assert_eq!(output.status.code(), Some(1), "nothing was seen");
    let told = objects(&output.stdout);
    assert_eq!(told[0]["event"], "listening");
    assert_eq!((&told[1]["event"], &told[1]["reason"]), (&"end".into(), &"timeout".into()));
    // A script's standard input is left to the script.
    let list = machine.path("/list");
    fs::write(&list, "one\ntwo\n").unwrap();
    let line = format!(
        "while read line; do '{}' identify --timeout 0.1 >/dev/null; echo $line; done < '{}'",
        env!("CARGO_BIN_EXE_hotplugger"),
        list.display()
    );
    let mut script = Command::new("sh");
    script.args(["-c", &line]).env("HOTPLUGGER_ROOT", machine.0.path());
    assert_eq!(text(&script.output().unwrap().stdout), "one\ntwo\n");
    for bad in ["-1", "x", "inf", "nan", "1e9"] {
        let status = machine.run(&[&format!("--timeout={bad}")]).status;
        assert_eq!(status.code(), Some(2), "{bad}");
    }
    assert_eq!(machine.run(&["--count=0"]).status.code(), Some(2));
}

/// Starts it, waits until it listens, does something, and returns the lines that follow.
fn ended_by(machine: &Machine, end: impl FnOnce(&mut std::process::Child)) -> (i32, String) {
    let mut command = machine.command(&["--json"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "{\"event\":\"listening\"}\n");
    end(&mut child);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    (child.wait().unwrap().code().unwrap(), rest)
}

#[test]
fn enter_and_signals_end_it_with_the_result() {
    let machine = Machine::new();
    for signal in ["INT", "TERM"] {
        let (code, rest) = ended_by(&machine, |child| {
            let kill =
                Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status();
            assert!(kill.unwrap().success());
        });
        assert!(code == 0 && rest.contains("\"reason\":\"signal\""), "{code} {rest}");
    }
    let (code, rest) = ended_by(&machine, |child| {
        child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    });
    assert!(code == 0 && rest.contains("\"reason\":\"enter\""), "{code} {rest}");
    // The end of a pipe is not Enter.
    let (_, rest) = ended_by(&machine, |child| {
        drop(child.stdin.take());
        std::thread::sleep(Duration::from_millis(200));
        assert!(child.try_wait().unwrap().is_none(), "it ended with its standard input");
        Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    });
    assert!(rest.contains("\"reason\":\"signal\""), "{rest}");
}

#[test]
fn the_end_of_its_reader_is_its_own() {
    let machine = Machine::new();
    let program = env!("CARGO_BIN_EXE_hotplugger");
    let root = machine.0.path();
    let mut script = Command::new("bash");
    script.env("HOTPLUGGER_ROOT", root);
    let line = format!("'{program}' identify --plugged | head -n 1; exit ${{PIPESTATUS[0]}}");
    let output = script.args(["-c", &line]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
}
