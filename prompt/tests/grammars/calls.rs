//! Calls of functions, reasoning, and answers in JSON.

use std::sync::Arc;

use bytes::Bytes;
use turnwire_prompt::Bounds;
use turnwire_prompt::grammar::Grammar;
use turnwire_protocol::engine::{TextFormat, TurnRequest};
use turnwire_protocol::tool::{Tool, ToolChoice, ToolKind};

use crate::vocabulary::{DEEPSEEK, LLAMA3, QWEN2, QWEN3, Vocabulary, request, tool};

const WEATHER: &str = r#"{"$schema":"https://json-schema.org/draft/2020-12/schema","title":"Weather","type":"object","properties":{"city":{"type":"string"},"unit":{"enum":["C","F"]},"days":{"type":"integer","minimum":1,"maximum":14}},"required":["city","unit"]}"#;

fn weather_and_time() -> Vec<Tool> {
    vec![
        tool("get_weather", WEATHER),
        tool("get_time", r#"{"type":"object","properties":{}}"#),
    ]
}

#[test]
fn auto_lets_text_pass_and_holds_calls_to_their_schemas() {
    let vocabulary = Vocabulary::new(&[]);
    let format = vocabulary.format(Some(QWEN2));
    let plan = format
        .plan(&request(weather_and_time(), ToolChoice::Auto))
        .unwrap();
    assert_eq!(plan.opening, "");
    vocabulary.accepts(
        &plan,
        &[
            "",
            "Hello, {\"name\": 1} <tool_cal äöü 😀 </tool_call>\n\n",
            "<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>",
            "Let me see.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\", \"unit\": \"C\"}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\":\"<tool_call>\",\"unit\":\"F\",\"days\":3}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>",
        ],
    );
    vocabulary.refuses(
        &plan,
        &[
            "<tool_call>",
            "x <tool_call>\nhello",
            "<tool_call>\n{\"name\": \"get_rich\", \"arguments\": {}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"get_time\", \"arguments\": {\"a\": 1}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\", \"unit\": \"K\"}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\", \"unit\": \"C\", \"days\": 15}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\":  \"Bern\", \"unit\": \"C\"}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call> and more text",
        ],
    );
}

#[test]
fn a_forced_call_begins_where_the_opening_ends() {
    let vocabulary = Vocabulary::new(&[]);
    let format = vocabulary.format(None);
    let plan = format
        .plan(&request(weather_and_time(), ToolChoice::Required))
        .unwrap();
    assert_eq!(plan.opening, "<tool_call>\n{\"name\":");
    let two = " \"get_weather\", \"arguments\": {\"city\": \"\", \"unit\": \"C\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>";
    vocabulary.accepts(
        &plan,
        &[" \"get_time\", \"arguments\": {}}\n</tool_call>", two],
    );
    vocabulary.refuses(
        &plan,
        &[
            "",
            "Hello",
            "<tool_call>",
            " \"get_time\", \"arguments\": {}}",
            " \"get_rich\", \"arguments\": {}}\n</tool_call>",
        ],
    );

    let mut one = request(weather_and_time(), ToolChoice::Required);
    one.parallel_tool_calls = false;
    vocabulary.refuses(&format.plan(&one).unwrap(), &[two]);

    let choice = ToolChoice::Tool("get_weather".into());
    let plan = format.plan(&request(weather_and_time(), choice)).unwrap();
    assert_eq!(
        plan.opening,
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\":"
    );
    vocabulary.accepts(
        &plan,
        &[" {\"city\": \"Bern\", \"unit\": \"C\"}}\n</tool_call>"],
    );
    vocabulary.refuses(
        &plan,
        &[
            " {}}\n</tool_call>",
            "{\"city\": \"Bern\", \"unit\": \"C\"}}\n</tool_call>",
        ],
    );
}

#[test]
fn allowed_tools_and_none_narrow_the_choice() {
    let vocabulary = Vocabulary::new(&[]);
    let format = vocabulary.format(Some(QWEN2));
    let time = "<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>";
    let weather = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"\", \"unit\": \"C\"}}\n</tool_call>";
    let allowed = |required| ToolChoice::Allowed {
        names: Arc::new(["get_time".into()]),
        required,
    };

    let plan = format
        .plan(&request(weather_and_time(), allowed(false)))
        .unwrap();
    vocabulary.accepts(&plan, &["Hello", time]);
    vocabulary.refuses(&plan, &[weather]);
    let plan = format
        .plan(&request(weather_and_time(), allowed(true)))
        .unwrap();
    let rest = time.strip_prefix(plan.opening.as_str()).unwrap();
    vocabulary.accepts(&plan, &[rest]);
    vocabulary.refuses(&plan, &["Hello"]);
    let plan = format
        .plan(&request(weather_and_time(), ToolChoice::None))
        .unwrap();
    vocabulary.accepts(&plan, &["Hello", "<tool_call"]);
    vocabulary.refuses(&plan, &[time, "x<tool_call>"]);

    let plan = format.plan(&request(Vec::new(), ToolChoice::Auto)).unwrap();
    assert_eq!(plan.grammar, None);
    let error = format
        .plan(&request(Vec::new(), ToolChoice::Required))
        .unwrap_err();
    assert_eq!(error.param.as_deref(), Some("tool_choice"));
}

#[test]
fn reasoning_may_come_before_everything_and_say_anything() {
    let vocabulary = Vocabulary::new(&[]);
    let format = vocabulary.format(Some(QWEN3));
    let call = "<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>";
    let thoughts = "<think>\nShould I <tool_call>? {\n</think>\n\n";

    let mut auto = request(weather_and_time(), ToolChoice::Auto);
    let plan = format.plan(&auto).unwrap();
    vocabulary.accepts(
        &plan,
        &[
            "Hello",
            call,
            &format!("{thoughts}Hello"),
            &format!("{thoughts}{call}"),
            &format!("{thoughts}Well.\n{call}\n{call}"),
        ],
    );
    vocabulary.refuses(
        &plan,
        &[&format!("<think>{call}"), &format!("{thoughts}<tool_call>")],
    );

    let plan = format
        .plan(&request(weather_and_time(), ToolChoice::Required))
        .unwrap();
    assert_eq!(plan.opening, "");
    vocabulary.accepts(&plan, &[call, &format!("{thoughts}{call}")]);
    vocabulary.refuses(&plan, &["Hello", &format!("{thoughts}Hello")]);

    // Without reasoning, the prompt says that it is over.
    auto.reasoning_effort = Some("none".into());
    auto.tool_choice = ToolChoice::Required;
    let plan = format.plan(&auto).unwrap();
    assert_eq!(
        plan.opening,
        "<think>\n\n</think>\n\n<tool_call>\n{\"name\":"
    );
    vocabulary.accepts(&plan, &[" \"get_time\", \"arguments\": {}}\n</tool_call>"]);
    vocabulary.refuses(&plan, &[thoughts]);
}

#[test]
fn reasoning_that_the_prompt_opened_has_to_end() {
    let control = ["<think>", "</think>"];
    for control in [&control[..], &[]] {
        let vocabulary = Vocabulary::new(control);
        let format = vocabulary.format(Some(DEEPSEEK));
        let plan = format
            .plan(&request(weather_and_time(), ToolChoice::Auto))
            .unwrap();
        vocabulary.accepts(
            &plan,
            &["Hm.</think>\n\nHello", "</think>", "Hm.\n</think>\n<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>"],
        );
        vocabulary.refuses(&plan, &["", "Hello"]);
    }
}

#[test]
fn markers_may_be_control_tokens() {
    let vocabulary = Vocabulary::new(&["<tool_call>", "</tool_call>", "<think>", "</think>"]);
    let format = vocabulary.format(Some(QWEN3));
    let call = "<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>";
    let plan = format
        .plan(&request(weather_and_time(), ToolChoice::Auto))
        .unwrap();
    vocabulary.accepts(
        &plan,
        &[
            "",
            "Hello",
            call,
            &format!("Well.\n{call}\n{call}"),
            &format!("<think>\nHm.\n</think>\n\n{call}"),
            "<think></think>Hello",
        ],
    );
    vocabulary.refuses(&plan, &["<tool_call>", "Hello</tool_call>", "<think>Hm."]);
    let plan = format
        .plan(&request(weather_and_time(), ToolChoice::Required))
        .unwrap();
    vocabulary.accepts(
        &plan,
        &[call, &format!("<think>\n</think>\n\n{call}\n{call}")],
    );
    vocabulary.refuses(&plan, &["", "Hello", "<think>\n</think>"]);
    let plan = format
        .plan(&request(weather_and_time(), ToolChoice::None))
        .unwrap();
    vocabulary.accepts(&plan, &["", "<think>Hm.</think>Hello"]);
    vocabulary.refuses(&plan, &[call]);
}

/// The parser reads characters: spelled in them, a marker would begin a call of any form.
#[test]
fn a_marker_that_is_a_control_token_cannot_be_spelled() {
    let vocabulary = Vocabulary::new(&["<tool_call>", "</tool_call>", "<think>", "</think>"]);
    let format = vocabulary.format(Some(QWEN3));
    let plan = format
        .plan(&request(weather_and_time(), ToolChoice::Auto))
        .unwrap();
    for (before, spelled, behind) in [
        ("", "<tool_call>", "\n{\"name\": \"get_rich\"}"),
        ("Well. ", "<tool_call>", ""),
        ("", "<think>", ""),
        ("<think>Hm.", "</think>", "</think>"),
    ] {
        let characters = spelled.bytes().map(u32::from).collect();
        let output = [
            vocabulary.tokens(before),
            characters,
            vocabulary.tokens(behind),
        ]
        .concat();
        let (_, whole) = vocabulary.read_tokens(&plan, &output);
        assert!(!whole, "accepted {before}{spelled}{behind}");
    }
}

#[test]
fn llama_calls_are_bare_objects() {
    let vocabulary = Vocabulary::new(&["<|python_tag|>"]);
    let format = vocabulary.format(Some(LLAMA3));
    let call = "{\"name\": \"get_time\", \"parameters\": {}}";
    let plan = format
        .plan(&request(weather_and_time(), ToolChoice::Auto))
        .unwrap();
    vocabulary.accepts(
        &plan,
        &[
            "",
            "Hello {\"name\": 1}",
            "{\"a\": 1}",
            call,
            "<|python_tag|>{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Bern\", \"unit\": \"F\"}}",
        ],
    );
    vocabulary.refuses(
        &plan,
        &[
            "<|python_tag|>",
            "<|python_tag|>print(1)",
            "{\"name\": \"get_rich\", \"parameters\": {}}",
            "{ \"name\": \"get_rich\"}",
            "{\"name\": \"get_time\", \"parameters\": {\"a\": 1}}",
            // The template cannot write two calls in one turn.
            "{\"name\": \"get_time\", \"parameters\": {}}; {\"name\": \"get_time\", \"parameters\": {}}",
        ],
    );
    let plan = format
        .plan(&request(weather_and_time(), ToolChoice::Required))
        .unwrap();
    assert_eq!(plan.opening, "{\"name\":");
    vocabulary.accepts(&plan, &[" \"get_time\", \"parameters\": {}}"]);
    let plan = format
        .plan(&request(weather_and_time(), ToolChoice::None))
        .unwrap();
    vocabulary.accepts(&plan, &["Hello"]);
    vocabulary.refuses(&plan, &[call, "<|python_tag|>"]);
}

const PERSON: &str = r##"{"type":"object","properties":{"name":{"type":"string"},"friends":{"type":"array","items":{"$ref":"#/$defs/friend"}}},"required":["name","friends"],"$defs":{"friend":{"type":"object","properties":{"since":{"type":"integer"}},"required":["since"]}}}"##;

#[test]
fn answers_in_json_obey_their_schema_and_leave_calls_possible() {
    let person = r#"{"name": "Ada", "friends": [{"since": 1833}]}"#;
    let compact = r#"{"name":"Ada","friends":[]}"#;
    let not_persons = [
        "Ada",
        r#"{"name": "Ada"}"#,
        r#"{"name": "Ada", "friends": [{}]}"#,
        "{\n\"name\":\"Ada\",\"friends\":[]}",
    ];
    let schema = TextFormat::JsonSchema {
        schema: Bytes::from_static(PERSON.as_bytes()),
    };
    let calls = [
        (
            QWEN2,
            "<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>",
        ),
        (
            QWEN3,
            "<think>Hm.</think>\n\n<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>",
        ),
        (LLAMA3, "{\"name\": \"get_time\", \"parameters\": {}}"),
    ];
    for (template, call) in calls {
        let vocabulary = Vocabulary::new(if template == LLAMA3 {
            &["<|python_tag|>"]
        } else {
            &[]
        });
        let format = vocabulary.format(Some(template));
        for tools in [Vec::new(), weather_and_time()] {
            let offers = !tools.is_empty();
            let mut request = request(tools, ToolChoice::Auto);
            request.format = schema.clone();
            let plan = format.plan(&request).unwrap();
            vocabulary.accepts(&plan, &[person, compact]);
            vocabulary.refuses(&plan, &not_persons);
            if offers {
                vocabulary.accepts(&plan, &[call]);
            } else {
                vocabulary.refuses(&plan, &[call]);
            }
        }
    }
    let vocabulary = Vocabulary::new(&[]);
    let format = vocabulary.format(Some(QWEN3));
    let mut request = request(Vec::new(), ToolChoice::Auto);
    request.format = TextFormat::JsonObject;
    let plan = format.plan(&request).unwrap();
    vocabulary.accepts(
        &plan,
        &[
            "{}",
            person,
            "<think>\nHm.\n</think>\n\n{\"a\": [1, \"b\", null, {\"c\": 1.5e3}]}",
        ],
    );
    vocabulary.refuses(&plan, &["", "[]", "Hello", "{\"a\": 1} and more"]);
}

#[test]
fn bounds_hold_where_a_schema_has_none() {
    let vocabulary = Vocabulary::new(&[]);
    let bounds = Bounds {
        string_chars: 5,
        array_items: 2,
        calls: 2,
    };
    let format = vocabulary.format(None).with_bounds(bounds);
    let schema = r#"{"type":"object","properties":{"s":{"type":"string"},"a":{"type":"array"},"o":{"type":"object"},"i":{"type":"integer"},"f":{"type":"string","maxLength":7}}}"#;
    let choice = ToolChoice::Tool("f".into());
    let plan = format
        .plan(&request(vec![tool("f", schema)], choice))
        .unwrap();
    let call = |arguments: &str| format!(" {arguments}}}\n</tool_call>");
    for arguments in [
        r#"{"s": "12345"}"#,
        r#"{"s": "äöü€😀"}"#,
        r#"{"a": [1, {"x": "12345"}]}"#,
        r#"{"o": {"a": 1, "b": [2]}}"#,
        r#"{"i": -9007199254740991}"#,
        r#"{"f": "1234567"}"#,
    ] {
        vocabulary.accepts(&plan, &[&call(arguments)]);
    }
    for arguments in [
        r#"{"s": "123456"}"#,
        r#"{"a": [1, 2, 3]}"#,
        r#"{"a": ["123456"]}"#,
        r#"{"o": {"a": 1, "b": 2, "c": 3}}"#,
        r#"{"o": {"123456": 1}}"#,
        r#"{"i": 90071992547409910}"#,
        r#"{"f": "12345678"}"#,
    ] {
        vocabulary.refuses(&plan, &[&call(arguments)]);
    }
    let plan = format
        .plan(&request(weather_and_time(), ToolChoice::Auto))
        .unwrap();
    let call = "<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>";
    vocabulary.accepts(&plan, &[&[call; 2].join("\n")]);
    vocabulary.refuses(&plan, &[&[call; 3].join("\n")]);
}

#[test]
fn schemas_are_taken_as_clients_send_them() {
    let vocabulary = Vocabulary::new(&[]);
    let format = vocabulary.format(None);
    let cases = [
        ("", r#"{"anything": [true]}"#),
        ("{}", r#"{"anything": [true]}"#),
        (r#"{"type":"object"}"#, "{}"),
        (
            r#"{"type":"object","properties":{},"additionalProperties":false}"#,
            "{}",
        ),
        (
            r#"{"type":"object","properties":{"p":{"anyOf":[{"type":"string"},{"type":"null"}],"default":null,"title":"P"}},"title":"Args"}"#,
            r#"{"p": null}"#,
        ),
        (
            r##"{"type":"object","properties":{"v":{"oneOf":[{"$ref":"#/definitions/a"},{"type":"integer"}],"discriminator":{"propertyName":"k"}}},"definitions":{"a":{"type":"object","properties":{"k":{"const":"a"}},"required":["k"]}}}"##,
            r#"{"v": {"k": "a"}}"#,
        ),
        (
            r#"{"type":"object","properties":{"tags":{"type":"array","uniqueItems":true,"items":{"type":"string","format":"password"}}}}"#,
            r#"{"tags": ["a", "b"]}"#,
        ),
        (
            r#"{"type":"object","properties":{"m":{"type":"object","propertyNames":{"type":"string"},"additionalProperties":{"type":"number"}}}}"#,
            r#"{"m": {"k": -1.5}}"#,
        ),
        (
            r##"{"type":"object","properties":{"tree":{"$ref":"#/$defs/node"}},"$defs":{"node":{"type":"object","properties":{"children":{"type":"array","items":{"$ref":"#/$defs/node"}}}}}}"##,
            r#"{"tree": {"children": [{"children": []}]}}"#,
        ),
        (
            r#"{"type":["object","null"],"properties":{"a":{"type":["integer","string"]}},"required":["a"]}"#,
            r#"{"a": "x"}"#,
        ),
    ];
    for (schema, arguments) in cases {
        let choice = ToolChoice::Tool("f".into());
        let plan = format
            .plan(&request(vec![tool("f", schema)], choice))
            .unwrap();
        vocabulary.accepts(&plan, &[&format!(" {arguments}}}\n</tool_call>")]);
    }
}

#[test]
fn a_schema_that_cannot_be_enforced_is_named() {
    let vocabulary = Vocabulary::new(&[]);
    let format = vocabulary.format(None);
    let compile = |grammar: &Grammar| vocabulary.compile(grammar);
    let blame = |request: &TurnRequest| {
        let plan = format.plan(request).unwrap();
        assert!(compile(&plan.grammar.unwrap()).is_err());
        let refusal = format.blame(request, compile);
        (refusal.param.unwrap(), refusal.message)
    };

    let unique = r#"{"type":"object","properties":{"a":{"type":"array","uniqueItems":true}}}"#;
    let strict = Tool {
        kind: ToolKind::Function {
            parameters: Some(Bytes::from_static(unique.as_bytes())),
            strict: true,
        },
        path: "tools[2]".into(),
        ..tool("f", unique)
    };
    let mut functions = weather_and_time();
    functions.push(strict);
    assert_eq!(
        blame(&request(functions, ToolChoice::Auto)),
        (
            "tools[2].parameters".to_owned(),
            "Invalid schema in tools[2].parameters: Unimplemented keys: [\"uniqueItems\"]"
                .to_owned()
        )
    );

    let mut answer = request(weather_and_time(), ToolChoice::Auto);
    let schema = Bytes::from_static(
        br#"{"type":"object","properties":{"a":{"$ref":"https://example.com/a"}}}"#,
    );
    answer.format = TextFormat::JsonSchema { schema };
    assert_eq!(blame(&answer).0, "text.format.schema");

    let error = format
        .plan(&request(vec![tool("f", "[]")], ToolChoice::Auto))
        .unwrap_err();
    assert_eq!(error.param.as_deref(), Some("tools[0].parameters"));
}
