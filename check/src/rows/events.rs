//! Event stream: rows 51 to 77. The watch judges most of them on all traffic; what is here makes
//! each kind of traffic once, and skips the rows of a kind that this model does not make.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::case::Case;
use crate::event::Event;
use crate::probe::{Feature, function};
use crate::rows::{Section, conversation, unseen};
use crate::stop::{Held, ensure, skip};

/// Rows 51 to 61 and others: two turns of text, one after the other.
async fn text_turns(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    for text in ["Say hello.", "Tell me about stars in one sentence."] {
        let turn = socket.turn(case.ask(text)).await?;
        if turn.named("response.output_text.delta").next().is_none() {
            case.skip(58, "the model said no text");
            case.skip(67, "the model said no text");
        }
        ensure!(
            !turn.output().is_empty(),
            "expected a response with output; its `output` is empty"
        );
    }
    Ok(())
}

/// Row 67 with log probabilities that were asked for.
async fn logprobs(case: &Case) -> Held {
    let mut create = case.ask("Say hello.");
    if case.server.lack_of(Feature::Logprobs).await.is_none() {
        create["include"] = json!(["message.output_text.logprobs"]);
        create["top_logprobs"] = json!(2);
    }
    let turn = case.connect().await?.turn(create).await?;
    if turn.named("response.output_text.delta").next().is_none() {
        skip!("the model said no text");
    }
    Ok(())
}

/// Rows 62 and 73.
async fn function_call(case: &Case) -> Held {
    case.needs(Feature::Functions).await?;
    let create = case.create(json!({
        "tools": [function("look")],
        "tool_choice": {"type": "function", "name": "look"},
        "input": "What is in the kitchen?",
    }));
    let turn = case.connect().await?.turn(create).await?;
    if turn.calls().is_empty() {
        case.skip(62, "the model made no call although it was told to");
    }
    let echoes = |event: &Event| {
        event.json["response"]["tools"]
            .as_array()
            .is_some_and(|tools| tools.len() == 1)
    };
    if !turn.events.iter().any(echoes) {
        case.fail(73, "expected the one tool in the response; no event has it");
    }
    Ok(())
}

/// Row 63.
async fn custom_tool_call(case: &Case) -> Held {
    case.needs(Feature::CustomTools).await?;
    let create = case.create(json!({
        "tools": [{"type": "custom", "name": "note", "description": "Takes a note of a text."}],
        "tool_choice": {"type": "custom", "name": "note"},
        "input": "Take a note that the kitchen is empty.",
    }));
    let turn = case.connect().await?.turn(create).await?;
    let called = turn
        .output()
        .iter()
        .any(|item| item["type"] == "custom_tool_call");
    if !called {
        skip!("the model made no call although it was told to");
    }
    Ok(())
}

/// Rows 64 to 66.
async fn reasoning(case: &Case) -> Held {
    case.needs(Feature::Reasoning).await?;
    let create = case.create(json!({
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "input": "Which is larger, 17 times 3 or 50?",
    }));
    let turn = case.connect().await?.turn(create).await?;
    let streamed = |family: &str| {
        turn.events
            .iter()
            .any(|event| event.name.starts_with(family))
    };
    if !streamed("response.reasoning_summary_part.") {
        case.skip(64, "the model gave no reasoning summary");
    }
    if !streamed("response.reasoning_text.") {
        case.skip(65, "the model showed no reasoning text");
    }
    let item = turn
        .output()
        .iter()
        .find(|item| item["type"] == "reasoning");
    match item {
        None => case.skip(66, "the model did not reason"),
        Some(item) if !item["encrypted_content"].is_string() => {
            case.fail(
                66,
                format!("expected `encrypted_content` in a reasoning item; {item} came"),
            );
        }
        Some(_) => {}
    }
    Ok(())
}

/// Rows 68 and 69.
async fn cut_short(case: &Case) -> Held {
    if !case.server.takes_max_output_tokens {
        skip!("the server says that it has no `max_output_tokens`");
    }
    let create = case.long(json!({"max_output_tokens": 16}));
    let turn = case.connect().await?.turn(create).await?;
    let output_tokens = turn.response()["usage"]["output_tokens"].as_u64();
    if turn.status() == "completed" && output_tokens.is_some_and(|tokens| tokens < 16) {
        skip!("the model's answer was too short to be cut");
    }
    let reason = &turn.response()["incomplete_details"]["reason"];
    let last = turn.events.last().map(|event| event.name.as_str());
    ensure!(
        turn.status() == "incomplete"
            && reason == "max_output_tokens"
            && last == Some("response.incomplete"),
        "expected `response.incomplete` for `max_output_tokens` after 16 tokens; {} came \
         with status `{}`, reason {reason} and {} output tokens",
        json!(last),
        turn.status(),
        json!(output_tokens)
    );
    Ok(())
}

