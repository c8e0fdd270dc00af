//! Session: the state machine of one connection.
//!
//! Feed it what happens with the `handle_*` methods; after each call, take and carry out every
//! [`Action`] until `poll_action` returns `None`. It does no I/O, owns no clock and mints no ids.

mod background;
mod conversing;
mod ending;
mod matching;
mod queue;
mod referring;
mod steering;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::action::{Action, TurnKey};
use crate::chain::Chain;
use crate::create::{CreateRequest, Task};
use crate::engine::EngineOutput;
use crate::failure::Failure;
use crate::id::IdSource;
use crate::lane::{Lanes, Origin};
use crate::limits::Limits;
use crate::message::{ClientMessage, Create, Terms};
use crate::seal::Sealer;
use crate::session::background::Queued;
use crate::session::ending::Finished;
use crate::session::matching::Matching;
use crate::session::referring::Referring;
use crate::stored::Permit;
use crate::turn::{Progress, Turn};

pub use crate::session::conversing::OpenedConversation;

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
    /// One `create` and its answer: no lanes, no `generate`, no steering, no age limit.
    Http,
}

/// A store could not be reached. The cause is for the log, not for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreUnavailable;

/// Why a store has not kept a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveFailed {
    Unavailable,
    /// It is larger than all that the store may hold.
    TooLarge,
    /// Its conversation was continued by something else meanwhile, or deleted.
    ConversationMoved,
}

impl From<StoreUnavailable> for Failure {
    fn from(_: StoreUnavailable) -> Self {
        Self::storage_unavailable()
    }
}

impl From<SaveFailed> for Failure {
    fn from(failed: SaveFailed) -> Self {
        match failed {
            SaveFailed::Unavailable => Self::storage_unavailable(),
            SaveFailed::TooLarge => Self::server_error(
                "The response could not be stored: with its history it is larger than the whole \
                 store may be. Send 'store': false, or ask the server's operator for a larger one.",
            ),
            SaveFailed::ConversationMoved => Self::conversation_locked(),
        }
    }
}

/// The protocol state of one connection: its lanes, their queues, and what is running.
///
/// A create goes through these stages:
///
/// * *waiting* in its lane's queue until the turn before it has ended and a slot is free. It
///   makes no event. A request that is refused waits as well, so that its error comes in order.
/// * *loading* its parent ([`Action::Load`]), unless the connection has it, or its conversation
///   ([`Action::LoadConversation`]).
/// * *referring* to items that the store may have ([`Action::LoadItems`]), if its input does.
/// * *matching* its history with what is known ([`Action::Match`]), if nothing is named that it
///   continues and the session does so at all.
/// * *queued*: stored, if it is to be made in the background ([`Action::Save`]).
/// * *making*, from [`Action::Start`]. A failure before the engine's `Started` is an `error`
///   event, one after it a `response.failed`. While a started turn says nothing,
///   `response.in_progress` is sent again from time to time.
/// * *saving* ([`Action::Save`]), unless `store` is false. The last event waits for it. Of those
///   that failed or were cancelled, only a response in the background is saved.
/// * *ended*: [`Action::Ended`] follows the last event at once.
///
/// What steers do to this is told in `session/steering.rs`.
#[derive(Debug)]
pub struct Session {
    transport: Transport,
    limits: Limits,
    sealer: Arc<dyn Sealer>,
    permit: Option<Permit>,
    matches_histories: bool,
    opened_at: Duration,
    phase: Phase,
    lanes: Lanes,
    /// Turns that have left their queue; in the order they came in.
    running: BTreeMap<TurnKey, Running>,
    /// Creates in all queues that a client sent.
    queued: usize,
    queued_bytes: usize,
    next_key: u64,
    actions: VecDeque<Action>,
}

/// How far the connection is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The age limit has passed; what runs may finish until then.
    Aged {
        until: Duration,
    },
    /// Nothing runs on but what is being saved.
    Closing(Why),
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Age,
    Drain,
}

/// A turn that has left its queue.
#[derive(Debug)]
struct Running {
    origin: Origin,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Loading(Box<CreateRequest>),
    Referring(Box<Referring>),
    Matching(Box<Matching>),
    Queued(Box<Queued>),
    Making(Box<Turn>),
    Saving(Box<Finished>),
}

