//! A turn as the body of a chat completion.
//!
//! The two are cut differently: an assistant's message holds reasoning, text and all its calls,
//! which are items of their own here. Item types that a chat does not know are left out.

use serde_json::{Map, Value, json};
use turnwire_protocol::engine::{
    EngineFailure, EngineFailureKind, Purpose, TextFormat, TurnRequest,
};
use turnwire_protocol::item::{Item, ItemKind};
use turnwire_protocol::tool::{CustomFormat, Tool, ToolChoice, ToolKind};

/// Members and elements of all the JSON of one request. Each takes up to a hundred times the bytes
/// that it has as text, so that a message which consists of nothing else would fill the memory.
const PARTS: usize = 1 << 18;

/// The argument that stands for the input of a custom tool.
pub(super) const CUSTOM_INPUT: &str = "input";

/// The body for the upstream's model `model`. `limit_member` is its name for the limit on output.
pub(super) fn body(
    model: &str,
    request: &TurnRequest,
    limit_member: &str,
) -> Result<Value, EngineFailure> {
    let mut body = Map::new();
    body.insert("model".into(), model.into());
    let mut reader = Reader { left: PARTS };
    body.insert("messages".into(), messages(request, &mut reader)?.into());
    body.insert("stream".into(), true.into());
    body.insert("stream_options".into(), json!({"include_usage": true}));
    let limit = match request.wants_output() {
        true => request.max_output_tokens,
        // The least that has the prompt computed.
        false => Some(1),
    };
    if let Some(limit) = limit {
        body.insert(limit_member.into(), limit.into());
    }
    // An upstream's own defaults may suit its model better than ours.
    for (name, value, default) in [
        ("temperature", request.temperature, 1.0),
        ("top_p", request.top_p, 1.0),
        ("presence_penalty", request.presence_penalty, 0.0),
        ("frequency_penalty", request.frequency_penalty, 0.0),
    ] {
        if value != default {
            body.insert(name.into(), decimal(value));
        }
    }
    if request.logprobs {
        body.insert("logprobs".into(), true.into());
        if request.top_logprobs > 0 {
            body.insert("top_logprobs".into(), request.top_logprobs.into());
        }
    }
    // What a summary is to be made with was not chosen by the client, and not every upstream knows
    // it.
    let effort = request.reasoning_effort.as_ref();
    if let Some(effort) = effort.filter(|_| request.purpose == Purpose::Answer) {
        body.insert("reasoning_effort".into(), (**effort).into());
    }
    match &request.format {
        TextFormat::Text => {}
        TextFormat::JsonObject => {
            body.insert("response_format".into(), json!({"type": "json_object"}));
        }
        TextFormat::JsonSchema { schema } => {
            let schema = reader.read(schema, "text.format.schema")?;
            let format = json!({
                "type": "json_schema",
                "json_schema": {"name": "response", "schema": schema},
            });
            body.insert("response_format".into(), format);
        }
    }
    add_tools(&mut body, request, &mut reader)?;
    Ok(body.into())
}

/// Tools, and the choice among them. A choice among some is made by offering only those.
fn add_tools(
    body: &mut Map<String, Value>,
    request: &TurnRequest,
    reader: &mut Reader,
) -> Result<(), EngineFailure> {
    let allowed = |tool: &&Tool| match &request.tool_choice {
        ToolChoice::Allowed { names, .. } => names.contains(&tool.name),
        _ => true,
    };
    let mut tools = Vec::new();
    for tool in request.offered().filter(allowed) {
        tools.push(json!({"type": "function", "function": function(tool, reader)?}));
    }
    if tools.is_empty() {
        return Ok(());
    }
    let choice = match &request.tool_choice {
        ToolChoice::Auto
        | ToolChoice::Allowed {
            required: false, ..
        } => None,
        ToolChoice::None => Some("none".into()),
        ToolChoice::Required | ToolChoice::Allowed { required: true, .. } => {
            Some("required".into())
        }
        ToolChoice::Tool(name) => {
            Some(json!({"type": "function", "function": {"name": &*name.qualified()}}))
        }
    };
    body.insert("tools".into(), tools.into());
    body.extend(choice.map(|choice| ("tool_choice".into(), choice)));
    if !request.parallel_tool_calls {
        body.insert("parallel_tool_calls".into(), false.into());
    }
    Ok(())
}

