//! Stored responses over HTTP: to get, to delete, and to list what they were given.
//!
//! A response that was deleted can be named no more. What continues it stays whole, and a socket
//! that has it as the latest of a lane goes on from it: what a connection keeps is its own.

use hyper::{Method, Uri};
use serde::Deserialize;
use turnwire_protocol::chain::Chain;
use turnwire_protocol::failure::Failure;
use turnwire_protocol::id::ResponseId;

use super::answer::{self, Answer};
use super::event_stream::EventStream;
use super::item_list::{self, Page};
use super::query::Query;
use crate::auth::Tenant;
use crate::serve::Server;
use crate::store::{Relay, ShownResponse, Storage};

/// Answers a request for `/v1/responses/{id}` or a path below it; none if there is no such path.
pub(super) async fn answer(
    server: &Server,
    owner: Tenant,
    method: &Method,
    uri: &Uri,
    below: &str,
) -> Option<Answer> {
    let (id, part) = below.split_once('/').unwrap_or((below, ""));
    let allowed = match part {
        "" => "DELETE, GET, HEAD",
        "input_items" => "GET, HEAD",
        "cancel" => "POST",
        _ => return None,
    };
    if !answer::allows(allowed, method) {
        return Some(answer::other_method(method, allowed));
    }
    let named = ResponseId::from(id);
    let answered = match (part, method) {
        ("", &Method::DELETE) => delete(server, owner, &named).await,
        ("input_items", _) => input_items(server, owner, &named, Query::of(uri)).await,
        ("cancel", _) => cancel(server, owner, &named).await,
        _ => get(server, owner, &named, Query::of(uri)).await,
    };
    Some(answer::of(answered))
}

async fn find(server: &Server, owner: Tenant, id: &ResponseId) -> Result<ShownResponse, Failure> {
    let found = match &server.storage {
        Some(storage) => storage.reader.response(owner, id).await?,
        None => None,
    };
    found.ok_or_else(|| answer::response_not_found(id.as_str()))
}

async fn find_chain(server: &Server, owner: Tenant, id: &ResponseId) -> Result<Chain, Failure> {
    let found = match &server.storage {
        Some(storage) => storage.reader.chain(owner, id).await?,
        None => None,
    };
    found.ok_or_else(|| answer::response_not_found(id.as_str()))
}

async fn get(
    server: &Server,
    owner: Tenant,
    id: &ResponseId,
    query: Query<'_>,
) -> Result<Answer, Failure> {
    let stored = find(server, owner, id).await?;
    if !query.flag("stream")? {
        return Ok(answer::json(200, stored.json));
    }
    let after = query.integer("starting_after", 0..=i64::MAX)?;
    let next = after.map_or(0, |after| after.unsigned_abs() + 1);
    if !is_background(&stored) {
        return Err(answer::nothing_to_replay());
    }
    let events = match (server.background.follow(owner, id, next), relay(server)) {
        (None, Some(relay)) => relay.follow(owner, id, next).await?,
        (events, _) => events,
    };
    let events = events.ok_or_else(answer::events_are_gone)?;
    Ok(answer::events(EventStream::Followed(events)))
}

async fn delete(server: &Server, owner: Tenant, id: &ResponseId) -> Result<Answer, Failure> {
    // What is deleted while it is made would be stored again at its end.
    server.background.cancel(owner, id).await;
    server.background.forget(owner, id);
    let known = match &server.storage {
        Some(storage) => storage.writer.delete(owner, id).await?,
        None => false,
    };
    if !known {
        return Err(answer::response_not_found(id.as_str()));
    }
    let deleted = serde_json::json!({"id": id.as_str(), "object": "response", "deleted": true});
    Ok(answer::json(200, deleted.to_string()))
}

/// Of others than those in the background, one over HTTP is cancelled by leaving, and one on a
/// socket by an event. A response that has ended is shown as it is.
async fn cancel(server: &Server, owner: Tenant, id: &ResponseId) -> Result<Answer, Failure> {
    let mut stored = find(server, owner, id).await?;
    if !is_background(&stored) {
        return Err(answer::not_in_background());
    }
    if !stored.status.is_final() {
        server.background.cancel(owner, id).await;
        stored = find(server, owner, id).await?;
    }
    if let Some(relay) = relay(server)
        && !stored.status.is_final()
    {
        relay.cancel(owner, id).await?;
        stored = find(server, owner, id).await?;
    }
    Ok(answer::json(200, stored.json))
}

/// Where other servers make responses, too.
fn relay(server: &Server) -> Option<&Relay> {
    server.storage.as_ref().and_then(Storage::relay)
}

fn is_background(stored: &ShownResponse) -> bool {
    #[derive(Deserialize)]
    struct Made {
        background: Option<bool>,
    }
    let made: Result<Made, _> = serde_json::from_slice(&stored.json);
    made.is_ok_and(|made| made.background == Some(true))
}

async fn input_items(
    server: &Server,
    owner: Tenant,
    id: &ResponseId,
    query: Query<'_>,
) -> Result<Answer, Failure> {
    let page = Page::read(query)?;
    let chain = find_chain(server, owner, id).await?;
    let list = item_list::walk(move || item_list::input(&chain, &page)).await??;
    Ok(answer::json(200, list))
}
