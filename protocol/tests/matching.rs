//! Requests that bring their whole history are answered alike, whether it is known or not.
//!
//! An agent sends all it has with every request, over HTTP, to two servers at once: one that
//! matches histories and one that does not. Ids count upwards in both, so everything that they
//! send is compared byte for byte, and everything that their engines are asked for item by item.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use turnwire_protocol::action::{Action, TurnKey};
use turnwire_protocol::chain::Chain;
use turnwire_protocol::engine::{
    EngineFailure, EngineFailureKind, EngineOutput, FinishReason, ItemStart, Purpose, TurnRequest,
    Usage,
};
use turnwire_protocol::history::History;
use turnwire_protocol::id::IdSource;
use turnwire_protocol::item::{Item, ItemKind};
use turnwire_protocol::limits::Limits;
use turnwire_protocol::seal::Transparent;
use turnwire_protocol::session::{Now, Session, Transport};
use turnwire_protocol::stored::Permit;

const NOW: Now = Now {
    elapsed: Duration::ZERO,
    unix_seconds: 1_800_000_000,
};

#[derive(Default)]
struct Counter(u128);

impl IdSource for Counter {
    fn mint(&mut self) -> u128 {
        self.0 += 1;
        self.0
    }
}

/// What one request does, by numbers that mean something below.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// What the client adds to its history, or does to it.
    adds: u8,
    /// Settings of the request.
    asks: u8,
    /// What the model answers.
    says: u8,
    /// In which form the client writes its history.
    writes: u8,
}

/// One server, which may match histories.
#[derive(Default)]
struct Server {
    matches: bool,
    ids: Counter,
    kept: HashMap<History, Chain>,
    found: usize,
}

/// What came of a request.
#[derive(Debug, Default, PartialEq)]
struct Told {
    events: Vec<Bytes>,
    /// What an engine was asked for, in so far as it says something to a model.
    asked: Vec<String>,
    saved: usize,
}

impl Server {
    fn serve(&mut self, body: &str, step: Step) -> Told {
        let (limits, permit) = (Limits::default(), Some(Permit::grant()));
        let sealer = Arc::new(Transparent);
        let mut session = Session::new(Transport::Http, limits, sealer, permit, NOW);
        if self.matches {
            session.match_histories();
        }
        let mut told = Told::default();
        session.handle_message(NOW, &mut self.ids, body.to_owned().into());
        while let Some(action) = session.poll_action() {
            match action {
                Action::Match { turn, prefixes } => {
                    let mut found = prefixes.iter().filter_map(|prefix| {
                        Some((prefix.items, self.kept.get(&prefix.history)?.clone()))
                    });
                    let found = found.next();
                    self.found += usize::from(found.is_some());
                    session.handle_matched(NOW, &mut self.ids, turn, found);
                }
                Action::Keep { history, chain } => drop(self.kept.insert(history, chain)),
                Action::Start { turn, request, .. } => {
                    told.asked.push(what_is_asked(&request));
                    self.answer(&mut session, turn, &request, step);
                }
                Action::Save { turn, .. } => {
                    told.saved += 1;
                    session.handle_saved(NOW, &mut self.ids, turn, Ok(()));
                }
                Action::Send(event) => told.events.push(event.json),
                Action::Ended { .. } => {}
                other => panic!("not over HTTP: {other:?}"),
            }
        }
        told
    }

    fn answer(&mut self, session: &mut Session, turn: TurnKey, asked: &TurnRequest, step: Step) {
        for output in outputs(asked, step) {
            session.handle_output(NOW, &mut self.ids, turn, output);
        }
    }
}

/// All that a model is to be shown, and how it is to answer. Not which part of it is a chain.
fn what_is_asked(request: &TurnRequest) -> String {
    let mut links: Vec<&Chain> = request.parent.iter().flat_map(Chain::ancestry).collect();
    links.reverse();
    let links = links.into_iter();
    let held = links.flat_map(|link| link.input().iter().chain(&**link.output()));
    let shown: Vec<Value> = held.chain(&*request.input).map(shown).collect();
    let tools = request.offered().map(|tool| tool.name.qualified());
    let tools: Vec<Arc<str>> = tools.collect();
    format!(
        "{shown:?} {tools:?} {:?} {:?} {:?} {:?} {:?}",
        request.tool_choice,
        request.format,
        request.reasoning_effort,
        request.generate,
        request.purpose
    )
}

