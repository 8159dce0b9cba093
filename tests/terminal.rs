//! Completion in real shells, and colors on a terminal. `script` of util-linux makes the terminal.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by them, also in the helpers"
)]

mod support;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use support::hostile::{Session, serve};
use support::report::report;
use support::root::Root;
use support::udev::run_manual;

const CONFIG: &str = "\
virtual_machines:
  windows:
    socket: /run/windows.qmp
    delay: 0
    access: node
    ports: [pci-0000:00:14.0/usb2:1]
  my vm:
    socket: /run/linux.qmp
    ports: []
";

/// A host with an attached keyboard in port 1-1, a disk in 2-2, and nothing in the other ports.
fn host() -> Root {
    let mut root = Root::new();
    root.controller(3);
    root.config(CONFIG);
    root.plug("1-1", "keyboard", 3);
    root.plug("2-2", "storage", 2);
    serve(&root.path("/run/windows.qmp"), Session::be_polite);
    let attached = root.event("bind", "1-1").run(&root);
    assert_eq!(attached.status, 0, "{attached:?}");
    root
}

/// The candidates that the program prints for these words.
fn complete(root: &Root, words: &[&str]) -> (i32, Vec<String>) {
    let run = run_manual(root, &[&["complete", "--"], words].concat());
    assert_eq!(run.stderr, "", "{words:?}");
    (run.status, run.stdout.lines().map(str::to_owned).collect())
}

/// The candidates without their descriptions.
fn names(root: &Root, words: &[&str]) -> Vec<String> {
    let lines = complete(root, words).1;
    lines.iter().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
}

#[test]
fn candidates_are_of_the_config_and_sysfs() {
    let root = host();
    assert_eq!(
        complete(&root, &["move", ""]),
        (
            0,
            vec![
                "1-1\tQEMU USB Keyboard (0627:0001), attached to windows".to_owned(),
                "2-2\tQEMU USB HARDDRIVE (46f4:0001)".to_owned(),
            ]
        )
    );
    assert_eq!(names(&root, &["detach", ""]), ["1-1"]);
    assert_eq!(names(&root, &["identify", "--plugged", ""]), ["1-1", "2-2"]);
    // bash takes `--vm=` apart.
    for words in [&["move", "1-1", "--vm", ""][..], &["move", "--vm", "=", ""], &["sync", ""]] {
        assert_eq!(names(&root, words), ["windows", "my vm"], "{words:?}");
    }
    assert_eq!(names(&root, &["move", "--vm=w"]), ["--vm=windows", "--vm=my vm"]);
    assert_eq!(names(&root, &["sync", "windows", ""]), ["my vm"]);
    assert_eq!(names(&root, &["--color", ""]), ["auto", "always", "never"]);
    assert_eq!(names(&root, &["move", "1-1", ""]), ["--vm", "--config", "--color", "--help"]);
    assert_eq!(names(&root, &["udev", "--verbose", "-"])[..2], ["--dry-run", "--config"]);
}

#[test]
fn commands_are_candidates_in_the_order_of_their_use() {
    let root = Root::new();
    let commands = names(&root, &[""]);
    assert_eq!(commands.first().unwrap(), "status");
    assert_eq!(commands[commands.len() - 2..], ["udev", "help"]);
    assert!(!commands.contains(&"complete".to_owned()), "{commands:?}");
    assert_eq!(names(&root, &["--config", "/x", "--color=never", ""]), commands);
    assert!(names(&root, &["help", ""]).starts_with(&commands[..3]));
}

#[test]
fn file_names_are_candidates_where_the_exit_status_is_1() {
    let root = host();
    assert_eq!(complete(&root, &["--config", ""]), (1, vec![]));
    let (status, ports) = complete(&root, &["simulate", ""]);
    assert_eq!((status, ports.len()), (1, 2));
}

#[test]
fn errors_give_no_candidates_and_no_messages() {
    let root = host();
    for config in ["virtual_machines: [\n", "nonsense: {\n"] {
        root.config(config);
        assert_eq!(complete(&root, &["move", "--vm", ""]), (0, vec![]));
    }
    root.config(CONFIG);
    let other = root.path("/run/other.yaml");
    let other = other.to_str().unwrap();
    assert_eq!(complete(&root, &["--config", other, "sync", ""]), (0, vec![]));
    root.write("/run/other.yaml", CONFIG.replace("my vm", "other"));
    for option in [&["--config", "/run/other.yaml"][..], &["--config=/run/other.yaml"]] {
        assert_eq!(names(&root, &[option, &["sync", ""]].concat()), ["windows", "other"]);
    }
    root.config("virtual_machines:\n  vm:\n    socket: \"/run/a\\nb\"\n    ports: []\n");
    assert_eq!(complete(&root, &["sync", ""]), (0, vec!["vm\t/run/a\u{fffd}b".to_owned()]));
    for words in [&[][..], &["no-command", "--x=", "--", "-"], &["move", "--vm=x", "a", "b"]] {
        assert_eq!(complete(&root, words).0, 0, "{words:?}");
    }
    let empty = Root::new();
    assert_eq!(complete(&empty, &["move", ""]), (0, vec![]));
}

