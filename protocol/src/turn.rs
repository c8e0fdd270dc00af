//! Turn: one response being made, from engine output to numbered events.

mod compacting;
mod matching;
mod storing;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::action::Action;
use crate::chain::{CallKind, Carried, Chain, EngineState, PendingCall};
use crate::create::{CreateRequest, Task};
use crate::engine::{EngineOutput, FinishReason, ItemStart, Purpose, TurnRequest, Usage};
use crate::event::{Event, Outlet, Sequence};
use crate::failure::Failure;
use crate::field::Path;
use crate::history::History;
use crate::id::{IdSource, ResponseId};
use crate::item::{Item, ItemKind};
use crate::lane::LaneName;
use crate::limits::Limits;
use crate::open_item::{Ending, OpenItem, PartKind, WrongPiece};
use crate::pending;
use crate::response::{Moment, ResponseObject};
use crate::seal::Sealer;
use crate::session::Now;
use crate::steer::{Owed, Steer, SteerRefusal, Submissions};
use crate::stored::ConversationStep;
use crate::tool::{Tool, ToolName};
use crate::turn::compacting::Compacting;
use crate::turn::matching::Whole;

pub(crate) use crate::turn::storing::Announcement;

/// A turn whose engine was asked to start.
#[derive(Debug)]
pub(crate) struct Turn {
    response: ResponseObject,
    sequence: Sequence,
    /// What becomes of its conversation, if it is in one and ends well.
    step: Option<ConversationStep>,
    /// What was asked for. Of the input there is what the model is shown. A successor that steers
    /// make asks for the same.
    request: Box<CreateRequest>,
    /// The tools that the chain's items offer besides those of the request.
    additional_tools: Arc<[Tool]>,
    parent: Option<Chain>,
    /// The digest of the chain up to this input, where histories are matched.
    history: Option<History>,
    /// Set if the parent was found by its history: until the engine has started, or to the end
    /// of a turn that may compact.
    whole: Option<Box<Whole>>,
    /// What the chain carries after the input.
    carried: Carried,
    sealer: Arc<dyn Sealer>,
    told: Told,
    /// When the last event was sent.
    silent_since: Duration,
    output: Vec<Item>,
    /// The calls in `output`.
    calls: Vec<PendingCall>,
    open: Option<OpenItem>,
    /// Set if the turn compacts, or may have to.
    compacting: Option<Box<Compacting>>,
    steers: Submissions,
}

/// What a client has been told of the beginning of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    /// That it was created, and waits for its engine in the background.
    Queued,
    /// That it was created, and is in progress.
    InProgress,
}

/// What became of a turn after some output.
#[derive(Debug)]
pub(crate) enum Progress {
    Going,
    /// This run of the engine is over, and the turn goes on with another one.
    Again(Box<TurnRequest>),
    Finished {
        reason: FinishReason,
        usage: Usage,
        state: Option<EngineState>,
    },
    Failed(Failure),
    /// The engine broke its contract and must be stopped.
    Broken,
}

