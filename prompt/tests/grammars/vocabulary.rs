//! A vocabulary to hold grammars against, and requests to make plans of.

use std::sync::Arc;

use bytes::Bytes;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use turnwire_prompt::format::ChatFormat;
use turnwire_prompt::grammar::Grammar;
use turnwire_prompt::{Plan, SpecialTokens};
use turnwire_protocol::engine::TurnRequest;
use turnwire_protocol::id::ResponseId;
use turnwire_protocol::tool::{Tool, ToolChoice, Tools};

pub(crate) const QWEN2: &str = include_str!("../templates/qwen2.jinja");
pub(crate) const QWEN3: &str = include_str!("../templates/qwen3.jinja");
pub(crate) const LLAMA3: &str = include_str!("../templates/llama3.jinja");
pub(crate) const DEEPSEEK: &str = include_str!("../templates/deepseek.jinja");

/// A vocabulary of single bytes and some control tokens.
pub(crate) struct Vocabulary {
    factory: ParserFactory,
    control: Vec<String>,
}

impl Vocabulary {
    pub(crate) fn new(control: &[&str]) -> Self {
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

    pub(crate) fn format(&self, template: Option<&str>) -> ChatFormat {
        let tokens = SpecialTokens {
            bos: None,
            eos: Some("<|end|>".to_owned()),
            end_of_turn: "<|end|>".to_owned(),
            control: self.control.clone(),
            user_defined: ["<tool_call>", "</tool_call>"].map(String::from).into(),
        };
        ChatFormat::new(template, tokens).unwrap()
    }

    /// What is wrong with a grammar, if anything is.
    pub(crate) fn compile(&self, grammar: &Grammar) -> Result<(), String> {
        let compiled = self.factory.create_parser(top_level(grammar));
        compiled.map(drop).map_err(|error| error.to_string())
    }

    pub(crate) fn tokens(&self, mut text: &str) -> Vec<u32> {
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
    pub(crate) fn read(&self, plan: &Plan, output: &str) -> (usize, bool) {
        self.read_tokens(plan, &self.tokens(output))
    }

    pub(crate) fn read_tokens(&self, plan: &Plan, tokens: &[u32]) -> (usize, bool) {
        let grammar = plan.grammar.as_ref().expect("the plan has a grammar");
        let parser = self
            .factory
            .create_parser(top_level(grammar))
            .unwrap_or_else(|error| panic!("{error}\n{grammar:?}"));
        let mut matcher = Matcher::new(Ok(parser));
        let read = matcher.try_consume_tokens(tokens).unwrap();
        (
            read,
            read == tokens.len() && matcher.is_accepting().unwrap(),
        )
    }

    #[track_caller]
    pub(crate) fn accepts(&self, plan: &Plan, outputs: &[&str]) {
        for output in outputs {
            let (read, whole) = self.read(plan, output);
            assert!(
                whole,
                "refused at {read} of {output}\n{}",
                plan.grammar.as_ref().unwrap().lark
            );
        }
    }

    #[track_caller]
    pub(crate) fn refuses(&self, plan: &Plan, outputs: &[&str]) {
        for output in outputs {
            let (_, whole) = self.read(plan, output);
            assert!(
                !whole,
                "accepted {output}\n{}",
                plan.grammar.as_ref().unwrap().lark
            );
        }
    }
}

fn top_level(grammar: &Grammar) -> TopLevelGrammar {
    let mut top_level = TopLevelGrammar::from_lark(grammar.lark.clone());
    let nested = grammar.nested.iter().map(|nested| GrammarWithLexer {
        name: Some(nested.name.clone()),
        lark_grammar: Some(nested.lark.clone()),
        ..GrammarWithLexer::default()
    });
    top_level.grammars.extend(nested);
    top_level
}

pub(crate) fn tool(name: &str, parameters: &str) -> Tool {
    let parameters = (!parameters.is_empty()).then(|| Bytes::from(parameters.to_owned()));
    Tool::function(name, parameters)
}

pub(crate) fn request(tools: Vec<Tool>, tool_choice: ToolChoice) -> TurnRequest {
    TurnRequest {
        tools: Tools {
            raw: Bytes::from_static(b"[]"),
            offered: tools.into(),
        },
        tool_choice,
        temperature: 0.0,
        ..TurnRequest::new(ResponseId::from("resp_1"), "m")
    }
}
