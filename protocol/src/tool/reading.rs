//! Reading the tools of a create, and of the items that offer more of them.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::{CustomFormat, NotOffered, Tool, ToolKind, ToolName, Tools};
use crate::failure::{Failure, Shown};
use crate::field::{Field, Path, members};
use crate::item::Item;

/// A list of tools, checked.
#[derive(Debug)]
pub(crate) struct ToolsRead {
    pub(crate) tools: Tools,
    /// The array as the response object shows it.
    pub(crate) echo: Vec<u8>,
    pub(crate) not_offered: NotOffered,
}

members! { ItemMembers { role, tools } }
members! { ToolMembers {
    kind = "type", name, description, parameters, strict, may_wait = "async", format, tools,
} }
members! { FormatMembers { kind = "type", syntax, definition } }

impl ToolsRead {
    /// Reads `tools` of a create. Strict mode refuses those that cannot be run.
    pub(crate) fn read(
        field: Option<Field<'_, '_>>,
        message: &Bytes,
        strict: bool,
    ) -> Result<Self, Failure> {
        match field {
            Some(field) => Reader::new(message, strict).read(field),
            None => Ok(Self {
                tools: Tools::default(),
                echo: b"[]".to_vec(),
                not_offered: NotOffered::default(),
            }),
        }
    }

    /// Reads an `additional_tools` item, which stands at `path`.
    pub(crate) fn of_item(item: &Item, path: Path<'_>, strict: bool) -> Result<Self, Failure> {
        let field = item.field(path)?;
        let members: ItemMembers<'_> = field.object()?;
        // Old clients leave it out; nobody else may give the model tools.
        if let Some(role) = Field::member(&field.path, "role", members.role) {
            role.one_of(&["developer"])?;
        }
        let tools = Field::required_member(&field.path, "tools", members.tools)?;
        Reader::new(item.raw(), strict).read(tools)
    }
}

/// Characters in the description of a namespace. The model is shown it once for every tool in
/// there that has none of its own, so that it costs more than its message did.
const NAMESPACE_DESCRIPTION: usize = 64 << 10;

/// A list of tools while it is read.
struct Reader<'m> {
    /// What the list is part of.
    bytes: &'m Bytes,
    strict: bool,
    names: HashSet<Arc<str>>,
    offered: Vec<Tool>,
    not_offered: NotOffered,
    echo: Vec<u8>,
}

/// The namespace of a tool.
#[derive(Clone, Copy)]
struct Namespace<'a> {
    name: &'a Arc<str>,
    description: Option<&'a Arc<str>>,
}

impl<'m> Reader<'m> {
    fn new(bytes: &'m Bytes, strict: bool) -> Self {
        Self {
            bytes,
            strict,
            names: HashSet::new(),
            offered: Vec::new(),
            not_offered: NotOffered::default(),
            echo: Vec::new(),
        }
    }

    fn read(mut self, list: Field<'_, '_>) -> Result<ToolsRead, Failure> {
        self.echo.push(b'[');
        for (index, raw) in list.array()?.into_iter().enumerate() {
            if index > 0 {
                self.echo.push(b',');
            }
            let path = Path::Index(&list.path, index);
            self.tool(Field { raw, path })?;
        }
        self.echo.push(b']');
        Ok(ToolsRead {
            tools: Tools {
                raw: self.bytes.slice_ref(list.text().as_bytes()),
                offered: self.offered.into(),
            },
            echo: self.echo,
            not_offered: self.not_offered,
        })
    }

