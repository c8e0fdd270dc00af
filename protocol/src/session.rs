//! Session: the state machine of one connection.
//!
//! Feed it what happens with the `handle_*` methods; after each call, take and carry out every
//! [`Action`] until `poll_action` returns `None`. It does no I/O, owns no clock and mints no ids.

use std::time::Duration;

use bytes::Bytes;

use crate::action::{Action, TurnKey};
use crate::chain::Chain;
use crate::engine::EngineOutput;
use crate::id::IdSource;
use crate::limits::Limits;

/// The time, as the owner of the session sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Monotonic time since any fixed point.
    pub elapsed: Duration,
    /// Seconds since 1970, for `created_at` and `completed_at`.
    pub unix_seconds: u64,
}

/// What the session's messages travel on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    WebSocket,
    /// One `create` and its answer: no lanes, no warm-up, no steering, no age limit.
    Http,
}

/// A store could not keep a response. The cause is for the log, not for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaveFailed;

#[derive(Debug)]
pub struct Session {}

impl Session {
    pub fn new(_transport: Transport, _limits: Limits, _now: Now) -> Self {
        unimplemented!()
    }

    /// A text message from the socket, or the body of a POST.
    pub fn handle_message(&mut self, _now: Now, _ids: &mut dyn IdSource, _message: Bytes) {}

    /// A message beyond the size limit was dropped unread; answers 413 `request_too_large`.
    pub fn handle_oversized(&mut self, _now: Now) {}

    /// The answer to [`Action::Load`]: the stored chain, if there is one for this credential.
    pub fn handle_loaded(
        &mut self,
        _now: Now,
        _ids: &mut dyn IdSource,
        _turn: TurnKey,
        _parent: Option<Chain>,
    ) {
    }

    /// Output of the engine; what comes after a turn's end is ignored.
    pub fn handle_output(
        &mut self,
        _now: Now,
        _ids: &mut dyn IdSource,
        _turn: TurnKey,
        _output: EngineOutput,
    ) {
    }

    /// The answer to [`Action::Save`].
    pub fn handle_saved(
        &mut self,
        _now: Now,
        _ids: &mut dyn IdSource,
        _turn: TurnKey,
        _saved: Result<(), SaveFailed>,
    ) {
    }

    /// To be called when [`Session::deadline`] has passed.
    pub fn handle_timeout(&mut self, _now: Now) {}

    /// The server shuts down: running turns are stopped and the connection closes with 1001.
    pub fn handle_drain(&mut self, _now: Now) {}

    pub fn poll_action(&mut self) -> Option<Action> {
        None
    }

    /// When `handle_timeout` is next due, as [`Now::elapsed`].
    pub fn deadline(&self) -> Option<Duration> {
        None
    }
}
