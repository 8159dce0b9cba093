//! Locks with a deadline.
//!
//! A lock is a file that is taken with flock(2): it falls when its holder dies. Only a file that is
//! not ours alone is deleted, and a lock on a deleted file does not count.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::thread;
use std::time::Duration;

use super::dir::StateDir;
use crate::clock::{Deadline, Monotonic};

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct Lock(File);

#[derive(Debug)]
pub struct LockFile<'a> {
    state: &'a StateDir,
    name: String,
    file: File,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another hotplugger held the lock for {} s", .0.as_secs_f64())]
    Busy(Duration),
    #[error(transparent)]
    Io(#[from] io::Error),
}

const PAUSE: Duration = Duration::from_millis(5);

/// The longest wait for a lock, however fast its queue moves.
const MAX_WAIT: Duration = Duration::from_secs(60);

impl<'a> LockFile<'a> {
    pub(super) fn open(state: &'a StateDir, name: String) -> io::Result<Self> {
        let file = state.open_to_lock(&name)?;
        Ok(Self { state, name, file })
    }
}

impl Lock {
    /// Takes the lock, waiting for it until the deadline.
    pub fn acquire(file: LockFile<'_>, deadline: &Deadline) -> Result<Self, LockError> {
        Self::wait(file, *deadline, None, |_| None).map(|(lock, _)| lock)
    }

    /// Takes the lock, waiting as long as the processes before it make progress: each session that ends
    /// well ([`Lock::progress`]) gives the waiting processes their whole budget again. Returns the deadline
    /// that is then in force, so that a stuck QEMU costs one budget, however many processes wait.
    /// No wait ends later than `end`.
    pub fn acquire_in_queue(
        file: LockFile<'_>,
        deadline: Deadline,
        end: Option<Deadline>,
    ) -> Result<(Self, Deadline), LockError> {
        let mut seen = mark(&file.file);
        Self::wait(file, deadline, end, move |file| {
            let now = mark(file);
            (now != seen).then(|| {
                seen = now;
                Deadline::after(deadline.budget()).no_later_than(end)
            })
        })
    }

    fn wait(
        lock: LockFile<'_>,
        mut deadline: Deadline,
        end: Option<Deadline>,
        mut progress: impl FnMut(&File) -> Option<Deadline>,
    ) -> Result<(Self, Deadline), LockError> {
        let longest = Deadline::after(MAX_WAIT).no_later_than(end);
        let LockFile { state, name, mut file } = lock;
        loop {
            match file.try_lock() {
                Ok(()) if file.metadata().is_ok_and(|data| data.nlink() == 0) => {
                    file = state.open_to_lock(&name)?;
                }
                Ok(()) => return Ok((Self(file), deadline)),
                Err(TryLockError::Error(error)) => return Err(error.into()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::Root;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tmp")).unwrap();
        fs::set_permissions(dir.path().join("tmp"), Permissions::from_mode(0o1777)).unwrap();
        let state = StateDir::open(&Root::at(dir.path())).unwrap();
        (dir, state)
    }

    fn open(state: &StateDir) -> LockFile<'_> {
        LockFile::open(state, "lock".to_owned()).unwrap()
    }

    #[test]
    fn lock_on_a_deleted_file_does_not_count() {
        let (dir, state) = state();
        let opened = open(&state);
        fs::remove_file(dir.path().join("tmp/hotplugger/lock")).unwrap();
        let short = Duration::from_millis(30);
        let _held = Lock::acquire(opened, &Deadline::after(short)).unwrap();
        assert!(Lock::acquire(open(&state), &Deadline::after(short)).is_err());
    }

    #[test]
    fn a_held_lock_costs_the_deadline_and_a_freed_one_is_taken() {
        let (_dir, state) = state();
        let short = Duration::from_millis(30);
        let held = Lock::acquire(open(&state), &Deadline::after(short)).unwrap();
        assert!(matches!(
            Lock::acquire(open(&state), &Deadline::after(short)),
            Err(LockError::Busy(_))
        ));
        drop(held);
        assert!(Lock::acquire(open(&state), &Deadline::after(short)).is_ok());
    }

    #[test]
    fn a_queue_that_moves_is_waited_for_beyond_the_budget() {
        let (_dir, state) = state();
        let budget = Duration::from_millis(300);
        let acquire = || Lock::acquire_in_queue(open(&state), Deadline::after(budget), None);
        let (held, _) = acquire().unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| acquire().map(drop));
            for _ in 0..8 {
                thread::sleep(Duration::from_millis(100));
                held.progress();
            }
            drop(held);
            assert!(waiting.join().unwrap().is_ok(), "800 ms of progress, 300 ms of budget");
        });
    }
}
