//! The ends of turns, and of the connection.

use std::mem;

use crate::action::{Action, StoredResponse, TurnKey, TurnSummary};
use crate::chain::{Chain, EngineState};
use crate::engine::{FinishReason, Usage};
use crate::event::Event;
use crate::failure::Failure;
use crate::lane::{LaneName, Origin};
use crate::message::CancelTarget;
use crate::session::{Now, Phase, Running, SaveFailed, Session, Stage, Transport, Why};
use crate::turn::Turn;

/// A turn that ended well. Its last event waits until the response is stored, if it is to be.
#[derive(Debug)]
pub(super) struct Finished {
    turn: Box<Turn>,
    terminal: Event,
    chain: Chain,
    usage: Usage,
}

impl Session {
    pub(super) fn finish(
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

    pub(super) fn end_save(
        &mut self,
        origin: Origin,
        finished: Finished,
        saved: Result<(), SaveFailed>,
    ) {
        match saved {
            Ok(()) => self.complete(origin, finished),
            Err(SaveFailed) => {
                let failure = Failure::server_error("The response could not be stored.");
                self.fail(origin, finished.turn, failure);
            }
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
    pub(super) fn end_early(&mut self, key: TurnKey, failure: Failure) {
        if let Some(Running { origin, stage }) = self.running.remove(&key) {
            match stage {
                Stage::Loading(_) | Stage::Referring(_) => self.refuse(origin, failure),
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
    pub(super) fn refuse(&mut self, origin: Origin, failure: Failure) {
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
    pub(super) fn cancel(&mut self, target: &CancelTarget) {
        match target {
            CancelTarget::Response(id) => {
                let mut origins = self.running.values().map(|running| &running.origin);
                if let Some(key) = origins
                    .find(|origin| origin.id == *id)
                    .map(|origin| origin.key)
                {
                    self.cancel_running(key);
                }
            }
            CancelTarget::Lane(name) => {
                let Some(lane) = self.lanes.get_mut(name.as_ref()) else {
                    return;
                };
                if let Some(key) = lane.running {
                    self.cancel_running(key);
                } else if let Some(waiting) = lane.queue.pop_front() {
                    // Nothing of this lane runs, so its first create waits for other lanes to end.
                    self.queued -= 1;
                    self.queued_bytes -= waiting.bytes;
                    self.send_error(name.as_ref(), Failure::response_cancelled());
                    self.log(waiting.origin, "cancelled", Usage::default(), 0, false);
                }
            }
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
            Stage::Loading(_) | Stage::Referring(_) | Stage::Saving(_) => {
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
                tools_not_offered: origin.tools_not_offered,
                outcome: outcome.to_owned(),
                usage,
                turns,
                stored,
            },
        });
    }

    pub(super) fn send_error(&mut self, lane: Option<&LaneName>, failure: Failure) {
        self.actions
            .push_back(Action::Send(Event::error(lane, failure)));
    }

    pub(super) fn too_old(&self) -> Failure {
        Failure::connection_limit_reached(self.limits.connection_age.unwrap_or_default())
    }

    /// Stops everything but what is being saved, which is complete and only waits for its commit.
    pub(super) fn stop_all(&mut self, why: Why) {
        self.phase = Phase::Closing(why);
        for (key, Running { origin, stage }) in mem::take(&mut self.running) {
            match (stage, why) {
                (stage @ Stage::Saving(_), _) => {
                    self.running.insert(key, Running { origin, stage });
                }
                (Stage::Loading(_) | Stage::Referring(_), Why::Age) => {
                    self.refuse(origin, self.too_old());
                }
                (Stage::Loading(_) | Stage::Referring(_), Why::Drain) => {
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

    pub(super) fn close(&mut self, why: Why) {
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
