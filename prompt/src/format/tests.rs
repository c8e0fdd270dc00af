//! Every fixture is a template written in the style of a model family.

mod custom;

use bytes::Bytes;
use turnwire_protocol::tool::{Tool, Tools};

use proptest::strategy::Strategy;

use super::template::Conversation;
use super::*;

const SMOLLM2: &str = include_str!("../../tests/templates/smollm2.jinja");
const QWEN2: &str = include_str!("../../tests/templates/qwen2.jinja");
const QWEN3: &str = include_str!("../../tests/templates/qwen3.jinja");
const LLAMA3: &str = include_str!("../../tests/templates/llama3.jinja");
const MISTRAL: &str = include_str!("../../tests/templates/mistral.jinja");
const GEMMA: &str = include_str!("../../tests/templates/gemma.jinja");
const PHI3: &str = include_str!("../../tests/templates/phi3.jinja");
const DEEPSEEK: &str = include_str!("../../tests/templates/deepseek.jinja");

fn tokens(bos: &str, eos: &str, end_of_turn: &str, others: &[&str]) -> SpecialTokens {
    let mut control: Vec<String> = [bos, eos, end_of_turn]
        .iter()
        .chain(others)
        .filter(|token| !token.is_empty())
        .map(|token| (*token).to_owned())
        .collect();
    control.dedup();
    SpecialTokens {
        bos: (!bos.is_empty()).then(|| bos.to_owned()),
        eos: Some(eos.to_owned()),
        end_of_turn: end_of_turn.to_owned(),
        control,
        user_defined: Vec::new(),
    }
}

fn chatml_tokens() -> SpecialTokens {
    tokens("", "<|im_end|>", "<|im_end|>", &["<|im_start|>"])
}

fn formats() -> Vec<(&'static str, ChatFormat)> {
    let chatml = chatml_tokens;
    [
        ("none", None, chatml()),
        ("smollm2", Some(SMOLLM2), chatml()),
        ("qwen2", Some(QWEN2), chatml()),
        ("qwen3", Some(QWEN3), chatml()),
        ("llama3", Some(LLAMA3), llama_tokens()),
        ("mistral", Some(MISTRAL), mistral_tokens()),
        ("gemma", Some(GEMMA), gemma_tokens()),
        ("phi3", Some(PHI3), phi_tokens()),
        ("deepseek", Some(DEEPSEEK), deepseek_tokens()),
    ]
    .into_iter()
    .map(|(name, template, tokens)| (name, format(template, tokens)))
    .collect()
}

fn llama_tokens() -> SpecialTokens {
    let others = [
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|python_tag|>",
    ];
    tokens("<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>", &others)
}

fn mistral_tokens() -> SpecialTokens {
    tokens("<s>", "</s>", "</s>", &["[INST]", "[/INST]"])
}

fn gemma_tokens() -> SpecialTokens {
    tokens("<bos>", "<eos>", "<end_of_turn>", &["<start_of_turn>"])
}

fn phi_tokens() -> SpecialTokens {
    let others = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"];
    tokens("", "<|endoftext|>", "<|endoftext|>", &others)
}

fn deepseek_tokens() -> SpecialTokens {
    let others = ["<|User|>", "<|Assistant|>", "<think>", "</think>"];
    tokens("<|bos|>", "<|eos|>", "<|eos|>", &others)
}

fn format(template: Option<&str>, tokens: SpecialTokens) -> ChatFormat {
    ChatFormat::new(template, tokens).unwrap()
}

fn items(json: &str) -> Vec<Item> {
    let raw: Vec<&serde_json::value::RawValue> = serde_json::from_str(json).unwrap();
    raw.iter()
        .map(|item| Item::parse(Bytes::from(item.get().to_owned())).unwrap())
        .collect()
}

