//! Calls of custom tools, whose input is text.

use turnwire_prompt::Bounds;
use turnwire_protocol::engine::TextFormat;
use turnwire_protocol::tool::{CustomFormat, Tool, ToolChoice, ToolKind};

use crate::vocabulary::{LLAMA3, QWEN2, QWEN3, Vocabulary, request, tool};

const SUM: &str = "start: term (\" + \" term)*\nterm: INT | \"(\" start \")\"\nINT: /[0-9]+/\n";

fn custom(name: &str, format: CustomFormat) -> Tool {
    Tool {
        kind: ToolKind::Custom(format),
        ..tool(name, "")
    }
}

fn all() -> Vec<Tool> {
    vec![
        custom("note", CustomFormat::Text),
        custom("path", CustomFormat::Regex("^(/[a-z]+)+$".into())),
        custom("sum", CustomFormat::Lark(SUM.into())),
        tool("time", r#"{"type":"object","properties":{}}"#),
    ]
}

#[test]
fn each_input_is_held_to_its_own_format() {
    let note = "<tool_call>\n{\"name\": \"note\"}\nRemember <b>this</b>:\n\n{}\n</tool_call>";
    let path = "<tool_call>\n{\"name\": \"path\"}\n/usr/lib\n</tool_call>";
    let time = "<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>";
    let sum = "<tool_call>\n{\"name\": \"sum\"}\n1 + (2 + 30)";
    for template in [QWEN2, QWEN3] {
        let vocabulary = Vocabulary::new(&[]);
        let format = vocabulary.format(Some(template));
        let plan = format.plan(&request(all(), ToolChoice::Auto)).unwrap();
        vocabulary.accepts(
            &plan,
            &[
                "Hello",
                note,
                path,
                sum,
                &format!("Well.\n{path}\n{time}\n{note}"),
                // What ends with the turn can only be the last call.
                &format!("{time}\n{sum}"),
            ],
        );
        vocabulary.refuses(
            &plan,
            &[
                "<tool_call>\n{\"name\": \"note\"}\n\n</tool_call>",
                "<tool_call>\n{\"name\": \"note\"}\nx",
                "<tool_call>\n{\"name\": \"note\", \"arguments\": {}}\n</tool_call>",
                "<tool_call>\n{\"name\": \"path\"}\nusr\n</tool_call>",
                "<tool_call>\n{\"name\": \"path\"}\n/usr/lib</tool_call>",
                "<tool_call>\n{\"name\": \"sum\"}\n1 + ",
                "<tool_call>\n{\"name\": \"sum\"}\n1 + 1\n</tool_call>",
                "<tool_call>\n{\"name\": \"time\"}\n\n</tool_call>",
                &format!("{sum}\n{time}"),
            ],
        );
    }
}

#[test]
fn a_forced_custom_call_begins_in_the_prompt() {
    let vocabulary = Vocabulary::new(&[]);
    let format = vocabulary.format(None);
    for (name, good, bad) in [
        ("note", "\nHi\n</tool_call>", "\nHi"),
        ("path", "\n/etc\n</tool_call>", "\netc\n</tool_call>"),
        ("sum", "\n1 + 1", "\n1 + x"),
    ] {
        let choice = ToolChoice::Tool(name.into());
        let plan = format.plan(&request(all(), choice)).unwrap();
        let opening = format!("<tool_call>\n{{\"name\": \"{name}\"}}");
        assert_eq!(plan.opening, opening);
        vocabulary.accepts(&plan, &[good]);
        vocabulary.refuses(&plan, &[bad, "Hello"]);
    }
    let plan = format.plan(&request(all(), ToolChoice::Required)).unwrap();
    assert_eq!(plan.opening, "<tool_call>\n{\"name\":");
    vocabulary.accepts(
        &plan,
        &[
            " \"sum\"}\n1",
            " \"time\", \"arguments\": {}}\n</tool_call>",
        ],
    );
}

#[test]
fn markers_that_are_control_tokens_end_any_input() {
    let vocabulary = Vocabulary::new(&["<tool_call>", "</tool_call>"]);
    let format = vocabulary.format(Some(QWEN2));
    let plan = format.plan(&request(all(), ToolChoice::Auto)).unwrap();
    vocabulary.accepts(
        &plan,
        &[
            "<tool_call>\n{\"name\": \"path\"}\n/usr</tool_call>",
            "Well.<tool_call>\n{\"name\": \"note\"}\nHi.\n</tool_call>\n<tool_call>\n{\"name\": \"sum\"}\n1 + 1",
        ],
    );
    let spelled = b"<tool_call>".map(u32::from).to_vec();
    let output = [
        vec![257],
        b"\n{\"name\": \"note\"}\n</tool_call>"
            .map(u32::from)
            .to_vec(),
        vec![258],
    ];
    assert!(!vocabulary.read_tokens(&plan, &output.concat()).1);
    assert!(!vocabulary.read_tokens(&plan, &spelled).1);
}

#[test]
fn llama_calls_of_custom_tools_go_on_to_the_end() {
    let vocabulary = Vocabulary::new(&["<|python_tag|>"]);
    let format = vocabulary.format(Some(LLAMA3));
    let mut turn = request(all(), ToolChoice::Auto);
    let plan = format.plan(&turn).unwrap();
    vocabulary.accepts(
        &plan,
        &[
            "Hello",
            "{\"name\": \"path\"}\n/usr",
            "<|python_tag|>{\"name\": \"note\"}\nHi </tool_call>",
            "{\"name\": \"sum\"}\n1 + 1",
            "{\"name\": \"time\", \"parameters\": {}}",
        ],
    );
    vocabulary.refuses(
        &plan,
        &["{\"name\": \"path\"}\nusr", "{\"name\": \"sum\"}\n1 + "],
    );
    // An answer in JSON leaves room for calls in JSON only.
    turn.format = TextFormat::JsonObject;
    let plan = format.plan(&turn).unwrap();
    vocabulary.accepts(&plan, &["{}", "{\"name\": \"time\", \"parameters\": {}}"]);
}

#[test]
fn text_has_a_bound() {
    let vocabulary = Vocabulary::new(&[]);
    let bounds = Bounds {
        string_chars: 5,
        ..Bounds::default()
    };
    let format = vocabulary.format(None).with_bounds(bounds);
    let choice = ToolChoice::Tool("note".into());
    let plan = format.plan(&request(all(), choice)).unwrap();
    vocabulary.accepts(&plan, &["\näöü€😀\n</tool_call>"]);
    vocabulary.refuses(&plan, &["\n123456\n</tool_call>"]);
}

#[test]
fn a_grammar_that_cannot_be_compiled_is_named() {
    let vocabulary = Vocabulary::new(&[]);
    let format = vocabulary.format(None);
    for (bad, message) in [
        (
            CustomFormat::Lark("start: nothing\n".into()),
            "line 1, column 8: unknown name: \"nothing\"",
        ),
        (
            CustomFormat::Lark("begin: \"a\"\n".into()),
            "no start rule found",
        ),
        (
            CustomFormat::Lark("start: <|end|>\n".into()),
            "line 1: special tokens such as <name> cannot be used",
        ),
        (
            CustomFormat::Lark("start: \"a\" }\nstart: \"b\"".into()),
            "line 1, column 12: expecting rule, token or statement (at \"}\" ('}'))",
        ),
        (
            CustomFormat::Regex("a(?=b)".into()),
            "look-around, including look-ahead and look-behind, is not supported",
        ),
        (CustomFormat::Regex("(a".into()), "unclosed group"),
    ] {
        let mut tools = all();
        tools.insert(
            2,
            Tool {
                path: "tools[2].tools[1]".into(),
                ..custom("bad", bad)
            },
        );
        let request = request(tools, ToolChoice::Auto);
        let refusal = match format.plan(&request) {
            Err(refusal) => refusal,
            Ok(plan) => {
                assert!(vocabulary.compile(&plan.grammar.unwrap()).is_err());
                format.blame(&request, |grammar| vocabulary.compile(grammar))
            }
        };
        let param = "tools[2].tools[1].format.definition";
        assert_eq!(refusal.param.as_deref(), Some(param));
        let begins = format!("Invalid grammar in {param}: ");
        assert!(refusal.message.starts_with(&begins), "{}", refusal.message);
        assert!(refusal.message.ends_with(message), "{}", refusal.message);
    }
}

#[test]
fn one_among_a_thousand_is_found_by_halving() {
    let vocabulary = Vocabulary::new(&[]);
    let format = vocabulary.format(None);
    let mut tools: Vec<Tool> = (0..1_000)
        .map(|i| {
            custom(
                &format!("t{i}"),
                CustomFormat::Regex(format!("a{i}").into()),
            )
        })
        .collect();
    tools[700].kind = ToolKind::Custom(CustomFormat::Regex("(".into()));
    tools[700].path = "tools[700]".into();
    let compiled = std::cell::Cell::new(0);
    let refusal = format.blame(&request(tools, ToolChoice::Auto), |grammar| {
        compiled.set(compiled.get() + 1);
        vocabulary.compile(grammar)
    });
    assert_eq!(
        refusal.param.as_deref(),
        Some("tools[700].format.definition")
    );
    assert!(compiled.get() < 30, "{}", compiled.get());
}

/// Compilers go down from rule to rule by recursion; the engine gives them this much stack.
#[test]
fn the_largest_grammar_that_passes_fits_the_stack() {
    let chain: String = (0..998).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
    let rules = format!("start: r0\n{chain}r998: \"a\"\n");
    let terminals = rules.to_uppercase().replace("START", "start");
    let compiled = std::thread::Builder::new()
        .stack_size(32 << 20)
        .spawn(move || {
            let vocabulary = Vocabulary::new(&[]);
            let format = vocabulary.format(None);
            for lark in [rules, terminals.replace("\"A\"", "\"a\"")] {
                let tools = vec![custom("f", CustomFormat::Lark(lark.into()))];
                let plan = format
                    .plan(&request(tools, ToolChoice::Tool("f".into())))
                    .unwrap();
                vocabulary.accepts(&plan, &["\na"]);
            }
        });
    compiled.unwrap().join().unwrap();
}
