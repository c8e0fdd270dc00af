//! From what a model writes to items.

use std::sync::Arc;

use bytes::Bytes;
use turnwire_prompt::SpecialTokens;
use turnwire_prompt::format::ChatFormat;
use turnwire_prompt::parser::OutputParser;
use turnwire_protocol::engine::{EngineOutput, ItemStart, TextFormat, TurnRequest};
use turnwire_protocol::id::ResponseId;
use turnwire_protocol::tool::{FunctionTool, ToolChoice, Tools};

const QWEN3: &str = include_str!("templates/qwen3.jinja");

fn parser(template: Option<&str>, choice: ToolChoice) -> OutputParser {
    let tokens = SpecialTokens {
        end_of_turn: "<|im_end|>".to_owned(),
        ..SpecialTokens::default()
    };
    let tool = |name: &str| FunctionTool {
        name: name.into(),
        description: None,
        parameters: None,
        strict: false,
        may_wait: false,
    };
    let request = TurnRequest {
        id: ResponseId::from("resp_1"),
        parent: None,
        input: Arc::new([]),
        model: "m".into(),
        instructions: None,
        tools: Tools {
            raw: Bytes::from_static(b"[]"),
            functions: vec![tool("f"), tool("g")].into(),
        },
        tool_choice: choice,
        parallel_tool_calls: true,
        temperature: 0.0,
        top_p: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        max_output_tokens: None,
        top_logprobs: 0,
        logprobs: false,
        format: TextFormat::Text,
        reasoning_effort: None,
        generate: true,
    };
    ChatFormat::new(template, tokens)
        .unwrap()
        .plan(&request)
        .unwrap()
        .parser
}

/// The items that come of `pieces`, each as one line; open ones end in `…`.
fn items(mut parser: OutputParser, pieces: &[&[u8]], complete: bool) -> Vec<String> {
    let mut out = Vec::new();
    for piece in pieces {
        parser.push(piece, None, &mut out);
    }
    parser.finish(complete, &mut out);
    let mut items: Vec<String> = Vec::new();
    let mut open = false;
    for output in out {
        match output {
            EngineOutput::ItemStarted(start) => {
                assert!(!open, "an item within an item");
                open = true;
                items.push(match start {
                    ItemStart::Message => "message ".to_owned(),
                    ItemStart::Reasoning => "reasoning ".to_owned(),
                    ItemStart::FunctionCall { name } => format!("call {name} "),
                });
            }
            EngineOutput::TextDelta { text, .. }
            | EngineOutput::ReasoningDelta { text }
            | EngineOutput::ArgumentsDelta { text } => {
                assert!(open && !text.is_empty());
                items.last_mut().unwrap().push_str(&text);
            }
            EngineOutput::ItemDone => {
                assert!(std::mem::take(&mut open), "an end without a start");
            }
            other => panic!("a parser does not say {other:?}"),
        }
    }
    if open {
        items.last_mut().unwrap().push('…');
    }
    items
}

#[test]
fn a_turn_of_thoughts_text_and_calls() {
    let output = "<think>\nHm, <tool_call>?\n</think>\n\nLet me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}</tool_call>\"}}\n</tool_call>\n<tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>\n";
    let expected = [
        "reasoning Hm, <tool_call>?",
        "message Let me see.",
        "call f {\"a\": \"}</tool_call>\"}",
        "call g {}",
    ];
    let whole: &[&[u8]] = &[output.as_bytes()];
    assert_eq!(
        items(parser(Some(QWEN3), ToolChoice::Auto), whole, true),
        expected
    );
    let bytes: Vec<&[u8]> = output.as_bytes().chunks(1).collect();
    assert_eq!(
        items(parser(Some(QWEN3), ToolChoice::Auto), &bytes, true),
        expected
    );
}
