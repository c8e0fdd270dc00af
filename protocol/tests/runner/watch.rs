//! What must hold of the events of a connection, whatever happens on it.

#[path = "steers.rs"]
mod steers;

use std::collections::BTreeMap;

use serde_json::Value;
use turnwire_protocol::event::Event;
use turnwire_protocol::session::Transport;

use self::steers::Steers;

/// Bytes of text that a delta holds at the most.
const DELTA_BYTES: usize = 64 << 10;

/// The keys of a response object that the Open Responses schema requires.
const RESPONSE_KEYS: [&str; 31] = [
    "id",
    "object",
    "created_at",
    "completed_at",
    "status",
    "incomplete_details",
    "model",
    "previous_response_id",
    "instructions",
    "output",
    "error",
    "tools",
    "tool_choice",
    "truncation",
    "parallel_tool_calls",
    "text",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "top_logprobs",
    "temperature",
    "reasoning",
    "usage",
    "max_output_tokens",
    "max_tool_calls",
    "store",
    "background",
    "service_tier",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
];

/// Follows the responses of one connection.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// The response that runs on each lane.
    running: BTreeMap<Option<String>, Response>,
    /// How many creates were answered to the end: with a terminal event or an error.
    pub(crate) endings: usize,
    steers: Steers,
}

#[derive(Debug, Default)]
struct Response {
    id: String,
    background: bool,
    next_number: u64,
    done: Vec<Value>,
    open: Option<Item>,
}

#[derive(Debug, Default)]
struct Item {
    id: String,
    /// Set if it is a call.
    call: Option<Call>,
    part: Option<String>,
    /// Its deltas, put together.
    text: String,
    text_done: bool,
    compacting: bool,
}

/// How a kind of call is told.
#[derive(Clone, Copy, Debug)]
struct Call {
    /// Beginning of the names of its events.
    events: &'static str,
    /// Where its text stands in the end.
    member: &'static str,
}

fn call(item: &Value) -> Option<Call> {
    match item["type"].as_str() {
        Some("function_call") => Some(Call {
            events: "response.function_call_arguments.",
            member: "arguments",
        }),
        Some("custom_tool_call") => Some(Call {
            events: "response.custom_tool_call_input.",
            member: "input",
        }),
        _ => None,
    }
}

impl Watch {
    /// Checks an event and returns its JSON.
    pub(crate) fn check(&mut self, event: &Event, transport: Transport) -> Result<Value, String> {
        let json: Value =
            serde_json::from_slice(&event.json).map_err(|error| format!("not JSON: {error}"))?;
        self.follow(event, &json, transport)
            .map_err(|problem| format!("{problem}: {json}"))?;
        Ok(json)
    }

    fn follow(&mut self, event: &Event, json: &Value, transport: Transport) -> Result<(), String> {
        demand(json["type"] == event.name, "the type is not the name")?;
        let number = json["sequence_number"].as_u64();
        let number = number.ok_or("sequence_number is not an integer")?;
        let lane = match json.get("stream_id") {
            None => None,
            Some(lane) => Some(lane.as_str().ok_or("stream_id is not a string")?.to_owned()),
        };
        demand(
            lane.is_none() || transport == Transport::WebSocket,
            "HTTP has no lanes",
        )?;
        let response = event
            .response()
            .map(|bytes| serde_json::from_slice::<Value>(&bytes));
        let response = response.transpose().map_err(|error| error.to_string())?;
        demand(
            response.as_ref() == json.get("response"),
            "the wrong slice is the response",
        )?;
        if let Some(response) = &response {
            check_response(response)?;
        }
        match event.name {
            "error" => {
                self.endings += 1;
                demand(number == 0, "an error is not numbered")?;
                return check_error(json);
            }
            "response.inject.failed" => return demand(number == 0, "an inject is not numbered"),
            _ if event.name.starts_with("response.steer.") => {
                let target = json["steer"]["previous_response_id"].as_str();
                let running = self.running.get(&lane).map(|running| &*running.id);
                // One that is being stored has no number left to give.
                if number == 0 || running.is_none() || running != target {
                    return self.steers.follow_over(lane.as_deref(), event.name, json);
                }
            }
            "response.created" => {
                let response = response.ok_or("created without a response")?;
                let id = response["id"]
                    .as_str()
                    .ok_or("a response has no id")?
                    .to_owned();
                let background = response["background"] == true;
                let status = match background {
                    true => "queued",
                    false => "in_progress",
                };
                demand(response["status"] == status, "how far a new response is")?;
                demand(
                    response["output"] == Value::Array(Vec::new()),
                    "created has no output",
                )?;
                let fresh = Response {
                    id,
                    background,
                    ..Response::default()
                };
                let former = self.running.insert(lane.clone(), fresh);
                demand(former.is_none(), "two responses overlap on a lane")?;
            }
            _ => {}
        }
        let running = self
            .running
            .get_mut(&lane)
            .ok_or("no response runs on this lane")?;
        demand(number == running.next_number, "the numbers do not count up")?;
        running.next_number += 1;
        let second = match running.background {
            true => "response.queued",
            false => "response.in_progress",
        };
        demand(number != 1 || event.name == second, "what comes second")?;
        if let Some(response) = &response_of(json) {
            demand(response["id"] == running.id.as_str(), "another response")?;
        }
        if event.name.starts_with("response.steer.") {
            let (id, lane) = (&*running.id, lane.as_deref());
            return self.steers.follow_running(id, lane, event.name, json);
        }
        running.follow(event.name, json)?;
        if event.is_terminal() {
            self.endings += 1;
            self.steers.end(&running.id, running.next_number);
            self.running.remove(&lane);
        }
        Ok(())
    }
}

