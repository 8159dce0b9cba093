//! The udev rules: whether udev runs hotplugger, on the right events, once.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::finding::Finding;
use super::udev_rules::{Command, Kind, commands, words};
use crate::install::{SYSTEMD_RUNS, UDEVD_RUNS};
use crate::root::Root;
use crate::text::shell_word;

/// The facts about the udev rules.
#[derive(Debug, Default)]
pub struct RulesFacts {
    /// All rules files, by the precedence of their directories.
    pub files: Vec<RulesFile>,
    /// Whether udevd's control socket exists.
    pub udevd: bool,
    /// The command that starts udevd on this host, if it is known.
    pub start_udevd: Option<&'static str>,
    pub directory: PathBuf,
}

#[derive(Debug)]
pub struct RulesFile {
    pub path: PathBuf,
    pub text: String,
}

/// A command that runs hotplugger, and its file.
struct Run<'a> {
    file: &'a Path,
    command: Command,
}

const ADD: Kind = Kind { action: "add", devtype: "usb_device" };
const BIND: Kind = Kind { action: "bind", devtype: "usb_device" };
const REMOVE: Kind = Kind { action: "remove", devtype: "usb_device" };
const INTERFACE: Kind = Kind { action: "add", devtype: "usb_interface" };

impl RulesFacts {
    /// The programs named hotplugger that the rules run, each once.
    pub fn programs(&self) -> Vec<String> {
        let mut programs: Vec<String> = [ADD, BIND, REMOVE, INTERFACE]
            .iter()
            .flat_map(|kind| self.runs(*kind))
            .filter_map(|run| program(&run.command.text))
            // The original is run by Python.
            .filter(|program| !program.ends_with("/hotplugger.py"))
            .collect();
        programs.sort();
        programs.dedup();
        programs
    }

    pub fn mentions(&self, file: &Path) -> bool {
        let file = file.as_os_str();
        [BIND, INTERFACE]
            .iter()
            .flat_map(|kind| self.runs(*kind))
            .any(|run| words(&run.command.text).iter().any(|word| word.as_str() == file))
    }

    /// The files that udev reads: of two with the same name the first.
    fn in_force(&self) -> impl Iterator<Item = &RulesFile> {
        self.files.iter().filter(|file| self.mask(file).is_none())
    }

    fn mask(&self, file: &RulesFile) -> Option<&RulesFile> {
        let first = self.files.iter().find(|other| other.path.file_name() == file.path.file_name());
        first.filter(|first| first.path != file.path)
    }

    /// The commands that run hotplugger on such an event. udev runs equal ones once.
    fn runs(&self, kind: Kind) -> Vec<Run<'_>> {
        let mut runs: Vec<Run<'_>> = Vec::new();
        for file in self.in_force() {
            for command in starting_us(&file.text, kind) {
                if !runs.iter().any(|known| known.command.text == command.text) {
                    runs.push(Run { file: &file.path, command });
                }
            }
        }
        runs
    }
}

impl Run<'_> {
    /// `file:line`.
    fn place(&self) -> String {
        format!("{}:{}", self.file.display(), self.command.line)
    }
}

fn starting_us(text: &str, kind: Kind) -> Vec<Command> {
    let mut commands = commands(text, kind);
    commands.retain(|command| program(&command.text).is_some());
    commands
}

/// The program named hotplugger that the command runs, directly or through another.
fn program(command: &str) -> Option<String> {
    let words = words(command);
    // A shell gets a command line as one word.
    let mut words = words.iter().flat_map(|word| word.split_whitespace());
    let program = words.find(|word| {
        let name = word.rsplit('/').next().unwrap_or_default();
        name == "hotplugger" || name == "hotplugger.py"
    });
    program.map(str::to_owned)
}

