//! Outbox: what one session wants sent, in a queue for each lane.
//!
//! Order is kept within a lane. Of the lanes that have something, the one goes next that was
//! served longest ago, so that busy lanes take turns and an idle one waits for none of them.

use std::collections::VecDeque;

use turnwire_protocol::event::Event;
use turnwire_protocol::lane::LaneName;

/// Bytes that may wait for the peer before a lane's engine is held back. What makes them is one
/// output more than that, so a lane holds little more: an output is at most what the engine has
/// gathered, and mostly one delta.
const MARK_BYTES: usize = 64 << 10;

/// Lanes that are remembered while they have nothing to send: more than a connection can have,
/// by default. There may be others, because errors name the lanes that they refuse.
const IDLE_LANES: usize = 64;

/// Events that an idle lane keeps room for, which is what a token makes at the most.
const IDLE_EVENTS: usize = 4;

#[derive(Default)]
pub(super) struct Outbox {
    /// The one that was served longest ago is first.
    lanes: VecDeque<Lane>,
    bytes: usize,
}

struct Lane {
    name: Option<LaneName>,
    events: VecDeque<Event>,
    bytes: usize,
}

impl Outbox {
    pub(super) fn push(&mut self, event: Event) {
        let bytes = event.json.len();
        let at = self.lanes.iter().position(|lane| lane.name == event.lane);
        let at = at.unwrap_or_else(|| self.open(event.lane.clone()));
        let lane = &mut self.lanes[at];
        lane.bytes += bytes;
        lane.events.push_back(event);
        self.bytes += bytes;
    }

    /// The next event to send, if one of that many bytes may be sent now.
    pub(super) fn pop_if(&mut self, fits: impl FnOnce(usize) -> bool) -> Option<Event> {
        let at = self.lanes.iter().position(|lane| !lane.events.is_empty())?;
        let event = self.lanes[at]
            .events
            .pop_front_if(|event| fits(event.json.len()))?;
        let mut lane = self.lanes.remove(at)?;
        lane.bytes -= event.json.len();
        if lane.events.is_empty() {
            lane.events.shrink_to(IDLE_EVENTS);
        }
        self.bytes -= event.json.len();
        self.lanes.push_back(lane);
        Some(event)
    }

    /// Bytes that wait in all queues; 0 if there is no event.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether something of this lane waits for the peer.
    pub(super) fn holds(&self, lane: Option<&LaneName>) -> bool {
        self.find(lane).is_some_and(|lane| !lane.events.is_empty())
    }

    /// Whether this lane has so much to send that its engine has to wait.
    pub(super) fn is_full(&self, lane: Option<&LaneName>) -> bool {
        // Nothing has to be looked for while the peer keeps up.
        self.bytes > MARK_BYTES && self.find(lane).is_some_and(|lane| lane.bytes > MARK_BYTES)
    }

    fn find(&self, name: Option<&LaneName>) -> Option<&Lane> {
        self.lanes.iter().find(|lane| lane.name.as_ref() == name)
    }

    /// Adds a lane that was never served, so it is first.
    fn open(&mut self, name: Option<LaneName>) -> usize {
        if self.lanes.len() >= IDLE_LANES
            && let Some(idle) = self.lanes.iter().position(|lane| lane.events.is_empty())
        {
            self.lanes.remove(idle);
        }
        self.lanes.push_front(Lane {
            name,
            events: VecDeque::new(),
            bytes: 0,
        });
        0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use turnwire_protocol::action::Action;
    use turnwire_protocol::limits::Limits;
    use turnwire_protocol::seal::Transparent;
    use turnwire_protocol::session::{Now, Session, Transport};

    use super::*;
    use crate::clock::RandomIds;

    /// An event of this lane that says `text`.
    fn event(lane: &str, text: &'static str) -> Event {
        let now = Now {
            elapsed: Duration::ZERO,
            unix_seconds: 0,
        };
        let sealer = Arc::new(Transparent);
        let mut session = Session::new(Transport::WebSocket, Limits::default(), sealer, None, now);
        let refused = format!(r#"{{"type":"response.create","stream_id":"{lane}"}}"#);
        session.handle_message(now, &mut RandomIds, refused.into());
        let Some(Action::Send(mut event)) = session.poll_action() else {
            panic!("a create without a model is answered by an error");
        };
        assert_eq!(event.lane.as_ref().map(LaneName::as_str), Some(lane));
        event.json = text.into();
        event
    }

    fn pop(outbox: &mut Outbox) -> String {
        let event = outbox.pop_if(|_| true).expect("an event is left");
        String::from_utf8(event.json.into()).expect("text")
    }

    #[test]
    fn the_lane_that_was_served_longest_ago_goes_next() {
        let mut outbox = Outbox::default();
        for text in ["a1", "a2", "a3"] {
            outbox.push(event("a", text));
        }
        assert_eq!(pop(&mut outbox), "a1");
        for text in ["b1", "b2", "b3"] {
            outbox.push(event("b", text));
        }
        // It was idle, so it waits for nothing of the other.
        assert_eq!(["b1", "a2", "b2"], [(); 3].map(|()| pop(&mut outbox)));
        outbox.push(event("c", "c1"));
        assert_eq!(["c1", "a3", "b3"], [(); 3].map(|()| pop(&mut outbox)));
        // All are idle now, and all have been served: by whom it is longest ago.
        for (lane, text) in [("b", "b4"), ("a", "a4"), ("c", "c2")] {
            outbox.push(event(lane, text));
        }
        assert_eq!(["c2", "a4", "b4"], [(); 3].map(|()| pop(&mut outbox)));
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn an_event_that_does_not_fit_keeps_its_place() {
        let mut outbox = Outbox::default();
        outbox.push(event("a", "large"));
        outbox.push(event("b", "b"));
        assert_eq!(pop(&mut outbox), "b");
        outbox.push(event("b", "b"));
        assert!(outbox.pop_if(|bytes| bytes < 5).is_none());
        assert_eq!((pop(&mut outbox).as_str(), outbox.bytes()), ("large", 1));
    }

    #[test]
    fn a_lane_is_full_beyond_its_mark_and_no_other_is() {
        let mut outbox = Outbox::default();
        let [mut half, other] = [event("a", ""), event("b", "b")];
        let (a, b) = (half.lane.clone(), other.lane.clone());
        half.json = vec![b'x'; MARK_BYTES / 2].into();
        outbox.push(half.clone());
        outbox.push(half);
        outbox.push(other);
        assert!(!outbox.is_full(a.as_ref()));
        outbox.push(event("a", "x"));
        assert!(outbox.is_full(a.as_ref()));
        assert!(!outbox.is_full(b.as_ref()) && outbox.holds(b.as_ref()));
        assert!(!outbox.is_full(None) && !outbox.holds(None));
    }

    #[test]
    fn lanes_that_were_refused_are_forgotten() {
        let mut outbox = Outbox::default();
        for index in 0..10 * IDLE_LANES {
            outbox.push(event(&index.to_string(), "x"));
            pop(&mut outbox);
        }
        assert_eq!(outbox.lanes.len(), IDLE_LANES);
    }
}
