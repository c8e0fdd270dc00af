//! Turn: one response being made, from engine output to numbered events.

mod compacting;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::action::Action;
use crate::chain::{CallKind, Carried, Chain, EngineState, PendingCall};
use crate::create::{CreateRequest, Include};
use crate::engine::{EngineOutput, FinishReason, ItemStart, Purpose, TurnRequest, Usage};
use crate::event::{Event, Outlet, Sequence};
use crate::failure::Failure;
use crate::id::{IdSource, ResponseId};
use crate::item::{Item, ItemKind};
use crate::lane::LaneName;
use crate::limits::Limits;
use crate::open_item::{Ending, OpenItem, PartKind, WrongPiece};
use crate::pending;
use crate::response::{Moment, ResponseObject};
use crate::seal::Sealer;
use crate::session::Now;
use crate::steer::{Steer, SteerRefusal};
use crate::tool::{Tool, ToolName};
use crate::turn::compacting::Compacting;

/// A turn whose engine was asked to start.
#[derive(Debug)]
pub(crate) struct Turn {
    response: ResponseObject,
    sequence: Sequence,
    /// What the model is shown of the input.
    input: Arc<[Item]>,
    /// The tools of the request, and those of the chain's items.
    tools: [Arc<[Tool]>; 2],
    parent: Option<Chain>,
    /// What the chain carries after the input.
    carried: Carried,
    store: bool,
    generate: bool,
    include: Include,
    sealer: Arc<dyn Sealer>,
    /// Whether `response.created` was sent.
    started: bool,
    /// When the last event was sent.
    silent_since: Duration,
    output: Vec<Item>,
    /// The calls in `output`.
    calls: Vec<PendingCall>,
    open: Option<OpenItem>,
    /// Set if the turn compacts, or may have to.
    compacting: Option<Box<Compacting>>,
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
    /// Checks the request against its parent and makes what the engine needs to start.
    pub(crate) fn start(
        now: Now,
        id: ResponseId,
        lane: Option<LaneName>,
        parent: Option<Chain>,
        request: CreateRequest,
        sealer: Arc<dyn Sealer>,
        limits: &Limits,
    ) -> Result<(Self, Box<TurnRequest>), Failure> {
        let none = Carried::default();
        let before = parent.as_ref().map_or(&none, Chain::carried);
        let input = pending::name_calls(&before.pending_calls, request.input)?;
        let carried = Carried {
            pending_calls: pending::answer(&before.pending_calls, &input)?,
            standing: before.standing.followed_by(&request.standing),
        };
        let additional_tools = carried.standing.tools_beside(&request.tools);
        if request.tools.offered.len() + carried.standing.tools.len() > limits.tools {
            return Err(Failure::array_above_max_length("tools", limits.tools));
        }
        let offered = request.tools.offered.iter().chain(&*additional_tools);
        let tool_choice = request.tool_choice.resolve(offered)?;
        // What this input says last holds, then what the request says, then what is inherited.
        let update = request.standing;
        let inherited = &before.standing;
        let format = update.format.or(request.format);
        let format = format.or_else(|| inherited.format.clone());
        let effort = update.reasoning_effort.or(request.reasoning_effort);
        let effort = effort.or_else(|| inherited.reasoning_effort.clone());
        let input = since_compaction(input);
        let compact_now = request.compact_now;
        let mut turn = Self {
            response: ResponseObject {
                id: id.clone(),
                created_at: now.unix_seconds,
                echo: request.echo,
            },
            sequence: Sequence::new(lane),
            input: input.clone(),
            tools: [request.tools.offered.clone(), additional_tools.clone()],
            parent: parent.clone(),
            carried,
            store: request.store,
            generate: request.generate,
            include: request.include,
            sealer,
            started: false,
            silent_since: now.elapsed,
            output: Vec::new(),
            calls: Vec::new(),
            open: None,
            compacting: None,
        };
        let request = TurnRequest {
            id,
            parent,
            input,
            model: request.model,
            instructions: request.instructions,
            tools: request.tools,
            additional_tools,
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
            compact_threshold: request.compact_threshold.filter(|_| request.generate),
            generate: request.generate,
            purpose: Purpose::Answer,
        };
        let request = if compact_now {
            let (compacting, request) = Compacting::alone(request);
            turn.compacting = Some(Box::new(compacting));
            request
        } else {
            if request.compact_threshold.is_some() {
                turn.compacting = Some(Box::new(Compacting::watching(request.clone())));
            }
            request
        };
        Ok((turn, Box::new(request)))
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
            EngineOutput::Started if !self.started => {
                self.announce_start(actions);
                Progress::Going
            }
            _ if !self.started || !has_started => Progress::Broken,
            EngineOutput::Finished {
                reason: FinishReason::ContextThreshold,
                ..
            } => self.begin_summary(ids, actions),
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
            (EngineOutput::ItemStarted(start), open @ None) if self.generate => {
                let index = self.output.len();
                let mut call = |kind, name: ToolName| {
                    let mut tools = self.tools.iter().flat_map(|list| &**list);
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
        let (name, moment) = match reason {
            FinishReason::Stop => {
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
            // The latter is no end: the turn goes on with a summary.
            FinishReason::WrappedUp | FinishReason::ContextThreshold => {
                let reason = "steered";
                ("response.incomplete", Moment::Incomplete { reason, usage })
            }
        };
        let stamp = self.sequence.peek();
        let terminal = Event::lifecycle(stamp, name, &self.response, &moment, &self.output);
        let mut carried = self.carried.clone();
        if !self.calls.is_empty() {
            let calls = carried.pending_calls.iter().chain(&self.calls);
            carried.pending_calls = calls.cloned().collect();
        }
        let (id, input) = (self.response.id.clone(), Arc::clone(&self.input));
        let output = self.output.clone().into();
        let compacted = self.compacting.as_ref().and_then(|it| it.compacted());
        let chain = match compacted {
            Some(asked) => Chain::compacted(asked, id, input, output, carried, state),
            None => Chain::append(self.parent.clone(), id, input, output, carried, state),
        };
        (terminal, chain)
    }

    /// Ends a turn that failed: inside its response if that was started, else by an `error`.
    pub(crate) fn fail(mut self, failure: Failure, actions: &mut VecDeque<Action>) {
        if self.started {
            self.close_item(Ending::Incomplete, actions);
            self.lifecycle("response.failed", &Moment::Failed(&failure), actions);
        } else {
            let event = Event::error(self.sequence.lane(), failure);
            actions.push_back(Action::Send(event));
        }
    }

    /// Ends a turn that the client cancelled.
    pub(crate) fn cancel(mut self, actions: &mut VecDeque<Action>) {
        if self.started {
            self.close_item(Ending::Incomplete, actions);
            // There is no `response.cancelled` event; the status tells.
            self.lifecycle("response.incomplete", &Moment::Cancelled, actions);
        } else {
            self.fail(Failure::response_cancelled(), actions);
        }
    }

    /// When this turn is to show that it runs, if it says nothing until then.
    pub(crate) fn keep_alive_due(&self, interval: Duration) -> Option<Duration> {
        let since = self.started.then_some(self.silent_since)?;
        since.checked_add(interval)
    }

    /// Shows that this turn runs. What it has made so far is in the event, an open item included:
    /// there are clients that take the output of every response object for all there is.
    pub(crate) fn keep_alive(&mut self, now: Now, actions: &mut VecDeque<Action>) {
        let open = self.open.as_ref().map(OpenItem::snapshot);
        let announced = || self.compacting.as_ref().and_then(|it| it.announced());
        let open = open.or_else(announced);
        let made: Vec<Item> = self.output.iter().cloned().chain(open).collect();
        let stamp = self.sequence.take();
        let name = "response.in_progress";
        let event = Event::lifecycle(stamp, name, &self.response, &Moment::InProgress, &made);
        actions.push_back(Action::Send(event));
        self.silent_since = now.elapsed;
    }

    /// Counts the turn's silence from now on.
    pub(crate) fn defer_keep_alive(&mut self, now: Now) {
        self.silent_since = now.elapsed;
    }

    /// Answers a steer of this turn among the turn's own events.
    pub(crate) fn refuse_steer(&mut self, now: Now, steer: &Steer, actions: &mut VecDeque<Action>) {
        let event = steer.failed(self.sequence.take(), SteerRefusal::NotSupported);
        actions.push_back(Action::Send(event));
        self.silent_since = now.elapsed;
    }

    pub(crate) fn lane(&self) -> Option<&LaneName> {
        self.sequence.lane()
    }

    pub(crate) fn is_started(&self) -> bool {
        self.started
    }

    pub(crate) fn is_stored(&self) -> bool {
        self.store
    }

    pub(crate) fn is_warm_up(&self) -> bool {
        !self.generate
    }

    fn announce_start(&mut self, actions: &mut VecDeque<Action>) {
        self.started = true;
        for name in ["response.created", "response.in_progress"] {
            self.lifecycle(name, &Moment::InProgress, actions);
        }
    }

    fn close_item(&mut self, ending: Ending, actions: &mut VecDeque<Action>) {
        if let Some(item) = self.open.take() {
            let mut outlet = Outlet {
                sequence: &mut self.sequence,
                actions,
            };
            let sealer = &*self.sealer;
            let sealer = self.include.sealed_reasoning.then_some(sealer);
            let (item, call) = item.close(&mut outlet, ending, sealer);
            self.output.push(item);
            self.calls.extend(call);
        }
    }

    fn lifecycle(
        &mut self,
        name: &'static str,
        moment: &Moment<'_>,
        actions: &mut VecDeque<Action>,
    ) {
        let stamp = self.sequence.take();
        let event = Event::lifecycle(stamp, name, &self.response, moment, &self.output);
        actions.push_back(Action::Send(event));
    }
}

/// What a model is shown of an input: a compaction item stands for everything before it, but for
/// the tools that are offered.
fn since_compaction(input: Arc<[Item]>) -> Arc<[Item]> {
    let is_compaction = |item: &Item| item.kind() == ItemKind::Compaction;
    match input.iter().rposition(is_compaction) {
        Some(at @ 1..) => {
            let offers = |item: &&Item| item.kind() == ItemKind::AdditionalTools;
            let before = input[..at].iter().filter(offers);
            before.chain(&input[at..]).cloned().collect()
        }
        Some(0) | None => input,
    }
}
