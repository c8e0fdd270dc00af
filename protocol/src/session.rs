//! Session: the state machine of one connection.
//!
//! Feed it what happens with the `handle_*` methods; after each call, take and carry out every
//! [`Action`] until `poll_action` returns `None`. It does no I/O, owns no clock and mints no ids.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::action::{Action, StoredResponse, TurnKey, TurnSummary};
use crate::chain::{Chain, EngineState};
use crate::create::CreateRequest;
use crate::engine::{EngineOutput, FinishReason, Usage};
use crate::event::Event;
use crate::failure::Failure;
use crate::id::{IdSource, ResponseId};
use crate::lane::{LaneName, Lanes, Origin, Waiting};
use crate::limits::Limits;
use crate::message::{CancelTarget, ClientMessage, Create};
use crate::turn::{Progress, Turn};

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

/// The protocol state of one connection: its lanes, their queues, and what is running.
///
/// ```text
///          create          parent found         Started        Finished         saved
/// client ────────▶ queued ──────────────▶ starting ────▶ streaming ────▶ saving ────▶ ended
///                    │        loading ──────▲ │                │    └── store:false ────▲
///                    └──────────▲ │           └── error        └── failed, cancelled ────┘
///                                 └── error
/// ```
#[derive(Debug)]
pub struct Session {
    transport: Transport,
    limits: Limits,
    opened_at: Duration,
    phase: Phase,
    lanes: Lanes,
    /// Turns that have left their queue; in the order they came in.
    running: BTreeMap<TurnKey, Running>,
    /// Creates in all queues.
    queued: usize,
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
    Making(Box<Turn>),
    Saving(Box<Finished>),
}

/// A turn that ended well. Its last event waits until the response is stored, if it is to be.
#[derive(Debug)]
struct Finished {
    turn: Box<Turn>,
    terminal: Event,
    chain: Chain,
    usage: Usage,
}

