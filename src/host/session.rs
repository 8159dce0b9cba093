//! A session with the QEMU of a VM: the connection, the lock of the socket, and the guard that keeps
//! commands which need usb-host from a QEMU that cannot load it.
//!
//! A modular QEMU loads usb-host with the first command that touches it. If QEMU's package was
//! upgraded while the VM runs, the module on disk no longer fits the running program: the first of these
//! commands fails ("'usb-host' is not a valid device model name"), and the second one aborts
//! QEMU, and with it the guest (`util/module.c`: `module_load`, an assertion).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::clock::Deadline;
use crate::config::access::{Access, User};
use crate::host::{sysfs, usbfs};
use crate::monitor::Monitor;
use crate::qmp::client::{self, QmpClient};
use crate::qmp::message::Version;
use crate::qmp::peer::PeerPolicy;
use crate::qmp::virsh::Virsh;
use crate::qmp::{Error, OpenDevice, Qmp, Step, UsbHostProblem};
use crate::root::Root;
use crate::state::lock::Lock;
use crate::state::no_usb_host;

/// A connection to QEMU. With the lock, no other hotplugger process has one to the same socket.
#[derive(Debug)]
pub struct Session {
    root: Root,
    monitor: Monitor,
    deadline: Deadline,
    channel: Channel,
    lock: Option<Lock>,
    answers: bool,
    may_use_usb_host: bool,
}

#[derive(Debug)]
enum Channel {
    Socket(QmpClient),
    Domain(Virsh),
}

impl Channel {
    fn send(
        &mut self,
        command: &'static str,
        arguments: Value,
        fd: Option<OwnedFd>,
    ) -> Result<Value, Error> {
        match self {
            Self::Socket(client) => client.send(command, arguments, fd),
            Self::Domain(virsh) => virsh.send(command, arguments, fd),
        }
    }
}

/// Whether the VM with that monitor runs. QEMU is sent nothing.
pub fn is_running(root: &Root, monitor: &Monitor) -> bool {
    let path = root.path(monitor.file());
    if monitor.is_domain() { path.exists() } else { client::is_listening(&path) }
}

impl Session {
    /// Connects to the QEMU of the VM behind that monitor, and verifies the peer. The deadline
    /// covers all later commands too.
    pub fn connect(
        root: &Root,
        monitor: &Monitor,
        access: &Access,
        deadline: Deadline,
        lock: Option<Lock>,
    ) -> Result<Self, Error> {
        let path = root.path(monitor.file());
        let channel = match monitor {
            Monitor::Socket(_) => {
                let policy = peer_policy(root, access).map_err(|error| Error::PeerRejected {
                    socket: path.clone(),
                    source: error.into(),
                })?;
                Channel::Socket(QmpClient::connect(&path, &policy, deadline)?)
            }
            Monitor::Domain(_) if !path.exists() => {
                return Err(Error::NotRunning { monitor: monitor.clone(), stale: false });
            }
            Monitor::Domain(name) => Channel::Domain(Virsh::new(root, name, deadline)?),
        };
        Ok(Self {
            root: root.clone(),
            monitor: monitor.clone(),
            deadline,
            channel,
            lock,
            answers: true,
            may_use_usb_host: false,
        })
    }

    fn client(&self) -> Option<&QmpClient> {
        match &self.channel {
            Channel::Socket(client) => Some(client),
            Channel::Domain(_) => None,
        }
    }

    /// QEMU's version. libvirt does not show QEMU's greeting.
    pub fn version(&self) -> Option<Version> {
        self.client()?.version
    }

    /// The process at the other end of the socket, if it is in a visible PID namespace.
    fn peer_pid(&self) -> Option<u32> {
        u32::try_from(self.client()?.peer().ok()?.pid.as_raw_nonzero().get()).ok()
    }

    /// Checks that this QEMU can use usb-host, once in a session.
    fn check_usb_host(&mut self) -> Result<(), Error> {
        if self.may_use_usb_host {
            return Ok(());
        }
        if no_usb_host::is_noted(&self.root, &self.monitor.file()) {
            return Err(Error::NoUsbHost(UsbHostProblem::Missing));
        }
        if self.qemu_pid().is_some_and(|pid| was_upgraded(&self.root, pid)) {
            return Err(Error::NoUsbHost(UsbHostProblem::Upgraded));
        }
        self.may_use_usb_host = true;
        Ok(())
    }

