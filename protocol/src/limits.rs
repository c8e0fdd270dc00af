//! Limits: every number a client can run into, with its source.

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Limits {
    /// Age of a connection before `websocket_connection_limit_reached`; none = no limit.
    /// The documented value is 60 minutes.
    pub connection_age: Option<Duration>,
    /// How long turns that run at the age limit may still take.
    pub age_grace: Duration,
    /// How long a started response may be silent before another `response.in_progress` shows that
    /// it still runs; none = never. Clients that watch for silence count events, not Pings: Codex
    /// waits for five minutes unless it is told otherwise.
    pub keep_alive: Option<Duration>,
    /// Responses running at once on one connection; documented as 16.
    pub running_responses: usize,
    /// Distinct named lanes of one connection; documented as 32.
    pub lane_names: usize,
    /// Creates that wait on one connection. Not documented anywhere.
    pub queued_creates: usize,
    /// Steers that wait for one response to end; documented by others as 32.
    pub pending_steers: usize,
    /// Bytes of the messages that creates and steers came in, of all that wait on one connection.
    pub queued_bytes: usize,
    /// Bytes of one message or request body.
    pub message_bytes: usize,
    /// Bytes of memory that the items of one chain may take. A model's context is no bound on
    /// items that it is not shown.
    pub chain_bytes: u64,
    /// Tools that one turn may offer the model, those of earlier turns included. Each costs time
    /// when a grammar is made of them.
    pub tools: usize,
    /// Refuse unknown members of `response.create` instead of ignoring them.
    pub strict: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connection_age: Some(Duration::from_secs(3600)),
            age_grace: Duration::from_secs(300),
            keep_alive: Some(Duration::from_secs(15)),
            running_responses: 16,
            lane_names: 32,
            queued_creates: 256,
            pending_steers: 32,
            queued_bytes: 256 << 20,
            message_bytes: 64 << 20,
            chain_bytes: 256 << 20,
            tools: 1024,
            strict: false,
        }
    }
}
