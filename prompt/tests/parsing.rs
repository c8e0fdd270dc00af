//! From what a model writes to items.

#![expect(clippy::unwrap_used, reason = "a test ends where something is amiss")]

use bytes::Bytes;
use proptest::prelude::*;
use turnwire_prompt::SpecialTokens;
use turnwire_prompt::format::{ChatFormat, REASONING_END};
use turnwire_prompt::parser::{Inside, OutputParser};
use turnwire_protocol::engine::{EngineOutput, ItemStart, TokenLogprob, TurnRequest};
use turnwire_protocol::id::ResponseId;
use turnwire_protocol::tool::{CustomFormat, Tool, ToolChoice, ToolKind, Tools};

const QWEN2: &str = include_str!("templates/qwen2.jinja");
const QWEN3: &str = include_str!("templates/qwen3.jinja");
const LLAMA3: &str = include_str!("templates/llama3.jinja");
const DEEPSEEK: &str = include_str!("templates/deepseek.jinja");

/// The parser for a turn that may call the functions `f` and `g`, and the custom tools `text` and
/// `rules`.
fn parser(template: &str, tool_choice: ToolChoice) -> OutputParser {
    let tokens = SpecialTokens {
        end_of_turn: "<|end|>".to_owned(),
        ..SpecialTokens::default()
    };
    let tool = |name: &str| Tool::function(name, None);
    let custom = |name: &str, format| Tool {
        kind: ToolKind::Custom(format),
        ..tool(name)
    };
    let rules = CustomFormat::Lark("start: /(.|\\n)*/".into());
    let request = TurnRequest {
        tools: Tools {
            raw: Bytes::from_static(b"[]"),
            offered: vec![
                tool("f"),
                tool("g"),
                custom("text", CustomFormat::Text),
                custom("rules", rules),
            ]
            .into(),
        },
        tool_choice,
        temperature: 0.0,
        ..TurnRequest::new(ResponseId::from("resp_1"), "m")
    };
    let format = ChatFormat::new(Some(template), tokens).unwrap();
    format.plan(&request).unwrap().parser
}

fn auto(template: &str) -> OutputParser {
    parser(template, ToolChoice::Auto)
}

/// The items that come of `pieces`, each as one line; open ones end in `…`.
fn items(mut parser: OutputParser, pieces: &[&[u8]], complete: bool) -> Vec<String> {
    let mut out = Vec::new();
    for piece in pieces {
        parser.push(piece, None, &mut out);
    }
    parser.finish(complete, &mut out);
    lines(out)
}

