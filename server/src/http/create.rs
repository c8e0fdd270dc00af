//! `POST /v1/responses`: one create and its answer, as JSON or as server-sent events.
//!
//! The very session that serves a socket serves the request; only the last step differs.

use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;
use turnwire_protocol::create::Delivery;
use turnwire_protocol::failure::Failure;

use super::answer::{self, Answer};
use super::body;
use super::exchange::{EventStream, Exchange};
use crate::auth::Tenant;
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
    if delivery.background && server.storage.is_some() {
        let why = "Responses are not made in the background here.";
        return answer::failure(&Failure::unsupported_parameter("background", why));
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
