//! What a test skipped, and why.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "it prints, and a test fails by it")]

use std::env;
use std::fs::File;
use std::io::Write as _;

/// Prints the line, and adds it to the report of `make test`.
pub(crate) fn report(line: &str) {
    println!("{line}");
    let Some(path) = env::var_os("HOTPLUGGER_REPORT") else { return };
    let mut file = File::options().create(true).append(true).open(path).unwrap();
    writeln!(file, "{line}").unwrap();
}
