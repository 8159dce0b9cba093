//! A QMP server that follows a script: what a real QEMU does not do on demand.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

/// One client's connection, as the server sees it.
pub(crate) struct Session {
    pub(crate) stream: UnixStream,
    lines: BufReader<UnixStream>,
}

/// A command that came.
pub(crate) struct Command {
    pub(crate) name: String,
    pub(crate) id: Value,
    pub(crate) arguments: Value,
}

/// What QEMU 7.2 says to who connects.
pub(crate) const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2+dfsg-7+deb12u18"}, "capabilities": ["oob"]}}"#;

/// Serves each client at `path` with the script, in threads of their own that end with the test.
/// The script ends early, with an error that nobody looks at, when the client leaves.
pub(crate) fn serve(
    path: &Path,
    script: impl Fn(&mut Session) -> io::Result<()> + Send + Sync + 'static,
) {
    let listener = UnixListener::bind(path).unwrap();
    let script = Arc::new(script);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let script = Arc::clone(&script);
            thread::spawn(move || {
                let stream = stream?;
                let lines = BufReader::new(stream.try_clone()?);
                script(&mut Session { stream, lines })
            });
        }
    });
}

impl Session {
    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Greets as QEMU does.
    pub(crate) fn greet(&mut self) -> io::Result<()> {
        self.send(format!("{GREETING}\r\n"))
    }

    /// The next command.
    pub(crate) fn command(&mut self) -> io::Result<Command> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let command: Value = serde_json::from_str(&line)?;
        let name = command["execute"].as_str().unwrap_or_default().to_owned();
        let (id, arguments) = (command["id"].clone(), command["arguments"].clone());
        Ok(Command { name, id, arguments })
    }

    /// Replies as QEMU does.
    pub(crate) fn reply(&mut self, command: &Command, value: &Value) -> io::Result<()> {
        self.send(format!("{}\r\n", json!({ "return": value, "id": command.id })))
    }

    /// Answers each command as the QEMU of a guest that takes any device, until `name` comes, which
    /// is returned unanswered.
    pub(crate) fn polite_until(&mut self, name: &str) -> io::Result<Command> {
        loop {
            let command = self.command()?;
            if command.name == name {
                return Ok(command);
            }
            self.reply(&command, &polite_reply(&command.name))?;
        }
    }

    /// Greets and answers all commands. Each one is appended to the list first, with its
    /// arguments.
    pub(crate) fn accept_and_record(&mut self, commands: &Mutex<Vec<String>>) -> io::Result<()> {
        self.greet()?;
        loop {
            let command = self.command()?;
            commands.lock().unwrap().push(format!("{} {}", command.name, command.arguments));
            self.reply(&command, &polite_reply(&command.name))?;
        }
    }

    /// Greets and answers all commands.
    pub(crate) fn be_polite(&mut self) -> io::Result<()> {
        self.greet()?;
        self.polite_until("none").map(drop)
    }

    /// Keeps the connection, says nothing more, and waits until the client leaves.
    pub(crate) fn fall_silent(&mut self) -> io::Result<()> {
        self.lines.read_to_end(&mut Vec::new()).map(drop)
    }
}

/// The reply of a QEMU whose guest accepts any device.
fn polite_reply(command: &str) -> Value {
    match command {
        "qom-list" | "device-list-properties" | "query-fdsets" => json!([]),
        "qom-get" => json!(true),
        "query-status" => json!({ "running": true }),
        "human-monitor-command" => json!(""),
        _ => json!({}),
    }
}