/// A shell on a terminal of its own.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
}

/// No shell takes longer, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A command that finds the program under test on its PATH.
fn on_path(program: &str, root: &Root) -> Command {
    let directory = Path::new(env!("CARGO_BIN_EXE_hotplugger")).parent().unwrap();
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", directory.display()))
        .env("HOTPLUGGER_ROOT", root.path("/"))
        .env("HOME", root.path("/run"))
        .env("LC_ALL", "C.UTF-8")
        .env("TERM", "xterm")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/completions"));
    command
}

impl Shell {
    /// Starts the shell and runs the commands that load its completions.
    fn start(command: &str, load: &str, root: &Root) -> Self {
        let mut child = on_path("script", root)
            .args(["--quiet", "--flush", "--command", command, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut bytes) {
                let _ = sender.send(bytes[..length].to_vec());
            }
        });
        let input = child.stdin.take().unwrap();
        let mut shell = Self { child, input, output };
        // Not in the line that is typed, which the terminal echoes.
        shell.type_until(&format!("{load}; echo rea\"\"dy\n"), &["ready"]);
        shell
    }

    /// Types a text, and returns the output when it has all of these.
    fn type_until(&mut self, text: &str, wanted: &[&str]) -> String {
        self.input.write_all(text.as_bytes()).unwrap();
        let end = Instant::now() + PATIENCE;
        let mut shown = String::new();
        while !wanted.iter().all(|wanted| shown.contains(wanted)) {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(bytes) = self.output.recv_timeout(left) else {
                panic!("{text:?}: no {wanted:?} in {shown:?}")
            };
            shown += &String::from_utf8_lossy(&bytes);
        }
        shown
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether it is installed. If not, the report has it.
fn is_installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        report(&format!("completion in {program}: skipped, it is not installed"));
    }
    found
}

/// Ctrl-U, which deletes the line.
const CLEAR: &str = "\u{15}";

/// Presses Tab in an interactive shell: ports, VMs, and a word that has one completion.
fn completes_on_tab(name: &str, command: &str, load: &str) {
    if !is_installed(name) || !is_installed("script") {
        return;
    }
    let root = host();
    let mut shell = Shell::start(command, load, &root);
    let shown = shell.type_until("hotplugger move \t", &["1-1", "2-2"]);
    assert!(!shown.contains("1-2") && !shown.contains("1-3"), "{name}: {shown}");
    shell.type_until(&format!("{CLEAR}hotplugger move --vm \t"), &["windows", "my"]);
    shell.type_until(&format!("{CLEAR}hotplugger move --vm=\t"), &["windows", "my"]);
    shell.type_until(&format!("{CLEAR}hotplugger move --vm w\t"), &["--vm windows"]);
    shell.type_until(&format!("{CLEAR}hotplugger move --vm m\t"), &["--vm my\\ vm"]);
    shell.type_until(&format!("{CLEAR}hotplugger det\t"), &["hotplugger detach"]);
    shell.type_until(&format!("{CLEAR}hotplugger --config hotplugger.f\t"), &["hotplugger.fish"]);
    root.config("virtual_machines: [\n");
    let shown = shell
        .type_until(&format!("{CLEAR}hotplugger move --vm \t{CLEAR}echo do\"\"ne\n"), &["done"]);
    assert!(!shown.contains("yaml"), "{name}: {shown}");
}

#[test]
fn bash_completes_on_tab() {
    let load = "source hotplugger.bash; bind 'set show-all-if-ambiguous on'";
    completes_on_tab("bash", "bash --norc --noprofile -i", load);
}

#[test]
fn zsh_completes_on_tab() {
    let load = "fpath=($PWD $fpath); autoload -Uz compinit; compinit -D; unsetopt list_ambiguous";
    completes_on_tab("zsh", "zsh -f -i", load);
}

