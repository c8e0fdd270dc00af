//! Tools in a prompt: as a template takes them, or as a lesson for a model that knows none.

use std::fmt::Write;

use bytes::Bytes;
use minijinja::value::ValueKind;
use minijinja::{Value, context};

use turnwire_protocol::engine::EngineFailureKind;
use turnwire_protocol::tool::{CustomFormat, Tool, ToolKind, Tools};

use super::calls::{CallStyle, RESULT_CLOSE, RESULT_OPEN};
use super::marks::Marks;
use super::messages::Message;
use super::python::dumps;
use crate::Refusal;

/// The `tools` that templates expect: what Chat Completions calls them. None without functions.
pub(super) fn to_value(tools: &Tools, marks: &Marks) -> Result<Option<Value>, Refusal> {
    let functions =
        functions(&tools.offered).map(|(tool, parameters)| function(tool, parameters, marks));
    let functions: Vec<Value> = functions.collect::<Result<_, Refusal>>()?;
    Ok((!functions.is_empty()).then(|| Value::from(functions)))
}

/// The functions among the tools, with their parameters.
fn functions(tools: &[Tool]) -> impl Iterator<Item = (&Tool, Option<&Bytes>)> {
    tools.iter().filter_map(|tool| match &tool.kind {
        ToolKind::Function { parameters, .. } => Some((tool, parameters.as_ref())),
        ToolKind::Custom(_) => None,
    })
}

fn function(tool: &Tool, parameters: Option<&Bytes>, marks: &Marks) -> Result<Value, Refusal> {
    let name = tool.name.qualified();
    // Straight from the bytes: the order of keys is part of what the model sees.
    let parameters = match parameters {
        Some(schema) => serde_json::from_slice(schema).map_err(|error| Refusal {
            kind: EngineFailureKind::Invalid,
            message: format!("The parameters of the function '{name}' are malformed: {error}"),
            param: Some(format!("{}.parameters", tool.path)),
        })?,
        None => context! { type => "object", properties => context! {} },
    };
    let mut function = vec![("name", Value::from(&*name))];
    if let Some(description) = &tool.description {
        function.push(("description", Value::from(&**description)));
    }
    function.push(("parameters", parameters));
    let value = Value::from_pairs([
        ("type", Value::from("function")),
        ("function", Value::from_pairs(function)),
    ]);
    Ok(marks.mark_value(&value))
}

fn custom(tool: &Tool, format: &CustomFormat, marks: &Marks) -> Value {
    let mut members = vec![("name", Value::from(&*tool.name.qualified()))];
    if let Some(description) = &tool.description {
        members.push(("description", Value::from(&**description)));
    }
    let grammar = match format {
        CustomFormat::Text => None,
        CustomFormat::Lark(definition) => Some(("lark", definition)),
        CustomFormat::Regex(definition) => Some(("regex", definition)),
    };
    if let Some((syntax, definition)) = grammar {
        members.push(("input", context! { syntax, definition => &**definition }));
    }
    marks.mark_value(&Value::from_pairs(members))
}

/// Teaches a model to call functions, in as few words as a model of 135M parameters needs. None
/// if there are none.
pub(super) fn function_lesson(
    tools: &[Tool],
    style: &CallStyle,
    marks: &Marks,
) -> Result<Option<String>, Refusal> {
    let mut list = String::new();
    for (tool, parameters) in functions(tools) {
        list.push_str(&json(&function(tool, parameters, marks)?));
        list.push('\n');
    }
    Ok((!list.is_empty()).then(|| {
        format!(
            "You can call these functions:\n<tools>\n{list}</tools>\n\n\
             To call a function, answer with its name and arguments as JSON:\n\
             {}{{\"name\": NAME, \"{}\": {{...}}}}{}",
            style.before_call(),
            style.arguments_key(),
            style.after_call(),
        )
    }))
}

/// Teaches a model to call custom tools, which no template knows. None if there are none.
pub(super) fn custom_lesson(tools: &[Tool], style: &CallStyle, marks: &Marks) -> Option<String> {
    let mut list = String::new();
    for tool in tools {
        if let ToolKind::Custom(format) = &tool.kind {
            list.push_str(&json(&custom(tool, format, marks)));
            list.push('\n');
        }
    }
    (!list.is_empty()).then(|| {
        format!(
            "You can use these tools, which take text:\n<tools>\n{list}</tools>\n\n\
             To use a tool, answer with its name and, on the next line, its input as it is:\n\
             {}{{\"name\": NAME}}\nINPUT{}",
            style.before_call(),
            style.after_call(),
        )
    })
}

/// Writes calls and results into texts, for a template that knows neither. Says whether the
/// message was a result.
pub(super) fn spell_out(message: Message, style: &CallStyle) -> (bool, Message) {
    match message {
        Message::Assistant {
            reasoning,
            mut text,
            calls,
        } => {
            for call in calls {
                if !text.is_empty() {
                    text.push('\n');
                }
                let name = json(&Value::from(call.name));
                let call = if let Some(input) = call.input {
                    format!("{{\"name\": {name}}}\n{input}")
                } else {
                    let arguments = match call.arguments.kind() {
                        ValueKind::Map => json(&call.arguments),
                        _ => call.arguments.to_string(),
                    };
                    let key = style.arguments_key();
                    format!("{{\"name\": {name}, \"{key}\": {arguments}}}")
                };
                let _ = write!(text, "{}{call}{}", style.before_call(), style.after_call());
            }
            (
                false,
                Message::Assistant {
                    reasoning,
                    text,
                    calls: Vec::new(),
                },
            )
        }
        Message::Tool { text, .. } => (
            true,
            Message::User(format!("{RESULT_OPEN}\n{text}\n{RESULT_CLOSE}")),
        ),
        message => (false, message),
    }
}

fn json(value: &Value) -> String {
    dumps(value).expect("what was read from JSON can be written as JSON")
}
