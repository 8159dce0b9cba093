//! Who may be handed a descriptor over a QMP socket.
//!
//! A socket's path is a name that others may have a hand in; whoever listens there gets what is
//! sent. An open device is more than a word: it is handed only to the user who is meant.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::permissions::{self, PermissionIssue, PermissionKind};

/// Who may have a descriptor.
pub trait Recipient {
    /// The user who must listen; none for the one whom the socket belongs to.
    ///
    /// # Errors
    ///
    /// It cannot be told who that is.
    fn user(&self) -> io::Result<Option<u32>>;

    /// Whether it does not matter who else can write to the socket's folder.
    fn trusts_folder(&self) -> bool;
}

/// A descriptor that is opened when it is sure that the partner may have it.
pub trait Handover: Recipient {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    fn open(&self) -> io::Result<OwnedFd>;
}

/// Why a partner is not handed a descriptor.
#[derive(Debug)]
pub enum Refused {
    /// It is not told who the partner is, or has to be.
    Unknown(io::Error),
    /// Another user listens than the one who must.
    Listener {
        /// Who listens.
        listens: u32,
        /// Who must.
        must: u32,
    },
    /// Somebody else can put a socket of his own in its place.
    Folder(PermissionIssue),
}

/// Whether the partner who listens at `socket`, and is the user `listens`, may be handed one.
///
/// * It must be the user who is meant, or root, who needs no help to open a device.
/// * Nobody but that user and root may be able to put another socket in its place. Where no user is
///   named the socket's owner is the one who is meant, so that a folder in which everybody can make
///   files is none to rely on, though the sticky bit keeps them from taking those of others.
///
/// # Errors
///
/// Why it may not.
pub fn check(socket: &Path, listens: u32, recipient: &dyn Recipient) -> Result<(), Refused> {
    let named = recipient.user().map_err(Refused::Unknown)?;
    let must = match named {
        Some(user) => user,
        None => fs::metadata(socket).map_err(Refused::Unknown)?.uid(),
    };
    if listens != must && listens != 0 {
        return Err(Refused::Listener { listens, must });
    }
    if recipient.trusts_folder() {
        return Ok(());
    }
    let sticky_is_safe = named.is_some();
    match permissions::open_folder(socket, &[0, must], sticky_is_safe).map_err(Refused::Unknown)? {
        Some(weakness) => Err(Refused::Folder(weakness)),
        None => Ok(()),
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(error) => error.fmt(f),
            Self::Listener { listens, must } => write!(
                f,
                "it is user {listens}, and must be user {must}; if QEMU is run by user {listens}, \
                 write `user: {listens}` into the config"
            ),
            Self::Folder(PermissionIssue { path, door }) => {
                let path = path.display();
                match door {
                    PermissionKind::Owner(owner) => write!(f, "{path} belongs to user {owner}")?,
                    PermissionKind::Mode(mode) => {
                        write!(f, "others can write to {path} (mode {mode:o})")?;
                    }
                }
                f.write_str(
                    ", who could put another socket there; move it, or write \
                     `trust_socket_directory: true` into the config",
                )
            }
        }
    }
}
