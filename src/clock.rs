//! Time that several processes can compare: CLOCK_MONOTONIC, in microseconds.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment of CLOCK_MONOTONIC: microseconds since the machine booted, suspend not counted.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// This moment.
    pub fn now() -> Self {
        Self(micros(ClockId::Monotonic))
    }

    /// The moment `duration` later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not.
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
