//! Creates, from their arrival to the start of the engine.

use std::sync::Arc;

use crate::action::{Action, TurnKey};
use crate::chain::Chain;
use crate::create::CreateRequest;
use crate::engine::TurnRequest;
use crate::failure::Failure;
use crate::id::{IdSource, ResponseId};
use crate::item::Item;
use crate::lane::{Origin, Waiting};
use crate::message::Create;
use crate::session::{Now, Phase, Running, Session, Stage, Why};
use crate::tool::NotOffered;
use crate::turn::Turn;

impl Session {
    pub(super) fn admit(&mut self, ids: &mut dyn IdSource, create: Create, bytes: usize) {
        let lane = match self
            .lanes
            .open(create.lane.as_ref(), self.limits.lane_names)
        {
            Ok(lane) => lane,
            Err(failure) => return self.send_error(create.lane.as_ref(), failure),
        };
        let must_wait =
            lane.running.is_some() || self.running.len() >= self.limits.running_responses;
        let is_full = |session: &Self| {
            session.queued >= session.limits.queued_creates
                || session.waiting_bytes() + bytes > session.limits.queued_bytes
        };
        if must_wait && is_full(self) {
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
        let (model, tools_not_offered) = match &request {
            Ok(request) => (request.model.clone(), request.tools_not_offered.clone()),
            Err(_) => (Arc::default(), NotOffered::default()),
        };
        let origin = Origin {
            key: TurnKey(self.next_key),
            id: ResponseId::mint(ids),
            lane,
            parent,
            model,
            tools_not_offered,
            is_automatic: false,
            steers: None,
        };
        let lane = self.lanes.of(origin.lane.as_ref());
        lane.queue.push_back(Waiting {
            origin,
            request,
            pinned,
            bytes,
        });
        self.next_key += 1;
        self.queued += 1;
        self.queued_bytes += bytes;
    }

    /// Starts what can start, and closes the connection when it has nothing left to do.
    pub(super) fn go_on(&mut self, now: Now) {
        while let Some(waiting) = self.next_waiting() {
            self.start(now, waiting);
        }
        match self.phase {
            Phase::Aged { .. } if self.is_idle() => self.close(Why::Age),
            Phase::Closing(why) if self.is_idle() => self.close(why),
            _ => {}
        }
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.lanes.iter().all(|(_, lane)| lane.queue.is_empty())
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
        let waiting = lane.queue.pop_front()?;
        self.leave_queue(&waiting);
        Some(waiting)
    }

    /// Counts a create out that was taken from its queue.
    pub(super) fn leave_queue(&mut self, waiting: &Waiting) {
        if !waiting.origin.is_automatic {
            self.queued -= 1;
            self.queued_bytes -= waiting.bytes;
        }
    }

    fn start(&mut self, now: Now, waiting: Waiting) {
        let Waiting {
            mut origin,
            request,
            pinned,
            ..
        } = waiting;
        self.take_steers(&mut origin, &request);
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
        if let Some(id) = request.conversation.clone() {
            return self.open_conversation(origin, id, request);
        }
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

    /// Whether the chain has room for this input.
    pub(super) fn check_chain_bytes(
        &self,
        parent: Option<&Chain>,
        input: &[Item],
    ) -> Result<(), Failure> {
        let before = parent.map_or(0, Chain::bytes);
        let added: usize = input.iter().map(Item::size).sum();
        if before + added as u64 > self.limits.chain_bytes {
            return Err(Failure::chain_too_large(self.limits.chain_bytes));
        }
        Ok(())
    }

    /// Starts a turn whose parent and whole input are there.
    pub(super) fn make(
        &mut self,
        now: Now,
        origin: Origin,
        mut request: Box<CreateRequest>,
        parent: Option<Chain>,
    ) {
        if let Some(steers) = &origin.steers {
            request.input = steers.in_front_of(&request.input);
        }
        if let Err(failure) = self.check_chain_bytes(parent.as_ref(), &request.input) {
            return self.refuse(origin, failure);
        }
        let (id, lane) = (origin.id.clone(), origin.lane.clone());
        let sealer = Arc::clone(&self.sealer);
        match Turn::start(now, id, lane, parent, request, sealer, &self.limits) {
            Ok((making, asked)) => {
                let making = Box::new(making);
                let names_nothing = origin.parent.is_none() && !making.is_in_conversation();
                if self.matches_histories && names_nothing {
                    return self.look_for_history(origin, making, asked);
                }
                self.ask(origin, making, asked);
            }
            Err(failure) => self.refuse(origin, failure),
        }
    }

    /// Starts the engine for what the turn is asked for.
    pub(super) fn start_engine(
        &mut self,
        origin: Origin,
        mut making: Box<Turn>,
        asked: Box<TurnRequest>,
    ) {
        let turn = origin.key;
        self.actions.push_back(Action::Start {
            turn,
            lane: origin.lane.clone(),
            request: making.first_run(asked),
        });
        let stage = Stage::Making(making);
        self.running.insert(turn, Running { origin, stage });
    }
}