/// An item as the embedded engine reads it.
fn shown(item: &Item) -> Value {
    let json: Value = serde_json::from_slice(item.raw()).expect("an item is JSON");
    let text = |value: &Value| match value {
        Value::Array(parts) => {
            let text = |part: &Value| part["text"].as_str().unwrap_or("?").to_owned();
            parts.iter().map(text).collect()
        }
        value => value.as_str().unwrap_or_default().to_owned(),
    };
    match item.kind() {
        ItemKind::Message => json!([json["role"], text(&json["content"])]),
        ItemKind::Reasoning => match json["content"].as_array().is_none_or(Vec::is_empty) {
            true => json!(["thinks", item.revealed()]),
            false => json!(["thinks", text(&json["content"])]),
        },
        ItemKind::FunctionCall => {
            json!(["calls", json["call_id"], json["name"], json["arguments"]])
        }
        ItemKind::FunctionCallOutput => json!([item.call_id(), text(&json["output"])]),
        ItemKind::Compaction => json!(["summary", item.revealed()]),
        _ => {
            let mut json = json;
            let members = json.as_object_mut().expect("an item is an object");
            members.retain(|name, _| !matches!(&**name, "id" | "status"));
            members.sort_keys();
            json
        }
    }
}

fn outputs(asked: &TurnRequest, step: Step) -> Vec<EngineOutput> {
    let message = |text: &str| {
        let (text, logprobs) = (text.to_owned(), Vec::new());
        vec![
            EngineOutput::ItemStarted(ItemStart::Message),
            EngineOutput::TextDelta { text, logprobs },
            EngineOutput::ItemDone,
        ]
    };
    let call = || {
        let (tool, text) = ("f".into(), "{}".to_owned());
        vec![
            EngineOutput::ItemStarted(ItemStart::FunctionCall { tool }),
            EngineOutput::ArgumentsDelta { text },
            EngineOutput::ItemDone,
        ]
    };
    let think = || {
        let text = "hm".to_owned();
        vec![
            EngineOutput::ItemStarted(ItemStart::Reasoning),
            EngineOutput::ReasoningDelta { text },
            EngineOutput::ItemDone,
        ]
    };
    let failed = |kind| {
        let (message, param) = ("No.".to_owned(), Some("input".to_owned()));
        vec![EngineOutput::Failed(EngineFailure {
            kind,
            message,
            param,
        })]
    };
    if asked.purpose == Purpose::Summary {
        let said = message("We talked.");
        return [
            vec![EngineOutput::Started],
            said,
            finished(FinishReason::Stop),
        ]
        .concat();
    }
    let (said, reason) = match step.says % 16 {
        // Refused, and not because of what is continued: the same without it.
        0 => return failed(EngineFailureKind::Invalid),
        1 => return failed(EngineFailureKind::Overloaded),
        2 | 3 if asked.compact_threshold.is_some() => (vec![], FinishReason::ContextThreshold),
        2..=5 => (call(), FinishReason::Stop),
        6 => ([call(), call()].concat(), FinishReason::Stop),
        7 => ([think(), message("ok")].concat(), FinishReason::Stop),
        8 => (think(), FinishReason::Stop),
        9 => {
            let mut cut = message("ok and");
            cut.pop();
            (cut, FinishReason::MaxOutputTokens)
        }
        10 => (vec![], FinishReason::Stop),
        said => (
            message(["a", "b", "\"é\n"][usize::from(said % 3)]),
            FinishReason::Stop,
        ),
    };
    let said = if asked.generate { said } else { vec![] };
    [vec![EngineOutput::Started], said, finished(reason)].concat()
}

fn finished(reason: FinishReason) -> Vec<EngineOutput> {
    let (usage, state) = (Usage::default(), None);
    vec![EngineOutput::Finished {
        reason,
        usage,
        state,
    }]
}

/// Adds to the history what the client has to say.
fn add(history: &mut Vec<Value>, step: Step) {
    let user = |text: &str| json!({"role": "user", "content": text});
    let answered = |call_id: &Value| {
        history
            .iter()
            .any(|item| item["type"] == "function_call_output" && item["call_id"] == *call_id)
    };
    let calls = history
        .iter()
        .filter(|item| item["type"] == "function_call");
    let ids = calls.map(|call| call["call_id"].clone());
    let open: Vec<Value> = ids.filter(|call_id| !answered(call_id)).collect();
    // Mostly what is asked for, and sometimes not.
    if step.adds % 32 != 31 {
        for call_id in open {
            let output = json!({"type": "function_call_output", "call_id": call_id, "output": "1"});
            history.push(output);
        }
    }
    match step.adds % 32 {
        0..=15 => history.push(user(["a", "b"][usize::from(step.adds % 2)])),
        16 => history.push(json!({"role": "developer", "content": "be kind"})),
        17 => {
            history.push(json!({"type": "configuration_update", "reasoning": {"effort": "high"}}))
        }
        18 => history.push(json!({"type": "additional_tools", "tools": [
            {"type": "function", "name": if step.says < 128 { "f" } else { "g" }}]})),
        19 => history.push(json!({"type": "new_thing", "id": "x", "a": {"b": null}})),
        20 => history.push(json!({"type": "compaction_trigger"})),
        21 => drop(history.pop()),
        22 => history.truncate(history.len() / 2),
        23 => history.extend(history.first().cloned()),
        24 => history.extend(history.last().cloned()),
        25 => history
            .push(json!({"role": "user", "content": [{"type": "input_image", "image_url": "u"}]})),
        26 => history.push(json!({"type": "function_call_output", "call_id": "c", "output": ""})),
        27 => history.iter_mut().for_each(|item| {
            if item["role"] == "user" && item["content"] == "a" {
                item["content"] = "c".into();
            }
        }),
        _ => {}
    }
}

