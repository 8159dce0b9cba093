//! What the journal gets for each kind of outcome, and the explanations of `journalctl -x`.
//!
//! A real journald writes the journal. It runs in namespaces of its own, where the file systems that
//! it writes to are empty, so the journal of the machine does not change.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test ends with a panic and says what it skipped"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::iter::successors;
use std::process::Command;
use std::time::Duration;

use hotplugger::guest::attach::GuestLocation;
use hotplugger::guest::hmp::GuestDeviceInfo;
use hotplugger::journal;
use hotplugger::outcome::{EventContext, Outcome, Report, SkipReason, Times, Until};
use hotplugger::root::Root as HostRoot;
use support::root::Root;
use support::udev::run_manual;

const CATALOG: &str = include_str!("../dist/catalog/hotplugger.catalog");
const DOCUMENT: &str = include_str!("../docs/json.md");

/// The report of each kind of outcome, with no more than each report of that kind has.
fn reports() -> Vec<Report> {
    let context = EventContext {
        port: "1-3".parse().unwrap(),
        devpath: "/devices/pci0000:00/0000:00:14.0/usb1/1-3".to_owned(),
        device: None,
        vm: Some("windows".to_owned()),
        id: Some("hotplugger-1-3-16".parse().unwrap()),
    };
    let report = |outcome: Outcome| {
        let context = match outcome {
            Outcome::Skipped(_) | Outcome::Failed(_) => None,
            Outcome::Detached(_)
            | Outcome::DetachedManually { .. }
            | Outcome::Recorded
            | Outcome::ReturnedToHost
            | Outcome::Unconfirmed(_) => Some(EventContext { vm: None, ..context.clone() }),
            _ => Some(context.clone()),
        };
        // Some kinds have a line only with a warning.
        Report { warnings: vec!["a warning".to_owned()], ..Report::new(context, outcome) }
    };
    let first = Outcome::Skipped(SkipReason::NotConfigured);
    successors(Some(first), next).map(report).collect()
}

/// An outcome of the next kind. A new kind does not compile until it is in this chain.
fn next(outcome: &Outcome) -> Option<Outcome> {
    Some(match outcome {
        Outcome::Skipped(_) => Outcome::Recorded,
        Outcome::Recorded => Outcome::AlreadyAttached,
        Outcome::AlreadyAttached => attached(),
        Outcome::Attached { .. } => Outcome::PendingResume,
        Outcome::PendingResume => Outcome::NotRunning("off".to_owned()),
        Outcome::NotRunning(_) => Outcome::Rejected("it is a hub".to_owned()),
        Outcome::Rejected(_) => Outcome::UnpluggedEarly,
        Outcome::UnpluggedEarly => Outcome::Detached(Vec::new()),
        Outcome::Detached(_) => {
            Outcome::DetachedManually { ids: Vec::new(), until: Until::Unplugged }
        }
        Outcome::DetachedManually { .. } => Outcome::ReturnedToHost,
        Outcome::ReturnedToHost => Outcome::Unconfirmed("QEMU hangs".to_owned()),
        Outcome::Unconfirmed(_) => Outcome::Failed("QEMU refused".to_owned()),
        Outcome::Failed(_) => return None,
    })
}

fn attached() -> Outcome {
    let device = GuestDeviceInfo {
        port: Some("2".to_owned()),
        speed: Some("480".parse().unwrap()),
        product: Some("Stick".to_owned()),
    };
    let bus = Some("xhci0.0".to_owned());
    let time = Duration::from_millis(5);
    Outcome::Attached {
        location: GuestLocation { bus, device, below_native_speed: false, via_fd: false },
        times: Some(Times { since_plug: time, settling: time, session: time }),
    }
}

/// The entries of a catalog by ID: headers, an empty line, text.
fn entries(catalog: &str) -> BTreeMap<&str, &str> {
    let mut entries = BTreeMap::new();
    for entry in catalog.split("\n-- ").skip(1) {
        let (id, text) = entry.split_once('\n').unwrap();
        assert!(entries.insert(id, text.trim_end()).is_none(), "two entries for {id}");
    }
    entries
}

