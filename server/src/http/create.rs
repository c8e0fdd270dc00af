//! `POST /v1/responses`: one create and its answer, as JSON or as server-sent events.
//!
//! The very session that serves a socket serves the request; only the last step differs.

use std::sync::Arc;

use bytes::Bytes;
use hyper::Request;
use hyper::body::Incoming;
use turnwire_protocol::create::Delivery;
use turnwire_protocol::failure::Failure;

use super::answer::{self, Answer};
use super::body;
use super::event_stream::EventStream;
use crate::auth::Tenant;
use crate::background;
use crate::exchange::Exchange;
use crate::serve::Server;

pub(super) async fn create(
    server: Arc<Server>,
    owner: Tenant,
    request: Request<Incoming>,
) -> Answer {
    let body = match body::read(request, server.limits.message_bytes).await {
        Ok(body) => body,
        Err(failure) => return answer::failure(&failure),
    };
    let delivery = Delivery::of(&body);
    if delivery.background {
        return answer::of(in_background(&server, owner, body, delivery.stream).await);
    }
    let mut exchange = Exchange::begin(server, owner, body);
    let Some(first) = exchange.next().await else {
        return answer::failure(&Failure::server_shutting_down());
    };
    if let Some(failure) = &first.failure {
        return answer::failure(failure);
    }
    if delivery.stream {
        return answer::events(EventStream::new(first, exchange));
    }
    let Some(last) = exchange.end().await else {
        return answer::failure(&Failure::server_shutting_down());
    };
    match (&last.failure, last.response()) {
        (Some(failure), _) => answer::failure(failure),
        (None, Some(response)) => answer::json(200, response),
        (None, None) => answer::failure(&Failure::server_error("The response has no end.")),
    }
}

/// The response as it is before it is made, or its events. It is made even if nobody waits.
async fn in_background(
    server: &Arc<Server>,
    owner: Tenant,
    body: Bytes,
    stream: bool,
) -> Result<Answer, Failure> {
    let begun = background::begin(server, owner, body).await?;
    if !stream {
        return Ok(answer::json(200, begun.response));
    }
    let events = server.background.follow(owner, &begun.id, 0);
    let events = events.ok_or_else(answer::events_are_gone)?;
    Ok(answer::events(EventStream::Followed(events)))
}
