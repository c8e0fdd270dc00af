//! OpenItem: one output item while the engine makes it.
//!
//! Its text is kept escaped, as the deltas showed it, so that its `done` events and the finished
//! item are put together by copying. The finished item's bytes are made once: the same ones go
//! into `output_item.done`, the response object and the chain.

use std::sync::Arc;

use crate::chain::{CallKind, PendingCall};
use crate::engine::{TokenLogprob, TopLogprob};
use crate::event::Outlet;
use crate::id::{self, IdSource};
use crate::item::{Item, ItemKind};
use crate::json::{self, Object};
use crate::seal::{Content, Sealer};
use crate::tool::{Tool, ToolName};

/// Bytes of text in one delta at the most, so that no lane holds the others up for longer than it
/// takes to write that much. A piece of an engine that is longer becomes several deltas. Escaped
/// it is up to six times as long: a control character is one byte of text and six of JSON.
const MAX_DELTA_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct OpenItem {
    id: String,
    /// Its place in the response's `output`.
    index: usize,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Message(Option<Part>),
    Reasoning(Option<Part>),
    Call {
        call: PendingCall,
        tool: ToolName,
        /// The `arguments` of a function call, the `input` of a custom one.
        text: Escaped,
    },
}

/// The one content part of a message or a reasoning item. It comes with the first delta, because
/// only then it is known whether a message is text or a refusal.
#[derive(Debug)]
struct Part {
    kind: PartKind,
    text: Escaped,
    /// Log probabilities as JSON, with commas between them.
    logprobs: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartKind {
    OutputText,
    Refusal,
    ReasoningText,
}

/// How an item ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Completed,
    /// Cut by a limit, a cancel or a failure.
    Incomplete,
}

/// The engine sent a piece that the open item cannot hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WrongPiece;

impl OpenItem {
    pub(crate) fn message(index: usize, ids: &mut dyn IdSource) -> Self {
        let id = id::mint(id::MESSAGE, ids);
        let body = Body::Message(None);
        Self { id, index, body }
    }

    pub(crate) fn reasoning(index: usize, ids: &mut dyn IdSource) -> Self {
        let id = id::mint(id::REASONING, ids);
        let body = Body::Reasoning(None);
        Self { id, index, body }
    }

    /// A call of `tool`, which `offered` describes unless it is not among the tools.
    pub(crate) fn call(
        index: usize,
        ids: &mut dyn IdSource,
        kind: CallKind,
        tool: ToolName,
        offered: Option<&Tool>,
    ) -> Self {
        let id = id::mint(kind.id_prefix(), ids);
        let body = Body::Call {
            call: PendingCall {
                call_id: id::mint(id::CALL, ids).into(),
                kind,
                name: Arc::clone(&tool.name),
                may_wait: offered.is_some_and(|tool| tool.may_wait),
            },
            tool,
            text: Escaped::default(),
        };
        Self { id, index, body }
    }

    pub(crate) fn announce(&self, outlet: &mut Outlet<'_>) {
        outlet.event("response.output_item.added", 256, |event| {
            event.value("output_index", &self.index);
            self.write(event.name("item"), "in_progress", None);
        });
    }

    /// Text of a message or a reasoning item.
    pub(crate) fn text_delta(
        &mut self,
        outlet: &mut Outlet<'_>,
        kind: PartKind,
        text: &str,
        logprobs: &[TokenLogprob],
    ) -> Result<(), WrongPiece> {
        if self.part(kind).is_none() {
            self.open_part(outlet, kind)?;
        }
        let Self { id, index, body } = self;
        let Some(part) = body.part_mut(kind) else {
            return Err(WrongPiece);
        };
        let (mut text, mut logprobs) = (text, logprobs);
        while !text.is_empty() || !logprobs.is_empty() {
            let (piece, rest) = split_delta(text);
            let capacity = piece.len() + 160 * logprobs.len();
            outlet.event(kind.delta(), capacity, |event| {
                place(event, id, *index);
                event.value("content_index", &0);
                part.text.push(piece, event.name("delta"));
                if kind == PartKind::OutputText {
                    part.push_logprobs(logprobs, event.name("logprobs"));
                }
            });
            (text, logprobs) = (rest, &[]);
        }
        Ok(())
    }

