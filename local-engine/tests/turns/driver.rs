//! Driver: an engine with the test model, requests for it, and what comes of them.

#![expect(
    clippy::needless_pass_by_value,
    reason = "a request that is made for one turn reads best when it is handed over"
)]

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;
use turnwire_local_engine::{LocalEngine, Options};
use turnwire_protocol::chain::{Carried, Chain, EngineState};
use turnwire_protocol::engine::{
    EngineFailure, EngineOutput, FinishReason, ItemStart, TokenLogprob, TurnRequest, Usage,
};
use turnwire_protocol::id::ResponseId;
use turnwire_protocol::item::Item;
use turnwire_protocol::tool::{Tool, Tools};

pub(crate) fn model() -> PathBuf {
    let path = std::env::var_os("TURNWIRE_TEST_MODEL").expect(
        "set TURNWIRE_TEST_MODEL to a GGUF file of a chat model; `./test` fetches one and does so",
    );
    path.into()
}

pub(crate) fn load(options: Options) -> LocalEngine {
    let options = Options {
        threads: Some(1),
        seed: Some(1),
        ..options
    };
    LocalEngine::load(&model(), options).expect("the test model loads")
}

pub(crate) fn engine() -> LocalEngine {
    load(Options {
        kv_cells: Some(4096),
        ..Options::default()
    })
}

/// A greedy turn without tools that generates up to 16 tokens.
pub(crate) fn request(parent: Option<&Chain>, input: &[&str]) -> TurnRequest {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let id = format!(
        "resp_{}",
        COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    );
    let items = input
        .iter()
        .map(|json| Item::parse(Bytes::copy_from_slice(json.as_bytes())).expect("an item"));
    TurnRequest {
        parent: parent.cloned(),
        input: items.collect(),
        instructions: Some("You are terse.".into()),
        parallel_tool_calls: false,
        temperature: 0.0,
        max_output_tokens: Some(16),
        logprobs: true,
        ..TurnRequest::new(ResponseId::from(id.as_str()), "m")
    }
}

pub(crate) fn user(text: &str) -> String {
    format!(
        r#"{{"role":"user","content":{}}}"#,
        serde_json::to_string(text).expect("text")
    )
}

pub(crate) fn tool(name: &str, parameters: &'static str) -> (String, Tool) {
    let raw = format!(r#"{{"type":"function","name":"{name}","parameters":{parameters}}}"#);
    let parameters = Bytes::from_static(parameters.as_bytes());
    (raw, Tool::function(name, Some(parameters)))
}

pub(crate) fn tools(list: Vec<(String, Tool)>) -> Tools {
    let (raw, offered): (Vec<String>, Vec<Tool>) = list.into_iter().unzip();
    Tools {
        raw: format!("[{}]", raw.join(",")).into(),
        offered: offered.into(),
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) calls: Vec<(String, String)>,
    pub(crate) logprobs: Vec<TokenLogprob>,
    pub(crate) usage: Usage,
    pub(crate) reason: FinishReason,
    pub(crate) state: EngineState,
    /// Items that were opened and never closed.
    pub(crate) cut: usize,
}

impl Answer {
    pub(crate) fn prefilled(&self) -> u64 {
        self.usage.input_tokens - self.usage.cached_tokens
    }

    /// The chain that a session would make of it. Items of the output do not matter to the engine.
    pub(crate) fn link(&self, request: &TurnRequest) -> Chain {
        let output: Arc<[Item]> = Arc::new([]);
        Chain::append(
            request.parent.clone(),
            request.id.clone(),
            request.input.clone(),
            output,
            Carried::default(),
            Some(self.state.clone()),
        )
    }
}

/// Starts a turn that nobody interrupts.
pub(crate) fn start(engine: &LocalEngine, request: TurnRequest) -> Receiver<EngineOutput> {
    engine.start(request, CancellationToken::new())
}

pub(crate) fn collect(mut outputs: Receiver<EngineOutput>) -> Result<Answer, EngineFailure> {
    read(std::iter::from_fn(|| outputs.blocking_recv()))
}

/// What a turn said, from its first word to its last.
pub(crate) fn read(outputs: impl Iterator<Item = EngineOutput>) -> Result<Answer, EngineFailure> {
    let (mut text, mut calls, mut logprobs) = (String::new(), Vec::new(), Vec::new());
    let (mut open, mut closed) = (0, 0);
    for output in outputs {
        match output {
            EngineOutput::Started => {}
            EngineOutput::ItemStarted(start) => {
                open += 1;
                match start {
                    ItemStart::FunctionCall { tool } | ItemStart::CustomToolCall { tool } => {
                        calls.push((tool.qualified().to_string(), String::new()));
                    }
                    ItemStart::Message | ItemStart::Reasoning => {}
                }
            }
            EngineOutput::TextDelta {
                text: piece,
                logprobs: more,
            } => {
                text.push_str(&piece);
                logprobs.extend(more);
            }
            EngineOutput::ArgumentsDelta { text } | EngineOutput::InputDelta { text } => {
                calls.last_mut().expect("a call is open").1.push_str(&text)
            }
            EngineOutput::RefusalDelta { .. } | EngineOutput::ReasoningDelta { .. } => {}
            EngineOutput::ItemDone => closed += 1,
            EngineOutput::Finished {
                reason,
                usage,
                state,
            } => {
                let state = state.expect("the embedded engine keeps state");
                return Ok(Answer {
                    text,
                    calls,
                    logprobs,
                    usage,
                    reason,
                    state,
                    cut: open - closed,
                });
            }
            EngineOutput::Failed(failure) => return Err(failure),
        }
    }
    panic!("the engine ended without a last word");
}

pub(crate) fn run(engine: &LocalEngine, request: TurnRequest) -> (Answer, Chain) {
    let answer = collect(start(engine, request.clone())).expect("the turn succeeds");
    let chain = answer.link(&request);
    (answer, chain)
}

/// The ids in the cells are the head and the recorded segments, perhaps without the last id.
pub(crate) fn assert_exact(engine: &LocalEngine, answer: &Answer, request: &TurnRequest) {
    let mut expected = engine.head_ids(request).expect("the head renders");
    expected.extend(engine.recorded_ids(&answer.state).expect("its own state"));
    let fed = engine
        .inspect(&answer.state)
        .expect("its own state")
        .ids
        .expect("it is in the cache");
    assert!(
        expected.len() - fed.len() <= 1,
        "{} of {} ids",
        fed.len(),
        expected.len()
    );
    assert_eq!(fed, expected[..fed.len()]);
}
