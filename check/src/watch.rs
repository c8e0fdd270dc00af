//! Watch: what must hold of every message of every connection, whatever the conversation is about.
//!
//! Rules about single messages and about the order of events are judged here, on all traffic of
//! a run. A conversation for such a rule only has to see to it that there is traffic to judge.

mod items;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use self::items::Items;
use crate::event::Event;
use crate::schema;
use crate::stop::SENTENCE_BYTES;
use crate::transcript::{Line, Transcript, shortened};

/// The first violation of each rule, over all connections of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Violations(Arc<Mutex<BTreeMap<u16, Violation>>>);

#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) sentence: String,
    pub(crate) wire: Vec<Line>,
}

/// Follows one connection.
#[derive(Debug)]
pub(crate) struct Watch {
    violations: Violations,
    transcript: Transcript,
    /// The response that runs on each lane.
    running: BTreeMap<Option<String>, Running>,
    ended: HashSet<String>,
    /// Creates of each lane that no response and no error has answered yet.
    asked: BTreeMap<Option<String>, usize>,
    /// A steered response has a successor that nobody asked for.
    steered: bool,
}

/// What matters of a message of ours, which may be large.
#[derive(Debug, Deserialize)]
pub(crate) struct Sent {
    #[serde(rename = "type")]
    kind: String,
    /// None where it is no string either.
    #[serde(default, deserialize_with = "string")]
    stream_id: Option<String>,
}

#[derive(Debug)]
struct Running {
    id: String,
    next_number: u64,
    in_progress: bool,
    items: Items,
}

impl Sent {
    /// A create on the default lane, for events that come over HTTP.
    pub(crate) fn create() -> Self {
        Self {
            kind: "response.create".to_owned(),
            stream_id: None,
        }
    }
}

impl Violations {
    pub(crate) fn add(&self, row: u16, violation: Violation) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(row).or_insert(violation);
    }

    /// The violation of the lowest row.
    pub(crate) fn first(&self) -> Option<(u16, Violation)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = all.first_key_value();
        first.map(|(row, violation)| (*row, violation.clone()))
    }

    pub(crate) fn of(&self, row: u16) -> Option<Violation> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&row).cloned()
    }
}

impl Watch {
    pub(crate) fn new(violations: Violations, transcript: Transcript) -> Self {
        Self {
            violations,
            transcript,
            running: BTreeMap::new(),
            ended: HashSet::new(),
            asked: BTreeMap::new(),
            steered: false,
        }
    }

    pub(crate) fn blame(&self, row: u16, sentence: impl Into<String>) {
        let violation = Violation {
            sentence: shortened(&sentence.into(), SENTENCE_BYTES),
            wire: self.transcript.lines(),
        };
        self.violations.add(row, violation);
    }

    /// A message of ours.
    pub(crate) fn sent(&mut self, message: &Sent) {
        match message.kind.as_str() {
            "response.create" => *self.asked.entry(message.stream_id.clone()).or_default() += 1,
            "response.steer" => self.steered = true,
            _ => {}
        }
    }

    /// A message of the server that is JSON.
    pub(crate) fn received(&mut self, json: &Value) -> Option<Event> {
        let Some(event) = Event::new(json.clone()) else {
            self.blame(12, format!("expected an object with a `type`; {json} came"));
            self.blame(
                20,
                format!("expected a string `type`; {} came", json["type"]),
            );
            return None;
        };
        let reserved = [
            "raw",
            "close",
            "event",
            "reconnecting",
            "reconnected",
            "open",
        ];
        if reserved.contains(&event.name.as_str()) {
            self.blame(20, format!("`{}` is a reserved name", event.name));
        }
        if let Some((row, mistake)) = schema::mistake_of_event(&event.name, json) {
            self.blame(row, mistake);
        }
        if json.get("stream_id").is_some_and(Value::is_null) {
            self.blame(117, "`stream_id` is null where it should be absent");
        }
        match event.name.as_str() {
            "error" => self.error(&event),
            name if name.starts_with("response.steer.") => self.notice(&event),
            name if name.starts_with("response.inject.") => {}
            "response.created" => self.created(&event),
            _ => self.turn_event(&event),
        }
        Some(event)
    }

