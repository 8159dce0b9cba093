//! Locks with a deadline.
//!
//! A lock is an empty file that is never deleted (a deleted one could be held twice), taken with
//! flock(2): it falls when its holder dies.

use std::fmt;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use crate::clock::Monotonic;
use crate::deadline::Deadline;

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct Lock(File);

/// Why a lock was not taken.
#[derive(Debug)]
pub enum LockError {
    /// Another process held it for the whole time.
    Busy(Duration),
    /// The file system returned an error.
    Io(io::Error),
}

/// The pause between two tries to take a lock that is held.
const PAUSE: Duration = Duration::from_millis(5);

/// The longest wait for a lock, however fast its queue moves.
const MAX_WAIT: Duration = Duration::from_secs(60);

impl Lock {
    /// Takes the lock, waiting for it until the deadline.
    pub fn acquire(file: File, deadline: &Deadline) -> Result<Self, LockError> {
        Self::wait(file, *deadline, None, |_| None).map(|(lock, _)| lock)
    }

    /// Takes the lock, waiting as long as the processes before it make progress: each session that ends
    /// well ([`Lock::progress`]) gives the waiting processes their whole budget again. Returns the deadline
    /// that is then in force, so that a stuck QEMU costs one budget, however many processes wait.
    /// No wait ends later than `end`.
    pub fn acquire_in_queue(
        file: File,
        deadline: Deadline,
        end: Option<Deadline>,
    ) -> Result<(Self, Deadline), LockError> {
        let mut seen = mark(&file);
        Self::wait(file, deadline, end, move |file| {
            let now = mark(file);
            (now != seen).then(|| {
                seen = now;
                Deadline::after(deadline.budget()).no_later_than(end)
            })
        })
    }

    fn wait(
        file: File,
        mut deadline: Deadline,
        end: Option<Deadline>,
        mut progress: impl FnMut(&File) -> Option<Deadline>,
    ) -> Result<(Self, Deadline), LockError> {
        let longest = Deadline::after(MAX_WAIT).no_later_than(end);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok((Self(file), deadline)),
                Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            if let Some(extended) = progress(&file) {
                deadline = extended;
            }
            if deadline.remaining().is_none() || longest.remaining().is_none() {
                return Err(LockError::Busy(deadline.budget()));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Notes for the waiting processes that a session under this lock ended well.
    pub fn progress(&self) {
        // The mark only makes other processes wait longer, so a failure to write it is ignored.
        let _ = self.0.write_all_at(&Monotonic::now().0.to_ne_bytes(), 0);
    }
}

fn mark(file: &File) -> [u8; 8] {
    let mut mark = [0; 8];
    let _ = file.read_at(&mut mark, 0);
    mark
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(budget) => {
                write!(f, "another hotplugger held the lock for {} s", budget.as_secs_f64())
            }
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LockError {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn open(path: &Path) -> File {
        File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    #[test]
    fn a_held_lock_costs_the_deadline_and_a_freed_one_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let short = Duration::from_millis(30);
        let held = Lock::acquire(open(&path), &Deadline::after(short)).unwrap();
        assert!(matches!(
            Lock::acquire(open(&path), &Deadline::after(short)),
            Err(LockError::Busy(_))
        ));
        drop(held);
        assert!(Lock::acquire(open(&path), &Deadline::after(short)).is_ok());
    }

    #[test]
    fn a_queue_that_moves_is_waited_for_beyond_the_budget() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let budget = Duration::from_millis(300);
        let (held, _) = Lock::acquire_in_queue(open(&path), Deadline::after(budget), None).unwrap();
        let waiting = thread::spawn({
            let path = path.clone();
            move || Lock::acquire_in_queue(open(&path), Deadline::after(budget), None).map(drop)
        });
        for _ in 0..8 {
            thread::sleep(Duration::from_millis(100));
            held.progress();
        }
        drop(held);
        assert!(waiting.join().unwrap().is_ok(), "800 ms of progress, 300 ms of budget");
    }
}
