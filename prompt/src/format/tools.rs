//! Tools in a prompt: as a template takes them, or as a lesson for a model that knows none.

use std::fmt::Write;

use bytes::Bytes;
use minijinja::value::ValueKind;
use minijinja::{Value, context};

use turnwire_protocol::engine::EngineFailureKind;
use turnwire_protocol::tool::{Tool, ToolKind, Tools};

use super::calls::{CallStyle, RESULT_CLOSE, RESULT_OPEN};
use super::marks::Marks;
use super::messages::Message;
use super::python::dumps;
use crate::Refusal;

/// The `tools` that templates expect: what Chat Completions calls them.
pub(super) fn to_value(tools: &Tools, marks: &Marks) -> Result<Value, Refusal> {
    let functions = functions(tools).map(|(tool, parameters)| value(tool, parameters, marks));
    functions.collect()
}

/// The functions among the tools, with their parameters.
fn functions(tools: &Tools) -> impl Iterator<Item = (&Tool, Option<&Bytes>)> {
    tools.offered.iter().filter_map(|tool| match &tool.kind {
        ToolKind::Function { parameters, .. } => Some((tool, parameters.as_ref())),
        ToolKind::Custom(_) => None,
    })
}

fn value(tool: &Tool, parameters: Option<&Bytes>, marks: &Marks) -> Result<Value, Refusal> {
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

/// Teaches a model to call functions, in as few words as a model of 135M parameters needs.
pub(super) fn lesson(tools: &Tools, style: &CallStyle, marks: &Marks) -> Result<String, Refusal> {
    let mut text = "You can call these functions:\n<tools>\n".to_owned();
    for (tool, parameters) in functions(tools) {
        text.push_str(&json(&value(tool, parameters, marks)?));
        text.push('\n');
    }
    let _ = write!(
        text,
        "</tools>\n\nTo call a function, answer with its name and arguments as JSON:\n\
         {}{{\"name\": NAME, \"{}\": {{...}}}}{}",
        style.before_call(),
        style.arguments_key(),
        style.after_call(),
    );
    Ok(text)
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
                let arguments = if call.arguments.kind() == ValueKind::Map {
                    json(&call.arguments)
                } else {
                    call.arguments.to_string()
                };
                let _ = write!(
                    text,
                    "{}{{\"name\": {}, \"{}\": {arguments}}}{}",
                    style.before_call(),
                    json(&Value::from(call.name)),
                    style.arguments_key(),
                    style.after_call(),
                );
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
