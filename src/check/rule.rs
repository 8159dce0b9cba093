//! The rule: does udev run hotplugger, on the right events, once.

use std::path::{Path, PathBuf};

use super::finding::Finding;
use super::udev_rules::{Command, Kind, commands, words};
use crate::text::shell_word;

/// What was found of udev's rules.
#[derive(Debug, Default)]
pub struct RulesLook {
    /// All rules files, those of the folder that udev prefers first.
    pub files: Vec<RulesFile>,
    /// Whether udevd's control socket is there.
    pub udevd: bool,
    /// The folder for the rules of this host.
    pub folder: PathBuf,
}

/// A rules file.
#[derive(Debug)]
pub struct RulesFile {
    /// Its path.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// A command that starts hotplugger, and the file it stands in.
struct Run<'a> {
    file: &'a Path,
    command: Command,
}

const ADD: Kind = Kind { action: "add", devtype: "usb_device" };
const BIND: Kind = Kind { action: "bind", devtype: "usb_device" };
const REMOVE: Kind = Kind { action: "remove", devtype: "usb_device" };
const INTERFACE: Kind = Kind { action: "add", devtype: "usb_interface" };

impl RulesLook {
    /// The programs named hotplugger that the rules start, each once.
    pub fn programs(&self) -> Vec<String> {
        let mut programs: Vec<String> = [ADD, BIND, REMOVE, INTERFACE]
            .iter()
            .flat_map(|kind| self.runs(*kind))
            .filter_map(|run| program(&run.command.text))
            // The original's is Python's to start.
            .filter(|program| !program.ends_with("/hotplugger.py"))
            .collect();
        programs.sort();
        programs.dedup();
        programs
    }

    /// Whether a rule's command names the file.
    pub fn mentions(&self, file: &Path) -> bool {
        let file = file.as_os_str();
        [BIND, INTERFACE]
            .iter()
            .flat_map(|kind| self.runs(*kind))
            .any(|run| words(&run.command.text).iter().any(|word| word.as_str() == file))
    }

    /// The files that count: of two with the same name the first.
    fn in_force(&self) -> impl Iterator<Item = &RulesFile> {
        self.files.iter().filter(|file| self.mask(file).is_none())
    }

    /// The file that stands before this one.
    fn mask(&self, file: &RulesFile) -> Option<&RulesFile> {
        let first = self.files.iter().find(|other| other.path.file_name() == file.path.file_name());
        first.filter(|first| first.path != file.path)
    }

