//! Conversations of a random play: one turn at a time goes on with each.

use std::collections::BTreeMap;

use turnwire_protocol::action::TurnKey;
use turnwire_protocol::chain::Chain;
use turnwire_protocol::id::ConversationId;
use turnwire_protocol::session::OpenedConversation;
use turnwire_protocol::stored::StoredResponse;

#[derive(Default)]
pub(super) struct Conversations {
    /// What each one ends with that has items.
    chains: BTreeMap<ConversationId, Chain>,
    locks: BTreeMap<TurnKey, ConversationId>,
}

impl Conversations {
    /// Locks a conversation for a turn, unless another one has it.
    pub(super) fn open(&mut self, turn: TurnKey, id: ConversationId) -> OpenedConversation {
        if self.locks.values().any(|locked| *locked == id) {
            return OpenedConversation::Locked;
        }
        let chain = self.chains.get(&id).cloned();
        self.locks.insert(turn, id);
        OpenedConversation::Open(chain)
    }

    /// A turn in a conversation goes on with it from where it is, once it can be continued.
    pub(super) fn check(&self, turn: TurnKey, record: &StoredResponse) {
        let locked = self.locks.get(&turn);
        let locked = locked.filter(|_| record.status.is_continuable());
        let step = record.conversation.as_ref();
        assert_eq!(step.map(|step| &step.id), locked, "another conversation");
        if let Some(step) = step {
            let now = self.chains.get(&step.id).map(Chain::id);
            assert_eq!(step.from.as_ref(), now, "not from where it is");
            let parent = record.chain.parent().map(Chain::id);
            let begins_anew = record.chain.turns() == 1;
            assert!(parent == now || begins_anew, "behind {parent:?}");
        }
    }

    pub(super) fn advance(&mut self, record: &StoredResponse) {
        if let Some(step) = &record.conversation {
            self.chains.insert(step.id.clone(), record.chain.clone());
        }
    }

    /// A turn has ended, however it did.
    pub(super) fn unlock(&mut self, turn: TurnKey) {
        self.locks.remove(&turn);
    }
}
