//! The program against hostile and broken QMP servers. A `bind` event always ends within its time,
//! with one line that says what is wrong.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with a panic"
)]

mod support;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hotplugger::clock::Deadline;
use hotplugger::qmp::{Error, Qmp};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, bind, connect, listen, sendmsg, socket_with,
};
use serde_json::{Value, json};

use support::hostile::{GREETING, Session, serve};
use support::root::Root;
use support::udev::{Ended, Running, run_manual};

/// The time for a session that is expected to time out.
const SHORT: &str = "0.5";

/// The same for a session that has to reach a certain command first.
const MEDIUM: &str = "2";

/// The time for a session that does not time out, even on a slow machine.
const LONG: &str = "25";

const SOCKET: &str = "/run/windows.qmp";

/// The beginning of each line.
const SUBJECT: &str = "windows: port 1-3, QEMU USB Tablet (0627:0001): ";

/// A host with devices in configured ports.
fn host(timeout: &str) -> Root {
    let mut root = Root::new();
    root.config(&format!(
        "virtual_machines:\n  windows:\n    socket: {SOCKET}\n    delay: 0\n    timeout: {timeout}\n    \
         ports: [/devices/pci0000:00/0000:00:14.0/usb1/1-3]\n"
    ));
    root.plug("1-3", "tablet", 16);
    root
}

/// Runs a `bind` event against a server with that script, and expects it to fail with these words.
fn fails(
    timeout: &str,
    script: impl Fn(&mut Session) -> io::Result<()> + Send + Sync + 'static,
    why: &str,
) {
    let mut root = host(timeout);
    serve(&root.path(SOCKET), script);
    let run = root.event("bind", "1-3").run(&root);
    assert_failed(&run, why);
}

fn assert_failed(run: &Ended, why: &str) {
    let line = run.line();
    let (not_attached, unknown) = ("not attached: ", "it is unknown whether the guest has it: ");
    let result = line.strip_prefix(SUBJECT).unwrap_or_default();
    assert!(result.starts_with(not_attached) || result.starts_with(unknown), "{line}");
    assert!(line.contains(why), "{line}\nwithout: {why}");
    assert_eq!(run.status, 1);
}

/// Sends the greeting, and does not reply to the first command.
fn greeted(session: &mut Session) -> io::Result<u64> {
    session.greet()?;
    Ok(session.command()?.id.as_u64().expect("a number as id"))
}

#[test]
fn server_that_never_accepts_costs_the_deadline() {
    let mut root = host(SHORT);
    let address = SocketAddrUnix::new(root.path(SOCKET)).unwrap();
    let socket = |flags| socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    let listener = socket(SocketFlags::CLOEXEC);
    bind(&listener, &address).unwrap();
    listen(&listener, 0).unwrap();
    let mut queue = Vec::new();
    loop {
        let client = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
        match connect(&client, &address) {
            Ok(()) => queue.push(client),
            Err(error) => break assert_eq!(error, rustix::io::Errno::AGAIN),
        }
    }
    let run = root.event("bind", "1-3").run(&root);
    assert_failed(&run, "no reply within 0.5 s: connecting; too many clients");
}

/// QEMU is killed after the kernel accepted the connection.
#[test]
fn server_that_ends_before_its_greeting_counts_as_not_running() {
    let mut root = host(LONG);
    let listener = UnixListener::bind(root.path(SOCKET)).unwrap();
    let server = thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        drop(listener);
        drop(client);
    });
    let run = root.event("bind", "1-3").run(&root);
    server.join().unwrap();
    assert_eq!(run.status, 0);
    let line = run.line();
    assert!(line.contains("the VM is not running: no process listens at"), "{line}");
}

#[test]
fn silent_server_costs_the_deadline() {
    fails(SHORT, Session::fall_silent, "no reply within 0.5 s: waiting for QEMU's greeting");
}

