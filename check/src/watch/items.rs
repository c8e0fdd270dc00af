//! Items: the output of one response, put together from its events.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::event::Event;

/// Rows that were broken, with what was expected and what came.
type Broken = Vec<(u16, String)>;

#[derive(Debug, Default)]
pub(super) struct Items(BTreeMap<u64, Item>);

#[derive(Debug, Default)]
struct Item {
    id: String,
    kind: String,
    call_id: Value,
    /// Arguments of a function, or input of a custom tool.
    payload: String,
    parts: BTreeMap<u64, Part>,
    summary: BTreeMap<u64, Part>,
    /// As `output_item.done` gave it.
    done: Option<Value>,
}

#[derive(Debug, Default)]
struct Part {
    kind: String,
    text: String,
}

/// Members that the validators of clients take as absent, but not as null.
const NEVER_NULL: [&str; 3] = ["phase", "encrypted_content", "logprobs"];

impl Items {
    /// Whether there are items, and each has ended.
    pub(super) fn all_done(&self) -> bool {
        !self.0.is_empty() && self.0.values().all(|item| item.done.is_some())
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        self.0.values().any(|item| item.id == id)
    }

    /// An event between `response.in_progress` and the terminal event.
    pub(super) fn follow(&mut self, event: &Event, broken: &mut Broken) {
        let Event { name, json } = event;
        let Some(index) = json["output_index"].as_u64() else {
            return;
        };
        if name == "response.output_item.added" {
            if index != self.0.len() as u64 {
                broken.push((
                    57,
                    format!("item {index} was added as number {}", self.0.len()),
                ));
            }
            self.0.insert(index, Item::added(&json["item"]));
            return;
        }
        let Some(item) = self.0.get_mut(&index) else {
            broken.push((57, format!("`{name}` came before item {index} was added")));
            return;
        };
        if item.done.is_some() {
            broken.push((57, format!("`{name}` came after item {index} was done")));
            return;
        }
        if let Some(id) = json["item_id"].as_str().filter(|id| *id != item.id) {
            broken.push((
                59,
                format!("`{name}` has `item_id` {id}; the item is {}", item.id),
            ));
        }
        if name == "response.output_item.done" {
            item.end(&json["item"], broken);
        } else {
            item.follow(event, broken);
        }
    }

    /// The terminal event has come, with this response.
    pub(super) fn end(&self, response: &Value, broken: &mut Broken) {
        let output = response["output"].as_array().map_or(&[][..], Vec::as_slice);
        let failed = response["status"] == "failed";
        let added = self.0.len();
        if output.len() != added && !failed {
            broken.push((
                61,
                format!(
                    "{added} items were streamed; the terminal `output` has {}",
                    output.len()
                ),
            ));
            return;
        }
        for ((index, item), last) in self.0.iter().zip(output) {
            match &item.done {
                None if !failed => {
                    broken.push((57, format!("item {index} was never done")));
                }
                Some(done) if done != last => broken.push((
                    60,
                    format!(
                        "item {index} has {} in the terminal `output`",
                        difference(done, last)
                    ),
                )),
                _ => {}
            }
        }
    }
}