    /// Whether a response runs whose items have all ended, so that nothing but its end is due.
    pub(crate) fn only_an_end_is_due(&self) -> bool {
        self.running.values().any(|turn| turn.items.all_done())
    }

    /// Whether a response has begun and not ended.
    pub(crate) fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    fn error(&mut self, event: &Event) {
        let error = &event.json["error"];
        if !event.json["status"].is_u64() {
            self.blame(
                78,
                format!("the `status` of an error is {}", event.json["status"]),
            );
        }
        for member in ["type", "message"] {
            if !error[member].is_string() {
                self.blame(78, format!("`error.{member}` is {}", error[member]));
            }
        }
        if error.get("code").is_none() {
            self.blame(78, "an error has no `code`");
        }
        if error["code"] == "rate_limit_exceeded" {
            let has = |headers: &Value| headers["retry-after"].is_string();
            if !(has(&event.json["headers"]) && has(&error["headers"])) {
                self.blame(
                    82,
                    "a rate limit error does not say `retry-after` in both places",
                );
            }
        }
        // An error that carries no lane may be the connection's, so it answers nothing for sure.
        let lane = event.lane().map(str::to_owned);
        if let Some(asked) = self.asked.get_mut(&lane) {
            *asked = asked.saturating_sub(1);
        }
    }

    fn notice(&mut self, event: &Event) {
        let lane = event.lane().map(str::to_owned);
        let Some(turn) = self.running.get_mut(&lane) else {
            return;
        };
        // A notice about an earlier response of the lane takes a number from that response.
        let about = &event.json["steer"]["previous_response_id"];
        let number = event.json["sequence_number"].as_u64();
        if *about == turn.id.as_str() && number == Some(turn.next_number) {
            turn.next_number += 1;
        }
    }

    fn created(&mut self, event: &Event) {
        let response = &event.json["response"];
        self.response(event);
        let lane = event.lane().map(str::to_owned);
        let id = response["id"].as_str().unwrap_or_default().to_owned();
        match self.asked.get_mut(&lane) {
            Some(asked) if *asked > 0 => *asked -= 1,
            _ if self.steered => {}
            _ => self.unasked(lane.as_deref()),
        }
        let status = response["status"].as_str().unwrap_or_default();
        if !["in_progress", "queued"].contains(&status)
            || response["output"] != Value::Array(vec![])
        {
            let sentence = format!(
                "expected `response.created` with status `in_progress` and no output; it has \
                 status `{status}` and output {}",
                response["output"]
            );
            self.blame(51, sentence);
        }
        let number = event.json["sequence_number"].as_u64();
        if number != Some(0) {
            let row = if self.ended.is_empty() { 53 } else { 54 };
            self.blame(
                row,
                format!(
                    "the first `sequence_number` is {} and not 0",
                    event.json["sequence_number"]
                ),
            );
        }
        let fresh = Running {
            id: id.clone(),
            next_number: number.unwrap_or(0) + 1,
            in_progress: false,
            items: Items::default(),
        };
        if let Some(former) = self.running.insert(lane.clone(), fresh) {
            let row = if lane.is_some() { 118 } else { 50 };
            self.blame(
                row,
                format!("{id} began while {} ran on the same lane", former.id),
            );
        }
    }

    /// A response began that no create of this connection asked for on this lane.
    fn unasked(&self, lane: Option<&str>) {
        let waiting = self.asked.iter().find(|(_, asked)| **asked > 0);
        let Some((wanted, _)) = waiting else {
            self.blame(55, "a response began that no create had asked for");
            return;
        };
        match (wanted, lane) {
            (Some(wanted), _) => self.blame(
                116,
                format!(
                    "the create named `stream_id` `{wanted}`; its response came with {}",
                    json!(lane)
                ),
            ),
            (None, _) => self.blame(
                117,
                format!(
                    "the create named no `stream_id`; its response came with {}",
                    json!(lane)
                ),
            ),
        }
    }