#[test]
fn slow_greeting_costs_the_deadline() {
    let slow = |session: &mut Session| {
        for byte in GREETING.bytes() {
            session.send([byte])?;
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    };
    fails(SHORT, slow, "no reply within 0.5 s: waiting for QEMU's greeting");
}

#[test]
fn endless_greeting_is_rejected() {
    let endless = |session: &mut Session| {
        session.send(r#"{"QMP": {"version": ""#)?;
        loop {
            session.send([b'x'; 4096])?;
        }
    };
    fails(LONG, endless, "does not speak QMP: a message without end");
}

#[test]
fn endless_spaces_cost_the_deadline() {
    let spaces = |session: &mut Session| {
        loop {
            session.send([b' '; 4096])?;
        }
    };
    fails(SHORT, spaces, "no reply within 0.5 s: waiting for QEMU's greeting");
}

#[test]
fn endless_events_cost_the_deadline() {
    let talking = |session: &mut Session| {
        greeted(session)?;
        let event = "{\"event\": \"RTC_CHANGE\", \"data\": {\"offset\": 1}}\r\n";
        loop {
            session.send(event.repeat(100))?;
        }
    };
    fails(MEDIUM, talking, "no reply within 2 s: waiting for the reply to qmp_capabilities");
}

#[test]
fn event_is_not_a_greeting() {
    let event = |session: &mut Session| {
        session.send("{\"event\": \"STOP\"}\r\n")?;
        session.fall_silent()
    };
    fails(SHORT, event, "no reply within 0.5 s: waiting for QEMU's greeting");
}

#[test]
fn second_greeting_is_rejected() {
    let again = |session: &mut Session| {
        session.greet()?;
        session.greet()?;
        session.fall_silent()
    };
    fails(LONG, again, "does not speak QMP: a second greeting");
}

#[test]
fn reply_to_another_command_is_ignored() {
    let confused = |session: &mut Session| {
        let id = greeted(session)?;
        session.send(format!("{{\"return\": {{}}, \"id\": {}}}\r\n", id + 1))?;
        session.fall_silent()
    };
    fails(SHORT, confused, "no reply within 0.5 s: waiting for the reply to qmp_capabilities");
}

#[test]
fn reply_without_an_id_is_ignored() {
    let nameless = |session: &mut Session| {
        greeted(session)?;
        session.send("{\"return\": {}}\r\n")?;
        session.fall_silent()
    };
    fails(SHORT, nameless, "no reply within 0.5 s: waiting for the reply to qmp_capabilities");
}

#[test]
fn deeply_nested_reply_is_rejected() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = move |session: &mut Session| {
            let id = greeted(session)?;
            let value = format!("{}1{}", open.repeat(5000), close.repeat(5000));
            session.send(format!("{{\"return\": {value}, \"id\": {id}}}\r\n"))?;
            session.fall_silent()
        };
        fails(LONG, nested, "does not speak QMP: recursion limit exceeded");
    }
}

#[test]
fn reply_that_is_not_utf_8_is_rejected() {
    let latin = |session: &mut Session| {
        greeted(session)?;
        session.send(b"{\"return\": \"caf\xe9\", \"id\": 1}\r\n")?;
        session.fall_silent()
    };
    fails(LONG, latin, "does not speak QMP: ");
}

#[test]
fn other_protocol_is_rejected() {
    for (said, why) in [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".as_slice(), "a message that begins with `H`"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "a message that begins with `S`"),
        (b"\x1b[2J\x07", "a message that begins with `\\x1b`"),
        (b"\xff\xfb\x01", "a message that begins with `\\xff`"),
        (b"{\"jsonrpc\": \"2.0\"}", "a message that is neither greeting, event nor reply"),
        (b"{}", "a message that is neither greeting, event nor reply"),
    ] {
        let other = move |session: &mut Session| {
            session.send(said)?;
            session.fall_silent()
        };
        fails(LONG, other, &format!("the peer does not speak QMP: {why}"));
    }
}

#[test]
fn connection_that_closes_at_once_is_an_error() {
    fails(LONG, |_| Ok(()), "QEMU closed the connection while waiting for QEMU's greeting");
}

#[test]
fn connection_that_closes_within_a_reply_is_an_error() {
    let broken = |session: &mut Session| {
        greeted(session)?;
        session.send("{\"return\": {")
    };
    let why = "QEMU closed the connection while waiting for the reply to qmp_capabilities";
    fails(LONG, broken, why);
}

#[test]
fn late_reply_costs_the_deadline() {
    let late = |session: &mut Session| {
        session.greet()?;
        let command = session.polite_until("qom-list")?;
        thread::sleep(Duration::from_secs(4));
        session.reply(&command, &json!([]))?;
        session.fall_silent()
    };
    fails(MEDIUM, late, "no reply within 2 s: waiting for the reply to qom-list");
}

/// A server cannot hold the program by sending without a pause.
#[test]
fn reply_is_not_read_after_the_deadline() {
    let root = host(LONG);
    serve(&root.path(SOCKET), |session| {
        session.greet()?;
        let command = session.command()?;
        session.reply(&command, &json!({}))?;
        let next = command.id.as_u64().expect("a number as id") + 1;
        session.send(json!({ "return": {}, "id": next }).to_string())?;
        session.fall_silent()
    });
    let budget = Duration::from_secs(2);
    let mut qmp = support::qemu::connect(&root.path(SOCKET), Deadline::after(budget)).unwrap();
    thread::sleep(budget);
    let answer = qmp.execute("query-status", Value::Null);
    assert!(matches!(answer, Err(Error::Timeout { .. })), "{answer:?}");
}