pub fn check(facts: &RulesFacts) -> Vec<Finding> {
    let stopped =
        || Finding::error("udevd-stopped", "udevd", "it does not run, so no rule is applied");
    let mut findings = vec![match facts.start_udevd {
        _ if facts.udevd => Finding::ok("udevd-running", "udevd", "it runs"),
        Some(command) => stopped().run(command),
        None => stopped().advice("start it, as this system starts it at boot"),
    }];
    let [add, bind, remove, interface] =
        [ADD, BIND, REMOVE, INTERFACE].map(|kind| facts.runs(kind));
    if add.is_empty() && bind.is_empty() && remove.is_empty() && interface.is_empty() {
        findings.push(none(facts));
        return findings;
    }
    let first = |runs: &[Run<'_>]| runs.first().map(|run| run.file.display().to_string());
    let ours = "replace it by hotplugger's own rule: `hotplugger install`";
    findings.push(if let Some(place) = first(&bind) {
        Finding::ok("rule-installed", place, "it runs hotplugger when a device is ready")
    } else if let Some(place) = first(&interface) {
        Finding::warning(
            "rule-old",
            place,
            "it does not match `bind`: hotplugger runs for every interface of every USB device, and \
             guesses which one is the last",
        )
        .advice(ours)
    } else {
        let place = first(&add).or_else(|| first(&remove)).unwrap_or_default();
        Finding::error(
            "rule-never-attaches",
            place,
            "it runs hotplugger neither on `bind` of a device nor on `add` of an interface; QEMU \
             cannot see a device earlier",
        )
        .advice(ours)
    });
    if remove.is_empty() {
        let place = first(&bind).or_else(|| first(&interface)).unwrap_or_default();
        findings.push(
            Finding::error(
                "rule-never-detaches",
                place,
                "it does not run hotplugger on `remove`, so unplugged devices stay in the guest",
            )
            .advice(ours),
        );
    }
    findings.extend(twice(if bind.is_empty() { &interface } else { &bind }));
    findings.extend(beside(&bind, [&add, &interface, &remove]));
    findings
}

fn none(facts: &RulesFacts) -> Finding {
    let masked = facts.files.iter().find_map(|file| {
        let runs_us =
            [BIND, INTERFACE].iter().any(|kind| !starting_us(&file.text, *kind).is_empty());
        Some((file, facts.mask(file)?)).filter(|_| runs_us)
    });
    match masked {
        Some((file, mask)) => Finding::error(
            "rule-masked",
            mask.path.display(),
            format!(
                "it takes precedence over {}, so udev does not run hotplugger",
                file.path.display()
            ),
        )
        .run(format!("rm {}", shell_word(&mask.path.to_string_lossy()))),
        None => Finding::error(
            "rule-none",
            facts.directory.display(),
            "no rule runs hotplugger, so plugged-in devices are not attached",
        )
        .run("hotplugger install"),
    }
}

fn twice(runs: &[Run<'_>]) -> Option<Finding> {
    let [one, .., other] = runs else { return None };
    let what = format!(
        "udev runs `{}` ({}) and `{}` for the same event",
        one.command.text,
        one.place(),
        other.command.text
    );
    let place = other.place();
    let advice = format!("remove the second one from {place}; one is enough");
    Some(Finding::warning("rule-twice", place, what).advice(advice))
}

/// An older rule beside the one that matches `bind`, mostly the original's.
fn beside(bind: &[Run<'_>], others: [&Vec<Run<'_>>; 3]) -> Option<Finding> {
    let one = bind.first()?;
    let is_known = |run: &Run<'_>| bind.iter().any(|known| known.command.text == run.command.text);
    let other = others.into_iter().flatten().find(|run| !is_known(run))?;
    let what = format!(
        "udev runs `{}` as well as `{}` ({}): both would attach the device",
        other.command.text,
        one.command.text,
        one.place()
    );
    let place = other.place();
    let advice = format!("remove the line {place}; one rule is enough");
    Some(Finding::warning("rule-twice", place, what).advice(advice))
}

/// udev's directories (udev(7)); `/lib` where it is not a link to `/usr/lib`.
const FOLDERS: [&str; 5] = [
    "/etc/udev/rules.d",
    "/run/udev/rules.d",
    "/usr/local/lib/udev/rules.d",
    "/usr/lib/udev/rules.d",
    "/lib/udev/rules.d",
];

/// What starts udevd, by a path of the init systems that do: systemd, init scripts of Debian,
/// Devuan and Gentoo (udev or eudev), Slackware and Unraid.
const START_UDEVD: [(&str, &str); 4] = [
    (SYSTEMD_RUNS, "systemctl start systemd-udevd-control.socket systemd-udevd.service"),
    ("/etc/init.d/udev", "/etc/init.d/udev start"),
    ("/etc/init.d/eudev", "/etc/init.d/eudev start"),
    ("/etc/rc.d/rc.udev", "/etc/rc.d/rc.udev start"),
];

/// The most that is read of a rules file.
const MAX_BYTES: u64 = 1 << 20;

pub fn gather(root: &Root) -> RulesFacts {
    let files = FOLDERS.iter().flat_map(|directory| files(&root.path(directory))).collect();
    let control = fs::metadata(root.path(UDEVD_RUNS));
    RulesFacts {
        files,
        udevd: control.is_ok_and(|control| control.file_type().is_socket()),
        start_udevd: START_UDEVD
            .iter()
            .find(|(path, _)| root.path(path).exists())
            .map(|(_, command)| *command),
        directory: root.path(FOLDERS[0]),
    }
}

fn files(directory: &Path) -> Vec<RulesFile> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let mut files: Vec<RulesFile> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rules"))
        .map(|path| RulesFile { text: read(&path).unwrap_or_default(), path })
        .collect();
    files.sort_by(|one, other| one.path.cmp(&other.path));
    files
}

/// The text of a regular file; `None` for others, such as the /dev/null that masks another file.
fn read(path: &Path) -> Option<String> {
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
pub(in crate::check) mod tests {
    use super::*;
    use crate::check::finding::Level;

    const OURS: &str = include_str!("../../rules/99-hotplugger.rules");

    fn facts(files: &[(&str, &str)]) -> RulesFacts {
        let file =
            |(path, text): &(&str, &str)| RulesFile { path: path.into(), text: (*text).to_owned() };
        RulesFacts {
            files: files.iter().map(file).collect(),
            udevd: true,
            start_udevd: None,
            directory: "/etc/udev/rules.d".into(),
        }
    }

    fn codes(files: &[(&str, &str)]) -> Vec<&'static str> {
        let findings = check(&facts(files));
        findings
            .iter()
            .filter(|finding| finding.level > Level::Ok)
            .map(|finding| finding.code)
            .collect()
    }

    #[test]
    fn rule_may_be_in_any_directory() {
        assert!(codes(&[("/usr/lib/udev/rules.d/99-hotplugger.rules", OURS)]).is_empty());
        let both = [
            ("/etc/udev/rules.d/99-hotplugger.rules", OURS),
            ("/usr/lib/udev/rules.d/99-hotplugger.rules", OURS),
        ];
        assert!(codes(&both).is_empty());
        assert_eq!(facts(&both).programs(), ["/usr/bin/hotplugger"]);
    }

    #[test]
    fn each_problem_of_rules_has_a_code() {
        assert_eq!(codes(&[("/lib/50.rules", "RUN+=\"/bin/other\"")]), ["rule-none"]);
        assert_eq!(
            codes(&[("/etc/99-h.rules", ""), ("/usr/lib/99-h.rules", OURS)]),
            ["rule-masked"]
        );
        assert_eq!(
            codes(&[("/a/1.rules", "ACTION==\"add|remove\", RUN+=\"/x/hotplugger\"")]),
            ["rule-old"]
        );
        let device = "ENV{DEVTYPE}==\"usb_device\", RUN+=\"/x/hotplugger\"";
        assert_eq!(
            codes(&[("/a/1.rules", &format!("ACTION==\"add\", {device}"))]),
            ["rule-never-attaches", "rule-never-detaches"]
        );
        assert_eq!(
            codes(&[("/a/1.rules", OURS), ("/a/2.rules", "RUN+=\"/usr/bin/hotplugger\"")]),
            ["rule-twice"]
        );
        assert!(codes(&[("/a/1.rules", OURS), ("/a/2.rules", OURS)]).is_empty());
    }

    #[test]
    fn original_rule_is_recognized_alone_and_beside_ours() {
        let original = "SUBSYSTEM==\"usb\", ACTION==\"add\", RUN+=\"/bin/bash -c 'python3 -u \
            /home/u/hotplugger/hotplugger.py >> /tmp/hotplugger.log' &\"\n\
            SUBSYSTEM==\"usb\", ACTION==\"remove\", RUN+=\"/bin/bash -c 'python3 -u \
            /home/u/hotplugger/hotplugger.py >> /tmp/hotplugger.log' &\"\n";
        assert_eq!(codes(&[("/a/1.rules", original)]), ["rule-old"]);
        assert!(facts(&[("/a/1.rules", original)]).programs().is_empty());
        let both = [("/a/1.rules", original), ("/a/2.rules", OURS)];
        assert_eq!(codes(&both), ["rule-twice"]);
        let findings = check(&facts(&both));
        let twice = findings.iter().find(|finding| finding.code == "rule-twice").unwrap();
        assert_eq!(twice.place, "/a/1.rules:1");
    }
}
