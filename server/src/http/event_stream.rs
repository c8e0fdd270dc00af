//! Event stream: the body of an answer that consists of server-sent events.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use hyper::body::{Body, Frame};
use turnwire_protocol::event::Event;
use turnwire_protocol::sse;

use crate::exchange::Exchange;

pub(crate) enum EventStream {
    /// The events of a turn that is made for this answer only. What is not read is not asked of
    /// the engine.
    Made(Box<Made>),
    /// Those of one that is made anyway.
    Followed(BoxStream<'static, Bytes>),
}

pub(crate) struct Made {
    first: Option<Event>,
    /// None once the end was sent.
    exchange: Option<Exchange>,
    /// The last event was sent.
    ending: bool,
}

impl EventStream {
    pub(super) fn new(first: Event, exchange: Exchange) -> Self {
        Self::Made(Box::new(Made {
            first: Some(first),
            exchange: Some(exchange),
            ending: false,
        }))
    }
}

impl Made {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        Poll::Ready(match ready!(self.poll_event(cx)) {
            Some(event) => {
                self.ending = event.is_terminal();
                Some(sse::encode(&event))
            }
            None => self.exchange.take().map(|_| sse::DONE),
        })
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
        let data = match &mut *self {
            Self::Made(made) => ready!(made.poll_next(cx)),
            Self::Followed(events) => ready!(events.poll_next_unpin(cx)),
        };
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }
}
