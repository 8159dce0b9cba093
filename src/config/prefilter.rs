//! A search of the raw config that shows, before anything is parsed, that no port in it can match.
//!
//! Most events concern unconfigured ports, and for them this search is all that happens. Sound, not
//! exact: it may say yes in vain, never no. Pure.

use std::fmt::Write as _;
use std::iter;

use memchr::memmem;

use crate::devpath::DevPath;
use crate::location::{PeerPorts, is_numbered_at_probe};
use crate::port::Port;

/// Returns whether some port in the config `text` may be at or above `device`, or one of `peers`,
/// the other halves of the connectors it is behind, which have to be found for it. They are not
/// where the text leaves out their controller, which is the device's own.
///
/// A port at or above a device stands in the text in one of two ways, and as it is: YAML can spell
/// a word otherwise only with a backslash. A DEVPATH ends with one of the device's own components
/// from the root hub down. Names without a bus number have the controller, its root hub, whichever
/// it may be, and a chain that the device's begins with, or no chain. Ports that are written wrong
/// but were meant for the device are not ruled out, so that the mistake is reported.
pub fn may_match(text: &[u8], device: &DevPath, peers: impl FnOnce(&DevPath) -> PeerPorts) -> bool {
    if memchr::memchr(b'\\', text).is_some() {
        return true;
    }
    let path = device.as_str();
    let on_bus = device.from_root_hub().unwrap_or_default();
    let above = path.strip_suffix(on_bus).and_then(|above| above.strip_suffix('/'));
    let controller = above.and_then(|above| above.rsplit('/').next()).unwrap_or_default();
    // Text that may have one more quote, or a break, is not searched for.
    // A controller that is numbered at probe has the name of a device above it as well.
    let plain = controller.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\'')
        && !is_numbered_at_probe(controller);
    let controller = if plain { controller.as_bytes() } else { b"" };
    let on_it = memmem::find(text, controllers_with_peers(controller)).is_some();
    let PeerPorts { same_controller, companion } =
        if on_it { peers(device) } else { PeerPorts::default() };
    let peers: Vec<String> = same_controller.iter().map(path_on_bus).collect();

    let mut wanted = NamePatterns { controller, ..NamePatterns::default() };
    let own = on_bus.strip_prefix("usb").unwrap_or_default();
    for path in iter::once(own).chain(peers.iter().map(String::as_str)) {
        wanted.add(path);
    }
    on_bus.split('/').skip(1).any(|name| has_name(text, name.as_bytes()))
        || wanted.is_in(text)
        || companion.is_some_and(|port| may_match(text, &port, no_peers))
}

/// The part of a DEVPATH behind `/usb`: `1/1-1/1-1.4`.
fn path_on_bus(port: &Port) -> String {
    let bus = port.bus().0;
    let mut path = String::with_capacity(64);
    let mut chain = String::with_capacity(32);
    // Writing to a string does not fail.
    let _ = write!(path, "{bus}");
    for number in port.chain().numbers() {
        let dot = if chain.is_empty() { "" } else { "." };
        let _ = write!(chain, "{dot}{number}");
        let _ = write!(path, "/{bus}-{chain}");
    }
    path
}

fn no_peers(_: &DevPath) -> PeerPorts {
    PeerPorts::default()
}

/// The text that the names of all controllers with peer ports of this one have in common: peer ports are on
/// the same controller, or on companions, which are functions of the same PCI device. Others have any name.
fn controllers_with_peers(controller: &[u8]) -> &[u8] {
    match controller {
        [device @ .., b'0'..=b'7'] if device.ends_with(b".") && device.contains(&b':') => device,
        _ => b"",
    }
}

/// What may stand at and around a root hub in the text.
#[derive(Default)]
struct NamePatterns<'a> {
    /// The sysname of the controller.
    controller: &'a [u8],
    /// The parts of the devices' DEVPATHs behind `/usb`.
    paths: Vec<&'a str>,
    /// Their chains of ports.
    chains: Vec<&'a str>,
    /// The [`bit`]s of the chains' first bytes.
    firsts: u64,
}

