//! Plans held against llguidance: what a grammar lets a model write, byte by byte.

use std::sync::Arc;

use bytes::Bytes;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use turnwire_prompt::format::ChatFormat;
use turnwire_prompt::{Plan, SpecialTokens};
use turnwire_protocol::engine::{TextFormat, TurnRequest};
use turnwire_protocol::id::ResponseId;
use turnwire_protocol::tool::{FunctionTool, ToolChoice, Tools};

const QWEN2: &str = include_str!("templates/qwen2.jinja");
const QWEN3: &str = include_str!("templates/qwen3.jinja");
const LLAMA3: &str = include_str!("templates/llama3.jinja");
const DEEPSEEK: &str = include_str!("templates/deepseek.jinja");

/// A vocabulary of single bytes and some control tokens.
struct Vocabulary {
    factory: ParserFactory,
    control: Vec<String>,
}

impl Vocabulary {
    fn new(control: &[&str]) -> Self {
        let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        words.push(b"\xFF<|end|>".to_vec());
        for token in control {
            words.push([b"\xFF", token.as_bytes()].concat());
        }
        let info = TokRxInfo::new(u32::try_from(words.len()).unwrap(), 256);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
        let mut factory = ParserFactory::new_simple(&env).unwrap();
        factory.quiet();
        Self {
            factory,
            control: control.iter().map(|token| (*token).to_owned()).collect(),
        }
    }

    fn format(&self, template: Option<&str>) -> ChatFormat {
        let tokens = SpecialTokens {
            bos: None,
            eos: Some("<|end|>".to_owned()),
            end_of_turn: "<|end|>".to_owned(),
            control: self.control.clone(),
        };
        ChatFormat::new(template, tokens).unwrap()
    }

    fn tokens(&self, mut text: &str) -> Vec<u32> {
        let mut tokens = Vec::new();
        'text: while let Some(&byte) = text.as_bytes().first() {
            for (i, token) in self.control.iter().enumerate() {
                if let Some(rest) = text.strip_prefix(token.as_str()) {
                    tokens.push(257 + u32::try_from(i).unwrap());
                    text = rest;
                    continue 'text;
                }
            }
            tokens.push(u32::from(byte));
            match text.get(1..) {
                Some(rest) => text = rest,
                None => {
                    let c = text.chars().next().unwrap();
                    tokens.extend(
                        text.as_bytes()[1..c.len_utf8()]
                            .iter()
                            .map(|b| u32::from(*b)),
                    );
                    text = &text[c.len_utf8()..];
                }
            }
        }
        tokens
    }

    /// How the grammar takes `output`: where it stops, and whether the model may end there.
    fn read(&self, plan: &Plan, output: &str) -> (usize, bool) {
        let grammar = plan.grammar.clone().expect("the plan has a grammar");
        let parser = self
            .factory
            .create_parser(TopLevelGrammar::from_lark(grammar.clone()))
            .unwrap_or_else(|error| panic!("{error}\n{grammar}"));
        let mut matcher = Matcher::new(Ok(parser));
        let tokens = self.tokens(output);
        let read = matcher.try_consume_tokens(&tokens).unwrap();
        (
            read,
            read == tokens.len() && matcher.is_accepting().unwrap(),
        )
    }

    #[track_caller]
    fn accepts(&self, plan: &Plan, outputs: &[&str]) {
        for output in outputs {
            let (read, whole) = self.read(plan, output);
            assert!(
                whole,
                "refused at {read} of {output}\n{}",
                plan.grammar.as_ref().unwrap()
            );
        }
    }

    #[track_caller]
    fn refuses(&self, plan: &Plan, outputs: &[&str]) {
        for output in outputs {
            let (_, whole) = self.read(plan, output);
            assert!(
                !whole,
                "accepted {output}\n{}",
                plan.grammar.as_ref().unwrap()
            );
        }
    }
}

fn tool(name: &str, parameters: &str) -> FunctionTool {
    FunctionTool {
        name: name.into(),
        description: None,
        parameters: (!parameters.is_empty()).then(|| Bytes::from(parameters.to_owned())),
        strict: false,
        may_wait: false,
    }
}

fn request(functions: Vec<FunctionTool>, tool_choice: ToolChoice) -> TurnRequest {
    TurnRequest {
        id: ResponseId::from("resp_1"),
        parent: None,
        input: Arc::new([]),
        model: "m".into(),
        instructions: None,
        tools: Tools {
            raw: Bytes::from_static(b"[]"),
            functions: functions.into(),
        },
        tool_choice,
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
    }
}

const WEATHER: &str = r#"{"$schema":"https://json-schema.org/draft/2020-12/schema","title":"Weather","type":"object","properties":{"city":{"type":"string"},"unit":{"enum":["C","F"]},"days":{"type":"integer","minimum":1,"maximum":14}},"required":["city","unit"]}"#;

fn weather_and_time() -> Vec<FunctionTool> {
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
    vocabulary.accepts(
        &plan,
        &[
            " \"get_time\", \"arguments\": {}}\n</tool_call>",
            " \"get_weather\", \"arguments\": {\"city\": \"\", \"unit\": \"C\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>",
        ],
    );
    vocabulary.refuses(
        &plan,
        &[
            "",
            "Hello",
            "<tool_call>",
            " \"get_time\", \"arguments\": {}}",
        ],
    );

    let choice = ToolChoice::Function("get_weather".into());
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
