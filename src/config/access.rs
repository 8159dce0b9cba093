//! How a virtual machine's QEMU gets at a device, and whom it is run by. Pure.

use std::fmt;

/// How QEMU gets at a device, and to whom hotplugger may hand one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// How.
    pub way: Way,
    /// The user that must listen at the socket; none for the one whom the socket belongs to.
    pub user: Option<User>,
    /// Whether it does not matter who else can write to the socket's folder.
    pub trust_socket_folder: bool,
}

/// How QEMU gets at a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// By itself if it can, else by a descriptor.
    #[default]
    Auto,
    /// By a descriptor that hotplugger opens.
    Fd,
    /// It opens the device's node by itself.
    Node,
}

/// A user of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// By name.
    Name(String),
    /// By number.
    Id(u32),
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Id(id) => id.fmt(f),
        }
    }
}