fn response_of(json: &Value) -> Option<&Value> {
    json.get("response")
}

impl Response {
    fn follow(&mut self, name: &str, json: &Value) -> Result<(), String> {
        let index = self.done.len();
        match name {
            "response.created" => Ok(()),
            "response.queued" | "response.in_progress" => {
                self.follow_snapshot(&json["response"]["output"])
            }
            "response.completed" | "response.incomplete" | "response.failed" => {
                // A compaction that fails has nothing to show for itself.
                let gave_up = json["response"]["status"] == "failed"
                    || json["response"]["status"] == "cancelled";
                let open = self.open.as_ref();
                let closed = open.is_none_or(|item| item.compacting && gave_up);
                demand(closed, "an item is still open")?;
                let output = json["response"]["output"].as_array();
                demand(
                    output == Some(&self.done),
                    "the output is not what the items were",
                )
            }
            "response.output_item.added" => {
                demand(self.open.is_none(), "two items are open")?;
                demand(json["output_index"] == index, "the items do not count up")?;
                let item = &json["item"];
                if item["type"] != "compaction" {
                    demand(item["status"] == "in_progress", "a new item is in progress")?;
                }
                self.open = Some(Item {
                    id: item["id"].as_str().ok_or("an item has no id")?.to_owned(),
                    call: call(item),
                    ..Item::default()
                });
                Ok(())
            }
            "response.output_item.done" => {
                let open = self.open.take().ok_or("no item is open")?;
                demand(json["output_index"] == index, "another item is done")?;
                let item = &json["item"];
                demand(item["id"] == open.id.as_str(), "the item's id has changed")?;
                check_item(item, &open)?;
                self.done.push(item.clone());
                Ok(())
            }
            _ => {
                let open = self.open.as_mut().ok_or("no item is open")?;
                demand(json["item_id"] == open.id.as_str(), "another item's id")?;
                demand(json["output_index"] == index, "another item's index")?;
                open.follow(name, json)
            }
        }
    }
}

impl Response {
    /// What a response that still runs says it has made.
    fn follow_snapshot(&self, output: &Value) -> Result<(), String> {
        let output = output.as_array().ok_or("output is no array")?;
        let (done, open) = output.split_at(self.done.len().min(output.len()));
        demand(done == self.done, "the items that are done differ")?;
        match (open, &self.open) {
            ([], None) => Ok(()),
            ([item], Some(open)) => {
                demand(item["id"] == open.id.as_str(), "the open item's id")?;
                let in_progress = item["status"] == "in_progress";
                demand(in_progress || open.compacting, "it is still open")?;
                let text = match open.call {
                    Some(call) => item[call.member].as_str(),
                    None => item["content"][0]
                        .as_object()
                        .map_or(Some(""), |_| open.text_of(&item["content"][0])),
                };
                demand(text == Some(&open.text), "the open item's text differs")
            }
            _ => Err("the open item is missing, or there is none".to_owned()),
        }
    }
}

impl Item {
    fn follow(&mut self, name: &str, json: &Value) -> Result<(), String> {
        if name == "response.compaction.compacting" {
            self.compacting = true;
            return Ok(());
        }
        if self.call.is_some() {
            let part = json.get("content_index");
            demand(part.is_none(), "a call's text is in no part")?;
        } else {
            demand(json["content_index"] == 0, "there is one part")?;
        }
        match name {
            "response.content_part.added" => {
                let kind = json["part"]["type"].as_str().ok_or("a part has no type")?;
                demand(self.part.is_none(), "a second part")?;
                self.part = Some(kind.to_owned());
                demand(
                    self.text_of(&json["part"]) == Some(""),
                    "a new part is empty",
                )
            }
            "response.content_part.done" => {
                demand(self.text_done, "the text is not done before its part")?;
                demand(
                    self.text_of(&json["part"]) == Some(&self.text),
                    "the part's text differs",
                )
            }
            _ => {
                let of = match (self.part.as_deref(), self.call) {
                    (Some("output_text"), _) => "response.output_text.",
                    (Some("refusal"), _) => "response.refusal.",
                    (Some("reasoning_text"), _) => "response.reasoning_text.",
                    (None, Some(call)) => call.events,
                    (None, None) => return Err("text without a part".to_owned()),
                    (Some(other), _) => return Err(format!("there are no {other} parts")),
                };
                match name.strip_prefix(of) {
                    Some("delta") => {
                        demand(!self.text_done, "a delta comes too late")?;
                        let delta = json["delta"].as_str().ok_or("a delta is a string")?;
                        let carries = json["logprobs"][0].is_object();
                        demand(!delta.is_empty() || carries, "an empty delta")?;
                        demand(delta.len() <= DELTA_BYTES, "a delta is too long")?;
                        self.text.push_str(delta);
                    }
                    Some("done") => {
                        self.text_done = true;
                        demand(self.text_of(json) == Some(&self.text), "the text differs")?;
                    }
                    _ => return Err("the event does not fit its item".to_owned()),
                }
                let has_logprobs = json.get("logprobs").is_some_and(Value::is_array);
                demand(has_logprobs == (of == "response.output_text."), "logprobs")
            }
        }
    }

