//! The program that root is going to run.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::permissions::weakness_on_the_way;
use crate::text::shell_word;

/// Refuses a program that udev could not start or that others could replace, since root runs it.
pub(super) fn usable(program: &Path, must_exist: bool) -> Result<String> {
    let shown = program.display();
    let Some(text) = program.to_str().filter(|text| text.starts_with('/')) else {
        bail!("{shown}: the rule needs an absolute path");
    };
    if text.contains(|character: char| character.is_whitespace() || "\"'\\%$".contains(character)) {
        bail!(
            "{shown}: a udev rule cannot start a program with such a name; move it to /usr/local/bin"
        );
    }
    if must_exist {
        let weakness = weakness_on_the_way(program, &[0]).with_context(|| format!("{shown}"))?;
        if weakness.is_some() {
            let word = shell_word(text);
            bail!(
                "others than root can change {shown}, which root would run; put it where they cannot:\n  \
                 install -m 755 {word} /usr/local/bin/hotplugger && /usr/local/bin/hotplugger install"
            );
        }
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_a_rule_cannot_start_are_refused() {
        for bad in ["hotplugger", "/opt/my tools/hotplugger", "/opt/%p/hotplugger", "/opt/\"/h"] {
            assert!(usable(Path::new(bad), false).is_err(), "{bad}");
        }
        assert!(usable(Path::new("/usr/bin/hotplugger"), false).is_ok());
    }
}
