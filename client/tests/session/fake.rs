//! A server that a test plays by hand, request by request and event by event.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::SinkExt;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use yawc::close::CloseCode;
use yawc::{Frame, OpCode, Role, WebSocket};

pub(crate) struct Fake {
    listener: TcpListener,
}

/// A connection whose request has been read and waits for an answer.
pub(crate) struct Visitor {
    stream: TcpStream,
    head: String,
    pub(crate) body: Value,
}

/// A socket, from the server's side.
pub(crate) struct Peer {
    socket: WebSocket<TcpStream>,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { listener }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/v1", self.listener.local_addr().unwrap())
    }

    /// The next connection, with its first request.
    pub(crate) async fn visitor(&self) -> Visitor {
        let (mut stream, _) = self.listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Visitor { stream, head, body }
    }

    /// The next connection, as a socket.
    pub(crate) async fn socket(&self) -> Peer {
        self.visitor().await.upgrade().await
    }
}

impl Visitor {
    pub(crate) async fn upgrade(mut self) -> Peer {
        let key = self.key();
        let accept = Sha1::new()
            .chain_update(key)
            .chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11")
            .finalize();
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
             sec-websocket-accept: {}\r\n\r\n",
            STANDARD.encode(accept)
        );
        self.stream.write_all(answer.as_bytes()).await.unwrap();
        let options = yawc::Options::default();
        let socket = WebSocket::from_stream(self.stream, Role::Server, options).unwrap();
        Peer { socket }
    }

    fn key(&self) -> String {
        header(&self.head, "sec-websocket-key").unwrap()
    }

    /// Answers and hangs up.
    pub(crate) async fn answer(mut self, status: u16, headers: &str, body: &str) {
        let answer = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}",
            body.len()
        );
        self.stream.write_all(answer.as_bytes()).await.unwrap();
        self.stream.shutdown().await.unwrap();
    }

    /// Answers with these events.
    pub(crate) async fn stream(self, events: &[Value]) {
        let lines: String = events
            .iter()
            .map(|event| format!("data: {event}\n\n"))
            .collect();
        let body = format!("{lines}data: [DONE]\n\n");
        self.answer(200, "content-type: text/event-stream\r\n", &body)
            .await;
    }
}

impl Peer {
    /// The next message.
    pub(crate) async fn read(&mut self) -> Value {
        let frame = self.socket.next_frame().await.unwrap();
        assert_eq!(frame.opcode(), OpCode::Text);
        serde_json::from_slice(frame.payload()).unwrap()
    }

    pub(crate) async fn send(&mut self, event: Value) {
        let frame = Frame::text(event.to_string());
        self.socket.send(frame).await.unwrap();
    }

    /// Sends all events of a turn that says this.
    pub(crate) async fn say(&mut self, lane: Option<&str>, id: &str, text: &str) {
        for event in spoken(lane, id, text) {
            self.send(event).await;
        }
    }

    pub(crate) async fn close(mut self, code: u16) {
        let frame = Frame::close(CloseCode::from(code), "");
        self.socket.send(frame).await.unwrap();
    }

    /// Waits for a Close frame.
    pub(crate) async fn closed(mut self) -> Option<u16> {
        let frame = self.socket.next_frame().await.unwrap();
        assert_eq!(frame.opcode(), OpCode::Close);
        frame.close_code().map(u16::from)
    }
}

fn header(head: &str, name: &str) -> Option<String> {
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let (_, value) = fields.find(|(field, _)| field.eq_ignore_ascii_case(name))?;
    Some(value.to_owned())
}

/// The message item that says this.
pub(crate) fn message(text: &str) -> Value {
    json!({"type": "message", "role": "assistant", "id": format!("msg_{text}"),
        "content": [{"type": "output_text", "text": text, "annotations": []}]})
}

/// An event about a response.
pub(crate) fn lifecycle(lane: Option<&str>, name: &str, id: &str, output: &[Value]) -> Value {
    let status = match name {
        "created" => "in_progress",
        ended => ended,
    };
    on_lane(
        lane,
        json!({"type": format!("response.{name}"), "sequence_number": 0,
            "response": {"id": id, "status": status, "output": output}}),
    )
}

/// All events of a turn that says this.
pub(crate) fn spoken(lane: Option<&str>, id: &str, text: &str) -> [Value; 3] {
    let item = message(text);
    let delta = json!({"type": "response.output_text.delta", "item_id": item["id"],
        "output_index": 0, "content_index": 0, "delta": text});
    [
        lifecycle(lane, "created", id, &[]),
        on_lane(lane, delta),
        lifecycle(lane, "completed", id, &[item]),
    ]
}

pub(crate) fn error(lane: Option<&str>, code: &str) -> Value {
    on_lane(
        lane,
        json!({"type": "error", "status": 400, "sequence_number": 0,
            "error": {"type": "invalid_request_error", "code": code, "message": code, "param": null}}),
    )
}

pub(crate) fn on_lane(lane: Option<&str>, mut event: Value) -> Value {
    if let Some(lane) = lane {
        event["stream_id"] = lane.into();
    }
    event
}
