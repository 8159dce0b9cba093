//! The devices that were there all along, and which of them are meant. Pure.

use super::watch::{Event, Sighting};
use crate::host::topology::{HubPort, Topology};

/// The occupied ports that one of the words names; without words all but those behind hubs, which
/// are told with their hub.
pub(super) fn plugged(topology: &Topology, words: &[String]) -> Vec<Sighting> {
    let meant = |port: &&HubPort| match words {
        [] => port.port.parent().is_none(),
        words => words.iter().any(|word| is_meant(port, word)),
    };
    let is_occupied = |port: &&HubPort| port.plugged.is_some();
    let sighting = |port: &HubPort| Sighting {
        event: Event::Plugged,
        port: port.clone(),
        behind: port.behind().into_iter().filter(is_occupied).cloned().collect(),
    };
    topology.ports().into_iter().filter(is_occupied).filter(meant).map(sighting).collect()
}

/// Whether the word is the port's name or DEVPATH, or names what is in it.
fn is_meant(port: &HubPort, word: &str) -> bool {
    let word = word.to_lowercase();
    port.port.to_string() == word
        || port.devpath.as_str().to_lowercase() == word
        || port.device().is_some_and(|device| {
            let ids = format!("{:04x}:{:04x}", device.vendor_id, device.product_id);
            let name = device.product.as_deref().unwrap_or_default().to_lowercase();
            ids == word || name.contains(&word) && !word.is_empty()
        })
}
