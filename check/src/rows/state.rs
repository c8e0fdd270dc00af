//! State: rows 83 to 105.

use serde_json::{Value, json};

use crate::case::Case;
use crate::event::Turn;
use crate::probe::{Feature, function};
use crate::rows::calls::{call, call_ids, output};
use crate::rows::context::{QUESTION, SECRET, bare_tokens, expect_seen, says_word, total, user};
use crate::rows::{Section, conversation, unseen};
use crate::socket::{Answer, Socket};
use crate::stop::{Held, Stop, ensure, fail, skip};

/// Rows 83, 84.
async fn continuation(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    let bare = bare_tokens(case).await?;
    let mut socket = case.connect().await?;
    let create = case.create(json!({"store": false, "input": SECRET}));
    let parent = socket.turn(create).await?;
    let child = socket.turn(case.onto(&parent, QUESTION)).await?;
    expect_seen(&child, bare, "the parent's input")
}

/// Row 85.
async fn stored_by_default(case: &Case) -> Held {
    case.needs(Feature::Stored).await?;
    let mut create = case.ask("Say hello.");
    if let Some(members) = create.as_object_mut() {
        members.remove("store");
    }
    let turn = case.connect().await?.turn(create).await?;
    expect_storing(&turn)?;
    let found = case.get(&format!("responses/{}", turn.id())).await?;
    ensure!(
        found.status == 200,
        "expected GET to find the response; HTTP {} came with {}",
        found.status,
        found.json
    );
    Ok(())
}

/// Row 86.
async fn unstored_over_http(case: &Case) -> Held {
    case.needs(Feature::Stored).await?;
    let turn = case.connect().await?.turn(case.ask("Say hello.")).await?;
    let missing = case.get(&format!("responses/{}", turn.id())).await?;
    ensure!(
        missing.status == 404,
        "expected HTTP 404 for a response with `store: false`; HTTP {} came",
        missing.status
    );
    Ok(())
}

/// Rows 87, 88.
async fn unstored_elsewhere(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    let mut here = case.connect().await?;
    let mut there = case.connect().await?;
    let parent = here.turn(case.ask("Say hello.")).await?;
    if let Err(stop) = expect_gone(&mut there, case, &parent).await {
        case.decide(87, stop);
    }
    case.pass(87);
    here.abort();
    let mut again = case.connect().await?;
    expect_gone(&mut again, case, &parent).await?;
    again.turn(case.ask("Say hello.")).await?;
    Ok(())
}

/// Row 89. Some servers take the `store` of the request for where to look, so both say true.
async fn stored_elsewhere(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    let mut here = case.connect().await?;
    let parent = stored(&mut here, case, SECRET).await?;
    here.abort();
    let bare = bare_tokens(case).await?;
    let mut there = case.connect().await?;
    let mut create = case.onto(&parent, QUESTION);
    create["store"] = json!(true);
    let child = there.turn(create).await?;
    expect_seen(&child, bare, "the stored parent's input")
}

/// Row 90.
async fn never_was(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    let id = "resp_turnwire_never_was";
    let create = case.create(json!({"previous_response_id": id, "input": "Say hello."}));
    let refusal = case.connect().await?.refusal(create).await?;
    refusal
        .expect_code("previous_response_not_found")?
        .expect_status(400)?
        .expect_param("previous_response_id")?;
    ensure!(
        refusal.message().contains(id),
        "expected the message to name {id}; it is {:?}",
        refusal.message()
    );
    Ok(())
}

/// Row 91. A continuation that inherited the instructions would cost more than its parent's prompt
/// and answer together, by its question; one that did not costs less, by the instructions.
async fn instructions_end(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    let bare = bare_tokens(case).await?;
    let instructions = SECRET.repeat(3);
    let mut socket = case.connect().await?;
    let create = case.create(json!({"instructions": instructions, "input": QUESTION}));
    let reminded = socket.turn(create).await?;
    let create = case.create(json!({"instructions": instructions, "input": "Say hello."}));
    let parent = socket.turn(create).await?;
    let child = socket.turn(case.onto(&parent, QUESTION)).await?;
    // Both have to be counted: the instructions, and context at all.
    let counted = match (parent.input_tokens(), bare) {
        (Some(tokens), Some(bare)) => tokens > bare + 60,
        _ => false,
    };
    match (child.input_tokens(), total(&parent)) {
        (Some(child), Some(total)) if counted => {
            ensure!(
                child < total,
                "expected the instructions to act in their own turn only; the continuation \
                 without any has {child} `input_tokens`, the turn before took {total} in all"
            );
            Ok(())
        }
        _ if says_word(&child) && !says_word(&parent) => fail!(
            "expected the instructions to act in their own turn only; the continuation without \
             any repeats a word of them"
        ),
        _ if says_word(&reminded) => Ok(()),
        _ => skip!("the server does not count instructions, and the model did not repeat a word"),
    }
}