/// Row 74: which events come in which order, and which members they have.
async fn like_sse(case: &Case) -> Held {
    case.needs(Feature::HttpCreate).await?;
    let members = json!({"input": "Say hello."});
    let here = case
        .connect()
        .await?
        .turn(case.create(members.clone()))
        .await?;
    let mut request = case.request(members);
    request["stream"] = json!(true);
    let (there, _) = case.post_stream("responses", request).await?;
    let (here_order, there_order) = (order(&here.events), order(&there));
    ensure!(
        here_order == there_order,
        "expected the order of events to be that of HTTP, {}; on the socket it is {}",
        json!(there_order),
        json!(here_order)
    );
    let there = members_by_name(&there);
    for (name, here) in members_by_name(&here.events) {
        let there = &there[name];
        let more: Vec<_> = here.difference(there).collect();
        let less: Vec<_> = there.difference(&here).collect();
        ensure!(
            here == *there,
            "expected `{name}` to have the members it has over HTTP; on the socket it has {} \
             more and lacks {}",
            json!(more),
            json!(less)
        );
    }
    Ok(())
}

/// Row 77. Each `refusal` sees to it that nothing comes before the error.
async fn refused_at_once(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    let mut create = case.ask("Say hello.");
    create["model"] = json!("turnwire-check-no-such-model");
    socket.refusal(create).await?;
    let mut create = case.ask("Say hello.");
    create["previous_response_id"] = json!("resp_turnwire_never_was");
    socket.refusal(create).await?;
    Ok(())
}

/// The names of the events, a run of deltas as one, and all terminal events as the same. A
/// response that is said again to be in progress is a sign of life, which depends on time.
fn order(events: &[Event]) -> Vec<&str> {
    let sign_of_life =
        |(at, event): &(usize, &Event)| *at > 1 && event.name == "response.in_progress";
    let events = events
        .iter()
        .enumerate()
        .filter(|event| !sign_of_life(event));
    let mut order: Vec<_> = events
        .map(|(_, event)| match event.is_terminal() {
            true => "the end",
            false => event.name.as_str(),
        })
        .collect();
    order.dedup();
    order
}

/// The members of each kind of event, and of the response in it.
fn members_by_name(events: &[Event]) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut all = BTreeMap::<_, BTreeSet<_>>::new();
    for event in events {
        let name = if event.is_terminal() {
            "the end"
        } else {
            event.name.as_str()
        };
        let members = all.entry(name).or_default();
        for object in [&event.json, &event.json["response"]] {
            let names = object.as_object().into_iter().flatten();
            members.extend(names.map(|(name, _)| name.as_str()));
        }
        members.remove("stream_id");
        members.remove("obfuscation");
    }
    all
}

pub(super) const SECTION: Section = Section {
    number: "3",
    title: "Event stream",
    conversations: &[
        conversation!(text_turns:
            51 "The first event is response.created, in progress and without output",
            52 "response.in_progress comes before any item event",
            53 "sequence_number starts at 0 and rises by 1",
            54 "Each turn begins its own count at 0",
            55 "Exactly one terminal event for each turn",
            56 "Nothing of a turn follows its terminal event",
            57 "output_item.added precedes all events of the item, output_item.done follows them",
            58 "Text deltas add up to the text of the done events and of the part",
            59 "item_id of deltas is the id of the item",
            60 "output_item.done has the item as it is in the terminal output",
            61 "The terminal output is complete",
            70 "Terminal events have usage with all its parts",
            71 "Every lifecycle event has the 31 required keys",
            72 "Optional members of items without a value are left out",
        ),
        conversation!(function_call:
            62 "Argument deltas add up to the call's arguments, and call_id is stable",
            73 "Echoed function tools have all their members",
        ),
        conversation!(custom_tool_call:
            63 "Input deltas of a custom tool call add up to its input",
        ),
        conversation!(reasoning:
            64 "Reasoning summary parts come in order, none skipped",
            65 "Reasoning text deltas come after their content part",
            66 "Encrypted reasoning is included where it is asked for",
        ),
        conversation!(logprobs: 67 "logprobs is an array on text deltas and done events"),
        conversation!(cut_short:
            68 "Reaching max_output_tokens gives response.incomplete",
            69 "completed_at is set on completed responses and null on others",
        ),
        conversation!(like_sse: 74 "The events are those of HTTP SSE for the same request"),
        unseen!("no model refuses on request":
            75 "A refusal streams as a refusal part",
        ),
        unseen!("no engine fails on request":
            76 "A failure of the model in mid-turn gives response.failed",
        ),
        conversation!(refused_at_once:
            77 "A failure before the start gives an error and no response.created",
        ),
    ],
};
