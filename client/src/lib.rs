//! A client of Responses WebSocket mode: connect, send messages, read events.
//!
//! Messages go out and events come in as the JSON they are; an event is parsed only when its
//! reader asks for it. One connection is used from one task. It does not reconnect.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use yawc::close::CloseCode;
use yawc::{Frame, HttpRequest, OpCode, Options, TcpWebSocket, WebSocket, WebSocketError};

/// Largest event that is taken.
const MAX_EVENT_BYTES: usize = 256 << 20;

/// How long [`Connection::close`] waits for the server's Close frame.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// A connection to `/v1/responses`.
pub struct Connection {
    socket: TcpWebSocket,
}

/// One server event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its `type`.
    pub name: String,
    pub json: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{url}` is not a ws or http address: {problem}")]
    InvalidUrl { url: String, problem: String },
    /// The server answered the handshake with this HTTP status instead of 101.
    #[error("the server refused the connection with HTTP status {0}")]
    Refused(u16),
    /// The server closed the connection; without a code if it just went away.
    #[error("the connection was closed{}{}", code_text(.code), reason_text(.reason))]
    Closed { code: Option<u16>, reason: String },
    /// The server sent something that is not an event.
    #[error("not an event: {0}")]
    NotAnEvent(#[from] serde_json::Error),
    #[error(transparent)]
    WebSocket(WebSocketError),
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "type")]
    kind: String,
}

impl Connection {
    /// `url` is the base address of the API, `ws://127.0.0.1:8080/v1` or with `http`.
    pub async fn open(url: &str, key: Option<&str>) -> Result<Self, Error> {
        Self::open_with(url, key, Options::default()).await
    }

    /// Offers permessage-deflate as well.
    pub async fn open_compressed(url: &str, key: Option<&str>) -> Result<Self, Error> {
        Self::open_with(url, key, Options::default().with_balanced_compression()).await
    }

    async fn open_with(url: &str, key: Option<&str>, options: Options) -> Result<Self, Error> {
        let invalid = |problem: String| Error::InvalidUrl {
            url: url.to_owned(),
            problem,
        };
        let base = url.strip_prefix("http").map(|rest| format!("ws{rest}"));
        let base = base.unwrap_or_else(|| url.to_owned());
        let endpoint = format!("{}/responses", base.trim_end_matches('/')).parse();
        let endpoint = endpoint.map_err(|problem| invalid(format!("{problem}")))?;
        let mut request = HttpRequest::builder();
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let options = options
            .with_limits(MAX_EVENT_BYTES, MAX_EVENT_BYTES)
            .with_no_delay();
        let socket = WebSocket::connect(endpoint)
            .with_options(options)
            .with_request(request)
            .await
            .map_err(|error| match error {
                WebSocketError::InvalidStatusCode(status) => Error::Refused(status),
                WebSocketError::InvalidHttpScheme => invalid("the scheme is neither".into()),
                error => Error::WebSocket(error),
            })?;
        Ok(Self { socket })
    }

    /// Sends one JSON message.
    pub async fn send(&mut self, json: impl Into<Bytes>) -> Result<(), Error> {
        Ok(self.socket.send(Frame::text(json)).await?)
    }

    /// Sends a Ping; the server's Pong is awaited with [`Connection::pong`].
    pub async fn ping(&mut self, payload: &'static str) -> Result<(), Error> {
        Ok(self.socket.send(Frame::ping(payload)).await?)
    }

    /// Waits for a Pong and gives out its payload. Events before it are lost.
    pub async fn pong(&mut self) -> Result<Bytes, Error> {
        loop {
            let frame = self.socket.next_frame().await?;
            match frame.opcode() {
                OpCode::Pong => return Ok(frame.into_payload()),
                OpCode::Close => return Err(closed(&frame)),
                _ => {}
            }
        }
    }

    /// The next event.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            let frame = self.socket.next_frame().await?;
            match frame.opcode() {
                OpCode::Text | OpCode::Binary => {
                    let json = frame.into_payload();
                    let Header { kind: name } = serde_json::from_slice(&json)?;
                    return Ok(Event { name, json });
                }
                OpCode::Close => return Err(closed(&frame)),
                OpCode::Continuation | OpCode::Ping | OpCode::Pong => {}
            }
        }
    }

    /// Says goodbye and waits until the server has done so too.
    pub async fn close(mut self) -> Result<(), Error> {
        self.socket
            .send(Frame::close(CloseCode::Normal, ""))
            .await?;
        let answered = async { while self.next().await.is_ok() {} };
        let _ = tokio::time::timeout(CLOSE_PATIENCE, answered).await;
        Ok(())
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl Event {
    pub fn parse<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.json)
    }

    /// Whether a response, or a request that became none, ends with this event.
    pub fn is_terminal(&self) -> bool {
        matches!(
            self.name.as_str(),
            "response.completed" | "response.incomplete" | "response.failed" | "error"
        )
    }
}

impl From<WebSocketError> for Error {
    fn from(error: WebSocketError) -> Self {
        match error {
            WebSocketError::ConnectionClosed => Self::Closed {
                code: None,
                reason: String::new(),
            },
            error => Self::WebSocket(error),
        }
    }
}

fn closed(frame: &Frame) -> Error {
    let reason = frame.close_reason().ok().flatten().unwrap_or_default();
    Error::Closed {
        code: frame.close_code().map(u16::from),
        reason: reason.to_owned(),
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
