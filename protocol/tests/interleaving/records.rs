//! What a store holds of responses: of one in the background never less than a client was told.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use turnwire_protocol::stored::{Status, StoredResponse};

#[derive(Default)]
pub(super) struct Records {
    /// How far each response is, as it was stored last.
    stored: BTreeMap<String, Status>,
    /// Responses of which something could not be stored.
    lost: BTreeSet<String>,
}

impl Records {
    /// Something is to be stored, and waited for.
    pub(super) fn check(&self, record: &StoredResponse) {
        let before = self.stored.get(record.id.as_str());
        let goes_on = match record.status {
            Status::Queued => before.is_none(),
            Status::InProgress => false,
            Status::Completed | Status::Incomplete => {
                matches!(before, None | Some(Status::InProgress))
            }
            Status::Failed | Status::Cancelled => {
                matches!(before, Some(Status::Queued | Status::InProgress))
            }
        };
        assert!(goes_on, "from {before:?} to {:?}", record.status);
    }

    /// Something is stored that nobody waits for.
    pub(super) fn follow_progress(&mut self, record: &StoredResponse) {
        assert_eq!(record.status, Status::InProgress);
        let before = self.stored.insert(record.id.to_string(), record.status);
        assert_eq!(before, Some(Status::Queued), "it is not to be begun");
    }

    /// The store has answered.
    pub(super) fn follow_answer(&mut self, record: &StoredResponse, is_stored: bool) {
        let id = record.id.to_string();
        if is_stored {
            self.stored.insert(id, record.status);
        } else {
            self.lost.insert(id);
        }
    }

    /// A client hears of a response.
    pub(super) fn follow_event(&self, json: &Value) {
        let response = &json["response"];
        if response["background"] != true {
            return;
        }
        let id = response["id"].as_str().expect("a response has an id");
        let told = response["status"].as_str().expect("and a status");
        let stored = self.stored.get(id).map(|status| status.as_str());
        let gave_up = told == "failed" && self.lost.contains(id);
        assert!(stored == Some(told) || gave_up, "{stored:?} is stored");
    }

    /// Nothing runs any longer.
    pub(super) fn end(&self) {
        for (id, status) in &self.stored {
            let ended = status.is_final() || self.lost.contains(id);
            assert!(ended, "{id} stays {status:?}");
        }
    }
}
