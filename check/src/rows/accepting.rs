//! `response.create`, what is accepted and what is refused: rows 29 to 50.

use serde_json::{Value, json};

use crate::case::Case;
use crate::event::{Refusal, Turn};
use crate::probe::{Feature, function};
use crate::rows::context::{QUESTION, SECRET, bare_tokens, expect_unseen};
use crate::rows::{Section, conversation};
use crate::socket::Socket;
use crate::stop::{Held, ensure, fail, skip};

/// Row 29: nothing but what has to be there.
async fn least_create(case: &Case) -> Held {
    let create = json!({
        "type": "response.create", "model": case.server.model, "input": "Say hello in one word.",
    });
    case.connect().await?.turn(create).await?;
    Ok(())
}

/// Row 30.
async fn items(case: &Case) -> Held {
    let parts = json!([{"type": "input_text", "text": "Say hello."}]);
    accepts_each(
        case,
        [
            json!({"input": [{"role": "user", "content": "Say hello."}]}),
            json!({"input": [{"role": "user", "content": parts}]}),
            json!({"input": [
                {"type": "message", "role": "developer", "content": "Be brief."},
                {"type": "message", "role": "user", "content": "Say hello."},
            ]}),
        ],
    )
    .await
}

/// Row 31.
async fn stream(case: &Case) -> Held {
    accepts_each(case, [true, false].map(|stream| json!({"stream": stream}))).await
}

/// Row 32.
async fn background_off(case: &Case) -> Held {
    accepts_each(
        case,
        [json!({"background": false}), json!({"background": null})],
    )
    .await
}

/// Row 33.
async fn background_on(case: &Case) -> Held {
    let create = case.create(json!({"background": true, "input": "Say hello."}));
    let refusal = case.connect().await?.refusal(create).await?;
    refusal.expect_status(400)?.expect_param("background")?;
    Ok(())
}

/// Row 34.
async fn stream_options(case: &Case) -> Held {
    accepts_each(
        case,
        [
            json!({"stream_options": {"include_obfuscation": false}}),
            json!({"stream_options": {"reasoning_summary_delivery": "sequential_cutoff"}}),
        ],
    )
    .await
}

/// Row 35.
async fn client_metadata(case: &Case) -> Held {
    let metadata = json!({"session_id": "s", "turn_id": "t", "x-codex-turn-state": "u"});
    accepts_each(case, [json!({"client_metadata": metadata})]).await
}

/// Rows 36, 37.
async fn nulls(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    let optional = [
        "instructions",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "reasoning",
        "text",
        "temperature",
        "top_p",
        "top_logprobs",
        "truncation",
        "metadata",
        "include",
        "prompt",
        "service_tier",
        "prompt_cache_key",
        "safety_identifier",
        "user",
        "conversation",
        "max_tool_calls",
        "context_management",
    ];
    let mut create = case.ask("Say hello.");
    for member in optional {
        create[member] = Value::Null;
    }
    if let Err(stop) = socket.turn(create).await {
        case.decide(36, stop);
        socket = case.connect().await?;
    }
    case.pass(36);
    let bare = bare_tokens(case).await?;
    socket.turn(case.ask(SECRET)).await?;
    let create = case.create(json!({"previous_response_id": null, "input": QUESTION}));
    let turn = socket.turn(create).await?;
    let parent = &turn.response()["previous_response_id"];
    if !parent.is_null() {
        case.fail(37, format!("expected a new chain; its parent is {parent}"));
    }
    if let Err(stop) = expect_unseen(&turn, bare, "what was said before on the lane") {
        case.decide(37, stop);
    }
    Ok(())
}

/// Row 38.
async fn two_histories(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    let parent = socket.turn(case.ask("Say hello.")).await?;
    let mut create = case.onto(&parent, "Again.");
    create["conversation"] = json!("conv_turnwire");
    socket.refusal(create).await?.expect_status(400)?;
    Ok(())
}

/// Row 39.
async fn missing_model(case: &Case) -> Held {
    let create = json!({"type": "response.create", "store": false, "input": "Say hello."});
    let refusal = case.connect().await?.refusal(create).await?;
    refusal.expect_status(400)?.expect_param("model")?;
    Ok(())
}

