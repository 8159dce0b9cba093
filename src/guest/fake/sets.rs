//! The sets of descriptors of a guest that is not there.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// All sets.
#[derive(Clone, Debug)]
pub struct Sets {
    /// Whether this QEMU takes a USB device from one.
    pub are_taken: bool,
    /// How many descriptors are in each set that was ever made.
    descriptors: BTreeMap<u64, usize>,
}

impl Sets {
    pub(super) fn new() -> Self {
        Self { are_taken: true, descriptors: BTreeMap::new() }
    }

    /// How many descriptors are left in them.
    pub fn left(&self) -> usize {
        self.descriptors.values().sum()
    }

    /// Puts one into that set, as an exchange does that may be broken off then.
    pub fn put(&mut self, set: u64) {
        *self.descriptors.entry(set).or_default() += 1;
    }

    /// Takes those of that set away; as with QEMU, in a paused guest they stay until it goes on.
    pub(super) fn remove(&mut self, set: u64, running: bool) -> Option<()> {
        let descriptors = self.descriptors.get_mut(&set)?;
        if running {
            *descriptors = 0;
        }
        Some(())
    }

    /// Whether something can be opened at `/dev/fdset/N`.
    pub(super) fn opens(&self, path: &str) -> bool {
        let set = path.strip_prefix("/dev/fdset/").and_then(|set| set.parse().ok());
        set.and_then(|set: u64| self.descriptors.get(&set)).is_some_and(|count| *count > 0)
    }

    /// What `query-fdsets` returns.
    pub(super) fn list(&self) -> Value {
        let set = |(set, descriptors): (&u64, &usize)| {
            let fds = vec![json!({"fd": 12}); *descriptors];
            json!({"fdset-id": set, "fds": fds})
        };
        self.descriptors.iter().map(set).collect()
    }
}