/// Each item as one line.
fn lines(out: Vec<EngineOutput>) -> Vec<String> {
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
                    ItemStart::FunctionCall { tool } => format!("call {} ", tool.qualified()),
                    ItemStart::CustomToolCall { tool } => format!("custom {} ", tool.qualified()),
                });
            }
            EngineOutput::TextDelta { text, .. }
            | EngineOutput::ReasoningDelta { text }
            | EngineOutput::ArgumentsDelta { text }
            | EngineOutput::InputDelta { text } => {
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

fn whole(parser: OutputParser, output: &str) -> Vec<String> {
    items(parser, &[output.as_bytes()], true)
}

fn cut(parser: OutputParser, output: &str) -> Vec<String> {
    items(parser, &[output.as_bytes()], false)
}

#[test]
fn a_turn_of_thoughts_text_and_calls() {
    let output = "<think>\nHm, <tool_call>?\n</think>\n\nLet me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}</tool_call>\\\"\"}}\n</tool_call>\n<tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>\n";
    assert_eq!(
        whole(auto(QWEN3), output),
        [
            "reasoning Hm, <tool_call>?",
            "message Let me see.",
            "call f {\"a\": \"}</tool_call>\\\"\"}",
            "call g {}",
        ]
    );
    assert_eq!(
        whole(auto(QWEN3), "<think>\n\n</think>\n\nHi"),
        ["message Hi"]
    );
    // The prompt has opened the reasoning.
    assert_eq!(
        whole(auto(DEEPSEEK), "Hm.\n</think>\n\nHi"),
        ["reasoning Hm.", "message Hi"]
    );
    assert_eq!(cut(auto(DEEPSEEK), "Hm.\n"), ["reasoning Hm.\n…"]);
    // A model without reasoning may speak of it.
    assert_eq!(
        whole(auto(QWEN2), "<think>x</think>"),
        ["message <think>x</think>"]
    );
}

#[test]
fn text_comes_out_as_it_is_and_nothing_comes_of_nothing() {
    assert_eq!(whole(auto(QWEN2), ""), [""; 0]);
    assert_eq!(whole(auto(QWEN2), "  Hi \n"), ["message   Hi \n"]);
    assert_eq!(whole(auto(QWEN2), "\n"), ["message \n"]);
    assert_eq!(cut(auto(QWEN2), "Hi <tool"), ["message Hi <tool…"]);
    assert_eq!(
        whole(OutputParser::plain(), "<think><tool_call>\n"),
        ["message <think><tool_call>\n"]
    );
    // Where no tool may be called, no call is looked for.
    let none = parser(QWEN2, ToolChoice::None);
    let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
    assert_eq!(whole(none, call), [format!("message {call}")]);
}

#[test]
fn a_forced_call_begins_in_the_prompt() {
    let required = || parser(QWEN2, ToolChoice::Required);
    assert_eq!(
        whole(
            required(),
            " \"g\", \"arguments\": {\"a\": 1}}\n</tool_call>"
        ),
        ["call g {\"a\": 1}"]
    );
    let named = || parser(QWEN2, ToolChoice::Tool("f".into()));
    assert_eq!(
        whole(named(), " {\"a\": [1]}}\n</tool_call>"),
        ["call f {\"a\": [1]}"]
    );
    // What stood in the prompt is no output, whatever comes of it.
    assert_eq!(whole(named(), " Sorry."), ["message  Sorry."]);
    assert_eq!(cut(named(), " {\"a\": "), ["call f {\"a\": …"]);
}

#[test]
fn a_call_that_was_cut_stays_open() {
    let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": {\"b\": 1}}}\n</tool_call>";
    let arguments = call.find("{\"a\"").unwrap();
    for length in 0..call.len() {
        let items = cut(auto(QWEN2), &call[..length]);
        match length {
            _ if length < "<tool_call>".len() => assert!(items.len() <= 1),
            // Half a header is neither a call nor something to say.
            _ if length <= arguments => assert_eq!(items, [""; 0]),
            _ => {
                assert_eq!(items.len(), 1);
                assert!(items[0].starts_with("call f {") && items[0].ends_with('…'));
            }
        }
    }
    // Nor is a call complete because the model thinks so, unless its arguments are.
    let end = call.len() - "\n</tool_call>".len();
    assert_eq!(
        whole(auto(QWEN2), &call[..end]),
        ["call f {\"a\": {\"b\": 1}}"]
    );
    assert_eq!(
        whole(auto(QWEN2), &call[..end - 2]),
        ["call f {\"a\": {\"b\": 1}…"]
    );
}

#[test]
fn unusual_calls_are_calls_all_the_same() {
    for call in [
        r#"<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>"#,
        r#"<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call>"#,
        r#"<tool_call>{"id": 7, "name": "f", "arguments": {"a": 1}}</tool_call>"#,
    ] {
        let items = whole(auto(QWEN2), call);
        let [item] = items.as_slice() else {
            panic!("{items:?}")
        };
        let arguments = item.strip_prefix("call f ").unwrap();
        assert_eq!(arguments.replace(' ', ""), r#"{"a":1}"#);
    }
    // The closing brace or what follows may be missing.
    assert_eq!(
        whole(
            auto(QWEN2),
            "<tool_call>{\"name\": \"f\", \"arguments\": {}</tool_call>Done."
        ),
        ["call f {}", "message Done."]
    );
    assert_eq!(
        whole(
            auto(QWEN2),
            "<tool_call>{\"name\": \"f\", \"arguments\": {}} Done."
        ),
        ["call f {}", "message Done."]
    );
}

#[test]
fn what_looks_like_a_call_and_is_none_is_text() {
    for text in [
        "<tool_call>",
        "<tool_call>hello</tool_call> ",
        "x\n<tool_call>\n{\"name\": \"unknown\", \"arguments\": {}}\n</tool_call>\ny",
        "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"f\", ",
        "<tool_call><tool_call><tool_call>",
    ] {
        assert_eq!(whole(auto(QWEN2), text), [format!("message {text}")]);
    }
    // A call behind it is still one.
    assert_eq!(
        whole(
            auto(QWEN2),
            "<tool_call>no</tool_call>\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>"
        ),
        ["message <tool_call>no</tool_call>", "call f {}"]
    );
}

#[test]
fn llama_calls_are_the_whole_message() {
    let call = "{\"name\": \"f\", \"parameters\": {\"a\": \"}\"}}";
    assert_eq!(whole(auto(LLAMA3), call), ["call f {\"a\": \"}\"}"]);
    assert_eq!(
        whole(auto(LLAMA3), &format!("\n<|python_tag|>{call}")),
        ["call f {\"a\": \"}\"}"]
    );
    assert_eq!(
        whole(auto(LLAMA3), &format!("{call}; {call}")),
        ["call f {\"a\": \"}\"}"; 2]
    );
    for text in [
        format!("Hello {call}"),
        "{\"name\": \"Ada\", \"parameters\": {}}".to_owned(),
        "{\"nam".to_owned(),
        "<|python_tag|>print(1)".to_owned(),
    ] {
        assert_eq!(whole(auto(LLAMA3), &text), [format!("message {text}")]);
    }
}

#[test]
fn deltas_come_as_soon_as_they_are_certain() {
    let mut parser = auto(QWEN3);
    let mut say = |text: &str| {
        let mut out = Vec::new();
        parser.push(text.as_bytes(), None, &mut out);
        let out: Vec<String> = out
            .iter()
            .map(|output| match output {
                EngineOutput::ItemStarted(ItemStart::FunctionCall { tool }) => {
                    format!("+{}", tool.qualified())
                }
                EngineOutput::ItemStarted(start) => format!("+{start:?}"),
                EngineOutput::ItemDone => "-".to_owned(),
                EngineOutput::TextDelta { text, .. }
                | EngineOutput::ReasoningDelta { text }
                | EngineOutput::ArgumentsDelta { text } => text.clone(),
                other => panic!("{other:?}"),
            })
            .collect();
        (out.join("|"), parser.in_reasoning())
    };
    let expected = [
        ("<think>", "", true),
        ("\n", "", true),
        ("Hm", "+Reasoning|Hm", true),
        (".\n", ".", true),
        ("</", "", true),
        ("think>", "-", true),
        ("\n\n", "", false),
        ("One", "+Message|One", false),
        (" <", "", false),
        ("two", " <two", false),
        ("\n<tool_call>\n", "", false),
        ("{\"name\":", "", false),
        (" \"f\", \"arguments\":", "", false),
        (" {\"", "-|+f|{\"", false),
        ("a\": 1", "a\": 1", false),
        ("}}", "}", false),
        ("\n</tool_call>", "-", false),
    ];
    for (text, out, in_reasoning) in expected {
        assert_eq!(say(text), (out.to_owned(), in_reasoning), "{text:?}");
    }
}

#[test]
fn log_probabilities_go_with_their_text() {
    let logprob = |token: &str| TokenLogprob {
        token: token.to_owned(),
        bytes: token.as_bytes().to_vec(),
        logprob: -1.0,
        top: Vec::new(),
    };
    let mut parser = auto(QWEN2);
    let mut out = Vec::new();
    let tokens = [
        "Hi",
        " <",
        "b",
        "!\n",
        "<tool_call>",
        "{\"name\": \"f\", \"arguments\": {}}",
        "</tool_call>",
    ];
    for token in tokens {
        parser.push(token.as_bytes(), Some(logprob(token)), &mut out);
    }
    parser.finish(true, &mut out);
    let mut seen = Vec::new();
    for output in out {
        if let EngineOutput::TextDelta { text, logprobs } = output {
            let tokens: Vec<String> = logprobs.into_iter().map(|logprob| logprob.token).collect();
            seen.push((text, tokens.concat()));
        }
    }
    // A token that begins in the text and ends in white space that is dropped belongs to it.
    let expected = [("Hi", "Hi"), (" <b", " <b"), ("!", "!\n")];
    assert_eq!(
        seen,
        expected.map(|(text, tokens)| (text.to_owned(), tokens.to_owned()))
    );
}

/// Fragments of which outputs are made, well formed or not.
fn fragments() -> impl Strategy<Value = Vec<&'static str>> {
    let fragments = vec![
        "<tool_call>",
        "</tool_call>",
        "<tool_",
        "call>",
        "<think>",
        "</think>",
        "</",
        "\n",
        " ",
        "Hi",
        "ä",
        "😀",
        "<",
        "{",
        "}",
        "{\"name\": \"f\", \"arguments\": ",
        "{\"name\": \"zz\", \"arguments\": ",
        "{\"name\": \"f\", \"parameters\": ",
        "{}",
        "{\"a\": \"é\\\"}\"}",
        "}\n</tool_call>",
        "\"",
        "\\",
        "<|python_tag|>",
        "; ",
    ];
    proptest::collection::vec(proptest::sample::select(fragments), 0..16)
}

fn settings() -> ProptestConfig {
    ProptestConfig {
        cases: 100,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn items_do_not_depend_on_how_the_output_was_split(
        parts in fragments(),
        cuts in proptest::collection::vec(1..7_usize, 0..40),
        complete: bool,
    ) {
        let output = parts.concat();
        let mut pieces = Vec::new();
        let mut rest = output.as_bytes();
        for cut in cuts {
            let (piece, behind) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = behind;
        }
        pieces.push(rest);
        for template in [QWEN2, QWEN3, LLAMA3, DEEPSEEK] {
            let together = items(auto(template), &[output.as_bytes()], complete);
            prop_assert_eq!(items(auto(template), &pieces, complete), together, "{}", &output);
        }
    }

    #[test]
    fn an_output_without_calls_loses_nothing(parts in fragments()) {
        let output = parts.concat().replace("\"f\"", "\"zz\"");
        let expected = if output.is_empty() { Vec::new() } else { vec![format!("message {output}")] };
        prop_assert_eq!(&whole(auto(QWEN2), &output), &expected);
        prop_assert_eq!(&whole(auto(LLAMA3), &output), &expected);
    }

    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>, parts in fragments(), complete: bool) {
        let mixed = [&bytes, parts.concat().as_bytes(), &bytes].concat();
        for template in [QWEN2, QWEN3, LLAMA3, DEEPSEEK] {
            items(auto(template), &mixed.chunks(3).collect::<Vec<_>>(), complete);
        }
        if let Ok(text) = std::str::from_utf8(&bytes) && !text.is_empty() {
            prop_assert_eq!(whole(OutputParser::plain(), text), vec![format!("message {text}")]);
        }
    }
}

#[test]
fn the_input_of_a_custom_tool_is_taken_as_it_is() {
    let call = "<tool_call>\n{\"name\": \"text\"}\n  a \"<tool_call>\" {\n\n\n</tool_call>";
    let text = "custom text   a \"<tool_call>\" {\n\n";
    assert_eq!(whole(auto(QWEN2), call), [text]);
    let more = format!(
        "Well.\n{call}\n<tool_call>\n{{\"name\": \"f\", \"arguments\": {{}}}}\n</tool_call>"
    );
    assert_eq!(
        whole(auto(QWEN2), &more),
        ["message Well.", text, "call f {}"]
    );
    // Without its end it is not complete.
    assert_eq!(
        whole(auto(QWEN2), &call[..call.len() - 1]),
        [format!("{text}\n</tool_call…")]
    );
    // What obeys a client's own rules ends with the turn.
    let rules = "<tool_call>\n{\"name\": \"rules\"}\n</tool_call>\nx\n";
    assert_eq!(
        whole(auto(QWEN2), rules),
        ["custom rules </tool_call>\nx\n"]
    );
    assert_eq!(cut(auto(QWEN2), rules), ["custom rules </tool_call>\nx\n…"]);
    assert_eq!(
        whole(auto(LLAMA3), "{\"name\": \"text\"}\nx </tool_call>"),
        ["custom text x </tool_call>"]
    );
    // A function is given no text, and a custom tool no arguments.
    for no_call in [
        "<tool_call>\n{\"name\": \"f\"}\nx\n</tool_call>",
        "<tool_call>\n{\"name\": \"text\", \"arguments\": {}}\n</tool_call>",
    ] {
        assert_eq!(whole(auto(QWEN2), no_call), [format!("message {no_call}")]);
    }
}

#[test]
fn a_forced_custom_call_is_read_from_its_opening_on() {
    let parser = |name: &str| parser(QWEN2, ToolChoice::Tool(name.into()));
    assert_eq!(
        whole(parser("text"), "\nx\n</tool_call>"),
        ["custom text x"]
    );
    assert_eq!(whole(parser("rules"), "\nx\n"), ["custom rules x\n"]);
}

#[test]
fn an_output_can_be_stopped_between_two_items() {
    let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    for (said, inside, held, expected) in [
        ("", Inside::Nothing, 0, vec![]),
        ("Hello. ", Inside::Message, 1, vec!["message Hello."]),
        (
            "Hello.\n<tool_call>\n{\"na",
            Inside::Nothing,
            17,
            vec!["message Hello."],
        ),
        (
            &format!("{call}\n<tool"),
            Inside::Nothing,
            6,
            vec!["call f {\"a\": 1}"],
        ),
    ] {
        let mut parser = auto(QWEN2);
        let mut out = Vec::new();
        parser.push(said.as_bytes(), None, &mut out);
        assert_eq!(parser.inside(), inside, "{said}");
        assert_eq!(parser.stop(&mut out), held, "{said}");
        assert_eq!(lines(out), expected, "{said}");
    }
    let inside = |template, said: &str| {
        let mut parser = auto(template);
        parser.push(said.as_bytes(), None, &mut Vec::new());
        parser.inside()
    };
    assert_eq!(inside(QWEN2, &call[..call.len() - 20]), Inside::Call);
    assert_eq!(
        inside(QWEN2, "<tool_call>\n{\"name\": \"text\"}\nx"),
        Inside::Call
    );
    assert_eq!(inside(QWEN3, "<think>Hm"), Inside::Reasoning);
    assert_eq!(inside(DEEPSEEK, ""), Inside::Reasoning);

    // Reasoning is closed by its marker, wherever it is.
    let mut parser = auto(DEEPSEEK);
    let mut out = Vec::new();
    parser.push(b"I think th", None, &mut out);
    parser.push(REASONING_END.as_bytes(), None, &mut out);
    assert_eq!(parser.inside(), Inside::Nothing);
    assert_eq!(lines(out), ["reasoning I think th"]);
}
