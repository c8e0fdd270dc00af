//! Probe: which optional parts of the mode the server says it has not.
//!
//! Only a refusal that names the thing counts as saying so. A server that ignores a member,
//! answers something else or nothing at all has said nothing, and is judged.

use std::collections::HashMap;

use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::case::Case;
use crate::event::Refusal;
use crate::socket::Answer;
use crate::stop::Stop;

/// A part of the mode that servers leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Feature {
    Lanes,
    WarmUp,
    Continuation,
    Steering,
    Cancel,
    /// `context_management` inside a turn.
    Compaction,
    /// `compaction_trigger` as an input item.
    CompactionTrigger,
    /// `POST responses/compact`.
    CompactEndpoint,
    Functions,
    AsyncTools,
    CustomTools,
    Logprobs,
    Reasoning,
    Metadata,
    /// `POST responses`.
    HttpCreate,
    /// `GET responses/{id}` of what was stored.
    Stored,
    Models,
}

const ALL: [Feature; 17] = [
    Feature::Lanes,
    Feature::WarmUp,
    Feature::Continuation,
    Feature::Steering,
    Feature::Cancel,
    Feature::Compaction,
    Feature::CompactionTrigger,
    Feature::CompactEndpoint,
    Feature::Functions,
    Feature::AsyncTools,
    Feature::CustomTools,
    Feature::Logprobs,
    Feature::Reasoning,
    Feature::Metadata,
    Feature::HttpCreate,
    Feature::Stored,
    Feature::Models,
];

/// A cell for each feature, to be filled when a row needs it.
pub(crate) fn unknown() -> HashMap<Feature, OnceCell<Option<String>>> {
    ALL.map(|feature| (feature, OnceCell::new())).into()
}

/// What the server says of a feature that it has not.
pub(crate) async fn probe(case: &Case, feature: Feature) -> Option<String> {
    // A conversation that ends some other way has not said that anything is missing.
    match feature {
        Feature::Lanes => {
            let create = json!({"stream_id": "turnwire-probe", "input": "Say hello."});
            refused(case, create, &["stream_id"]).await
        }
        Feature::WarmUp => {
            refused(
                case,
                json!({"generate": false, "input": "Say hello."}),
                &["generate"],
            )
            .await
        }
        Feature::Continuation => continuation(case).await,
        Feature::Steering => {
            let steer = json!({"type": "response.steer", "input": "Stop counting."});
            said_to_a_running_turn(case, steer, "previous_response_id", "response.steer").await
        }
        Feature::Cancel => {
            let cancel = json!({"type": "response.cancel"});
            said_to_a_running_turn(case, cancel, "response_id", "response.cancel").await
        }
        Feature::Compaction => {
            let management = json!([{"type": "compaction", "compact_threshold": 1_000_000}]);
            let create = json!({"context_management": management, "input": "Say hello."});
            refused(case, create, &["context_management", "compaction"]).await
        }
        Feature::CompactionTrigger => {
            let input = json!([
                {"role": "user", "content": "My name is Ada."},
                {"type": "compaction_trigger"},
            ]);
            refused(case, json!({"input": input}), &["compaction_trigger"]).await
        }
        Feature::CompactEndpoint => {
            let body = json!({"model": case.server.model, "input": "My name is Ada."});
            let reply = case.post("responses/compact", body).await.ok()?;
            reply.declares_lack_of("POST /responses/compact")
        }
        Feature::Functions => {
            let create = json!({"tools": [function("look")], "input": "Say hello."});
            refused(case, create, &["tools", "function"]).await
        }
        Feature::AsyncTools => {
            let mut tool = function("look");
            tool["async"] = json!(true);
            refused(
                case,
                json!({"tools": [tool], "input": "Say hello."}),
                &["async"],
            )
            .await
        }
        Feature::CustomTools => {
            let tool = json!({"type": "custom", "name": "note", "description": "Takes a note."});
            let choice = json!({"type": "custom", "name": "note"});
            let create = json!({"tools": [tool], "tool_choice": choice, "input": "Note this."});
            refused(case, create, &["tools", "tool_choice", "custom"]).await
        }
        Feature::Logprobs => {
            let create = json!({
                "include": ["message.output_text.logprobs"],
                "top_logprobs": 2,
                "input": "Say hello.",
            });
            refused(case, create, &["logprobs", "include"]).await
        }
        Feature::Reasoning => {
            let create = json!({
                "include": ["reasoning.encrypted_content"],
                "input": "Say hello.",
            });
            refused(case, create, &["reasoning", "include"]).await
        }
        Feature::Metadata => {
            let create = json!({"metadata": {"a": "b"}, "input": "Say hello."});
            refused(case, create, &["metadata"]).await
        }
        Feature::HttpCreate => {
            let request = case.request(json!({"input": "Say hello."}));
            let reply = case.post("responses", request).await.ok()?;
            reply.declares_lack_of("POST /responses")
        }
        Feature::Stored => stored(case).await,
        Feature::Models => {
            let reply = case.get("models").await.ok()?;
            reply.declares_lack_of("GET /models")
        }
    }
}

