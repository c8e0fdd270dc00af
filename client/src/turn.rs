//! Turn: a response being made, from its create to its end, across connections if need be.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;

use crate::create::Create;
use crate::error::Error;
use crate::event::Event;
use crate::failure::Failure;
use crate::http::Events;
use crate::json::Json;
use crate::lane::{Lane, Prepared};
use crate::link::{AGE_LIMIT, Gone, Link, NAME_LIMIT};
use crate::mailbox::Mailbox;
use crate::reconnect::is_loss;
use crate::response::Response;
use crate::session::{Repeat, Way};
use crate::turn_event::{SteerNotice, TurnEvent};

/// A response being made. Its events are read with [`Turn::next`].
///
/// Dropping it before its end cancels it on the server.
#[derive(Debug)]
pub struct Turn<'a> {
    lane: &'a mut Lane,
    create: Create,
    source: Source,
    /// The create that runs, or ran last, named a parent.
    has_parent: bool,
    /// The response that runs.
    id: Option<String>,
    given_out: GivenOut,
    /// Connections that were lost, or refused the turn because of their age or lanes.
    losses: u32,
    /// How the last one over HTTP was lost, until the pause that follows.
    lost: Option<Error>,
    steers: Vec<Steer>,
    /// A successor has begun, so that the create alone does not make this turn any more.
    steered: bool,
    /// To be cancelled as soon as its id is known.
    cancelled: bool,
    /// The response has ended; with steers left, a successor may follow.
    ended: bool,
    over: bool,
}

