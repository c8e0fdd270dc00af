//! Turns that end early and well, because the user has something to say.

use tokio_util::sync::CancellationToken;
use turnwire_local_engine::LocalEngine;
use turnwire_protocol::chain::Chain;
use turnwire_protocol::engine::{EngineOutput, FinishReason, ItemStart, TurnRequest};
use turnwire_protocol::tool::ToolChoice;

use crate::driver::{Answer, assert_exact, collect, engine, read, request, run, tool, tools, user};

/// Runs a turn and asks it to wrap up when `when` is true of what it says.
fn steered(
    engine: &LocalEngine,
    request: &TurnRequest,
    mut when: impl FnMut(&EngineOutput) -> bool,
) -> Answer {
    let wrap_up = CancellationToken::new();
    let mut outputs = engine.start(request.clone(), wrap_up.clone());
    let said = std::iter::from_fn(|| outputs.blocking_recv());
    let answer = read(said.inspect(|output| {
        if when(output) {
            wrap_up.cancel();
        }
    }));
    answer.expect("it ends well")
}

/// Continues a response by what the user had to say, and counts what that prefilled beyond it.
fn prefilled_beyond_new(engine: &LocalEngine, answer: &Answer, link: &Chain) -> u64 {
    let next = request(Some(link), &[&user("Stop. Name a colour.")]);
    let head = engine.head_ids(&next).expect("the head renders").len();
    let parent = engine.recorded_ids(&answer.state).expect("its own").len();
    let before = engine.stats().prefilled_tokens;
    let (next_answer, _) = run(engine, next.clone());
    assert_exact(engine, &next_answer, &next);
    assert!(next_answer.usage.output_tokens > 0);
    let new = next_answer.usage.input_tokens - (head + parent) as u64;
    (engine.stats().prefilled_tokens - before).saturating_sub(new)
}

#[test]
fn a_message_ends_with_its_sentence_and_is_continued_at_the_cost_of_what_is_new() {
    let engine = engine();
    let mut long = request(None, &[&user("Tell me everything about rain.")]);
    long.max_output_tokens = Some(1_000);
    let mut deltas = 0;
    let answer = steered(&engine, &long, |output| {
        deltas += u32::from(matches!(output, EngineOutput::TextDelta { .. }));
        deltas == 10
    });
    assert_eq!(answer.reason, FinishReason::WrappedUp);
    assert_exact(&engine, &answer, &long);
    // It may have run ahead of its reader, by what the channel holds.
    assert!(answer.usage.output_tokens < 10 + 64 + 30, "{answer:?}");
    if answer.cut == 0 {
        assert!(answer.text.ends_with(['.', '!', '?']), "{}", answer.text);
    }
    let link = answer.link(&long);
    assert!(prefilled_beyond_new(&engine, &answer, &link) <= 2);
}

#[test]
fn a_message_without_a_sentence_is_cut_soon() {
    let engine = engine();
    let schema = br#"{"type":"array","items":{"type":"integer"},"minItems":400,"maxItems":400}"#;
    let mut long = request(None, &[&user("Count.")]);
    long.format = turnwire_protocol::engine::TextFormat::JsonSchema {
        schema: bytes::Bytes::from_static(schema),
    };
    long.max_output_tokens = Some(1_000);
    let answer = steered(&engine, &long, |output| {
        matches!(output, EngineOutput::TextDelta { .. })
    });
    assert_eq!((answer.reason, answer.cut), (FinishReason::WrappedUp, 1));
    assert_exact(&engine, &answer, &long);
    assert!(answer.usage.output_tokens < 1 + 64 + 30, "{answer:?}");
    let link = answer.link(&long);
    assert!(prefilled_beyond_new(&engine, &answer, &link) <= 2);
}

#[test]
fn a_turn_that_has_said_nothing_ends_at_once_and_its_prompt_stays() {
    let engine = engine();
    let (_, chain) = run(&engine, request(None, &[&user("Tell me about rain.")]));
    let question = request(Some(&chain), &[&user(&"And snow? ".repeat(30))]);

    // Before it had room.
    let wrap_up = CancellationToken::new();
    wrap_up.cancel();
    let answer = collect(engine.start(question.clone(), wrap_up)).expect("it ends well");
    assert_eq!(answer.reason, FinishReason::WrappedUp);
    assert_eq!((answer.usage.output_tokens, answer.cut), (0, 0));
    let asked = answer.usage.input_tokens;
    let link = answer.link(&question);
    let before = engine.stats().prefilled_tokens;
    let next = request(Some(&link), &[&user("Stop. Name a colour.")]);
    let (next_answer, _) = run(&engine, next.clone());
    assert_exact(&engine, &next_answer, &next);
    assert!(next_answer.usage.input_tokens > asked);
    assert!(
        next_answer.usage.cached_tokens > 20,
        "what the parent's parent left is found: {next_answer:?}"
    );

    // Somewhere in its prompt: every token of that is prefilled once in all.
    let long = request(Some(&chain), &[&user(&"And snow? ".repeat(300))]);
    let answer = steered(&engine, &long, |_| true);
    let link = answer.link(&long);
    run(&engine, request(Some(&link), &[&user("Briefly.")]));
    let spent = engine.stats().prefilled_tokens - before;
    let (first, second) = (next_answer.usage.input_tokens, answer.usage.input_tokens);
    assert!(
        spent < first + second + 100,
        "{spent} of {first} + {second}"
    );
}

#[test]
fn a_call_is_completed_and_one_that_was_only_demanded_is_forgotten() {
    let engine = engine();
    let question = request(None, &[&user("What is the weather in Rome?")]);
    let mut forced = question.clone();
    forced.tools = tools(vec![tool(
        "get_weather",
        r#"{"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer"}},"required":["city","days"],"additionalProperties":false}"#,
    )]);
    forced.tool_choice = ToolChoice::Tool("get_weather".into());
    forced.max_output_tokens = Some(128);
    let answer = steered(&engine, &forced, |output| {
        matches!(
            output,
            EngineOutput::ItemStarted(ItemStart::FunctionCall { .. })
        )
    });
    assert_eq!((answer.calls.len(), answer.cut), (1, 0));
    let arguments: serde_json::Value = serde_json::from_str(&answer.calls[0].1).expect("all of it");
    assert!(arguments["city"].is_string());

    let wrap_up = CancellationToken::new();
    wrap_up.cancel();
    let answer = collect(engine.start(forced, wrap_up)).expect("it ends well");
    let kept = engine.recorded_ids(&answer.state).expect("its own");
    let (plain, _) = run(&engine, question.clone());
    let head = engine.head_ids(&question).expect("the head renders").len() as u64;
    assert_eq!(kept.len() as u64, plain.usage.input_tokens - head);
    assert!(answer.usage.input_tokens > head + kept.len() as u64);
}
