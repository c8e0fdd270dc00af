//! The smaller members of a create: how to sample, what to show, what to refuse.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::engine::TextFormat;
use crate::failure::Failure;
use crate::field::{Field, Path, members};
use crate::id::ConversationId;
use crate::json::Object;

/// A number and the JSON text it is shown as.
#[derive(Debug)]
pub(crate) struct Decimal<'a> {
    pub(crate) value: f32,
    pub(crate) text: &'a str,
}

impl<'a> Decimal<'a> {
    pub(crate) fn read(
        name: &str,
        raw: Option<&'a RawValue>,
        min: f64,
        max: f64,
        default: &'static str,
    ) -> Result<Self, Failure> {
        let (value, text) = match Field::named(name, raw) {
            Some(field) => (field.decimal(min, max)?, field.text()),
            None => (default.parse().expect("defaults are numbers"), default),
        };
        Ok(Self {
            value: value as f32,
            text,
        })
    }
}

/// `text`, and what the response object shows of it.
#[derive(Debug)]
pub(crate) struct Text {
    /// None if the request says nothing of it.
    pub(crate) format: Option<TextFormat>,
    pub(crate) echo: Vec<u8>,
}

members! { TextMembers { format, verbosity } }
members! { FormatMembers { kind = "type", name, description, schema, strict } }