impl Session {
    /// `sealer` is that of the credential that the connection was opened with. Without a `permit`
    /// every request is treated as one that says `store: false`.
    pub fn new(
        transport: Transport,
        limits: Limits,
        sealer: Arc<dyn Sealer>,
        permit: Option<Permit>,
        now: Now,
    ) -> Self {
        Self {
            transport,
            limits,
            sealer,
            permit,
            matches_histories: false,
            opened_at: now.elapsed,
            phase: Phase::Open,
            lanes: Lanes::default(),
            running: BTreeMap::new(),
            queued: 0,
            queued_bytes: 0,
            next_key: 0,
            actions: VecDeque::new(),
        }
    }

    /// A text message from the socket, or the body of a POST.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a message goes over to the session, which keeps slices of it"
    )]
    pub fn handle_message(&mut self, now: Now, ids: &mut dyn IdSource, message: Bytes) {
        if !self.takes(now, &message) {
            return;
        }
        match ClientMessage::parse(&message, self.terms(Task::Answer)) {
            Ok(ClientMessage::Create(create)) => self.admit(ids, create, message.len()),
            Ok(ClientMessage::Cancel(target)) => self.cancel(&target),
            Ok(ClientMessage::Steer(steer)) => self.steer(now, ids, steer),
            Ok(ClientMessage::Inject(inject)) => {
                self.actions.push_back(Action::Send(inject.failed()));
            }
            Ok(ClientMessage::Processed) => {}
            Err(failure) => self.send_error(None, failure),
        }
        self.go_on(now);
    }

    /// The body of a POST that asks for nothing but a compaction. It is answered like a create:
    /// the output of its response is the compaction item. Nothing is stored.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a message goes over to the session, which keeps slices of it"
    )]
    pub fn handle_compact(&mut self, now: Now, ids: &mut dyn IdSource, message: Bytes) {
        self.handle_task(now, ids, &message, Task::Compact);
    }

    /// The body of a POST that asks how many tokens the prompt of a create has, which it has the
    /// members of. It is answered like one: the number is in the `usage` of a response that is
    /// empty and not stored. A prompt that no model could be given is counted as well.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a message goes over to the session, which keeps slices of it"
    )]
    pub fn handle_count(&mut self, now: Now, ids: &mut dyn IdSource, message: Bytes) {
        self.handle_task(now, ids, &message, Task::Count);
    }

    fn handle_task(&mut self, now: Now, ids: &mut dyn IdSource, message: &Bytes, task: Task) {
        if !self.takes(now, message) {
            return;
        }
        match Create::parse_body(message, self.terms(task)) {
            Ok(create) => self.admit(ids, create, message.len()),
            Err(failure) => self.send_error(None, failure),
        }
        self.go_on(now);
    }

    fn terms(&self, task: Task) -> Terms<'_> {
        Terms {
            transport: self.transport,
            strict: self.limits.strict,
            sealer: &*self.sealer,
            permit: self.permit,
            task,
        }
    }

    /// Whether a message is to be read. One that is too large is answered here.
    fn takes(&mut self, now: Now, message: &Bytes) -> bool {
        self.grow_old(now);
        let fits = message.len() <= self.limits.message_bytes;
        if !fits {
            self.handle_oversized(now);
        }
        fits && self.phase != Phase::Closed
    }

    /// A message beyond the size limit was dropped unread; answers 413 `request_too_large`.
    pub fn handle_oversized(&mut self, now: Now) {
        self.grow_old(now);
        if self.phase != Phase::Closed {
            self.send_error(None, Failure::request_too_large(self.limits.message_bytes));
        }
    }

    /// The answer to [`Action::Load`]: the stored chain, if there is one for this credential.
    pub fn handle_loaded(
        &mut self,
        now: Now,
        _ids: &mut dyn IdSource,
        turn: TurnKey,
        parent: Result<Option<Chain>, StoreUnavailable>,
    ) {
        self.grow_old(now);
        match self.running.remove(&turn) {
            Some(Running {
                origin,
                stage: Stage::Loading(request),
            }) => match (parent, &origin.parent) {
                (Ok(None), Some(id)) => {
                    let failure = Failure::previous_response_not_found(id);
                    self.refuse(origin, failure);
                }
                (Ok(parent), _) => self.begin(now, origin, request, parent),
                (Err(unavailable), _) => self.refuse(origin, unavailable.into()),
            },
            Some(running) => drop(self.running.insert(turn, running)),
            None => {}
        }
        self.go_on(now);
    }

    /// Output of the engine; what comes after a turn's end is ignored.
    pub fn handle_output(
        &mut self,
        now: Now,
        ids: &mut dyn IdSource,
        turn: TurnKey,
        output: EngineOutput,
    ) {
        self.grow_old(now);
        let Some(Running {
            origin,
            stage: Stage::Making(making),
        }) = self.running.get_mut(&turn)
        else {
            return;
        };
        match making.handle(now, ids, output, &mut self.actions) {
            Progress::Going => {
                origin.steers.take_if(|_| making.is_started());
                return;
            }
            Progress::Again(request) => {
                return self.actions.push_back(Action::Start {
                    turn,
                    lane: making.lane().cloned(),
                    request,
                });
            }
            Progress::Finished {
                reason,
                usage,
                state,
            } => self.finish(now, ids, turn, reason, usage, state),
            Progress::Failed(failure) => self.end_early(turn, failure),
            Progress::Broken => {
                self.actions.push_back(Action::Stop { turn });
                let message = "The model's output could not be understood.";
                self.end_early(turn, Failure::server_error(message));
            }
        }
        self.go_on(now);
    }

    /// The answer to [`Action::Save`].
    pub fn handle_saved(
        &mut self,
        now: Now,
        ids: &mut dyn IdSource,
        turn: TurnKey,
        saved: Result<(), SaveFailed>,
    ) {
        self.grow_old(now);
        match self.running.remove(&turn) {
            Some(Running {
                origin,
                stage: Stage::Saving(finished),
            }) => self.end_save(ids, origin, *finished, saved),
            Some(Running {
                origin,
                stage: Stage::Queued(queued),
            }) => self.begin_queued(now, origin, *queued, saved),
            Some(running) => drop(self.running.insert(turn, running)),
            None => {}
        }
        self.go_on(now);
    }

    /// To be called when [`Session::deadline`] has passed.
    pub fn handle_timeout(&mut self, now: Now) {
        self.grow_old(now);
        let Some(interval) = self.limits.keep_alive else {
            return;
        };
        for running in self.running.values_mut() {
            if let Stage::Making(turn) = &mut running.stage
                && let Some(due) = turn.keep_alive_due(interval)
                && due <= now.elapsed
            {
                turn.keep_alive(now, &mut self.actions);
            }
        }
    }

    /// Events of this turn still wait for the peer, which needs no other one to see that it runs:
    /// the turn's silence counts from now. Without this, events that nobody reads would pile up.
    pub fn defer_keep_alive(&mut self, now: Now, turn: TurnKey) {
        if let Some(Stage::Making(making)) = self.running.get_mut(&turn).map(|r| &mut r.stage) {
            making.defer_keep_alive(now);
        }
    }

    /// Goes on towards the end of the connection, if the time for that has come.
    fn grow_old(&mut self, now: Now) {
        let deadline = self.age_deadline();
        if deadline.is_none_or(|deadline| now.elapsed < deadline) {
            return;
        }
        if self.phase == Phase::Open {
            let until = now.elapsed.saturating_add(self.limits.age_grace);
            self.phase = Phase::Aged { until };
        }
        if matches!(self.phase, Phase::Aged { until } if now.elapsed >= until) {
            self.stop_all(Why::Age);
        }
        self.go_on(now);
    }

    /// The server shuts down: running turns are stopped and the connection closes with 1001.
    pub fn handle_drain(&mut self, now: Now) {
        if self.phase != Phase::Closed {
            self.stop_all(Why::Drain);
            self.go_on(now);
        }
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When `handle_timeout` is next due, as [`Now::elapsed`]. Looks at every running turn.
    pub fn deadline(&self) -> Option<Duration> {
        let silences = self.limits.keep_alive.into_iter().flat_map(|interval| {
            let turns = self.running.values();
            turns.filter_map(move |running| match &running.stage {
                Stage::Making(turn) => turn.keep_alive_due(interval),
                Stage::Loading(_)
                | Stage::Referring(_)
                | Stage::Matching(_)
                | Stage::Queued(_)
                | Stage::Saving(_) => None,
            })
        });
        silences.chain(self.age_deadline()).min()
    }

    fn age_deadline(&self) -> Option<Duration> {
        match self.phase {
            Phase::Open if self.transport == Transport::WebSocket => {
                self.opened_at.checked_add(self.limits.connection_age?)
            }
            Phase::Aged { until } => Some(until),
            _ => None,
        }
    }
}