    fn tool(&mut self, tool: Field<'_, '_>) -> Result<(), Failure> {
        let members: ToolMembers<'_> = tool.object()?;
        self.echo.extend_from_slice(tool.text().as_bytes());
        let kind = Field::required_member(&tool.path, "type", members.kind)?;
        match &*kind.string()? {
            "function" => {
                self.function(tool, &members, None)?;
                self.show("description", members.description, "null");
                self.show("parameters", members.parameters, "null");
                self.show("strict", members.strict, "null");
            }
            "custom" => {
                self.custom(tool, &members, None)?;
                self.show("format", members.format, r#"{"type":"text"}"#);
            }
            "namespace" => self.namespace(tool, &members)?,
            _ if self.strict => {
                let problem = "this server cannot run tools of this type";
                return Err(Failure::unsupported_value(kind.path, problem));
            }
            other => self.not_offered.add(other),
        }
        Ok(())
    }

    /// Adds a member that a tool shows in any case to the tool that was echoed last.
    fn show(&mut self, name: &str, sent: Option<&RawValue>, default: &str) {
        if sent.is_none() {
            self.echo.pop();
            let member = [",\"", name, "\":", default, "}"].concat();
            self.echo.extend_from_slice(member.as_bytes());
        }
    }

    fn namespace(&mut self, tool: Field<'_, '_>, members: &ToolMembers<'_>) -> Result<(), Failure> {
        let name = read_name(tool, members)?;
        let description = Field::member(&tool.path, "description", members.description);
        let description = description
            .map(|field| field.string_up_to(NAMESPACE_DESCRIPTION).map(Arc::from))
            .transpose()?;
        let namespace = Namespace {
            name: &name,
            description: description.as_ref(),
        };
        let list = Field::required_member(&tool.path, "tools", members.tools)?;
        for (index, raw) in list.array()?.into_iter().enumerate() {
            let path = Path::Index(&list.path, index);
            let tool = Field { raw, path };
            let members: ToolMembers<'_> = tool.object()?;
            let kind = Field::required_member(&tool.path, "type", members.kind)?;
            match kind.one_of(&["function", "custom"])? {
                "function" => self.function(tool, &members, Some(namespace))?,
                _ => self.custom(tool, &members, Some(namespace))?,
            }
        }
        Ok(())
    }

    fn function(
        &mut self,
        tool: Field<'_, '_>,
        members: &ToolMembers<'_>,
        namespace: Option<Namespace<'_>>,
    ) -> Result<(), Failure> {
        let parameters = match Field::member(&tool.path, "parameters", members.parameters) {
            Some(schema) if !schema.text().starts_with('{') => {
                return Err(schema.expected("an object"));
            }
            schema => schema.map(|schema| self.bytes.slice_ref(schema.text().as_bytes())),
        };
        let strict = Field::member(&tool.path, "strict", members.strict)
            .map(Field::boolean)
            .transpose()?;
        let kind = ToolKind::Function {
            parameters,
            strict: strict.unwrap_or(true),
        };
        self.offer(tool, members, namespace, kind)
    }

    fn custom(
        &mut self,
        tool: Field<'_, '_>,
        members: &ToolMembers<'_>,
        namespace: Option<Namespace<'_>>,
    ) -> Result<(), Failure> {
        let format = Field::member(&tool.path, "format", members.format);
        let format = format.map(read_format).transpose()?;
        let kind = ToolKind::Custom(format.unwrap_or(CustomFormat::Text));
        self.offer(tool, members, namespace, kind)
    }

    fn offer(
        &mut self,
        tool: Field<'_, '_>,
        members: &ToolMembers<'_>,
        namespace: Option<Namespace<'_>>,
        kind: ToolKind,
    ) -> Result<(), Failure> {
        let name = ToolName {
            namespace: namespace.map(|namespace| Arc::clone(namespace.name)),
            name: read_name(tool, members)?,
        };
        let description = read_description(tool, members)?
            .or_else(|| namespace.and_then(|namespace| namespace.description.cloned()));
        let may_wait = Field::member(&tool.path, "async", members.may_wait)
            .map(Field::boolean)
            .transpose()?;
        let qualified = name.qualified();
        if !self.names.insert(Arc::clone(&qualified)) {
            let problem = format!("there is another tool called '{}'", Shown(&qualified));
            let path = Path::Member(&tool.path, "name");
            return Err(Failure::invalid_value(path, problem));
        }
        self.offered.push(Tool {
            name,
            description,
            kind,
            may_wait: may_wait.unwrap_or(false),
            path: tool.path.to_string().into(),
        });
        Ok(())
    }
}

fn read_name(tool: Field<'_, '_>, members: &ToolMembers<'_>) -> Result<Arc<str>, Failure> {
    let name = Field::required_member(&tool.path, "name", members.name)?;
    let text = name.string_up_to(128)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if text.is_empty() || !text.bytes().all(allowed) {
        let problem = "it must consist of letters, digits, underscores and hyphens";
        return Err(Failure::invalid_value(name.path, problem));
    }
    Ok(text.into())
}

fn read_description(
    tool: Field<'_, '_>,
    members: &ToolMembers<'_>,
) -> Result<Option<Arc<str>>, Failure> {
    Field::member(&tool.path, "description", members.description)
        .map(|description| description.string().map(|text| text.into()))
        .transpose()
}

fn read_format(format: Field<'_, '_>) -> Result<CustomFormat, Failure> {
    let members: FormatMembers<'_> = format.object()?;
    let required = |name, raw| Field::required_member(&format.path, name, raw);
    if required("type", members.kind)?.one_of(&["text", "grammar"])? == "text" {
        return Ok(CustomFormat::Text);
    }
    let syntax = required("syntax", members.syntax)?.one_of(&["lark", "regex"])?;
    let definition = required("definition", members.definition)?;
    let text = definition.string()?;
    if text.trim().is_empty() {
        let problem = "it must not be empty";
        return Err(Failure::invalid_value(definition.path, problem));
    }
    Ok(match syntax {
        "lark" => CustomFormat::Lark(text.into()),
        _ => CustomFormat::Regex(text.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_of_a_namespace_is_limited_because_its_tools_repeat_it() {
        let read = |length| {
            let text = "d".repeat(length);
            let item = format!(
                r#"{{"type":"additional_tools","tools":[{{"type":"namespace","name":"n","description":"{text}","tools":[{{"type":"function","name":"f"}}]}}]}}"#
            );
            let item = Item::parse(item.into()).expect("an item");
            ToolsRead::of_item(&item, Path::Name("item"), false)
        };
        assert!(read(NAMESPACE_DESCRIPTION).is_ok());
        let failure = read(NAMESPACE_DESCRIPTION + 1).expect_err("too long");
        assert_eq!(failure.code, "string_above_max_length");
        assert_eq!(failure.param.as_deref(), Some("item.tools[0].description"));
    }
}
