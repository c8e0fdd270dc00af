//! Item: what a conversation is made of. Items are raw JSON; here are the few that every caller
//! writes, and the ones that a caller has to act on.

use serde::Deserialize;
use serde_json::json;

use crate::json::Json;

/// A call of one of the caller's tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What the output has to name.
    pub call_id: String,
    /// The tool.
    pub name: String,
    /// JSON for a function; any text for a custom tool.
    pub arguments: String,
    /// Whether it is a custom tool, whose output is [`custom_tool_output`].
    pub custom: bool,
    /// The whole item.
    pub item: Json,
}

#[derive(Deserialize)]
struct CallMembers {
    #[serde(rename = "type")]
    kind: String,
    call_id: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
    input: Option<String>,
}

impl Call {
    /// Reads a finished `function_call` or `custom_tool_call`; nothing if it is another item.
    pub fn read(item: &Json) -> Option<Self> {
        let members: CallMembers = item.to().ok()?;
        let (arguments, custom) = match &*members.kind {
            "function_call" => (members.arguments, false),
            "custom_tool_call" => (members.input, true),
            _ => return None,
        };
        Some(Self {
            call_id: members.call_id?,
            name: members.name?,
            arguments: arguments.unwrap_or_default(),
            custom,
            item: item.clone(),
        })
    }
}

/// A message of the user.
pub fn user(text: &str) -> Json {
    json!({"type": "message", "role": "user", "content": text}).into()
}

/// A message of the developer, which used to be called the system's.
pub fn developer(text: &str) -> Json {
    json!({"type": "message", "role": "developer", "content": text}).into()
}

/// What a function gave back.
pub fn function_output(call_id: &str, output: &str) -> Json {
    json!({"type": "function_call_output", "call_id": call_id, "output": output}).into()
}

/// What a custom tool gave back.
pub fn custom_tool_output(call_id: &str, output: &str) -> Json {
    json!({"type": "custom_tool_call_output", "call_id": call_id, "output": output}).into()
}

/// The type of an item. A message may come without one.
pub(crate) fn kind(item: &Json) -> String {
    item.string("type").unwrap_or_else(|| "message".to_owned())
}
