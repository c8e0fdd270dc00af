//! Transport: four ways to send the same agent's requests.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use serde_json::Value;
use turnwire_client::Connection;

use crate::agent::Context;

/// A way to talk to a server, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    HttpFresh,
    HttpKept,
    HttpPrevious,
    WebSocket,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [
        Self::HttpFresh,
        Self::HttpKept,
        Self::HttpPrevious,
        Self::WebSocket,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::HttpFresh => "new connection, full resend",
            Self::HttpKept => "keep-alive, full resend",
            Self::HttpPrevious => "keep-alive, previous_response_id",
            Self::WebSocket => "WebSocket",
        }
    }

    pub(crate) fn context(self) -> Context {
        match self {
            Self::HttpFresh | Self::HttpKept => Context::Full,
            Self::HttpPrevious => Context::Stored,
            Self::WebSocket => Context::Held,
        }
    }
}

/// An open way to a server.
pub(crate) enum Transport {
    Http {
        client: reqwest::Client,
        url: String,
        key: Option<String>,
    },
    WebSocket(Box<Connection>),
}

impl Transport {
    pub(crate) async fn open(
        kind: Kind,
        address: SocketAddr,
        path: &str,
        key: Option<&str>,
    ) -> anyhow::Result<Self> {
        if kind == Kind::WebSocket {
            let url = format!("ws://{address}{path}");
            let connection = Connection::open(&url, key).await?;
            return Ok(Self::WebSocket(Box::new(connection)));
        }
        let idle = if kind == Kind::HttpFresh { 0 } else { 1 };
        Ok(Self::Http {
            client: reqwest::Client::builder()
                .no_proxy()
                .http1_only()
                .tcp_nodelay(true)
                .pool_max_idle_per_host(idle)
                .build()?,
            url: format!("http://{address}{path}/responses"),
            key: key.map(str::to_owned),
        })
    }

    /// Sends one request and reads to the end of its turn. Answers the final response object.
    pub(crate) async fn turn(&mut self, mut request: Value) -> anyhow::Result<Value> {
        match self {
            Self::WebSocket(connection) => {
                request["type"] = "response.create".into();
                connection.send(request.to_string()).await?;
                loop {
                    let event = connection.next().await?;
                    if event.is_terminal() {
                        return final_response(serde_json::from_slice(&event.json)?);
                    }
                }
            }
            Self::Http { client, url, key } => {
                request["stream"] = true.into();
                let mut post = client
                    .post(&*url)
                    .header("content-type", "application/json")
                    .body(request.to_string());
                if let Some(key) = key {
                    post = post.bearer_auth(key);
                }
                let answer = post.send().await?;
                let status = answer.status();
                let body = answer.text().await?;
                if !status.is_success() {
                    bail!("HTTP {status}: {body}");
                }
                let last = body
                    .lines()
                    .filter_map(|line| line.strip_prefix("data: "))
                    .rfind(|data| *data != "[DONE]");
                final_response(serde_json::from_str(last.context("an empty stream")?)?)
            }
        }
    }
}

/// The response object of a terminal event, or what the server said instead.
pub(crate) fn final_response(mut event: Value) -> anyhow::Result<Value> {
    match event["response"].take() {
        Value::Null => bail!("the server answered {event}"),
        response => Ok(response),
    }
}