impl Turn {
    /// Checks the request against its parent. Returns what it asks for, for
    /// [`Turn::first_run`].
    pub(crate) fn start(
        now: Now,
        id: ResponseId,
        lane: Option<LaneName>,
        parent: Option<Chain>,
        mut request: Box<CreateRequest>,
        sealer: Arc<dyn Sealer>,
        limits: &Limits,
    ) -> Result<(Self, Box<TurnRequest>), Failure> {
        let none = Carried::default();
        let before = parent.as_ref().map_or(&none, Chain::carried);
        request.input = pending::name_calls(
            &before.pending_calls,
            request.input.clone(),
            Path::Name("input"),
        )?;
        let pending_calls = pending::answer(&before.pending_calls, &request.input)?;
        if let Some(input) = since_compaction(&request.input) {
            request.input = input;
            request.standing = request.standing.detached();
        }
        let carried = Carried {
            pending_calls,
            standing: before.standing.followed_by(&request.standing),
        };
        let additional_tools = carried.standing.tools_beside(&request.tools);
        if request.tools.offered.len() + carried.standing.tools.len() > limits.tools {
            return Err(Failure::array_above_max_length("tools", limits.tools));
        }
        let offered = request.tools.offered.iter().chain(&*additional_tools);
        let tool_choice = request.tool_choice.resolve(offered)?;
        // What this input says last holds, then what the request says, then what is inherited.
        let update = &request.standing;
        let inherited = &before.standing;
        let format = update.format.clone().or_else(|| request.format.clone());
        let format = format.or_else(|| inherited.format.clone());
        let effort = update.reasoning_effort.clone();
        let effort = effort.or_else(|| request.reasoning_effort.clone());
        let effort = effort.or_else(|| inherited.reasoning_effort.clone());
        let asked = TurnRequest {
            id: id.clone(),
            parent: parent.clone(),
            input: request.input.clone(),
            model: request.model.clone(),
            instructions: request.instructions.clone(),
            tools: request.tools.clone(),
            additional_tools: additional_tools.clone(),
            tool_choice,
            parallel_tool_calls: request.parallel_tool_calls,
            temperature: request.temperature,
            top_p: request.top_p,
            presence_penalty: request.presence_penalty,
            frequency_penalty: request.frequency_penalty,
            max_output_tokens: request.max_output_tokens,
            top_logprobs: request.top_logprobs,
            logprobs: request.include.logprobs,
            format: format.unwrap_or_default(),
            reasoning_effort: effort,
            truncate: request.truncate,
            compact_threshold: request.compact_threshold.filter(|_| request.wants_output()),
            generate: request.generate,
            purpose: match request.task {
                Task::Answer | Task::Compact => Purpose::Answer,
                Task::Count => Purpose::Count,
            },
        };
        let before_id = parent.as_ref().map(|chain| chain.id().clone());
        let conversation = request.conversation.clone();
        let turn = Self {
            response: ResponseObject {
                id,
                created_at: now.unix_seconds,
                previous_response_id: before_id.clone().filter(|_| conversation.is_none()),
                conversation: conversation.clone(),
                echo: request.echo.clone(),
            },
            sequence: Sequence::new(lane),
            step: conversation.map(|id| ConversationStep {
                id,
                from: before_id,
            }),
            request,
            additional_tools,
            parent,
            history: None,
            whole: None,
            carried,
            sealer,
            told: Told::Nothing,
            silent_since: now.elapsed,
            output: Vec::new(),
            calls: Vec::new(),
            open: None,
            compacting: None,
            steers: Submissions::default(),
        };
        Ok((turn, Box::new(asked)))
    }

    /// What the engine is to be started with, for a turn that is asked for this.
    pub(crate) fn first_run(&mut self, asked: Box<TurnRequest>) -> Box<TurnRequest> {
        let (compacting, first) = if self.request.task == Task::Compact {
            let (compacting, summary) = Compacting::alone(*asked);
            (Some(compacting), Box::new(summary))
        } else if asked.compact_threshold.is_some() {
            (Some(Compacting::watching((*asked).clone())), asked)
        } else {
            (None, asked)
        };
        self.compacting = compacting.map(Box::new);
        first
    }

    /// Folds one output in. Output that breaks the engine's contract changes nothing.
    pub(crate) fn handle(
        &mut self,
        now: Now,
        ids: &mut dyn IdSource,
        output: EngineOutput,
        actions: &mut VecDeque<Action>,
    ) -> Progress {
        let sent = self.sequence.sent();
        let progress = self.fold_in(ids, output, actions);
        if self.sequence.sent() != sent {
            self.silent_since = now.elapsed;
        }
        progress
    }

