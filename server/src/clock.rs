//! Clock and ids: the time and the numbers that a session is given from outside.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use turnwire_protocol::id::IdSource;
use turnwire_protocol::session::Now;
use uuid::{NoContext, Timestamp, Uuid};

/// Monotonic time since the server began, and the wall clock beside it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    began: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            began: Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> Now {
        Now {
            elapsed: self.began.elapsed(),
            unix_seconds: unix_seconds(),
        }
    }

    /// The instant that a session calls `elapsed`; none if it is beyond all time.
    pub(crate) fn instant(&self, elapsed: Duration) -> Option<Instant> {
        self.began.checked_add(elapsed)
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH);
    wall.unwrap_or_default().as_secs()
}

/// UUIDs of version 7: they rise with time, so that stores append, and 74 of their bits are
/// drawn anew for each. No counter is shared between them, so one id says nothing of the next.
#[derive(Debug)]
pub(crate) struct RandomIds;

impl IdSource for RandomIds {
    fn mint(&mut self) -> u128 {
        Uuid::new_v7(Timestamp::now(NoContext)).as_u128()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_beyond_all_time_is_none() {
        let clock = Clock::start();
        assert_eq!(clock.instant(Duration::MAX), None);
        assert_eq!(clock.instant(Duration::ZERO), Some(clock.began));
    }
}
