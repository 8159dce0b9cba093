//! The program against QMP servers that a user made to harm it, or that are broken: whatever comes,
//! a `bind` event ends in one line, which says what is wrong, and within its time.

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
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use hotplugger::deadline::Deadline;
use hotplugger::qmp::client::QmpClient;
use hotplugger::qmp::{Error, Qmp};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, bind, connect, listen, sendmsg, socket_with,
};
use serde_json::{Value, json};

use support::hostile::{GREETING, Session, serve};
use support::root::Root;
use support::udev::{Ended, Running};

/// Time for an exchange that is to run out of it.
const SHORT: &str = "0.5";

/// The same for one that has to get somewhere first.
const MEDIUM: &str = "2";

/// Time for one that ends otherwise, on however slow a machine.
const LONG: &str = "25";

const SOCKET: &str = "/run/windows.qmp";

/// What each line begins with.
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
    assert!(line.starts_with(&format!("{SUBJECT}not attached: ")), "{line}");
    assert!(line.contains(why), "{line}\nwithout: {why}");
    assert_eq!(run.status, 1);
}

/// Greets, and lets the first command wait.
fn greeted(session: &mut Session) -> io::Result<u64> {
    session.greet()?;
    Ok(session.command()?.id.as_u64().expect("a number as id"))
}

#[test]
fn one_that_never_accepts() {
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
    assert_failed(&run, "no answer within 0.5 s: connecting; too many clients");
}

/// QEMU is killed at the very moment: the kernel lets us in, and then nobody is there.
#[test]
fn one_that_ends_before_it_greets() {
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
    assert!(line.contains("the VM is not running: nobody listens at"), "{line}");
}

#[test]
fn one_that_accepts_and_is_silent() {
    fails(SHORT, Session::fall_silent, "no answer within 0.5 s: waiting for QEMU's greeting");
}

