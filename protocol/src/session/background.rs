//! Turns in the background, from their first record to the start of their engine.
//!
//! Such a turn is stored before anybody hears of it, so that whoever does can ask for it. From
//! then on its record says how far it is, and its end is stored whatever it is.

use crate::action::Action;
use crate::engine::TurnRequest;
use crate::failure::Failure;
use crate::id::{IdSource, ResponseId};
use crate::lane::Origin;
use crate::message::CancelTarget;
use crate::session::{Now, Running, SaveFailed, Session, Stage};
use crate::turn::{Announcement, Turn};

/// A turn whose first record is being stored.
#[derive(Debug)]
pub(super) struct Queued {
    making: Box<Turn>,
    asked: Box<TurnRequest>,
    announcement: Announcement,
    /// Why its engine is not to be started once it is stored.
    stop: Option<Stop>,
}

#[derive(Debug)]
pub(super) enum Stop {
    Cancelled,
    Failed(Failure),
}

impl Session {
    /// Cancels a response, as `response.cancel` does on a socket. One that is not being made any
    /// more, or is being stored, stays as it is.
    pub fn handle_cancel(&mut self, now: Now, _ids: &mut dyn IdSource, id: &ResponseId) {
        self.grow_old(now);
        self.cancel(&CancelTarget::Response(id.clone()));
        self.go_on(now);
    }

    /// Starts the engine of a turn, or stores it first if it is made in the background.
    pub(super) fn ask(&mut self, origin: Origin, mut making: Box<Turn>, asked: Box<TurnRequest>) {
        let Some((record, announcement)) = making.queue() else {
            return self.start_engine(origin, making, asked);
        };
        let turn = origin.key;
        self.actions.push_back(Action::Save { turn, record });
        let stage = Stage::Queued(Box::new(Queued {
            making,
            asked,
            announcement,
            stop: None,
        }));
        self.running.insert(turn, Running { origin, stage });
    }

    /// The first record of a turn is stored, or cannot be.
    pub(super) fn begin_queued(
        &mut self,
        now: Now,
        origin: Origin,
        queued: Queued,
        saved: Result<(), SaveFailed>,
    ) {
        let Queued {
            mut making,
            asked,
            announcement,
            stop,
        } = queued;
        if let Err(refusal) = saved {
            return self.refuse(origin, refusal.into());
        }
        making.announce_queue(now, announcement, &mut self.actions);
        match stop {
            None => self.start_engine(origin, making, asked),
            Some(Stop::Cancelled) => self.end_cancelled(origin, making),
            Some(Stop::Failed(failure)) => self.fail(origin, making, failure),
        }
    }
}

impl Queued {
    /// Has the turn end as soon as it is stored. The first reason counts.
    pub(super) fn stop(&mut self, why: Stop) {
        self.stop.get_or_insert(why);
    }
}
