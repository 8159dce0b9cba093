//! How a VM's QEMU gets at a device, and whom it is run by. Pure.

use std::fmt;
use std::io;

/// How QEMU gets at a device, and to whom hotplugger may hand one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    pub mode: AccessMode,
    /// The user that must listen at the socket. `None`: the socket's owner.
    pub user: Option<User>,
    /// Whether it does not matter who else can write to the socket's directory.
    pub trust_socket_directory: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessMode {
    /// By itself if it can, else by a descriptor.
    #[default]
    Auto,
    /// By a descriptor that hotplugger opens.
    Fd,
    Node,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    Name(String),
    Id(u32),
}

impl Access {
    /// The access to a VM that the config no longer has.
    pub const DEFAULT: Self =
        Self { mode: AccessMode::Auto, user: None, trust_socket_directory: false };

    /// The number of the user who must listen, if one is named; `look_up` finds a name's.
    ///
    /// # Errors
    ///
    /// There is no such user, or the users cannot be read.
    pub fn uid(
        &self,
        look_up: impl Fn(&str) -> io::Result<Option<u32>>,
    ) -> io::Result<Option<u32>> {
        let name = match &self.user {
            None => return Ok(None),
            Some(User::Id(id)) => return Ok(Some(*id)),
            Some(User::Name(name)) => name,
        };
        let id = look_up(name)?.ok_or_else(|| {
            io::Error::other(format!(
                "the config wants user {name} there, who is not in /etc/passwd; write the number \
                 that `id -u {name}` says"
            ))
        });
        id.map(Some)
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Id(id) => id.fmt(f),
        }
    }
}
