//! Compaction: rows 160 to 168.

use serde_json::{Value, json};

use crate::case::Case;
use crate::event::{Event, Turn};
use crate::probe::Feature;
use crate::rows::context::{QUESTION, SECRET, user};
use crate::rows::{Section, conversation};
use crate::schema;
use crate::socket::{Answer, Socket};
use crate::stop::{Held, Stop, ensure, fail, skip};

/// The smallest threshold there is.
const THRESHOLD: u64 = 1000;
/// How often the secret is told to cross it: it has more than fifty words.
const TIMES: usize = 25;

/// Rows 160, 162.
async fn in_mid_turn(case: &Case) -> Held {
    let mut socket = case.connect().await?;
    let (turn, _) = compacted(case, &mut socket).await?;
    let item = turn
        .named("response.output_item.done")
        .position(is_compaction);
    let told = turn.named("response.output_item.added").any(is_compaction);
    if item.is_none() || !told {
        case.fail(
            160,
            "expected events for the compaction item; it is in the output without any",
        );
    }
    case.pass(160);
    socket.turn(case.onto(&turn, QUESTION)).await?;
    Ok(())
}

/// Row 161.
async fn low_threshold(case: &Case) -> Held {
    case.needs(Feature::Compaction).await?;
    let create = case.create(json!({
        "context_management": management(THRESHOLD - 1), "input": "Say hello.",
    }));
    let refusal = case.connect().await?.refusal(create).await?;
    refusal
        .expect_status(400)?
        .expect_param("context_management")?;
    Ok(())
}

/// Row 163.
async fn on_a_new_socket(case: &Case) -> Held {
    let (_, item) = compacted(case, &mut case.connect().await?).await?;
    let mut socket = case.connect().await?;
    let bare = socket.turn(case.ask(QUESTION)).await?.input_tokens();
    let create = case.create(json!({"input": [item, user(QUESTION)]}));
    let tokens = socket.turn(create).await?.input_tokens();
    if let (Some(tokens), Some(bare)) = (tokens, bare) {
        ensure!(
            tokens >= bare,
            "expected the compacted context in the prompt; `input_tokens` is {tokens}, and {bare} \
             without it"
        );
    }
    Ok(())
}

/// Row 164.
async fn tampered(case: &Case) -> Held {
    let (_, mut item) = compacted(case, &mut case.connect().await?).await?;
    let content = item["encrypted_content"].as_str().unwrap_or_default();
    let middle = content.len() / 2;
    let changed = content
        .char_indices()
        .map(|(at, letter)| match (at == middle, letter) {
            (true, 'A') => 'B',
            (true, _) => 'A',
            (false, letter) => letter,
        });
    item["encrypted_content"] = Value::String(changed.collect());
    let create = case.create(json!({"input": [item, user(QUESTION)]}));
    case.connect()
        .await?
        .refusal(create)
        .await?
        .expect_status(400)?;
    Ok(())
}

/// Row 165.
async fn trigger(case: &Case) -> Held {
    case.needs(Feature::CompactionTrigger).await?;
    let mut socket = case.connect().await?;
    let trigger = json!({"type": "compaction_trigger"});
    let create = case.create(json!({"input": [user(SECRET), trigger]}));
    let turn = socket.turn(create).await?;
    let kinds: Vec<_> = turn.output().iter().map(|item| &item["type"]).collect();
    ensure!(
        kinds == ["compaction"],
        "expected one compaction item for `compaction_trigger`; the output is {}",
        json!(kinds)
    );
    let create = case.create(json!({"input": [trigger, user(SECRET)]}));
    socket.refusal(create).await?.expect_status(400)?;
    Ok(())
}