/// Row 92.
async fn instructions_change(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    let mut socket = case.connect().await?;
    let create = case.create(json!({"instructions": "Be brief.", "input": "Say hello."}));
    let mut turn = socket.turn(create).await?;
    for instructions in ["Be polite.", "Be honest."] {
        let mut create = case.onto(&turn, "Again.");
        create["instructions"] = json!(instructions);
        turn = socket.turn(create).await?;
        let echoed = &turn.response()["instructions"];
        ensure!(
            echoed == instructions,
            "expected the response to have the instructions of its create; it has {echoed}"
        );
    }
    Ok(())
}

/// Row 93.
async fn tools_end(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    case.needs(Feature::Functions).await?;
    let mut socket = case.connect().await?;
    let create = case.create(json!({
        "tools": [function("look")], "tool_choice": "none", "input": "Say hello.",
    }));
    let parent = socket.turn(create).await?;
    let child = socket
        .turn(case.onto(&parent, "What is in the kitchen?"))
        .await?;
    let tools = &child.response()["tools"];
    if tools.is_null() && child.calls().is_empty() {
        skip!("the server does not echo tools, and the model made no call");
    }
    ensure!(
        *tools == json!([]) && child.calls().is_empty(),
        "expected no tools in a continuation without any; the response has {tools} and {} calls",
        child.calls().len()
    );
    Ok(())
}

/// Rows 94, 95.
async fn orphan_output(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    let mut socket = case.connect().await?;
    let parent = socket.turn(case.ask("Say hello.")).await?;
    socket
        .refusal(orphan(case, &parent))
        .await?
        .expect_status(400)?;
    case.pass(94);
    expect_gone(&mut socket, case, &parent).await
}

/// Row 96.
async fn orphan_output_of_stored(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    let mut socket = case.connect().await?;
    let parent = stored(&mut socket, case, "Say hello.").await?;
    socket.refusal(orphan(case, &parent)).await?;
    let mut create = case.onto(&parent, "Again.");
    create["store"] = json!(true);
    socket.turn(create).await?;
    Ok(())
}

/// Row 97.
async fn missing_output(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    let mut socket = case.connect().await?;
    let (parent, id) = call(case, &mut socket, json!({})).await?;
    let refusal = socket.refusal(case.onto(&parent, "Never mind.")).await?;
    refusal.expect_status(400)?;
    ensure!(
        refusal.message().contains(&id),
        "expected the message to name {id}; it is {:?}",
        refusal.message()
    );
    Ok(())
}

/// Row 98.
async fn async_output(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    case.needs(Feature::AsyncTools).await?;
    let mut socket = case.connect().await?;
    let mut tool = function("look");
    tool["async"] = json!(true);
    let tools = json!([tool]);
    let (parent, id) = call(case, &mut socket, json!({"tools": tools})).await?;
    let next = |parent: &Turn, item: Value| {
        case.create(json!({
            "previous_response_id": parent.id(), "tools": tools, "tool_choice": "none",
            "input": [item],
        }))
    };
    let meanwhile = socket
        .turn(next(&parent, user("Meanwhile, say hello.")))
        .await?;
    socket.turn(next(&meanwhile, output(&id))).await?;
    Ok(())
}

/// Row 99.
async fn parallel_outputs(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    case.needs(Feature::Functions).await?;
    let mut socket = case.connect().await?;
    let create = case.create(json!({
        "tools": [function("look")],
        "tool_choice": "required",
        "parallel_tool_calls": true,
        "max_output_tokens": 400,
        "input": "Look in the kitchen and in the garden, both at once, with two calls.",
    }));
    let parent = socket.turn(create).await?;
    let ids = call_ids(&parent);
    if ids.len() < 2 {
        skip!(
            "the model made {} calls where it was asked for two at once",
            ids.len()
        );
    }
    let outputs: Vec<_> = ids.iter().rev().map(|id| output(id)).collect();
    let create = case.create(json!({"previous_response_id": parent.id(), "input": outputs}));
    socket.turn(create).await?;
    Ok(())
}

/// Row 100. The sources allow a server to keep more, so one that does is not failed.
async fn older_than_latest(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    let mut socket = case.connect().await?;
    let first = socket.turn(case.ask("Say hello.")).await?;
    socket.turn(case.onto(&first, "Again.")).await?;
    match socket.answer(case.onto(&first, "And again.")).await? {
        Answer::Turn(_) => skip!("the server keeps more than the latest response, which it may"),
        Answer::Refused(refusal) => refusal.expect_code("previous_response_not_found")?,
    };
    Ok(())
}

