//! A small server that is right but for one flaw.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use futures_util::SinkExt;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use yawc::{Frame, HttpWebSocket, OpCode, WebSocket};

/// Changes what the server was about to say. Gets the number of messages that were answered on
/// the connection before, the message, and the answer.
pub(crate) type Flaw = fn(usize, &Value, &mut Vec<Value>);

/// The one model.
pub(crate) const MODEL: &str = "judged";

/// An event that is sent as a binary message.
pub(crate) fn binary(event: &Value) -> Value {
    json!({"as": "binary", "text": event.to_string()})
}

/// A text message that is no event.
pub(crate) fn text(text: &str) -> Value {
    json!({"as": "text", "text": text})
}

/// Serves until the test ends, and gives out the URL.
pub(crate) async fn serve(flaw: Flaw) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let answer = service_fn(move |request| answer(request, flaw));
                let served = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                let _ = served.with_upgrades().await;
            });
        }
    });
    url
}

async fn answer(
    mut request: Request<Incoming>,
    flaw: Flaw,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let upgrades = |headers: &HeaderMap| headers.contains_key("upgrade");
    let (status, body) = match request.uri().path() {
        "/v1/responses" if upgrades(request.headers()) => {
            let (response, upgraded) = WebSocket::upgrade(&mut request).unwrap();
            tokio::spawn(async move {
                if let Ok(socket) = upgraded.await {
                    talk(socket, flaw).await;
                }
            });
            return Ok(response.map(|_| Full::default()));
        }
        "/v1/responses" if request.method() == Method::GET => {
            (StatusCode::UPGRADE_REQUIRED, json!({}))
        }
        "/v1/responses" => (StatusCode::METHOD_NOT_ALLOWED, json!({})),
        "/v1/models" => (
            StatusCode::OK,
            json!({"object": "list", "data": [{"id": MODEL}]}),
        ),
        _ => (StatusCode::NOT_FOUND, json!({})),
    };
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    Ok(response)
}

async fn talk(mut socket: HttpWebSocket, flaw: Flaw) {
    let mut talk = Talk::default();
    let mut answered = 0;
    while let Ok(frame) = socket.next_frame().await {
        if !matches!(frame.opcode(), OpCode::Text | OpCode::Binary) {
            continue;
        }
        let message = serde_json::from_slice(frame.payload()).unwrap_or_default();
        let mut answer = talk.answer(&message);
        flaw(answered, &message, &mut answer);
        answered += 1;
        for event in answer {
            let said = event["text"].as_str().unwrap_or_default().to_owned();
            let frame = match event["as"].as_str() {
                Some("binary") => Frame::binary(said),
                Some(_) => Frame::text(said),
                None => Frame::text(event.to_string()),
            };
            if socket.send(frame).await.is_err() {
                return;
            }
        }
    }
}

/// What one connection knows.
#[derive(Default)]
struct Talk {
    /// Tokens of each response's context.
    known: HashMap<String, usize>,
    /// A long answer that goes on with each message.
    counting: Option<Arc<Turn>>,
}

impl Talk {
    fn answer(&mut self, message: &Value) -> Vec<Value> {
        let mut said = match message["type"].as_str() {
            None => vec![error(400, "invalid_json", None)],
            Some("response.processed") => Vec::new(),
            Some("response.create") => self.create(message),
            Some(_) => vec![error(400, "unsupported_event_type", Some("type"))],
        };
        let lane = message.get("stream_id").filter(|lane| lane.is_string());
        for event in &mut said {
            if let Some(lane) = lane {
                event["stream_id"] = lane.clone();
            }
        }
        if let Some(turn) = self
            .counting
            .as_ref()
            .filter(|_| message["type"] != "response.create")
        {
            said.push(turn.delta(5, "and so on "));
        }
        said
    }

    fn create(&mut self, create: &Value) -> Vec<Value> {
        if !create["model"].is_string() {
            return vec![error(400, "missing_required_parameter", Some("model"))];
        }
        if create["model"] != MODEL {
            return vec![error(404, "model_not_found", Some("model"))];
        }
        if create["temperature"].is_string() {
            return vec![error(400, "invalid_type", Some("temperature"))];
        }
        if create.get("input").is_none() && create["previous_response_id"].is_null() {
            return vec![error(400, "missing_required_parameter", Some("input"))];
        }
        let parent = create["previous_response_id"].as_str();
        let inherited = match parent.map(|parent| self.known.get(parent)) {
            Some(None) => {
                let param = Some("previous_response_id");
                return vec![error(400, "previous_response_not_found", param)];
            }
            Some(Some(tokens)) => *tokens,
            None => 0,
        };
        let turn = Turn {
            id: format!("resp_{}", self.known.len()),
            create: create.clone(),
            input_tokens: inherited + create["input"].to_string().len() / 4,
        };
        self.known.insert(turn.id.clone(), turn.input_tokens + 3);
        let counts = create["input"].to_string().contains("Count from");
        if counts && create["max_output_tokens"] != 16 {
            let turn = Arc::new(turn);
            self.counting = Some(Arc::clone(&turn));
            return turn.beginning();
        }
        turn.whole(counts)
    }
}

