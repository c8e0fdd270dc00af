//! `POST /v1/responses/compact`: a conversation in, a compaction item out.
//!
//! It is one turn of a session like any other, and its response is answered in another form.

use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use turnwire_protocol::failure::Failure;

use super::answer::{self, Answer};
use super::body;
use super::exchange::Exchange;
use crate::auth::Tenant;
use crate::serve::Server;

/// What is read of the response that the turn ends with.
#[derive(Deserialize)]
struct Made<'a> {
    id: &'a str,
    created_at: u64,
    #[serde(borrow)]
    output: &'a RawValue,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    error: Option<Error>,
}

#[derive(Deserialize)]
struct Error {
    code: String,
    message: String,
}

#[derive(Serialize)]
struct Compacted<'a> {
    id: &'a str,
    object: &'static str,
    created_at: u64,
    output: &'a RawValue,
    usage: &'a RawValue,
}

pub(super) async fn compact(
    server: Arc<Server>,
    owner: Tenant,
    request: Request<Incoming>,
) -> Answer {
    let body = match body::read(request, server.limits.message_bytes).await {
        Ok(body) => body,
        Err(failure) => return answer::failure(&failure),
    };
    let mut exchange = Exchange::begin_compact(server, owner, body);
    let Some(last) = exchange.end().await else {
        return answer::failure(&Failure::server_shutting_down());
    };
    if let Some(failure) = &last.failure {
        return answer::failure(failure);
    }
    let response = last.response().unwrap_or_default();
    match serde_json::from_slice(&response) {
        Ok(made) => compacted(&made).unwrap_or_else(|failure| answer::failure(&failure)),
        Err(_) => answer::failure(&no_end()),
    }
}

fn compacted(made: &Made<'_>) -> Result<Answer, Failure> {
    if let Some(error) = &made.error {
        return Err(failed(error));
    }
    let compacted = Compacted {
        id: made.id,
        object: "response.compaction",
        created_at: made.created_at,
        output: made.output,
        usage: made.usage.ok_or_else(no_end)?,
    };
    let json = serde_json::to_vec(&compacted).map_err(|_| no_end())?;
    Ok(answer::json(200, json))
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

fn no_end() -> Failure {
    Failure::server_error("The compaction has no end.")
}
