//! Exchange: one request's session, from its only message to its last event.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::time::{Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;
use turnwire_protocol::event::Event;
use turnwire_protocol::id::ResponseId;
use turnwire_protocol::session::Transport;

use crate::auth::Tenant;
use crate::runner::Runner;
use crate::serve::Server;

/// Dropping it cancels the turn.
pub(crate) struct Exchange {
    runner: Runner,
    /// None once the server has begun to shut down.
    draining: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// For the session's deadline, from the first one that it has.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Exchange {
    /// Begins a create.
    pub(crate) fn begin(server: Arc<Server>, owner: Tenant, create: Bytes) -> Self {
        let mut exchange = Self::new(server, owner);
        exchange.runner.handle_message(create);
        exchange
    }

    /// Begins a compaction.
    pub(crate) fn begin_compact(server: Arc<Server>, owner: Tenant, request: Bytes) -> Self {
        let mut exchange = Self::new(server, owner);
        exchange.runner.handle_compact(request);
        exchange
    }

    /// Begins to count the tokens of a prompt.
    pub(crate) fn begin_count(server: Arc<Server>, owner: Tenant, request: Bytes) -> Self {
        let mut exchange = Self::new(server, owner);
        exchange.runner.handle_count(request);
        exchange
    }

    /// Cancels the turn, if it makes this response. Its last event says so.
    pub(crate) fn cancel(&mut self, id: &ResponseId) {
        self.runner.handle_cancel(id);
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
    pub(crate) async fn end(&mut self) -> Option<Event> {
        loop {
            let event = self.next().await?;
            if event.is_terminal() {
                return Some(event);
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Option<Event> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// None if the session ends without another event.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
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