/// The first member in which an item differs from what it was done as.
fn difference(done: &Value, last: &Value) -> String {
    let members = |item: &Value| {
        let names = item.as_object().into_iter().flatten();
        names.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let mut names = members(done);
    names.extend(members(last));
    let differs = |name: &&String| done.get(*name) != last.get(*name);
    let shown = |member: Option<&Value>| member.map_or("nothing".to_owned(), Value::to_string);
    match names.iter().find(differs) {
        Some(name) => format!(
            "{} where it was done with {} as its `{name}`",
            shown(last.get(name)),
            shown(done.get(name))
        ),
        None => "another form".to_owned(),
    }
}

impl Item {
    fn added(item: &Value) -> Self {
        Self {
            id: item["id"].as_str().unwrap_or_default().to_owned(),
            kind: item["type"].as_str().unwrap_or_default().to_owned(),
            call_id: item["call_id"].clone(),
            ..Self::default()
        }
    }

    fn follow(&mut self, event: &Event, broken: &mut Broken) {
        let Event { name, json } = event;
        let text = |member: &str| json[member].as_str().unwrap_or_default().to_owned();
        let part = json["content_index"].as_u64().unwrap_or_default();
        let summary = json["summary_index"].as_u64().unwrap_or_default();
        let name = name.strip_prefix("response.").unwrap_or(name);
        if name.starts_with("output_text.")
            && !name.contains("annotation")
            && !json["logprobs"].is_array()
        {
            broken.push((
                67,
                format!("`logprobs` of `{name}` is {}", json["logprobs"]),
            ));
        }
        match name {
            "content_part.added" => {
                if part != self.parts.len() as u64 {
                    broken.push((
                        58,
                        format!("part {part} came as number {}", self.parts.len()),
                    ));
                }
                let kind = json["part"]["type"].as_str().unwrap_or_default().to_owned();
                let text = String::new();
                self.parts.insert(part, Part { kind, text });
            }
            "output_text.delta" => self.grow(part, "output_text", &text("delta"), 58, broken),
            "refusal.delta" => self.grow(part, "refusal", &text("delta"), 75, broken),
            "reasoning_text.delta" | "reasoning.delta" => {
                self.grow(part, "reasoning_text", &text("delta"), 65, broken);
            }
            "output_text.done" => self.compare(part, &text("text"), name, 58, broken),
            "refusal.done" => self.compare(part, &text("refusal"), name, 75, broken),
            "reasoning_text.done" | "reasoning.done" => {
                self.compare(part, &text("text"), name, 65, broken);
            }
            "content_part.done" => {
                let said = ["text", "refusal"]
                    .iter()
                    .find_map(|member| json["part"][member].as_str());
                let row = self.row_of_part(part);
                self.compare(part, said.unwrap_or_default(), name, row, broken);
            }
            "function_call_arguments.delta" | "custom_tool_call_input.delta" => {
                self.payload.push_str(&text("delta"));
            }
            "function_call_arguments.done" => {
                self.compare_payload(&text("arguments"), name, 62, broken)
            }
            "custom_tool_call_input.done" => self.compare_payload(&text("input"), name, 63, broken),
            "reasoning_summary_part.added" => {
                let expected = self.summary.len() as u64;
                if summary != expected {
                    broken.push((
                        64,
                        format!("summary part {summary} came where {expected} was due"),
                    ));
                }
                self.summary.insert(summary, Part::default());
            }
            "reasoning_summary_text.delta" => match self.summary.get_mut(&summary) {
                Some(part) => part.text.push_str(&text("delta")),
                None => broken.push((64, format!("summary part {summary} was never added"))),
            },
            "reasoning_summary_text.done" => {
                let said = self.summary.get(&summary).map(|part| part.text.as_str());
                if said != Some(&text("text")) {
                    broken.push((
                        64,
                        format!("the deltas of summary part {summary} are not its text"),
                    ));
                }
            }
            _ => {}
        }
    }

    fn row_of_part(&self, part: u64) -> u16 {
        match self.parts.get(&part).map(|part| part.kind.as_str()) {
            Some("refusal") => 75,
            Some("reasoning_text") => 65,
            _ => 58,
        }
    }

    fn grow(&mut self, part: u64, kind: &str, delta: &str, row: u16, broken: &mut Broken) {
        match self.parts.get_mut(&part) {
            None => broken.push((row, format!("a delta came before part {part} was added"))),
            Some(part) => {
                if part.kind != kind {
                    broken.push((
                        row,
                        format!("a `{kind}` delta came for a `{}` part", part.kind),
                    ));
                }
                part.text.push_str(delta);
            }
        }
    }

    fn compare(&self, part: u64, text: &str, name: &str, row: u16, broken: &mut Broken) {
        let deltas = self.parts.get(&part).map_or("", |part| part.text.as_str());
        if deltas != text {
            broken.push((
                row,
                format!("the deltas say {deltas:?}; `{name}` says {text:?}"),
            ));
        }
    }

    fn compare_payload(&self, text: &str, name: &str, row: u16, broken: &mut Broken) {
        if self.payload != text {
            broken.push((
                row,
                format!("the deltas say {:?}; `{name}` says {text:?}", self.payload),
            ));
        }
    }

    fn end(&mut self, item: &Value, broken: &mut Broken) {
        if item["id"] != self.id.as_str() {
            broken.push((
                59,
                format!("item {} was done with `id` {}", self.id, item["id"]),
            ));
        }
        match self.kind.as_str() {
            "function_call" => {
                if item["call_id"] != self.call_id {
                    broken.push((
                        62,
                        format!(
                            "`call_id` was {} and became {}",
                            self.call_id, item["call_id"]
                        ),
                    ));
                }
                let arguments = item["arguments"].as_str().unwrap_or_default();
                self.compare_payload(arguments, "output_item.done", 62, broken);
            }
            "custom_tool_call" => {
                let input = item["input"].as_str().unwrap_or_default();
                self.compare_payload(input, "output_item.done", 63, broken);
            }
            "message" => {
                let parts = item["content"].as_array().map_or(&[][..], Vec::as_slice);
                for (index, part) in (0..).zip(parts) {
                    let said = ["text", "refusal"]
                        .iter()
                        .find_map(|member| part[member].as_str());
                    let row = self.row_of_part(index);
                    self.compare(
                        index,
                        said.unwrap_or_default(),
                        "output_item.done",
                        row,
                        broken,
                    );
                }
            }
            _ => {}
        }
        let mut nulls = NEVER_NULL
            .iter()
            .filter(|member| item.get(member) == Some(&Value::Null));
        if let Some(member) = nulls.next() {
            broken.push((
                72,
                format!("`{member}` of a done item is null and should be left out"),
            ));
        }
        self.done = Some(item.clone());
    }
}