    fn turn_event(&mut self, event: &Event) {
        self.response(event);
        let lane = event.lane().map(str::to_owned);
        let of = event.json["response"]["id"].as_str();
        let stranger = match self.running.get(&lane) {
            None => true,
            Some(turn) => of.is_some_and(|id| id != turn.id),
        };
        if stranger {
            self.stranger(event, of);
            return;
        }
        let Some(turn) = self.running.get_mut(&lane) else {
            return;
        };
        let mut broken = Vec::new();
        let number = event.json["sequence_number"].as_u64();
        if number != Some(turn.next_number) {
            broken.push((
                53,
                format!(
                    "expected `sequence_number` {}; {} came",
                    turn.next_number, event.json["sequence_number"]
                ),
            ));
        }
        turn.next_number = number.unwrap_or(turn.next_number) + 1;
        if event.name == "response.in_progress" {
            turn.in_progress = true;
        } else if event.json.get("response").is_none() {
            if !turn.in_progress {
                broken.push((
                    52,
                    format!("`{}` came before `response.in_progress`", event.name),
                ));
                turn.in_progress = true;
            }
            turn.items.follow(event, &mut broken);
        }
        if event.is_terminal() {
            turn.items.end(&event.json["response"], &mut broken);
            if let Some(turn) = self.running.remove(&lane) {
                self.ended.insert(turn.id);
            }
        }
        for (row, sentence) in broken {
            self.blame(row, sentence);
        }
    }

    /// An event that fits no response that runs on its lane.
    fn stranger(&self, event: &Event, response: Option<&str>) {
        let Event { name, json } = event;
        let elsewhere = self.running.iter().find(|(_, turn)| {
            response == Some(&turn.id)
                || json["item_id"]
                    .as_str()
                    .is_some_and(|id| turn.items.contains(id))
        });
        if let Some((lane, _)) = elsewhere {
            let row = if lane.is_some() { 116 } else { 117 };
            let sentence = format!(
                "`{name}` came with `stream_id` {}; its response runs on {}",
                json["stream_id"],
                json!(lane)
            );
            self.blame(row, sentence);
        } else if response.is_some_and(|id| self.ended.contains(id)) && event.is_terminal() {
            self.blame(
                55,
                format!("a second terminal event, `{name}`, came for one response"),
            );
        } else if self.ended.is_empty() {
            self.blame(51, format!("`{name}` came before any `response.created`"));
        } else {
            self.blame(
                56,
                format!("`{name}` came after the terminal event of its turn"),
            );
        }
    }

    /// What holds of the response object of any event.
    fn response(&self, event: &Event) {
        let Some(response) = event.json.get("response") else {
            return;
        };
        let name = &event.name;
        if let Some(mistake) = schema::mistake_of_response(response) {
            self.blame(71, format!("{mistake} in the response of `{name}`"));
        }
        let error = &response["error"];
        let told = ["code", "message"]
            .iter()
            .all(|member| error[member].is_string());
        if name == "response.failed" && !told {
            self.blame(
                76,
                format!("expected `code` and `message` in `error`; it is {error}"),
            );
        }
        let status = response["status"].as_str().unwrap_or_default();
        let completed_at = &response["completed_at"];
        if completed_at.is_number() != (status == "completed") {
            self.blame(
                69,
                format!("`completed_at` is {completed_at} on a response with status `{status}`"),
            );
        }
        if event.is_terminal()
            && ["completed", "incomplete"].contains(&status)
            && let Some(mistake) = schema::mistake_of_usage(&response["usage"])
        {
            self.blame(70, format!("{mistake} in the `usage` of `{name}`"));
        }
        let tools = response["tools"].as_array();
        for tool in tools
            .into_iter()
            .flatten()
            .filter(|tool| tool["type"] == "function")
        {
            if let Some(mistake) = schema::mistake_of_function(tool) {
                self.blame(73, format!("{mistake} in a tool of `{name}`"));
            }
        }
    }
}

fn string<'de, D: Deserializer<'de>>(member: D) -> Result<Option<String>, D::Error> {
    let value = Value::deserialize(member)?;
    Ok(value.as_str().map(str::to_owned))
}