/// A chat knows functions only: a custom tool becomes one whose only argument is its input.
fn function(tool: &Tool, reader: &mut Reader) -> Result<Value, EngineFailure> {
    let mut description = tool.description.as_deref().unwrap_or_default().to_owned();
    let parameters = match &tool.kind {
        ToolKind::Function {
            parameters: Some(parameters),
            ..
        } => reader.read(parameters, &format!("{}.parameters", tool.path))?,
        ToolKind::Function {
            parameters: None, ..
        } => json!({"type": "object", "properties": {}}),
        ToolKind::Custom(format) => {
            let held_to = match format {
                CustomFormat::Text => None,
                CustomFormat::Lark(definition) => Some(("this Lark grammar", definition)),
                CustomFormat::Regex(definition) => Some(("this regular expression", definition)),
            };
            if let Some((form, definition)) = held_to {
                description += &format!("\n\nThe input must match {form}:\n{definition}");
            }
            json!({
                "type": "object",
                "properties": {CUSTOM_INPUT: {"type": "string"}},
                "required": [CUSTOM_INPUT],
                "additionalProperties": false,
            })
        }
    };
    let mut function = Map::new();
    function.insert("name".into(), (*tool.name.qualified()).into());
    if !description.is_empty() {
        function.insert("description".into(), description.into());
    }
    function.insert("parameters".into(), parameters);
    Ok(function.into())
}

/// The whole conversation: instructions, the responses of the chain, the new input.
fn messages(request: &TurnRequest, reader: &mut Reader) -> Result<Vec<Value>, EngineFailure> {
    let mut chat = Chat {
        messages: Vec::new(),
        reader,
    };
    if let Some(instructions) = &request.instructions {
        chat.say("system", (**instructions).into());
    }
    let mut links: Vec<_> = request
        .parent
        .iter()
        .flat_map(|chain| chain.ancestry())
        .collect();
    links.reverse();
    for link in links {
        for item in link.input().iter().chain(link.output().iter()) {
            chat.add(item, &Place::Before)?;
        }
    }
    for (index, item) in request.input.iter().enumerate() {
        chat.add(item, &Place::Input(index))?;
    }
    Ok(chat.messages)
}

/// Where an item stands, to name it in a refusal.
enum Place {
    /// In an earlier response.
    Before,
    /// In the new input.
    Input(usize),
}

struct Chat<'r> {
    messages: Vec<Value>,
    reader: &'r mut Reader,
}