impl<'a> NamePatterns<'a> {
    fn add(&mut self, path: &'a str) {
        let chain = path.rsplit_once('-').map_or("", |(_, chain)| chain);
        self.paths.push(path);
        if !self.chains.contains(&chain) {
            self.chains.push(chain);
        }
        // A space before the chain is a mistake that is reported.
        self.firsts |= chain.bytes().next().map_or(0, bit) | bit(b' ');
    }

    /// Whether a name that goes through a root hub may be at or above a device.
    fn is_in(&self, text: &[u8]) -> bool {
        // A letter that is rarely another word's, and then what most names are: each is passed at the
        // cost of few instructions.
        memchr::memchr_iter(b'u', text).any(|at| {
            let rest = text.get(at..).unwrap_or_default();
            if let Some([_, b's', b'b', b'0'..=b'9', b':', first]) = rest.first_chunk()
                && self.firsts & bit(*first) == 0
            {
                return false;
            }
            let Some(after) = rest.strip_prefix(b"usb") else {
                // Names are not found in UTF-16 or UTF-32 text.
                return rest.get(1) == Some(&0);
            };
            let (before, after) = match (text[..at].split_last(), after) {
                (Some((b'/', before)), after) => {
                    if self.paths.iter().any(|path| is_path_above(path, after)) {
                        return before.ends_with(self.controller);
                    }
                    let [b'1'..=b'3', after @ ..] = after else { return false };
                    (before, after)
                }
                (
                    Some((b'-', before)),
                    [b'-', b'0', after @ ..] | [b'v', b'1'..=b'3', b'-', b'0', after @ ..],
                ) => (before, after),
                // A root hub's own name is wrong, but meant.
                (Some((byte, _)), after) if !of_word(*byte) => {
                    return self.paths.iter().any(|path| is_path_above(path, after));
                }
                _ => return false,
            };
            let may_end = match after.first() {
                Some(b':') => {
                    let after = after[1..].trim_ascii_start();
                    self.chains.iter().any(|chain| is_chain_above(chain, after))
                }
                // The path of a port of this bus or another.
                Some(b'/') => false,
                Some(byte) => !of_word(*byte),
                None => true,
            };
            may_end && before.ends_with(self.controller)
        })
    }
}

/// A bit for a byte, which may be another byte's too.
fn bit(byte: u8) -> u64 {
    1 << (byte % 64)
}

/// How many bytes of both are the same.
fn same(one: &str, other: &[u8]) -> usize {
    one.bytes().zip(other).take_while(|(one, other)| one == *other).count()
}

/// Whether the text begins with the first numbers of the chain, and nothing more.
fn is_chain_above(chain: &str, text: &[u8]) -> bool {
    let same = same(chain, text);
    matches!(chain.as_bytes().get(same), None | Some(b'.'))
        && !text.get(same).is_some_and(|byte| byte.is_ascii_digit() || *byte == b'.')
}

/// Whether the text begins with the first components of the path, and what follows them is no word.
fn is_path_above(path: &str, text: &[u8]) -> bool {
    let same = same(path, text);
    // A chain behind a root hub's number: there it is that of a generation.
    let chain = |byte: u8| byte == b':' && !path[..same].contains('/');
    // The name of a device again, for its interface.
    let interface = path.as_bytes().get(same) == Some(&b'.') && text.get(same) == Some(&b':');
    (matches!(path.as_bytes().get(same), None | Some(b'/'))
        || path[..same].ends_with('/')
        || interface)
        && !text.get(same).is_some_and(|byte| of_word(*byte) || chain(*byte))
}

fn of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b".-_".contains(&byte)
}

/// Whether the port's name stands in the text by itself, and not as a hub on the way to another port.
fn has_name(text: &[u8], name: &[u8]) -> bool {
    let ends = |byte: Option<&u8>| !byte.is_some_and(|byte| of_word(*byte));
    let is_below = |after: &[u8]| {
        after.strip_prefix(b"/").and_then(|after| after.strip_prefix(name)?.first()) == Some(&b'.')
    };
    memmem::find_iter(text, name).any(|at| {
        let after = &text[at + name.len()..];
        ends(text[..at].last()) && ends(after.first()) && !is_below(after)
    })
}

#[cfg(test)]
mod tests;
