//! The udev rules and the program that they name: whether udev runs hotplugger, on the right events,
//! once, and whether only root can change that program.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::finding::Finding;
use super::trusted_owners;
use super::udev_rules::{Command, Kind, commands, words};
use crate::install::{SYSTEMD_RUNS, UDEVD_RUNS};
use crate::permissions::path_issue;
use crate::root::Root;
use crate::text::shell_word;

/// All rules files, by the precedence of their directories.
#[derive(Debug)]
pub struct Rules(Vec<RulesFile>);

#[derive(Debug)]
struct RulesFile {
    path: PathBuf,
    text: String,
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

impl Rules {
    pub fn read(root: &Root) -> Self {
        Self(FOLDERS.iter().flat_map(|directory| files(&root.path(directory))).collect())
    }

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

    /// The file of that name which udev reads instead.
    fn mask(&self, file: &RulesFile) -> Option<&RulesFile> {
        let first = self.0.iter().find(|other| other.path.file_name() == file.path.file_name());
        first.filter(|first| first.path != file.path)
    }

    /// The commands that run hotplugger on such an event. udev runs equal ones once.
    fn runs(&self, kind: Kind) -> Vec<Run<'_>> {
        let mut runs: Vec<Run<'_>> = Vec::new();
        for file in self.0.iter().filter(|file| self.mask(file).is_none()) {
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

pub fn check(root: &Root, rules: &Rules) -> Vec<Finding> {
    let this = env::current_exe().unwrap_or_else(|_| PathBuf::from("hotplugger"));
    let programs = rules.programs();
    let programs = programs.iter().flat_map(|named| check_program(root, named, &this));
    [check_udevd(root)].into_iter().chain(check_rules(root, rules)).chain(programs).collect()
}

fn check_udevd(root: &Root) -> Finding {
    let control = fs::metadata(root.path(UDEVD_RUNS));
    if control.is_ok_and(|control| control.file_type().is_socket()) {
        return Finding::ok("udevd-running", "udevd", "it runs");
    }
    let stopped =
        Finding::error("udevd-stopped", "udevd", "it does not run, so no rule is applied");
    match START_UDEVD.iter().find(|(path, _)| root.path(path).exists()) {
        Some((_, command)) => stopped.run(*command),
        None => stopped.advice("start it, as this system starts it at boot"),
    }
}

fn check_rules(root: &Root, rules: &Rules) -> Vec<Finding> {
    let [add, bind, remove, interface] =
        [ADD, BIND, REMOVE, INTERFACE].map(|kind| rules.runs(kind));
    if add.is_empty() && bind.is_empty() && remove.is_empty() && interface.is_empty() {
        return vec![none(root, rules)];
    }
    let first = |runs: &[Run<'_>]| runs.first().map(|run| run.file.display().to_string());
    let ours = "replace it by hotplugger's own rule: `hotplugger install`";
    let mut findings = vec![if let Some(place) = first(&bind) {
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
    }];
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

fn none(root: &Root, rules: &Rules) -> Finding {
    let masked = rules.0.iter().find_map(|file| {
        let runs_us =
            [BIND, INTERFACE].iter().any(|kind| !starting_us(&file.text, *kind).is_empty());
        Some((file, rules.mask(file)?)).filter(|_| runs_us)
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
            root.path(FOLDERS[0]).display(),
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

/// Checks a program that the rules name. `this` runs the check.
fn check_program(root: &Root, named: &str, this: &Path) -> Vec<Finding> {
    // udev resolves a relative path in its own directory (udev(7), RUN).
    let path = root.path(Path::new("/usr/lib/udev").join(named));
    let place = path.display();
    let word = |path: &Path| shell_word(&path.to_string_lossy());
    let install = || format!("install -D -m 755 {} {}", word(this), word(&path));
    match fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() && metadata.mode() & 0o111 != 0 => {}
        Ok(_) => {
            let what = "the rule runs it, but it is not an executable file";
            return vec![
                Finding::error("program-not-executable", place, what)
                    .run(format!("chmod 755 {}", word(&path))),
            ];
        }
        Err(_) => {
            let what = "the rule runs it, but it does not exist";
            return vec![Finding::error("program-missing", place, what).run(install())];
        }
    }
    let mut findings = vec![match path_issue(&path, &trusted_owners(root)) {
        Ok(Some(issue)) => {
            let what = format!("{issue}, so another user can become root");
            Finding::error("program-writable", &place, what).run(issue.remedy())
        }
        _ => Finding::ok("program-safe", &place, "only root can change it"),
    }];
    if let Ok(false) = is_same(&path, this) {
        let what =
            format!("the rule runs it, but this check runs another program, {}", this.display());
        findings.push(Finding::warning("program-other", place, what).run(install()));
    }
    findings
}

/// Whether it is the same file, or a copy.
fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let (of_one, of_other) = (fs::metadata(one)?, fs::metadata(other)?);
    if (of_one.dev(), of_one.ino()) == (of_other.dev(), of_other.ino()) {
        return Ok(true);
    }
    if of_one.len() != of_other.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (BufReader::new(File::open(one)?), File::open(other)?);
    let (mut left, mut right) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let read = one.read(&mut left)?;
        if read == 0 {
            return Ok(true);
        }
        other.read_exact(&mut right[..read])?;
        if left[..read] != right[..read] {
            return Ok(false);
        }
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
    use std::os::unix::fs::PermissionsExt;

    const OURS: &str = include_str!("../../rules/99-hotplugger.rules");

    fn rules(files: &[(&str, &str)]) -> Rules {
        let file =
            |(path, text): &(&str, &str)| RulesFile { path: path.into(), text: (*text).to_owned() };
        Rules(files.iter().map(file).collect())
    }

    fn codes(files: &[(&str, &str)]) -> Vec<&'static str> {
        let findings = check_rules(&Root::at("/"), &rules(files));
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
        assert_eq!(rules(&both).programs(), ["/usr/bin/hotplugger"]);
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
        assert!(rules(&[("/a/1.rules", original)]).programs().is_empty());
        let both = [("/a/1.rules", original), ("/a/2.rules", OURS)];
        assert_eq!(codes(&both), ["rule-twice"]);
        let findings = check_rules(&Root::at("/"), &rules(&both));
        let twice = findings.iter().find(|finding| finding.code == "rule-twice").unwrap();
        assert_eq!(twice.place, "/a/1.rules:1");
    }

    #[test]
    fn program_exists_is_safe_and_is_this_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let (program, this) = (root.path("/usr/bin/hotplugger"), root.path("/opt/hotplugger"));
        for path in [&program, &this] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        fs::write(&this, "1").unwrap();
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let codes = || {
            let findings = check_program(&root, "/usr/bin/hotplugger", &this);
            findings.iter().map(|finding| finding.code).collect::<Vec<_>>()
        };
        assert_eq!(codes(), ["program-missing"]);
        fs::write(&program, "1").unwrap();
        mode(&program, 0o644);
        assert_eq!(codes(), ["program-not-executable"]);
        mode(&program, 0o755);
        assert_eq!(codes(), ["program-safe"]);
        fs::write(&program, "2").unwrap();
        assert_eq!(codes(), ["program-safe", "program-other"]);
        mode(program.parent().unwrap(), 0o777);
        fs::remove_file(&this).unwrap();
        assert_eq!(codes(), ["program-writable"]);
    }
}
