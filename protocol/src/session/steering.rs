//! Steers, from their arrival to the turn that takes them.
//!
//! The target of a steer is a response that is being made. It keeps what it accepts until it has
//! ended. If that went well, the steers stay with its lane, and the next turn there that continues
//! the response puts them in front of its input. It is
//!
//! * the create at the head of the lane's queue, if it continues the response;
//! * else one that the client has yet to send, if the response made calls that must be answered
//!   (`response.steer.pending`);
//! * else an *automatic successor*, which the session puts at the head of the queue, with the
//!   settings of the target.
//!
//! With that turn's `response.created` the steers are applied and forgotten. Whatever comes in
//! between, each of them is told once that it failed.

use crate::action::{Action, TurnKey};
use crate::chain::Chain;
use crate::create::CreateRequest;
use crate::event::Stamp;
use crate::failure::Failure;
use crate::id::{IdSource, ResponseId};
use crate::lane::{LaneName, Origin, Waiting};
use crate::session::{Now, Phase, Running, Session, Stage};
use crate::steer::{Owed, Steer, SteerRefusal};
use crate::turn::Turn;

impl Session {
    pub(super) fn steer(&mut self, now: Now, ids: &mut dyn IdSource, steer: Steer) {
        let bytes = self.waiting_bytes() + steer.bytes;
        let has_room = |turn: &Turn| {
            turn.steers().len() < self.limits.pending_steers && bytes <= self.limits.queued_bytes
        };
        // A target must not be cut short for a successor that would not be started.
        let takes_successors = self.phase == Phase::Open;
        let mut running = self.running.values_mut();
        let running = running.find(|running| running.origin.id == steer.target);
        let (lane, refusal) = match running {
            Some(Running {
                stage: Stage::Making(turn),
                origin,
            }) if turn.is_started() => {
                let refusal = match steer.problem() {
                    None if !turn.is_steerable() => Some(SteerRefusal::NotSupported),
                    None if !takes_successors => {
                        Some(SteerRefusal::NoSuccessor("The connection is about to end."))
                    }
                    None if !has_room(turn) => Some(SteerRefusal::TooMany),
                    refusal => refusal,
                };
                if let Some(refusal) = refusal {
                    return turn.refuse_steer(now, &steer, refusal, &mut self.actions);
                }
                let is_first = turn.steers().is_empty();
                turn.accept_steer(now, ids, steer, &mut self.actions);
                if is_first {
                    let turn = origin.key;
                    self.actions.push_back(Action::WrapUp { turn });
                }
                return;
            }
            Some(running) => {
                let refusal = match running.stage {
                    Stage::Saving(_) => SteerRefusal::AlreadyCompleted,
                    Stage::Loading(_)
                    | Stage::Referring(_)
                    | Stage::Matching(_)
                    | Stage::Queued(_)
                    | Stage::Making(_) => SteerRefusal::NotActive,
                };
                (running.origin.lane.as_ref(), refusal)
            }
            None => self.find_resting(&steer.target),
        };
        // No count is kept of what does not run.
        let stamp = Stamp {
            sequence_number: 0,
            lane,
        };
        let event = steer.failed(stamp, refusal);
        self.actions.push_back(Action::Send(event));
    }

    /// The lane of a response that does not run, and why it cannot be steered.
    fn find_resting(&self, id: &ResponseId) -> (Option<&LaneName>, SteerRefusal<'static>) {
        if let Some((lane, _)) = self.lanes.owner(id) {
            return (lane, SteerRefusal::AlreadyCompleted);
        }
        for (name, lane) in self.lanes.iter() {
            if lane.queue.iter().any(|waiting| waiting.origin.id == *id) {
                return (name, SteerRefusal::NotActive);
            }
        }
        (None, SteerRefusal::NotFound)
    }

    /// Bytes of the messages of all creates and steers that wait for something.
    pub(super) fn waiting_bytes(&self) -> usize {
        let lanes = self.lanes.iter().filter_map(|(_, lane)| lane.owed.as_ref());
        let running = self.running.values().map(Running::steer_bytes);
        self.queued_bytes + lanes.map(Owed::bytes).sum::<usize>() + running.sum::<usize>()
    }

    /// Finds the next turn for the steers of a response that has just become its lane's latest.
    pub(super) fn hand_on(
        &mut self,
        ids: &mut dyn IdSource,
        name: Option<&LaneName>,
        chain: Chain,
        mut owed: Owed,
        request: Box<CreateRequest>,
    ) {
        let lane = self.lanes.of(name);
        let head = lane.queue.front_mut();
        if !head.is_some_and(|head| head.takes_steers_of(chain.id())) {
            if chain.required_calls().next().is_some() {
                owed.wait(&chain, &mut self.actions);
            } else {
                // A warm-up that was sent ahead would no longer find its parent.
                if let Some(head) = lane.queue.front_mut()
                    && head.origin.parent.as_ref() == Some(chain.id())
                {
                    head.pinned.get_or_insert_with(|| chain.clone());
                }
                lane.queue.push_front(Waiting {
                    origin: Origin {
                        key: TurnKey(self.next_key),
                        id: ResponseId::mint(ids),
                        lane: name.cloned(),
                        parent: Some(chain.id().clone()),
                        model: request.model.clone(),
                        tools_not_offered: request.tools_not_offered.clone(),
                        is_automatic: true,
                        steers: None,
                    },
                    request: Ok(Box::new(request.without_input())),
                    pinned: Some(chain),
                    bytes: 0,
                });
                self.next_key += 1;
            }
        }
        self.lanes.of(name).owed = Some(owed);
    }

    /// Gives a create that leaves its queue the steers of its parent. A warm-up leaves them where
    /// they are, and so does a fork, or a create that is refused.
    pub(super) fn take_steers(
        &mut self,
        origin: &mut Origin,
        request: &Result<Box<CreateRequest>, Failure>,
    ) {
        if let Some(parent) = &origin.parent
            && request.as_ref().is_ok_and(|request| request.generate)
        {
            origin.steers = self.lanes.of(origin.lane.as_ref()).take_owed(parent);
        }
    }

    pub(super) fn fail_steers(&mut self, steers: Option<Owed>, refusal: SteerRefusal<'_>) {
        if let Some(steers) = steers {
            steers.fail(refusal, &mut self.actions);
        }
    }

    /// Fails what still waits for a create of the client when the connection closes.
    pub(super) fn fail_all_steers(&mut self) {
        for lane in self.lanes.iter_mut() {
            if let Some(steers) = lane.owed.take() {
                steers.fail(SteerRefusal::NotContinued, &mut self.actions);
            }
        }
    }
}

impl Running {
    /// Bytes of the messages of the steers that this turn keeps, or is going to apply.
    fn steer_bytes(&self) -> usize {
        let own = match &self.stage {
            Stage::Loading(_) | Stage::Referring(_) | Stage::Matching(_) | Stage::Queued(_) => 0,
            Stage::Making(turn) => turn.steers().bytes(),
            Stage::Saving(finished) => finished.steer_bytes(),
        };
        own + self.origin.steers.as_ref().map_or(0, Owed::bytes)
    }
}
