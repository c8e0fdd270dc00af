//! Output that is held to a form.

use bytes::Bytes;
use turnwire_protocol::engine::{EngineFailureKind, FinishReason, TextFormat};
use turnwire_protocol::tool::{CustomFormat, Tool, ToolChoice, ToolKind, Tools};

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

#[test]
fn the_input_of_a_forced_custom_tool_obeys_its_grammar() {
    let engine = engine();
    let sum = "start: term (\" + \" term){1,3}\nterm: /[0-9]{1,3}/\n";
    for (format, obeys) in [
        (
            CustomFormat::Regex("^[a-z]{2,9}(, [a-z]{2,9}){2}$".into()),
            (|input: &str| input.split(", ").count() == 3) as fn(&str) -> bool,
        ),
        (CustomFormat::Lark(sum.into()), |input| {
            let terms: Vec<&str> = input.split(" + ").collect();
            let number = |term: &&str| term.parse::<u16>().is_ok_and(|n| n < 1_000);
            (2..=4).contains(&terms.len()) && terms.iter().all(number)
        }),
        (CustomFormat::Text, |input| {
            (1..=80).contains(&input.chars().count()) && !input.contains("</tool_call>")
        }),
    ] {
        let custom = Tool {
            kind: ToolKind::Custom(format),
            ..Tool::function("write", None)
        };
        let mut turn = request(None, &[&user("Write something, please.")]);
        turn.tools = tools(vec![(
            r#"{"type":"custom","name":"write"}"#.to_owned(),
            custom,
        )]);
        turn.tool_choice = ToolChoice::Tool("write".into());
        turn.max_output_tokens = Some(128);
        let (answer, chain) = run(&engine, turn.clone());
        assert_exact(&engine, &answer, &turn);
        assert_eq!((answer.calls.len(), answer.cut), (1, 0), "{answer:?}");
        let (called, input) = &answer.calls[0];
        assert_eq!(called, "write");
        assert!(obeys(input), "{input:?}");
        assert_eq!(answer.text, "");
        let result = r#"{"type":"custom_tool_call_output","call_id":"c","output":"Done."}"#;
        let mut next = request(Some(&chain), &[result]);
        next.tools = turn.tools;
        let (next_answer, _) = run(&engine, next.clone());
        assert_exact(&engine, &next_answer, &next);
        assert!(next_answer.prefilled() < 40, "{}", next_answer.prefilled());
    }
}

#[test]
fn a_grammar_that_cannot_be_compiled_is_the_clients_mistake() {
    let custom = Tool {
        kind: ToolKind::Custom(CustomFormat::Lark("start: nothing\n".into())),
        ..Tool::function("write", None)
    };
    let mut turn = request(None, &[&user("Write something, please.")]);
    turn.tools = tools(vec![(String::new(), custom)]);
    let failure = collect(start(&engine(), turn)).expect_err("no such rule");
    assert_eq!(failure.kind, EngineFailureKind::Invalid);
    assert_eq!(
        failure.message,
        "Invalid grammar in tools[0].format.definition: line 1, column 8: unknown name: \"nothing\""
    );
}

#[test]
fn tools_that_come_as_an_item_can_be_called_and_leave_the_head_alone() {
    let engine = engine();
    let mut first = request(None, &[&user("Name a colour.")]);
    first.tools = tools(vec![tool("look", r#"{"type":"object","properties":{}}"#)]);
    let (_, chain) = run(&engine, first.clone());

    let item = r#"{"type":"additional_tools","role":"developer","tools":[{"type":"function","name":"paint","description":"Paints.","parameters":{"type":"object","properties":{"colour":{"enum":["red","blue"]}},"required":["colour"],"additionalProperties":false}}]}"#;
    let mut turn = request(Some(&chain), &[item, &user("Paint it.")]);
    turn.tools = first.tools;
    turn.additional_tools = Tools::of_item(&turn.input[0]).offered;
    turn.tool_choice = ToolChoice::Tool("paint".into());
    turn.max_output_tokens = Some(64);
    let (answer, link) = run(&engine, turn.clone());
    assert_exact(&engine, &answer, &turn);
    assert_eq!(answer.calls[0].0, "paint");
    let arguments: serde_json::Value = serde_json::from_str(&answer.calls[0].1).expect("JSON");
    assert!(["red", "blue"].contains(&arguments["colour"].as_str().expect("a colour")));
    let parent = engine.recorded_ids(chain.engine_state().expect("state"));
    let head = engine.head_ids(&turn).expect("the head renders").len();
    let before = head + parent.expect("its own").len();
    assert!(
        answer.usage.cached_tokens as usize + 1 >= before,
        "{} of {before}",
        answer.usage.cached_tokens
    );

    // From there on it is known.
    let result = r#"{"type":"function_call_output","call_id":"c","output":"done"}"#;
    let mut next = request(Some(&link), &[result]);
    next.tools = turn.tools;
    next.additional_tools = turn.additional_tools;
    let (next_answer, _) = run(&engine, next.clone());
    assert_exact(&engine, &next_answer, &next);
    assert!(next_answer.prefilled() < 40, "{}", next_answer.prefilled());
}

#[test]
fn a_grammar_is_compiled_once_and_each_turn_begins_at_its_start() {
    let engine = engine();
    let turn = |tools: &Tools| {
        let mut turn = request(None, &[&user("What is the weather in Rome?")]);
        turn.tools = tools.clone();
        turn.tool_choice = ToolChoice::Required;
        turn.max_output_tokens = Some(64);
        run(&engine, turn).0.calls
    };
    let schema = r#"{"type":"object","properties":{"city":{"enum":["Oslo","Rome"]}},"required":["city"],"additionalProperties":false}"#;
    let weather = tools(vec![tool("get_weather", schema)]);
    let first = turn(&weather);
    assert_eq!(first.len(), 1);
    assert_eq!(engine.stats().compiled_grammars, 1);
    for _ in 0..2 {
        assert_eq!(turn(&weather), first);
    }
    assert_eq!(engine.stats().compiled_grammars, 1);
    turn(&tools(vec![tool("get_news", schema)]));
    assert_eq!(engine.stats().compiled_grammars, 2);
}