impl Chat<'_> {
    fn add(&mut self, item: &Item, place: &Place) -> Result<(), EngineFailure> {
        let fields = match item.kind() {
            ItemKind::Compaction => {
                let summary = item.revealed().unwrap_or_default();
                self.say("user", summary.into());
                return Ok(());
            }
            ItemKind::ItemReference
            | ItemKind::CompactionTrigger
            | ItemKind::AdditionalTools
            | ItemKind::ConfigurationUpdate
            | ItemKind::Other => return Ok(()),
            _ => self.reader.read(item.raw(), "input")?,
        };
        match item.kind() {
            ItemKind::Message => {
                let content = fields.get("content").unwrap_or(&Value::Null);
                match fields.get("role").and_then(Value::as_str) {
                    Some("assistant") => self.assistant_says(&said(content)),
                    Some("system" | "developer") => {
                        let content = parts(content, place, "content")?;
                        self.say("system", content);
                    }
                    _ => {
                        let content = parts(content, place, "content")?;
                        self.say("user", content);
                    }
                }
            }
            ItemKind::Reasoning => {
                let thoughts = match thoughts(&fields) {
                    said if said.is_empty() => item.revealed().unwrap_or_default().to_owned(),
                    said => said,
                };
                if !thoughts.is_empty() {
                    let assistant = self.assistant();
                    assistant.insert("reasoning_content".into(), thoughts.into());
                }
            }
            ItemKind::FunctionCall => {
                let arguments = text(&fields, "arguments");
                self.call(item, &qualified_name(&fields), arguments);
            }
            ItemKind::CustomToolCall => {
                let arguments = json!({CUSTOM_INPUT: text(&fields, "input")}).to_string();
                self.call(item, &qualified_name(&fields), &arguments);
            }
            ItemKind::FunctionCallOutput | ItemKind::CustomToolCallOutput => {
                let output = fields.get("output").unwrap_or(&Value::Null);
                self.tool_says(item, parts(output, place, "output")?);
            }
            _ => {}
        }
        Ok(())
    }

    fn say(&mut self, role: &str, content: Value) {
        let mut message = Map::new();
        message.insert("role".into(), role.into());
        message.insert("content".into(), content);
        self.messages.push(message.into());
    }

    /// The assistant's message that items still belong to, made if there is none.
    fn assistant(&mut self) -> &mut Map<String, Value> {
        let is_open = |message: &Value| message["role"] == "assistant";
        if !self.messages.last().is_some_and(is_open) {
            self.say("assistant", Value::Null);
        }
        let last = self.messages.last_mut().and_then(Value::as_object_mut);
        last.expect("every message is an object, and there is one")
    }

    fn assistant_says(&mut self, said: &str) {
        let assistant = self.assistant();
        // Text behind a call or another text is a message of its own.
        if assistant.contains_key("tool_calls") || assistant["content"].is_string() {
            self.say("assistant", said.into());
        } else {
            assistant.insert("content".into(), said.into());
        }
    }

    fn call(&mut self, item: &Item, name: &str, arguments: &str) {
        let call = json!({
            "id": item.call_id().map_or("", |id| id),
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        });
        let calls = self.assistant().entry("tool_calls");
        if let Value::Array(calls) = calls.or_insert_with(|| Value::Array(Vec::new())) {
            calls.push(call);
        }
    }

    /// A tool's message holds text only; the images in it are shown by the user right behind.
    fn tool_says(&mut self, item: &Item, content: Value) {
        let mut images = Vec::new();
        let text = match content {
            Value::Array(parts) => {
                let is_text = |part: &Value| part["type"] == "text";
                let (texts, others) = parts.into_iter().partition::<Vec<_>, _>(is_text);
                images = others;
                let texts: Vec<_> = texts
                    .iter()
                    .filter_map(|part| part["text"].as_str())
                    .collect();
                texts.concat().into()
            }
            text => text,
        };
        self.messages.push(json!({
            "role": "tool",
            "tool_call_id": item.call_id().map_or("", |id| id),
            "content": text,
        }));
        if !images.is_empty() {
            self.say("user", images.into());
        }
    }
}

/// Content for a chat: a string, or parts if there is more than text.
fn parts(content: &Value, place: &Place, member: &str) -> Result<Value, EngineFailure> {
    let Value::Array(parts) = content else {
        return Ok(content.as_str().unwrap_or_default().into());
    };
    let mut chat = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        let at = |name: &str| match place {
            Place::Input(item) => format!("input[{item}].{member}[{index}].{name}"),
            Place::Before => "previous_response_id".into(),
        };
        chat.push(match part.get("type").and_then(Value::as_str) {
            Some("input_image") => image(part, at)?,
            Some("input_file") => file(part, at)?,
            _ => json!({"type": "text", "text": any_text(part)}),
        });
    }
    if chat.iter().all(|part| part["type"] == "text") {
        let texts: Vec<_> = chat
            .iter()
            .filter_map(|part| part["text"].as_str())
            .collect();
        return Ok(texts.concat().into());
    }
    Ok(chat.into())
}

