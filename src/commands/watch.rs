//! `watch`: the events, as they happen.

use std::io::{self, stdout};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use rustix::event::{PollFd, PollFlags};
use rustix::process::geteuid;

use super::status::event_line;
use super::{CommandStatus, Context, end_signals, wait};
use crate::output::Output;
use crate::state::dir;
use crate::state::history::Follower;

#[derive(Debug, Args)]
pub struct Watch {
    /// Print a JSON object for each event, one a line
    #[arg(long)]
    json: bool,

    /// How many of the last events to print first
    #[arg(long, value_name = "N", default_value_t = 10)]
    events: usize,
}

/// How often the state directory is searched again: it may not exist yet, or be replaced.
const SEARCH: Duration = Duration::from_millis(500);

impl Watch {
    pub fn run(&self, context: &Context<'_>, output: &mut Output) -> Result<CommandStatus> {
        let signals = end_signals()?;
        let mut follower = Follower::new(context.root)?;
        let mut events = follower.take();
        events.drain(..events.len().saturating_sub(self.events));
        loop {
            for event in &events {
                if self.json {
                    output.json_line(event)?;
                } else {
                    output.line_untruncated(&event_line(event))?;
                }
            }
            if !geteuid().is_root() && dir::is_unreadable(context.root) {
                bail!("only root can see the events: sudo hotplugger watch");
            }
            if is_end(&follower, &signals)? {
                return Ok(CommandStatus::Ok);
            }
            events = follower.take();
        }
    }
}

/// Waits until there may be new events. Returns whether the user or the reader ended it.
fn is_end(follower: &Follower<'_>, signals: &UnixStream) -> io::Result<bool> {
    let stdout = stdout();
    let mut fds = [
        PollFd::new(follower, PollFlags::IN),
        PollFd::new(signals, PollFlags::IN),
        // That the reader has closed the output is reported in any case (poll(2)).
        PollFd::new(&stdout, PollFlags::empty()),
    ];
    wait(&mut fds, Some(SEARCH))?;
    Ok(fds[1..].iter().any(|fd| !fd.revents().is_empty()))
}