    /// Text of a call: of its arguments, or of its input.
    pub(crate) fn call_delta(
        &mut self,
        outlet: &mut Outlet<'_>,
        kind: CallKind,
        text: &str,
    ) -> Result<(), WrongPiece> {
        let said = match &mut self.body {
            Body::Call { call, text, .. } if call.kind == kind => text,
            _ => return Err(WrongPiece),
        };
        let mut text = text;
        while !text.is_empty() {
            let (piece, rest) = split_delta(text);
            outlet.event(kind.delta(), piece.len(), |event| {
                place(event, &self.id, self.index);
                said.push(piece, event.name("delta"));
            });
            text = rest;
        }
        Ok(())
    }

    /// The item as it is so far.
    pub(crate) fn snapshot(&self) -> Item {
        self.item("in_progress", None)
    }

    /// Ends the item: its `done` events, its bytes, and the call it leaves to be answered. With
    /// a sealer a reasoning item carries its text once more, sealed.
    pub(crate) fn close(
        mut self,
        outlet: &mut Outlet<'_>,
        ending: Ending,
        sealer: Option<&dyn Sealer>,
    ) -> (Item, Option<PendingCall>) {
        // A message that ended by itself has a part, even an empty one.
        if matches!(self.body, Body::Message(None)) && ending == Ending::Completed {
            let _ = self.open_part(outlet, PartKind::OutputText);
        }
        self.close_content(outlet);

        let status = match ending {
            Ending::Completed => "completed",
            Ending::Incomplete => "incomplete",
        };
        let item = self.item(status, sealer);
        outlet.event("response.output_item.done", item.raw().len(), |event| {
            event.value("output_index", &self.index);
            event.raw("item", item.raw());
        });
        let call = match self.body {
            Body::Call { call, .. } => Some(PendingCall {
                // Nobody has to answer a call that was cut off, but an answer is accepted.
                may_wait: call.may_wait || ending == Ending::Incomplete,
                ..call
            }),
            _ => None,
        };
        (item, call)
    }

    fn part(&self, kind: PartKind) -> Option<&Part> {
        match &self.body {
            Body::Message(part) | Body::Reasoning(part) => {
                part.as_ref().filter(|part| part.kind == kind)
            }
            Body::Call { .. } => None,
        }
    }

    fn open_part(&mut self, outlet: &mut Outlet<'_>, kind: PartKind) -> Result<(), WrongPiece> {
        let Self { id, index, body } = self;
        let slot = match (body, kind) {
            (Body::Message(slot), PartKind::OutputText | PartKind::Refusal) => slot,
            (Body::Reasoning(slot), PartKind::ReasoningText) => slot,
            _ => return Err(WrongPiece),
        };
        if slot.is_some() {
            return Err(WrongPiece);
        }
        let part = slot.insert(Part {
            kind,
            text: Escaped::default(),
            logprobs: Vec::new(),
        });
        outlet.event("response.content_part.added", 64, |event| {
            place(event, id, *index);
            event.value("content_index", &0);
            part.write(event.name("part"));
        });
        Ok(())
    }

    /// The `done` events of what is inside the item.
    fn close_content(&self, outlet: &mut Outlet<'_>) {
        match &self.body {
            Body::Message(None) | Body::Reasoning(None) => {}
            Body::Message(Some(part)) | Body::Reasoning(Some(part)) => {
                outlet.event(part.kind.done(), part.size(), |event| {
                    place(event, &self.id, self.index);
                    event.value("content_index", &0);
                    part.text.write(event.name(part.kind.text_member()));
                    if part.kind == PartKind::OutputText {
                        part.write_logprobs(event);
                    }
                });
                outlet.event("response.content_part.done", part.size(), |event| {
                    place(event, &self.id, self.index);
                    event.value("content_index", &0);
                    part.write(event.name("part"));
                });
            }
            Body::Call { call, tool, text } => {
                let capacity = text.len() + tool.name.len();
                outlet.event(call.kind.done(), capacity, |event| {
                    place(event, &self.id, self.index);
                    if call.kind == CallKind::Function {
                        // Documented by older versions only; newer clients ignore it.
                        event.value("name", &*tool.name);
                    }
                    text.write(event.name(call.kind.text_member()));
                });
            }
        }
    }