/// A function tool that takes one string.
pub(crate) fn function(name: &str) -> Value {
    json!({
        "type": "function",
        "name": name,
        "description": "Looks at a place and says what is there.",
        "strict": true,
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}},
            "required": ["place"],
            "additionalProperties": false,
        },
    })
}

/// What the server says to a create with these members if it refuses it for what `words` name.
async fn refused(case: &Case, members: Value, words: &[&str]) -> Option<String> {
    let mut socket = case.connect().await.ok()?;
    match socket.answer(case.create(members)).await.ok()? {
        Answer::Turn(_) => None,
        Answer::Refused(refusal) => refusal.declares_lack_of(words),
    }
}

async fn continuation(case: &Case) -> Option<String> {
    let mut socket = case.connect().await.ok()?;
    let parent = socket.turn(case.ask("Say hello.")).await.ok()?;
    match socket.answer(case.onto(&parent, "Again.")).await.ok()? {
        Answer::Turn(_) => None,
        Answer::Refused(refusal) => refusal.declares_lack_of(&["previous_response_id"]),
    }
}

/// What the server says to a message about a turn that runs.
async fn said_to_a_running_turn(
    case: &Case,
    mut message: Value,
    member: &str,
    word: &str,
) -> Option<String> {
    let mut socket = case.connect().await.ok()?;
    let running = socket.begin(case.long(json!({}))).await.ok()?;
    message[member] = json!(running);
    socket.send(message).await.ok()?;
    // Events are in order, so an answer comes before the next turn begins, whatever it waits for.
    socket.send(case.ask("Say hello.")).await.ok()?;
    let events = socket.read_until("an answer", |events| {
        let last = events.last();
        last.is_some_and(|event| {
            let answers = event.name == "error" || event.name.starts_with("response.steer.");
            answers || event.name == "response.created"
        })
    });
    let last = events.await.ok()?.pop()?;
    let refusal = Refusal { json: last.json };
    match last.name.as_str() {
        // Some servers name what they know instead of what came.
        "error" => refusal.declares_lack_of(&[word, "type", "response.create"]),
        "response.steer.failed" if refusal.code() == Some("steering_not_supported") => {
            refusal.declares_lack_of(&[])
        }
        _ => None,
    }
}

/// A 404 that does not speak of the response is one of a server without the endpoint.
async fn stored(case: &Case) -> Option<String> {
    let mut socket = case.connect().await.ok()?;
    let create = case.create(json!({"store": true, "input": "Say hello."}));
    let turn = match socket.answer(create).await {
        Ok(Answer::Turn(turn)) => turn,
        Ok(Answer::Refused(refusal)) => return refusal.declares_lack_of(&["store"]),
        Err(Stop::Fail(_) | Stop::Skip(_)) => return None,
    };
    let reply = case.get(&format!("responses/{}", turn.id())).await.ok()?;
    let message = reply.json["error"]["message"].as_str().unwrap_or_default();
    let knows_responses = message.contains(turn.id()) || reply.code() == Some("response_not_found");
    match knows_responses {
        true => None,
        false => reply.declares_lack_of("GET /responses/{id}"),
    }
}
