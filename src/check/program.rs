//! The program that the rule names, which udev runs as root.

use std::path::PathBuf;

use super::finding::Finding;
use crate::permissions::{PermissionIssue, PermissionKind};
use crate::text::shell_word;

/// What was found where the rule's program should be.
#[derive(Debug)]
pub struct ProgramLook {
    /// Where it should be.
    pub path: PathBuf,
    /// The program that runs this check.
    pub this: PathBuf,
    /// What is there.
    pub found: ProgramFound,
}

/// What is where a program should be.
#[derive(Debug, PartialEq, Eq)]
pub enum ProgramFound {
    /// Nothing.
    Missing,
    /// A file that cannot be run, or no file.
    NotExecutable,
    /// A program.
    Program {
        /// What lets others change it.
        weakness: Option<PermissionIssue>,
        /// Whether it is the one that runs this check, or a copy of it; none if it cannot be read.
        same: Option<bool>,
    },
}

/// Judges the programs.
pub fn judge(programs: &[ProgramLook]) -> Vec<Finding> {
    programs.iter().flat_map(judge_one).collect()
}

fn judge_one(look: &ProgramLook) -> Vec<Finding> {
    let place = look.path.display();
    let word = |path: &PathBuf| shell_word(&path.to_string_lossy());
    let install = || format!("install -D -m 755 {} {}", word(&look.this), word(&look.path));
    let (weakness, same) = match &look.found {
        ProgramFound::Missing => {
            let what = "the rule starts it, and it is not there";
            return vec![Finding::fault("program-missing", place, what).run(install())];
        }
        ProgramFound::NotExecutable => {
            let what = "the rule starts it, and it is no file that can be run";
            return vec![
                Finding::fault("program-not-executable", place, what)
                    .run(format!("chmod 755 {}", word(&look.path))),
            ];
        }
        ProgramFound::Program { weakness, same } => (weakness, same),
    };
    let trusted = match weakness {
        None => Finding::ok("program-safe", look.path.display(), "only root can change it"),
        Some(weakness) => {
            let weak = weakness.path.display();
            let what = match weakness.door {
                PermissionKind::Owner(user) => {
                    format!("{weak} belongs to user {user}, who thereby is root")
                }
                PermissionKind::Mode(mode) => {
                    format!("others can write {weak} (mode {mode:o}), and thereby are root")
                }
            };
            Finding::fault("program-writable", look.path.display(), what).run(weakness.remedy())
        }
    };
    let other = (*same == Some(false)).then(|| {
        Finding::warning(
            "program-other",
            place,
            format!(
                "the rule starts it, and it is not the program of this check, {}",
                look.this.display()
            ),
        )
        .run(install())
    });
    [trusted].into_iter().chain(other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(found: ProgramFound) -> Vec<&'static str> {
        let look = ProgramLook {
            path: "/usr/bin/hotplugger".into(),
            this: "/opt/hotplugger".into(),
            found,
        };
        judge(&[look]).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn a_program_is_there_safe_and_this_one() {
        let weakness =
            PermissionIssue { path: "/usr/bin".into(), door: PermissionKind::Mode(0o777) };
        assert_eq!(codes(ProgramFound::Missing), ["program-missing"]);
        assert_eq!(codes(ProgramFound::NotExecutable), ["program-not-executable"]);
        let program = |weakness, same| codes(ProgramFound::Program { weakness, same });
        assert_eq!(program(None, Some(true)), ["program-safe"]);
        assert_eq!(program(Some(weakness), None), ["program-writable"]);
        assert_eq!(program(None, Some(false)), ["program-safe", "program-other"]);
    }
}