struct Turn {
    id: String,
    create: Value,
    input_tokens: usize,
}

impl Turn {
    fn whole(&self, cut: bool) -> Vec<Value> {
        let calls = self.create["tool_choice"].is_object();
        let mut events = if calls { self.calling() } else { self.saying() };
        let done = events.last().map(|event| event["item"].clone());
        let status = if cut { "incomplete" } else { "completed" };
        let mut response = self.response(status);
        response["output"] = json!([done]);
        events.push(json!({"type": format!("response.{status}"), "response": response}));
        numbered(events)
    }

    /// A long answer, up to its first delta.
    fn beginning(&self) -> Vec<Value> {
        let mut events = self.saying();
        events.truncate(5);
        numbered(events)
    }

    fn started(&self) -> Vec<Value> {
        let response = self.response("in_progress");
        vec![
            json!({"type": "response.created", "response": response}),
            json!({"type": "response.in_progress", "response": response}),
        ]
    }

    fn saying(&self) -> Vec<Value> {
        let id = format!("msg_{}", self.id);
        let part = |text: &str| json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []});
        let item = |status: &str, content: Value| {
            json!({
                "id": id, "type": "message", "role": "assistant", "status": status,
                "content": content,
            })
        };
        let place = json!({"item_id": id, "output_index": 0, "content_index": 0});
        let at = |name: &str, member: &str, value: Value| {
            let mut event = place.clone();
            event["type"] = json!(name);
            event[member] = value;
            if name.contains("output_text") {
                event["logprobs"] = json!([]);
            }
            event
        };
        let mut events = self.started();
        events.extend([
            json!({
                "type": "response.output_item.added", "output_index": 0,
                "item": item("in_progress", json!([])),
            }),
            at("response.content_part.added", "part", part("")),
            self.delta(0, "Hello "),
            self.delta(0, "there"),
            at("response.output_text.done", "text", json!("Hello there")),
            at("response.content_part.done", "part", part("Hello there")),
            json!({
                "type": "response.output_item.done", "output_index": 0,
                "item": item("completed", json!([part("Hello there")])),
            }),
        ]);
        events
    }

    fn delta(&self, number: usize, text: &str) -> Value {
        json!({
            "type": "response.output_text.delta", "item_id": format!("msg_{}", self.id),
            "output_index": 0, "content_index": 0, "delta": text, "logprobs": [],
            "sequence_number": number,
        })
    }

    fn calling(&self) -> Vec<Value> {
        let id = format!("fc_{}", self.id);
        let arguments = r#"{"place":"kitchen"}"#;
        let item = |status: &str, arguments: &str| {
            json!({
                "id": id, "type": "function_call", "status": status, "name": "look",
                "call_id": "call_1", "arguments": arguments,
            })
        };
        let mut events = self.started();
        events.extend([
            json!({
                "type": "response.output_item.added", "output_index": 0,
                "item": item("in_progress", ""),
            }),
            json!({
                "type": "response.function_call_arguments.delta", "item_id": id,
                "output_index": 0, "delta": arguments,
            }),
            json!({
                "type": "response.function_call_arguments.done", "item_id": id,
                "output_index": 0, "arguments": arguments,
            }),
            json!({
                "type": "response.output_item.done", "output_index": 0,
                "item": item("completed", arguments),
            }),
        ]);
        events
    }

    fn response(&self, status: &str) -> Value {
        let create = &self.create;
        let ended = status != "in_progress";
        let details = json!({"reason": "max_output_tokens"});
        let usage = json!({
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 3,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.input_tokens + 3,
        });
        json!({
            "id": self.id, "object": "response", "created_at": 1,
            "completed_at": (status == "completed").then_some(2),
            "status": status,
            "incomplete_details": (status == "incomplete").then_some(details),
            "model": MODEL,
            "previous_response_id": create["previous_response_id"],
            "instructions": create["instructions"],
            "output": [], "error": null,
            "tools": if create["tools"].is_array() { &create["tools"] } else { &NO_TOOLS },
            "tool_choice": "auto", "truncation": "disabled", "parallel_tool_calls": true,
            "text": {"format": {"type": "text"}},
            "top_p": 1.0, "presence_penalty": 0, "frequency_penalty": 0, "top_logprobs": 0,
            "temperature": 1.0, "reasoning": null, "usage": ended.then_some(usage),
            "max_output_tokens": create["max_output_tokens"], "max_tool_calls": null,
            "store": false, "background": false, "service_tier": "default",
            "metadata": create["metadata"], "safety_identifier": null, "prompt_cache_key": null,
        })
    }
}

static NO_TOOLS: Value = Value::Array(Vec::new());

fn numbered(mut events: Vec<Value>) -> Vec<Value> {
    for (number, event) in events.iter_mut().enumerate() {
        event["sequence_number"] = json!(number);
    }
    events
}

fn error(status: u16, code: &str, param: Option<&str>) -> Value {
    json!({
        "type": "error", "status": status,
        "error": {
            "type": "invalid_request_error", "code": code, "message": "Not so.", "param": param,
        },
    })
}