    fn text_of<'v>(&self, json: &'v Value) -> Option<&'v str> {
        let member = match (self.part.as_deref(), self.call) {
            (Some("refusal"), _) => "refusal",
            (None, Some(call)) => call.member,
            _ => "text",
        };
        json[member].as_str()
    }
}

fn check_item(item: &Value, open: &Item) -> Result<(), String> {
    let members = item.as_object().ok_or("an item is an object")?;
    demand(
        !members.values().any(Value::is_null),
        "an item has a null member",
    )?;
    if item["type"] == "compaction" {
        let sealed = item["encrypted_content"].as_str();
        demand(
            sealed.is_some_and(|text| !text.is_empty()),
            "nothing is sealed",
        )?;
        return demand(open.compacting, "a compaction is not told");
    }
    let ended = ["completed", "incomplete"].map(Value::from);
    demand(ended.contains(&item["status"]), "an item has not ended")?;
    match item["type"].as_str() {
        Some("function_call" | "custom_tool_call") => {
            demand(open.text_done, "the text is not done before its call")?;
            demand(
                open.text_of(item) == Some(&open.text),
                "the call's text differs",
            )
        }
        Some("message" | "reasoning") => {
            let content = item["content"].as_array().ok_or("an item has no content")?;
            demand(
                content.len() == usize::from(open.part.is_some()),
                "the parts differ",
            )?;
            match content.first() {
                Some(part) => demand(open.text_of(part) == Some(&open.text), "the text differs"),
                None => Ok(()),
            }
        }
        other => Err(format!("no item is a {other:?}")),
    }
}

fn check_response(response: &Value) -> Result<(), String> {
    for key in RESPONSE_KEYS {
        demand(
            response.get(key).is_some(),
            &format!("the response has no {key}"),
        )?;
    }
    let members = response.as_object().map_or(0, serde_json::Map::len);
    let optional = ["user", "conversation"].into_iter();
    let optional = optional.filter(|key| response.get(key).is_some());
    let in_conversation = response.get("conversation").is_some();
    demand(
        !in_conversation || response["previous_response_id"].is_null(),
        "a response in a conversation has no other parent",
    )?;
    demand(
        members == RESPONSE_KEYS.len() + optional.count(),
        "the response has other members",
    )?;
    let status = response["status"]
        .as_str()
        .ok_or("a response has no status")?;
    let completed = status == "completed";
    demand(
        response["completed_at"].is_u64() == completed,
        "completed_at",
    )?;
    demand(
        response["error"].is_object() == (status == "failed"),
        "error",
    )?;
    demand(
        response["incomplete_details"].is_object() == (status == "incomplete"),
        "details",
    )?;
    let usage = &response["usage"];
    demand(
        usage.is_object() == (completed || status == "incomplete"),
        "usage",
    )?;
    if usage.is_object() {
        for path in [
            "/input_tokens_details/cached_tokens",
            "/input_tokens_details/cache_write_tokens",
            "/output_tokens_details/reasoning_tokens",
        ] {
            demand(usage.pointer(path).is_some_and(Value::is_u64), path)?;
        }
        let sum = usage["input_tokens"]
            .as_u64()
            .zip(usage["output_tokens"].as_u64());
        demand(
            usage["total_tokens"].as_u64() == sum.map(|(a, b)| a + b),
            "the total",
        )?;
    }
    for tool in response["tools"].as_array().ok_or("tools is no array")? {
        for key in ["name", "description", "parameters", "strict"] {
            let shown = tool["type"] != "function" || tool.get(key).is_some();
            demand(shown, &format!("a function shows no {key}"))?;
        }
    }
    demand(
        response["text"]["format"]["type"].is_string(),
        "text has no format",
    )?;
    demand(
        response["text"].get("verbosity") != Some(&Value::Null),
        "verbosity is null",
    )
}

fn check_error(json: &Value) -> Result<(), String> {
    demand(json["status"].is_u64(), "an error has no status")?;
    let error = &json["error"];
    for key in ["type", "code", "message"] {
        demand(error[key].is_string(), &format!("an error has no {key}"))?;
    }
    let param = error.get("param");
    let named = param.is_some_and(|param| param.is_string() || param.is_null());
    demand(named, "an error has no param")?;
    demand(
        error.get("headers") == json.get("headers"),
        "headers are in one place only",
    )
}

fn demand(holds: bool, problem: &str) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(problem.to_owned())
    }
}
