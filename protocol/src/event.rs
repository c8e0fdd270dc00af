//! Event: one message to the client, encoded once.

use std::ops::Range;

use bytes::Bytes;

use crate::failure::Failure;

/// One server event as JSON, with what a transport needs to know about it.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its `type`, for the `event:` line of SSE.
    pub name: &'static str,
    pub json: Bytes,
    /// Where in `json` the response object stands, if the event has one.
    response: Option<Range<usize>>,
    /// Set on `error` events, so that HTTP can answer with the failure's status.
    pub failure: Option<Box<Failure>>,
}

impl Event {
    /// The response object inside, as JSON. A slice, not a copy.
    pub fn response(&self) -> Option<Bytes> {
        self.response.clone().map(|range| self.json.slice(range))
    }

    /// Whether this ends a turn: `completed`, `incomplete`, `failed`, or an `error`.
    pub fn is_terminal(&self) -> bool {
        matches!(
            self.name,
            "response.completed" | "response.incomplete" | "response.failed" | "error"
        )
    }
}
