//! The life of one port, explored: whatever the kernel, the guests and a person do, in whatever
//! order and at whatever moment of a udev call, wherever that call is killed, and wherever QEMU does
//! not reply to it.
//!
//! What runs is the program's own code (`event::handle` and `SyncJob`), on
//! a host in memory. Each state is handled once: what leads to the same one again is cut off.
//!
//! What must hold:
//!
//! * always: no two guests have the device open;
//! * at rest, when nothing was killed, no guest came or went and nobody wiped the state: a guest
//!   that runs has the device that is in the port, and nothing else of ours is in any guest; nothing
//!   is remembered of a device that is gone;
//! * at rest, after a `sync`: the same, whatever has happened before.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with a panic"
)]

mod host;
mod state;

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::time::Instant;

use host::{Interrupt, Killed, ModelHost, Stuck};
use state::{Act, Model, PortState};

/// How many things happen, beside the udev calls.
const ACTS: usize = 4;
/// How many udev calls are killed or interrupted.
const INTERRUPTS: usize = 1;

/// A state, and how it was reached.
struct Reached {
    host: PortState,
    acts: usize,
    interrupts: usize,
    /// Whether a `sync` is needed before what must hold does.
    lost: bool,
    scenario: Vec<String>,
}

#[test]
fn whatever_happens_in_a_port_the_guest_has_what_is_in_it() {
    let acts = std::env::var("HOTPLUGGER_MODEL_ACTS").ok();
    let acts = acts.map_or(ACTS, |acts| acts.parse().expect("a number"));
    let model = Model::new();
    let started = Instant::now();
    let silent = take_hook();
    // A kill is a panic of ours, once for each state and moment.
    set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<Killed>().is_none() {
            silent(info);
        }
    }));
    let mut seen = UeventMark::default();
    let first = Reached {
        host: PortState::new(),
        acts,
        interrupts: INTERRUPTS,
        lost: false,
        scenario: Vec::new(),
    };
    let mut open = VecDeque::from([first]);
    let mut transitions = 0_usize;
    while let Some(reached) = open.pop_front() {
        if !seen.is_new(&reached) {
            continue;
        }
        check(&model, &reached);
        for next in successors(&model, &reached) {
            transitions += 1;
            open.push_back(next);
        }
    }
    let _ = take_hook();
    println!(
        "model: {} states, {transitions} transitions, {acts} acts and {INTERRUPTS} interrupt each, \
         {:.1} s",
        seen.0.len(),
        started.elapsed().as_secs_f64()
    );
    assert!(seen.0.len() > 500, "only {} states were explored", seen.0.len());
}

/// The states that were explored, and how much could still happen in them.
#[derive(Default)]
struct UeventMark(BTreeMap<String, Vec<(usize, usize, bool)>>);

impl UeventMark {
    /// Whether it was not explored yet with as much to happen as now, and as little lost.
    fn is_new(&mut self, reached: &Reached) -> bool {
        let known = self.0.entry(format!("{:?}", reached.host.key())).or_default();
        let covered = known.iter().any(|(acts, interrupts, lost)| {
            *acts >= reached.acts && *interrupts >= reached.interrupts && *lost <= reached.lost
        });
        if !covered {
            known.push((reached.acts, reached.interrupts, reached.lost));
        }
        !covered
    }
}

/// All that can happen next.
fn successors(model: &Model, reached: &Reached) -> Vec<Reached> {
    let mut next = Vec::new();
    let with = |host: PortState, what: String, acts, interrupts, loses: bool| {
        let mut scenario = reached.scenario.clone();
        scenario.push(what);
        Reached { host, acts, interrupts, lost: reached.lost || loses, scenario }
    };
    if reached.acts > 0 {
        for act in Act::possible(&reached.host) {
            let mut host = reached.host.clone();
            host.act(act);
            let (acts, interrupts) = (reached.acts - 1, reached.interrupts);
            next.push(with(host, format!("{act:?}"), acts, interrupts, act.loses()));
        }
        let (host, moments) = run(model, &reached.host, Call::Sync, None);
        next.push(with(host, "Sync".to_owned(), reached.acts - 1, reached.interrupts, false));
        next.extend(interrupted(model, reached, Call::Sync, moments, &with));
    }
    if !reached.host.events.is_empty() {
        let (host, moments) = run(model, &reached.host, Call::Udev, None);
        let what = format!("udev {:?}", reached.host.events[0]);
        next.push(with(host, what, reached.acts, reached.interrupts, false));
        next.extend(interrupted(model, reached, Call::Udev, moments, &with));
    }
    next
}

