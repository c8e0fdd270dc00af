//! How turns end: for want of room, because nobody listens, or because the user has something to say.

use turnwire_local_engine::{LocalEngine, Options};
use turnwire_protocol::engine::{EngineFailureKind, EngineOutput, FinishReason, TurnRequest};

use crate::driver::{Answer, assert_exact, collect, engine, load, request, run, start, user};

#[test]
fn a_prompt_that_does_not_fit_is_refused_before_it_starts() {
    let engine = load(Options {
        kv_cells: Some(512),
        ..Options::default()
    });
    let mut outputs = start(&engine, request(None, &[&user(&"It rained. ".repeat(300))]));
    let Some(EngineOutput::Failed(failure)) = outputs.blocking_recv() else {
        panic!("not refused at once")
    };
    assert_eq!(failure.kind, EngineFailureKind::ContextLengthExceeded);
    assert!(failure.message.contains("512"), "{}", failure.message);
    // A turn that fits goes on until the context is full, and no further.
    let mut long = request(None, &[&user("Count for ever.")]);
    long.max_output_tokens = None;
    long.temperature = 1.5;
    let (answer, chain) = run(&engine, long);
    assert!(answer.usage.input_tokens + answer.usage.output_tokens <= 512);
    if answer.reason == FinishReason::MaxOutputTokens {
        let failure = collect(start(&engine, request(Some(&chain), &[&user("More.")])))
            .expect_err("it is full");
        assert_eq!(failure.kind, EngineFailureKind::ContextLengthExceeded);
    }
}

#[test]
fn a_dropped_receiver_stops_its_turn_within_a_step_and_the_parent_stays() {
    let engine = engine();
    let (_, chain) = run(&engine, request(None, &[&user("Tell me about rain.")]));
    let used = engine
        .inspect(chain.engine_state().expect("state"))
        .expect("own")
        .used_cells;
    let mut long = request(Some(&chain), &[&user("Everything.")]);
    long.max_output_tokens = Some(1_000);
    long.temperature = 1.0;
    let mut outputs = start(&engine, long);
    // Wait for the first word, so that it decodes.
    while let Some(output) = outputs.blocking_recv() {
        if matches!(output, EngineOutput::TextDelta { .. }) {
            break;
        }
    }
    drop(outputs);
    let steps = engine.stats().steps;
    while engine.stats().live_turns > 0 {
        std::thread::yield_now();
    }
    assert!(
        engine.stats().steps - steps <= 2,
        "the step that ran, and one that had begun"
    );
    assert_eq!(engine.stats().cancelled_turns, 1);
    assert_eq!(
        engine
            .inspect(chain.engine_state().expect("state"))
            .expect("own")
            .used_cells,
        used
    );
    let (next, _) = run(&engine, request(Some(&chain), &[&user("Briefly.")]));
    assert!(next.prefilled() < 20);
}

#[test]
fn a_reader_that_does_not_read_pauses_only_itself() {
    let engine = engine();
    let mut long = request(None, &[&user("Tell me everything.")]);
    long.max_output_tokens = Some(600);
    long.temperature = 1.0;
    let stuck = start(&engine, long);
    for _ in 0..3 {
        let (answer, _) = run(&engine, request(None, &[&user("Hello.")]));
        assert!(answer.usage.output_tokens > 0);
    }
    drop(stuck);
}

#[test]
fn more_conversations_than_cells_all_come_to_an_end() {
    let engine = load(Options {
        kv_cells: Some(768),
        kv_ram_bytes: Some(1 << 30),
        ..Options::default()
    });
    let started: Vec<_> = (0..6)
        .map(|n| {
            let mut turn = request(None, &[&user(&format!("Tell me about the number {n}."))]);
            turn.max_output_tokens = None;
            turn.temperature = 1.0;
            (start(&engine, turn.clone()), turn)
        })
        .collect();
    let mut chains = Vec::new();
    for (outputs, turn) in started {
        let answer = collect(outputs).expect("it ends well");
        assert_exact_or_gone(&engine, &answer, &turn);
        chains.push(answer.link(&turn));
    }
    // And all of them can be continued, from wherever their keys and values are now.
    for chain in &chains {
        let next = request(Some(chain), &[&user("Thanks.")]);
        match collect(start(&engine, next)) {
            Ok(answer) => assert!(answer.usage.output_tokens > 0),
            Err(failure) => assert_eq!(failure.kind, EngineFailureKind::ContextLengthExceeded),
        }
    }
    // The last word is sent a moment before the turn is struck off.
    while engine.stats().live_turns > 0 {
        std::thread::yield_now();
    }
}

fn assert_exact_or_gone(engine: &LocalEngine, answer: &Answer, request: &TurnRequest) {
    if engine.inspect(&answer.state).expect("own").ids.is_some() {
        assert_exact(engine, answer, request);
    }
}

#[test]
fn a_prompt_at_its_threshold_is_counted_and_not_answered() {
    let engine = engine();
    let (answer, _) = run(&engine, request(None, &[&user("Tell me about rain.")]));
    let prompt = answer.usage.input_tokens;
    let steps = engine.stats().steps;
    let mut turn = request(None, &[&user("Tell me about rain.")]);
    turn.compact_threshold = Some(prompt);
    let mut outputs = start(&engine, turn.clone());
    let Some(EngineOutput::Started) = outputs.blocking_recv() else {
        panic!("it is well formed")
    };
    let Some(EngineOutput::Finished {
        reason: FinishReason::ContextThreshold,
        usage,
        state: None,
    }) = outputs.blocking_recv()
    else {
        panic!("it is too long")
    };
    assert_eq!((usage.input_tokens, usage.output_tokens), (prompt, 0));
    assert_eq!(engine.stats().steps, steps, "the model was left alone");
    turn.compact_threshold = Some(prompt + 1);
    assert!(run(&engine, turn).0.usage.output_tokens > 0);
}
