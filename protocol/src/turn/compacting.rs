//! Compacting: how a turn makes a compaction item, and goes on behind it.
//!
//! One turn may ask its engine up to three times. With a threshold, the engine first tells that
//! the prompt has reached it. Then the model summarizes: the same prompt, followed by a request
//! to do so. At last it answers, behind the compaction item alone. A turn that was asked for
//! nothing but a compaction begins with the second and ends with it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::action::Action;
use crate::chain::Chain;
use crate::compaction::{self, Compaction};
use crate::engine::{
    EngineOutput, FinishReason, ItemStart, Purpose, TextFormat, TurnRequest, Usage,
};
use crate::event::Outlet;
use crate::failure::Failure;
use crate::id::{self, IdSource};
use crate::item::{Item, ItemKind};
use crate::json::{self, Object};
use crate::tool::ToolChoice;
use crate::turn::{Progress, Turn};

/// What is counted on where no threshold is given, as a threshold.
const USUAL_THRESHOLD: u64 = 4096;

/// Tokens of a summary, whatever the threshold.
const SUMMARY_TOKENS: (u64, u64) = (128, 2048);

/// What is taken of a summary from an engine that heeds no limit.
const SUMMARY_BYTES: usize = 64 << 10;

/// A turn's compaction, be it that one may become necessary.
#[derive(Debug)]
pub(super) struct Compacting {
    /// The turn as it was asked for. Every run is made from it.
    request: TurnRequest,
    /// The output is the compaction item, and nothing behind it.
    alone: bool,
    stage: Stage,
    /// By the runs that have ended.
    spent: Usage,
}

#[derive(Debug)]
enum Stage {
    /// The engine was asked for an answer, and may find the prompt too long.
    Watching,
    /// It was asked for a summary.
    Summarizing { started: bool, summary: Summary },
    /// It was asked for an answer behind the item.
    Answering { started: bool },
}

#[derive(Debug, Default)]
struct Summary {
    /// Of the compaction item. Empty until that was announced.
    item_id: String,
    text: String,
    /// The item that the engine has open, and whether it is a message.
    open: Option<bool>,
}

impl Compacting {
    /// For a turn that is asked for nothing but a compaction, with the request for its engine.
    pub(super) fn alone(request: TurnRequest) -> (Self, TurnRequest) {
        let compacting = Self {
            alone: true,
            stage: Stage::Summarizing {
                started: false,
                summary: Summary::default(),
            },
            ..Self::watching(request)
        };
        let summary = compacting.summary_request();
        (compacting, summary)
    }

    /// For a turn that compacts if its prompt reaches the threshold of the request.
    pub(super) fn watching(request: TurnRequest) -> Self {
        Self {
            request,
            alone: false,
            stage: Stage::Watching,
            spent: Usage::default(),
        }
    }

    pub(super) fn is_summarizing(&self) -> bool {
        matches!(self.stage, Stage::Summarizing { .. })
    }

    fn threshold(&self) -> u64 {
        self.request.compact_threshold.unwrap_or(USUAL_THRESHOLD)
    }

    /// The same conversation, so that its state is of use, and the wish for a summary.
    fn summary_request(&self) -> TurnRequest {
        let (least, most) = SUMMARY_TOKENS;
        let context = self.request.compact_threshold;
        let context = context.unwrap_or_else(|| self.estimate().min(USUAL_THRESHOLD));
        let tokens = (context / 4).clamp(least, most);
        let wish = std::iter::once(summary_wish());
        TurnRequest {
            input: self.request.input.iter().cloned().chain(wish).collect(),
            tool_choice: ToolChoice::None,
            max_output_tokens: Some(tokens as u32),
            top_logprobs: 0,
            logprobs: false,
            format: TextFormat::Text,
            // What is thought is not shown and takes tokens from what is.
            reasoning_effort: Some("none".into()),
            // A summary of the most of it is better than none.
            truncate: true,
            compact_threshold: None,
            purpose: Purpose::Summary,
            ..self.request.clone()
        }
    }

