//! Error: what can go wrong between a caller and a server.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::HeaderMap;
use yawc::WebSocketError;

use crate::failure::{Failure, retry_after};

/// What went wrong. What to do about it is told by [`Error::remedy`].
///
/// On a [`Connection`](crate::Connection), that the server answers a turn with an error is none
/// of these: it is an [`Event`](crate::Event) like others.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("`{url}` is not an address of an API: {problem}")]
    InvalidUrl { url: String, problem: String },
    /// One of the [`Options`](crate::Options) cannot be used.
    #[error("the {option} cannot be used: {problem}")]
    InvalidOption { option: String, problem: String },
    /// No connection could be made: nobody listens there, the name is unknown, or the
    /// certificate is not one we trust.
    #[error("cannot connect to {address}: {problem}")]
    Unreachable { address: String, problem: String },
    /// There was no connection, or no answer to the handshake, within this time.
    #[error("{address} has not answered within {} s", .after.as_secs())]
    TimedOut { address: String, after: Duration },
    /// The server answered with this instead of what was asked for: with anything but 101 to a
    /// handshake, or with anything but a stream of events where one was asked for.
    #[error("the server refused with HTTP status {status}{}", body_text(.body))]
    Refused {
        status: u16,
        headers: Box<HeaderMap>,
        /// Its beginning, at most 64 KiB.
        body: Bytes,
    },
    /// The server said 101, but not to what was asked.
    #[error("the server answered the handshake wrongly: {0}")]
    WrongHandshake(String),
    /// The server closed the connection; without a code if it just went away.
    #[error("the connection was closed{}{}", code_text(.code), reason_text(.reason))]
    Closed { code: Option<u16>, reason: String },
    /// The server sent something that is not an event.
    #[error("not an event: {0}")]
    NotAnEvent(String),
    /// The server sent a message, a body or an event beyond
    /// [`Options::largest_message`](crate::Options::largest_message).
    #[error("the server sent more than {limit} bytes at once")]
    TooLarge { limit: usize },
    /// The server broke the rules of WebSocket framing.
    #[error("the server broke the WebSocket protocol: {0}")]
    BrokenFrames(String),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The server refused a turn. Its connection lives on.
    #[error("the server answered: {}", .0.message)]
    Answered(Box<Failure>),
    /// A lane of this name exists already, and takes one turn at a time.
    #[error("{} is in use", lane_text(.name))]
    LaneTaken { name: Option<String> },
    /// What was asked for exists on sockets only, and this session uses HTTP.
    #[error("{0} is not possible over HTTP")]
    NotOverHttp(&'static str),
    /// The response has no id yet.
    #[error("the response has not begun")]
    NotBegun,
    /// The turn was cancelled before its end.
    #[error("the turn was cancelled")]
    Cancelled,
}

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remedy {
    /// Change what is sent or how this crate is used: the same will fail again.
    ChangeRequest,
    /// Change the address or the options.
    ChangeOptions,
    /// Use another key, or ask for permission.
    ChangeKey,
    /// Send the same again, after this time if the server named one.
    Repeat { after: Option<Duration> },
    /// Use HTTP, as [`Transport::Http`](crate::Transport::Http) does.
    UseHttp,
    /// Send the whole history, without `previous_response_id`.
    SendHistory,
    /// Report it: the server does not keep to the protocol.
    ReportServer,
}

impl Error {
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::InvalidUrl { .. } | Self::InvalidOption { .. } => Remedy::ChangeOptions,
            Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Closed { .. }
            | Self::Broken(_) => Remedy::Repeat { after: None },
            Self::Refused {
                status, headers, ..
            } => of_status(*status, retry_after(headers)),
            Self::Answered(failure) if failure.is("previous_response_not_found") => {
                Remedy::SendHistory
            }
            Self::Answered(failure) => {
                of_status(failure.status.unwrap_or(400), failure.retry_after)
            }
            Self::WrongHandshake(_)
            | Self::NotAnEvent(_)
            | Self::BrokenFrames(_)
            | Self::TooLarge { .. } => Remedy::ReportServer,
            Self::LaneTaken { .. } | Self::NotOverHttp(_) | Self::NotBegun | Self::Cancelled => {
                Remedy::ChangeRequest
            }
        }
    }

    /// What the HTTP client reports of a request to `address` that was given `patience`.
    pub(crate) fn from_http(error: reqwest::Error, address: &str, patience: Duration) -> Self {
        if error.is_timeout() {
            return Self::TimedOut {
                address: address.to_owned(),
                after: patience,
            };
        }
        let connecting = error.is_connect();
        // The text of the outermost error repeats the URL; the innermost says what happened.
        let error = error.without_url();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        let problem = cause.to_string();
        if connecting {
            Self::Unreachable {
                address: address.to_owned(),
                problem,
            }
        } else {
            Self::Broken(problem)
        }
    }

    /// What the codec reports; `limit` is the size that it was told to refuse.
    pub(crate) fn from_codec(error: WebSocketError, limit: usize) -> Self {
        match error {
            WebSocketError::ConnectionClosed => Self::Closed {
                code: None,
                reason: String::new(),
            },
            WebSocketError::FrameTooLarge => Self::TooLarge { limit },
            WebSocketError::IoError(error) => Self::Broken(error.to_string()),
            WebSocketError::HTTPError(error) => Self::Broken(error.to_string()),
            error => Self::BrokenFrames(error.to_string()),
        }
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::NotAnEvent(error.to_string())
    }
}

fn of_status(status: u16, after: Option<Duration>) -> Remedy {
    match status {
        401 | 403 => Remedy::ChangeKey,
        404 | 405 | 300..=399 => Remedy::ChangeOptions,
        426 => Remedy::UseHttp,
        408 | 429 | 500..=599 => Remedy::Repeat { after },
        400..=499 => Remedy::ChangeRequest,
        _ => Remedy::ReportServer,
    }
}

fn lane_text(name: &Option<String>) -> String {
    match name {
        Some(name) => format!("the lane `{name}`"),
        None => "the default lane".to_owned(),
    }
}

fn code_text(code: &Option<u16>) -> String {
    code.map(|code| format!(" with code {code}"))
        .unwrap_or_default()
}

fn reason_text(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    }
}

/// The message of an error body, or nothing: other bodies may be pages of HTML.
fn body_text(body: &Bytes) -> String {
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let message = json
        .as_ref()
        .and_then(|json| json["error"]["message"].as_str());
    message
        .map(|message| format!(": {message}"))
        .unwrap_or_default()
}
