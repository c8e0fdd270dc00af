//! Pending calls: which calls the input of a turn must answer, and which it may.
//!
//! Calls are carried from link to link, so no check ever walks a chain. A call that may wait
//! stays until it is answered: one of an `async` tool, or one that was cut off, whose output is
//! accepted and not missed.

use std::collections::{HashMap, VecDeque};

use serde::Deserialize;

use crate::chain::{CallKind, PendingCall, PendingCalls};
use crate::failure::Failure;
use crate::item::{Item, ItemKind};

/// What is left of a parent's pending calls after `input`, which may answer them, bring calls
/// with their outputs, or repeat calls that the parent has already.
///
/// Calls with the same id are bound to outputs one to one. The order of the items is free.
pub(crate) fn answer(parent: &PendingCalls, input: &[Item]) -> Result<PendingCalls, Failure> {
    let concerned = |item: &Item| call_kind(item).is_some() || output_kind(item).is_some();
    if !input.iter().any(concerned) {
        // The very list, not a copy: it may be long, and every later link would have its own.
        return nothing_missing(parent.iter()).map(|()| parent.clone());
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
                    calls.push(Some(PendingCall {
                        call_id: call_id.clone(),
                        kind,
                        may_wait: may_wait(item),
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
                None => return Err(Failure::orphan_tool_output(kind, call_id)),
            }
        }
    }
    nothing_missing(calls.iter().flatten())?;
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

/// Whether a call that a client sent was cut off, or made by an `async` tool.
fn may_wait(call: &Item) -> bool {
    #[derive(Deserialize)]
    struct Call<'a> {
        #[serde(borrow)]
        status: Option<&'a str>,
        r#async: Option<bool>,
    }
    serde_json::from_slice::<Call<'_>>(call.raw())
        .is_ok_and(|call| call.status == Some("incomplete") || call.r#async == Some(true))
}
