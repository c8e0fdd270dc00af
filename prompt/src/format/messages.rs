//! Items of the Responses API to the messages that chat templates know.
//!
//! The two are cut differently: a model's turn is one message in a template, but reasoning, a
//! message and each of its calls are items of their own. Item types that no model can read are
//! left out. See spec/protocol.md section 11 for the forms.

use std::borrow::Cow;
use std::sync::Arc;

use minijinja::{Value, context};
use serde::Deserialize;
use serde_json::value::RawValue;

use turnwire_protocol::engine::EngineFailureKind;
use turnwire_protocol::item::{Item, ItemKind};
use turnwire_protocol::tool::{Tool, ToolName, Tools};

use super::marks::Marks;
use crate::Refusal;

/// A message of a chat. All texts are marked against forged control tokens.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Message {
    System(String),
    User(String),
    Assistant {
        reasoning: String,
        text: String,
        calls: Vec<Call>,
    },
    Tool {
        call_id: Arc<str>,
        text: String,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    pub id: Arc<str>,
    pub name: String,
    /// An object, or a string if what the client sent is not one.
    pub arguments: Value,
    /// What a custom tool was given; then it is the `input` of the arguments.
    pub input: Option<String>,
}

/// The messages that `items` stand for, in order. Item `i` is `input[i]` in a refusal. `teach`
/// says what a model is to know of tools that are offered from somewhere on.
pub(super) fn from_items(
    items: &[&Item],
    marks: &Marks,
    teach: impl Fn(&[Tool]) -> Result<Option<String>, Refusal>,
) -> Result<Vec<Message>, Refusal> {
    let mut messages = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let at = || format!("input[{i}]");
        match item.kind() {
            ItemKind::Message => {
                let message: MessageItem<'_> = read(item, at)?;
                let parts = format!("input[{i}].content");
                let text = marked_text(message.content, &parts, marks)?;
                match &*message.role {
                    "assistant" => say(&mut messages, text),
                    "system" | "developer" => messages.push(Message::System(text)),
                    _ => messages.push(Message::User(text)),
                }
            }
            ItemKind::FunctionCall => {
                let call: CallItem<'_> = read(item, at)?;
                let arguments = call.arguments.as_deref().unwrap_or_default();
                let arguments = serde_json::from_str::<Value>(arguments)
                    .ok()
                    .filter(|value| value.kind() == minijinja::value::ValueKind::Map)
                    .unwrap_or_else(|| Value::from(arguments));
                let call = Call {
                    id: call_id(item, marks),
                    name: marks.mark(&call.word()).into_owned(),
                    arguments: marks.mark_value(&arguments),
                    input: None,
                };
                add_call(&mut messages, call);
            }
            ItemKind::CustomToolCall => {
                let call: CallItem<'_> = read(item, at)?;
                let input = marks
                    .mark(call.input.as_deref().unwrap_or_default())
                    .into_owned();
                let call = Call {
                    id: call_id(item, marks),
                    name: marks.mark(&call.word()).into_owned(),
                    arguments: context! { input => &*input },
                    input: Some(input),
                };
                add_call(&mut messages, call);
            }
            ItemKind::FunctionCallOutput | ItemKind::CustomToolCallOutput => {
                let result: OutputItem<'_> = read(item, at)?;
                let parts = format!("input[{i}].output");
                messages.push(Message::Tool {
                    call_id: call_id(item, marks),
                    text: marked_text(result.output, &parts, marks)?,
                });
            }
            ItemKind::Reasoning => {
                let reasoning: ReasoningItem<'_> = read(item, at)?;
                // A summary is the last choice: it says less than what is sealed.
                let thoughts = match (&*reasoning.content, item.revealed()) {
                    ([], Some(revealed)) => vec![marks.mark(revealed)],
                    ([], None) => reasoning
                        .summary
                        .iter()
                        .map(|part| marks.mark(&part.text))
                        .collect(),
                    (content, _) => content.iter().map(|part| marks.mark(&part.text)).collect(),
                };
                if !thoughts.is_empty() {
                    messages.push(Message::Assistant {
                        reasoning: thoughts.join("\n\n"),
                        text: String::new(),
                        calls: Vec::new(),
                    });
                }
            }
            ItemKind::Compaction => {
                let summary = item.revealed().map(|text| marks.mark(text).into_owned());
                messages.extend(summary.map(Message::User));
            }
            ItemKind::AdditionalTools => {
                let lesson = teach(&Tools::of_item(item).offered)?;
                messages.extend(lesson.map(Message::System));
            }
            ItemKind::ItemReference
            | ItemKind::CompactionTrigger
            | ItemKind::ConfigurationUpdate
            | ItemKind::Other => {}
        }
    }
    // Thoughts that led to nothing are no message.
    messages.retain(|message| {
        !matches!(message, Message::Assistant { reasoning, text, calls }
            if !reasoning.is_empty() && text.is_empty() && calls.is_empty())
    });
    Ok(messages)
}

/// Whether the first message of these items is a user's.
pub fn begins_with_user(items: &[Item]) -> bool {
    #[derive(Deserialize)]
    struct Role<'a> {
        #[serde(borrow, default)]
        role: Cow<'a, str>,
    }
    items.first().is_some_and(|item| match item.kind() {
        ItemKind::Message => {
            serde_json::from_slice(item.raw()).is_ok_and(|Role { role }| role == "user")
        }
        ItemKind::Compaction => true,
        _ => false,
    })
}