/// The same call, killed at each moment, and with each act at each moment.
fn interrupted(
    model: &Model,
    reached: &Reached,
    call: Call,
    moments: usize,
    with: &dyn Fn(PortState, String, usize, usize, bool) -> Reached,
) -> Vec<Reached> {
    if reached.interrupts == 0 {
        return Vec::new();
    }
    let mut next = Vec::new();
    let interrupts = reached.interrupts - 1;
    for moment in 0..moments {
        let (host, _) = run(model, &reached.host, call, Some((moment, Interrupt::Kill)));
        let what = format!("{call:?} killed at {moment}");
        next.push(with(host, what, reached.acts, interrupts, true));
        for stuck in [Stuck::AtOnce, Stuck::WhenItResumes] {
            let interrupt = Some((moment, Interrupt::Stuck(stuck)));
            let (host, _) = run(model, &reached.host, call, interrupt);
            let what = format!("{call:?} with QEMU stuck ({stuck:?}) at {moment}");
            next.push(with(host, what, reached.acts, interrupts, true));
        }
        if reached.acts == 0 {
            continue;
        }
        for act in Act::ALL {
            let interrupt = Some((moment, Interrupt::Act(act)));
            let (host, _) = run(model, &reached.host, call, interrupt);
            let what = format!("{call:?} with {act:?} at {moment}");
            next.push(with(host, what, reached.acts - 1, interrupts, act.loses()));
        }
    }
    next
}

/// A run of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Udev,
    Sync,
    /// The machines in the other order.
    SyncLastFirst,
}

/// Runs it on a copy of the host; returns what came of it, and at how many moments something else
/// could have happened.
fn run(
    model: &Model,
    host: &PortState,
    call: Call,
    interrupt: Option<(usize, Interrupt)>,
) -> (PortState, usize) {
    let mut host = host.clone();
    let event = match call {
        Call::Udev => host.events.pop_front(),
        Call::Sync | Call::SyncLastFirst => None,
    };
    let model_host = ModelHost::new(host, interrupt);
    let ended = catch_unwind(AssertUnwindSafe(|| match &event {
        Some(event) => model.handle(&model_host, event),
        None => model.sync(&model_host, call == Call::SyncLastFirst),
    }));
    if let Err(payload) = ended {
        assert!(payload.is::<Killed>(), "the program panicked");
    }
    model_host.end()
}

/// Longer than what is explored: of two guests that list the port, one has an object that its QEMU
/// did not open, and nothing is remembered.
#[test]
fn an_object_without_its_device_keeps_nobody_from_it() {
    let model = Model::new();
    let mut host = PortState::new();
    for act in [Act::Stop(0), Act::Start(1), Act::Pause(1), Act::Plug] {
        host.act(act);
    }
    while !host.events.is_empty() {
        (host, _) = run(&model, &host, Call::Udev, None);
    }
    for act in [Act::Wipe, Act::Start(0), Act::GoOnDeaf(1)] {
        host.act(act);
    }
    assert_eq!(host.wrong().as_deref(), Some("an object has no device"));
    for call in [Call::Sync, Call::SyncLastFirst] {
        let (synced, _) = run(&model, &host, call, None);
        assert_eq!(synced.wrong(), None, "{call:?}");
    }
}

fn check(model: &Model, reached: &Reached) {
    let host = &reached.host;
    let fail = |what: &str| {
        panic!("{what}\nafter\n  {}\nin\n{host:#?}", reached.scenario.join("\n  "));
    };
    if host.open().len() > 1 {
        fail("two guests have the device open");
    }
    if !host.events.is_empty() || host.is_paused() {
        return;
    }
    if !reached.lost
        && let Some(wrong) = host.wrong()
    {
        fail(&wrong);
    }
    for call in [Call::Sync, Call::SyncLastFirst] {
        let (synced, _) = run(model, host, call, None);
        if let Some(wrong) = synced.wrong() {
            fail(&format!("after a sync: {wrong}"));
        }
    }
}
