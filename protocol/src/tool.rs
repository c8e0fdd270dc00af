//! Tools and the choice among them, as far as an engine needs to know them.

use std::sync::Arc;

use bytes::Bytes;

/// The tools of one turn.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    /// The `tools` array byte for byte as the client sent it, `[]` when it sent none.
    pub raw: Bytes,
    /// The function tools in it, in order. Tools of other types are echoed but not offered.
    pub functions: Arc<[FunctionTool]>,
}

/// A tool of type `function`.
#[derive(Clone, Debug)]
pub struct FunctionTool {
    pub name: Arc<str>,
    pub description: Option<Arc<str>>,
    /// A JSON Schema object as the client sent it; none means any object.
    pub parameters: Option<Bytes>,
    pub strict: bool,
    /// `async`: the result may come in a later turn than the next one.
    pub may_wait: bool,
}

/// `tool_choice`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    #[default]
    Auto,
    None,
    Required,
    /// Exactly this function must be called.
    Function(Arc<str>),
    /// Only these functions may be called; `required` says whether one must be.
    Allowed {
        names: Arc<[Arc<str>]>,
        required: bool,
    },
}