/// Where the events come from.
#[derive(Debug)]
enum Source {
    /// The create has yet to be sent.
    None,
    Socket {
        link: Arc<Link>,
        events: Mailbox,
    },
    Http(Box<Events>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum GivenOut {
    Nothing,
    /// That the response has begun.
    Beginning,
    Output,
}

#[derive(Debug)]
struct Steer {
    items: Vec<Json>,
    /// Given by the server when it accepts.
    id: Option<String>,
}

impl<'a> Turn<'a> {
    pub(crate) fn new(lane: &'a mut Lane, create: Create) -> Self {
        Self {
            lane,
            create,
            source: Source::None,
            has_parent: false,
            id: None,
            given_out: GivenOut::Nothing,
            losses: 0,
            lost: None,
            steers: Vec::new(),
            steered: false,
            cancelled: false,
            ended: false,
            over: false,
        }
    }

    /// The id of the response that runs, once it has begun.
    pub fn response_id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Sends the create on whichever way there is.
    pub(crate) async fn begin(&mut self) -> Result<(), Error> {
        loop {
            match self.lane.session.way(self.losses).await? {
                Way::Socket(link) => {
                    let Prepared {
                        message,
                        has_parent,
                    } = self.lane.prepare(&self.create, Some(link.serial));
                    let buffer = self.lane.session.settings().buffered_bytes;
                    let name = self.lane.name.clone();
                    if let Ok(events) = link.start(name, message, buffer).await {
                        self.has_parent = has_parent;
                        self.source = Source::Socket { link, events };
                        return Ok(());
                    }
                    self.losses += 1;
                }
                Way::Http => {
                    if !self.create.generate {
                        return Err(Error::NotOverHttp("a warm-up"));
                    }
                    let Prepared {
                        message,
                        has_parent,
                    } = self.lane.prepare(&self.create, None);
                    self.has_parent = has_parent;
                    if let Some(lost) = self.lost.take() {
                        self.lane.session.pause(self.losses - 1, lost).await?;
                    }
                    let http = self.lane.session.http();
                    match http.post_sse("responses", message).await {
                        Ok(events) => {
                            self.source = Source::Http(Box::new(events));
                            return Ok(());
                        }
                        Err(Error::Refused {
                            status,
                            headers,
                            body,
                        }) => {
                            let failure = Failure::from_http(status, &headers, &body);
                            self.take_failure(failure)?;
                        }
                        Err(error) if is_loss(&error) => self.take_loss(error)?,
                        // Whether there is another try is decided together with its pause.
                        Err(error) => {
                            self.losses += 1;
                            self.lost = Some(error);
                        }
                    }
                }
            }
        }
    }

    /// The next event; none when the turn is over.
    ///
    /// If the future is dropped before it is ready, no event is lost.
    ///
    /// # Errors
    ///
    /// [`Error::Answered`] when the server refuses the turn; other errors when the connection was
    /// lost and the turn was not sent again. The turn is over then.
    pub async fn next(&mut self) -> Result<Option<TurnEvent>, Error> {
        let next = self.advance().await;
        if next.is_err() {
            // What was refused has not begun, and needs no end.
            if self.id.is_some() {
                self.give_up();
            }
            self.over = true;
        }
        next
    }

    async fn advance(&mut self) -> Result<Option<TurnEvent>, Error> {
        while !self.over {
            let read = match &mut self.source {
                Source::None => {
                    self.begin().await?;
                    if self.given_out == GivenOut::Nothing {
                        continue;
                    }
                    self.given_out = GivenOut::Nothing;
                    self.id = None;
                    return Ok(Some(TurnEvent::Restarted));
                }
                Source::Socket { link, events } => match events.next().await {
                    Some(event) => Ok(event),
                    None => Err(link.ended().cloned().unwrap_or_else(gone)),
                },
                Source::Http(events) => match events.next().await {
                    Ok(Some(event)) => Ok(event),
                    Ok(None) => Err(gone()),
                    Err(error) => Err(error),
                },
            };
            match read {
                Ok(event) => {
                    if let Some(event) = self.take(event)? {
                        return Ok(Some(event));
                    }
                }
                Err(error) => self.take_loss(error)?,
            }
        }
        Ok(None)
    }

    /// Reads to the end and gives out the response: the last, if steering made several.
    ///
    /// # Errors
    ///
    /// As [`Turn::next`]. That a response has failed is told by its
    /// [`status`](Response::status).
    pub async fn finish(mut self) -> Result<Response, Error> {
        let mut last = None;
        while let Some(event) = self.next().await? {
            if let TurnEvent::Ended(response) = event {
                last = Some(response);
            }
        }
        last.ok_or(Error::Cancelled)
    }

    /// Asks the server to stop. The events up to the end are still to be read.
    ///
    /// `response.cancel` is an extension that not every server knows; with one that does not, the
    /// turn goes on to its own end. Over HTTP the stream is given up, and there are no more
    /// events.
    pub async fn cancel(&mut self) {
        match (&self.source, &self.id) {
            (Source::Socket { link, .. }, Some(id)) => {
                // A link that is gone is told of by the next event.
                let _ = link.send(cancel_message(id)).await;
            }
            (Source::Http(_), _) => {
                self.source = Source::None;
                self.over = true;
            }
            _ => self.cancelled = true,
        }
    }

    /// Adds messages of the user to a response that runs. What becomes of them is told by
    /// [`TurnEvent::Steer`]; if they are taken in, a further response follows in this turn.
    ///
    /// A turn that was steered is not sent again when its connection is lost.
    ///
    /// # Errors
    ///
    /// [`Error::NotBegun`] before [`TurnEvent::Created`], and [`Error::NotOverHttp`].
    pub async fn steer(&mut self, input: Vec<Json>) -> Result<(), Error> {
        let Source::Socket { link, .. } = &self.source else {
            return Err(match self.source {
                Source::Http(_) => Error::NotOverHttp("steering"),
                _ => Error::NotBegun,
            });
        };
        let Some(id) = &self.id else {
            return Err(Error::NotBegun);
        };
        let input_json = Json::from(input.clone());
        let message = format!(
            r#"{{"type":"response.steer","previous_response_id":{},"input":{}}}"#,
            Json::from(id.as_str()).as_str(),
            input_json.as_str()
        );
        let sent = link.send(message.into()).await;
        sent.map_err(|Gone| link.ended().cloned().unwrap_or_else(gone))?;
        self.steers.push(Steer {
            items: input,
            id: None,
        });
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<Option<TurnEvent>, Error> {
        if event.name == "error" {
            let failure = event.failure();
            if !failure.is_about_type() {
                self.take_failure(failure)?;
                return Ok(None);
            }
            // The server does not know `response.steer` or `response.cancel`.
            let unanswered = self.steers.iter().position(|steer| steer.id.is_none());
            unanswered.map(|index| self.steers.remove(index));
            self.end_if_nothing_follows();
            return Ok(Some(TurnEvent::Other(event)));
        }
        let given_out = match event.name.as_str() {
            "response.created" | "response.queued" | "response.in_progress" => GivenOut::Beginning,
            name if name.starts_with("response.") => GivenOut::Output,
            // What servers say besides, such as how much of a quota is left.
            _ => GivenOut::Beginning,
        };
        self.given_out = self.given_out.max(given_out);
        let event = TurnEvent::read(event)?;
        match &event {
            TurnEvent::Created(response) => self.take_beginning(response),
            TurnEvent::Ended(response) => {
                let link = match &self.source {
                    Source::Socket { link, .. } => Some(link.serial),
                    _ => None,
                };
                let store = self.create.store;
                self.lane
                    .take_end(&mut self.create.input, response, link, store);
                self.ended = true;
            }
            TurnEvent::Steer(notice) => self.take_notice(notice),
            _ => {}
        }
        self.end_if_nothing_follows();
        Ok(Some(event))
    }

    fn take_beginning(&mut self, response: &Response) {
        self.id = Some(response.id.clone());
        if self.ended {
            self.ended = false;
            self.steered = true;
            let (accepted, others) = std::mem::take(&mut self.steers)
                .into_iter()
                .partition::<Vec<_>, _>(|steer| steer.id.is_some());
            self.steers = others;
            for steer in accepted {
                self.lane.take_steering(steer.items);
            }
        }
        if self.cancelled
            && let Source::Socket { link, .. } = &self.source
        {
            self.cancelled = !link.try_send(cancel_message(&response.id));
        }
    }

    fn take_notice(&mut self, notice: &SteerNotice) {
        let of = |id: &String| {
            let known = |steer: &Steer| steer.id.as_ref() == Some(id);
            self.steers.iter().position(known)
        };
        let unanswered = || self.steers.iter().position(|steer| steer.id.is_none());
        match notice {
            SteerNotice::Accepted { id } => {
                if let Some(index) = unanswered() {
                    self.steers[index].id = Some(id.clone());
                }
            }
            SteerNotice::Pending { id, .. } => {
                if let Some(index) = of(id) {
                    let steer = self.steers.remove(index);
                    self.lane.carry(steer.items);
                }
            }
            SteerNotice::Failed { id, .. } => {
                let index = match id {
                    Some(id) => of(id),
                    None => unanswered(),
                };
                index.map(|index| self.steers.remove(index));
            }
        }
    }

    fn end_if_nothing_follows(&mut self) {
        self.over |= self.ended && self.steers.is_empty();
    }

    /// Decides what becomes of a turn that was refused: it is sent again, or the error goes out.
    fn take_failure(&mut self, failure: Failure) -> Result<(), Error> {
        let attempts = self.lane.session.settings().reconnect.attempts;
        let fresh = self.given_out == GivenOut::Nothing && !self.steered;
        let unknown_parent = failure.is("previous_response_not_found") && self.has_parent;
        if fresh && unknown_parent && self.lane.is_whole() {
            // So that this happens once: without a parent there is none to be unknown.
            self.lane.lose_parent();
            self.source = Source::None;
            return Ok(());
        }
        let full = failure.is(AGE_LIMIT) || failure.is(NAME_LIMIT);
        if fresh && full && self.losses < attempts {
            self.losses += 1;
            if let Source::Socket { link, .. } = &self.source {
                link.retire();
            }
            self.source = Source::None;
            return Ok(());
        }
        Err(Error::Answered(Box::new(failure)))
    }

    /// Decides whether a turn whose connection was lost is sent again.
    fn take_loss(&mut self, error: Error) -> Result<(), Error> {
        let settings = self.lane.session.settings();
        let allowed = match settings.repeat {
            Repeat::Never => false,
            Repeat::BeforeOutput => self.given_out < GivenOut::Output,
            Repeat::Always => true,
        };
        let untouched = !self.steered && self.steers.is_empty() && !self.ended;
        if !allowed || !untouched || !is_loss(&error) || self.losses >= settings.reconnect.attempts
        {
            return Err(error);
        }
        self.losses += 1;
        self.lost = Some(error);
        self.source = Source::None;
        Ok(())
    }

    /// Lets the server stop, as far as that is possible without waiting.
    fn give_up(&self) {
        if let (Source::Socket { link, .. }, false) = (&self.source, self.ended) {
            let message = match &self.id {
                Some(id) => cancel_message(id),
                None => cancel_lane_message(self.lane.name()),
            };
            // With a queue that is full the turn runs on, and nobody reads what it says.
            link.try_send(message);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.give_up();
        }
    }
}

fn cancel_message(id: &str) -> Bytes {
    json!({"type": "response.cancel", "response_id": id})
        .to_string()
        .into()
}

/// For a response whose id is not known yet.
fn cancel_lane_message(lane: Option<&str>) -> Bytes {
    match lane {
        Some(lane) => json!({"type": "response.cancel", "stream_id": lane}),
        None => json!({"type": "response.cancel"}),
    }
    .to_string()
    .into()
}

fn gone() -> Error {
    Error::Closed {
        code: None,
        reason: String::new(),
    }
}
