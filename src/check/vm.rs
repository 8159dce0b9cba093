//! A VM: its socket, what QEMU replied, and the guest behind it.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::devices::domains;
use super::finding::Finding;
use super::process::{self, Node, Process, parse_list};
use super::socket_users::{self, SocketUsers};
use crate::clock::Deadline;
use crate::config::{Config, VirtualMachine};
use crate::device_id::DeviceId;
use crate::guest::bus::{self, GuestBus, MAX_PORTS, suggest_controller};
use crate::guest::objects::OtherUsbHost;
use crate::guest::{load_usb_host, objects};
use crate::host::session::{Session, peer_policy};
use crate::host::sysfs;
use crate::host::topology::{HubPort, Topology};
use crate::monitor::Monitor;
use crate::permissions::{PermissionIssue, PermissionKind};
use crate::qmp::message::Version;
use crate::qmp::virsh::uuid_of;
use crate::qmp::{Error, Qmp, Step, UsbHostProblem};
use crate::root::Root;
use crate::speed::Speed;
use crate::text::shell_word;
use crate::usb_device::UsbDevice;

#[derive(Debug)]
pub struct VmFacts {
    pub vm: VirtualMachine,
    pub socket: PathBuf,
    /// The reason for which another user can replace the socket.
    pub issue: Option<PermissionIssue>,
    pub answer: Result<Answer, Error>,
    /// The processes that use the socket; read only if QEMU did not answer.
    pub users: SocketUsers,
    pub root: bool,
    pub process: Option<Process>,
    /// The user whose own libvirt runs a domain of that name, which libvirt's system instance does not.
    pub session_user: Option<u32>,
    /// The names and UUIDs of the domains that libvirt has, if it has none of that name.
    pub other_domains: Vec<(String, Option<String>)>,
    pub nodes: Vec<Node>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub version: Option<Version>,
    /// Why QEMU cannot use usb-host; `None` if it can.
    pub no_usb_host: Option<UsbHostProblem>,
    pub running: bool,
    pub buses: Vec<GuestBus>,
    /// The QEMU arguments that give the guest another xHCI.
    pub suggestion: String,
    pub attached: Vec<DeviceId>,
    /// Our objects in a paused guest: QEMU opens their devices when it resumes.
    pub pending: Vec<DeviceId>,
    pub stale: Vec<DeviceId>,
    /// The usb-host objects that hotplugger did not make.
    pub foreign: Vec<OtherUsbHost>,
    pub pid: Option<u32>,
}

impl VmFacts {
    pub fn is_off(&self) -> bool {
        matches!(self.answer, Err(Error::NotRunning { .. }))
    }

    /// Whether only root can read the facts.
    pub fn is_hidden(&self) -> bool {
        !self.root && is_denied(&self.answer)
    }
}

