//! Event: one message to the client, encoded once.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use crate::action::Action;
use crate::failure::Failure;
use crate::item::Item;
use crate::json::Object;
use crate::lane::LaneName;
use crate::response::{Moment, ResponseObject};
use crate::stored::ResponseText;

/// One server event as JSON, with what a transport needs to know about it.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its `type`, for the `event:` line of SSE.
    pub name: &'static str,
    pub json: Bytes,
    /// Its `stream_id`. None for the default lane, and for what is about the connection.
    pub lane: Option<LaneName>,
    /// Where in `json` the response object stands, if the event has one.
    response: Option<Place>,
    /// Set on `error` events, and where a response was made that could not be kept, so that HTTP
    /// can answer with the failure's status.
    pub failure: Option<Box<Failure>>,
}

/// Where a response object stands, and the items of its output.
#[derive(Clone, Debug)]
struct Place {
    whole: Range<usize>,
    output: Range<usize>,
}

impl Event {
    /// The response object inside, as JSON. A slice, not a copy.
    pub fn response(&self) -> Option<Bytes> {
        let place = self.response.as_ref()?;
        Some(self.json.slice(place.whole.clone()))
    }

    /// The response object inside without its output items. Slices, not copies.
    pub(crate) fn response_text(&self) -> Option<ResponseText> {
        let Place { whole, output } = self.response.as_ref()?;
        Some(ResponseText {
            before: self.json.slice(whole.start..output.start),
            after: self.json.slice(output.end..whole.end),
        })
    }

    /// Whether this ends a turn: `completed`, `incomplete`, `failed`, or an `error`.
    pub fn is_terminal(&self) -> bool {
        matches!(
            self.name,
            "response.completed" | "response.incomplete" | "response.failed" | "error"
        )
    }

    /// An event with members of its own, which `write` appends. `capacity` is for those.
    pub(crate) fn new(
        stamp: Stamp<'_>,
        name: &'static str,
        capacity: usize,
        write: impl FnOnce(&mut Object<'_>),
    ) -> Self {
        let mut json = Vec::with_capacity(192 + capacity);
        let mut object = Object::open(&mut json);
        stamp.write(&mut object, name);
        write(&mut object);
        object.close();
        Self {
            name,
            json: json.into(),
            lane: stamp.lane.cloned(),
            response: None,
            failure: None,
        }
    }

    /// `response.created` and so on, with the response object as it is at that moment.
    pub(crate) fn lifecycle(
        stamp: Stamp<'_>,
        name: &'static str,
        response: &ResponseObject,
        moment: &Moment<'_>,
        output: &[Item],
    ) -> Self {
        let mut place = None;
        let event = Self::new(stamp, name, response.size_hint(output), |object| {
            let json = object.name("response");
            let start = json.len();
            let output = response.write(json, moment, output);
            let whole = start..json.len();
            place = Some(Place { whole, output });
        });
        let failure = match moment {
            Moment::Failed(failure) if failure.is_of_storage() => {
                Some(Box::new(Failure::clone(failure)))
            }
            _ => None,
        };
        Self {
            response: place,
            failure,
            ..event
        }
    }

    /// An `error` event. Its number is 0, because no response was started.
    pub(crate) fn error(lane: Option<&LaneName>, failure: Failure) -> Self {
        let stamp = Stamp {
            sequence_number: 0,
            lane,
        };
        let event = Self::new(stamp, "error", 128 + failure.message.len(), |object| {
            object.value("status", &failure.status);
            failure.write_error(object);
            failure.write_headers(object);
        });
        Self {
            failure: Some(Box::new(failure)),
            ..event
        }
    }
}

/// What every event begins with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stamp<'a> {
    pub(crate) sequence_number: u64,
    pub(crate) lane: Option<&'a LaneName>,
}

impl Stamp<'_> {
    fn write(self, object: &mut Object<'_>, name: &str) {
        object.value("type", name);
        object.value("sequence_number", &self.sequence_number);
        if let Some(lane) = self.lane {
            object.value("stream_id", lane.as_str());
        }
    }
}

/// The lane of one response's events, and their count.
#[derive(Debug)]
pub(crate) struct Sequence {
    lane: Option<LaneName>,
    next: u64,
}

impl Sequence {
    pub(crate) fn new(lane: Option<LaneName>) -> Self {
        Self { lane, next: 0 }
    }

    pub(crate) fn lane(&self) -> Option<&LaneName> {
        self.lane.as_ref()
    }

    /// How many events were sent, or are being handed out.
    pub(crate) fn sent(&self) -> u64 {
        self.next
    }

    /// The number of the next event, which stays the next one.
    pub(crate) fn peek(&self) -> Stamp<'_> {
        Stamp {
            sequence_number: self.next,
            lane: self.lane.as_ref(),
        }
    }

    /// The number of the next event, which must be sent.
    pub(crate) fn take(&mut self) -> Stamp<'_> {
        let sequence_number = self.next;
        self.next += 1;
        Stamp {
            sequence_number,
            lane: self.lane.as_ref(),
        }
    }
}

/// Where the events of one response go.
#[derive(Debug)]
pub(crate) struct Outlet<'a> {
    pub(crate) sequence: &'a mut Sequence,
    pub(crate) actions: &'a mut VecDeque<Action>,
}

impl Outlet<'_> {
    /// Sends the response's next event. `capacity` is for what comes on top of the usual members.
    pub(crate) fn event(
        &mut self,
        name: &'static str,
        capacity: usize,
        write: impl FnOnce(&mut Object<'_>),
    ) {
        let event = Event::new(self.sequence.take(), name, capacity, write);
        self.actions.push_back(Action::Send(event));
    }
}