impl Text {
    pub(crate) fn read(field: Option<Field<'_, '_>>, message: &Bytes) -> Result<Self, Failure> {
        let mut echo = Vec::new();
        let mut shown = Object::open(&mut echo);
        let Some(field) = field else {
            shown.raw("format", br#"{"type":"text"}"#);
            shown.close();
            return Ok(Self { format: None, echo });
        };
        let members: TextMembers<'_> = field.object()?;
        let format = match Field::member(&field.path, "format", members.format) {
            Some(format) => Some(show_format(format, message, shown.object("format"))?),
            None => {
                shown.raw("format", br#"{"type":"text"}"#);
                None
            }
        };
        if let Some(verbosity) = Field::member(&field.path, "verbosity", members.verbosity) {
            shown.value("verbosity", verbosity.one_of(&["low", "medium", "high"])?);
        }
        shown.close();
        Ok(Self { format, echo })
    }
}

/// `format` of a `text` that stands in a `configuration_update`, whose bytes these are.
pub(crate) fn read_format(
    text: Field<'_, '_>,
    item: &Bytes,
) -> Result<Option<TextFormat>, Failure> {
    let members: TextMembers<'_> = text.object()?;
    let mut unseen = Vec::new();
    Field::member(&text.path, "format", members.format)
        .map(|format| show_format(format, item, Object::open(&mut unseen)))
        .transpose()
}

fn show_format(
    field: Field<'_, '_>,
    message: &Bytes,
    mut shown: Object<'_>,
) -> Result<TextFormat, Failure> {
    let members: FormatMembers<'_> = field.object()?;
    let kind = Field::required_member(&field.path, "type", members.kind)?;
    let kind = kind.one_of(&["text", "json_object", "json_schema"])?;
    shown.value("type", kind);
    let format = match kind {
        "text" => TextFormat::Text,
        "json_object" => TextFormat::JsonObject,
        _ => {
            let name = Field::required_member(&field.path, "name", members.name)?;
            name.string_up_to(64)?;
            let schema = Field::required_member(&field.path, "schema", members.schema)?;
            if !schema.text().starts_with('{') {
                return Err(schema.expected("an object"));
            }
            let description = Field::member(&field.path, "description", members.description);
            description.map(Field::string).transpose()?;
            let strict = Field::member(&field.path, "strict", members.strict)
                .map(Field::boolean)
                .transpose()?;
            shown.raw("name", name.text().as_bytes());
            shown.raw(
                "description",
                description.map_or("null", Field::text).as_bytes(),
            );
            shown.raw("schema", schema.text().as_bytes());
            shown.value("strict", &strict.unwrap_or(false));
            TextFormat::JsonSchema {
                schema: message.slice_ref(schema.text().as_bytes()),
            }
        }
    };
    shown.close();
    Ok(format)
}

/// `reasoning`, and what the response object shows of it.
#[derive(Debug)]
pub(crate) struct Reasoning {
    pub(crate) effort: Option<&'static str>,
    pub(crate) echo: Vec<u8>,
}

members! { ReasoningMembers { effort, summary, generate_summary, context, mode } }

const EFFORTS: &[&str] = &["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// `effort` of a `reasoning` that stands in a `configuration_update`.
pub(crate) fn read_effort(reasoning: Field<'_, '_>) -> Result<Option<&'static str>, Failure> {
    let members: ReasoningMembers<'_> = reasoning.object()?;
    Field::member(&reasoning.path, "effort", members.effort)
        .map(|effort| effort.one_of(EFFORTS))
        .transpose()
}

impl Reasoning {
    pub(crate) fn read(field: Option<Field<'_, '_>>) -> Result<Self, Failure> {
        let Some(field) = field else {
            return Ok(Self {
                effort: None,
                echo: b"null".to_vec(),
            });
        };
        let members: ReasoningMembers<'_> = field.object()?;
        let choice = |name, raw, allowed: &[&'static str]| {
            Field::member(&field.path, name, raw)
                .map(|member| member.one_of(allowed))
                .transpose()
        };
        let effort = choice("effort", members.effort, EFFORTS)?;
        let summaries = ["auto", "concise", "detailed"];
        let summary = choice("summary", members.summary, &summaries)?;
        // The former name of `summary`.
        let generate_summary = choice("generate_summary", members.generate_summary, &summaries)?;
        let context = choice(
            "context",
            members.context,
            &["auto", "current_turn", "all_turns"],
        )?;
        let mode = choice("mode", members.mode, &["standard", "pro"])?;

        let mut echo = Vec::new();
        let mut shown = Object::open(&mut echo);
        shown.value("effort", &effort);
        shown.value("summary", &summary.or(generate_summary));
        for (name, value) in [("context", context), ("mode", mode)] {
            if let Some(value) = value {
                shown.value(name, value);
            }
        }
        shown.close();
        Ok(Self { effort, echo })
    }
}

const LOGPROBS: &str = "message.output_text.logprobs";
const SEALED_REASONING: &str = "reasoning.encrypted_content";

/// All that `include` may name.
const INCLUDABLE: &[&str] = &[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    SEALED_REASONING,
    LOGPROBS,
];

/// What `include` asks for. Its other values add nothing here.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Include {
    pub(crate) logprobs: bool,
    /// Reasoning items carry their text once more, sealed.
    pub(crate) sealed_reasoning: bool,
}

pub(crate) fn read_include(field: Field<'_, '_>) -> Result<Include, Failure> {
    let mut include = Include::default();
    for (index, raw) in field.array()?.into_iter().enumerate() {
        let path = Path::Index(&field.path, index);
        match (Field { raw, path }).one_of(INCLUDABLE)? {
            LOGPROBS => include.logprobs = true,
            SEALED_REASONING => include.sealed_reasoning = true,
            _ => {}
        }
    }
    Ok(include)
}

/// There is one tier here, which is called the default one in the answer.
pub(crate) fn check_service_tier(field: Field<'_, '_>) -> Result<(), Failure> {
    let tiers = [
        "auto",
        "default",
        "flex",
        "scale",
        "priority",
        "fast",
        "ultrafast",
    ];
    field.one_of(&tiers).map(drop)
}

/// At most 16 pairs of a key of 64 and a value of 512 characters.
pub(crate) fn check_metadata(field: Field<'_, '_>) -> Result<(), Failure> {
    let pairs: HashMap<String, &RawValue> = field.object()?;
    if pairs.len() > 16 {
        return Err(Failure::object_above_max_properties(field.path, 16));
    }
    for (key, &raw) in &pairs {
        let path = Path::Member(&field.path, key);
        if key.chars().count() > 64 {
            return Err(Failure::string_above_max_length(path, 64));
        }
        Field { raw, path }.string_up_to(512)?;
    }
    Ok(())
}

members! { ContextManagementMembers { kind = "type", compact_threshold } }

/// The threshold of `context_management`, in tokens; the lowest one, if there are several.
pub(crate) fn compact_threshold(field: Field<'_, '_>) -> Result<Option<u64>, Failure> {
    let mut lowest = None;
    for (index, raw) in field.array()?.into_iter().enumerate() {
        let path = Path::Index(&field.path, index);
        let entry: ContextManagementMembers<'_> = Field { raw, path }.object()?;
        if let Some(kind) = Field::member(&path, "type", entry.kind) {
            kind.one_of(&["compaction"])?;
        }
        let threshold = Field::member(&path, "compact_threshold", entry.compact_threshold)
            .map(|threshold| threshold.integer(1000, i64::MAX))
            .transpose()?;
        let threshold = threshold.map(i64::unsigned_abs);
        lowest = lowest.into_iter().chain(threshold).min();
    }
    Ok(lowest)
}

members! { CacheOptionsMembers { prewarm } }

/// `prompt_cache_options.prewarm`, another way to say `generate: false`.
pub(crate) fn prewarm(field: Field<'_, '_>) -> Result<bool, Failure> {
    let members: CacheOptionsMembers<'_> = field.object()?;
    let prewarm = Field::member(&field.path, "prewarm", members.prewarm);
    prewarm.map_or(Ok(false), Field::boolean)
}

members! { MultiAgentMembers { enabled } }

pub(crate) fn multi_agent_enabled(field: Field<'_, '_>) -> Result<bool, Failure> {
    let members: MultiAgentMembers<'_> = field.object()?;
    let enabled = Field::member(&field.path, "enabled", members.enabled);
    enabled.map_or(Ok(false), Field::boolean)
}

members! { ConversationMembers { id } }

/// `conversation` is an id, or an object that has one.
pub(crate) fn read_conversation(field: Field<'_, '_>) -> Result<ConversationId, Failure> {
    if field.text().starts_with('"') {
        return Ok(ConversationId::from(&*field.string()?));
    }
    if !field.text().starts_with('{') {
        return Err(field.expected("a string or an object"));
    }
    let members: ConversationMembers<'_> = field.object()?;
    let id = Field::required_member(&field.path, "id", members.id)?;
    Ok(ConversationId::from(&*id.string()?))
}