    /// Tokens of the prompt, roughly, at four bytes each: a small model fills whatever it is given,
    /// and the summary of a short conversation must not be longer than that.
    fn estimate(&self) -> u64 {
        let before = self.request.parent.as_ref().map_or(0, Chain::bytes);
        let new: usize = self.request.input.iter().map(Item::size).sum();
        (before + new as u64) / 4
    }

    fn answer_request(&self, input: Arc<[Item]>) -> TurnRequest {
        TurnRequest {
            parent: None,
            input,
            compact_threshold: None,
            ..self.request.clone()
        }
    }

    /// What the turn has cost, when its last run has cost this.
    pub(super) fn total(&self, last: Usage) -> Usage {
        Usage {
            input_tokens: self.spent.input_tokens.saturating_add(last.input_tokens),
            cached_tokens: self.spent.cached_tokens.saturating_add(last.cached_tokens),
            output_tokens: self.spent.output_tokens.saturating_add(last.output_tokens),
            reasoning_tokens: self
                .spent
                .reasoning_tokens
                .saturating_add(last.reasoning_tokens),
        }
    }

    /// The input of the request, once the item is made that stands for it.
    pub(super) fn compacted(&self) -> Option<Arc<[Item]>> {
        match self.stage {
            Stage::Answering { .. } => Some(Arc::clone(&self.request.input)),
            Stage::Watching | Stage::Summarizing { .. } => None,
        }
    }

    /// The item as it was announced, while it is made.
    pub(super) fn announced(&self) -> Option<Item> {
        match &self.stage {
            Stage::Summarizing { summary, .. } if !summary.item_id.is_empty() => {
                Some(item(&summary.item_id, ""))
            }
            _ => None,
        }
    }

    /// Whether this is the `Started` of the run behind the item, which is no news to the client.
    pub(super) fn starts_to_answer(&mut self) -> bool {
        match &mut self.stage {
            Stage::Answering { started } => !std::mem::replace(started, true),
            _ => false,
        }
    }

    /// Whether the engine may say something else than `Started`.
    pub(super) fn has_started(&self) -> bool {
        match &self.stage {
            Stage::Watching => true,
            Stage::Summarizing { started, .. } | Stage::Answering { started } => *started,
        }
    }
}

impl Turn {
    /// The prompt has reached the threshold.
    pub(super) fn begin_summary(
        &mut self,
        ids: &mut dyn IdSource,
        actions: &mut VecDeque<Action>,
    ) -> Progress {
        let Some(compacting) = &mut self.compacting else {
            return Progress::Broken;
        };
        if !matches!(compacting.stage, Stage::Watching)
            || self.open.is_some()
            || !self.output.is_empty()
        {
            return Progress::Broken;
        }
        compacting.stage = Stage::Summarizing {
            started: false,
            summary: Summary::default(),
        };
        let request = compacting.summary_request();
        self.announce_compaction(ids, actions);
        Progress::Again(Box::new(request))
    }

    fn announce_compaction(&mut self, ids: &mut dyn IdSource, actions: &mut VecDeque<Action>) {
        let Some(Compacting {
            stage: Stage::Summarizing { summary, .. },
            ..
        }) = self.compacting.as_deref_mut()
        else {
            return;
        };
        summary.item_id = id::mint(id::COMPACTION, ids);
        let announced = item(&summary.item_id, "");
        let mut outlet = Outlet {
            sequence: &mut self.sequence,
            actions,
        };
        let index = self.output.len();
        outlet.event("response.output_item.added", 256, |event| {
            event.value("output_index", &index);
            event.raw("item", announced.raw());
        });
        outlet.event("response.compaction.compacting", 128, |event| {
            event.value("item_id", &summary.item_id);
            event.value("output_index", &index);
        });
    }