    /// The commands that start hotplugger on such an event. Equal ones are run once.
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

/// The program named hotplugger that the command starts, itself or through another.
fn program(command: &str) -> Option<String> {
    let words = words(command);
    // A shell has a command line in one word.
    let mut words = words.iter().flat_map(|word| word.split_whitespace());
    let program = words.find(|word| {
        let name = word.rsplit('/').next().unwrap_or_default();
        name == "hotplugger" || name == "hotplugger.py"
    });
    program.map(str::to_owned)
}

/// Judges the rules.
pub fn judge(look: &RulesLook) -> Vec<Finding> {
    let mut findings = vec![if look.udevd {
        Finding::ok("udevd-running", "udevd", "it runs")
    } else {
        Finding::fault("udevd-stopped", "udevd", "it does not run, so no rule is ever looked at")
            .run("systemctl start systemd-udevd-control.socket systemd-udevd.service")
    }];
    let [add, bind, remove, interface] = [ADD, BIND, REMOVE, INTERFACE].map(|kind| look.runs(kind));
    if add.is_empty() && bind.is_empty() && remove.is_empty() && interface.is_empty() {
        findings.push(none(look));
        return findings;
    }
    let first = |runs: &[Run<'_>]| runs.first().map(|run| run.file.display().to_string());
    let ours = "put hotplugger's own rule in its place: `hotplugger install`";
    findings.push(if let Some(place) = first(&bind) {
        Finding::ok("rule-installed", place, "it runs hotplugger when a device is ready")
    } else if let Some(place) = first(&interface) {
        Finding::warning(
            "rule-old",
            place,
            "it knows no `bind`: hotplugger is started for every interface of every USB device, \
             and guesses which is the last",
        )
        .advice(ours)
    } else {
        let place = first(&add).or_else(|| first(&remove)).unwrap_or_default();
        Finding::fault(
            "rule-never-attaches",
            place,
            "it runs hotplugger neither on `bind` of a device nor on `add` of an interface, and \
             sooner QEMU cannot see a device",
        )
        .advice(ours)
    });
    if remove.is_empty() {
        let place = first(&bind).or_else(|| first(&interface)).unwrap_or_default();
        findings.push(
            Finding::fault(
                "rule-never-detaches",
                place,
                "it does not run hotplugger on `remove`, so what is pulled stays in the guest",
            )
            .advice(ours),
        );
    }
    findings.extend(twice(if bind.is_empty() { &interface } else { &bind }));
    findings.extend(beside(&bind, [&add, &interface, &remove]));
    findings
}

fn none(look: &RulesLook) -> Finding {
    let masked = look.files.iter().find_map(|file| {
        let runs_us =
            [BIND, INTERFACE].iter().any(|kind| !starting_us(&file.text, *kind).is_empty());
        Some((file, look.mask(file)?)).filter(|_| runs_us)
    });
    match masked {
        Some((file, mask)) => Finding::fault(
            "rule-masked",
            mask.path.display(),
            format!(
                "it takes the place of {}, so udev does not run hotplugger",
                file.path.display()
            ),
        )
        .run(format!("rm {}", shell_word(&mask.path.to_string_lossy()))),
        None => Finding::fault(
            "rule-none",
            look.folder.display(),
            "no rule runs hotplugger, so nothing happens on a plug",
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
    let advice = format!("leave the second out of {place}; one is enough");
    Some(Finding::warning("rule-twice", place, what).advice(advice))
}

/// An older rule beside the one that knows `bind`: the original's, mostly.
fn beside(bind: &[Run<'_>], others: [&Vec<Run<'_>>; 3]) -> Option<Finding> {
    let one = bind.first()?;
    let is_known = |run: &Run<'_>| bind.iter().any(|known| known.command.text == run.command.text);
    let other = others.into_iter().flatten().find(|run| !is_known(run))?;
    let what = format!(
        "udev runs `{}` as well as `{}` ({}): both would attach what is plugged in",
        other.command.text,
        one.command.text,
        one.place()
    );
    let place = other.place();
    let advice = format!("take the line out: {place}; one rule is enough");
    Some(Finding::warning("rule-twice", place, what).advice(advice))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Level;

    const OURS: &str = include_str!("../../rules/99-hotplugger.rules");

    fn look(files: &[(&str, &str)]) -> RulesLook {
        let file =
            |(path, text): &(&str, &str)| RulesFile { path: path.into(), text: (*text).to_owned() };
        RulesLook {
            files: files.iter().map(file).collect(),
            udevd: true,
            folder: "/etc/udev/rules.d".into(),
        }
    }

    fn codes(files: &[(&str, &str)]) -> Vec<&'static str> {
        let findings = judge(&look(files));
        findings
            .iter()
            .filter(|finding| finding.level > Level::Ok)
            .map(|finding| finding.code)
            .collect()
    }

    #[test]
    fn one_rule_is_enough_wherever_it_is() {
        assert!(codes(&[("/usr/lib/udev/rules.d/99-hotplugger.rules", OURS)]).is_empty());
        let both = [
            ("/etc/udev/rules.d/99-hotplugger.rules", OURS),
            ("/usr/lib/udev/rules.d/99-hotplugger.rules", OURS),
        ];
        assert!(codes(&both).is_empty());
        assert_eq!(look(&both).programs(), ["/usr/bin/hotplugger"]);
    }

    #[test]
    fn what_is_wrong_with_rules_is_told() {
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
    fn the_originals_rule_is_known_alone_and_beside_ours() {
        let original = "SUBSYSTEM==\"usb\", ACTION==\"add\", RUN+=\"/bin/bash -c 'python3 -u \
            /home/u/hotplugger/hotplugger.py >> /tmp/hotplugger.log' &\"\n\
            SUBSYSTEM==\"usb\", ACTION==\"remove\", RUN+=\"/bin/bash -c 'python3 -u \
            /home/u/hotplugger/hotplugger.py >> /tmp/hotplugger.log' &\"\n";
        assert_eq!(codes(&[("/a/1.rules", original)]), ["rule-old"]);
        assert!(look(&[("/a/1.rules", original)]).programs().is_empty());
        let both = [("/a/1.rules", original), ("/a/2.rules", OURS)];
        assert_eq!(codes(&both), ["rule-twice"]);
        let findings = judge(&look(&both));
        let twice = findings.iter().find(|finding| finding.code == "rule-twice").unwrap();
        assert_eq!(twice.place, "/a/1.rules:1");
    }
}