fn is_denied(answer: &Result<Answer, Error>) -> bool {
    matches!(answer, Err(Error::Socket { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied)
}

pub fn check(facts: &VmFacts) -> Vec<Finding> {
    directory(facts).into_iter().chain(answer(facts)).collect()
}

fn directory(facts: &VmFacts) -> Option<Finding> {
    let issue = facts.issue.as_ref()?;
    let what = format!(
        "{issue}, so another user can replace the socket and get the devices of `{}`",
        facts.vm.name
    );
    let finding = Finding::warning("socket-directory-writable", facts.socket.display(), what);
    Some(match issue.kind {
        // A directory that is meant for all users stays so.
        PermissionKind::Mode(mode) if mode & 0o1000 != 0 => {
            finding.advice("let QEMU create the socket in a directory of its own, such as /run/vm")
        }
        _ => finding.run(issue.remedy()),
    })
}

fn answer(facts: &VmFacts) -> Option<Finding> {
    let place = facts.socket.display();
    let name = &facts.vm.name;
    let rm = || format!("rm {}", shell_word(&facts.socket.to_string_lossy()));
    let own = format!("give hotplugger a QMP socket of its own: `hotplugger qemu-args {name}`");
    let Err(error) = &facts.answer else {
        return Some(Finding::ok("socket-answers", place, format!("`{name}` answers")));
    };
    Some(match error {
        // Nothing is passed to QEMU here.
        Error::Lock(_) | Error::NoUsbHost(_) | Error::OpenDevice(_) => return None,
        Error::PeerRejected { source, .. } => Finding::error(
            "peer-not-trusted",
            place,
            format!("no device is attached: {source}"),
        )
        .advice(
            "let QEMU create the socket in a directory that belongs to root or to QEMU's user, \
                     and set `user:` to the user that QEMU runs as",
        ),
        Error::Libvirt { domain, .. } => Finding::error("libvirt", name, error.to_string()).advice(
            format!("does `virsh -c qemu:///system domstate {}` work?", shell_word(domain)),
        ),
        Error::NotRunning { .. } if facts.session_user.is_some() => {
            let user = facts.session_user.unwrap_or_default();
            let what = format!(
                "it runs in the libvirt of user {user} (qemu:///session), which hotplugger does not use"
            );
            let own = "give it a QMP socket, as `hotplugger libvirt-xml` prints it, and write `socket:` in \
                       place of `domain:`";
            Finding::error("domain-in-session", name, what).advice(own)
        }
        Error::NotRunning { monitor: Monitor::Domain(domain), .. }
            if !facts.other_domains.is_empty() =>
        {
            unknown_domain(name, domain, &facts.other_domains)
        }
        Error::NotRunning { stale: false, .. } if facts.vm.monitor.is_domain() => {
            Finding::note("vm-off", name, format!("`{name}` is {error}"))
        }
        Error::NotRunning { stale: false, .. } => {
            Finding::note("vm-off", place, format!("`{name}` does not run: there is no socket"))
        }
        Error::NotRunning { stale: true, .. } => Finding::warning(
            "socket-stale",
            place,
            format!(
                "no process listens: a QEMU that was killed left the socket; `{name}` does not run"
            ),
        )
        .run(rm()),
        Error::Socket { .. } if is_denied(&facts.answer) => {
            // Other users need not be able to connect.
            facts.root.then_some(())?;
            Finding::error(
                "socket-denied",
                place,
                "root may not connect to it: a security module (AppArmor, SELinux) forbids it",
            )
            .advice(
                "`dmesg | grep -i denied` shows the rule, with auditd `ausearch -m AVC -ts recent`",
            )
        }
        Error::Socket { source, .. } => Finding::error("socket-not-qmp", place, source.to_string())
            .advice(format!("set `socket:` of `{name}` to QEMU's QMP socket")),
        Error::Timeout { step: Step::Lock | Step::Connect | Step::Greeting, .. } => {
            busy(facts, &own)
        }
        Error::Timeout { .. } => Finding::error("qemu-stuck", place, error.to_string())
            .advice("QEMU hangs; its log and the kernel log (`dmesg`) may say why"),
        Error::Closed(_) | Error::Command { .. } => {
            Finding::error("qemu-refuses", place, error.to_string()).advice(own)
        }
        Error::Protocol(_) => Finding::error("socket-not-qmp", place, error.to_string()).advice(
            format!("set `socket:` of `{name}` to a QMP socket (`-qmp unix:…`, not `-monitor`)"),
        ),
    })
}

/// A domain that libvirt does not know: misspelled, renamed, undefined or given by its UUID. It may
/// also be one that exists only while it runs.
fn unknown_domain(vm: &str, domain: &str, others: &[(String, Option<String>)]) -> Finding {
    let same_uuid = |(_, uuid): &&(String, Option<String>)| uuid.as_deref() == Some(domain);
    if let Some((name, _)) = others.iter().find(same_uuid) {
        let what = "`domain:` has the UUID of a domain, not its name";
        return Finding::error("domain-unknown", vm, what)
            .advice(format!("write `domain: {name}`"));
    }
    let names: Vec<String> = others.iter().map(|(name, _)| format!("`{name}`")).collect();
    let what = format!("libvirt has no domain `{domain}`, only {}", names.join(", "));
    Finding::warning("domain-unknown", vm, what)
        .advice("write the name that `virsh list --all` shows; names are case-sensitive")
}

fn busy(facts: &VmFacts, own: &str) -> Finding {
    let place = facts.socket.display();
    if let Some(qemu) = facts.users.listener.as_ref().filter(|_| facts.users.is_stopped) {
        let what = format!("{qemu} is stopped and does not answer");
        return Finding::error("qemu-stopped", place, what).run(format!("kill -CONT {}", qemu.pid));
    }
    let clients: Vec<String> = facts.users.clients.iter().map(ToString::to_string).collect();
    let what = if clients.is_empty() {
        "QEMU does not answer: another client holds the socket, or QEMU is stuck".to_owned()
    } else {
        format!(
            "{} is connected to the socket, and QEMU serves one client at a time",
            clients.join(", ")
        )
    };
    Finding::error("socket-busy", place, what).advice(own)
}

pub fn gather(root: &Root, config: &Config, vm: &VirtualMachine, topology: &Topology) -> VmFacts {
    let socket = root.path(vm.monitor.file());
    let answer = ask(root, vm, topology);
    let users = match &answer {
        Err(Error::Timeout { step: Step::Connect | Step::Greeting, .. }) => {
            socket_users::gather(root, &socket)
        }
        _ => SocketUsers::default(),
    };
    let pid = answer.as_ref().ok().and_then(|answer| answer.pid);
    let domain_off = match (&vm.monitor, &answer) {
        (Monitor::Domain(domain), Err(Error::NotRunning { .. })) => Some(domain),
        _ => None,
    };
    VmFacts {
        issue: match vm.monitor {
            Monitor::Domain(_) => None,
            Monitor::Socket(_) => issue(root, vm, &socket).unwrap_or_default(),
        },
        process: pid.and_then(|pid| process::gather(root, pid)),
        session_user: domain_off.and_then(|domain| process::user_of_domain(root, domain)),
        other_domains: domain_off.map_or(Vec::new(), |domain| other_domains(root, domain)),
        nodes: nodes(root, config, vm, topology, pid),
        root: rustix::process::geteuid().is_root(),
        vm: vm.clone(),
        socket,
        answer,
        users,
    }
}

fn other_domains(root: &Root, domain: &str) -> Vec<(String, Option<String>)> {
    let domains = domains(root);
    if domains.iter().any(|(name, _)| name == domain) {
        return Vec::new();
    }
    domains.into_iter().map(|(name, text)| (name.clone(), uuid_of(&text, &name))).collect()
}

fn ask(root: &Root, vm: &VirtualMachine, topology: &Topology) -> Result<Answer, Error> {
    let deadline = Deadline::after(vm.timeout);
    let mut session = Session::connect(root, &vm.monitor, &vm.access, deadline, None)?;
    let qmp = &mut session;
    let objects = objects::list(qmp)?;
    let running = objects::is_running(qmp)?;
    let buses = bus::buses(qmp, &[])?;
    Ok(Answer {
        pending: if running { Vec::new() } else { objects.clone() },
        stale: objects.iter().filter(|id| topology.device(id).is_none()).cloned().collect(),
        attached: objects::attached(qmp, &objects)?,
        foreign: objects::others(qmp)?,
        no_usb_host: match load_usb_host(qmp) {
            Ok(()) => None,
            Err(Error::NoUsbHost(problem)) => Some(problem),
            Err(error) => return Err(error),
        },
        running,
        suggestion: suggest_controller(qmp, &buses, &vm.hubs),
        buses,
        version: session.version(),
        pid: session.qemu_pid(),
    })
}

/// A socket that does not exist is expected to belong to the owner of its directory.
fn issue(root: &Root, vm: &VirtualMachine, socket: &Path) -> io::Result<Option<PermissionIssue>> {
    let own = fs::metadata(socket).ok().filter(|own| own.file_type().is_socket());
    let owner = match own {
        Some(own) => own.uid(),
        None => fs::metadata(socket.parent().unwrap_or(socket))?.uid(),
    };
    peer_policy(root, &vm.access)?.directory_issue(socket, owner)
}

fn nodes(
    root: &Root,
    config: &Config,
    vm: &VirtualMachine,
    topology: &Topology,
    pid: Option<u32>,
) -> Vec<Node> {
    let node = |(port, device): (&HubPort, &UsbDevice)| {
        let owners = config.owners(&topology.usb_location(&port.devpath));
        owners.iter().find(|owner| owner.name == vm.name)?;
        let path = root.path(sysfs::node(device.busnum, device.devnum));
        let metadata = fs::metadata(&path).ok()?;
        let mut list = [0; 1024];
        let length = rustix::fs::getxattr(&path, "system.posix_acl_access", &mut list);
        Some(Node {
            device: device.label(),
            devpath: port.devpath.clone(),
            id: DeviceId { port: port.port.clone(), devnum: device.devnum },
            owner: metadata.uid(),
            group: metadata.gid(),
            mode: metadata.mode() & 0o7777,
            list: parse_list(&list[..length.unwrap_or_default()]),
            visible: pid.and_then(|pid| visible(root, pid, &path)),
            path,
        })
    };
    topology.devices().filter_map(node).collect()
}

/// Whether the process has that path in its mount namespace; `None` if that cannot be read.
fn visible(root: &Root, pid: u32, path: &Path) -> Option<bool> {
    let own_root = process::file(root, pid, "root");
    fs::metadata(&own_root).ok()?;
    match fs::metadata(own_root.join(path.strip_prefix("/").ok()?)) {
        Ok(_) => Some(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(false),
        Err(_) => None,
    }
}

const OLDEST: Version = Version { major: 5, minor: 0, micro: 0 };

/// Judges what QEMU replied, if it did.
pub fn check_guest(facts: &VmFacts) -> Vec<Finding> {
    let Ok(answer) = &facts.answer else { return Vec::new() };
    let name = &facts.vm.name;
    let mut findings = version(name, answer);
    findings.extend(controllers(name, answer));
    findings.extend(buses(facts, answer));
    if !answer.stale.is_empty() {
        let ids: Vec<String> = answer.stale.iter().map(ToString::to_string).collect();
        let what = format!("{} of unplugged devices are left in the guest", ids.join(", "));
        findings.push(Finding::warning("object-stale", name, what).run("hotplugger sync"));
    }
    if !answer.running {
        let what = "the guest is paused; QEMU opens devices when it resumes";
        findings.push(Finding::note("guest-paused", name, what));
    }
    findings
}

fn version(name: &str, answer: &Answer) -> Vec<Finding> {
    let mut findings = Vec::new();
    let version = answer.version.map_or_else(|| "?".to_owned(), |version| version.to_string());
    findings.push(match answer.no_usb_host {
        None => Finding::ok("qemu-usb-host", name, format!("QEMU {version} has usb-host devices")),
        Some(UsbHostProblem::Missing) => {
            let what =
                format!("QEMU {version} has no usb-host devices, so it cannot take host devices");
            let fix = "install your distribution's QEMU package for USB host devices, then restart \
                       the VM";
            Finding::error("qemu-no-usb-host", name, what).advice(fix)
        }
        Some(UsbHostProblem::Upgraded) => {
            let what = format!(
                "the QEMU of VM {name} was upgraded while it runs; restart the VM. Until then no \
                 device can be attached: QEMU would abort if it loaded usb-host"
            );
            Finding::error("qemu-upgraded", name, what).advice("restart the VM")
        }
    });
    if answer.version.is_some_and(|version| version < OLDEST) {
        let what = format!("QEMU {version} is older than {OLDEST}, the oldest that is supported");
        findings.push(Finding::warning("qemu-old", name, what).advice("use a newer QEMU"));
    }
    findings
}

fn controllers(name: &str, answer: &Answer) -> Vec<Finding> {
    if answer.buses.is_empty() {
        let what = "the guest has no USB controller, so no device can be attached";
        return vec![
            Finding::error("guest-no-controller", name, what)
                .advice(format!("start QEMU with {}", answer.suggestion)),
        ];
    }
    let xhci: Vec<&GuestBus> =
        answer.buses.iter().filter(|bus| bus.controller.ends_with("xhci")).collect();
    if xhci.is_empty() {
        let what = "the guest has no xHCI controller, so USB 3 devices are slow or do not work";
        return vec![
            Finding::warning("guest-no-xhci", name, what)
                .advice(format!("start QEMU with {}", answer.suggestion)),
        ];
    }
    let known = xhci.into_iter().filter(|bus| !bus.ports.is_empty());
    known.map(|bus| ports(name, bus)).collect()
}

fn ports(name: &str, bus: &GuestBus) -> Finding {
    let model = &bus.controller;
    let count = |speed| bus.ports.iter().filter(|port| port.takes(speed)).count();
    let (usb2, usb3) = (count(Speed::HIGH), count(Speed::SUPER));
    let what = format!("{} ({model}) has {usb2} USB 2 and {usb3} USB 3 ports", bus.name);
    // An xHCI of the machine itself cannot be changed.
    if usb2.min(usb3) < MAX_PORTS && !model.starts_with("sysbus-") {
        let id = bus.id.as_deref().unwrap_or("xhci0");
        Finding::note("guest-few-ports", name, format!("{what}; it could have {MAX_PORTS} of each"))
            .advice(format!("start QEMU with -device {model},id={id},p2=15,p3=15"))
    } else {
        Finding::ok("guest-ports", name, what)
    }
}

fn buses(facts: &VmFacts, answer: &Answer) -> Vec<Finding> {
    let has: Vec<&str> = answer.buses.iter().map(|bus| bus.name.as_str()).collect();
    let check = |hub: &String| {
        if has.contains(&hub.as_str()) {
            let what = format!("the guest has {hub} of `hubs:`");
            return Finding::ok("guest-bus", &facts.vm.name, what);
        }
        let what = format!("the guest has no bus {hub}, which `hubs:` names");
        let finding = Finding::error("guest-no-bus", &facts.vm.name, what);
        match (has.as_slice(), hub.strip_suffix(".0")) {
            ([], None) => finding.advice(format!("start QEMU with {}", answer.suggestion)),
            ([], Some(id)) => {
                finding.advice(format!("start QEMU with -device qemu-xhci,id={id},p2=15,p3=15"))
            }
            (has, _) => {
                finding.advice(format!("set `hubs:` to the buses it has: {}", has.join(", ")))
            }
        }
    };
    facts.vm.hubs.iter().map(check).collect()
}

#[cfg(test)]
pub(in crate::check) mod tests {
    use super::*;
    use crate::config;
    use crate::config::access::{Access, User};
    use crate::host::usbfs::Program;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    /// A VM with this reply of its QEMU.
    pub(in crate::check) fn facts(answer: Result<Answer, Error>) -> VmFacts {
        VmFacts {
            vm: config::tests::vm("windows", &[]),
            socket: "/run/q".into(),
            issue: None,
            answer,
            users: SocketUsers::default(),
            root: true,
            process: None,
            session_user: None,
            other_domains: Vec::new(),
            nodes: Vec::new(),
        }
    }

    fn code(answer: Result<Answer, Error>) -> &'static str {
        check(&facts(answer))[0].code
    }

    #[test]
    fn each_failure_to_answer_has_a_code() {
        let socket = || PathBuf::from("/run/q");
        let timeout = |step| Err(Error::Timeout { step, budget: Duration::from_secs(5) });
        let failed = |source| Err(Error::Socket { socket: socket(), source });
        assert_eq!(code(Ok(Answer::default())), "socket-answers");
        assert_eq!(
            code(Err(Error::NotRunning { monitor: Monitor::Socket(socket()), stale: false })),
            "vm-off"
        );
        assert_eq!(
            code(Err(Error::NotRunning { monitor: Monitor::Socket(socket()), stale: true })),
            "socket-stale"
        );
        assert_eq!(code(failed(io::ErrorKind::PermissionDenied.into())), "socket-denied");
        assert_eq!(code(failed(io::Error::other("this is not a socket"))), "socket-not-qmp");
        assert_eq!(code(timeout(Step::Greeting)), "socket-busy");
        assert_eq!(code(timeout(Step::Command("qom-list"))), "qemu-stuck");
        assert_eq!(code(Err(Error::Closed(Step::Greeting))), "qemu-refuses");
    }

    #[test]
    fn denied_socket_is_not_a_finding_without_root() {
        let denied = io::ErrorKind::PermissionDenied.into();
        let mut facts = facts(Err(Error::Socket { socket: "/run/q".into(), source: denied }));
        facts.root = false;
        assert_eq!(check(&facts), []);
        assert!(facts.is_hidden());
    }

    #[test]
    fn directory_is_a_finding_if_the_peer_policy_rejects_it() {
        let found = |above: u32, own: u32, user: Option<User>, trust_socket_directory| {
            let dir = tempfile::tempdir().unwrap();
            let root = Root::at(dir.path());
            let directory = root.path("/run/vms");
            fs::create_dir_all(&directory).unwrap();
            for (path, mode) in [(root.path("/run"), above), (directory.clone(), own)] {
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            }
            let mut facts = facts(Ok(Answer::default()));
            facts.vm.access = Access { user, trust_socket_directory, ..Access::default() };
            let socket = directory.join("q");
            facts.issue = issue(&root, &facts.vm, &socket).unwrap();
            let _listener = UnixListener::bind(&socket).unwrap();
            assert_eq!(issue(&root, &facts.vm, &socket).unwrap(), facts.issue);
            let opened = peer_policy(&root, &facts.vm.access).unwrap().open(&socket);
            assert_eq!(opened.is_err(), facts.issue.is_some(), "{opened:?}");
            super::directory(&facts).map(|finding| finding.code)
        };
        let warning = Some("socket-directory-writable");
        let user = || Some(User::Id(rustix::process::geteuid().as_raw()));
        assert_eq!(found(0o755, 0o755, None, false), None);
        for (above, own) in [(0o755, 0o777), (0o777, 0o755)] {
            assert_eq!(found(above, own, None, false), warning);
            assert_eq!(found(above, own, user(), false), warning);
            assert_eq!(found(above, own, user(), true), None);
        }
        // Only the user of a file can replace it there.
        for (above, own) in [(0o755, 0o1777), (0o1777, 0o755)] {
            assert_eq!(found(above, own, None, false), warning);
            assert_eq!(found(above, own, user(), false), None);
        }
    }

    #[test]
    fn process_that_uses_the_socket_is_named() {
        let step = Step::Greeting;
        let mut facts = facts(Err(Error::Timeout { step, budget: Duration::from_secs(5) }));
        let program = Program { pid: 7, name: "virsh".to_owned(), is_qemu: false };
        facts.users.clients.push(program.clone());
        assert!(check(&facts)[0].what.starts_with("virsh (process 7) is connected to the socket"));
        (facts.users.listener, facts.users.is_stopped) = (Some(program), true);
        assert_eq!(check(&facts)[0].code, "qemu-stopped");
    }
}

#[cfg(test)]
mod guest_tests {
    use super::*;
    use crate::check::finding::Level;
    use crate::check::vm::tests::facts;
    use crate::guest::bus::SpeedRange;

    fn bus(controller: &str, ports: usize) -> GuestBus {
        GuestBus {
            name: "xhci0.0".to_owned(),
            controller: controller.to_owned(),
            id: Some("xhci0".to_owned()),
            ports: vec![SpeedRange { min: Speed::LOW, max: Speed::SUPER }; ports],
            devices: Vec::new(),
        }
    }

    fn codes(change: impl FnOnce(&mut Answer), hubs: &[&str]) -> Vec<&'static str> {
        let mut answer = Answer {
            version: Some(Version { major: 7, minor: 2, micro: 0 }),
            running: true,
            buses: vec![bus("qemu-xhci", 15)],
            ..Answer::default()
        };
        change(&mut answer);
        let mut facts = facts(Ok(answer));
        facts.vm.hubs = hubs.iter().map(|hub| (*hub).to_owned()).collect();
        let findings = check_guest(&facts).into_iter().filter(|finding| finding.level > Level::Ok);
        findings.map(|finding| finding.code).collect()
    }

    #[test]
    fn complete_guest_has_no_findings() {
        assert!(codes(|_| {}, &["xhci0.0"]).is_empty());
    }

    #[test]
    fn each_deficiency_has_a_code() {
        assert_eq!(
            codes(|answer| answer.no_usb_host = Some(UsbHostProblem::Missing), &[]),
            ["qemu-no-usb-host"]
        );
        assert_eq!(
            codes(|answer| answer.no_usb_host = Some(UsbHostProblem::Upgraded), &[]),
            ["qemu-upgraded"]
        );
        let old = Version { major: 4, minor: 2, micro: 1 };
        assert_eq!(codes(|answer| answer.version = Some(old), &[]), ["qemu-old"]);
        assert_eq!(codes(|answer| answer.buses.clear(), &[]), ["guest-no-controller"]);
        assert_eq!(codes(|answer| answer.buses = vec![bus("usb-ehci", 6)], &[]), ["guest-no-xhci"]);
        assert_eq!(
            codes(|answer| answer.buses = vec![bus("qemu-xhci", 4)], &[]),
            ["guest-few-ports"]
        );
        assert_eq!(codes(|_| {}, &["usb.0"]), ["guest-no-bus"]);
        assert_eq!(codes(|answer| answer.running = false, &[]), ["guest-paused"]);
    }
}
