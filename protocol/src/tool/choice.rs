//! `tool_choice`: read when its message comes, looked up when its turn starts, because the tools
//! that earlier turns have added are known only then.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Tool, ToolChoice, ToolName};
use crate::failure::{Failure, Shown};
use crate::field::{Field, Path, members};

/// A `tool_choice` whose names were not looked up yet.
#[derive(Clone, Debug, Default)]
pub(crate) enum ChoiceRequest {
    #[default]
    Auto,
    None,
    Required,
    Tool(Wanted),
    Allowed {
        /// With the place of each in `tool_choice.tools`.
        tools: Vec<(usize, Wanted)>,
        required: bool,
    },
}

/// A tool as a choice names it.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    is_function: bool,
    /// Not in the documented form, but the only way to tell namespaces apart.
    namespace: Option<Box<str>>,
    name: Box<str>,
}

members! { ChoiceMembers { kind = "type", name, namespace, mode, tools } }

const PARAM: Path<'_> = Path::Name("tool_choice");

impl ChoiceRequest {
    pub(crate) fn read(field: Option<Field<'_, '_>>) -> Result<Self, Failure> {
        let Some(field) = field else {
            return Ok(Self::Auto);
        };
        if field.text().starts_with('"') {
            return Ok(match field.one_of(&["none", "auto", "required"])? {
                "none" => Self::None,
                "auto" => Self::Auto,
                _ => Self::Required,
            });
        }
        let members: ChoiceMembers<'_> = field.object()?;
        let required = |name, raw| Field::required_member(&field.path, name, raw);
        match &*required("type", members.kind)?.string()? {
            kind @ ("function" | "custom") => {
                Wanted::read(field, kind == "function", &members).map(Self::Tool)
            }
            "allowed_tools" => {
                let mode = required("mode", members.mode)?.one_of(&["auto", "required"])?;
                Ok(Self::Allowed {
                    tools: read_allowed(required("tools", members.tools)?)?,
                    required: mode == "required",
                })
            }
            other => {
                let problem = format!("this server cannot run tools of type '{}'", Shown(other));
                Err(Failure::unsupported_value(field.path, problem))
            }
        }
    }

    /// Looks the names up among the tools that the turn offers.
    pub(crate) fn resolve<'t>(
        &self,
        mut offered: impl Iterator<Item = &'t Tool>,
    ) -> Result<ToolChoice, Failure> {
        Ok(match self {
            Self::Auto => ToolChoice::Auto,
            Self::None => ToolChoice::None,
            Self::Required if offered.next().is_some() => ToolChoice::Required,
            Self::Required => {
                let problem = "'required' needs a function or a custom tool in 'tools'";
                return Err(Failure::unsupported_value(PARAM, problem));
            }
            Self::Tool(wanted) => ToolChoice::Tool(wanted.find(&Directory::new(offered), &PARAM)?),
            Self::Allowed { tools, required } => {
                let directory = Directory::new(offered);
                let list = Path::Member(&PARAM, "tools");
                let find = |(index, wanted): &(usize, Wanted)| {
                    wanted.find(&directory, &Path::Index(&list, *index))
                };
                ToolChoice::Allowed {
                    names: tools.iter().map(find).collect::<Result<_, _>>()?,
                    required: *required,
                }
            }
        })
    }
}

/// The functions and custom tools that `allowed_tools` lists. Tools that are not offered anyway
/// are passed over, but something must be left.
fn read_allowed(list: Field<'_, '_>) -> Result<Vec<(usize, Wanted)>, Failure> {
    let mut allowed = Vec::new();
    for (index, raw) in list.array()?.into_iter().enumerate() {
        let path = Path::Index(&list.path, index);
        let tool = Field { raw, path };
        let members: ChoiceMembers<'_> = tool.object()?;
        let kind = Field::required_member(&path, "type", members.kind)?.string()?;
        if let kind @ ("function" | "custom") = &*kind {
            allowed.push((index, Wanted::read(tool, kind == "function", &members)?));
        }
    }
    if allowed.is_empty() {
        let problem = "this server can offer the model none of these tools";
        return Err(Failure::unsupported_value(list.path, problem));
    }
    Ok(allowed)
}

impl Wanted {
    fn read(
        tool: Field<'_, '_>,
        is_function: bool,
        members: &ChoiceMembers<'_>,
    ) -> Result<Self, Failure> {
        let name = Field::required_member(&tool.path, "name", members.name)?;
        let namespace = Field::member(&tool.path, "namespace", members.namespace)
            .map(Field::string)
            .transpose()?;
        Ok(Self {
            is_function,
            namespace: namespace.map(|namespace| namespace.into()),
            name: name.string()?.into(),
        })
    }

    /// A bare name means the tool outside all namespaces, or else the only one of that name, or
    /// else the one whose qualified name it is.
    fn find(&self, directory: &Directory<'_>, path: &Path<'_>) -> Result<ToolName, Failure> {
        let named = |name: &str| {
            let tools = directory.by_name.get(name).map_or(&[][..], Vec::as_slice);
            tools
                .iter()
                .filter(|tool| tool.is_function() == self.is_function)
        };
        let inside = |namespace: Option<&str>, name: &str| {
            named(name).find(|tool| tool.name.namespace.as_deref() == namespace)
        };
        let mut others = named(&self.name);
        let found = match (&self.namespace, others.next(), others.next()) {
            (Some(namespace), ..) => inside(Some(namespace), &self.name),
            (None, Some(only), None) => Some(only),
            (None, Some(_), Some(_)) => {
                let outside = inside(None, &self.name);
                if outside.is_none() {
                    let problem = format!(
                        "several namespaces have a tool called '{}'; say which in 'namespace'",
                        Shown(&self.name)
                    );
                    return Err(Failure::invalid_value(Path::Member(path, "name"), problem));
                }
                outside
            }
            (None, None, _) => {
                let qualified = directory.by_qualified_name.get(&*self.name);
                qualified.filter(|tool| tool.is_function() == self.is_function)
            }
        };
        found.map(|tool| tool.name.clone()).ok_or_else(|| {
            let kind = if self.is_function {
                "function"
            } else {
                "custom tool"
            };
            let problem = format!("there is no {kind} '{}' in 'tools'", Shown(&self.name));
            Failure::invalid_value(Path::Member(path, "name"), problem)
        })
    }
}

/// Tools by their names. A name may be as long as a message, so it is looked up whole.
struct Directory<'t> {
    by_name: HashMap<&'t str, Vec<&'t Tool>>,
    by_qualified_name: HashMap<Arc<str>, &'t Tool>,
}

impl<'t> Directory<'t> {
    fn new(offered: impl Iterator<Item = &'t Tool>) -> Self {
        let mut by_name: HashMap<&str, Vec<&Tool>> = HashMap::new();
        let mut by_qualified_name = HashMap::new();
        for tool in offered {
            by_name.entry(&tool.name.name).or_default().push(tool);
            by_qualified_name.insert(tool.name.qualified(), tool);
        }
        Self {
            by_name,
            by_qualified_name,
        }
    }
}