    fn item(&self, status: &str, sealer: Option<&dyn Sealer>) -> Item {
        let sealed = sealer.and_then(|sealer| self.body.seal_reasoning(sealer));
        let sealed = sealed.as_deref();
        let capacity = 256 + self.body.size() + sealed.map_or(0, str::len);
        let mut raw = Vec::with_capacity(capacity);
        self.write(&mut raw, status, sealed);
        let (kind, call_id) = match &self.body {
            Body::Message(_) => (ItemKind::Message, None),
            Body::Reasoning(_) => (ItemKind::Reasoning, None),
            Body::Call { call, .. } => (call.kind.item_kind(), Some(Arc::clone(&call.call_id))),
        };
        Item::new(raw.into(), kind, &self.id, call_id)
    }

    /// Appends the item. Members without a value are left out: the Open Responses schema takes
    /// no null for them.
    fn write(&self, out: &mut Vec<u8>, status: &str, sealed: Option<&str>) {
        let mut item = Object::open(out);
        item.value("id", &self.id);
        match &self.body {
            Body::Message(part) => {
                item.value("type", "message");
                item.value("status", status);
                item.value("role", "assistant");
                write_content(&mut item, part.as_ref());
            }
            Body::Reasoning(part) => {
                item.value("type", "reasoning");
                item.value("status", status);
                item.raw("summary", b"[]");
                write_content(&mut item, part.as_ref());
                if let Some(sealed) = sealed {
                    item.value("encrypted_content", sealed);
                }
            }
            Body::Call { call, tool, text } => {
                item.value("type", call.kind.name());
                item.value("status", status);
                item.value("call_id", &*call.call_id);
                item.value("name", &*tool.name);
                if let Some(namespace) = &tool.namespace {
                    item.value("namespace", &**namespace);
                }
                text.write(item.name(call.kind.text_member()));
                if call.may_wait {
                    item.value("async", &true);
                }
            }
        }
        item.close();
    }
}

impl Body {
    fn part_mut(&mut self, kind: PartKind) -> Option<&mut Part> {
        match self {
            Self::Message(part) | Self::Reasoning(part) => {
                part.as_mut().filter(|part| part.kind == kind)
            }
            Self::Call { .. } => None,
        }
    }

    /// The text of a reasoning item, sealed. None for what is no reasoning, and for one that
    /// says nothing.
    fn seal_reasoning(&self, sealer: &dyn Sealer) -> Option<String> {
        match self {
            Self::Reasoning(Some(part)) => {
                Some(sealer.seal(Content::Reasoning, &part.text.plain()))
            }
            _ => None,
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Message(part) | Self::Reasoning(part) => part.as_ref().map_or(0, Part::size),
            Self::Call { text, .. } => text.len(),
        }
    }
}

impl CallKind {
    fn id_prefix(self) -> &'static str {
        match self {
            Self::Function => id::FUNCTION_CALL,
            Self::Custom => id::CUSTOM_CALL,
        }
    }

    fn item_kind(self) -> ItemKind {
        match self {
            Self::Function => ItemKind::FunctionCall,
            Self::Custom => ItemKind::CustomToolCall,
        }
    }

    /// The `type` of its item.
    fn name(self) -> &'static str {
        match self {
            Self::Function => "function_call",
            Self::Custom => "custom_tool_call",
        }
    }

    fn delta(self) -> &'static str {
        match self {
            Self::Function => "response.function_call_arguments.delta",
            Self::Custom => "response.custom_tool_call_input.delta",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Function => "response.function_call_arguments.done",
            Self::Custom => "response.custom_tool_call_input.done",
        }
    }

    /// Where its text stands, in the item and in the `done` event.
    fn text_member(self) -> &'static str {
        match self {
            Self::Function => "arguments",
            Self::Custom => "input",
        }
    }
}