/// Row 40. The status is 404 by the HTTP API and 400 elsewhere.
async fn unknown_model(case: &Case) -> Held {
    let mut create = case.ask("Say hello.");
    create["model"] = json!("turnwire-check-no-such-model");
    let refusal = case.connect().await?.refusal(create).await?;
    refusal.expect_code("model_not_found")?;
    ensure!(
        matches!(refusal.status(), Some(400 | 404)),
        "expected status 404 or 400; it came as {refusal}"
    );
    Ok(())
}

/// Row 41.
async fn few_output_tokens(case: &Case) -> Held {
    if !case.server.takes_max_output_tokens {
        skip!("the server says that it has no `max_output_tokens`");
    }
    refuses_each(case, [("max_output_tokens", json!(15))]).await
}

/// Row 42.
async fn numbers_out_of_range(case: &Case) -> Held {
    refuses_each(
        case,
        [
            ("temperature", json!(-0.1)),
            ("temperature", json!(2.1)),
            ("top_p", json!(-0.1)),
            ("top_p", json!(1.1)),
            ("top_logprobs", json!(-1)),
            ("top_logprobs", json!(21)),
        ],
    )
    .await
}

/// Row 43.
async fn metadata_limits(case: &Case) -> Held {
    case.needs(Feature::Metadata).await?;
    let many: serde_json::Map<_, _> = (0..17).map(|n| (format!("key{n}"), json!("v"))).collect();
    refuses_each(
        case,
        [
            ("metadata", json!(many)),
            ("metadata", json!({"k".repeat(65): "v"})),
            ("metadata", json!({"k": "v".repeat(513)})),
        ],
    )
    .await
}

/// Row 44.
async fn nothing_to_answer(case: &Case) -> Held {
    let create = case.create(json!({"input": []}));
    let refusal = case.connect().await?.refusal(create).await?;
    refusal.expect_status(400)?;
    Ok(())
}

/// Row 45.
async fn empty_continuation(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    let mut socket = case.connect().await?;
    let mut parent = socket.turn(case.ask("Say hello.")).await?;
    for members in [json!({"input": []}), json!({}), json!({"input": null})] {
        let mut create = case.create(members);
        create["previous_response_id"] = json!(parent.id());
        parent = socket.turn(create).await?;
    }
    Ok(())
}

/// Row 46: a message, and a call where the model can be made to call.
async fn echoed_items(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    let said = socket.turn(case.ask("Say hello.")).await?;
    let question = json!({"role": "user", "content": "Say hello."});
    let again = json!({"role": "user", "content": "Again."});
    replay(&mut socket, case, question.clone(), &said, again).await?;
    if case.server.lack_of(Feature::Functions).await.is_some() {
        return Ok(());
    }
    let called = socket.turn(case.create(json!({
        "tools": [function("look")], "tool_choice": "required", "input": [question.clone()],
    })));
    let called = called.await?;
    if let [call] = called.calls()[..] {
        let output = json!({
            "type": "function_call_output", "call_id": call["call_id"], "output": "A wall.",
        });
        replay(&mut socket, case, question, &called, output).await?;
    }
    Ok(())
}

/// Starts a new chain that begins with what was said and answered before.
async fn replay(
    socket: &mut Socket,
    case: &Case,
    question: Value,
    answer: &Turn,
    next: Value,
) -> Held {
    let mut input = vec![question];
    input.extend_from_slice(answer.output());
    input.push(next);
    socket.turn(case.create(json!({"input": input}))).await?;
    Ok(())
}

/// Row 47. The error may wait for the end of the turn, as long as the turn ends well.
async fn invalid_json(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    let running = socket.begin(case.long(json!({}))).await?;
    socket.send_text("{\"type\": \"response.create\", ").await?;
    let events = socket.read_until("an `error` event", |events| {
        events.iter().any(|event| event.name == "error")
    });
    let mut events = events.await?;
    let Some(error) = events.pop() else {
        fail!("expected an `error` event; nothing came");
    };
    Refusal { json: error.json }.expect_status(400)?;
    match events.iter().find(|event| event.is_terminal()) {
        Some(end) => ensure!(
            end.name != "response.failed",
            "expected {running} to go on after text that is not JSON; it failed"
        ),
        None => {
            let next = socket.next("another event of the running turn").await?;
            ensure!(
                next.name != "error",
                "expected {running} to go on after text that is not JSON; `{}` came",
                next.name
            );
        }
    }
    Ok(())
}