    /// Notes a QEMU without usb-host, so that it is never asked to load it again.
    fn read_reply(
        &mut self,
        needs_usb_host: bool,
        reply: Result<Value, Error>,
    ) -> Result<Value, Error> {
        let Err(error) = reply else { return reply };
        let desc = error.desc();
        self.answers &= desc.is_some();
        if needs_usb_host && desc.is_some_and(is_no_usb_host) {
            no_usb_host::note(&self.root, &self.monitor.file());
            self.may_use_usb_host = false;
            return Err(Error::NoUsbHost(UsbHostProblem::Missing));
        }
        Err(error)
    }
}

impl Qmp for Session {
    fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        let needs_usb_host = needs_usb_host(command, &arguments);
        if needs_usb_host {
            self.check_usb_host()?;
        }
        let reply = self.channel.send(command, arguments, None);
        self.read_reply(needs_usb_host, reply)
    }

    fn execute_with_fd(
        &mut self,
        command: &'static str,
        arguments: Value,
        open: &OpenDevice<'_>,
    ) -> Result<Value, Error> {
        self.check_usb_host()?;
        let fd = open().map_err(Error::OpenDevice)?;
        let reply = self.channel.send(command, arguments, Some(fd));
        self.read_reply(false, reply)
    }

    /// QEMU's process, if it is in a visible PID namespace.
    fn qemu_pid(&self) -> Option<u32> {
        match self.channel {
            Channel::Domain(_) => read_pid(&self.root.path(self.monitor.file())),
            Channel::Socket(_) => self.peer_pid(),
        }
    }

    fn pause(&mut self, time: Duration) -> Result<(), Error> {
        let result = Step::Poll.sleep(&self.deadline, time);
        self.answers &= result.is_ok();
        result
    }
}

impl Drop for Session {
    /// A session that went well extends the time of the processes that wait for the lock.
    fn drop(&mut self) {
        if let (Some(lock), true) = (&self.lock, self.answers) {
            lock.progress();
        }
    }
}

/// Whether QEMU needs usb-host for the command, and loads it if it is not loaded.
fn needs_usb_host(command: &str, arguments: &Value) -> bool {
    let is = |name: &str, value: &str| arguments.get(name).and_then(Value::as_str) == Some(value);
    match command {
        "device_add" => is("driver", "usb-host"),
        "device-list-properties" => is("typename", "usb-host"),
        "human-monitor-command" => is("command-line", "info usbhost"),
        _ => false,
    }
}

/// QEMU's replies to a command that needs usb-host, if it has none (`qom/qom-qmp-cmds.c`:
/// `qmp_device_list_properties`; `system/qdev-monitor.c`: `qdev_get_device_class`).
fn is_no_usb_host(reply: &str) -> bool {
    reply.contains("is not a valid device model name")
        || reply.starts_with("Device 'usb-host' not found")
}

/// Whether the process is a QEMU that has not loaded usb-host, and its executable was replaced.
///
/// The kernel appends " (deleted)" to the link once the file has lost its name (`fs/d_path.c`), as
/// when dpkg or rpm installs a new one. libusb is mapped exactly when usb-host is loaded
/// or built in. A QEMU that is linked statically maps no library and loads no modules.
///
/// A process that cannot be read counts as not upgraded.
fn was_upgraded(root: &Root, pid: u32) -> bool {
    let file = |name| root.path(format!("/proc/{pid}/{name}"));
    let Ok(executable) = fs::read_link(file("exe")) else { return false };
    if !executable.to_str().is_some_and(|path| path.ends_with(" (deleted)")) {
        return false;
    }
    // The process that listens may be another program, which passed the socket to QEMU.
    if !usbfs::is_qemu(root, pid) {
        return false;
    }
    let Ok(maps) = fs::read(file("maps")) else { return false };
    let maps_file = |part: &[u8]| memchr::memmem::find(&maps, part).is_some();
    maps_file(b".so") && !maps_file(b"libusb")
}

