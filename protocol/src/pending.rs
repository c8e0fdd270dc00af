//! Pending calls: which calls the input of a turn must answer, and which it may.
//!
//! Calls are carried from link to link, so no check ever walks a chain. A call that may wait
//! stays until it is answered: one of an `async` tool, or one that was cut off, whose output is
//! accepted and not missed.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde::Deserialize;

use crate::chain::{CallKind, PendingCall, PendingCalls};
use crate::failure::Failure;
use crate::field::Path;
use crate::item::{Item, ItemKind};

/// The input, which stands at `list`, with every output that names a function instead of a call
/// bound to the one open call of that name.
pub(crate) fn name_calls(
    parent: &PendingCalls,
    input: Arc<[Item]>,
    list: Path<'_>,
) -> Result<Arc<[Item]>, Failure> {
    if input.iter().all(|item| !is_nameless(item)) {
        return Ok(input);
    }
    // Calls by id, so that one that is repeated in the input is one call.
    let mut calls: HashMap<Arc<str>, Arc<str>> = HashMap::new();
    for call in parent.iter().filter(|call| call.kind == CallKind::Function) {
        calls.insert(Arc::clone(&call.call_id), Arc::clone(&call.name));
    }
    for item in &*input {
        if let (Some(CallKind::Function), Some(call_id)) = (call_kind(item), item.call_id()) {
            calls.insert(Arc::clone(call_id), Said::by(item).name());
        }
    }
    for item in input.iter().filter(|item| output_kind(item).is_some()) {
        item.call_id().map(|call_id| calls.remove(call_id));
    }
    let mut open: HashMap<Arc<str>, Vec<Arc<str>>> = HashMap::new();
    for (call_id, name) in calls {
        open.entry(name).or_default().push(call_id);
    }
    let bind = |(index, item): (usize, &Item)| {
        if !is_nameless(item) {
            return Ok(item.clone());
        }
        match open.remove(&Said::by(item).name()).as_deref() {
            Some([call_id]) => Ok(item.clone().with_call_id(Arc::clone(call_id))),
            _ => {
                let path = Path::Index(&list, index);
                let path = Path::Member(&path, "call_id");
                Err(Failure::missing_required_parameter(path))
            }
        }
    };
    input.iter().enumerate().map(bind).collect()
}

/// Whether it is an output without the id of its call.
fn is_nameless(item: &Item) -> bool {
    output_kind(item).is_some() && item.call_id().is_none()
}

/// What is left of a parent's pending calls after `input`, which may answer them, bring calls
/// with their outputs, or repeat calls that the parent has already.
///
/// Calls with the same id are bound to outputs one to one. The order of the items is free.
pub(crate) fn answer(parent: &PendingCalls, input: &[Item]) -> Result<PendingCalls, Failure> {
    let orphan = |kind, call_id: &str| Some(Failure::orphan_tool_output(kind, call_id));
    let left = left_open(parent, input, orphan)?;
    nothing_missing(left.iter())?;
    Ok(left)
}

/// The same for an input that need not answer anything. `orphan` says whether an output that
/// answers no call is a failure.
pub(crate) fn left_open(
    parent: &PendingCalls,
    input: &[Item],
    orphan: impl Fn(CallKind, &str) -> Option<Failure>,
) -> Result<PendingCalls, Failure> {
    let concerned = |item: &Item| call_kind(item).is_some() || output_kind(item).is_some();
    if !input.iter().any(concerned) {
        // The very list, not a copy: it may be long, and every later link would have its own.
        return Ok(parent.clone());
    }
    let mut calls: Vec<Option<PendingCall>> = parent.iter().cloned().map(Some).collect();
    let mut open: HashMap<(CallKind, &str), VecDeque<usize>> = HashMap::new();
    for (index, call) in parent.iter().enumerate() {
        open.entry((call.kind, &call.call_id))
            .or_default()
            .push_back(index);
    }
    // Some clients send the assistant's calls again although the parent has them.
    let mut repeatable: HashMap<(CallKind, &str), usize> = open
        .iter()
        .map(|(&key, indexes)| (key, indexes.len()))
        .collect();
    for item in input {
        if let (Some(kind), Some(call_id)) = (call_kind(item), item.call_id()) {
            match repeatable.get_mut(&(kind, &**call_id)) {
                Some(times @ 1..) => *times -= 1,
                _ => {
                    open.entry((kind, call_id))
                        .or_default()
                        .push_back(calls.len());
                    let said = Said::by(item);
                    calls.push(Some(PendingCall {
                        call_id: call_id.clone(),
                        kind,
                        name: said.name(),
                        may_wait: said.may_wait(),
                    }));
                }
            }
        }
    }
    for item in input {
        if let (Some(kind), Some(call_id)) = (output_kind(item), item.call_id()) {
            match open
                .get_mut(&(kind, &**call_id))
                .and_then(VecDeque::pop_front)
            {
                Some(answered) => calls[answered] = None,
                None => {
                    if let Some(failure) = orphan(kind, call_id) {
                        return Err(failure);
                    }
                }
            }
        }
    }
    Ok(calls.into_iter().flatten().collect())
}

fn nothing_missing<'c>(mut calls: impl Iterator<Item = &'c PendingCall>) -> Result<(), Failure> {
    match calls.find(|call| !call.may_wait) {
        Some(call) => Err(Failure::missing_tool_output(call.kind, &call.call_id)),
        None => Ok(()),
    }
}

fn call_kind(item: &Item) -> Option<CallKind> {
    match item.kind() {
        ItemKind::FunctionCall => Some(CallKind::Function),
        ItemKind::CustomToolCall => Some(CallKind::Custom),
        _ => None,
    }
}

fn output_kind(item: &Item) -> Option<CallKind> {
    match item.kind() {
        ItemKind::FunctionCallOutput => Some(CallKind::Function),
        ItemKind::CustomToolCallOutput => Some(CallKind::Custom),
        _ => None,
    }
}

/// What a client says of a call or its output, as far as it matters here.
#[derive(Default, Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    status: Option<Cow<'a, str>>,
    r#async: Option<bool>,
}

impl<'a> Said<'a> {
    fn by(item: &'a Item) -> Self {
        serde_json::from_slice(item.raw()).unwrap_or_default()
    }

    /// Empty if there is none.
    fn name(&self) -> Arc<str> {
        Arc::from(self.name.as_deref().unwrap_or_default())
    }

    /// Whether the call was cut off, or made by an `async` tool.
    fn may_wait(&self) -> bool {
        self.status.as_deref() == Some("incomplete") || self.r#async == Some(true)
    }
}