/// Rows 166, 167.
async fn endpoint(case: &Case) -> Held {
    case.needs(Feature::CompactEndpoint).await?;
    let body = json!({"model": case.server.model, "input": [user(SECRET), user("Remember it.")]});
    let reply = case.post("responses/compact", body).await?;
    ensure!(
        reply.status == 200,
        "expected HTTP 200 for a good request; HTTP {} came",
        reply.status
    );
    let members = "id:string object:string created_at:index output:array usage:object";
    if let Some(mistake) = schema::mistake_of_members(members, &reply.json) {
        fail!("{mistake} in {}", reply.json);
    }
    let window = reply.json["output"].as_array().cloned().unwrap_or_default();
    let compactions = window
        .iter()
        .filter(|item| item["type"] == "compaction")
        .count();
    ensure!(
        reply.json["object"] == "response.compaction" && compactions == 1,
        "expected a `response.compaction` with one compaction item; {} came",
        reply.json
    );
    let mut input = window;
    input.push(user(QUESTION));
    let create = case.create(json!({"input": input}));
    case.pass(166);
    case.connect().await?.turn(create).await?;
    Ok(())
}

/// Row 168.
async fn endpoint_without_model(case: &Case) -> Held {
    case.needs(Feature::CompactEndpoint).await?;
    let reply = case
        .post("responses/compact", json!({"input": SECRET}))
        .await?;
    ensure!(
        matches!(reply.status, 400 | 422),
        "expected HTTP 400 or 422 without a model; HTTP {} came",
        reply.status
    );
    Ok(())
}

/// A turn whose context crossed the threshold, and the compaction item of its output. That there
/// is one is row 160; the others have nothing to judge without it.
async fn compacted(case: &Case, socket: &mut Socket) -> Result<(Turn, Value), Stop> {
    case.needs(Feature::Compaction).await?;
    case.needs(Feature::Continuation).await?;
    let create = case.create(json!({
        "context_management": management(THRESHOLD), "input": SECRET.repeat(TIMES),
    }));
    let turn = match socket.answer(create).await? {
        Answer::Turn(turn) => turn,
        Answer::Refused(refusal) if refusal.code() == Some("context_length_exceeded") => {
            skip!("the model's context is too short: {refusal}")
        }
        Answer::Refused(refusal) => fail!("expected a response; the server refused: {refusal}"),
    };
    turn.expect_usable()?;
    let items = turn.output().iter();
    let mut items = items.filter(|item| item["type"] == "compaction");
    if let Some(item) = items.next().cloned() {
        ensure!(
            item["encrypted_content"].is_string(),
            "expected `encrypted_content` in the compaction item; {item} came"
        );
        return Ok((turn, item));
    }
    if turn.input_tokens().is_some_and(|tokens| tokens < THRESHOLD) {
        skip!(
            "the prompt had only {} tokens by the server's count",
            turn.response()["usage"]["input_tokens"]
        );
    }
    case.fail(
        160,
        format!(
            "expected a compaction item in the output, because the prompt crossed {THRESHOLD} \
             tokens; `input_tokens` is {} and the output is {}",
            turn.response()["usage"]["input_tokens"],
            turn.response()["output"]
        ),
    );
    skip!("the server made no compaction item to go on from")
}

fn management(threshold: u64) -> Value {
    json!([{"type": "compaction", "compact_threshold": threshold}])
}

fn is_compaction(event: &Event) -> bool {
    event.json["item"]["type"] == "compaction"
}

pub(super) const SECTION: Section = Section {
    number: "8",
    title: "Compaction",
    conversations: &[
        conversation!(in_mid_turn:
            160 "Crossing compact_threshold puts a compaction item into the response",
            162 "A compacted chain continues with only new items",
        ),
        conversation!(low_threshold: 161 "compact_threshold below 1000 is refused"),
        conversation!(on_a_new_socket:
            163 "A compaction item restores the context on a new socket",
        ),
        conversation!(tampered: 164 "A tampered encrypted_content is refused"),
        conversation!(trigger:
            165 "compaction_trigger compacts as the last item, and is refused elsewhere",
        ),
        conversation!(endpoint:
            166 "POST /responses/compact gives a compaction item and usage",
            167 "Its output works unchanged as the input of a new chain",
        ),
        conversation!(endpoint_without_model: 168 "Compacting without model is refused"),
    ],
};