/// Each command in turn gets a reply of a type that QEMU never sends.
#[test]
fn reply_of_a_wrong_type_is_rejected() {
    for (lie_about, lie, why) in [
        ("qom-list", json!("nothing"), "does not speak QMP: qom-list: "),
        ("qom-list", json!([{ "type": "string" }]), "does not speak QMP: qom-list: "),
        ("qom-list", Value::Null, "does not speak QMP: qom-list: "),
        ("qom-get", json!("true"), "does not speak QMP: `attached`: invalid type: string"),
        ("qom-get", json!({}), "does not speak QMP: `attached`: invalid type: map"),
        ("human-monitor-command", json!(7), "the reply to info qtree is not text"),
    ] {
        let liar = move |session: &mut Session| {
            session.greet()?;
            let command = session.polite_until(lie_about)?;
            session.reply(&command, &lie)?;
            session.polite_until("none").map(drop)
        };
        fails(LONG, liar, why);
    }
}

/// The program deletes an object, and the server still lists it.
#[test]
fn object_that_stays_costs_the_deadline() {
    let stubborn = |session: &mut Session| {
        session.greet()?;
        loop {
            let command = session.polite_until("qom-list")?;
            let ours = json!([{ "name": "hotplugger-1-3-9", "type": "child<usb-host>" }]);
            session.reply(&command, &ours)?;
        }
    };
    fails(MEDIUM, stubborn, "no reply within 2 s: waiting for the reply to ");
}

/// The line contains QEMU's words, cut and without control characters.
#[test]
fn error_text_is_sanitized_and_cut() {
    let evil = |session: &mut Session| {
        session.greet()?;
        let command = session.polite_until("device_add")?;
        let desc = format!("\u{1b}[2J\u{202e}all\r\nis well\u{7}{}", "!".repeat(100_000));
        let error = json!({ "class": "GenericError", "desc": desc });
        session.send(json!({ "error": error, "id": command.id }).to_string())?;
        session.polite_until("none").map(drop)
    };
    fails(LONG, evil, "QEMU rejected device_add: \u{fffd}[2J\u{fffd}all\u{fffd}\u{fffd}is well");
}

#[test]
fn too_many_objects_are_rejected() {
    let huge = |session: &mut Session| {
        session.greet()?;
        let command = session.polite_until("qom-list")?;
        let object = json!({ "name": "x".repeat(1000), "type": "child<usb-host>" });
        session.reply(&command, &json!(vec![object; 1200]))?;
        session.polite_until("none").map(drop)
    };
    fails(LONG, huge, "does not speak QMP: a message without end");
}

/// A number of objects below the limit is accepted. Foreign objects are kept.
#[test]
fn many_objects_are_accepted_and_foreign_ones_kept() {
    let mut root = host(LONG);
    serve(&root.path(SOCKET), |session| {
        session.greet()?;
        let command = session.polite_until("qom-list")?;
        let object = json!({ "name": "x".repeat(1000), "type": "child<usb-host>" });
        session.reply(&command, &json!(vec![object; 200]))?;
        let deleted = session.polite_until("device_del")?;
        panic!("{} is deleted", deleted.id)
    });
    assert_attached(&root.event("bind", "1-3").run(&root));
}

fn assert_attached(run: &Ended) {
    assert!(run.line().starts_with(&format!("{SUBJECT}attached, ")), "{}", run.line());
    assert_eq!(run.status, 0);
}

/// File descriptors that come with the greeting are dropped, so a server cannot exhaust the
/// program's limit.
#[test]
fn file_descriptors_from_the_server_are_dropped() {
    let mut root = host(LONG);
    let kept = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&kept);
    serve(&root.path(SOCKET), move |session| {
        let (reader, writer) = io::pipe()?;
        pass_along(&session.stream, &writer, format!("{GREETING}\r\n").as_bytes())?;
        drop(writer);
        // The first command shows that the program has read the greeting. If it also kept the
        // pipe's write end, the pipe is still open.
        let command = session.polite_until("qmp_capabilities")?;
        let mut pipe = [PollFd::new(&reader, PollFlags::IN)];
        poll(&mut pipe, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        *seen.lock().unwrap() = Some(!pipe[0].revents().contains(PollFlags::HUP));
        session.reply(&command, &json!({}))?;
        session.polite_until("none").map(drop)
    });
    assert_attached(&root.event("bind", "1-3").run(&root));
    assert_eq!(*kept.lock().unwrap(), Some(false), "whether it kept the descriptor");
}

/// Sends bytes with a file descriptor.
fn pass_along(stream: &UnixStream, descriptor: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let sent = sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty())?;
    assert_eq!(sent, bytes.len());
    Ok(())
}

#[test]
fn datagram_socket_is_rejected() {
    let mut root = host(LONG);
    let _socket = UnixDatagram::bind(root.path(SOCKET)).unwrap();
    assert_failed(&root.event("bind", "1-3").run(&root), "it is a datagram socket");
}