/// An assistant's text joins the reasoning right before it, but not another text.
fn say(messages: &mut Vec<Message>, said: String) {
    if let Some(Message::Assistant { text, calls, .. }) = messages.last_mut()
        && text.is_empty()
        && calls.is_empty()
    {
        *text = said;
        return;
    }
    messages.push(Message::Assistant {
        reasoning: String::new(),
        text: said,
        calls: Vec::new(),
    });
}

/// Marked like a text: there are templates that write it.
fn call_id(item: &Item, marks: &Marks) -> Arc<str> {
    let id = item.call_id().map_or("", |id| id);
    marks.mark(id).into()
}

/// A call joins the assistant's message right before it.
fn add_call(messages: &mut Vec<Message>, call: Call) {
    if let Some(Message::Assistant { calls, .. }) = messages.last_mut() {
        calls.push(call);
    } else {
        messages.push(Message::Assistant {
            reasoning: String::new(),
            text: String::new(),
            calls: vec![call],
        });
    }
}

impl Message {
    /// The message as `transformers` hands it to a template.
    pub(super) fn to_value(&self, name_of_call: impl Fn(&str) -> Option<String>) -> Value {
        match self {
            Self::System(text) => context! { role => "system", content => text },
            Self::User(text) => context! { role => "user", content => text },
            Self::Assistant {
                reasoning,
                text,
                calls,
            } => {
                let mut members = vec![("role", Value::from("assistant"))];
                if !reasoning.is_empty() {
                    members.push(("reasoning_content", Value::from(reasoning.as_str())));
                }
                members.push(("content", Value::from(text.as_str())));
                if !calls.is_empty() {
                    let calls: Value = calls.iter().map(Call::to_value).collect();
                    members.push(("tool_calls", calls));
                }
                Value::from_pairs(members)
            }
            Self::Tool { call_id, text } => match name_of_call(call_id) {
                Some(name) => context! {
                    role => "tool", tool_call_id => &**call_id, name => name, content => text,
                },
                None => context! { role => "tool", tool_call_id => &**call_id, content => text },
            },
        }
    }

    /// Whether both are by the same speaker, so that a template may want them as one.
    pub(super) fn joins(&mut self, next: &Self) -> bool {
        match (self, next) {
            (Self::User(text), Self::User(more)) | (Self::System(text), Self::System(more)) => {
                text.push_str("\n\n");
                text.push_str(more);
                true
            }
            (
                Self::Assistant { text, calls, .. },
                Self::Assistant {
                    text: more,
                    calls: more_calls,
                    ..
                },
            ) if calls.is_empty() => {
                if !text.is_empty() && !more.is_empty() {
                    text.push_str("\n\n");
                }
                text.push_str(more);
                calls.extend_from_slice(more_calls);
                true
            }
            _ => false,
        }
    }
}

impl Call {
    fn to_value(&self) -> Value {
        context! {
            id => &*self.id,
            type => "function",
            function => context! { name => &*self.name, arguments => &self.arguments },
        }
    }
}

#[derive(Deserialize)]
struct MessageItem<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct CallItem<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    namespace: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    arguments: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    input: Option<Cow<'a, str>>,
}

impl CallItem<'_> {
    /// The word by which the model called the tool.
    fn word(&self) -> Arc<str> {
        let name = ToolName {
            namespace: self.namespace.as_deref().map(Arc::from),
            name: Arc::from(&*self.name),
        };
        name.qualified()
    }
}

#[derive(Deserialize)]
struct OutputItem<'a> {
    #[serde(borrow, default)]
    output: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ReasoningItem<'a> {
    #[serde(borrow, default, deserialize_with = "null_is_empty")]
    content: Vec<Thought<'a>>,
    #[serde(borrow, default, deserialize_with = "null_is_empty")]
    summary: Vec<Thought<'a>>,
}

#[derive(Deserialize)]
struct Thought<'a> {
    #[serde(borrow, default)]
    text: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, rename = "type", default)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    refusal: Option<Cow<'a, str>>,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Thought<'de>>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn read<'a, T: Deserialize<'a>>(item: &'a Item, at: impl Fn() -> String) -> Result<T, Refusal> {
    serde_json::from_slice(item.raw()).map_err(|error| invalid(at(), &error))
}

fn invalid(param: String, error: &serde_json::Error) -> Refusal {
    Refusal {
        kind: EngineFailureKind::Invalid,
        message: format!("{param} is malformed: {error}"),
        param: Some(param),
    }
}

/// The text of a string or of an array of parts.
fn marked_text(content: Option<&RawValue>, param: &str, marks: &Marks) -> Result<String, Refusal> {
    let content = content.map_or("null", RawValue::get);
    if content == "null" {
        return Ok(String::new());
    }
    if content.starts_with('"') {
        let text: Cow<'_, str> = serde_json::from_str::<Text<'_>>(content)
            .map_err(|error| invalid(param.to_owned(), &error))?
            .0;
        return Ok(marks.mark(&text).into_owned());
    }
    let parts: Vec<Part<'_>> =
        serde_json::from_str(content).map_err(|error| invalid(param.to_owned(), &error))?;
    let mut text = String::new();
    for (i, part) in parts.iter().enumerate() {
        match part.text.as_ref().or(part.refusal.as_ref()) {
            Some(more) => text.push_str(more),
            None => {
                return Err(Refusal {
                    kind: EngineFailureKind::Unsupported,
                    message: format!(
                        "This model reads text only; {param}[{i}] is of type '{}'.",
                        part.kind
                    ),
                    param: Some(format!("{param}[{i}]")),
                });
            }
        }
    }
    // Marked as a whole: two parts may spell a control token together.
    Ok(marks.mark(&text).into_owned())
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
