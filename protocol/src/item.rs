//! Item: the bytes a client sent or an engine made, plus the three members everybody asks for.
//!
//! An item is never re-serialised. Unknown types and unknown members pass through untouched.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, de};
use serde_json::value::RawValue;

use crate::failure::Failure;
use crate::field::{Field, Path, members};
use crate::json;

/// One input or output item. Cloning it copies pointers.
#[derive(Clone, Debug)]
pub struct Item {
    raw: Bytes,
    kind: ItemKind,
    id: Option<Arc<str>>,
    call_id: Option<Arc<str>>,
    /// Whether `call_id` was found out and does not stand in `raw`.
    is_bound: bool,
    revealed: Option<Arc<str>>,
}

/// The item types that the server treats in a way of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemKind {
    Message,
    FunctionCall,
    FunctionCallOutput,
    CustomToolCall,
    CustomToolCallOutput,
    Reasoning,
    ItemReference,
    /// A summary that stands for everything before it.
    Compaction,
    /// Asks for a compaction; the last item of an input.
    CompactionTrigger,
    /// Tools that are offered from here on.
    AdditionalTools,
    /// Settings that hold from here on.
    ConfigurationUpdate,
    /// Any other type: kept and passed on, not interpreted.
    Other,
}

#[derive(Deserialize)]
struct Header<'a> {
    #[serde(rename = "type", borrow, default)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    role: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    call_id: Option<Cow<'a, str>>,
}

members! { IdMembers { id } }

/// Whose messages there are.
const ROLES: [&str; 4] = ["user", "assistant", "system", "developer"];

/// Why some bytes are not an item.
#[derive(Debug, thiserror::Error)]
pub enum NotAnItem {
    /// Not one JSON object, or `type`, `role`, `id` or `call_id` is no string or comes twice.
    #[error("not an item: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("not an item: it has no type")]
    Untyped,
    /// A message of nobody who takes part in a conversation.
    #[error("not an item: its role is unknown")]
    UnknownRole,
}

impl Item {
    /// Reads the header of one JSON object, which starts at the first byte. `raw` is kept as it is.
    pub fn parse(raw: Bytes) -> Result<Self, NotAnItem> {
        // Serde would read an array as a struct, too.
        if raw.first() != Some(&b'{') {
            return Err(NotAnItem::Malformed(de::Error::custom(
                "expected an object",
            )));
        }
        let header: Header<'_> = serde_json::from_slice(&raw)?;
        let kind = match header.kind.as_deref() {
            Some("message") => ItemKind::Message,
            Some("function_call") => ItemKind::FunctionCall,
            Some("function_call_output") => ItemKind::FunctionCallOutput,
            Some("custom_tool_call") => ItemKind::CustomToolCall,
            Some("custom_tool_call_output") => ItemKind::CustomToolCallOutput,
            Some("reasoning") => ItemKind::Reasoning,
            Some("item_reference") => ItemKind::ItemReference,
            Some("compaction") => ItemKind::Compaction,
            Some("compaction_trigger") => ItemKind::CompactionTrigger,
            Some("additional_tools") => ItemKind::AdditionalTools,
            Some("configuration_update") => ItemKind::ConfigurationUpdate,
            Some(_) => ItemKind::Other,
            None if header.role.is_some() => ItemKind::Message,
            None if header.id.is_some() => ItemKind::ItemReference,
            None => return Err(NotAnItem::Untyped),
        };
        let role = header.role.as_deref().filter(|_| kind == ItemKind::Message);
        if role.is_some_and(|role| !ROLES.contains(&role)) {
            return Err(NotAnItem::UnknownRole);
        }
        let id = header.id.map(|id| Arc::from(&*id));
        let call_id = header.call_id.map(|id| Arc::from(&*id));
        Ok(Self {
            raw,
            kind,
            id,
            call_id,
            is_bound: false,
            revealed: None,
        })
    }

    /// An item made here.
    pub(crate) fn new(raw: Bytes, kind: ItemKind, id: &str, call_id: Option<Arc<str>>) -> Self {
        Self {
            raw,
            kind,
            id: Some(id.into()),
            call_id,
            is_bound: false,
            revealed: None,
        }
    }

    /// The same item with what its `encrypted_content` says.
    #[must_use]
    pub fn with_revealed(self, plain: &str) -> Self {
        Self {
            revealed: Some(plain.into()),
            ..self
        }
    }

    /// The same item with bytes of its own. An item is a slice of the message it came in and keeps
    /// all of that alive, so one that outlives its neighbours must not stay such a slice.
    pub fn detached(&self) -> Self {
        Self {
            raw: Bytes::copy_from_slice(&self.raw),
            ..self.clone()
        }
    }

    /// The same item as the answer to this call, which it does not name itself.
    pub(crate) fn with_call_id(self, call_id: Arc<str>) -> Self {
        Self {
            call_id: Some(call_id),
            is_bound: true,
            ..self
        }
    }

    /// The same item with this id in its text.
    pub(crate) fn with_id(&self, id: &str) -> Self {
        if self.id() == Some(id) {
            return self.clone();
        }
        let members: IdMembers<'_> =
            serde_json::from_slice(&self.raw).expect("an item is one JSON object");
        let mut raw = Vec::with_capacity(self.raw.len() + id.len() + 8);
        match members.id {
            Some(old) => {
                let begin = old.get().as_ptr().addr() - self.raw.as_ptr().addr();
                raw.extend_from_slice(&self.raw[..begin]);
                json::write(&mut raw, id);
                raw.extend_from_slice(&self.raw[begin + old.get().len()..]);
            }
            // There is another member, without which it were no item.
            None => {
                raw.extend_from_slice(b"{\"id\":");
                json::write(&mut raw, id);
                raw.push(b',');
                raw.extend_from_slice(&self.raw[1..]);
            }
        }
        Self {
            raw: raw.into(),
            id: Some(id.into()),
            ..self.clone()
        }
    }

    /// Whether it answers a call that it does not name itself.
    pub(crate) fn is_bound(&self) -> bool {
        self.is_bound
    }

    /// What the `encrypted_content` says, if the item has one that this server has opened.
    pub fn revealed(&self) -> Option<&str> {
        self.revealed.as_deref()
    }

    /// The JSON object, byte for byte as it came.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// The object for typed reading, standing at `path`.
    pub(crate) fn field<'p>(&self, path: Path<'p>) -> Result<Field<'_, 'p>, Failure> {
        match serde_json::from_slice::<&RawValue>(&self.raw) {
            Ok(raw) => Ok(Field { raw, path }),
            Err(error) => Err(Failure::invalid_value(path, error)),
        }
    }

    /// Bytes of memory that it takes: of many small items, the most part is not their text.
    pub(crate) fn size(&self) -> usize {
        let texts = [&self.id, &self.call_id, &self.revealed];
        let texts = texts.into_iter().flatten();
        size_of::<Self>() + self.raw.len() + texts.map(|text| text.len()).sum::<usize>()
    }

    pub fn kind(&self) -> ItemKind {
        self.kind
    }

    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    pub fn call_id(&self) -> Option<&Arc<str>> {
        self.call_id.as_ref()
    }
}