    fn fold_in(
        &mut self,
        ids: &mut dyn IdSource,
        output: EngineOutput,
        actions: &mut VecDeque<Action>,
    ) -> Progress {
        if let EngineOutput::Failed(failure) = &output
            && let Some(request) = self.without_match(failure)
        {
            return Progress::Again(request);
        }
        let compacting = self.compacting.as_deref_mut();
        if let Some(compacting) = compacting {
            if compacting.is_summarizing() {
                return self.summarize(ids, output, actions);
            }
            if matches!(output, EngineOutput::Started) && compacting.starts_to_answer() {
                return Progress::Going;
            }
        }
        let has_started = self.compacting.as_ref().is_none_or(|it| it.has_started());
        match output {
            EngineOutput::Failed(failure) => Progress::Failed(failure.into()),
            EngineOutput::Started if self.told != Told::InProgress => {
                self.announce_start(actions);
                Progress::Going
            }
            _ if self.told != Told::InProgress || !has_started => Progress::Broken,
            EngineOutput::Finished {
                reason: FinishReason::ContextThreshold,
                ..
            } => self.begin_summary(ids, actions),
            EngineOutput::Finished {
                reason: FinishReason::WrappedUp,
                ..
            } if self.steers.is_empty() => Progress::Broken,
            EngineOutput::Finished {
                reason,
                usage,
                state,
            } => Progress::Finished {
                reason,
                usage: match &self.compacting {
                    Some(compacting) => compacting.total(usage),
                    None => usage,
                },
                state,
            },
            piece => match self.handle_piece(ids, piece, actions) {
                Ok(()) => Progress::Going,
                Err(WrongPiece) => Progress::Broken,
            },
        }
    }

    fn handle_piece(
        &mut self,
        ids: &mut dyn IdSource,
        piece: EngineOutput,
        actions: &mut VecDeque<Action>,
    ) -> Result<(), WrongPiece> {
        let mut outlet = Outlet {
            sequence: &mut self.sequence,
            actions,
        };
        match (piece, &mut self.open) {
            (EngineOutput::ItemStarted(start), open @ None) if self.request.wants_output() => {
                let index = self.output.len();
                let mut call = |kind, name: ToolName| {
                    let offered = &self.request.tools.offered;
                    let mut tools = offered.iter().chain(&*self.additional_tools);
                    let tool = tools.find(|tool| tool.name == name);
                    OpenItem::call(index, ids, kind, name, tool)
                };
                let item = match start {
                    ItemStart::Message => OpenItem::message(index, ids),
                    ItemStart::Reasoning => OpenItem::reasoning(index, ids),
                    ItemStart::FunctionCall { tool } => call(CallKind::Function, tool),
                    ItemStart::CustomToolCall { tool } => call(CallKind::Custom, tool),
                };
                item.announce(&mut outlet);
                *open = Some(item);
                Ok(())
            }
            (EngineOutput::TextDelta { text, logprobs }, Some(item)) => {
                item.text_delta(&mut outlet, PartKind::OutputText, &text, &logprobs)
            }
            (EngineOutput::RefusalDelta { text }, Some(item)) => {
                item.text_delta(&mut outlet, PartKind::Refusal, &text, &[])
            }
            (EngineOutput::ReasoningDelta { text }, Some(item)) => {
                item.text_delta(&mut outlet, PartKind::ReasoningText, &text, &[])
            }
            (EngineOutput::ArgumentsDelta { text }, Some(item)) => {
                item.call_delta(&mut outlet, CallKind::Function, &text)
            }
            (EngineOutput::InputDelta { text }, Some(item)) => {
                item.call_delta(&mut outlet, CallKind::Custom, &text)
            }
            (EngineOutput::ItemDone, Some(_)) => {
                self.close_item(Ending::Completed, actions);
                Ok(())
            }
            _ => Err(WrongPiece),
        }
    }