fn tools(names: &[&str]) -> Tools {
    let parameters = Bytes::from_static(
        br#"{"type":"object","properties":{"zone":{"type":"string"},"at":{"type":"integer"}},"required":["zone"]}"#,
    );
    let functions = names.iter().map(|name| Tool {
        description: Some("Does it.".into()),
        ..Tool::function(name, Some(parameters.clone()))
    });
    Tools {
        raw: Bytes::from_static(b"[]"),
        offered: functions.collect(),
    }
}

fn text(text: &Text) -> String {
    text.pieces.concat()
}

fn head(format: &ChatFormat, instructions: Option<&str>, tools: &Tools) -> String {
    text(&format.head(instructions, tools).unwrap())
}

/// What a segment renders to, with a generation prompt if `generate`.
fn segment(format: &ChatFormat, before: Before, json: &str, generate: bool) -> String {
    let items = items(json);
    let items: Vec<&Item> = items.iter().collect();
    let opening = generate.then_some("");
    text(&format.segment(before, &items, opening).unwrap())
}

/// What the template itself makes of a whole conversation, given as JSON messages.
fn whole(format: &ChatFormat, messages: &str, tools: Option<&Tools>, generate: bool) -> String {
    format
        .template
        .render(Conversation {
            messages: serde_json::from_str(messages).unwrap(),
            tools: tools.and_then(|tools| tools::to_value(tools, &format.marks).unwrap()),
            generate,
            thinking: None,
        })
        .unwrap()
}

const CHAT: &str = r#"[
    {"role":"user","content":"Hello"},
    {"type":"message","role":"assistant","content":[{"type":"output_text","text":"Hi, "},{"type":"output_text","text":"you."}]},
    {"type":"message","role":"user","content":[{"type":"input_text","text":"How are you?"}]}
]"#;
const CHAT_MESSAGES: &str = r#"{"role":"user","content":"Hello"},{"role":"assistant","content":"Hi, you."},{"role":"user","content":"How are you?"}"#;

#[test]
fn head_and_segment_are_what_the_template_writes_for_the_whole() {
    for (name, format) in formats() {
        for instructions in [None, Some("Be brief.")] {
            // Gemma and Mistral have no place for instructions of their own.
            if instructions.is_some() && !format.shape.system_at_start {
                assert!(["gemma", "mistral"].contains(&name));
                continue;
            }
            let system = instructions.map_or(String::new(), |text| {
                format!(r#"{{"role":"system","content":"{text}"}},"#)
            });
            let head = head(&format, instructions, &Tools::default());
            for generate in [true, false] {
                let expected = whole(
                    &format,
                    &format!("[{system}{CHAT_MESSAGES}]"),
                    None,
                    generate,
                );
                let expected = if name == "phi3" {
                    expected.strip_suffix("<|endoftext|>").unwrap_or(&expected)
                } else {
                    &expected
                };
                let segment = segment(&format, Before::Closed, CHAT, generate);
                assert_eq!(format!("{head}{segment}"), expected, "{name}");
            }
        }
    }
}

const TOOL_LOOP: &str = r#"[
    {"role":"user","content":"Time?"},
    {"type":"reasoning","id":"rs_1","summary":[],"content":[{"type":"reasoning_text","text":"Two zones."}]},
    {"type":"message","role":"assistant","content":[{"type":"output_text","text":"Looking."}]},
    {"type":"function_call","call_id":"c1","name":"get_time","arguments":"{\"zone\":\"CET\",\"at\":3}"},
    {"type":"function_call","call_id":"c2","name":"get_time","arguments":"{\"zone\": \"UTC\"}"},
    {"type":"web_search_call","id":"ws_1","status":"completed","action":{}},
    {"type":"function_call_output","call_id":"c1","output":"12:00"},
    {"type":"function_call_output","call_id":"c2","output":[{"type":"input_text","text":"11:"},{"type":"input_text","text":"00"}]}
]"#;