fn image(part: &Value, at: impl Fn(&str) -> String) -> Result<Value, EngineFailure> {
    let Some(url) = part.get("image_url").and_then(Value::as_str) else {
        let why = "this model takes images as 'image_url', an address or a data URL";
        return Err(unsupported(at("file_id"), why));
    };
    let mut image = Map::new();
    image.insert("url".into(), url.into());
    if let Some(detail) = part.get("detail").filter(|detail| detail.is_string()) {
        image.insert("detail".into(), detail.clone());
    }
    Ok(json!({"type": "image_url", "image_url": image}))
}

fn file(part: &Value, at: impl Fn(&str) -> String) -> Result<Value, EngineFailure> {
    let Some(data) = part.get("file_data").and_then(Value::as_str) else {
        let given = ["file_id", "file_url"]
            .into_iter()
            .find(|name| part.get(name).is_some_and(|value| !value.is_null()));
        let why = "this model takes files as 'file_data' only";
        return Err(unsupported(at(given.unwrap_or("file_data")), why));
    };
    let name = part.get("filename").and_then(Value::as_str);
    Ok(json!({"type": "file", "file": {"filename": name.unwrap_or("file"), "file_data": data}}))
}

/// What an assistant's message says, refusals included.
fn said(content: &Value) -> String {
    match content {
        Value::Array(parts) => parts.iter().map(any_text).collect(),
        text => text.as_str().unwrap_or_default().to_owned(),
    }
}

fn any_text(part: &Value) -> &str {
    let text = part.get("text").or_else(|| part.get("refusal"));
    text.and_then(Value::as_str).unwrap_or_default()
}

/// The text of a reasoning item, as far as it is there to be read.
fn thoughts(fields: &Value) -> String {
    let content = fields.get("content").and_then(Value::as_array);
    let thoughts: Vec<&str> = content.into_iter().flatten().map(any_text).collect();
    thoughts.join("\n\n")
}

fn qualified_name(fields: &Value) -> String {
    let name = text(fields, "name");
    match fields.get("namespace").and_then(Value::as_str) {
        Some(namespace) => format!("{namespace}__{name}"),
        None => name.to_owned(),
    }
}

fn text<'a>(fields: &'a Value, name: &str) -> &'a str {
    fields.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// As short as it was written: 0.7 rather than the nearest number of twice the precision.
fn decimal(value: f32) -> Value {
    serde_json::from_str(&value.to_string()).unwrap_or(Value::Null)
}

/// Takes JSON apart, up to a limit.
struct Reader {
    /// How much of [`PARTS`] is left.
    left: usize,
}

impl Reader {
    fn read(&mut self, json: &[u8], param: &str) -> Result<Value, EngineFailure> {
        let refusal = |message: String| EngineFailure {
            kind: EngineFailureKind::Invalid,
            message,
            param: Some(param.to_owned()),
        };
        let parts = count_parts(json);
        self.left = self.left.checked_sub(parts).ok_or_else(|| {
            refusal(format!(
                "Invalid value for '{param}': this model's server is sent no conversation whose \
                 items and tools have more than {PARTS} members and elements."
            ))
        })?;
        serde_json::from_slice(json)
            .map_err(|error| refusal(format!("Invalid value for '{param}': {error}.")))
    }
}

/// Members of all objects and elements of all arrays in this JSON, or a few more.
fn count_parts(json: &[u8]) -> usize {
    let (mut parts, mut in_string, mut escaped) = (0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' | b',' if !in_string => parts += 1,
            _ => {}
        }
    }
    parts
}

fn unsupported(param: String, why: &str) -> EngineFailure {
    EngineFailure {
        kind: EngineFailureKind::Unsupported,
        message: format!("Unsupported value for '{param}': {why}."),
        param: Some(param),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted_outside_of_strings() {
        for (json, parts) in [
            (r#""a,b""#, 0),
            (r#"{"a":[1,2],"b\"{,":{}}"#, 5),
            (r#"["\\",","]"#, 2),
        ] {
            assert_eq!(count_parts(json.as_bytes()), parts, "{json}");
        }
    }
}
