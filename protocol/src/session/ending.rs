//! The ends of turns, and of the connection.

use std::mem;

use crate::action::{Action, TurnKey, TurnSummary};
use crate::chain::{Chain, EngineState};
use crate::engine::{FinishReason, Usage};
use crate::event::Event;
use crate::failure::Failure;
use crate::id::IdSource;
use crate::lane::{LaneName, Origin};
use crate::message::CancelTarget;
use crate::session::background::Stop;
use crate::session::{Now, Phase, Running, SaveFailed, Session, Stage, Transport, Why};
use crate::steer::{Owed, SteerRefusal};
use crate::stored::{Status, StoredResponse};
use crate::turn::Turn;

/// A turn that has ended. Its last event waits until the response is stored, if it is to be.
#[derive(Debug)]
pub(super) struct Finished {
    turn: Box<Turn>,
    terminal: Event,
    end: End,
}

#[derive(Debug)]
enum End {
    /// It can be continued.
    Link(Link),
    /// It failed with this code, or was cancelled.
    Broken { outcome: &'static str },
}

#[derive(Debug)]
struct Link {
    status: Status,
    chain: Chain,
    usage: Usage,
}

impl Session {
    pub(super) fn finish(
        &mut self,
        now: Now,
        ids: &mut dyn IdSource,
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
        let status = match terminal.name {
            "response.completed" => Status::Completed,
            _ => Status::Incomplete,
        };
        let record = turn.record(status, &terminal, chain.clone());
        let end = End::Link(Link {
            status,
            chain,
            usage,
        });
        let finished = Finished {
            turn,
            terminal,
            end,
        };
        match record {
            Some(record) => self.save(origin, finished, record),
            None => self.tell_end(ids, origin, finished),
        }
    }

    /// Stores a turn that has ended, before its end is told.
    fn save(&mut self, origin: Origin, finished: Finished, record: StoredResponse) {
        let turn = origin.key;
        self.actions.push_back(Action::Save { turn, record });
        let stage = Stage::Saving(Box::new(finished));
        self.running.insert(turn, Running { origin, stage });
    }

    pub(super) fn end_save(
        &mut self,
        ids: &mut dyn IdSource,
        origin: Origin,
        mut finished: Finished,
        saved: Result<(), SaveFailed>,
    ) {
        match (saved, &finished.end) {
            (Ok(()), _) => self.tell_end(ids, origin, finished),
            (Err(refusal), End::Link(_)) => self.fail(origin, finished.turn, refusal.into()),
            (Err(refusal), End::Broken { .. }) => {
                // Whoever asks for it must not be told another end.
                let failure = Failure::from(refusal);
                let outcome = failure.code;
                finished.terminal = finished.turn.fail(&failure, &mut self.actions);
                finished.end = End::Broken { outcome };
                self.tell_end(ids, origin, finished);
            }
        }
    }

    /// Sends the last event of a turn.
    fn tell_end(&mut self, ids: &mut dyn IdSource, origin: Origin, finished: Finished) {
        let Finished {
            turn,
            terminal,
            end,
        } = finished;
        match end {
            End::Link(link) => self.complete(ids, origin, turn, terminal, link),
            End::Broken { outcome } => self.tell_broken(origin, turn, terminal, outcome),
        }
    }

    /// Sends the last event of a turn that ended well. Its lane goes on from it.
    fn complete(
        &mut self,
        ids: &mut dyn IdSource,
        origin: Origin,
        mut turn: Box<Turn>,
        terminal: Event,
        link: Link,
    ) {
        let Link {
            status,
            chain,
            usage,
        } = link;
        let name = origin.lane.clone();
        let lane = self.lanes.of(name.as_ref());
        lane.running = None;
        let left_behind = lane.advance(chain.clone(), turn.is_warm_up());
        if let Some(history) = turn.history_of(&chain) {
            let chain = chain.clone();
            self.actions.push_back(Action::Keep { history, chain });
        }
        turn.send_terminal(terminal, &mut self.actions);
        let stored = turn.permit().is_some();
        self.log(origin, status.as_str(), usage, chain.turns(), stored);
        self.fail_steers(left_behind, SteerRefusal::NotContinued);
        if let Some((owed, request)) = turn.into_steers() {
            self.hand_on(ids, name.as_ref(), chain, owed, request);
        }
    }

    /// Ends a turn in whatever stage it is.
    pub(super) fn end_early(&mut self, key: TurnKey, failure: Failure) {
        if let Some(Running { origin, stage }) = self.running.remove(&key) {
            match stage {
                Stage::Loading(_) | Stage::Referring(_) | Stage::Matching(_) => {
                    self.refuse(origin, failure);
                }
                Stage::Queued(mut queued) => {
                    queued.stop(Stop::Failed(failure));
                    let stage = Stage::Queued(queued);
                    self.running.insert(key, Running { origin, stage });
                }
                Stage::Making(turn) => self.fail(origin, turn, failure),
                Stage::Saving(finished) => self.fail(origin, finished.turn, failure),
            }
        }
    }