    /// Ends a turn that went well. Its last event is handed out rather than sent: that of a
    /// stored response waits until it is stored.
    pub(crate) fn finish(
        &mut self,
        now: Now,
        reason: FinishReason,
        usage: &Usage,
        state: Option<EngineState>,
        actions: &mut VecDeque<Action>,
    ) -> (Event, Chain) {
        self.close_item(Ending::Incomplete, actions);
        let chain = self.link(state);
        let (name, moment) = match reason {
            FinishReason::WrappedUp if chain.required_calls().next().is_none() => {
                let reason = "steered";
                ("response.incomplete", Moment::Incomplete { reason, usage })
            }
            // A response whose calls are to be answered is what the client would have got anyway.
            // A threshold is no end: the turn goes on with a summary.
            FinishReason::Stop | FinishReason::WrappedUp | FinishReason::ContextThreshold => {
                let at = now.unix_seconds;
                ("response.completed", Moment::Completed { at, usage })
            }
            FinishReason::MaxOutputTokens => {
                let reason = "max_output_tokens";
                ("response.incomplete", Moment::Incomplete { reason, usage })
            }
            FinishReason::ContentFilter => {
                let reason = "content_filter";
                ("response.incomplete", Moment::Incomplete { reason, usage })
            }
        };
        (self.terminal(name, &moment), chain)
    }

    /// Ends a response that failed. Its last event is handed out, too.
    pub(crate) fn fail(&mut self, failure: &Failure, actions: &mut VecDeque<Action>) -> Event {
        self.close_item(Ending::Incomplete, actions);
        self.terminal("response.failed", &Moment::Failed(failure))
    }

    /// Ends a response that the client cancelled. Its last event is handed out, too.
    pub(crate) fn cancel(&mut self, actions: &mut VecDeque<Action>) -> Event {
        self.close_item(Ending::Incomplete, actions);
        // There is no `response.cancelled` event; the status tells.
        self.terminal("response.incomplete", &Moment::Cancelled)
    }

    fn terminal(&self, name: &'static str, moment: &Moment<'_>) -> Event {
        let stamp = self.sequence.peek();
        Event::lifecycle(stamp, name, &self.response, moment, &self.output)
    }

    /// Sends the event that the end of the turn has handed out.
    pub(crate) fn send_terminal(&mut self, terminal: Event, actions: &mut VecDeque<Action>) {
        self.sequence.take();
        actions.push_back(Action::Send(terminal));
    }

    /// When this turn is to show that it runs, if it says nothing until then.
    pub(crate) fn keep_alive_due(&self, interval: Duration) -> Option<Duration> {
        let since = self.is_started().then_some(self.silent_since)?;
        since.checked_add(interval)
    }

    /// Shows that this turn runs. What it has made so far is in the event, an open item included:
    /// there are clients that take the output of every response object for all there is.
    pub(crate) fn keep_alive(&mut self, now: Now, actions: &mut VecDeque<Action>) {
        let open = self.open.as_ref().map(OpenItem::snapshot);
        let announced = || self.compacting.as_ref().and_then(|it| it.announced());
        let open = open.or_else(announced);
        let made: Vec<Item> = self.output.iter().cloned().chain(open).collect();
        let (name, moment) = match self.told {
            Told::Queued => ("response.queued", Moment::Queued),
            Told::Nothing | Told::InProgress => ("response.in_progress", Moment::InProgress),
        };
        let stamp = self.sequence.take();
        let event = Event::lifecycle(stamp, name, &self.response, &moment, &made);
        actions.push_back(Action::Send(event));
        self.silent_since = now.elapsed;
    }

    /// Counts the turn's silence from now on.
    pub(crate) fn defer_keep_alive(&mut self, now: Now) {
        self.silent_since = now.elapsed;
    }

    /// Keeps a steer until this turn has ended, and says so among the turn's own events.
    pub(crate) fn accept_steer(
        &mut self,
        now: Now,
        ids: &mut dyn IdSource,
        steer: Steer,
        actions: &mut VecDeque<Action>,
    ) {
        let event = self.steers.accept(ids, self.sequence.take(), steer);
        actions.push_back(Action::Send(event));
        self.silent_since = now.elapsed;
    }

    pub(crate) fn lane(&self) -> Option<&LaneName> {
        self.sequence.lane()
    }

    /// Refuses a steer of this turn, among the turn's own events.
    pub(crate) fn refuse_steer(
        &mut self,
        now: Now,
        steer: &Steer,
        refusal: SteerRefusal<'_>,
        actions: &mut VecDeque<Action>,
    ) {
        let event = steer.failed(self.sequence.take(), refusal);
        actions.push_back(Action::Send(event));
        self.silent_since = now.elapsed;
    }

