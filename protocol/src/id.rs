//! Response, item and call ids. The protocol prints them; the caller mints the numbers.

use std::fmt;
use std::sync::Arc;

use crate::item::ItemKind;

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

/// The id of a conversation, `conv_` and 32 hexadecimal digits when it is ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConversationId(Arc<str>);

impl ConversationId {
    pub fn mint(ids: &mut dyn IdSource) -> Self {
        Self(mint("conv", ids).into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ConversationId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

/// Prefixes of ids that a server gives to output items and calls.
pub const MESSAGE: &str = "msg";
pub const REASONING: &str = "rs";
pub const COMPACTION: &str = "cmp";
pub const FUNCTION_CALL: &str = "fc";
pub const CUSTOM_CALL: &str = "ctc";
pub const CALL: &str = "call";

/// The prefix of the id of an accepted steer.
pub const STEER: &str = "steer";

/// An id with one of these prefixes.
pub fn mint(prefix: &str, ids: &mut dyn IdSource) -> String {
    format!("{prefix}_{:032x}", ids.mint())
}

/// The id by which an item without one is listed: it stands at `place` among a response's own
/// items, those of its request before those it made.
pub fn of_place(response: &ResponseId, place: usize, kind: ItemKind) -> String {
    let prefix = match kind {
        ItemKind::Message => MESSAGE,
        ItemKind::FunctionCall => FUNCTION_CALL,
        ItemKind::FunctionCallOutput => "fco",
        ItemKind::CustomToolCall => CUSTOM_CALL,
        ItemKind::CustomToolCallOutput => "ctco",
        ItemKind::Reasoning => REASONING,
        ItemKind::Compaction => "cmp",
        _ => "item",
    };
    let response = response.as_str();
    let number = response.strip_prefix("resp_").unwrap_or(response);
    format!("{prefix}_{number}_{place}")
}

/// The response and the place that such an id stands for.
pub fn read_place(id: &str) -> Option<(ResponseId, usize)> {
    let (_, rest) = id.split_once('_')?;
    let (number, place) = rest.rsplit_once('_')?;
    let response = ResponseId::from(format!("resp_{number}").as_str());
    Some((response, place.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_place_says_which_place_it_is() {
        let response = ResponseId::from("resp_2");
        let id = of_place(&response, 1, ItemKind::FunctionCallOutput);
        assert_eq!(id, "fco_2_1");
        assert_eq!(read_place(&id), Some((response, 1)));
        for other in ["msg_said", "msg", "", "msg_1_x"] {
            assert_eq!(read_place(other), None, "{other}");
        }
    }
}