/// `complete -C` runs the completion as Tab does, and prints the candidates.
#[test]
fn fish_completes_on_tab() {
    if !is_installed("fish") {
        return;
    }
    let root = host();
    let candidates = |line: &str| {
        let script = format!("source hotplugger.fish; complete -C '{line}'");
        let done = on_path("fish", &root).args(["--no-config", "-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&done.stderr), "", "{line}");
        String::from_utf8(done.stdout).unwrap()
    };
    assert_eq!(
        candidates("hotplugger move "),
        "1-1\tQEMU USB Keyboard (0627:0001), attached to windows\n2-2\tQEMU USB HARDDRIVE (46f4:0001)\n"
    );
    let vms = "windows\t/run/windows.qmp\nmy vm\t/run/linux.qmp\n";
    assert_eq!(candidates("hotplugger move --vm "), vms);
    assert_eq!(candidates("hotplugger sync "), vms);
    assert_eq!(candidates("hotplugger move --vm=w"), "--vm=windows\t/run/windows.qmp\n");
    assert!(candidates("hotplugger det").starts_with("detach\t"));
    assert!(candidates("hotplugger --config hotplugger.f").starts_with("hotplugger.fish"));
    root.config("virtual_machines: [\n");
    assert_eq!(candidates("hotplugger move --vm "), "");
}

/// Whether `ports` prints in colors.
fn is_colored(root: &Root, command: &mut Command) -> bool {
    let done = command.stdin(Stdio::null()).output().unwrap();
    let printed = String::from_utf8_lossy(&done.stdout);
    assert!(printed.contains("1-1"), "{}: {done:?}", root.path("/").display());
    printed.contains('\u{1b}')
}

#[test]
fn color_option_decides_about_colors() {
    let root = host();
    let ports = |option: &str| {
        let words = ["ports", &format!("--color={option}")];
        is_colored(&root, on_path("hotplugger", &root).args(words).env("NO_COLOR", "1"))
    };
    assert_eq!(["always", "never", "auto"].map(ports), [true, false, false]);
}

#[test]
fn colors_appear_on_a_terminal_unless_no_color_is_set() {
    if !is_installed("script") {
        return;
    }
    let root = host();
    let ports = |option: &str, no_color: &str| {
        let run = format!("hotplugger ports {option}");
        let mut command = on_path("script", &root);
        command.args(["--quiet", "--command", &run, "/dev/null"]).env("NO_COLOR", no_color);
        is_colored(&root, &mut command)
    };
    assert!(ports("", ""));
    assert!(!ports("", "1"));
    assert!(ports("--color always", "1"));
    assert!(!ports("--color never", ""));
}

/// A shell in which a test types commands.
fn bash(root: &Root) -> Option<Shell> {
    let is_there = is_installed("bash") && is_installed("script");
    is_there.then(|| Shell::start("bash --norc --noprofile -i", "true", root))
}

#[test]
fn replug_switches_the_port_off_only_after_a_yes() {
    let root = host();
    let Some(mut shell) = bash(&root) else { return };
    let switches = [1, 2].map(|bus| {
        let hub = format!("/sys/devices/pci0000:00/0000:00:14.0/usb{bus}/{bus}-0:1.0");
        let switch = format!("{hub}/usb{bus}-port1/disable");
        root.write(&switch, "");
        root.path(switch)
    });
    let written = || switches.clone().map(|switch| std::fs::read_to_string(switch).unwrap());
    for (answer, expected) in [("n", ""), ("", ""), ("y", "1\n0\n")] {
        shell.type_until("hotplugger replug 1-1\n", &["QEMU USB Keyboard", "Go on? [y/N]"]);
        shell.type_until(&format!("{answer}\necho do\"\"ne\n"), &["done"]);
        assert_eq!(written(), [expected; 2], "{answer:?}");
    }
}

#[test]
fn detach_warns_of_a_disk_that_the_guest_uses() {
    let root = host();
    let Some(mut shell) = bash(&root) else { return };
    let warning = "port 2-2: the guest may still be writing to the disk";
    let shown = shell.type_until("hotplugger detach 2-2; echo do\"\"ne\n", &["done"]);
    assert!(!shown.contains(warning), "{shown}");
    root.set_attribute("2-2", "2-2:1.0/bInterfaceClass", "08");
    root.bind_driver("2-2:1.0", "usbfs");
    shell.type_until("hotplugger detach 2-2; echo do\"\"ne\n", &[warning, "done"]);
    shell.type_until("hotplugger move 2-2 --vm windows; echo do\"\"ne\n", &[warning, "done"]);
}

#[test]
fn edit_opens_the_editor_again_for_a_mistake() {
    let root = host();
    let Some(mut shell) = bash(&root) else { return };
    // Writes a mistake, and the second time a config.
    root.write(
        "/run/editor",
        "if [ -e $0.2 ]; then cat $0.2 >$1; else cp $0.1 $0.2; echo x: >$1; fi\n",
    );
    root.write("/run/editor.1", CONFIG.replace("delay: 0", "delay: 2"));
    let editor = root.path("/run/editor");
    let command = format!("VISUAL='sh {}' EDITOR=false hotplugger edit\n", editor.display());
    shell.type_until(&command, &["config.yaml:1:1", "Edit again? [Y/n]"]);
    shell.type_until("\n", &["written"]);
    let config = std::fs::read_to_string(root.path("/etc/hotplugger/config.yaml")).unwrap();
    assert!(config.contains("delay: 2"), "{config}");
}
