//! Chain: shared, append-only history. A fork is a second pointer to the same link.
//!
//! A link holds one response's own input and output items and a pointer to its parent, so a
//! turn adds what is new and copies nothing. What must be known about all of the history
//! (calls that wait for an output, size) is carried from link to link, never searched for.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::id::ResponseId;
use crate::item::Item;
use crate::standing::Standing;

/// A response together with everything before it. Cloning it is one reference count.
#[derive(Clone)]
pub struct Chain(Arc<Link>);

/// One response's own part of a chain.
struct Link {
    id: ResponseId,
    parent: Option<Chain>,
    /// The input of the request, where that is not what a model is shown. Empty if it is.
    asked: Arc<[Item]>,
    input: Arc<[Item]>,
    output: Arc<[Item]>,
    carried: Carried,
    turns: u64,
    bytes: u64,
    engine_state: OnceLock<EngineState>,
}

/// Tells links apart as long as they live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LinkAddress(usize);

/// What an engine keeps for a link: token ids, a cache position, an upstream id.
///
/// Opaque here. The engine downcasts it, and frees what it stands for when it is dropped,
/// which happens with the last reference to the link.
#[derive(Clone)]
pub struct EngineState(Arc<dyn Any + Send + Sync>);

/// What must be known of all of a chain, so that it never has to be searched.
#[derive(Clone, Debug, Default)]
pub struct Carried {
    pub pending_calls: PendingCalls,
    pub standing: Standing,
}

/// Calls of a chain that no item has answered yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PendingCalls(Arc<[PendingCall]>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingCall {
    pub call_id: Arc<str>,
    pub kind: CallKind,
    /// Name of the tool, without its namespace.
    pub name: Arc<str>,
    /// A call of a tool marked `async`: its output may come in any later turn.
    pub may_wait: bool,
}

/// Which kind of output item answers a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallKind {
    Function,
    Custom,
}

impl Chain {
    /// A new link behind `parent`. What is carried is that of the whole chain, this link included.
    pub fn append(
        parent: Option<Self>,
        id: ResponseId,
        input: Arc<[Item]>,
        output: Arc<[Item]>,
        carried: Carried,
        engine_state: Option<EngineState>,
    ) -> Self {
        let asked = Arc::new([]);
        Self::link(parent, id, asked, input, output, carried, engine_state)
    }

    /// The first link of a chain that takes the place of another one. Its output begins with a
    /// compaction item, which stands for that chain and for `asked`, the input of the request.
    /// `input` is what has to be shown in front of it all the same.
    pub fn compacted(
        asked: Arc<[Item]>,
        id: ResponseId,
        input: Arc<[Item]>,
        output: Arc<[Item]>,
        carried: Carried,
        engine_state: Option<EngineState>,
    ) -> Self {
        Self::link(None, id, asked, input, output, carried, engine_state)
    }

    fn link(
        parent: Option<Self>,
        id: ResponseId,
        asked: Arc<[Item]>,
        input: Arc<[Item]>,
        output: Arc<[Item]>,
        carried: Carried,
        engine_state: Option<EngineState>,
    ) -> Self {
        let items = asked.iter().chain(&*input).chain(&*output);
        let items: usize = items.map(Item::size).sum();
        let before = parent.as_ref().map(|parent| &parent.0.carried);
        let own = items + carried.size_beside(before);
        let (turns, bytes) = parent.as_ref().map_or((0, 0), |p| (p.0.turns, p.0.bytes));
        let slot = OnceLock::new();
        if let Some(state) = engine_state {
            let _ = slot.set(state);
        }
        Self(Arc::new(Link {
            id,
            parent,
            asked,
            input,
            output,
            carried,
            turns: turns + 1,
            bytes: bytes + own as u64,
            engine_state: slot,
        }))
    }

    pub fn id(&self) -> &ResponseId {
        &self.0.id
    }

    pub fn parent(&self) -> Option<&Self> {
        self.0.parent.as_ref()
    }

    /// This response's own input items, without those of its parents.
    pub fn input(&self) -> &Arc<[Item]> {
        &self.0.input
    }

    /// The input of this response's own request. The same, unless that was compacted.
    pub fn asked(&self) -> &Arc<[Item]> {
        match &*self.0.asked {
            [] => &self.0.input,
            _ => &self.0.asked,
        }
    }

    /// This response's own output items.
    pub fn output(&self) -> &Arc<[Item]> {
        &self.0.output
    }

