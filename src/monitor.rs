//! How hotplugger reaches the QEMU of a VM.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where libvirt keeps the process IDs and the status of its running domains
/// (`src/qemu/qemu_process.c`: `virPidFileBuildPath`; `src/conf/domain_conf.c`:
/// `virDomainObjSave`).
pub const LIBVIRT_DIRECTORY: &str = "/run/libvirt/qemu";

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Monitor {
    /// The path of a QMP socket.
    Socket(PathBuf),
    /// The name of a libvirt domain.
    Domain(String),
}

impl Monitor {
    /// The file that exists while the VM runs, a new one after each start: the socket, or libvirt's
    /// file with the process ID.
    pub fn file(&self) -> Cow<'_, Path> {
        match self {
            Self::Socket(path) => Cow::Borrowed(path),
            Self::Domain(name) => {
                Cow::Owned(Path::new(LIBVIRT_DIRECTORY).join(format!("{name}.pid")))
            }
        }
    }

    pub fn is_domain(&self) -> bool {
        matches!(self, Self::Domain(_))
    }
}

impl fmt::Display for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Domain(name) => write!(f, "libvirt domain {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_of_a_domain_is_libvirts_pid_file() {
        let domain = Monitor::Domain("win 11".to_owned());
        assert_eq!(domain.file(), Path::new("/run/libvirt/qemu/win 11.pid"));
        let socket = Monitor::Socket("/run/windows.qmp".into());
        assert_eq!(socket.file(), Path::new("/run/windows.qmp"));
    }
}
