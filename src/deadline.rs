//! One time limit over several steps.

use std::time::{Duration, Instant};

/// The moment by which all must be done, and the budget it came from.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    end: Instant,
    budget: Duration,
}

impl Deadline {
    /// The deadline `budget` from now.
    pub fn after(budget: Duration) -> Self {
        Self { end: Instant::now() + budget, budget }
    }

    /// This deadline, or `other` if that is earlier.
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

    /// The time left; none when it is over.
    pub fn remaining(&self) -> Option<Duration> {
        self.end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// The whole time, for messages.
    pub fn budget(&self) -> Duration {
        self.budget
    }
}