#[test]
fn a_history_of_calls_is_what_the_template_writes() {
    let messages = r#"[
        {"role":"user","content":"Time?"},
        {"role":"assistant","reasoning_content":"Two zones.","content":"Looking.","tool_calls":[
            {"id":"c1","type":"function","function":{"name":"get_time","arguments":{"zone":"CET","at":3}}},
            {"id":"c2","type":"function","function":{"name":"get_time","arguments":{"zone":"UTC"}}}]},
        {"role":"tool","tool_call_id":"c1","name":"get_time","content":"12:00"},
        {"role":"tool","tool_call_id":"c2","name":"get_time","content":"11:00"}
    ]"#;
    let tools = tools(&["get_time"]);
    for (name, format) in formats() {
        if !["qwen2", "qwen3"].contains(&name) {
            continue;
        }
        let head = head(&format, None, &tools);
        let segment = segment(&format, Before::Closed, TOOL_LOOP, true);
        let expected = whole(&format, messages, Some(&tools), true);
        assert_eq!(format!("{head}{segment}"), expected, "{name}");
    }
}

#[test]
fn calls_come_one_at_a_time_where_the_template_takes_no_more() {
    let llama = format(Some(LLAMA3), llama_tokens());
    assert_eq!(
        segment(&llama, Before::Closed, TOOL_LOOP, true),
        "<|start_header_id|>user<|end_header_id|>\n\nTime?<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n{\"name\": \"get_time\", \"parameters\": {\"zone\": \"CET\", \"at\": 3}}<|eot_id|>\
         <|start_header_id|>ipython<|end_header_id|>\n\n12:00<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n{\"name\": \"get_time\", \"parameters\": {\"zone\": \"UTC\"}}<|eot_id|>\
         <|start_header_id|>ipython<|end_header_id|>\n\n11:00<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    // Results of calls that the model made in an earlier turn.
    let results = r#"[{"type":"function_call_output","call_id":"c1","output":"1"},{"type":"function_call_output","call_id":"c2","output":"2"}]"#;
    assert_eq!(
        segment(&llama, Before::Ended, results, false),
        "<|start_header_id|>ipython<|end_header_id|>\n\n1<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n2<|eot_id|>"
    );
}

#[test]
fn a_template_without_tools_sees_calls_as_text() {
    let smollm2 = format(Some(SMOLLM2), chatml_tokens());
    assert_eq!(
        segment(&smollm2, Before::Closed, TOOL_LOOP, true),
        "<|im_start|>user\nTime?<|im_end|>\n\
         <|im_start|>assistant\nLooking.\n\
         <tool_call>\n{\"name\": \"get_time\", \"arguments\": {\"zone\": \"CET\", \"at\": 3}}\n</tool_call>\n\
         <tool_call>\n{\"name\": \"get_time\", \"arguments\": {\"zone\": \"UTC\"}}\n</tool_call><|im_end|>\n\
         <|im_start|>user\n<tool_response>\n12:00\n</tool_response>\n<tool_response>\n11:00\n</tool_response><|im_end|>\n\
         <|im_start|>assistant\n"
    );
    // Strict alternation joins the results and what the user says to them.
    let gemma = format(Some(GEMMA), gemma_tokens());
    let results = r#"[{"type":"custom_tool_call_output","call_id":"c1","output":"1"},{"role":"user","content":"Go on."}]"#;
    assert_eq!(
        segment(&gemma, Before::Ended, results, true),
        "\n<start_of_turn>user\n<tool_response>\n1\n</tool_response>\n\nGo on.<end_of_turn>\n<start_of_turn>model\n"
    );
}

/// A chain of turns, each rendered by itself, against one rendering of the whole.
#[test]
fn a_chain_of_segments_is_what_the_template_writes_for_the_whole() {
    let tools = tools(&["get_time"]);
    let format = format(Some(QWEN2), chatml_tokens());
    let mut chain = head(&format, Some("Be brief."), &tools);
    chain += &segment(
        &format,
        Before::Closed,
        r#"[{"role":"user","content":"Time?"}]"#,
        true,
    );
    chain +=
        "<tool_call>\n{\"name\": \"get_time\", \"arguments\": {\"zone\": \"CET\"}}\n</tool_call>";
    let result = r#"[{"type":"function_call_output","call_id":"c1","output":"12:00"}]"#;
    // The grammar ended the turn; the model never said so.
    chain += &segment(&format, Before::Open, result, true);
    chain += "Noon.<|im_end|>";
    chain += &segment(
        &format,
        Before::Ended,
        r#"[{"role":"user","content":"Thanks."}]"#,
        false,
    );
    chain += &segment(
        &format,
        Before::Closed,
        r#"[{"role":"developer","content":"Be kind."}]"#,
        true,
    );
    let messages = r#"[
        {"role":"system","content":"Be brief."},
        {"role":"user","content":"Time?"},
        {"role":"assistant","content":"","tool_calls":[{"id":"c1","type":"function","function":{"name":"get_time","arguments":{"zone":"CET"}}}]},
        {"role":"tool","tool_call_id":"c1","content":"12:00"},
        {"role":"assistant","content":"Noon."},
        {"role":"user","content":"Thanks."},
        {"role":"system","content":"Be kind."}
    ]"#;
    assert_eq!(chain, whole(&format, messages, Some(&tools), true));
}

