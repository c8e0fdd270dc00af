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
use super::outcome::{self, no_end};
use crate::auth::Tenant;
use crate::exchange::Exchange;
use crate::serve::Server;

/// What is read of the response that the turn ends with.
#[derive(Deserialize)]
struct Made<'a> {
    id: &'a str,
    created_at: u64,
    #[serde(borrow)]
    output: &'a RawValue,
    #[serde(borrow)]
    usage: &'a RawValue,
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
) -> Result<Answer, Failure> {
    let response = outcome::of(server, owner, request, Exchange::begin_compact).await?;
    let made: Made<'_> = serde_json::from_slice(&response).map_err(|_| no_end())?;
    let compacted = Compacted {
        id: made.id,
        object: "response.compaction",
        created_at: made.created_at,
        output: made.output,
        usage: made.usage,
    };
    let json = serde_json::to_vec(&compacted).map_err(|_| no_end())?;
    Ok(answer::json(200, json))
}