impl PartKind {
    fn delta(self) -> &'static str {
        match self {
            Self::OutputText => "response.output_text.delta",
            Self::Refusal => "response.refusal.delta",
            Self::ReasoningText => "response.reasoning_text.delta",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::OutputText => "response.output_text.done",
            Self::Refusal => "response.refusal.done",
            Self::ReasoningText => "response.reasoning_text.done",
        }
    }

    /// Its `type`.
    fn name(self) -> &'static str {
        match self {
            Self::OutputText => "output_text",
            Self::Refusal => "refusal",
            Self::ReasoningText => "reasoning_text",
        }
    }

    /// Where its text stands, in the part and in the `done` event.
    fn text_member(self) -> &'static str {
        match self {
            Self::OutputText | Self::ReasoningText => "text",
            Self::Refusal => "refusal",
        }
    }
}

impl Part {
    fn write(&self, out: &mut Vec<u8>) {
        let mut part = Object::open(out);
        part.value("type", self.kind.name());
        self.text.write(part.name(self.kind.text_member()));
        if self.kind == PartKind::OutputText {
            part.raw("annotations", b"[]");
            self.write_logprobs(&mut part);
        }
        part.close();
    }

    /// Appends `logprobs`, which are also written to `json` as an array of their own.
    fn push_logprobs(&mut self, logprobs: &[TokenLogprob], json: &mut Vec<u8>) {
        json.push(b'[');
        let start = json.len();
        write_logprobs(json, logprobs);
        if !self.logprobs.is_empty() && json.len() > start {
            self.logprobs.push(b',');
        }
        self.logprobs.extend_from_slice(&json[start..]);
        json.push(b']');
    }

    fn write_logprobs(&self, object: &mut Object<'_>) {
        let json = object.name("logprobs");
        json.push(b'[');
        json.extend_from_slice(&self.logprobs);
        json.push(b']');
    }

    fn size(&self) -> usize {
        64 + self.text.len() + self.logprobs.len()
    }
}

/// Text as it stands inside the quotes of a JSON string.
#[derive(Debug, Default)]
struct Escaped(Vec<u8>);

impl Escaped {
    /// Appends `text`, which is also written to `json` as a string of its own.
    fn push(&mut self, text: &str, json: &mut Vec<u8>) {
        let start = json.len();
        json::write(json, text);
        self.0.extend_from_slice(&json[start + 1..json.len() - 1]);
    }

    /// The text itself.
    fn plain(&self) -> String {
        let mut json = Vec::with_capacity(self.0.len() + 2);
        self.write(&mut json);
        serde_json::from_slice(&json).expect("what was escaped here can be read again")
    }

    fn write(&self, json: &mut Vec<u8>) {
        json.push(b'"');
        json.extend_from_slice(&self.0);
        json.push(b'"');
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// As much of a text as one delta takes, and the rest.
fn split_delta(text: &str) -> (&str, &str) {
    text.split_at(text.floor_char_boundary(MAX_DELTA_BYTES))
}

/// The members that say which item an event is about.
fn place(event: &mut Object<'_>, id: &str, index: usize) {
    event.value("item_id", id);
    event.value("output_index", &index);
}

fn write_content(item: &mut Object<'_>, part: Option<&Part>) {
    let json = item.name("content");
    json.push(b'[');
    if let Some(part) = part {
        part.write(json);
    }
    json.push(b']');
}

fn write_logprobs(json: &mut Vec<u8>, logprobs: &[TokenLogprob]) {
    for (index, token) in logprobs.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        let mut entry = Object::open(json);
        entry.value("token", &token.token);
        entry.value("logprob", &number(token.logprob));
        entry.value("bytes", &token.bytes);
        let top = entry.name("top_logprobs");
        top.push(b'[');
        for (
            index,
            TopLogprob {
                token,
                bytes,
                logprob,
            },
        ) in token.top.iter().enumerate()
        {
            if index > 0 {
                top.push(b',');
            }
            let mut entry = Object::open(top);
            entry.value("token", token);
            entry.value("logprob", &number(*logprob));
            entry.value("bytes", bytes);
            entry.close();
        }
        top.push(b']');
        entry.close();
    }
}

/// JSON has no infinity: like the public service, -9999 stands for no probability at all.
fn number(logprob: f32) -> f32 {
    if logprob.is_finite() {
        logprob
    } else {
        -9999.0
    }
}