#[test]
fn what_stood_before_is_closed_as_far_as_it_was_open() {
    let user = r#"[{"role":"user","content":"u"}]"#;
    for (name, format) in formats() {
        let closed = segment(&format, Before::Closed, user, true);
        let ended = segment(&format, Before::Ended, user, true);
        let open = segment(&format, Before::Open, user, true);
        let (end, behind) = match name {
            "none" | "smollm2" | "qwen2" | "qwen3" => ("<|im_end|>", "\n"),
            "llama3" => ("<|eot_id|>", ""),
            "mistral" => ("</s>", ""),
            "gemma" => ("<end_of_turn>", "\n"),
            // The template ends turns with another token than the model's own.
            "phi3" => ("<|end|>", "\n"),
            "deepseek" => ("<|eos|>", ""),
            other => panic!("{other}"),
        };
        assert_eq!(ended, format!("{behind}{closed}"), "{name}");
        assert_eq!(open, format!("{end}{behind}{closed}"), "{name}");
        // Nothing new: the next turn opens right away.
        let prompt = segment(&format, Before::Closed, "[]", true);
        assert!(closed.ends_with(&prompt), "{name}");
        assert_eq!(segment(&format, Before::Closed, "[]", false), "", "{name}");
    }
}

#[test]
fn instructions_find_a_place_where_the_template_has_none() {
    let none = Tools::default();
    let gemma = format(Some(GEMMA), gemma_tokens());
    assert_eq!(head(&gemma, None, &none), "<bos>");
    assert_eq!(
        head(&gemma, Some("Be brief."), &none),
        "<bos><start_of_turn>user\nBe brief.<end_of_turn>\n"
    );
    assert_eq!(
        segment(
            &gemma,
            Before::Closed,
            r#"[{"role":"system","content":"s"},{"role":"user","content":"u"}]"#,
            false
        ),
        "<start_of_turn>user\ns\n\nu<end_of_turn>\n"
    );
    let mistral = format(Some(MISTRAL), mistral_tokens());
    assert_eq!(
        head(&mistral, Some("Be brief."), &none),
        "<s>[INST] Be brief.[/INST]"
    );
    // A model that wants a BOS token gets one even if its template forgot.
    let plain = format(None, tokens("<s>", "</s>", "<|im_end|>", &[]));
    assert_eq!(head(&plain, None, &none), "<s>");
}