/// The item as the client writes it.
fn written(item: &Value, how: u8) -> Value {
    let Some(members) = item.as_object() else {
        return item.clone();
    };
    let mut kept: Vec<(String, Value)> = Vec::new();
    for (name, value) in members {
        let value = match &**name {
            "id" | "status" if how & 1 > 0 => continue,
            "type" if how & 2 > 0 && value == "message" => continue,
            "encrypted_content" if how & 4 > 0 && item["type"] == "reasoning" => continue,
            "content" if how & 8 > 0 && item["type"] == "reasoning" && how & 4 == 0 => Value::Null,
            "content" if how & 16 > 0 && item["content"][0]["type"] == "output_text" => {
                item["content"][0]["text"].clone()
            }
            _ => value.clone(),
        };
        kept.push((name.clone(), value));
    }
    if how & 32 > 0 {
        kept.reverse();
    }
    Value::Object(Map::from_iter(kept))
}

fn body(history: &[Value], step: Step) -> String {
    let input: Vec<Value> = history
        .iter()
        .map(|item| written(item, step.writes))
        .collect();
    let mut body = json!({"model": "m", "input": input, "stream": true,
        "tools": [{"type": "function", "name": "f"}]});
    for (bits, name, value) in [
        (1, "store", json!(false)),
        (2, "include", json!(["reasoning.encrypted_content"])),
        (
            12,
            "context_management",
            json!([{"type": "compaction", "compact_threshold": 1000}]),
        ),
        (48, "truncation", json!("auto")),
        (96, "prompt_cache_options", json!({"prewarm": true})),
        (192, "reasoning", json!({"effort": "low"})),
    ] {
        if step.asks & bits == bits {
            body[name] = value;
        }
    }
    body.to_string()
}

/// How often something was found.
fn converse(steps: &[Step]) -> usize {
    let (mut plain, mut matching) = (Server::default(), Server::default());
    matching.matches = true;
    let mut history = Vec::new();
    for &step in steps {
        add(&mut history, step);
        let body = body(&history, step);
        let expected = plain.serve(&body, step);
        let found = matching.found;
        let mut told = matching.serve(&body, step);
        // What an engine refuses of a match it is asked for once more, with nothing changed.
        let again = told.asked.len() == 2 && expected.asked.len() == 1;
        if again && matching.found > found && told.asked[0] == told.asked[1] {
            told.asked.pop();
        }
        assert_eq!(told.asked, expected.asked, "{body}");
        assert_eq!(told, expected, "{body}");
        assert_eq!(plain.ids.0, matching.ids.0);
        let last = expected.events.last().expect("every request is answered");
        let last: Value = serde_json::from_slice(last).expect("an event is JSON");
        match last["response"]["output"].as_array() {
            Some(output) if last["response"]["error"].is_null() => {
                history.extend_from_slice(output)
            }
            _ => {}
        }
        history.retain(|item| item["type"] != "compaction_trigger");
    }
    matching.found
}

fn step() -> impl Strategy<Value = Step> {
    (any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>()).prop_map(|(adds, asks, says, writes)| {
        Step {
            adds,
            asks,
            says,
            writes,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_known_history_changes_nothing_that_a_client_or_a_model_is_shown(
        steps in vec(step(), 1..24),
    ) {
        converse(&steps);
    }
}

/// An agent that uses tools and changes nothing of what was said is known from its second request
/// on, in whatever form it writes.
#[test]
fn an_agent_is_known_from_its_second_request_on() {
    for writes in 0..64 {
        // A reasoning item that is sent back neither in the open nor sealed is another one.
        let step = |says| Step {
            adds: 0,
            asks: 3,
            says,
            writes,
        };
        let steps = [2, 7, 6, 11, 9, 2, 2, 12].map(step);
        assert_eq!(converse(&steps), steps.len() - 1, "{writes}");
    }
}
