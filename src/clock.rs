//! Moments that several processes can compare, deadlines, and the wait for file descriptors.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment of CLOCK_MONOTONIC: microseconds since the machine booted, suspend not counted.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Monotonic(pub u64);

impl Monotonic {
    pub fn now() -> Self {
        Self(micros(ClockId::Monotonic))
    }

    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The time since `earlier`; zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// The moment at which CLOCK_REALTIME showed `realtime` microseconds since 1970, as far as
    /// that clock has not been set in the meantime. `None` for the future.
    pub fn at_realtime(realtime: u64) -> Option<Self> {
        let age = micros(ClockId::Realtime).checked_sub(realtime)?;
        Self::now().0.checked_sub(age).map(Self)
    }
}

fn micros(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000
        + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

/// A time limit over several steps.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    end: Instant,
    budget: Duration,
}

impl Deadline {
    pub fn after(budget: Duration) -> Self {
        Self { end: Instant::now() + budget, budget }
    }

    #[must_use]
    pub fn no_later_than(self, other: Option<Self>) -> Self {
        match other {
            Some(other) if other.end < self.end => {
                let budget = other.end.saturating_duration_since(Instant::now());
                Self { end: other.end, budget: budget.min(self.budget) }
            }
            _ => self,
        }
    }

    /// The time left; `None` when it is over.
    pub fn remaining(&self) -> Option<Duration> {
        self.end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// The whole time, for messages.
    pub fn budget(&self) -> Duration {
        self.budget
    }
}

/// Waits until one of the file descriptors is ready, at most for `time`. Returns `false` if none is; a
/// signal ends the wait early.
pub fn wait_for(fds: &mut [PollFd<'_>], time: Duration) -> Result<bool, Errno> {
    let longest = Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 };
    match poll(fds, Some(&Timespec::try_from(time).unwrap_or(longest))) {
        Ok(0) | Err(Errno::INTR) => Ok(false),
        Ok(_) => Ok(true),
        Err(error) => Err(error),
    }
}
