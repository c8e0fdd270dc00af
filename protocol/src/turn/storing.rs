//! Storing: what a store is given of a turn, at its end, and on its way if nobody may be waiting.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::action::Action;
use crate::chain::{Chain, EngineState};
use crate::event::Event;
use crate::response::Moment;
use crate::session::Now;
use crate::stored::{Permit, Status, StoredResponse};
use crate::turn::{Told, Turn};

/// The first two events of a turn in the background, to be sent once it is stored.
#[derive(Debug)]
pub(crate) struct Announcement([Event; 2]);

impl Turn {
    /// Whether the turn goes on when nobody waits for it.
    pub(crate) fn is_in_background(&self) -> bool {
        self.request.background
    }

    /// None if the response must not be stored.
    pub(crate) fn permit(&self) -> Option<Permit> {
        self.request.permit
    }

    /// Puts a turn in the background, before its engine is asked to start. None if it is not to be
    /// made there.
    pub(crate) fn queue(&mut self) -> Option<(StoredResponse, Announcement)> {
        if !self.is_in_background() {
            return None;
        }
        let created = self.lifecycle("response.created", &Moment::Queued);
        let queued = self.lifecycle("response.queued", &Moment::Queued);
        let record = self.record(Status::Queued, &queued, self.link(None))?;
        Some((record, Announcement([created, queued])))
    }

    /// Tells that the turn waits for its engine.
    pub(crate) fn announce_queue(
        &mut self,
        now: Now,
        Announcement(events): Announcement,
        actions: &mut VecDeque<Action>,
    ) {
        self.told = Told::Queued;
        self.silent_since = now.elapsed;
        actions.extend(events.map(Action::Send));
    }

    /// What a store is given of a turn in the background that its engine has begun.
    pub(super) fn progress(&self, in_progress: &Event) -> Option<StoredResponse> {
        let chain = self.is_in_background().then(|| self.link(None))?;
        self.record(Status::InProgress, in_progress, chain)
    }

    /// What a store is given of a turn that did not end well: nothing, unless it was made in the
    /// background, where clients ask what has become of it.
    pub(crate) fn broken(&self, status: Status, terminal: &Event) -> Option<StoredResponse> {
        let chain = self.is_in_background().then(|| self.link(None))?;
        self.record(status, terminal, chain)
    }

    /// What a store is given of the turn as `event` shows it; none if it must not be stored.
    pub(crate) fn record(
        &self,
        status: Status,
        event: &Event,
        chain: Chain,
    ) -> Option<StoredResponse> {
        let (permit, text) = (self.permit()?, event.response_text()?);
        let created_at = self.response.created_at;
        let mut record = StoredResponse::new(permit, status, created_at, text, chain);
        // A conversation goes on only with what can be continued.
        record.conversation = self.step.clone().filter(|_| status.is_continuable());
        Some(record)
    }

    /// The turn as a link of its chain, with the output that is done.
    pub(super) fn link(&self, state: Option<EngineState>) -> Chain {
        let mut carried = self.carried.clone();
        if !self.calls.is_empty() {
            let calls = carried.pending_calls.iter().chain(&self.calls);
            carried.pending_calls = calls.cloned().collect();
        }
        let (id, input) = (self.response.id.clone(), Arc::clone(&self.request.input));
        let output = self.output.clone().into();
        let compacted = self.compacting.as_ref().and_then(|it| it.compacted());
        match compacted {
            Some(asked) => {
                let whole = self.whole.as_ref().map(|whole| Arc::clone(whole.input()));
                let asked = whole.unwrap_or(asked);
                Chain::compacted(asked, id, input, output, carried, state)
            }
            None => Chain::append(self.parent.clone(), id, input, output, carried, state),
        }
    }
}