    /// Folds in what the engine says while it summarizes. Nothing of that is shown.
    pub(super) fn summarize(
        &mut self,
        ids: &mut dyn IdSource,
        output: EngineOutput,
        actions: &mut VecDeque<Action>,
    ) -> Progress {
        let Some(Compacting {
            stage: Stage::Summarizing { started, summary },
            ..
        }) = self.compacting.as_deref_mut()
        else {
            return Progress::Broken;
        };
        match (output, summary.open) {
            (EngineOutput::Failed(failure), _) => return Progress::Failed(failure.into()),
            (EngineOutput::Started, _) if !*started => {
                *started = true;
                if summary.item_id.is_empty() {
                    self.announce_start(actions);
                    self.announce_compaction(ids, actions);
                }
            }
            (_, _) if !*started => return Progress::Broken,
            (EngineOutput::ItemStarted(start), None) => {
                summary.open = Some(start == ItemStart::Message);
            }
            (EngineOutput::TextDelta { text, .. }, Some(true)) => {
                let room = SUMMARY_BYTES - summary.text.len();
                let end = text.floor_char_boundary(room);
                summary.text.push_str(&text[..end]);
            }
            (
                EngineOutput::TextDelta { .. }
                | EngineOutput::RefusalDelta { .. }
                | EngineOutput::ReasoningDelta { .. }
                | EngineOutput::ArgumentsDelta { .. }
                | EngineOutput::InputDelta { .. },
                Some(_),
            ) => {}
            (EngineOutput::ItemDone, Some(_)) => summary.open = None,
            (EngineOutput::Finished { reason, usage, .. }, _)
                if reason != FinishReason::ContextThreshold =>
            {
                return self.end_summary(usage, actions);
            }
            _ => return Progress::Broken,
        }
        Progress::Going
    }

    fn end_summary(&mut self, usage: Usage, actions: &mut VecDeque<Action>) -> Progress {
        let Some(compacting) = self.compacting.as_deref_mut() else {
            return Progress::Broken;
        };
        let answering = Stage::Answering { started: false };
        let Stage::Summarizing { summary, .. } =
            std::mem::replace(&mut compacting.stage, answering)
        else {
            return Progress::Broken;
        };
        if summary.text.trim().is_empty() {
            let message = "The conversation could not be compacted: the model made no summary.";
            return Progress::Failed(Failure::server_error(message));
        }
        let request = &compacting.request;
        // A quarter of the threshold, at four bytes a token.
        let budget = usize::try_from(compacting.threshold()).unwrap_or(usize::MAX);
        let sealer = &*self.sealer;
        let (parent, input) = match &self.whole {
            Some(whole) => (None, whole.input()),
            None => (request.parent.as_ref(), &request.input),
        };
        let compaction = Compaction::new(summary.text, parent, input, budget, sealer);
        let made = item(&summary.item_id, &compaction.seal(sealer));
        let made = made.with_revealed(&compaction.text());
        let mut outlet = Outlet {
            sequence: &mut self.sequence,
            actions,
        };
        let index = self.output.len();
        outlet.event("response.output_item.done", made.raw().len(), |event| {
            event.value("output_index", &index);
            event.raw("item", made.raw());
        });
        self.output.push(made.clone());
        // It stands for all but the tools that were offered.
        self.request.input = match &*self.carried.standing.tools {
            [] => Arc::default(),
            _ => compaction::tools_offered(parent, input),
        };
        // The items that they were read from are dropped, with the messages those came in.
        self.carried.standing = self.carried.standing.detached();
        self.parent = None;
        if compacting.alone {
            return Progress::Finished {
                reason: FinishReason::Stop,
                usage,
                state: None,
            };
        }
        compacting.spent = compacting.total(usage);
        let input = self.request.input.iter().cloned().chain([made]).collect();
        Progress::Again(Box::new(compacting.answer_request(input)))
    }
}

/// A compaction item. What it stands for is empty in one that is only announced.
fn item(id: &str, sealed: &str) -> Item {
    let mut raw = Vec::with_capacity(128 + sealed.len());
    let mut object = Object::open(&mut raw);
    object.value("id", id);
    object.value("type", "compaction");
    object.value("encrypted_content", sealed);
    object.close();
    Item::new(raw.into(), ItemKind::Compaction, id, None)
}

/// The user message that asks for the summary.
fn summary_wish() -> Item {
    let mut raw =
        br#"{"type":"message","role":"user","content":[{"type":"input_text","text":"#.to_vec();
    json::write(&mut raw, compaction::REQUEST);
    raw.extend_from_slice(b"}]}");
    Item::parse(Bytes::from(raw)).expect("a message is an item")
}
