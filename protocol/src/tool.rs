//! Tools and the choice among them, as far as an engine needs to know them.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::failure::{Failure, Shown};
use crate::field::{Field, Path, members};

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

/// A tool that the model may call and the client runs.
#[derive(Clone, Debug)]
pub struct Tool {
    pub name: ToolName,
    pub description: Option<Arc<str>>,
    pub kind: ToolKind,
    /// `async`: the result may come in a later turn than the next one.
    pub may_wait: bool,
    /// Where the request says all this, such as `tools[3]`; for messages.
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

/// Beginnings of the types of tools that are documented, but `function`.
const OTHER_TYPES: &[&str] = &[
    "apply_patch",
    "code_interpreter",
    "computer",
    "custom",
    "file_search",
    "image_generation",
    "local_shell",
    "mcp",
    "namespace",
    "programmatic_tool_calling",
    "shell",
    "tool_search",
    "web_search",
];

impl NotOffered {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn add(&mut self, kind: &str) {
        let known = OTHER_TYPES.iter().find(|known| kind.starts_with(**known));
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

members! { ToolMembers { kind = "type", name, description, parameters, strict, may_wait = "async" } }

/// What `tools` of a create says.
#[derive(Debug)]
pub(crate) struct ToolsRead {
    pub(crate) tools: Tools,
    /// The array as the response object shows it.
    pub(crate) echo: Vec<u8>,
    pub(crate) not_offered: NotOffered,
}

impl ToolsRead {
    /// Reads `tools`. Strict mode refuses those that cannot be run.
    pub(crate) fn read(
        field: Option<Field<'_, '_>>,
        message: &Bytes,
        strict: bool,
    ) -> Result<Self, Failure> {
        let Some(field) = field else {
            return Ok(Self {
                tools: Tools::default(),
                echo: b"[]".to_vec(),
                not_offered: NotOffered::default(),
            });
        };
        let mut offered = Vec::new();
        let mut not_offered = NotOffered::default();
        let mut echo = vec![b'['];
        for (index, raw) in field.array()?.into_iter().enumerate() {
            if index > 0 {
                echo.push(b',');
            }
            let path = Path::Index(&field.path, index);
            match AnyTool::read(Field { raw, path }, message, &mut echo)? {
                AnyTool::Offered(tool) => offered.push(tool),
                AnyTool::Other(_) if strict => {
                    let problem = "this server cannot run tools of this type";
                    let path = Path::Member(&path, "type");
                    return Err(Failure::unsupported_value(path, problem));
                }
                AnyTool::Other(kind) => not_offered.add(&kind),
            }
        }
        echo.push(b']');
        let tools = Tools {
            raw: message.slice_ref(field.text().as_bytes()),
            offered: offered.into(),
        };
        Ok(Self {
            tools,
            echo,
            not_offered,
        })
    }
}

/// One of the `tools`.
enum AnyTool<'a> {
    Offered(Tool),
    /// Its `type`, which is another one.
    Other(Cow<'a, str>),
}

impl<'a> AnyTool<'a> {
    /// Appends the tool to `echo` as it came, except that a function shows `description`,
    /// `parameters` and `strict` in any case.
    fn read(tool: Field<'a, '_>, message: &Bytes, echo: &mut Vec<u8>) -> Result<Self, Failure> {
        let members: ToolMembers<'_> = tool.object()?;
        let member = |name, raw| Field::member(&tool.path, name, raw);
        echo.extend_from_slice(tool.text().as_bytes());
        let kind = Field::required_member(&tool.path, "type", members.kind)?.string()?;
        if kind != "function" {
            return Ok(Self::Other(kind));
        }
        let name = Field::required_member(&tool.path, "name", members.name)?;
        let text = name.string_up_to(128)?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if text.is_empty() || !text.bytes().all(allowed) {
            let problem = "it must consist of letters, digits, underscores and hyphens";
            return Err(Failure::invalid_value(name.path, problem));
        }
        let description = member("description", members.description)
            .map(Field::string)
            .transpose()?;
        let parameters = match member("parameters", members.parameters) {
            Some(schema) if !schema.text().starts_with('{') => {
                return Err(schema.expected("an object"));
            }
            schema => schema.map(|schema| message.slice_ref(schema.text().as_bytes())),
        };
        let strict = member("strict", members.strict)
            .map(Field::boolean)
            .transpose()?;
        let may_wait = member("async", members.may_wait)
            .map(Field::boolean)
            .transpose()?;

        let shown = [
            ("description", members.description),
            ("parameters", members.parameters),
            ("strict", members.strict),
        ];
        for (name, _) in shown.into_iter().filter(|(_, raw)| raw.is_none()) {
            echo.pop();
            echo.extend_from_slice(b",\"");
            echo.extend_from_slice(name.as_bytes());
            echo.extend_from_slice(b"\":null}");
        }
        Ok(Self::Offered(Tool {
            name: ToolName::from(&*text),
            description: description.map(|text| text.into()),
            kind: ToolKind::Function {
                parameters,
                strict: strict.unwrap_or(true),
            },
            may_wait: may_wait.unwrap_or(false),
            path: tool.path.to_string().into(),
        }))
    }
}

members! { ChoiceMembers { kind = "type", name, mode, tools } }

impl ToolChoice {
    /// Reads `tool_choice`. It may name only what this server can offer the model.
    pub(crate) fn read(field: Option<Field<'_, '_>>, tools: &Tools) -> Result<Self, Failure> {
        let Some(field) = field else {
            return Ok(Self::Auto);
        };
        if field.text().starts_with('"') {
            return match field.one_of(&["none", "auto", "required"])? {
                "none" => Ok(Self::None),
                "auto" => Ok(Self::Auto),
                _ if tools.offered.is_empty() => {
                    let problem = "'required' needs a tool of type 'function' in 'tools'";
                    Err(Failure::unsupported_value(field.path, problem))
                }
                _ => Ok(Self::Required),
            };
        }
        let members: ChoiceMembers<'_> = field.object()?;
        let required = |name, raw| Field::required_member(&field.path, name, raw);
        match &*required("type", members.kind)?.string()? {
            "function" => {
                let name = required("name", members.name)?;
                offered(name, |text| {
                    tools.offered.iter().find(|tool| &*tool.name.name == text)
                })
                .map(Self::Tool)
            }
            "allowed_tools" => {
                let mode = required("mode", members.mode)?.one_of(&["auto", "required"])?;
                Ok(Self::Allowed {
                    names: allowed_functions(required("tools", members.tools)?, tools)?,
                    required: mode == "required",
                })
            }
            other => {
                let problem = format!("this server cannot run tools of type '{}'", Shown(other));
                Err(Failure::unsupported_value(field.path, problem))
            }
        }
    }
}

/// The functions that `allowed_tools` lists. Tools that are not offered anyway are passed over,
/// but something must be left.
fn allowed_functions(field: Field<'_, '_>, tools: &Tools) -> Result<Arc<[ToolName]>, Failure> {
    let by_name: HashMap<&str, &Tool> = tools
        .offered
        .iter()
        .map(|tool| (&*tool.name.name, tool))
        .collect();
    let mut names = Vec::new();
    for (index, raw) in field.array()?.into_iter().enumerate() {
        let path = Path::Index(&field.path, index);
        let members: ChoiceMembers<'_> = Field { raw, path }.object()?;
        if Field::required_member(&path, "type", members.kind)?.string()? == "function" {
            let name = Field::required_member(&path, "name", members.name)?;
            names.push(offered(name, |text| by_name.get(text).copied())?);
        }
    }
    if names.is_empty() {
        let problem = "this server can offer the model none of these tools";
        return Err(Failure::unsupported_value(field.path, problem));
    }
    Ok(names.into())
}

/// The name of a function that must be among the tools.
fn offered<'t>(
    name: Field<'_, '_>,
    find: impl FnOnce(&str) -> Option<&'t Tool>,
) -> Result<ToolName, Failure> {
    let text = name.string()?;
    match find(&text) {
        Some(tool) => Ok(tool.name.clone()),
        None => {
            let problem = format!("there is no function '{}' in 'tools'", Shown(&text));
            Err(Failure::invalid_value(name.path, problem))
        }
    }
}
