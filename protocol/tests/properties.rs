//! What holds however messages, output, answers of the store and time come together.

mod interleaving;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Numbers count from 0, one end for each create and nothing after it, lanes are first in,
    /// first out and do not overlap, at most so many run, and all memory is given back.
    #[test]
    fn a_session_keeps_its_promises(inputs in vec(vec(any::<u8>(), 0..30), 0..300)) {
        interleaving::play(inputs.iter().map(Vec::as_slice));
    }

    /// A good message with a few bytes changed is answered or ignored, and never worse.
    #[test]
    fn any_message_is_heard(changes in vec((any::<usize>(), 0..4usize, snippet()), 0..4)) {
        let mut message = MESSAGE.as_bytes().to_vec();
        for (at, removed, added) in changes {
            let at = at % message.len();
            let end = (at + removed).min(message.len());
            message.splice(at..end, added.bytes());
        }
        interleaving::hear(&message);
    }
}

/// The same for a million inputs of sessions at work: creates, starts, items, ends, and steers
/// and cancels in between.
#[test]
fn a_million_inputs_break_no_promise() {
    const INPUTS: usize = 1_000_000;
    const AT_A_TIME: usize = 500;
    let config = ProptestConfig {
        cases: (INPUTS / AT_A_TIME) as u32,
        // Shorter inputs are easier to read, but not worth minutes.
        max_shrink_time: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let strategy = vec(input(), AT_A_TIME);
    let played = TestRunner::new(config).run(&strategy, |inputs| {
        interleaving::play(inputs.iter().map(Vec::as_slice));
        Ok(())
    });
    if let Err(failure) = played {
        panic!("{failure}");
    }
}

/// Nesting is not limited by the stack of anything that reads it here.
#[test]
fn depth_does_no_harm() {
    let deep = ["[".repeat(100_000), "]".repeat(100_000)].concat();
    let object = [
        r#"{"a":"#.repeat(100_000),
        "0".to_owned(),
        "}".repeat(100_000),
    ]
    .concat();
    for deep in [deep, object] {
        for member in [
            "input",
            "tools",
            "metadata",
            "text",
            "unknown",
            "type",
            "stream_id",
        ] {
            interleaving::hear(
                format!(r#"{{"type":"response.create","model":"m","{member}":{deep}}}"#).as_bytes(),
            );
        }
        let input = format!(r#"[{{"role":"user","content":{deep}}}]"#);
        let message = format!(
            r#"{{"type":"response.create","model":"m","input":{input},"tools":[{{"type":"function","name":"f","parameters":{{"a":{deep}}}}}]}}"#
        );
        interleaving::hear(message.as_bytes());
        interleaving::hear(deep.as_bytes());
    }
}

/// Names and references that cost little to send must cost little to look up.
#[test]
fn length_does_no_harm() {
    let name = "_".repeat(4 << 20);
    let choice = format!(r#"{{"type":"function","name":"{name}"}}"#);
    let tools = r#"[{"type":"function","name":"f"}]"#;
    interleaving::hear(
        format!(
            r#"{{"type":"response.create","model":"m","input":"x","tools":{tools},"tool_choice":{choice}}}"#
        )
        .as_bytes(),
    );

    let tool = |index| format!(r#"{{"type":"function","name":"f{index}"}}"#);
    let tools: Vec<String> = (0..20_000).map(tool).collect();
    let tools = tools.join(",");
    let item = format!(r#"{{"type":"additional_tools","id":"t","tools":[{tools}]}}"#);
    let references = r#",{"id":"t"}"#.repeat(100_000);
    interleaving::hear(
        format!(r#"{{"type":"response.create","model":"m","input":[{item}{references}]}}"#)
            .as_bytes(),
    );
}

const MESSAGE: &str = r#"{"type":"response.create","stream_id":"a","model":"m","input":[{"role":"user","content":"x"},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"y"}],"previous_response_id":"resp_1","instructions":"\u00e9","tools":[{"type":"function","name":"f","parameters":{"type":"object"},"async":true},{"type":"web_search"}],"tool_choice":{"type":"allowed_tools","mode":"auto","tools":[{"type":"function","name":"f"}]},"text":{"format":{"type":"json_schema","name":"n","schema":{}},"verbosity":"low"},"reasoning":{"effort":"low"},"metadata":{"k":"v"},"include":["message.output_text.logprobs"],"temperature":0.5,"top_logprobs":2,"max_output_tokens":99,"store":false,"prompt_cache_options":{"prewarm":false},"context_management":[{"compact_threshold":1000}],"multi_agent":{"enabled":false}}"#;

/// What is put into a message: JSON that is legal somewhere, and bytes that are not.
fn snippet() -> impl Strategy<Value = String> {
    let parts = [
        "",
        "\"",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "null",
        "true",
        "7",
        "-1",
        "1e999",
        "\"x\"",
        "\\ud800",
        "\\",
        "{}",
        "[]",
        " ",
        "\u{0}",
        "é",
        "\"type\":\"response.steer\",",
        "\"model\":1,",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    ];
    proptest::sample::select(parts.map(String::from).to_vec())
}

/// One input of a session at work.
fn input() -> impl Strategy<Value = Vec<u8>> {
    let create = vec(any::<u8>(), 4).prop_map(|bytes| [vec![0], bytes].concat());
    let output = vec(any::<u8>(), 3).prop_map(|bytes| [vec![4], bytes].concat());
    let loaded = any::<u8>().prop_map(|turn| vec![10, turn]);
    let saved = (any::<u8>(), any::<u8>()).prop_map(|(turn, answer)| vec![11, turn, answer]);
    let cancel = (any::<u8>(), any::<u8>()).prop_map(|(id, how)| vec![12, id, how]);
    let time = (0..16u8).prop_map(|seconds| vec![14 + 16 * seconds]);
    let steer = (any::<u8>(), any::<u8>()).prop_map(|(target, input)| vec![15, target, input]);
    prop_oneof![
        10 => create,
        60 => output,
        4 => loaded,
        4 => saved,
        6 => steer,
        1 => cancel,
        1 => time,
    ]
}
