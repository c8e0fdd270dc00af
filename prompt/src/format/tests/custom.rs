//! Custom tools, tools that come as items, and items whose content is sealed.

use turnwire_protocol::tool::{CustomFormat, ToolKind, ToolName};

use super::*;

const CUSTOM_LESSON: &str = "You can use these tools, which take text:\n<tools>\n\
    {\"name\": \"files__patch\", \"description\": \"Does it.\"}\n\
    {\"name\": \"sum\", \"input\": {\"syntax\": \"lark\", \"definition\": \"start: \\\"a\\\"\"}}\n\
    </tools>\n\n\
    To use a tool, answer with its name and, on the next line, its input as it is:\n\
    <tool_call>\n{\"name\": NAME}\nINPUT\n</tool_call>";

fn custom_tools() -> Vec<Tool> {
    let custom = |name: &str, format| Tool {
        kind: ToolKind::Custom(format),
        ..Tool::function(name, None)
    };
    let name = ToolName {
        namespace: Some("files".into()),
        name: "patch".into(),
    };
    let patch = Tool {
        name,
        description: Some("Does it.".into()),
        ..custom("", CustomFormat::Text)
    };
    let sum = CustomFormat::Lark("start: \"a\"".into());
    vec![patch, custom("sum", sum)]
}

#[test]
fn custom_tools_are_taught_behind_the_instructions_and_functions() {
    let with = |mut tools: Tools| {
        tools.offered = tools
            .offered
            .iter()
            .cloned()
            .chain(custom_tools())
            .collect();
        tools
    };
    let qwen = format(Some(QWEN2), chatml_tokens());
    let native = head(&qwen, Some("Be brief."), &with(tools(&["get_time"])));
    assert!(native.contains(&format!("Be brief.\n\n{CUSTOM_LESSON}")));
    // The template itself shows the function, and only that.
    let shown = head(&qwen, None, &tools(&["get_time"]));
    let shown = &shown[shown.find("<tools>").unwrap()..];
    assert!(native.ends_with(shown), "{native}");

    let smollm2 = format(Some(SMOLLM2), chatml_tokens());
    let taught = head(&smollm2, None, &with(tools(&["get_time"])));
    assert!(taught.contains("You can call these functions:\n"));
    assert!(taught.contains(&format!("{{...}}}}\n</tool_call>\n\n{CUSTOM_LESSON}")));
    let alone = head(&smollm2, None, &with(Tools::default()));
    assert_eq!(
        alone,
        format!("<|im_start|>system\n{CUSTOM_LESSON}<|im_end|>\n")
    );
}

#[test]
fn tools_that_come_as_an_item_are_taught_where_it_stands() {
    let item = r#"[
        {"type":"additional_tools","role":"developer","tools":[
            {"type":"function","name":"look","parameters":{"type":"object","properties":{}}},
            {"type":"custom","name":"note"},
            {"type":"web_search"}
        ]},
        {"role":"user","content":"Look."}
    ]"#;
    for template in [QWEN2, SMOLLM2] {
        let format = format(Some(template), chatml_tokens());
        assert_eq!(
            segment(&format, Before::Closed, item, true),
            "<|im_start|>system\nYou can call these functions:\n<tools>\n\
             {\"type\": \"function\", \"function\": {\"name\": \"look\", \"parameters\": {\"type\": \"object\", \"properties\": {}}}}\n\
             </tools>\n\n\
             To call a function, answer with its name and arguments as JSON:\n\
             <tool_call>\n{\"name\": NAME, \"arguments\": {...}}\n</tool_call>\n\n\
             You can use these tools, which take text:\n<tools>\n{\"name\": \"note\"}\n</tools>\n\n\
             To use a tool, answer with its name and, on the next line, its input as it is:\n\
             <tool_call>\n{\"name\": NAME}\nINPUT\n</tool_call><|im_end|>\n\
             <|im_start|>user\nLook.<|im_end|>\n<|im_start|>assistant\n"
        );
    }
}

#[test]
fn calls_of_custom_and_namespaced_tools_are_written_as_the_model_writes_them() {
    let smollm2 = format(Some(SMOLLM2), chatml_tokens());
    let calls = r#"[
        {"role":"user","content":"u"},
        {"type":"custom_tool_call","call_id":"c1","name":"patch","namespace":"files","input":"*** {\"a\"\n+b"},
        {"type":"function_call","call_id":"c2","name":"look","namespace":"eyes","arguments":"{}"},
        {"type":"custom_tool_call_output","call_id":"c1","output":"ok"}
    ]"#;
    assert_eq!(
        segment(&smollm2, Before::Closed, calls, false),
        "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n\
         <tool_call>\n{\"name\": \"files__patch\"}\n*** {\"a\"\n+b\n</tool_call>\n\
         <tool_call>\n{\"name\": \"eyes__look\", \"arguments\": {}}\n</tool_call><|im_end|>\n\
         <|im_start|>user\n<tool_response>\nok\n</tool_response><|im_end|>\n"
    );
}

#[test]
fn what_was_sealed_is_shown_in_the_place_of_its_item() {
    let parse = |json: &str| Item::parse(Bytes::copy_from_slice(json.as_bytes())).unwrap();
    let summary = r#"{"type":"compaction","id":"cmp_1","encrypted_content":"x"}"#;
    let sealed = r#"{"type":"reasoning","id":"rs_1","summary":[{"type":"summary_text","text":"short"}],"encrypted_content":"x"}"#;
    let call = parse(r#"{"type":"function_call","call_id":"c","name":"f","arguments":"{}"}"#);
    let result = parse(r#"{"type":"function_call_output","call_id":"c","output":"1"}"#);
    let qwen3 = format(Some(QWEN3), chatml_tokens());
    let rendered = |items: &[&Item]| text(&qwen3.segment(Before::Closed, items, None).unwrap());

    let revealed = parse(summary).with_revealed("We spoke of <|im_end|> rain.");
    assert_eq!(
        rendered(&[&revealed]),
        "<|im_start|>user\nWe spoke of <|im_end|> rain.<|im_end|>\n"
    );
    let pieces = qwen3.segment(Before::Closed, &[&revealed], None).unwrap();
    assert_eq!(count(&pieces, &["<|im_end|>".to_owned()]), 1);
    assert_eq!(rendered(&[&parse(summary)]), "", "there is nothing to show");

    let user = parse(r#"{"role":"user","content":"A colour?"}"#);
    // Within a loop of calls, the template shows what led to them.
    for (thought, shown) in [
        (parse(sealed).with_revealed("All of it."), "All of it."),
        (parse(sealed), "short"),
    ] {
        let items = [&user, &thought, &call, &result];
        let all = text(&qwen3.segment(Before::Closed, &items, Some("")).unwrap());
        let shown = format!("<think>\n{shown}\n</think>");
        assert!(all.contains(&shown), "{all}");
    }
}
