//! Where absolute paths begin.
//!
//! Every absolute path the program uses (`/sys`, `/dev`, `/etc`, `/tmp`, `/run`, the sockets of the
//! config) goes through [`Root::path`], so that a test or a packager can run the whole program
//! below a directory with `HOTPLUGGER_ROOT`. This file joins paths; it opens nothing.

use std::env;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The directory that stands for `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// The environment variable that moves the root.
    pub const VARIABLE: &str = "HOTPLUGGER_ROOT";

    /// The root that `HOTPLUGGER_ROOT` names, or `/`.
    pub fn from_env() -> Self {
        match env::var_os(Self::VARIABLE) {
            Some(dir) if !dir.is_empty() => Self::at(dir),
            _ => Self::at("/"),
        }
    }

    /// The root at `dir`.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        let mut dir = dir.into().into_os_string().into_vec();
        while dir.len() > 1 && dir.last() == Some(&b'/') {
            dir.pop();
        }
        Self(OsString::from_vec(dir).into())
    }

    /// Returns `path` below this root; a relative path is returned as it is.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        if !self.is_moved() || path.as_os_str().as_bytes().first() != Some(&b'/') {
            return path.to_path_buf();
        }
        // `Path` would take both apart for it, on each event of each device.
        let mut moved = OsString::with_capacity(self.0.as_os_str().len() + path.as_os_str().len());
        moved.push(&self.0);
        moved.push(path);
        moved.into()
    }

    /// Returns an absolute path as it is seen from this root.
    pub fn strip(&self, path: &Path) -> PathBuf {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        path.strip_prefix(&self.0).map_or(path.clone(), |below| Path::new("/").join(below))
    }

    /// Returns whether this is another directory than `/`.
    pub fn is_moved(&self) -> bool {
        self.0.as_os_str() != "/"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_paths_move_and_relative_ones_stay() {
        let moved = Root::at("/srv/box/");
        assert_eq!(moved.path("/tmp/hotplugger").as_os_str(), "/srv/box/tmp/hotplugger");
        assert_eq!(moved.path("config.yaml"), Path::new("config.yaml"));
        assert_eq!(Root::at("/").path("/tmp"), Path::new("/tmp"));
    }
}
