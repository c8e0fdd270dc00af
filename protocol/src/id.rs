//! Response, item and call ids. The protocol prints them; the caller mints the numbers.

use std::fmt;
use std::sync::Arc;

/// Where unique numbers come from. The server draws UUIDs of version 7, tests count upwards.
pub trait IdSource {
    /// A number that was never given out before and cannot be guessed from others.
    fn mint(&mut self) -> u128;
}

/// The id of a response, `resp_` and 32 hexadecimal digits when it is ours.
///
/// A client may name any string; one that is not ours is simply not found.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResponseId(Arc<str>);

impl ResponseId {
    pub fn mint(ids: &mut dyn IdSource) -> Self {
        Self(format!("resp_{:032x}", ids.mint()).into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ResponseId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for ResponseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ResponseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Prefixes of ids that a server gives to output items and calls.
pub const MESSAGE: &str = "msg";
pub const REASONING: &str = "rs";
pub const COMPACTION: &str = "cmp";
pub const FUNCTION_CALL: &str = "fc";
pub const CUSTOM_CALL: &str = "ctc";
pub const CALL: &str = "call";

/// An id with one of the prefixes above.
pub fn mint(prefix: &str, ids: &mut dyn IdSource) -> String {
    format!("{prefix}_{:032x}", ids.mint())
}
