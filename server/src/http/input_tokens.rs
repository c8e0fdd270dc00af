//! `POST /v1/responses/input_tokens`: how long the prompt of a create would be.

use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;
use turnwire_protocol::failure::Failure;

use super::answer::{self, Answer};
use super::outcome::{self, no_end};
use crate::auth::Tenant;
use crate::exchange::Exchange;
use crate::serve::Server;

/// What is read of the response that the turn ends with.
#[derive(Deserialize)]
struct Made {
    usage: Usage,
}

#[derive(Deserialize)]
struct Usage {
    input_tokens: u64,
}

pub(super) async fn count(
    server: Arc<Server>,
    owner: Tenant,
    request: Request<Incoming>,
) -> Result<Answer, Failure> {
    let response = outcome::of(server, owner, request, Exchange::begin_count).await?;
    let made: Made = serde_json::from_slice(&response).map_err(|_| no_end())?;
    let counted = json!({
        "object": "response.input_tokens",
        "input_tokens": made.usage.input_tokens,
    });
    Ok(answer::json(200, counted.to_string()))
}
