//! Compaction: what a compaction item stands for, and the text that a model is shown of it.
//!
//! Inside the seal is JSON, `{"version":1,"summary":"…","messages":["…"]}`. Engines need not
//! know: [`crate::item::Item::revealed`] of a compaction item is the text of one user message
//! that takes the place of everything before it.

use serde::{Deserialize, Serialize};

use crate::seal::{Content, Sealer};

const VERSION: u32 = 1;

/// A conversation in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Compaction {
    version: u32,
    /// Made by the model.
    pub(crate) summary: String,
    /// The user's last messages, word for word, oldest first.
    pub(crate) messages: Vec<String>,
}

impl Compaction {
    /// None if it was not sealed for this owner, or by a version that is not known.
    pub(crate) fn open(sealer: &dyn Sealer, sealed: &str) -> Option<Self> {
        let json = sealer.open(Content::Compaction, sealed)?;
        let compaction: Self = serde_json::from_str(&json).ok()?;
        (compaction.version == VERSION).then_some(compaction)
    }

    /// The text of the user message that a model is shown in place of the conversation.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "This is a summary of our conversation so far:\n\n{}\n",
            self.summary.trim()
        );
        if !self.messages.is_empty() {
            text.push_str("\nMy last messages in it, word for word:\n");
        }
        for message in &self.messages {
            text.extend(["\n<message>\n", message, "\n</message>\n"]);
        }
        text.push_str("\nGo on from there.");
        text
    }
}