    /// A response whose chain may be compacted on the way is not steered: the steers would have
    /// to be told apart from what is compacted. In a conversation the successor might find that
    /// something else has gone on with it.
    pub(crate) fn is_steerable(&self) -> bool {
        self.request.generate && self.compacting.is_none() && !self.is_in_conversation()
    }

    pub(crate) fn is_in_conversation(&self) -> bool {
        self.step.is_some()
    }

    /// The steers that wait for this turn to end.
    pub(crate) fn steers(&self) -> &Submissions {
        &self.steers
    }

    /// The steers of a turn whose last event was sent, and the request that it was made by.
    pub(crate) fn into_steers(self) -> Option<(Owed, Box<CreateRequest>)> {
        let owed = Owed::new(self.response.id, self.sequence, self.steers)?;
        Some((owed, self.request))
    }

    /// Whether `response.created` was sent.
    pub(crate) fn is_started(&self) -> bool {
        self.told != Told::Nothing
    }

    pub(crate) fn is_warm_up(&self) -> bool {
        !self.request.generate
    }

    fn announce_start(&mut self, actions: &mut VecDeque<Action>) {
        self.whole.take_if(|_| self.compacting.is_none());
        let moment = Moment::InProgress;
        if self.told == Told::Nothing {
            let created = self.lifecycle("response.created", &moment);
            actions.push_back(Action::Send(created));
        }
        self.told = Told::InProgress;
        let event = self.lifecycle("response.in_progress", &moment);
        if let Some(record) = self.progress(&event) {
            actions.push_back(Action::SaveProgress { record });
        }
        actions.push_back(Action::Send(event));
    }

    fn close_item(&mut self, ending: Ending, actions: &mut VecDeque<Action>) {
        if let Some(item) = self.open.take() {
            let mut outlet = Outlet {
                sequence: &mut self.sequence,
                actions,
            };
            let sealer = &*self.sealer;
            let sealer = self.request.include.sealed_reasoning.then_some(sealer);
            let (item, call) = item.close(&mut outlet, ending, sealer);
            self.output.push(item);
            self.calls.extend(call);
        }
    }

    /// The turn's next event, which must be sent.
    fn lifecycle(&mut self, name: &'static str, moment: &Moment<'_>) -> Event {
        let stamp = self.sequence.take();
        Event::lifecycle(stamp, name, &self.response, moment, &self.output)
    }
}

/// What a model is shown of an input: a compaction item stands for everything before it, but for
/// the tools that are offered. None if nothing is before it. What is dropped is kept alive by
/// nothing that is left.
fn since_compaction(input: &[Item]) -> Option<Arc<[Item]>> {
    let is_compaction = |item: &Item| item.kind() == ItemKind::Compaction;
    let at = input.iter().rposition(is_compaction).filter(|at| *at > 0)?;
    let offers = |item: &&Item| item.kind() == ItemKind::AdditionalTools;
    let before = input[..at].iter().filter(offers);
    Some(before.chain(&input[at..]).map(Item::detached).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn what_a_compaction_stands_for_is_not_kept_alive_by_what_is_behind_it() {
        let text =
            r#"{"type":"old"}{"type":"additional_tools"}{"type":"compaction"}{"type":"new"}"#;
        let message = Bytes::from(text);
        let mut start = 0;
        let mut input = Vec::new();
        while let Some(length) = text[start..].find('}') {
            let raw = message.slice(start..=start + length);
            start += length + 1;
            input.push(Item::parse(raw).expect("an item"));
        }
        let shown = since_compaction(&input).expect("something was before it");
        assert_eq!(shown.len(), 3);
        for (shown, came) in shown.iter().zip(&input[1..]) {
            assert_eq!(shown.raw(), came.raw());
            assert!(!message.as_ptr_range().contains(&shown.raw().as_ptr()));
        }
        assert!(since_compaction(&input[2..]).is_none());
    }
}
