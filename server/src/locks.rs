//! Locks: which conversations somebody works on, a turn or a request that changes items.
//!
//! They are those of this server. What another server does to a conversation meanwhile shows when
//! the store is asked to go on from where the work began.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use turnwire_protocol::id::ConversationId;

use crate::auth::Tenant;

/// As many as there are turns and requests at work.
#[derive(Debug, Default)]
pub(crate) struct ConversationLocks(Mutex<HashSet<Key>>);

type Key = (Tenant, ConversationId);

/// Holds a conversation until it is dropped.
#[derive(Debug)]
pub(crate) struct ConversationLock {
    locks: Arc<ConversationLocks>,
    key: Key,
}

impl ConversationLocks {
    /// None if somebody works on the conversation already.
    pub(crate) fn lock(
        locks: &Arc<Self>,
        owner: Tenant,
        id: &ConversationId,
    ) -> Option<ConversationLock> {
        let key = (owner, id.clone());
        let is_free = locks.held().insert(key.clone());
        let locks = Arc::clone(locks);
        is_free.then(|| ConversationLock { locks, key })
    }

    fn held(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ConversationLock {
    fn drop(&mut self) {
        self.locks.held().remove(&self.key);
    }
}