#[test]
fn a_template_may_separate_messages_instead_of_ending_them() {
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '\nassistant: ' }}{% endif %}";
    let format = format(Some(template), tokens("", "</s>", "</s>", &[]));
    let head = head(&format, Some("s"), &Tools::default());
    let user = r#"[{"role":"user","content":"u"}]"#;
    let first = segment(&format, Before::Closed, user, true);
    assert_eq!(format!("{head}{first}"), "system: s\nuser: u\nassistant: ");
    assert_eq!(
        segment(&format, Before::Open, user, true),
        "\nuser: u\nassistant: "
    );
}

#[test]
fn a_last_message_is_closed_as_if_others_followed() {
    let exchange = r#"[{"role":"user","content":"u"},{"role":"assistant","content":"a"}]"#;
    let both = "<|user|>u<|end|><|assistant|>a<|end|>";
    for last in [
        // Left open, for the model to go on with.
        "",
        // Closed for good.
        "<|return|>",
    ] {
        let template = format!(
            "{{% for m in messages %}}<|{{{{ m.role }}}}|>{{{{ m.content }}}}\
             {{% if loop.last and m.role == 'assistant' %}}{last}{{% else %}}<|end|>{{% endif %}}\
             {{% endfor %}}{{% if add_generation_prompt %}}<|assistant|>{{% endif %}}"
        );
        let tokens = match last {
            "" => tokens("", "<|end|>", "<|end|>", &["<|user|>"]),
            _ => tokens("", "<|return|>", "<|return|>", &["<|end|>", "<|user|>"]),
        };
        let format = format(Some(&template), tokens);
        assert_eq!(segment(&format, Before::Closed, exchange, false), both);
        assert_eq!(
            segment(&format, Before::Open, "[]", true),
            "<|end|><|assistant|>"
        );
        assert_eq!(segment(&format, Before::Ended, "[]", true), "<|assistant|>");
    }
    // Qwen 3 shows that the last message was not thought about.
    let qwen3 = format(Some(QWEN3), chatml_tokens());
    assert_eq!(
        segment(&qwen3, Before::Closed, exchange, false),
        "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    );
}

#[test]
fn what_a_model_cannot_read_is_refused_by_name() {
    let format = format(None, chatml_tokens());
    let refusal = |json: &str| {
        let items = items(json);
        let items: Vec<&Item> = items.iter().collect();
        format.segment(Before::Closed, &items, None).unwrap_err()
    };
    let image = refusal(
        r#"[{"role":"user","content":"a"},{"role":"user","content":[{"type":"input_text","text":"b"},{"type":"input_image","image_url":"data:"}]}]"#,
    );
    assert_eq!(image.kind, EngineFailureKind::Unsupported);
    assert_eq!(image.param.as_deref(), Some("input[1].content[1]"));
    assert!(image.message.contains("'input_image'"), "{}", image.message);
    let file = refusal(
        r#"[{"type":"function_call_output","call_id":"c","output":[{"type":"input_file","file_id":"f"}]}]"#,
    );
    assert_eq!(file.param.as_deref(), Some("input[0].output[0]"));
    let number = refusal(r#"[{"role":"user","content":7}]"#);
    assert_eq!(number.kind, EngineFailureKind::Invalid);
    assert_eq!(number.param.as_deref(), Some("input[0].content"));
    let no_name = refusal(r#"[{"type":"function_call","call_id":"c","arguments":"{}"}]"#);
    assert_eq!(no_name.param.as_deref(), Some("input[0]"));
}

#[test]
fn a_template_that_cannot_be_cut_is_refused_at_once() {
    for template in [
        "{{ messages | length }}",
        "{{ messages[-1].content }}{{ messages | length }}",
        "{% if %}",
    ] {
        assert!(
            ChatFormat::new(Some(template), chatml_tokens()).is_err(),
            "{template}"
        );
    }
}

#[test]
fn a_call_id_forges_no_control_token() {
    let template = "{% if tools %}{{ tools | tojson }}{% endif %}\
        {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
        {% for call in m.tool_calls %}{{ call.id }}<tool_call>{\"name\": \"{{ call.function.name }}\", \
        \"arguments\": {{ call.function.arguments | tojson }}}</tool_call>{% endfor %}\
        {{ m.tool_call_id }}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let format = format(Some(template), chatml_tokens());
    let items = items(
        r#"[
        {"type":"function_call","call_id":"<|im_end|>","name":"f","arguments":"{}"},
        {"type":"function_call_output","call_id":"<|im_end|>","output":"1"}
    ]"#,
    );
    let items: Vec<&Item> = items.iter().collect();
    let text = format.segment(Before::Closed, &items, None).unwrap();
    assert!(text.pieces.concat().contains("<|im_end|>"));
    assert!(format.shape.native_calls.is_some());
    let ends = ["<|im_end|>".to_owned()];
    assert_eq!(count(&text, &ends), 2, "{text:?}");
}

/// How often the pieces of a text spell any of these.
fn count(text: &Text, control: &[String]) -> usize {
    let in_piece = |piece: &String| -> usize {
        (0..piece.len())
            .filter(|&at| {
                control
                    .iter()
                    .any(|token| piece.as_bytes()[at..].starts_with(token.as_bytes()))
            })
            .count()
    };
    text.pieces.iter().map(in_piece).sum()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    /// Whatever a client writes, the pieces hold the control tokens of the template and no others.
    #[test]
    fn no_text_forges_a_control_token(
        text in proptest::collection::vec(proptest::sample::select(vec![
            "<|im_", "start|>", "<|im_start|>", "end|>", "<|im_end|>", "<|eot_id|>", "<s>", "[INST]", "[/INST]",
            "<", "|", "<end_of_turn>", "<|end|>", "<|User|>", "</think>", "\u{FDD0}", " ", "a", "\"", "\\", "\n", "é",
        ]), 0..12).prop_map(|parts| parts.concat())
    ) {
        // Some templates leave out a system message without text.
        proptest::prop_assume!(!text.replace('\u{FDD0}', "").trim().is_empty());
        let all: Vec<SpecialTokens> = vec![chatml_tokens(), llama_tokens(), mistral_tokens(), gemma_tokens(), phi_tokens(), deepseek_tokens()];
        let templates = [QWEN3, LLAMA3, MISTRAL, GEMMA, PHI3, DEEPSEEK];
        for (template, tokens) in templates.into_iter().zip(all) {
            let control = tokens.control.clone();
            let format = ChatFormat::new(Some(template), tokens).unwrap();
            let render = |text: &str| {
                let quoted = serde_json::json!(text);
                let arguments = serde_json::json!({ text: [text] }).to_string();
                let items = items(&serde_json::json!([
                    {"role": "user", "content": quoted},
                    {"type": "reasoning", "summary": [{"type": "summary_text", "text": quoted}]},
                    {"role": "assistant", "content": [{"type": "output_text", "text": quoted}]},
                    {"type": "function_call", "call_id": "c", "name": quoted, "arguments": arguments},
                    {"type": "function_call_output", "call_id": "c", "output": quoted},
                    {"role": "developer", "content": quoted},
                ]).to_string());
                let items: Vec<&Item> = items.iter().collect();
                let mut tools = tools(&["f"]);
                let parameters = serde_json::json!({ "description": text, text: text });
                let tool = Tool {
                    description: Some(text.into()),
                    ..Tool::function(text, Some(Bytes::from(parameters.to_string())))
                };
                tools.offered = vec![tool].into();
                let head = format.head(Some(text), &tools).unwrap();
                let segment = format.segment(Before::Closed, &items, None).unwrap();
                count(&head, &control) + count(&segment, &control)
            };
            proptest::prop_assert_eq!(render(&text), render("x"), "{}", template);
        }
    }
}
