//! Tools and the choice among them, as far as an engine needs to know them.

mod choice;
mod reading;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::field::Path;
use crate::item::{Item, ItemKind};

pub(crate) use self::choice::ChoiceRequest;
pub(crate) use self::reading::ToolsRead;

/// The tools of one turn.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The `tools` array byte for byte as the client sent it, `[]` when it sent none.
    pub raw: Bytes,
    /// The tools in it that the model is offered, in order: functions and custom tools, those of
    /// namespaces included. Tools of other types are echoed but not offered.
    pub offered: Arc<[Tool]>,
}

impl Default for Tools {
    fn default() -> Self {
        Self {
            raw: Bytes::from_static(b"[]"),
            offered: Arc::default(),
        }
    }
}

impl Tools {
    /// The tools that an `additional_tools` item offers; none of any other item.
    pub fn of_item(item: &Item) -> Self {
        if item.kind() != ItemKind::AdditionalTools {
            return Self::default();
        }
        // What is wrong with it was said when it came in.
        ToolsRead::of_item(item, Path::Name("item"), false)
            .map_or_else(|_| Self::default(), |read| read.tools)
    }
}

/// A tool that the model may call and the client runs.
#[derive(Clone, Debug)]
pub struct Tool {
    pub name: ToolName,
    pub description: Option<Arc<str>>,
    pub kind: ToolKind,
    /// `async`: the result may come in a later turn than the next one.
    pub may_wait: bool,
    /// Where the request that brought it says all this, such as `tools[3]`; for messages.
    pub path: Arc<str>,
}

impl Tool {
    /// A function that is all of `tools`, with nothing said of it but its name and parameters.
    pub fn function(name: &str, parameters: Option<Bytes>) -> Self {
        Self {
            name: name.into(),
            description: None,
            kind: ToolKind::Function {
                parameters,
                strict: false,
            },
            may_wait: false,
            path: "tools[0]".into(),
        }
    }

    /// The same tool with bytes of its own.
    pub(crate) fn detached(&self) -> Self {
        let kind = match &self.kind {
            ToolKind::Function { parameters, strict } => ToolKind::Function {
                parameters: parameters.as_deref().map(Bytes::copy_from_slice),
                strict: *strict,
            },
            custom @ ToolKind::Custom(_) => custom.clone(),
        };
        Self {
            kind,
            ..self.clone()
        }
    }

    pub fn is_function(&self) -> bool {
        matches!(self.kind, ToolKind::Function { .. })
    }
}

/// What a call names. Equal names in different namespaces are different tools.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ToolName {
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
}

#[derive(Clone, Debug)]
pub enum ToolKind {
    Function {
        /// A JSON Schema object as the client sent it; none means any object.
        parameters: Option<Bytes>,
        strict: bool,
    },
    /// The model writes free text rather than JSON arguments.
    Custom(CustomFormat),
}

/// What the input of a custom tool is held to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CustomFormat {
    Text,
    /// A grammar in Lark's notation.
    Lark(Arc<str>),
    /// A regular expression that the whole input matches.
    Regex(Arc<str>),
}

impl From<&str> for ToolName {
    /// A name outside all namespaces.
    fn from(name: &str) -> Self {
        Self {
            namespace: None,
            name: name.into(),
        }
    }
}

impl ToolName {
    /// The one word by which a model calls it: the name, behind its namespace and two underscores
    /// if it has one.
    pub fn qualified(&self) -> Arc<str> {
        match &self.namespace {
            Some(namespace) => format!("{namespace}__{}", self.name).into(),
            None => Arc::clone(&self.name),
        }
    }
}

/// `tool_choice`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    #[default]
    Auto,
    None,
    Required,
    /// Exactly this tool must be called.
    Tool(ToolName),
    /// Only these tools may be called; `required` says whether one must be.
    Allowed {
        names: Arc<[ToolName]>,
        required: bool,
    },
}

/// The tools of a request that this server cannot run, as far as a log may tell: they are shown in
/// the response, but not offered to the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotOffered {
    count: usize,
    /// Without their dates and suffixes. A type that a client made up is `unknown`.
    types: BTreeSet<&'static str>,
}

/// Beginnings of the types of tools that are documented and run by the service that knows them.
const HOSTED_TYPES: &[&str] = &[
    "apply_patch",
    "code_interpreter",
    "computer",
    "file_search",
    "image_generation",
    "local_shell",
    "mcp",
    "programmatic_tool_calling",
    "shell",
    "tool_search",
    "web_search",
];

impl NotOffered {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn join(&mut self, other: &Self) {
        self.count += other.count;
        self.types.extend(&other.types);
    }

    fn add(&mut self, kind: &str) {
        let known = HOSTED_TYPES.iter().find(|known| kind.starts_with(**known));
        self.types.insert(known.copied().unwrap_or("unknown"));
        self.count += 1;
    }
}

impl fmt::Display for NotOffered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.count)?;
        for (index, kind) in self.types.iter().enumerate() {
            let before = if index == 0 { ": " } else { ", " };
            write!(f, "{before}{kind}")?;
        }
        Ok(())
    }
}
