//! Stored: what a store is given of a response, and who may give it.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::chain::Chain;
use crate::failure::Failure;
use crate::id::{ConversationId, ResponseId};
use crate::item::Item;
use crate::json::Object;

/// The right to have something stored.
///
/// A server with a store grants it to its sessions, a session hands it on to the turns that do not
/// say `store: false`, and nothing that a store takes can be made without it.
#[derive(Clone, Copy, Debug)]
pub struct Permit(());

impl Permit {
    /// For whoever puts a server together that has a store.
    pub fn grant() -> Self {
        Self(())
    }
}

/// How far a stored response is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    Queued,
    InProgress,
    Completed,
    Incomplete,
    Failed,
    Cancelled,
}

impl Status {
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::InProgress,
        Self::Completed,
        Self::Incomplete,
        Self::Failed,
        Self::Cancelled,
    ];

    /// As the response object says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing will change any more.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::InProgress)
    }

    /// Whether a response can be the parent of another one.
    pub fn is_continuable(self) -> bool {
        matches!(self, Self::Completed | Self::Incomplete)
    }
}

/// A response as a store keeps it. One that is stored under the same id is replaced, as long as
/// its status is not final.
#[derive(Clone, Debug)]
pub struct StoredResponse {
    pub id: ResponseId,
    pub status: Status,
    /// Seconds since 1970.
    pub created_at: u64,
    pub text: ResponseText,
    /// Its items and those of its parents.
    pub chain: Chain,
    /// The conversation that goes on with `chain` once this is stored.
    pub conversation: Option<ConversationStep>,
    _permit: Permit,
}

/// A conversation on its way to a response that was made in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversationStep {
    pub id: ConversationId,
    /// What it ended with when the response was begun; none if it had no items. Nothing is stored
    /// if it ends with anything else by now. A compaction begins a chain anew, so this need not
    /// be the parent of the response.
    pub from: Option<ResponseId>,
}

impl StoredResponse {
    /// A response that belongs to no conversation. Its id is that of the chain's last link.
    pub fn new(
        permit: Permit,
        status: Status,
        created_at: u64,
        text: ResponseText,
        chain: Chain,
    ) -> Self {
        Self {
            id: chain.id().clone(),
            status,
            created_at,
            text,
            chain,
            conversation: None,
            _permit: permit,
        }
    }
}

/// The JSON of a response object without its output items, which are those of its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseText {
    /// Up to and including the bracket that opens `output`.
    pub before: Bytes,
    /// From the bracket that closes it.
    pub after: Bytes,
}

impl ResponseText {
    /// Bytes of the text.
    pub fn size(&self) -> usize {
        self.before.len() + self.after.len()
    }

    /// The whole response object. `chain` ends with the link of the response.
    pub fn with_output_of(&self, chain: &Chain) -> Bytes {
        self.with_output(chain.output())
    }

    /// The whole response object with these output items.
    pub fn with_output(&self, items: &[Item]) -> Bytes {
        let bytes: usize = items.iter().map(|item| item.raw().len() + 1).sum();
        let mut json = Vec::with_capacity(self.size() + bytes);
        json.extend_from_slice(&self.before);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                json.push(b',');
            }
            json.extend_from_slice(item.raw());
        }
        json.extend_from_slice(&self.after);
        json.into()
    }

    /// The same response as one that failed. For those that nobody can finish any more; none if
    /// this is no response object.
    pub fn failed(&self, failure: &Failure) -> Option<Self> {
        let whole = [&self.before[..], &self.after].concat();
        let mut response: Map<String, Value> = serde_json::from_slice(&whole).ok()?;
        response.insert("status".into(), Status::Failed.as_str().into());
        let error = json!({"code": failure.response_error_code(), "message": failure.message});
        response.insert("error".into(), error);
        let mut text = Vec::with_capacity(whole.len());
        let mut bracket = None;
        let mut object = Object::open(&mut text);
        for (name, value) in &response {
            if name == "output" {
                let out = object.name(name);
                out.push(b'[');
                bracket = Some(out.len());
                out.push(b']');
            } else {
                object.value(name, value);
            }
        }
        object.close();
        let after = text.split_off(bracket?);
        Some(Self {
            before: text.into(),
            after: after.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_can_finish_is_shown_as_failed() {
        let text = ResponseText {
            before: Bytes::from_static(
                br#"{"id":"resp_1","status":"queued","error":null,"metadata":{"output":"[]"},"output":["#,
            ),
            after: Bytes::from_static(br#"],"usage":null}"#),
        };
        let failed = text
            .failed(&Failure::server_error("It stopped."))
            .expect("an object");
        assert!(failed.before.ends_with(br#""output":["#), "{failed:?}");
        let whole = [&failed.before[..], &failed.after].concat();
        let whole: Value = serde_json::from_slice(&whole).expect("JSON");
        assert_eq!(whole["status"], "failed");
        assert_eq!(
            whole["error"],
            json!({"code": "server_error", "message": "It stopped."})
        );
        assert_eq!(whole["metadata"], json!({"output": "[]"}));
        let broken = ResponseText {
            before: Bytes::new(),
            ..text
        };
        assert_eq!(broken.failed(&Failure::server_error("")), None);
    }
}
