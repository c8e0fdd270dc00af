//! A chat server that answers what it is told to, and remembers what it was asked.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, watch};
use turnwire::engine::chat::ChatLoading;
use turnwire::engine::{Engine, Engines};

use crate::support::*;

/// What the upstream answers to a chat completion.
#[derive(Clone)]
pub(crate) enum Reply {
    /// These chunks, then `[DONE]`.
    Chunks(Vec<Value>),
    /// These chunks, then nothing until the other side leaves.
    Hang(Vec<Value>),
    /// Nothing at all, until the other side leaves.
    Silence,
    /// These bytes as the body, then the end.
    Raw(String),
    /// A status, headers, and a body.
    Refuse(u16, &'static str, Value),
}

pub(crate) struct Upstream {
    pub(crate) url: String,
    /// Bodies of all chat completions, in order.
    pub(crate) asked: Arc<Mutex<Vec<Value>>>,
    /// Requests whose client left before the end.
    pub(crate) dropped: watch::Receiver<usize>,
}

impl Upstream {
    /// Serves the models `small` and `large`; each request takes the next reply, the last one
    /// again and again.
    pub(crate) async fn start(replies: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (left, dropped) = watch::channel(0);
        let (all, replies) = (Arc::clone(&asked), Arc::new(replies));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (all, replies, left) = (Arc::clone(&all), Arc::clone(&replies), left.clone());
                tokio::spawn(async move {
                    if answer(stream, &all, &replies).await.is_none() {
                        left.send_modify(|count| *count += 1);
                    }
                });
            }
        });
        Self {
            url,
            asked,
            dropped,
        }
    }

    /// A server whose models are those of this upstream.
    pub(crate) async fn behind(&self) -> TestServer {
        let engine = self.engine(None).await;
        let (_, activity) = watch::channel(Default::default());
        let engines = Engines::ready([engine]);
        TestServer::serving(engines, activity, Settings::default())
            .await
            .0
    }

    pub(crate) async fn engine(&self, name: Option<&str>) -> Arc<dyn Engine> {
        let url = self.url.parse().unwrap();
        let loading = ChatLoading::new(url, name.map(Arc::from), 0, None).unwrap();
        loading.load().await.unwrap()
    }

    /// Ready once a chat completion was asked for.
    pub(crate) async fn is_asked(&self) {
        while self.asked.lock().await.is_empty() {
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn last_asked(&self) -> Value {
        self.asked.lock().await.last().unwrap().clone()
    }
}

/// None if the client left before the end.
async fn answer(mut stream: TcpStream, asked: &Mutex<Vec<Value>>, replies: &[Reply]) -> Option<()> {
    loop {
        let Some((head, body)) = request(&mut stream).await else {
            return Some(());
        };
        if head.starts_with("GET") {
            let models = json!({"object": "list", "data": [{"id": "small"}, {"id": "large"}]});
            write(&mut stream, "200 OK", "", &models.to_string()).await?;
            continue;
        }
        let reply = {
            let mut asked = asked.lock().await;
            asked.push(serde_json::from_slice(&body).unwrap());
            replies[(asked.len() - 1).min(replies.len() - 1)].clone()
        };
        let (chunks, done) = match reply {
            Reply::Silence => {
                while stream.read(&mut [0; 64]).await.ok()? > 0 {}
                return None;
            }
            Reply::Refuse(status, headers, body) => {
                let status = format!("{status} Refused");
                write(&mut stream, &status, headers, &body.to_string()).await?;
                continue;
            }
            Reply::Raw(text) => {
                let head = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
                stream.write_all(head.as_bytes()).await.ok()?;
                stream.write_all(text.as_bytes()).await.ok()?;
                return Some(());
            }
            Reply::Chunks(chunks) => (chunks, true),
            Reply::Hang(chunks) => (chunks, false),
        };
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.ok()?;
        for chunk in chunks {
            piece(&mut stream, &format!("data: {chunk}\n\n")).await?;
        }
        if !done {
            // Reading ends when the other side leaves.
            while stream.read(&mut [0; 64]).await.ok()? > 0 {}
            return None;
        }
        piece(&mut stream, "data: [DONE]\n\n").await?;
        stream.write_all(b"0\r\n\r\n").await.ok()?;
    }
}

async fn piece(stream: &mut TcpStream, text: &str) -> Option<()> {
    let piece = format!("{:x}\r\n{text}\r\n", text.len());
    stream.write_all(piece.as_bytes()).await.ok()
}

async fn write(stream: &mut TcpStream, status: &str, headers: &str, body: &str) -> Option<()> {
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await.ok()
}

async fn request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .map_or(0, |length| length.trim().parse().unwrap());
    while bytes.len() < end + 4 + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let method = String::from_utf8_lossy(&bytes[..end]).into_owned();
    Some((method, bytes[end + 4..end + 4 + length].to_owned()))
}

/// A chunk whose only choice has this delta.
pub(crate) fn delta(delta: impl Into<Value>) -> Value {
    let delta: Value = delta.into();
    json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]})
}

pub(crate) fn says(text: &str) -> Value {
    delta(json!({"content": text}))
}

pub(crate) fn finish(reason: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

pub(crate) fn usage(prompt: u64, completion: u64) -> Value {
    json!({
        "choices": [],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": prompt / 2},
            "completion_tokens_details": {"reasoning_tokens": 1},
        },
    })
}

/// How soon a cancelled request must have left its upstream.
pub(crate) const PROMPTLY: Duration = Duration::from_millis(100);