#[test]
fn one_that_greets_byte_by_byte() {
    let slow = |session: &mut Session| {
        for byte in GREETING.bytes() {
            session.send([byte])?;
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    };
    fails(SHORT, slow, "no answer within 0.5 s: waiting for QEMU's greeting");
}

#[test]
fn one_whose_greeting_has_no_end() {
    let endless = |session: &mut Session| {
        session.send(r#"{"QMP": {"version": ""#)?;
        loop {
            session.send([b'x'; 4096])?;
        }
    };
    fails(LONG, endless, "does not speak QMP: a message without end");
}

#[test]
fn one_that_sends_spaces_for_ever() {
    let spaces = |session: &mut Session| {
        loop {
            session.send([b' '; 4096])?;
        }
    };
    fails(SHORT, spaces, "no answer within 0.5 s: waiting for QEMU's greeting");
}

#[test]
fn one_that_tells_of_events_for_ever() {
    let talking = |session: &mut Session| {
        greeted(session)?;
        let event = "{\"event\": \"RTC_CHANGE\", \"data\": {\"offset\": 1}}\r\n";
        loop {
            session.send(event.repeat(100))?;
        }
    };
    fails(MEDIUM, talking, "no answer within 2 s: waiting for the reply to qmp_capabilities");
}

#[test]
fn one_that_tells_of_events_instead_of_greeting() {
    let event = |session: &mut Session| {
        session.send("{\"event\": \"STOP\"}\r\n")?;
        session.fall_silent()
    };
    fails(SHORT, event, "no answer within 0.5 s: waiting for QEMU's greeting");
}

#[test]
fn one_that_greets_twice() {
    let again = |session: &mut Session| {
        session.greet()?;
        session.greet()?;
        session.fall_silent()
    };
    fails(LONG, again, "does not speak QMP: a second greeting");
}

#[test]
fn one_that_replies_to_another_command() {
    let confused = |session: &mut Session| {
        let id = greeted(session)?;
        session.send(format!("{{\"return\": {{}}, \"id\": {}}}\r\n", id + 1))?;
        session.fall_silent()
    };
    fails(SHORT, confused, "no answer within 0.5 s: waiting for the reply to qmp_capabilities");
}

#[test]
fn one_that_replies_without_an_id() {
    let nameless = |session: &mut Session| {
        greeted(session)?;
        session.send("{\"return\": {}}\r\n")?;
        session.fall_silent()
    };
    fails(SHORT, nameless, "no answer within 0.5 s: waiting for the reply to qmp_capabilities");
}

#[test]
fn one_that_replies_as_deeply_nested_as_it_can() {
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
fn one_that_does_not_speak_utf_8() {
    let latin = |session: &mut Session| {
        greeted(session)?;
        session.send(b"{\"return\": \"caf\xe9\", \"id\": 1}\r\n")?;
        session.fall_silent()
    };
    fails(LONG, latin, "does not speak QMP: ");
}

#[test]
fn one_that_speaks_another_protocol() {
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
        fails(LONG, other, &format!("what answers does not speak QMP: {why}"));
    }
}

#[test]
fn one_that_closes_at_once() {
    fails(LONG, |_| Ok(()), "QEMU closed the connection while waiting for QEMU's greeting");
}

#[test]
fn one_that_closes_in_the_middle_of_a_reply() {
    let broken = |session: &mut Session| {
        greeted(session)?;
        session.send("{\"return\": {")
    };
    let why = "QEMU closed the connection while waiting for the reply to qmp_capabilities";
    fails(LONG, broken, why);
}

#[test]
fn one_that_answers_when_it_is_too_late() {
    let late = |session: &mut Session| {
        session.greet()?;
        let command = session.polite_until("qom-list")?;
        thread::sleep(Duration::from_secs(4));
        session.reply(&command, &json!([]))?;
        session.fall_silent()
    };
    fails(MEDIUM, late, "no answer within 2 s: waiting for the reply to qom-list");
}

/// So nobody keeps the program by having always something to say, ever so fast.
#[test]
fn what_is_there_after_the_deadline_is_not_read() {
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
    let mut qmp = QmpClient::connect(&root.path(SOCKET), Deadline::after(budget)).unwrap();
    thread::sleep(budget);
    let answer = qmp.execute("query-status", Value::Null);
    assert!(matches!(answer, Err(Error::Timeout { .. })), "{answer:?}");
}

/// Each command in turn gets an answer of a kind that it never has.
#[test]
fn one_that_lies_about_the_kind_of_things() {
    for (lie_about, lie, why) in [
        ("qom-list", json!("nothing"), "does not speak QMP: qom-list: "),
        ("qom-list", json!([{ "type": "string" }]), "does not speak QMP: qom-list: "),
        ("qom-list", Value::Null, "does not speak QMP: qom-list: "),
        ("qom-get", json!("true"), "`attached` is no bool, but a string"),
        ("qom-get", json!({}), "`attached` is no bool, but an object"),
        ("human-monitor-command", json!(7), "info qtree is not answered with text"),
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

/// The program has the device's object deleted, and the server goes on listing it.
#[test]
fn one_whose_objects_do_not_go_away() {
    let stubborn = |session: &mut Session| {
        session.greet()?;
        loop {
            let command = session.polite_until("qom-list")?;
            let ours = json!([{ "name": "hotplugger-1-3-9", "type": "child<usb-host>" }]);
            session.reply(&command, &ours)?;
        }
    };
    fails(MEDIUM, stubborn, "no answer within 2 s: waiting for the reply to ");
}

/// QEMU's words go into the line: cut, and without what could steer a terminal or end the line.
#[test]
fn one_whose_errors_are_meant_for_the_terminal() {
    let evil = |session: &mut Session| {
        session.greet()?;
        let command = session.polite_until("device_add")?;
        let desc = format!("\u{1b}[2J\u{202e}all\r\nis well\u{7}{}", "!".repeat(100_000));
        let error = json!({ "class": "GenericError", "desc": desc });
        session.send(json!({ "error": error, "id": command.id }).to_string())?;
        session.polite_until("none").map(drop)
    };
    fails(LONG, evil, "QEMU refused device_add: \u{fffd}[2J\u{fffd}all\u{fffd}\u{fffd}is well");
}

#[test]
fn one_with_more_objects_than_any_guest() {
    let huge = |session: &mut Session| {
        session.greet()?;
        let command = session.polite_until("qom-list")?;
        let object = json!({ "name": "x".repeat(1000), "type": "child<usb-host>" });
        session.reply(&command, &json!(vec![object; 1200]))?;
        session.polite_until("none").map(drop)
    };
    fails(LONG, huge, "does not speak QMP: a message without end");
}

/// Fewer than that are read through, and those that are not ours left alone.
#[test]
fn one_with_many_objects_is_no_enemy() {
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

/// Descriptors that come along with the greeting are not kept: the program does not end up with a
/// thousand of them, nor with a lock or a pipe of somebody else's.
#[test]
fn one_that_passes_descriptors() {
    let mut root = host(LONG);
    let kept = std::sync::Arc::new(Mutex::new(None));
    let seen = std::sync::Arc::clone(&kept);
    serve(&root.path(SOCKET), move |session| {
        let (reader, writer) = io::pipe()?;
        pass_along(&session.stream, &writer, format!("{GREETING}\r\n").as_bytes())?;
        drop(writer);
        // With its first command the program has taken the greeting. If it has the pipe's other
        // end too, then the pipe is still open.
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

/// Sends bytes, and a descriptor along with them.
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
fn one_that_is_a_datagram_socket() {
    let mut root = host(LONG);
    let _socket = UnixDatagram::bind(root.path(SOCKET)).unwrap();
    assert_failed(&root.event("bind", "1-3").run(&root), "it is a datagram socket, not QEMU's");
}

#[test]
fn several_at_once_on_one_that_is_stuck_all_end() {
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
        assert!(line.contains("no answer within 0.5 s: "), "{line}");
        assert_eq!(run.status, 1);
    }
}

/// What holds for a plug holds for a pull.
#[test]
fn a_pull_ends_too() {
    let mut root = host(SHORT);
    serve(&root.path(SOCKET), Session::fall_silent);
    root.pull("1-3");
    let run = root.event("remove", "1-3").run(&root);
    let line = run.line();
    assert!(line.starts_with("windows: port 1-3: unplugged, and not detached: "), "{line}");
    assert!(line.contains("no answer within 0.5 s: waiting for QEMU's greeting"), "{line}");
    assert_eq!(run.status, 1);
}
