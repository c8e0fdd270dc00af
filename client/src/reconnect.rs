//! Reconnecting: which failures are worth another try, and how long to wait before it.

use std::time::Duration;

use crate::error::Error;
use crate::failure::retry_after;

/// Times to try, and the pauses between.
#[derive(Clone, Debug)]
pub struct Backoff {
    /// Tries after something went wrong: 5. The same number bounds how often one turn is sent
    /// again.
    pub attempts: u32,
    /// Before the first: 0.5 s. It doubles with each try.
    pub first: Duration,
    /// The longest: 8 s. Up to a quarter of each pause is left out at random, so that clients
    /// that lost the same server do not return as one.
    pub longest: Duration,
    /// A server that asks for a longer pause with `Retry-After` is obeyed up to this: 60 s. If it
    /// asks for more, there is no other try.
    pub longest_asked: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            attempts: 5,
            first: Duration::from_millis(500),
            longest: Duration::from_secs(8),
            longest_asked: Duration::from_secs(60),
        }
    }
}

impl Backoff {
    /// The pause before a try, which is preceded by `failed` others; none if there shall be no
    /// other. `chance` is from 0 to 1.
    pub(crate) fn pause(&self, failed: u32, error: &Error, chance: f64) -> Option<Duration> {
        if failed >= self.attempts || !is_passing(error) {
            return None;
        }
        let doubled = self.first.saturating_mul(1 << failed.min(20));
        let pause = doubled.min(self.longest).mul_f64(1.0 - chance / 4.0);
        let asked = match error {
            Error::Refused { headers, .. } => retry_after(headers).unwrap_or_default(),
            _ => Duration::ZERO,
        };
        (asked <= self.longest_asked).then_some(pause.max(asked))
    }
}

/// Whether the same may work a little later.
fn is_passing(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } | Error::TimedOut { .. } => true,
        Error::Refused { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
        error => is_loss(error),
    }
}

/// Whether a connection that was there is gone, through no fault of what was said on it.
pub(crate) fn is_loss(error: &Error) -> bool {
    match error {
        Error::Broken(_) => true,
        // The others say that the server does not want what it was sent.
        Error::Closed { code, .. } => !matches!(code, Some(1002 | 1003 | 1007..=1010)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};

    use super::*;

    fn refused(status: u16, wait: &'static str) -> Error {
        let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(wait))]);
        Error::Refused {
            status,
            headers: Box::new(headers),
            body: Bytes::new(),
        }
    }

    fn pauses(error: &Error, chance: f64) -> Vec<u64> {
        let backoff = Backoff::default();
        let pauses = (0..).map_while(|failed| backoff.pause(failed, error, chance));
        pauses.map(|pause| pause.as_millis() as u64).collect()
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_end() {
        let lost = Error::Broken("reset".into());
        assert_eq!(pauses(&lost, 0.0), [500, 1000, 2000, 4000, 8000]);
        assert_eq!(pauses(&lost, 1.0), [375, 750, 1500, 3000, 6000]);
    }

    #[test]
    fn a_server_that_asks_for_time_gets_it_within_reason() {
        assert_eq!(
            pauses(&refused(503, "3"), 0.0),
            [3000, 3000, 3000, 4000, 8000]
        );
        for hopeless in [refused(503, "3600"), refused(401, "1")] {
            assert_eq!(pauses(&hopeless, 0.0), [0; 0]);
        }
    }

    #[test]
    fn a_server_that_closes_because_of_what_it_was_sent_is_not_sent_it_again() {
        for (code, expected) in [
            (None, true),
            (Some(1001), true),
            (Some(1012), true),
            (Some(1008), false),
            (Some(1009), false),
        ] {
            let reason = String::new();
            assert_eq!(is_loss(&Error::Closed { code, reason }), expected);
        }
    }
}