    /// Ends a turn whose engine was asked to start, or is not to be any more.
    pub(super) fn fail(&mut self, origin: Origin, mut turn: Box<Turn>, failure: Failure) {
        if !turn.is_started() {
            return self.refuse(origin, failure);
        }
        let left_behind = self.evict_parent(&origin);
        let terminal = turn.fail(&failure, &mut self.actions);
        self.end_broken(origin, turn, Status::Failed, terminal, failure.code);
        self.fail_steers(left_behind, SteerRefusal::NotContinued);
    }

    /// Ends a turn that was cancelled after it had started.
    pub(super) fn end_cancelled(&mut self, origin: Origin, mut turn: Box<Turn>) {
        let terminal = turn.cancel(&mut self.actions);
        self.end_broken(origin, turn, Status::Cancelled, terminal, "cancelled");
    }

    fn end_broken(
        &mut self,
        origin: Origin,
        turn: Box<Turn>,
        status: Status,
        terminal: Event,
        outcome: &'static str,
    ) {
        match turn.broken(status, &terminal) {
            Some(record) => {
                let end = End::Broken { outcome };
                let finished = Finished {
                    turn,
                    terminal,
                    end,
                };
                self.save(origin, finished, record);
            }
            None => self.tell_broken(origin, turn, terminal, outcome),
        }
    }

    /// Sends the last event of a turn that becomes no part of a chain.
    fn tell_broken(
        &mut self,
        origin: Origin,
        mut turn: Box<Turn>,
        terminal: Event,
        outcome: &'static str,
    ) {
        turn.send_terminal(terminal, &mut self.actions);
        self.end_without_link(origin, outcome);
        let owed = turn.into_steers().map(|(owed, _)| owed);
        self.fail_steers(owed, SteerRefusal::NotActive);
    }

    /// Ends a turn that has no response.
    pub(super) fn refuse(&mut self, origin: Origin, failure: Failure) {
        // What a client did not ask for must not cost it the response that it could continue.
        let left_behind = match origin.is_automatic {
            true => None,
            false => self.evict_parent(&origin),
        };
        self.turn_away(origin, failure.code, failure);
        self.fail_steers(left_behind, SteerRefusal::NotContinued);
    }

    /// A turn that fails takes its parent with it, if its own lane keeps that: the state behind it
    /// may be damaged. The parent of a fork stays with its lane. Returns the steers that were for
    /// the parent.
    fn evict_parent(&mut self, origin: &Origin) -> Option<Owed> {
        let lane = self.lanes.of(origin.lane.as_ref());
        lane.evict(origin.parent.as_ref()?)
    }

    /// Tells why a turn has no response: those who sent its create and those who steered.
    fn turn_away(&mut self, mut origin: Origin, outcome: &str, failure: Failure) {
        let steers = origin.steers.take();
        let why = failure.message.clone();
        if !origin.is_automatic {
            self.send_error(origin.lane.as_ref(), failure);
        }
        self.end_without_link(origin, outcome);
        self.fail_steers(steers, SteerRefusal::NoSuccessor(&why));
    }

    /// Ends a turn that becomes no part of a chain.
    fn end_without_link(&mut self, origin: Origin, outcome: &str) {
        self.lanes.of(origin.lane.as_ref()).running = None;
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
                } else if let Some(mut waiting) = lane.queue.pop_front() {
                    // Nothing of this lane runs, so its first create waits for other lanes to end.
                    self.leave_queue(&waiting);
                    self.take_steers(&mut waiting.origin, &waiting.request);
                    let failure = Failure::response_cancelled();
                    self.turn_away(waiting.origin, "cancelled", failure);
                }
            }
        }
    }

    fn cancel_running(&mut self, key: TurnKey) {
        match self.running.get_mut(&key).map(|running| &mut running.stage) {
            None | Some(Stage::Saving(_)) => return,
            Some(Stage::Queued(queued)) => return queued.stop(Stop::Cancelled),
            Some(_) => {}
        }
        let Some(Running { origin, stage }) = self.running.remove(&key) else {
            return;
        };
        if let Stage::Making(turn) = stage {
            self.actions.push_back(Action::Stop { turn: key });
            if turn.is_started() {
                return self.end_cancelled(origin, turn);
            }
        }
        self.turn_away(origin, "cancelled", Failure::response_cancelled());
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
                automatic: origin.is_automatic,
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
    /// What is queued comes to its end when that is stored.
    pub(super) fn stop_all(&mut self, why: Why) {
        self.phase = Phase::Closing(why);
        for (key, Running { origin, stage }) in mem::take(&mut self.running) {
            match (stage, why) {
                (Stage::Queued(mut queued), _) => {
                    queued.stop(Stop::Failed(Failure::server_shutting_down()));
                    let stage = Stage::Queued(queued);
                    self.running.insert(key, Running { origin, stage });
                }
                (stage @ Stage::Saving(_), _) => {
                    self.running.insert(key, Running { origin, stage });
                }
                (Stage::Loading(_) | Stage::Referring(_) | Stage::Matching(_), Why::Age) => {
                    self.refuse(origin, self.too_old());
                }
                (Stage::Loading(_) | Stage::Referring(_) | Stage::Matching(_), Why::Drain) => {
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
        self.fail_all_steers();
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
    /// Bytes of the messages of the steers that wait for it to be stored.
    pub(super) fn steer_bytes(&self) -> usize {
        self.turn.steers().bytes()
    }
}
