//! Stored responses over HTTP: to get, to delete, and to list what they were given.
//!
//! A response that was deleted can be named no more. What continues it stays whole, and a socket
//! that has it as the latest of a lane goes on from it: what a connection keeps is its own.

use hyper::{Method, Uri};
use turnwire_protocol::chain::Chain;
use turnwire_protocol::failure::Failure;
use turnwire_protocol::id::ResponseId;

use super::answer::{self, Answer};
use super::item_list::{self, Page};
use super::query::Query;
use crate::auth::Tenant;
use crate::serve::Server;
use crate::store::ShownResponse;

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
    if query.flag("stream")? {
        let why = "only background responses can be streamed again, and this server makes none";
        return Err(Failure::unsupported_value("stream", why));
    }
    Ok(answer::json(200, stored.json))
}

async fn delete(server: &Server, owner: Tenant, id: &ResponseId) -> Result<Answer, Failure> {
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

/// No response that exists can be cancelled here: a request over HTTP is cancelled by leaving, and
/// one on a socket by an event.
async fn cancel(server: &Server, owner: Tenant, id: &ResponseId) -> Result<Answer, Failure> {
    find(server, owner, id).await?;
    Err(answer::not_in_background())
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
