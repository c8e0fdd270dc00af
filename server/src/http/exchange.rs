//! Exchange: one request's session, from its only message to its last event.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::time::{Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;
use turnwire_protocol::event::Event;
use turnwire_protocol::session::Transport;
use turnwire_protocol::sse;

use crate::auth::Tenant;
use crate::runner::Runner;
use crate::serve::Server;

/// Dropping it cancels the turn.
pub(super) struct Exchange {
    runner: Runner,
    /// None once the server has begun to shut down.
    draining: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// For the session's deadline, from the first one that it has.
    alarm: Option<Pin<Box<Sleep>>>,
}

/// The body of an answer that streams. What is not read is not asked of the engine.
pub(crate) struct EventStream {
    first: Option<Event>,
    /// None once the end was sent.
    exchange: Option<Exchange>,
    /// The last event was sent.
    ending: bool,
}

impl Exchange {
    /// Begins a create.
    pub(super) fn begin(server: Arc<Server>, owner: Tenant, create: Bytes) -> Self {
        let mut exchange = Self::new(server, owner);
        exchange.runner.handle_message(create);
        exchange
    }

    /// Begins a compaction.
    pub(super) fn begin_compact(server: Arc<Server>, owner: Tenant, request: Bytes) -> Self {
        let mut exchange = Self::new(server, owner);
        exchange.runner.handle_compact(request);
        exchange
    }

    /// Begins to count the tokens of a prompt.
    pub(super) fn begin_count(server: Arc<Server>, owner: Tenant, request: Bytes) -> Self {
        let mut exchange = Self::new(server, owner);
        exchange.runner.handle_count(request);
        exchange
    }

    fn new(server: Arc<Server>, owner: Tenant) -> Self {
        let draining = Box::pin(server.drain.clone().cancelled_owned());
        Self {
            runner: Runner::new(server, owner, Transport::Http),
            draining: Some(draining),
            alarm: None,
        }
    }

    /// The event that ends it, unless the server shuts down before.
    pub(super) async fn end(&mut self) -> Option<Event> {
        loop {
            let event = self.next().await?;
            if event.is_terminal() {
                return Some(event);
            }
        }
    }

    pub(super) async fn next(&mut self) -> Option<Event> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// None if the session ends without another event.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if let Some(draining) = &mut self.draining
            && draining.as_mut().poll(cx).is_ready()
        {
            self.draining = None;
            self.runner.handle_drain();
        }
        loop {
            if let Some(event) = self.runner.next_event() {
                return Poll::Ready(Some(event));
            }
            if self.runner.close().is_some() {
                return Poll::Ready(None);
            }
            if self.runner.poll_progress(cx).is_pending() {
                ready!(self.poll_deadline(cx));
                self.runner.handle_timeout();
            }
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(due) = self.runner.deadline() else {
            return Poll::Pending;
        };
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if alarm.deadline() != due {
            alarm.as_mut().reset(due);
        }
        alarm.as_mut().poll(cx)
    }
}

impl EventStream {
    pub(super) fn new(first: Event, exchange: Exchange) -> Self {
        Self {
            first: Some(first),
            exchange: Some(exchange),
            ending: false,
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        match (self.first.take(), &mut self.exchange) {
            (Some(first), _) => Poll::Ready(Some(first)),
            (None, Some(exchange)) if !self.ending => exchange.poll_next(cx),
            (None, _) => Poll::Ready(None),
        }
    }
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match ready!(self.poll_event(cx)) {
            Some(event) => {
                self.ending = event.is_terminal();
                sse::encode(&event)
            }
            None if self.exchange.take().is_some() => sse::DONE,
            None => return Poll::Ready(None),
        };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}