    pub fn pending_calls(&self) -> &PendingCalls {
        &self.0.carried.pending_calls
    }

    pub fn carried(&self) -> &Carried {
        &self.0.carried
    }

    /// The calls that the next input must answer.
    pub fn required_calls(&self) -> impl Iterator<Item = &PendingCall> {
        self.pending_calls().iter().filter(|call| !call.may_wait)
    }

    /// Responses in the chain, this one included. A compaction begins a new one.
    pub fn turns(&self) -> u64 {
        self.0.turns
    }

    /// Bytes of memory that the items of the chain take, and what is carried from link to link.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// The same of this response alone.
    pub fn own_bytes(&self) -> u64 {
        self.bytes() - self.parent().map_or(0, Self::bytes)
    }

    /// From this response to the first one.
    pub fn ancestry(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |chain| chain.parent())
    }

    pub fn engine_state(&self) -> Option<&EngineState> {
        self.0.engine_state.get()
    }

    /// Records what an engine found out about this link later. The first one to come stays.
    pub fn set_engine_state(&self, state: EngineState) {
        let _ = self.0.engine_state.set(state);
    }

    /// What tells this link from every other one that is alive.
    pub(crate) fn address(&self) -> LinkAddress {
        LinkAddress(Arc::as_ptr(&self.0).addr())
    }

    /// Whether both are the same link, not merely equal ones.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Chain({}, {} turns, {} bytes)",
            self.0.id, self.0.turns, self.0.bytes
        )
    }
}

impl Drop for Link {
    /// Unlinks in a loop: the default drop of a long chain would recurse once per turn.
    fn drop(&mut self) {
        let mut next = self.parent.take();
        while let Some(chain) = next {
            next = Arc::into_inner(chain.0).and_then(|mut link| link.parent.take());
        }
    }
}

impl EngineState {
    pub fn new(state: Arc<dyn Any + Send + Sync>) -> Self {
        Self(state)
    }

    /// The state, if it is of this engine's type.
    pub fn downcast<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::downcast(Arc::clone(&self.0)).ok()
    }
}

impl fmt::Debug for EngineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineState")
    }
}

impl PendingCalls {
    pub fn iter(&self) -> impl Iterator<Item = &PendingCall> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of memory that the list takes, none if it is the parent's.
    fn size_beside(&self, parent: Option<&Self>) -> usize {
        match parent {
            Some(parent) if Arc::ptr_eq(&self.0, &parent.0) => 0,
            _ => size_of_val(&*self.0),
        }
    }
}

impl Carried {
    fn size_beside(&self, parent: Option<&Self>) -> usize {
        let standing = parent.map(|parent| &parent.standing);
        let calls = parent.map(|parent| &parent.pending_calls);
        self.pending_calls.size_beside(calls) + self.standing.size_beside(standing)
    }
}

impl FromIterator<PendingCall> for PendingCalls {
    fn from_iter<I: IntoIterator<Item = PendingCall>>(calls: I) -> Self {
        Self(calls.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_of_a_million_links_is_dropped_without_recursion() {
        let none: Arc<[Item]> = Arc::new([]);
        let mut chain = None;
        for _ in 0..1_000_000 {
            let id = ResponseId::from("resp_x");
            chain = Some(Chain::append(
                chain,
                id,
                none.clone(),
                none.clone(),
                Carried::default(),
                None,
            ));
        }
        assert_eq!(chain.as_ref().map(Chain::turns), Some(1_000_000));
        drop(chain);
    }

    #[test]
    fn what_a_chain_takes_is_more_than_text_and_counted_once() {
        let tiny = Item::parse(r#"{"id":"a"}"#.into()).expect("an item");
        let call = PendingCall {
            call_id: "c".into(),
            kind: CallKind::Function,
            name: "f".into(),
            may_wait: true,
        };
        let pending: PendingCalls = std::iter::repeat_n(call, 1000).collect();
        let append = |parent: Option<&Chain>, items: &[Item]| {
            Chain::append(
                parent.cloned(),
                ResponseId::from("resp_x"),
                items.into(),
                Arc::new([]),
                Carried {
                    pending_calls: pending.clone(),
                    ..Carried::default()
                },
                None,
            )
        };
        let first = append(None, &vec![tiny; 1000]);
        let least = 1000 * (size_of::<Item>() + size_of::<PendingCall>());
        assert!(first.bytes() > least as u64, "{first:?}");
        assert_eq!(append(Some(&first), &[]).bytes(), first.bytes());
    }
}
