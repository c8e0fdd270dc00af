//! Every fixture is a template written in the style of a model family.

use bytes::Bytes;
use turnwire_protocol::tool::{FunctionTool, Tools};

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
    let functions = names.iter().map(|name| FunctionTool {
        name: (*name).into(),
        description: Some("Does it.".into()),
        parameters: Some(Bytes::from_static(
            br#"{"type":"object","properties":{"zone":{"type":"string"},"at":{"type":"integer"}},"required":["zone"]}"#,
        )),
        strict: true,
        may_wait: false,
    });
    Tools {
        raw: Bytes::from_static(b"[]"),
        functions: functions.collect(),
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
    let plan = generate.then(|| Plan {
        opening: String::new(),
        grammar: None,
        parser: crate::parser::OutputParser::plain(),
    });
    text(&format.segment(before, &items, plan.as_ref()).unwrap())
}

/// What the template itself makes of a whole conversation, given as JSON messages.
fn whole(format: &ChatFormat, messages: &str, tools: Option<&Tools>, generate: bool) -> String {
    format
        .template
        .render(Conversation {
            messages: serde_json::from_str(messages).unwrap(),
            tools: tools.map(|tools| tools::to_value(tools, &format.marks).unwrap()),
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
