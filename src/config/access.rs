//! How a VM's QEMU gets at a device, and whom it is run by. Pure.

use std::fmt;

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
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Id(id) => id.fmt(f),
        }
    }
}
