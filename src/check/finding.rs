//! One finding: how bad, what, where, and what mends it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::excerpt::Excerpt;

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What kind of finding it is, the same in all versions: `port-missing`.
    pub code: &'static str,
    /// Where: a file, a socket, a port, a virtual machine.
    #[serde(rename = "where")]
    pub place: String,
    /// What is so there.
    pub what: String,
    /// The line of a file that it is about.
    pub excerpt: Option<Excerpt>,
    /// What mends it; none where nothing needs to be done.
    pub remedy: Option<Remedy>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing, and nothing is wrong with it.
    Note,
    /// It works, but not always, not fully, or not for long.
    Warning,
    /// It does not work, or lets others in.
    Fault,
}

/// What mends a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Remedy {
    /// A command to be run as root.
    Command {
        /// The command line, fit for a shell.
        run: String,
    },
    /// A line of a file to be written, left out, or written instead of another.
    Edit {
        /// The file.
        file: PathBuf,
        /// The virtual machine below whose `ports:` it stands; none in a file that is not the
        /// config.
        vm: Option<String>,
        /// The line that goes, if one goes.
        remove: Option<String>,
        /// The line that comes, if one comes.
        add: Option<String>,
    },
    /// What to do, in words.
    Advice {
        /// The words.
        text: String,
    },
}

impl Finding {
    fn new(
        level: Level,
        code: &'static str,
        place: impl fmt::Display,
        what: impl Into<String>,
    ) -> Self {
        let (place, what) = (place.to_string(), what.into());
        Self { level, code, place, what, excerpt: None, remedy: None }
    }

    /// Something that is as it should be.
    pub fn ok(code: &'static str, place: impl fmt::Display, what: impl Into<String>) -> Self {
        Self::new(Level::Ok, code, place, what)
    }

    /// Something worth knowing.
    pub fn note(code: &'static str, place: impl fmt::Display, what: impl Into<String>) -> Self {
        Self::new(Level::Note, code, place, what)
    }

    /// Something that works only so far.
    pub fn warning(code: &'static str, place: impl fmt::Display, what: impl Into<String>) -> Self {
        Self::new(Level::Warning, code, place, what)
    }

    /// Something that does not work, or lets others in.
    pub fn fault(code: &'static str, place: impl fmt::Display, what: impl Into<String>) -> Self {
        Self::new(Level::Fault, code, place, what)
    }

    /// A command mends it.
    #[must_use]
    pub fn run(mut self, command: impl Into<String>) -> Self {
        self.remedy = Some(Remedy::Command { run: command.into() });
        self
    }

    /// What is said in words mends it.
    #[must_use]
    pub fn advice(mut self, text: impl Into<String>) -> Self {
        self.remedy = Some(Remedy::Advice { text: text.into() });
        self
    }

    /// A line in a file mends it.
    #[must_use]
    pub fn add_line(mut self, file: impl Into<PathBuf>, line: impl Into<String>) -> Self {
        let (file, add) = (file.into(), Some(line.into()));
        self.remedy = Some(Remedy::Edit { file, vm: None, remove: None, add });
        self
    }

    /// A change in a virtual machine's `ports:` mends it.
    #[must_use]
    pub fn ports(
        mut self,
        file: &Path,
        vm: &str,
        remove: Option<&impl fmt::Display>,
        add: Option<&impl fmt::Display>,
    ) -> Self {
        self.remedy = Some(Remedy::Edit {
            file: file.to_path_buf(),
            vm: Some(vm.to_owned()),
            remove: remove.map(|port| format!("- {port}")),
            add: add.map(|port| format!("- {port}")),
        });
        self
    }

    /// It is about this line.
    #[must_use]
    pub fn showing(mut self, excerpt: Option<Excerpt>) -> Self {
        self.excerpt = excerpt;
        self
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Fault => "fault",
        })
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command { run } => write!(f, "run: {run}"),
            Self::Advice { text } => f.write_str(text),
            Self::Edit { file, vm, remove, add } => {
                write!(f, "in {}", file.display())?;
                if let Some(vm) = vm {
                    write!(f, ", below `ports:` of `{vm}`")?;
                }
                match (add, remove) {
                    (Some(add), Some(remove)) => write!(f, ", write `{add}` instead of `{remove}`"),
                    (Some(add), None) => write!(f, ", add: {add}"),
                    (None, Some(remove)) => write!(f, ", leave out: {remove}"),
                    (None, None) => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_are_said_in_a_line() {
        let said = |finding: Finding| finding.remedy.unwrap().to_string();
        let finding = || Finding::fault("code", "place", "what");
        assert_eq!(said(finding().run("chmod go-w /etc")), "run: chmod go-w /etc");
        assert_eq!(
            said(finding().ports(
                Path::new("/etc/c.yaml"),
                "windows",
                Some(&"/old"),
                Some(&"/new")
            )),
            "in /etc/c.yaml, below `ports:` of `windows`, write `- /new` instead of `- /old`"
        );
        assert_eq!(said(finding().add_line("/etc/r.rules", "LINE")), "in /etc/r.rules, add: LINE");
    }

    #[test]
    fn the_worst_is_the_greatest() {
        assert!(Level::Fault > Level::Warning && Level::Note > Level::Ok);
    }
}
