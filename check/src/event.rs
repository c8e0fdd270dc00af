//! Event: a server message that was understood, and the turn that events make up.

use std::fmt;

use serde_json::Value;

use crate::stop::{Stop, ensure, fail};

/// A JSON object with a `type`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) json: Value,
}

/// One response as it was streamed, from `response.created` to its terminal event.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    pub(crate) events: Vec<Event>,
}

/// An `error` event.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) json: Value,
}

impl Event {
    /// `None` unless the JSON is an object with a string `type`.
    pub(crate) fn new(json: Value) -> Option<Self> {
        let name = json.get("type")?.as_str()?.to_owned();
        Some(Self { name, json })
    }

    /// The lane it belongs to; `None` is the default lane.
    pub(crate) fn lane(&self) -> Option<&str> {
        self.json["stream_id"].as_str()
    }

    /// Whether a create is answered to the end with this event.
    pub(crate) fn is_ending(&self) -> bool {
        self.name == "error" || self.is_terminal()
    }

    /// Whether a response ends with this event.
    pub(crate) fn is_terminal(&self) -> bool {
        let terminal = ["completed", "incomplete", "failed"];
        self.name
            .strip_prefix("response.")
            .is_some_and(|rest| terminal.contains(&rest))
    }

    /// Whether a piece of output came with it.
    pub(crate) fn is_delta(&self) -> bool {
        self.name.ends_with(".delta")
    }
}

impl Turn {
    /// The response object of the last event.
    pub(crate) fn response(&self) -> &Value {
        let last = self.events.last();
        last.map_or(&Value::Null, |event| &event.json["response"])
    }

    pub(crate) fn id(&self) -> &str {
        self.response()["id"].as_str().unwrap_or_default()
    }

    pub(crate) fn status(&self) -> &str {
        self.response()["status"].as_str().unwrap_or_default()
    }

    pub(crate) fn output(&self) -> &[Value] {
        self.response()["output"]
            .as_array()
            .map_or(&[], Vec::as_slice)
    }

    /// All text of its messages.
    pub(crate) fn text(&self) -> String {
        let parts = self
            .output()
            .iter()
            .filter_map(|item| item["content"].as_array());
        let texts = parts.flatten().filter(|part| part["type"] == "output_text");
        texts.filter_map(|part| part["text"].as_str()).collect()
    }

    /// Its calls of functions.
    pub(crate) fn calls(&self) -> Vec<&Value> {
        let calls = self.output().iter();
        calls
            .filter(|item| item["type"] == "function_call")
            .collect()
    }

    /// Tokens of the whole prompt; `None` if the server does not say.
    pub(crate) fn input_tokens(&self) -> Option<u64> {
        self.response()["usage"]["input_tokens"].as_u64()
    }

    /// The events with this name.
    pub(crate) fn named<'t>(&'t self, name: &'t str) -> impl Iterator<Item = &'t Event> {
        self.events.iter().filter(move |event| event.name == name)
    }

    /// Fails unless the response ended as `completed`, or as `incomplete` because it was long.
    pub(crate) fn expect_usable(&self) -> Result<&Self, Stop> {
        let error = &self.response()["error"];
        match self.status() {
            "completed" | "incomplete" => Ok(self),
            "failed" => fail!(
                "expected a response; it failed with {}: {}",
                error["code"],
                error["message"]
            ),
            other => fail!("expected a response that ended well; its status is `{other}`"),
        }
    }

    /// The turns of one connection's events, in the order of their endings. Events that belong to
    /// no turn, and turns that did not end, are left out.
    pub(crate) fn all_of(events: &[Event]) -> Vec<Self> {
        let mut open: Vec<(Option<&str>, Self)> = Vec::new();
        let mut ended = Vec::new();
        for event in events {
            let lane = event.lane();
            if event.name == "response.created" {
                open.push((lane, Self { events: Vec::new() }));
            }
            let Some(at) = open.iter().rposition(|(of, _)| *of == lane) else {
                continue;
            };
            if event.name != "error" {
                open[at].1.events.push(event.clone());
            }
            if event.is_terminal() {
                ended.push(open.remove(at).1);
            }
        }
        ended
    }
}

impl Refusal {
    pub(crate) fn status(&self) -> Option<u64> {
        self.json["status"].as_u64()
    }

    pub(crate) fn code(&self) -> Option<&str> {
        self.json["error"]["code"].as_str()
    }

    pub(crate) fn param(&self) -> Option<&str> {
        self.json["error"]["param"].as_str()
    }

    pub(crate) fn message(&self) -> &str {
        self.json["error"]["message"].as_str().unwrap_or_default()
    }

    pub(crate) fn lane(&self) -> Option<&str> {
        self.json["stream_id"].as_str()
    }

    pub(crate) fn expect_status(&self, status: u64) -> Result<&Self, Stop> {
        ensure!(
            self.status() == Some(status),
            "expected an error with status {status}; it came as {self}"
        );
        Ok(self)
    }

    pub(crate) fn expect_code(&self, code: &str) -> Result<&Self, Stop> {
        ensure!(
            self.code() == Some(code),
            "expected an error with code `{code}`; it came as {self}"
        );
        Ok(self)
    }

    /// A member counts as named if `param` is it, or a path into it.
    pub(crate) fn expect_param(&self, member: &str) -> Result<&Self, Stop> {
        let names = |param: &str| {
            let rest = param.strip_prefix(member);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        ensure!(
            self.param().is_some_and(names),
            "expected an error whose `param` is `{member}`; it came as {self}"
        );
        Ok(self)
    }

    /// What the server says it has not, if this is what it says. `words` are the members, events
    /// or values that the request needed; one of them has to be named unless the code is plain.
    pub(crate) fn declares_lack_of(&self, words: &[&str]) -> Option<String> {
        const PLAIN: [&str; 5] = [
            "unsupported_parameter",
            "unknown_parameter",
            "unsupported_event_type",
            "unsupported_value",
            "steering_not_supported",
        ];
        const MADE_FOR_OTHERS: [&str; 3] = [
            "previous_response_not_found",
            "model_not_found",
            "invalid_stream_id",
        ];
        let code = self.code().unwrap_or_default();
        let refuses = matches!(self.status(), Some(400 | 403 | 404 | 422 | 501) | None);
        let named = words.iter().any(|word| {
            self.param().is_some_and(|param| param.starts_with(word))
                || self.message().contains(word)
        });
        let declares =
            PLAIN.contains(&code) || (refuses && named && !MADE_FOR_OTHERS.contains(&code));
        declares.then(|| format!("the server says it has no such thing: {self}"))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(status) = self.status() {
            write!(f, "{status} ")?;
        }
        match self.code() {
            Some(code) => write!(f, "`{code}`")?,
            None => f.write_str("without a code")?,
        }
        if let Some(param) = self.param() {
            write!(f, " (param `{param}`)")?;
        }
        write!(f, ": {:?}", self.message())
    }
}