/// Row 101.
async fn after_incomplete(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    let mut socket = case.connect().await?;
    let parent = socket
        .turn(case.long(json!({"max_output_tokens": 16})))
        .await?;
    if parent.status() != "incomplete" {
        skip!("the model's answer was too short to be cut");
    }
    socket.turn(case.onto(&parent, "Say hello.")).await?;
    Ok(())
}

/// Row 103.
async fn failure_without_parent(case: &Case) -> Held {
    case.needs(Feature::Continuation).await?;
    let mut socket = case.connect().await?;
    let parent = socket.turn(case.ask("Say hello.")).await?;
    let mut create = case.ask("Say hello.");
    create["model"] = json!("turnwire-check-no-such-model");
    socket.refusal(create).await?;
    socket.turn(case.onto(&parent, "Again.")).await?;
    Ok(())
}

/// A turn that is stored, of a server that stores.
async fn stored(socket: &mut Socket, case: &Case, text: &str) -> Result<Turn, Stop> {
    let create = case.create(json!({"store": true, "input": text}));
    match socket.answer(create).await? {
        Answer::Turn(turn) => {
            turn.expect_usable()?;
            expect_storing(&turn)?;
            Ok(turn)
        }
        Answer::Refused(refusal) => match refusal.declares_lack_of(&["store"]) {
            Some(lack) => skip!("{lack}"),
            None => fail!("expected a response; the server refused: {refusal}"),
        },
    }
}

/// A server may be set up to store nothing; then it says so in the response.
fn expect_storing(turn: &Turn) -> Held {
    if turn.response()["store"] == false {
        skip!("the server stores nothing: the response says `store: false`");
    }
    Ok(())
}

/// The parent must not be found.
async fn expect_gone(socket: &mut Socket, case: &Case, parent: &Turn) -> Held {
    let refusal = socket.refusal(case.onto(parent, "Again.")).await?;
    refusal
        .expect_code("previous_response_not_found")?
        .expect_status(400)?;
    Ok(())
}

/// A continuation with the output of a call that never was.
pub(super) fn orphan(case: &Case, parent: &Turn) -> Value {
    case.create(json!({
        "previous_response_id": parent.id(), "input": [output("call_turnwire_orphan")],
    }))
}

pub(super) const SECTION: Section = Section {
    number: "4",
    title: "State",
    conversations: &[
        conversation!(continuation:
            83 "A continuation with only new input sees the whole context",
            84 "Continuing works with store: false",
        ),
        conversation!(stored_by_default:
            85 "store is true by default, and the response is readable by GET",
        ),
        conversation!(unstored_over_http: 86 "A response with store: false is 404 over HTTP"),
        conversation!(unstored_elsewhere:
            87 "A response with store: false is not found from another socket",
            88 "After reconnecting an unstored parent is not found, and a new chain works",
        ),
        conversation!(stored_elsewhere: 89 "After reconnecting a stored parent works"),
        conversation!(never_was:
            90 "An id that never was gives previous_response_not_found and names it",
        ),
        conversation!(instructions_end:
            91 "Instructions of the parent do not act in a continuation without any",
        ),
        conversation!(instructions_change: 92 "Instructions may change from turn to turn"),
        conversation!(tools_end:
            93 "Tools of the parent are not offered in a continuation without any",
        ),
        conversation!(orphan_output:
            94 "An output that no call asked for fails with 400",
            95 "After that failure the unstored parent is gone",
        ),
        conversation!(orphan_output_of_stored:
            96 "After that failure a stored parent is still usable",
        ),
        conversation!(missing_output:
            97 "Leaving out the output of a pending call fails with 400 and names it",
        ),
        conversation!(async_output: 98 "The output of an async call may come later"),
        conversation!(parallel_outputs: 99 "Outputs of parallel calls are taken in any order"),
        conversation!(older_than_latest:
            100 "Unstored responses older than the latest are not found",
        ),
        conversation!(after_incomplete: 101 "An incomplete response can be continued"),
        unseen!("no engine fails on request":
            102 "A failed continuation on the parent's lane evicts the parent",
        ),
        conversation!(failure_without_parent:
            103 "A failed create without parent evicts nothing",
        ),
        unseen!("a server's memory cannot be seen from outside":
            104 "Memory of a closed connection is released",
        ),
        unseen!("a server's disk cannot be seen from outside":
            105 "Nothing of a store: false turn is written to disk",
        ),
    ],
};
