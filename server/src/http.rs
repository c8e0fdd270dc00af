//! The HTTP surface: which request gets which answer.
//!
//! Every answer but a stream is JSON, errors included, and carries an `x-request-id`. Query
//! parameters that are not known are ignored. Only `/health` is open to callers without a key.

mod answer;
mod body;
mod compact;
mod conversations;
mod create;
mod decoding;
mod event_stream;
mod input_tokens;
mod item_list;
mod outcome;
mod query;
mod stored;

use std::convert::Infallible;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, Request};
use percent_encoding::percent_decode_str;
use serde_json::json;
use turnwire_protocol::id;

use crate::auth::{Tenant, Unauthorized};
use crate::clock::RandomIds;
use crate::connection;
use crate::engine::Model;
use crate::serve::{Place, Refusal, Server};
use crate::websocket::{Handshake, NotAWebSocket, Socket};
use answer::Answer;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The methods of what can only be read.
const READS: &str = "GET, HEAD";

/// Answers one request. `place` is the connection's, for as long as it lasts.
pub(crate) async fn handle(
    server: Arc<Server>,
    place: Arc<Place>,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let mut answer = route(server, place, request).await;
    let id = id::mint("req", &mut RandomIds);
    let id = HeaderValue::try_from(id).expect("hexadecimal digits are a header value");
    answer.headers_mut().insert(REQUEST_ID, id);
    Ok(answer)
}

async fn route(server: Arc<Server>, place: Arc<Place>, request: Request<Incoming>) -> Answer {
    if let Some(refusal) = place.refusal() {
        return answer::failure(&match refusal {
            Refusal::TooManyConnections => answer::too_many_connections(),
            Refusal::NotSecure => answer::https_required(),
        });
    }
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    if path == "/health" {
        return match answer::allows(READS, &method) {
            true => health(&server),
            false => answer::other_method(&method, READS),
        };
    }
    let Some(resource) = path.strip_prefix("/v1/") else {
        return answer::failure(&answer::no_such_path(&path));
    };
    if !server.access.admits_origin(request.headers()) {
        return answer::failure(&answer::foreign_origin());
    }
    let owner = match server.access.authenticate(request.headers()) {
        Ok(owner) => owner,
        Err(Unauthorized) => return answer::unauthorized(),
    };
    let answered = match resource.split_once('/').unwrap_or((resource, "")) {
        ("responses", "") => Some(match method {
            Method::GET => upgrade(server, place, owner, request),
            Method::POST => create::create(server, owner, request).await,
            _ => answer::other_method(&method, "GET, POST"),
        }),
        ("responses", "compact") => Some(match method {
            Method::POST => answer::of(compact::compact(server, owner, request).await),
            _ => answer::other_method(&method, "POST"),
        }),
        ("responses", "input_tokens") => Some(match method {
            Method::POST => answer::of(input_tokens::count(server, owner, request).await),
            _ => answer::other_method(&method, "POST"),
        }),
        ("responses", below) => stored::answer(&server, owner, &method, request.uri(), below).await,
        ("conversations", below) => conversations::answer(&server, owner, request, below).await,
        ("models", name) => Some(match answer::allows(READS, &method) {
            true => models(&server, name),
            false => answer::other_method(&method, READS),
        }),
        _ => None,
    };
    answered.unwrap_or_else(|| answer::failure(&answer::no_such_path(&path)))
}

/// Ready once every engine has loaded: load balancers keep turns away before that.
fn health(server: &Server) -> Answer {
    if server.engines.all_ready() {
        answer::json(200, json!({"status": "ok"}).to_string())
    } else {
        answer::loading()
    }
}

fn upgrade(
    server: Arc<Server>,
    place: Arc<Place>,
    owner: Tenant,
    mut request: Request<Incoming>,
) -> Answer {
    let handshake = match Handshake::check(&request) {
        Ok(handshake) => handshake,
        Err(reason @ (NotAWebSocket::NoUpgrade | NotAWebSocket::WrongVersion)) => {
            return answer::upgrade_required(reason);
        }
        Err(NotAWebSocket::InvalidKey) => return answer::failure(&answer::invalid_key()),
    };
    let answer = answer::switching_protocols(&handshake);
    let upgrade = hyper::upgrade::on(&mut request);
    let tasks = server.tasks.clone();
    tasks.spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let socket = Socket::open(upgraded, &handshake, &server.sockets);
                connection::run(Box::new(socket), server, owner).await;
            }
            Err(error) => tracing::debug!(%error, "connection lost during its upgrade"),
        }
        drop(place);
    });
    answer
}

/// All models, or the one whose name ends the path. Names may contain slashes.
fn models(server: &Server, name: &str) -> Answer {
    let object = |model: &Model| {
        json!({
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": model.owned_by,
        })
    };
    if name.is_empty() {
        let data: Vec<_> = server.engines.models().iter().map(object).collect();
        return answer::json(200, json!({"object": "list", "data": data}).to_string());
    }
    let name = percent_decode_str(name).decode_utf8_lossy();
    match server
        .engines
        .models()
        .iter()
        .find(|model| *model.name == *name)
    {
        Some(model) => answer::json(200, object(model).to_string()),
        None => answer::failure(&answer::model_not_found(&name)),
    }
}