/// Row 48.
async fn unknown_event(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    let refusal = socket.refusal(json!({"type": "response.turnwire_unknown"}));
    refusal.await?.expect_status(400)?.expect_param("type")?;
    socket.turn(case.ask("Say hello.")).await?;
    Ok(())
}

/// Row 49. Events are in order, so an answer would come before the next turn's.
async fn processed(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    let turn = socket.turn(case.ask("Say hello.")).await?;
    let processed = json!({"type": "response.processed", "response_id": turn.id()});
    socket.send(processed).await?;
    socket.send(case.ask("Say hello.")).await?;
    let event = socket.next("`response.created` of the next turn").await?;
    ensure!(
        event.name == "response.created",
        "expected no answer to `response.processed`; `{}` came",
        event.name
    );
    Ok(())
}

/// Row 50. The watch sees to it that the two do not overlap.
async fn back_to_back(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    for name in ["first", "second"] {
        let create = case.create(json!({"metadata": {"turn": name}, "input": "Say hello."}));
        socket.send(create).await?;
    }
    let events = socket.read_endings(2).await?;
    let turns = Turn::all_of(&events);
    ensure!(
        turns.len() == 2,
        "expected two responses to two creates; {} came",
        turns.len()
    );
    let names: Vec<_> = turns
        .iter()
        .map(|turn| &turn.response()["metadata"]["turn"])
        .collect();
    // A server that echoes no metadata does not show in which order it answered.
    ensure!(
        names.iter().all(|name| name.is_null()) || names == ["first", "second"],
        "expected the answers in the order of the creates; they came as {}",
        json!(names)
    );
    Ok(())
}

/// Sends an ordinary create with each of these members, all of which have to be accepted.
async fn accepts_each(case: &Case, members: impl IntoIterator<Item = Value>) -> Held {
    let mut socket = case.connect().await?;
    for members in members {
        let mut create = case.ask("Say hello.");
        for (name, value) in members.as_object().into_iter().flatten() {
            create[name] = value.clone();
        }
        socket.turn(create).await?;
    }
    Ok(())
}

/// Sends an ordinary create with each of these members, which have to be refused by name.
async fn refuses_each(
    case: &Case,
    members: impl IntoIterator<Item = (&'static str, Value)>,
) -> Held {
    let mut socket = case.connect().await?;
    for (name, value) in members {
        let mut create = case.ask("Say hello.");
        create[name] = value;
        let refusal = socket.refusal(create).await?;
        refusal.expect_status(400)?.expect_param(name)?;
    }
    Ok(())
}

pub(super) const SECTION: Section = Section {
    number: "2",
    title: "response.create",
    conversations: &[
        conversation!(least_create: 29 "Type, model and a text as input are enough"),
        conversation!(items: 30 "Input may be items, and items with a role are messages"),
        conversation!(stream: 31 "stream is ignored, true or false"),
        conversation!(background_off: 32 "background: false and null are ignored"),
        conversation!(background_on: 33 "background: true is refused by name"),
        conversation!(stream_options: 34 "stream_options are accepted, unknown members included"),
        conversation!(client_metadata: 35 "client_metadata is accepted"),
        conversation!(nulls:
            36 "null for an optional member is as good as none",
            37 "previous_response_id: null starts a new chain",
        ),
        conversation!(two_histories: 38 "previous_response_id with conversation is refused"),
        conversation!(missing_model: 39 "A missing model is refused by name"),
        conversation!(unknown_model: 40 "An unknown model gives model_not_found"),
        conversation!(few_output_tokens: 41 "max_output_tokens below 16 is refused"),
        conversation!(numbers_out_of_range:
            42 "temperature, top_p and top_logprobs out of range are refused by name",
        ),
        conversation!(metadata_limits: 43 "metadata beyond 16 pairs, 64 or 512 characters is refused"),
        conversation!(nothing_to_answer: 44 "An empty input without history is refused"),
        conversation!(empty_continuation: 45 "A continuation may have an empty input, or none"),
        conversation!(echoed_items: 46 "Output items are accepted as input as they came"),
        conversation!(invalid_json: 47 "Invalid JSON gives an error, and everything goes on"),
        conversation!(unknown_event: 48 "An unknown type gives an error that names it"),
        conversation!(processed: 49 "response.processed is taken in silence"),
        conversation!(back_to_back: 50 "Two creates at once are answered in order, one after the other"),
    ],
};
