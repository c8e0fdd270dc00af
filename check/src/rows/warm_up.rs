//! Warm-up: rows 106 to 114.

use serde_json::{Value, json};

use crate::case::Case;
use crate::event::Turn;
use crate::probe::Feature;
use crate::rows::context::{QUESTION, SECRET, bare_tokens, expect_seen};
use crate::rows::{Section, conversation, unseen};
use crate::socket::{Answer, Socket};
use crate::stop::{Held, Stop, ensure, fail, skip};

/// Rows 106, 107.
async fn warm_up(case: &Case) -> Held {
    case.needs(Feature::WarmUp).await?;
    let mut socket = case.connect().await?;
    let turn = socket.turn(warm(case, json!({"input": SECRET}))).await?;
    let spoken = turn
        .events
        .iter()
        .find(|event| event.json.get("response").is_none());
    if let Some(event) = spoken {
        case.fail(
            107,
            format!(
                "expected no events of items in a warm-up; `{}` came",
                event.name
            ),
        );
    }
    if let Err(stop) = expect_silent(&turn) {
        case.decide(106, stop);
    }
    let usage = &turn.response()["usage"];
    if usage["output_tokens"] != 0 || usage["input_tokens"].as_u64().is_none_or(|it| it == 0) {
        case.fail(
            106,
            format!("expected the count of the input and 0 `output_tokens`; `usage` is {usage}"),
        );
    }
    if turn.id().is_empty() {
        case.fail(106, "expected a warm-up to have an id; it has none");
    }
    Ok(())
}

/// Rows 108, 110: the next turn, and one after it that goes back to the warm-up.
async fn used_twice(case: &Case) -> Held {
    case.needs(Feature::WarmUp).await?;
    case.needs(Feature::Continuation).await?;
    let bare = bare_tokens(case).await?;
    let mut socket = case.connect().await?;
    let warmed = warmed(&mut socket, case, json!({"input": SECRET})).await?;
    let next = socket.turn(case.onto(&warmed, QUESTION)).await?;
    if let Err(stop) = expect_seen(&next, bare, "the warm-up's input") {
        case.decide(108, stop);
    }
    case.pass(108);
    let later = socket.turn(case.onto(&warmed, QUESTION)).await?;
    expect_seen(&later, bare, "the warm-up's input")
}

/// Row 109.
async fn empty_next(case: &Case) -> Held {
    case.needs(Feature::WarmUp).await?;
    case.needs(Feature::Continuation).await?;
    let mut socket = case.connect().await?;
    let warmed = warmed(&mut socket, case, json!({"input": "Say hello."})).await?;
    let create = case.create(json!({"previous_response_id": warmed.id(), "input": []}));
    let next = socket.turn(create).await?;
    ensure!(
        !next.output().is_empty(),
        "expected an answer to the warm-up's input; the output is empty"
    );
    Ok(())
}

/// Row 111.
async fn prewarm(case: &Case) -> Held {
    case.needs(Feature::WarmUp).await?;
    let create = case.create(json!({
        "prompt_cache_options": {"prewarm": true}, "generate": true, "input": "Say hello.",
    }));
    match case.connect().await?.answer(create).await? {
        Answer::Turn(turn) => expect_silent(&turn),
        Answer::Refused(refusal) => match refusal.declares_lack_of(&["prompt_cache_options"]) {
            Some(lack) => skip!("{lack}"),
            None => fail!("expected a warm-up; the server refused: {refusal}"),
        },
    }
}

/// Row 112.
async fn in_mid_chain(case: &Case) -> Held {
    case.needs(Feature::WarmUp).await?;
    case.needs(Feature::Continuation).await?;
    let bare = bare_tokens(case).await?;
    let mut socket = case.connect().await?;
    let first = socket.turn(case.ask("Say hello.")).await?;
    let members = json!({"previous_response_id": first.id(), "input": SECRET});
    let warmed = warmed(&mut socket, case, members).await?;
    let next = socket.turn(case.onto(&warmed, QUESTION)).await?;
    expect_seen(&next, bare, "the warm-up's input")
}

/// Row 113.
async fn invalid(case: &Case) -> Held {
    case.needs(Feature::WarmUp).await?;
    let mut socket = case.connect().await?;
    let create = warm(case, json!({"temperature": 9, "input": "Say hello."}));
    let refusal = socket.refusal(create).await?;
    refusal.expect_status(400)?.expect_param("temperature")?;
    let create = warm(
        case,
        json!({"model": "turnwire-check-no-such-model", "input": "Hello."}),
    );
    socket
        .refusal(create)
        .await?
        .expect_code("model_not_found")?;
    Ok(())
}

fn warm(case: &Case, members: Value) -> Value {
    let mut create = case.create(members);
    create["generate"] = json!(false);
    create
}

async fn warmed(socket: &mut Socket, case: &Case, members: Value) -> Result<Turn, Stop> {
    let turn = socket.turn(warm(case, members)).await?;
    expect_silent(&turn)?;
    Ok(turn)
}

fn expect_silent(turn: &Turn) -> Held {
    ensure!(
        turn.status() == "completed" && turn.response()["output"] == json!([]),
        "expected a warm-up to complete without output; it ended as `{}` with output {}",
        turn.status(),
        turn.response()["output"]
    );
    Ok(())
}

pub(super) const SECTION: Section = Section {
    number: "5",
    title: "Warm-up",
    conversations: &[
        conversation!(warm_up:
            106 "generate: false completes without output and counts its input",
            107 "A warm-up has no item or delta events",
        ),
        conversation!(used_twice:
            108 "The next turn sees the warm-up's input",
            110 "A later turn may name the warm-up again",
        ),
        conversation!(empty_next: 109 "The next turn may have empty input"),
        conversation!(prewarm:
            111 "prompt_cache_options.prewarm is a warm-up, even with generate: true",
        ),
        conversation!(in_mid_chain: 112 "A warm-up in the middle of a chain can be continued"),
        conversation!(invalid: 113 "An invalid warm-up is refused like any create"),
        unseen!("how much sooner a turn starts is for a benchmark to measure":
            114 "A turn after a warm-up starts sooner",
        ),
    ],
};