impl Session {
    pub fn new(transport: Transport, limits: Limits, now: Now) -> Self {
        Self {
            transport,
            limits,
            opened_at: now.elapsed,
            phase: Phase::Open,
            lanes: Lanes::default(),
            running: BTreeMap::new(),
            queued: 0,
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
        self.handle_timeout(now);
        if self.phase == Phase::Closed {
            return;
        }
        match ClientMessage::parse(&message, self.transport, self.limits.strict) {
            Ok(ClientMessage::Create(create)) => self.admit(ids, create),
            Ok(ClientMessage::Cancel(target)) => self.cancel(&target),
            Ok(ClientMessage::Processed) => {}
            Err(failure) => self.send_error(None, failure),
        }
        self.go_on(now);
    }

    /// A message beyond the size limit was dropped unread; answers 413 `request_too_large`.
    pub fn handle_oversized(&mut self, now: Now) {
        self.handle_timeout(now);
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
        parent: Option<Chain>,
    ) {
        self.handle_timeout(now);
        match self.running.remove(&turn) {
            Some(Running {
                origin,
                stage: Stage::Loading(request),
            }) => match (parent, &origin.parent) {
                (None, Some(id)) => {
                    let failure = Failure::previous_response_not_found(id);
                    self.refuse(origin, failure);
                }
                (parent, _) => self.begin(now, origin, request, parent),
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
        self.handle_timeout(now);
        let Some(Stage::Making(making)) = self.running.get_mut(&turn).map(|r| &mut r.stage) else {
            return;
        };
        match making.handle(ids, output, &mut self.actions) {
            Progress::Going => return,
            Progress::Finished {
                reason,
                usage,
                state,
            } => self.finish(now, turn, reason, usage, state),
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
        _ids: &mut dyn IdSource,
        turn: TurnKey,
        saved: Result<(), SaveFailed>,
    ) {
        self.handle_timeout(now);
        match self.running.remove(&turn) {
            Some(Running {
                origin,
                stage: Stage::Saving(finished),
            }) => match saved {
                Ok(()) => self.complete(origin, *finished),
                Err(SaveFailed) => {
                    let failure = Failure::server_error("The response could not be stored.");
                    self.fail(origin, finished.turn, failure);
                }
            },
            Some(running) => drop(self.running.insert(turn, running)),
            None => {}
        }
        self.go_on(now);
    }

    /// To be called when [`Session::deadline`] has passed.
    pub fn handle_timeout(&mut self, now: Now) {
        if self
            .deadline()
            .is_none_or(|deadline| now.elapsed < deadline)
        {
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

    /// When `handle_timeout` is next due, as [`Now::elapsed`].
    pub fn deadline(&self) -> Option<Duration> {
        match self.phase {
            Phase::Open if self.transport == Transport::WebSocket => {
                self.opened_at.checked_add(self.limits.connection_age?)
            }
            Phase::Aged { until } => Some(until),
            _ => None,
        }
    }
}

/// Creates, from their arrival to the start of the engine.
impl Session {
    fn admit(&mut self, ids: &mut dyn IdSource, create: Create) {
        let lane = match self
            .lanes
            .open(create.lane.as_ref(), self.limits.lane_names)
        {
            Ok(lane) => lane,
            Err(failure) => return self.send_error(create.lane.as_ref(), failure),
        };
        let must_wait = lane.running.is_some()
            || !lane.queue.is_empty()
            || self.running.len() >= self.limits.running_responses;
        if must_wait && self.queued >= self.limits.queued_creates {
            let failure = Failure::too_many_queued_responses();
            return self.send_error(create.lane.as_ref(), failure);
        }
        let pinned = create
            .parent
            .as_ref()
            .and_then(|id| self.lanes.find(id))
            .cloned();
        let Create {
            lane,
            parent,
            request,
        } = create;
        let model = request
            .as_ref()
            .map_or_else(|_| Arc::default(), |request| request.model.clone());
        self.lanes.of(lane.as_ref()).queue.push_back(Waiting {
            origin: Origin {
                key: TurnKey(self.next_key),
                id: ResponseId::mint(ids),
                lane,
                parent,
                model,
            },
            request,
            pinned,
        });
        self.next_key += 1;
        self.queued += 1;
    }

    /// Starts what can start, and closes the connection when it has nothing left to do.
    fn go_on(&mut self, now: Now) {
        while let Some(waiting) = self.next_waiting() {
            self.queued -= 1;
            self.start(now, waiting);
        }
        let idle = self.running.is_empty() && self.queued == 0;
        match self.phase {
            Phase::Aged { .. } if idle => self.close(Why::Age),
            Phase::Closing(why) if idle => self.close(why),
            _ => {}
        }
    }

    /// The create to go next: of those at the head of an idle lane, the one that came first.
    /// What is going to be refused needs no free slot.
    fn next_waiting(&mut self) -> Option<Waiting> {
        let free = self.running.len() < self.limits.running_responses;
        let refusing = self.phase != Phase::Open;
        let lane = self
            .lanes
            .iter_mut()
            .filter(|lane| lane.running.is_none())
            .filter(|lane| match lane.queue.front() {
                Some(head) => free || refusing || head.request.is_err(),
                None => false,
            })
            .min_by_key(|lane| lane.queue.front().map(|head| head.origin.key))?;
        lane.queue.pop_front()
    }

    fn start(&mut self, now: Now, waiting: Waiting) {
        let Waiting {
            origin,
            request,
            pinned,
        } = waiting;
        let refusal = match self.phase {
            Phase::Open => None,
            Phase::Closing(Why::Drain) => Some(Failure::server_shutting_down()),
            Phase::Aged { .. } | Phase::Closing(Why::Age) | Phase::Closed => Some(self.too_old()),
        };
        let request = match refusal.map_or(request, Err) {
            Ok(request) => request,
            Err(failure) => return self.refuse(origin, failure),
        };
        self.lanes.of(origin.lane.as_ref()).running = Some(origin.key);
        let Some(parent) = &origin.parent else {
            return self.begin(now, origin, request, None);
        };
        match pinned.or_else(|| self.lanes.find(parent).cloned()) {
            Some(chain) => self.begin(now, origin, request, Some(chain)),
            None => {
                let turn = origin.key;
                let id = parent.clone();
                self.actions.push_back(Action::Load { turn, id });
                let stage = Stage::Loading(request);
                self.running.insert(turn, Running { origin, stage });
            }
        }
    }

    /// Starts the engine of a turn whose parent is there.
    fn begin(
        &mut self,
        now: Now,
        origin: Origin,
        request: Box<CreateRequest>,
        parent: Option<Chain>,
    ) {
        let (id, lane) = (origin.id.clone(), origin.lane.clone());
        match Turn::start(now, id, lane, parent, *request) {
            Ok((making, request)) => {
                let turn = origin.key;
                self.actions.push_back(Action::Start { turn, request });
                let stage = Stage::Making(Box::new(making));
                self.running.insert(turn, Running { origin, stage });
            }
            Err(failure) => self.refuse(origin, failure),
        }
    }
}

/// The ends of turns, and of the connection.
impl Session {
    fn finish(
        &mut self,
        now: Now,
        key: TurnKey,
        reason: FinishReason,
        usage: Usage,
        state: Option<EngineState>,
    ) {
        let Some(Running { origin, stage }) = self.running.remove(&key) else {
            return;
        };
        let Stage::Making(mut turn) = stage else {
            return;
        };
        let (terminal, chain) = turn.finish(now, reason, &usage, state, &mut self.actions);
        let finished = Finished {
            turn,
            terminal,
            chain,
            usage,
        };
        match finished.record() {
            Some(record) => {
                self.actions.push_back(Action::Save { turn: key, record });
                let stage = Stage::Saving(Box::new(finished));
                self.running.insert(key, Running { origin, stage });
            }
            None => self.complete(origin, finished),
        }
    }

    /// Sends the last event of a turn that ended well. Its lane goes on from it.
    fn complete(&mut self, origin: Origin, finished: Finished) {
        let outcome = match finished.terminal.name {
            "response.completed" => "completed",
            _ => "incomplete",
        };
        let lane = self.lanes.of(origin.lane.as_ref());
        lane.running = None;
        lane.advance(finished.chain.clone(), finished.turn.is_warm_up());
        self.actions.push_back(Action::Send(finished.terminal));
        self.log(
            origin,
            outcome,
            finished.usage,
            finished.chain.turns(),
            finished.turn.is_stored(),
        );
    }

    /// Ends a turn in whatever stage it is.
    fn end_early(&mut self, key: TurnKey, failure: Failure) {
        if let Some(Running { origin, stage }) = self.running.remove(&key) {
            match stage {
                Stage::Loading(_) => self.refuse(origin, failure),
                Stage::Making(turn) => self.fail(origin, turn, failure),
                Stage::Saving(finished) => self.fail(origin, finished.turn, failure),
            }
        }
    }

    /// Ends a turn whose engine was asked to start.
    fn fail(&mut self, origin: Origin, turn: Box<Turn>, failure: Failure) {
        let outcome = failure.code;
        turn.fail(failure, &mut self.actions);
        self.abandon(origin, outcome);
    }

    /// Ends a turn that has no response.
    fn refuse(&mut self, origin: Origin, failure: Failure) {
        let outcome = failure.code;
        self.send_error(origin.lane.as_ref(), failure);
        self.abandon(origin, outcome);
    }

    /// A turn that fails takes its parent with it, if its own lane keeps that: the state behind it
    /// may be damaged. The parent of a fork stays with its lane.
    fn abandon(&mut self, origin: Origin, outcome: &str) {
        let lane = self.lanes.of(origin.lane.as_ref());
        lane.running = None;
        if let Some(parent) = &origin.parent {
            lane.evict(parent);
        }
        self.log(origin, outcome, Usage::default(), 0, false);
    }

    /// Ends a turn at the client's wish. Its parent stays, so that the client can go on from it.
    /// A target that is unknown or has ended is no error: cancel and end may cross on the way.
    fn cancel(&mut self, target: &CancelTarget) {
        let key = match target {
            CancelTarget::Response(id) => self
                .running
                .values()
                .map(|running| &running.origin)
                .find(|origin| origin.id == *id)
                .map(|origin| origin.key),
            CancelTarget::Lane(name) => self.lanes.get(name.as_ref()).and_then(|lane| lane.running),
        };
        if let Some(key) = key {
            self.cancel_running(key);
        } else if let CancelTarget::Lane(name) = target
            && let Some(waiting) = self.lanes.of(name.as_ref()).queue.pop_front()
        {
            // Nothing of this lane runs, so its first create waits for other lanes to end.
            self.queued -= 1;
            self.send_error(name.as_ref(), Failure::response_cancelled());
            self.log(waiting.origin, "cancelled", Usage::default(), 0, false);
        }
    }

    fn cancel_running(&mut self, key: TurnKey) {
        let is_saving = |running: &Running| matches!(running.stage, Stage::Saving(_));
        if self.running.get(&key).is_none_or(is_saving) {
            return;
        }
        let Some(Running { origin, stage }) = self.running.remove(&key) else {
            return;
        };
        match stage {
            Stage::Making(turn) => {
                self.actions.push_back(Action::Stop { turn: key });
                turn.cancel(&mut self.actions);
            }
            Stage::Loading(_) | Stage::Saving(_) => {
                self.send_error(origin.lane.as_ref(), Failure::response_cancelled());
            }
        }
        self.lanes.of(origin.lane.as_ref()).running = None;
        self.log(origin, "cancelled", Usage::default(), 0, false);
    }

    fn log(&mut self, origin: Origin, outcome: &str, usage: Usage, turns: u64, stored: bool) {
        self.actions.push_back(Action::Ended {
            turn: origin.key,
            summary: TurnSummary {
                id: origin.id,
                model: origin.model.as_ref().to_owned(),
                outcome: outcome.to_owned(),
                usage,
                turns,
                stored,
            },
        });
    }

    fn send_error(&mut self, lane: Option<&LaneName>, failure: Failure) {
        self.actions
            .push_back(Action::Send(Event::error(lane, failure)));
    }

    fn too_old(&self) -> Failure {
        Failure::connection_limit_reached(self.limits.connection_age.unwrap_or_default())
    }

    /// Stops everything but what is being saved, which is complete and only waits for its commit.
    fn stop_all(&mut self, why: Why) {
        self.phase = Phase::Closing(why);
        for (key, Running { origin, stage }) in mem::take(&mut self.running) {
            match (stage, why) {
                (stage @ Stage::Saving(_), _) => {
                    self.running.insert(key, Running { origin, stage });
                }
                (Stage::Loading(_), Why::Age) => self.refuse(origin, self.too_old()),
                (Stage::Loading(_), Why::Drain) => {
                    self.refuse(origin, Failure::server_shutting_down());
                }
                (Stage::Making(turn), _) => {
                    self.actions.push_back(Action::Stop { turn: key });
                    let failure = match why {
                        Why::Drain => Failure::server_shutting_down(),
                        Why::Age if turn.is_started() => Failure::server_error(
                            "The connection reached its age limit before the response was done.",
                        ),
                        Why::Age => self.too_old(),
                    };
                    self.fail(origin, turn, failure);
                }
            }
        }
    }

    fn close(&mut self, why: Why) {
        self.phase = Phase::Closed;
        if self.transport == Transport::Http {
            return;
        }
        let reason = match why {
            Why::Age => {
                self.send_error(None, self.too_old());
                "connection age limit"
            }
            Why::Drain => "server shutdown",
        };
        self.actions.push_back(Action::Close { code: 1001, reason });
    }
}

impl Finished {
    /// What the store gets, unless the response is not to be stored.
    fn record(&self) -> Option<StoredResponse> {
        Some(StoredResponse {
            id: self.chain.id().clone(),
            response: self.terminal.response().filter(|_| self.turn.is_stored())?,
            chain: self.chain.clone(),
        })
    }
}
