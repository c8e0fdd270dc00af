//! Seal: how what the server must remember is given to a client that may not read or change it.
//!
//! The text of an `encrypted_content` is made and opened by a [`Sealer`], which holds the key and
//! the owner: what was sealed for one owner opens for no other. Ciphers and keys are not here.

use std::fmt;

/// What an `encrypted_content` holds. What was sealed as one does not open as the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// What a compaction item stands for: JSON, see [`crate::compaction`].
    Compaction,
    /// The text of a reasoning item.
    Reasoning,
}

/// Seals for one owner.
pub trait Sealer: fmt::Debug + Send + Sync {
    fn seal(&self, content: Content, plain: &str) -> String;

    /// None unless a sealer for this owner has sealed it, as this content, and nobody changed it.
    fn open(&self, content: Content, sealed: &str) -> Option<String>;
}

/// Seals nothing: anyone can read what it makes, and forge it. For tests.
#[derive(Clone, Copy, Debug)]
pub struct Transparent;

impl Transparent {
    fn prefix(content: Content) -> &'static str {
        match content {
            Content::Compaction => "compaction:",
            Content::Reasoning => "reasoning:",
        }
    }
}

impl Sealer for Transparent {
    fn seal(&self, content: Content, plain: &str) -> String {
        [Self::prefix(content), plain].concat()
    }

    fn open(&self, content: Content, sealed: &str) -> Option<String> {
        sealed
            .strip_prefix(Self::prefix(content))
            .map(str::to_owned)
    }
}
