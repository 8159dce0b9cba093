//! The program that the rule names, which udev runs as root.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::finding::Finding;
use super::trusted_owners;
use crate::permissions::{PermissionIssue, PermissionKind, path_issue};
use crate::root::Root;
use crate::text::shell_word;

#[derive(Debug)]
pub struct ProgramFacts {
    pub path: PathBuf,
    pub this: PathBuf,
    pub found: ProgramFound,
}

#[derive(Debug, PartialEq, Eq)]
pub enum ProgramFound {
    Missing,
    /// A file that cannot be executed, or not a file.
    NotExecutable,
    Program {
        issue: Option<PermissionIssue>,
        /// Whether it is the program that runs this check, or a copy; `None` if it cannot be read.
        same: Option<bool>,
    },
}

pub fn check(programs: &[ProgramFacts]) -> Vec<Finding> {
    programs.iter().flat_map(check_one).collect()
}

fn check_one(facts: &ProgramFacts) -> Vec<Finding> {
    let place = facts.path.display();
    let word = |path: &PathBuf| shell_word(&path.to_string_lossy());
    let install = || format!("install -D -m 755 {} {}", word(&facts.this), word(&facts.path));
    let (issue, same) = match &facts.found {
        ProgramFound::Missing => {
            let what = "the rule runs it, but it does not exist";
            return vec![Finding::error("program-missing", place, what).run(install())];
        }
        ProgramFound::NotExecutable => {
            let what = "the rule runs it, but it is not an executable file";
            return vec![
                Finding::error("program-not-executable", place, what)
                    .run(format!("chmod 755 {}", word(&facts.path))),
            ];
        }
        ProgramFound::Program { issue, same } => (issue, same),
    };
    let trusted = match issue {
        None => Finding::ok("program-safe", facts.path.display(), "only root can change it"),
        Some(issue) => {
            let weak = issue.path.display();
            let what = match issue.kind {
                PermissionKind::Owner(user) => {
                    format!("{weak} belongs to user {user}, who can become root")
                }
                PermissionKind::Mode(mode) => {
                    format!("other users can write to {weak} (mode {mode:o}) and become root")
                }
            };
            Finding::error("program-writable", facts.path.display(), what).run(issue.remedy())
        }
    };
    let other = (*same == Some(false)).then(|| {
        Finding::warning(
            "program-other",
            place,
            format!(
                "the rule runs it, but this check runs another program, {}",
                facts.this.display()
            ),
        )
        .run(install())
    });
    [trusted].into_iter().chain(other).collect()
}

pub fn gather(root: &Root, named: &str) -> ProgramFacts {
    // udev resolves a relative path in its own directory (udev(7), RUN).
    let path = root.path(Path::new("/usr/lib/udev").join(named));
    let this = env::current_exe().unwrap_or_else(|_| PathBuf::from("hotplugger"));
    let found = match fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() && metadata.mode() & 0o111 != 0 => {
            ProgramFound::Program {
                issue: path_issue(&path, &trusted_owners(root)).unwrap_or_default(),
                same: same(&path, &this).ok(),
            }
        }
        Ok(_) => ProgramFound::NotExecutable,
        Err(_) => ProgramFound::Missing,
    };
    ProgramFacts { path, this, found }
}

fn same(one: &Path, other: &Path) -> io::Result<bool> {
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

#[cfg(test)]
pub(in crate::check) mod tests {
    use super::*;

    fn codes(found: ProgramFound) -> Vec<&'static str> {
        let facts = ProgramFacts {
            path: "/usr/bin/hotplugger".into(),
            this: "/opt/hotplugger".into(),
            found,
        };
        check(&[facts]).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn program_exists_is_safe_and_is_this_one() {
        let issue = PermissionIssue { path: "/usr/bin".into(), kind: PermissionKind::Mode(0o777) };
        assert_eq!(codes(ProgramFound::Missing), ["program-missing"]);
        assert_eq!(codes(ProgramFound::NotExecutable), ["program-not-executable"]);
        let program = |issue, same| codes(ProgramFound::Program { issue, same });
        assert_eq!(program(None, Some(true)), ["program-safe"]);
        assert_eq!(program(Some(issue), None), ["program-writable"]);
        assert_eq!(program(None, Some(false)), ["program-safe", "program-other"]);
    }
}
