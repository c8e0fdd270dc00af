//! Answer: HTTP responses, and the failures that only HTTP knows.

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::header::{
    ACCEPT_ENCODING, ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION, UPGRADE,
    WWW_AUTHENTICATE,
};
use hyper::{Method, Response, StatusCode};
use turnwire_protocol::failure::Failure;
use turnwire_protocol::id::ConversationId;

use super::event_stream::EventStream;
use crate::websocket::{Handshake, NotAWebSocket};

pub(crate) type Answer = Response<Either<Full<Bytes>, EventStream>>;

/// What one line of an error message repeats of what a client sent.
const QUOTED_CHARS: usize = 200;

pub(super) fn json(status: u16, body: impl Into<Bytes>) -> Answer {
    let mut answer = Answer::new(Either::Left(Full::new(body.into())));
    *answer.status_mut() = StatusCode::from_u16(status).expect("failures have HTTP statuses");
    let json = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, json);
    answer
}

/// The answer that was found, or what was in its way.
pub(super) fn of(answered: Result<Answer, Failure>) -> Answer {
    answered.unwrap_or_else(|wrong| failure(&wrong))
}

pub(super) fn failure(failure: &Failure) -> Answer {
    let mut answer = json(failure.status, failure.http_body());
    if let Some(seconds) = failure.retry_after_seconds {
        answer.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    if failure.status == 415 {
        let encodings = HeaderValue::from_static("gzip, zstd");
        answer.headers_mut().insert(ACCEPT_ENCODING, encodings);
    }
    answer
}

/// The server cannot run turns yet. Engines load for seconds to minutes.
pub(super) fn loading() -> Answer {
    let mut answer = json(503, r#"{"status":"loading"}"#);
    let headers = answer.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

/// Server-sent events. nginx, and what has learnt it from nginx, is told not to gather them.
pub(super) fn events(events: EventStream) -> Answer {
    let mut answer = Answer::new(Either::Right(events));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert("cache-control", HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    answer
}

pub(super) fn switching_protocols(handshake: &Handshake) -> Answer {
    let mut answer = Answer::new(Either::Left(Full::default()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = handshake.headers();
    answer
}

/// Clients that get this answer on purpose use HTTP instead, so its body says what to do.
pub(super) fn upgrade_required(reason: NotAWebSocket) -> Answer {
    let message = match reason {
        NotAWebSocket::WrongVersion => "Only version 13 of the WebSocket protocol is spoken here.",
        _ => {
            "GET /v1/responses opens a WebSocket and needs its upgrade headers. \
             Use POST for a single response."
        }
    };
    let mut answer = failure(&invalid_request(426, "upgrade_required", message.into()));
    let headers = answer.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    answer
}

pub(super) fn unauthorized() -> Answer {
    let message = "Missing or unknown API key. Send it as 'Authorization: Bearer KEY'.";
    let mut answer = failure(&Failure {
        kind: "authentication_error",
        ..invalid_request(401, "invalid_api_key", message.into())
    });
    let bearer = HeaderValue::from_static("Bearer");
    answer.headers_mut().insert(WWW_AUTHENTICATE, bearer);
    answer
}

pub(super) fn foreign_origin() -> Failure {
    let message = "Without API keys this server answers no pages of other machines. Start it with \
                   --api-key-file to use it from one.";
    invalid_request(403, "forbidden_origin", message.into())
}

/// Whether a path that answers the methods in `allowed` answers this one.
pub(super) fn allows(allowed: &str, method: &Method) -> bool {
    allowed.split(", ").any(|name| name == method.as_str())
}

/// The answer to a method that is not among those in `allowed`.
pub(super) fn other_method(method: &Method, allowed: &'static str) -> Answer {
    if method == Method::OPTIONS {
        let mut answer = Answer::new(Either::Left(Full::default()));
        *answer.status_mut() = StatusCode::NO_CONTENT;
        answer
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static(allowed));
        return answer;
    }
    let message = format!("This path answers {allowed}.");
    let mut answer = failure(&invalid_request(405, "method_not_allowed", message));
    answer
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

pub(super) fn https_required() -> Failure {
    let message = "This port speaks TLS only. Use https:// or wss:// to reach it.";
    invalid_request(400, "https_required", message.into())
}

pub(super) fn no_such_path(path: &str) -> Failure {
    let message = format!("There is nothing at '{path:.QUOTED_CHARS$}'.");
    invalid_request(404, "not_found", message)
}

pub(super) fn response_not_found(id: &str) -> Failure {
    let message = format!("Response with id '{id:.QUOTED_CHARS$}' not found.");
    invalid_request(404, "response_not_found", message)
}

pub(super) fn conversation_not_found(id: &ConversationId) -> Failure {
    Failure {
        param: None,
        ..Failure::conversation_not_found(id)
    }
}

pub(super) fn item_not_found(id: &str) -> Failure {
    let message = format!("Item with id '{id:.QUOTED_CHARS$}' not found.");
    invalid_request(404, "item_not_found", message)
}

/// For what cannot be had without a store.
pub(super) fn nothing_is_kept() -> Failure {
    let message = "This server keeps nothing, so there are no conversations. Send all items in \
                   'input', or use 'previous_response_id' on one WebSocket.";
    invalid_request(400, "storage_disabled", message.into())
}

pub(super) fn not_in_background() -> Failure {
    let message = "Only background responses can be cancelled here, and this is none. To cancel \
                   a response that runs, send response.cancel on its WebSocket, or close its \
                   HTTP connection.";
    invalid_request(400, "not_a_background_response", message.into())
}

pub(super) fn nothing_to_replay() -> Failure {
    let why = "only responses that are made in the background can be streamed again, and this is \
               none";
    Failure::unsupported_value("stream", why)
}

pub(super) fn events_are_gone() -> Failure {
    let why = "the events that are asked for are not kept any more, which is for ten minutes after \
               the end of a response, the last megabytes of a long one. Leave it out to get the \
               response as it is";
    Failure::unsupported_value("stream", why)
}

pub(super) fn model_not_found(name: &str) -> Failure {
    let message = format!("The model '{name:.QUOTED_CHARS$}' is not served here.");
    invalid_request(404, "model_not_found", message)
}

pub(super) fn invalid_key() -> Failure {
    let message = "The header 'Sec-WebSocket-Key' must be 16 bytes in base64.";
    invalid_request(400, "invalid_websocket_key", message.into())
}

pub(super) fn unsupported_encoding(encoding: &str) -> Failure {
    let message = format!(
        "Content-Encoding '{encoding:.QUOTED_CHARS$}' is not supported. Send the body as gzip or \
         as zstd, encoded once, or as it is."
    );
    invalid_request(415, "unsupported_content_encoding", message)
}

pub(super) fn body_timeout() -> Failure {
    let message = "The body did not arrive in time.";
    invalid_request(408, "request_timeout", message.into())
}

pub(super) fn broken_body() -> Failure {
    let message = "The body is cut short, or its chunks are malformed.";
    invalid_request(400, "invalid_body", message.into())
}

pub(super) fn undecodable_body(encoding: &str) -> Failure {
    let message = format!("The body is cut short, or is no {encoding}.");
    invalid_request(400, "invalid_body", message)
}

pub(super) fn too_many_connections() -> Failure {
    Failure {
        kind: "server_error",
        retry_after_seconds: Some(1),
        ..invalid_request(
            503,
            "too_many_connections",
            "The server has as many connections as it takes. Try again later.".into(),
        )
    }
}

fn invalid_request(status: u16, code: &'static str, message: String) -> Failure {
    Failure {
        status,
        kind: "invalid_request_error",
        code,
        message,
        param: None,
        retry_after_seconds: None,
    }
}
