//! Tools and the choice among them, as far as an engine needs to know them.

use std::sync::Arc;

use bytes::Bytes;

use crate::failure::Failure;
use crate::field::{Field, Path, members};

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

members! { ToolMembers { kind = "type", name, description, parameters, strict, may_wait = "async" } }

impl Tools {
    /// Reads `tools`, and appends the array to `echo` as the response object shows it. Tools that
    /// this server cannot run are shown but not offered to the model; strict mode refuses them.
    pub(crate) fn parse(
        field: Option<Field<'_, '_>>,
        message: &Bytes,
        strict: bool,
        echo: &mut Vec<u8>,
    ) -> Result<Self, Failure> {
        let Some(field) = field else {
            echo.extend_from_slice(b"[]");
            return Ok(Self {
                raw: Bytes::from_static(b"[]"),
                functions: Arc::default(),
            });
        };
        let mut functions = Vec::new();
        echo.push(b'[');
        for (index, raw) in field.array()?.into_iter().enumerate() {
            if index > 0 {
                echo.push(b',');
            }
            let path = Path::Index(&field.path, index);
            match FunctionTool::parse(Field { raw, path }, message, echo)? {
                Some(function) => functions.push(function),
                None if strict => {
                    let problem = "this server cannot run tools of this type";
                    let path = Path::Member(&path, "type");
                    return Err(Failure::unsupported_value(path, problem));
                }
                None => {}
            }
        }
        echo.push(b']');
        Ok(Self {
            raw: message.slice_ref(field.text().as_bytes()),
            functions: functions.into(),
        })
    }

    pub(crate) fn function(&self, name: &str) -> Option<&FunctionTool> {
        self.functions.iter().find(|tool| &*tool.name == name)
    }
}

impl FunctionTool {
    /// Reads one tool; none if it is of another type. Appends it to `echo` as it came, except
    /// that a function shows `description`, `parameters` and `strict` in any case.
    fn parse(
        tool: Field<'_, '_>,
        message: &Bytes,
        echo: &mut Vec<u8>,
    ) -> Result<Option<Self>, Failure> {
        let members: ToolMembers<'_> = tool.object()?;
        let member = |name, raw| Field::member(&tool.path, name, raw);
        let required = |name, raw| {
            let missing = || Failure::missing_required_parameter(Path::Member(&tool.path, name));
            member(name, raw).ok_or_else(missing)
        };
        echo.extend_from_slice(tool.text().as_bytes());
        if required("type", members.kind)?.string()? != "function" {
            return Ok(None);
        }
        let name = required("name", members.name)?;
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
        Ok(Some(Self {
            name: text.into(),
            description: description.map(|text| text.into()),
            parameters,
            strict: strict.unwrap_or(true),
            may_wait: may_wait.unwrap_or(false),
        }))
    }
}

members! { ChoiceMembers { kind = "type", name, mode, tools } }

impl ToolChoice {
    /// Reads `tool_choice`. It may name only what this server can offer the model.
    pub(crate) fn parse(field: Option<Field<'_, '_>>, tools: &Tools) -> Result<Self, Failure> {
        let Some(field) = field else {
            return Ok(Self::Auto);
        };
        if field.text().starts_with('"') {
            return match field.one_of(&["none", "auto", "required"])? {
                "none" => Ok(Self::None),
                "auto" => Ok(Self::Auto),
                _ if tools.functions.is_empty() => {
                    let problem = "'required' needs a tool of type 'function' in 'tools'";
                    Err(Failure::unsupported_value(field.path, problem))
                }
                _ => Ok(Self::Required),
            };
        }
        let members: ChoiceMembers<'_> = field.object()?;
        let required = |name, raw| {
            let missing = || Failure::missing_required_parameter(Path::Member(&field.path, name));
            Field::member(&field.path, name, raw).ok_or_else(missing)
        };
        match &*required("type", members.kind)?.string()? {
            "function" => {
                offered_function(required("name", members.name)?, tools).map(Self::Function)
            }
            "allowed_tools" => {
                let mode = required("mode", members.mode)?.one_of(&["auto", "required"])?;
                let allowed = required("tools", members.tools)?;
                let mut names = Vec::new();
                for (index, raw) in allowed.array()?.into_iter().enumerate() {
                    let path = Path::Index(&allowed.path, index);
                    names.extend(allowed_function(Field { raw, path }, tools)?);
                }
                if names.is_empty() {
                    let problem = "none of these tools can be offered by this server";
                    return Err(Failure::unsupported_value(allowed.path, problem));
                }
                Ok(Self::Allowed {
                    names: names.into(),
                    required: mode == "required",
                })
            }
            other => {
                let problem = format!("this server cannot run tools of type '{other}'");
                Err(Failure::unsupported_value(field.path, problem))
            }
        }
    }
}

/// The name of a function, which must be among the tools.
fn offered_function(name: Field<'_, '_>, tools: &Tools) -> Result<Arc<str>, Failure> {
    let text = name.string()?;
    match tools.function(&text) {
        Some(tool) => Ok(Arc::clone(&tool.name)),
        None => {
            let problem = format!("there is no function '{text}' in 'tools'");
            Err(Failure::invalid_value(name.path, problem))
        }
    }
}

/// One entry of `allowed_tools`; none if it is a tool that is not offered anyway.
fn allowed_function(entry: Field<'_, '_>, tools: &Tools) -> Result<Option<Arc<str>>, Failure> {
    let members: ChoiceMembers<'_> = entry.object()?;
    let kind = Field::member(&entry.path, "type", members.kind);
    if kind.map(Field::string).transpose()?.as_deref() != Some("function") {
        return Ok(None);
    }
    match Field::member(&entry.path, "name", members.name) {
        Some(name) => offered_function(name, tools).map(Some),
        None => Err(Failure::missing_required_parameter(Path::Member(
            &entry.path,
            "name",
        ))),
    }
}