/// The first cells of the rows of the document's tables, between backticks.
fn documented(cells: usize) -> impl Iterator<Item = Vec<&'static str>> {
    DOCUMENT.lines().filter(|line| line.starts_with("| ")).map(move |line| {
        line[2..].split(" | ").take(cells).map(|cell| cell.trim_matches('`')).collect()
    })
}

#[test]
fn each_kind_has_its_own_id_one_catalog_entry_and_one_row_in_the_document() {
    let reports = reports();
    let kinds: BTreeMap<_, _> = reports
        .iter()
        .map(|one| one.outcome.kind())
        .map(|(name, message_id)| (message_id, name))
        .collect();
    assert_eq!(kinds.len(), reports.len(), "an ID stands for two kinds: {kinds:?}");
    for id in kinds.keys() {
        let is_id = id.len() == 32 && id.bytes().all(|byte| b"0123456789abcdef".contains(&byte));
        assert!(is_id, "{id}");
    }
    let entries = entries(CATALOG);
    assert!(entries.keys().eq(kinds.keys()), "{entries:?}\n{kinds:?}");
    for text in entries.values() {
        let headers: Vec<_> =
            text.lines().map_while(|line| Some(line.split_once(": ")?.0)).take(4).collect();
        assert_eq!(headers, ["Subject", "Defined-By", "Support", "Documentation"], "{text}");
    }
    let is_id = |cell: &&str| cell.len() == 32 && !cell.contains(' ');
    let rows: BTreeMap<_, _> = documented(2)
        .filter(|cells| cells.get(1).is_some_and(is_id))
        .map(|cells| (cells[1], cells[0]))
        .collect();
    assert_eq!(rows, kinds);
}

#[test]
fn each_field_is_documented() {
    let reports = reports();
    let fields = reports.iter().flat_map(Report::fields).map(|(name, _)| name);
    let fields: BTreeSet<_> = fields.filter(|name| name.starts_with("HOTPLUGGER_")).collect();
    let rows: BTreeSet<_> = documented(1)
        .map(|cells| cells[0])
        .filter(|name| name.starts_with("HOTPLUGGER_"))
        .collect();
    assert_eq!(rows, fields);
}

/// Whether these tools are installed.
fn have(tools: &[&str]) -> bool {
    tools.iter().all(|tool| {
        // journald 252 takes `--version` for the name of a namespace, and starts.
        let found = Command::new("sh").args(["-c", "command -v \"$0\"", tool]).output().unwrap();
        if !found.status.success() {
            println!("SKIPPED: {tool} is not installed");
        }
        found.status.success()
    })
}

/// A folder with what `install` with these options installs.
fn installed(options: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [&["install", "--root", folder.path().to_str().unwrap()], options].concat();
    assert_eq!(run_manual(&Root::new(), &arguments).status, 0);
    folder
}

fn run(command: &mut Command) -> String {
    let output = command.env("LC_ALL", "C").output().unwrap();
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{messages}");
    assert!(!messages.contains("hotplugger.catalog"), "{messages}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn systemd_compiles_each_entry() {
    if !have(&["journalctl"]) {
        return;
    }
    for options in [&["--package"][..], &[]] {
        let folder = installed(options);
        let journalctl = |option: &str| {
            let mut command = Command::new("journalctl");
            run(command.arg("--root").arg(folder.path()).args(["--no-pager", option]))
        };
        journalctl("--update-catalog");
        let compiled = format!("\n{}", journalctl("--dump-catalog"));
        assert_eq!(entries(&compiled), entries(CATALOG), "{options:?}");
    }
}

/// Runs a script as root in namespaces of its own, where nothing is in the directories that it writes
/// to. `None` if this user may not make namespaces.
fn run_apart(script: &str, variables: &[(&str, &str)]) -> Option<String> {
    let empty = "mount -t tmpfs none /run; mount -t tmpfs none /var/lib/systemd/catalog\n";
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-euc", script]);
        command.env_remove("HOTPLUGGER_ROOT").envs(variables.iter().copied());
        command
    };
    if !unshare(empty).status().is_ok_and(|status| status.success()) {
        println!("SKIPPED: no namespaces can be made");
        return None;
    }
    Some(run(&mut unshare(&[empty, script].concat())))
}

