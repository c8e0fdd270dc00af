//! Chains that outgrow the context, and go on without their oldest responses.

use turnwire_local_engine::{LocalEngine, Options};
use turnwire_protocol::chain::Chain;
use turnwire_protocol::engine::{EngineFailureKind, TurnRequest};

use crate::driver::{assert_exact, collect, load, request, run, start, user};

const CONTEXT: u64 = 512;

fn engine() -> LocalEngine {
    load(Options {
        kv_cells: Some(CONTEXT as u32),
        ..Options::default()
    })
}

/// A chain that nearly fills the context.
fn long_chain(engine: &LocalEngine) -> Chain {
    let (mut answer, mut chain) = run(engine, request(None, &[&user("It rained. It rained.")]));
    while answer.usage.input_tokens + answer.usage.output_tokens < CONTEXT - 100 {
        let next = request(Some(&chain), &[&user("It rained. ".repeat(8).as_str())]);
        (answer, chain) = run(engine, next);
    }
    chain
}

fn too_long(chain: &Chain) -> TurnRequest {
    request(
        Some(chain),
        &[&user("And it rained again. ".repeat(24).as_str())],
    )
}

#[test]
fn the_oldest_responses_are_left_out_and_the_next_turn_costs_what_is_new() {
    let engine = engine();
    let chain = long_chain(&engine);
    let mut turn = too_long(&chain);
    let failure = collect(start(&engine, turn.clone())).expect_err("it does not fit");
    assert_eq!(failure.kind, EngineFailureKind::ContextLengthExceeded);

    turn.truncate = true;
    let (answer, link) = run(&engine, turn.clone());
    assert_exact(&engine, &answer, &turn);
    let prompt = answer.usage.input_tokens;
    assert!(
        prompt <= CONTEXT - CONTEXT / 4,
        "a quarter is free: {prompt}"
    );
    assert!(
        prompt > CONTEXT / 3,
        "no more is left out than that: {prompt}"
    );
    assert_eq!(answer.prefilled(), prompt, "it stands elsewhere now");
    // SmolLM2: 1 is <|im_start|>.
    let recorded = engine.recorded_ids(&answer.state).expect("its own");
    assert_eq!(recorded[0], 1, "what stays begins with a message");

    let mut next = request(Some(&link), &[&user("And then?")]);
    next.truncate = true;
    let (next_answer, _) = run(&engine, next.clone());
    assert_exact(&engine, &next_answer, &next);
    assert!(next_answer.prefilled() < 20, "{}", next_answer.prefilled());
}

#[test]
fn what_does_not_fit_by_itself_fails_and_outputs_stay_with_their_calls() {
    let engine = engine();
    let chain = long_chain(&engine);
    let mut huge = request(Some(&chain), &[&user(&"It rained. ".repeat(300))]);
    huge.truncate = true;
    let failure = collect(start(&engine, huge)).expect_err("nothing helps");
    assert_eq!(failure.kind, EngineFailureKind::ContextLengthExceeded);

    // An output of a tool is not left alone: the response that called it is as long as all else.
    let question = request(None, &[&user(&"It rained. ".repeat(110))]);
    let (_, asked) = run(&engine, question);
    let output = format!(
        r#"{{"type":"function_call_output","call_id":"c","output":"{}"}}"#,
        "It rained. ".repeat(40)
    );
    let mut answered = request(Some(&asked), &[&output]);
    answered.truncate = true;
    let failure = collect(start(&engine, answered)).expect_err("they do not fit together");
    assert_eq!(failure.kind, EngineFailureKind::ContextLengthExceeded);
}