/// The process ID in libvirt's file about a running domain.
fn read_pid(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Who may listen at the socket of a VM with that access.
///
/// # Errors
///
/// The config names a user who does not exist, or `/etc/passwd` cannot be read.
pub fn peer_policy(root: &Root, access: &Access) -> io::Result<PeerPolicy> {
    Ok(PeerPolicy {
        uid: access.user.as_ref().map(|user| uid(root, user)).transpose()?,
        trust_directory: access.trust_socket_directory,
        root: root.path("/"),
    })
}

/// The number of the user that the config names.
///
/// Users of another service (LDAP, `DynamicUser=`) are not found in `/etc/passwd`: asking for them would
/// load that service's code into a program that runs as root on each plug.
fn uid(root: &Root, user: &User) -> io::Result<u32> {
    let name = match user {
        User::Id(id) => return Ok(*id),
        User::Name(name) => name,
    };
    let text = sysfs::read_up_to(root.path("/etc/passwd"), 1 << 20)?;
    find_user(&String::from_utf8_lossy(&text), name).ok_or_else(|| {
        io::Error::other(format!(
            "the config wants user {name} there, who is not in /etc/passwd; write the number that \
             `id -u {name}` says"
        ))
    })
}

/// Reads `name:password:number:…` (passwd(5)); of two lines with that name the first one counts.
fn find_user(text: &str, name: &str) -> Option<u32> {
    let mut users = text.lines().map(|line| line.split(':'));
    let mut user = users.find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
    user.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::symlink;

    #[test]
    fn commands_that_load_usb_host_are_recognized() {
        for (command, arguments) in [
            ("device_add", json!({ "driver": "usb-host", "id": "x" })),
            ("device-list-properties", json!({ "typename": "usb-host" })),
            ("human-monitor-command", json!({ "command-line": "info usbhost" })),
        ] {
            assert!(needs_usb_host(command, &arguments), "{command}");
        }
        for (command, arguments) in [
            ("device_del", json!({ "id": "hotplugger-1-1-2" })),
            ("human-monitor-command", json!({ "command-line": "info qtree" })),
            ("qom-list", json!({ "path": "/machine/peripheral" })),
        ] {
            assert!(!needs_usb_host(command, &arguments), "{command}");
        }
    }

    #[test]
    fn qemu_counts_as_upgraded_only_if_replaced_and_without_libusb() {
        const WITHOUT: &str = "7f00-7f01 r-xp 0 fe:00 1 /usr/lib/x86_64-linux-gnu/libc.so.6\n";
        const WITH: &str = "7f00-7f01 r-xp 0 fe:00 1 /usr/lib/libusb-1.0.so.0.4.0\n/libc.so.6\n";
        let qemu = "/usr/bin/qemu-system-x86_64 (deleted)";
        for (executable, maps, expected) in [
            (qemu, WITHOUT, true),
            ("/usr/libexec/qemu-kvm (deleted)", WITHOUT, true),
            (qemu, WITH, false),
            (qemu, "0400-0500 r-xp 0 fe:00 1 /usr/bin/qemu-system-x86_64 (deleted)\n", false),
            ("/usr/bin/qemu-system-x86_64", WITHOUT, false),
            ("/usr/sbin/virtqemud (deleted)", WITHOUT, false),
            ("/usr/lib/systemd/systemd (deleted)", WITHOUT, false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let root = Root::at(dir.path());
            fs::create_dir_all(root.path("/proc/7")).unwrap();
            symlink(executable, root.path("/proc/7/exe")).unwrap();
            fs::write(root.path("/proc/7/maps"), maps).unwrap();
            assert_eq!(was_upgraded(&root, 7), expected, "{executable} {maps}");
            assert!(!was_upgraded(&root, 8), "a process that cannot be read");
        }
    }

    #[test]
    fn a_user_is_found_by_the_whole_name() {
        let text = "root:x:0:0:root:/root:/bin/bash\nlibvirt-qemu:x:64055:103::/:/bin/false\n\
                    broken\nodd:x:many:1::/:\n";
        assert_eq!(find_user(text, "libvirt-qemu"), Some(64055));
        assert_eq!(find_user(text, "root"), Some(0));
        for none in ["libvirt", "qemu", "broken", "odd", "", "x"] {
            assert_eq!(find_user(text, none), None, "{none}");
        }
    }
}
