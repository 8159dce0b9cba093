//! The environment of a udev call: `NAME=VALUE`, each ended by NUL.

use std::collections::BTreeMap;

use hotplugger::config::Config;
use hotplugger::config::file::ConfigFile;
use hotplugger::event;
use hotplugger::host::dry_run::DryRun;
use hotplugger::text::sanitize_line;

use super::host::Host;

/// Rehearses the call, on a host with a tablet in a configured port.
pub fn run(data: &[u8]) {
    thread_local!(static HOST: Host = Host::with_tablet());
    let text = String::from_utf8_lossy(data);
    let variables: BTreeMap<String, String> = text
        .split('\0')
        .filter_map(|entry| entry.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    HOST.with(|host| {
        let file = ConfigFile::find(&host.root, None);
        let config = match ConfigFile::find(&host.root, None) {
            Ok(Some(file)) => file.parse().unwrap_or_default(),
            _ => Config::default(),
        };
        let dry_run = DryRun::new(&host.root, &config, true);
        let variable = |name: &str| variables.get(name).cloned();
        let report = event::handle(&variable, file, &dry_run);
        for (name, value) in report.fields() {
            // What journald accepts (systemd.journal-fields(7)), and what `journal` sends.
            assert!(name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'), "{name}");
            assert!(!sanitize_line(&value).chars().any(char::is_control), "{name}");
        }
        let line = report.to_string();
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(line.len() < 16 * 1024, "{} bytes", line.len());
    });
}
