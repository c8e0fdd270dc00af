//! Outcome: what a turn comes to that is not answered by its response.

use std::sync::Arc;

use bytes::Bytes;
use hyper::Request;
use hyper::body::Incoming;
use serde::Deserialize;
use turnwire_protocol::failure::Failure;

use super::body;
use crate::auth::Tenant;
use crate::exchange::Exchange;
use crate::serve::Server;

#[derive(Deserialize)]
struct Ended {
    error: Option<Error>,
}

#[derive(Deserialize)]
struct Error {
    code: String,
    message: String,
}

/// The response object that the turn of a request ends with, unless it fails. `begin` makes the
/// turn of the body.
pub(super) async fn of(
    server: Arc<Server>,
    owner: Tenant,
    request: Request<Incoming>,
    begin: impl FnOnce(Arc<Server>, Tenant, Bytes) -> Exchange,
) -> Result<Bytes, Failure> {
    let body = body::read(request, server.limits.message_bytes).await?;
    let mut exchange = begin(server, owner, body);
    let last = exchange.end().await;
    let last = last.ok_or_else(Failure::server_shutting_down)?;
    if let Some(failure) = last.failure {
        return Err(*failure);
    }
    let response = last.response().ok_or_else(no_end)?;
    let ended: Ended = serde_json::from_slice(&response).map_err(|_| no_end())?;
    match &ended.error {
        Some(error) => Err(failed(error)),
        None => Ok(response),
    }
}

/// What a response that failed says, with the status that a request which is refused would have.
fn failed(error: &Error) -> Failure {
    let failure = Failure::server_error(&*error.message);
    match &*error.code {
        "rate_limit_exceeded" => Failure {
            status: 429,
            kind: "rate_limit_error",
            code: "rate_limit_exceeded",
            ..failure
        },
        "invalid_prompt" => Failure {
            status: 400,
            kind: "invalid_request_error",
            code: "invalid_prompt",
            ..failure
        },
        _ => failure,
    }
}

/// A turn ended without saying what became of it.
pub(super) fn no_end() -> Failure {
    Failure::server_error("The turn has no end.")
}