/// Compiles the package's catalog as the machine's, starts journald, has [`journald_gets_each_kind`]
/// write, and prints the journal.
const JOURNALD: &str = r#"
mount --bind "$PACKAGE/usr/lib/systemd/catalog" /usr/lib/systemd/catalog
journalctl --update-catalog
mkdir -p /run/systemd/journal
/lib/systemd/systemd-journald 2>/run/messages & journald=$!
trap 'cat /run/messages >&2; kill $journald' EXIT
timeout 30 sh -c 'until journalctl --sync 2>/dev/null; do sleep 0.1; done'
"$TEST" --exact --ignored journald_gets_each_kind >&2
journalctl --sync
journalctl -D /run/log/journal --no-pager -x -t hotplugger
"#;

#[test]
#[ignore = "JOURNALD runs it"]
fn journald_gets_each_kind() {
    let root = HostRoot::at("/");
    for report in reports() {
        journal::report(&root, &report, false);
    }
}

#[test]
fn journalctl_explains_each_kind_on_a_machine_with_the_package() {
    if !have(&["journalctl", "unshare", "/lib/systemd/systemd-journald"]) {
        return;
    }
    let package = installed(&["--package"]);
    let test = std::env::current_exe().unwrap();
    let variables =
        [("PACKAGE", package.path().to_str().unwrap()), ("TEST", test.to_str().unwrap())];
    let Some(journal) = run_apart(JOURNALD, &variables) else { return };
    let mut rest = journal.as_str();
    let entries = entries(CATALOG);
    for report in reports() {
        let mut explanation = entries[report.outcome.kind().1].to_owned();
        for (name, value) in report.fields() {
            explanation = explanation.replace(&format!("@{name}@"), &value);
        }
        let lines: Vec<String> = explanation.lines().map(|line| format!("-- {line}")).collect();
        let expected = format!(": {report}\n{}\n", lines.join("\n"));
        let end = rest.find(&expected).unwrap_or_else(|| panic!("{expected}\n{journal}"));
        rest = &rest[end + expected.len()..];
    }
    assert_eq!(rest, "");
}

/// Installs twice and uninstalls, and prints each time whether systemd knows the explanations.
const INSTALLS: &str = r#"
mkdir -p /run/systemd/system /run/catalog
cp /usr/lib/systemd/catalog/systemd.catalog /run/catalog
mount --bind /run/catalog /usr/lib/systemd/catalog
mount -t tmpfs none /etc; mount -t tmpfs none /usr/local/lib
for command in "install $OPTIONS" "install $OPTIONS" uninstall; do
    "$PROGRAM" $command
    journalctl --list-catalog --no-pager | sed -n 's/.* \(hotplugger failed\)$/\1/p'
done
"#;

#[test]
fn the_catalog_is_compiled_when_it_changes() {
    if !have(&["journalctl", "unshare"]) {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: without root, the program seems to belong to another user");
        return;
    }
    let program = env!("CARGO_BIN_EXE_hotplugger");
    let options = "--program /bin/true --no-systemd --no-sleep --no-libvirt";
    let variables = [("PROGRAM", program), ("OPTIONS", options)];
    let Some(output) = run_apart(INSTALLS, &variables) else { return };
    let (run, known) = ("run     journalctl --update-catalog", "hotplugger failed");
    let lines: Vec<&str> = output.lines().filter(|line| [run, known].contains(line)).collect();
    assert_eq!(lines, [run, known, known, run], "{output}");
}
