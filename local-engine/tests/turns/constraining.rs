//! Output that is held to a form.

use bytes::Bytes;
use turnwire_protocol::engine::{EngineFailureKind, FinishReason, TextFormat};
use turnwire_protocol::tool::ToolChoice;

use crate::driver::{assert_exact, collect, engine, request, run, start, tool, tools, user};

#[test]
fn required_and_named_calls_have_arguments_of_their_schema() {
    let engine = engine();
    let all = || {
        tools(vec![
            tool(
                "get_weather",
                r#"{"type":"object","properties":{"city":{"type":"string","enum":["Oslo","Rome"]},"days":{"type":"integer","minimum":1,"maximum":5}},"required":["city","days"],"additionalProperties":false}"#,
            ),
            tool(
                "add",
                r#"{"type":"object","properties":{"numbers":{"type":"array","items":{"type":"number"},"minItems":2,"maxItems":3}},"required":["numbers"],"additionalProperties":false}"#,
            ),
        ])
    };
    for (choice, name) in [
        (ToolChoice::Required, None),
        (ToolChoice::Tool("add".into()), Some("add")),
    ] {
        let mut turn = request(None, &[&user("What is the weather in Rome?")]);
        turn.tools = all();
        turn.tool_choice = choice;
        turn.max_output_tokens = Some(128);
        let (answer, chain) = run(&engine, turn.clone());
        assert_exact(&engine, &answer, &turn);
        assert_eq!((answer.calls.len(), answer.cut), (1, 0), "{answer:?}");
        let (called, arguments) = &answer.calls[0];
        assert!(name.is_none_or(|name| name == called));
        let arguments: serde_json::Value = serde_json::from_str(arguments).expect("JSON");
        match called.as_str() {
            "get_weather" => {
                assert!(["Oslo", "Rome"].contains(&arguments["city"].as_str().expect("a city")));
                assert!((1..=5).contains(&arguments["days"].as_i64().expect("days")));
            }
            "add" => {
                assert!((2..=3).contains(&arguments["numbers"].as_array().expect("numbers").len()))
            }
            other => panic!("no such tool: {other}"),
        }
        // Its output goes into the next turn.
        let mut next = request(
            Some(&chain),
            &[r#"{"type":"function_call_output","call_id":"c","output":"12 degrees"}"#],
        );
        next.tools = all();
        let (next_answer, _) = run(&engine, next.clone());
        assert_exact(&engine, &next_answer, &next);
        assert!(next_answer.prefilled() < 40, "{}", next_answer.prefilled());
    }
}

#[test]
fn json_formats_are_kept_to() {
    let engine = engine();
    let mut turn = request(None, &[&user("Describe a cat.")]);
    turn.format = TextFormat::JsonSchema {
        schema: Bytes::from_static(br#"{"type":"object","properties":{"name":{"type":"string","maxLength":12},"age":{"type":"integer","minimum":0,"maximum":30}},"required":["name","age"],"additionalProperties":false}"#),
    };
    turn.max_output_tokens = Some(100);
    let (answer, _) = run(&engine, turn.clone());
    let value: serde_json::Value = serde_json::from_str(&answer.text).expect("JSON");
    assert!(
        value["name"].is_string() && (0..=30).contains(&value["age"].as_i64().expect("an age"))
    );
    turn.format = TextFormat::JsonObject;
    turn.max_output_tokens = Some(300);
    let (answer, _) = run(&engine, turn.clone());
    if answer.reason == FinishReason::Stop {
        let value: serde_json::Value = serde_json::from_str(&answer.text).expect("JSON");
        assert!(value.is_object());
    } else {
        assert!(answer.text.trim_start().starts_with('{'));
    }
    turn.format = TextFormat::JsonSchema {
        schema: Bytes::from_static(br#"{"type":"no such type"}"#),
    };
    let failure = collect(start(&engine, turn)).expect_err("no such schema");
    assert_eq!(failure.kind, EngineFailureKind::Invalid, "{failure:?}");
}