#[test]
fn several_events_at_a_stuck_server_all_end() {
    let mut root = host(SHORT);
    serve(&root.path(SOCKET), Session::fall_silent);
    root.plug("1-3", "hub", 2);
    let ports = ["1-3.1", "1-3.2", "1-3.3", "1-3.4", "1-3.5", "1-3.6"];
    for (devnum, port) in (3..).zip(ports) {
        root.plug(port, "tablet", devnum);
    }
    let runs: Vec<Running> = ports.map(|port| root.event("bind", port).start(&root)).into();
    for (run, port) in runs.into_iter().zip(ports) {
        let run = run.end();
        let line = run.line();
        let subject = format!("windows: port {port}, QEMU USB Tablet (0627:0001): not attached: ");
        assert!(line.starts_with(&subject), "{line}");
        assert!(line.contains("no reply within 0.5 s: "), "{line}");
        assert_eq!(run.status, 1);
    }
}

#[test]
fn remove_event_costs_the_deadline_too() {
    let mut root = host(SHORT);
    serve(&root.path(SOCKET), Session::fall_silent);
    root.pull("1-3");
    let run = root.event("remove", "1-3").run(&root);
    let line = run.line();
    assert!(line.starts_with("windows: port 1-3: unplugged, and not detached: "), "{line}");
    assert!(line.contains("no reply within 0.5 s: waiting for QEMU's greeting"), "{line}");
    assert_eq!(run.status, 1);
}

/// Makes `/proc` show this process, which is the peer of scripted servers, as a QEMU whose package
/// was upgraded in the meantime.
fn upgrade_qemu(root: &Root, maps: &str) {
    let process = format!("/proc/{}", std::process::id());
    root.write(&format!("{process}/maps"), maps);
    symlink("/usr/bin/qemu-system-x86_64 (deleted)", root.path(process).join("exe")).unwrap();
}

/// Such a QEMU aborts with the second command that makes it load the module of another build.
#[test]
fn upgraded_qemu_gets_no_usb_host_command_from_any_of_the_commands() {
    for access in ["node", "fd", "auto"] {
        let mut root = host(LONG);
        root.controller(4);
        root.config(&format!(
            "virtual_machines:\n  windows:\n    socket: {SOCKET}\n    delay: 0\n    timeout: {LONG}\n    \
             access: {access}\n    ports: [/devices/pci0000:00/0000:00:14.0/usb1/1-3]\n"
        ));
        upgrade_qemu(&root, "7f0000000000 r-xp /usr/lib/x86_64-linux-gnu/libc.so.6\n");
        let commands = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&commands);
        serve(&root.path(SOCKET), move |session| session.accept_and_record(&recorded));
        let why = "the QEMU of VM windows was upgraded while it runs; restart the VM";
        for action in ["bind", "bind", "remove"] {
            let run = root.event(action, "1-3").run(&root);
            if action == "bind" {
                assert_failed(&run, why);
            }
        }
        for arguments in [&["sync"][..], &["check"], &["attach", "1-3"]] {
            let run = run_manual(&root, arguments);
            assert!(format!("{}{}", run.stdout, run.stderr).contains(why), "{arguments:?} {run:?}");
            assert_eq!(run.status, 1, "{arguments:?}");
        }
        run_manual(&root, &["status"]);
        let commands = commands.lock().unwrap();
        assert!(commands.iter().any(|command| command.starts_with("qom-list ")), "{commands:?}");
        for concerns in ["device_add", "device-list-properties", "usbhost", "add-fd"] {
            assert!(!commands.iter().any(|command| command.contains(concerns)), "{commands:?}");
        }
    }
}

/// Where libusb is mapped, usb-host is loaded already.
#[test]
fn upgraded_qemu_with_usb_host_loaded_still_gets_devices() {
    let mut root = host(LONG);
    upgrade_qemu(&root, "7f0000000000 r-xp /usr/lib/x86_64-linux-gnu/libusb-1.0.so.0.3.0\n");
    serve(&root.path(SOCKET), Session::be_polite);
    assert_attached(&root.event("bind", "1-3").run(&root));
}

/// HMP shows details, and is not needed.
#[test]
fn qemu_that_refuses_hmp_gets_devices() {
    let mut root = host(LONG);
    serve(&root.path(SOCKET), |session| {
        session.greet()?;
        loop {
            let command = session.polite_until("human-monitor-command")?;
            let error = json!({ "class": "CommandNotFound", "desc": "The command human-monitor-command has not been found" });
            session.send(json!({ "error": error, "id": command.id }).to_string())?;
        }
    });
    let run = root.event("bind", "1-3").run(&root);
    assert_attached(&run);
}
