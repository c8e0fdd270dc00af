//! CreateRequest: the members of a create that the server reads, checked.
//!
//! What the response object shows of the request is written once, here, as JSON text; nothing
//! else of the message is kept but its items and tools, as slices.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::create::settings::{Decimal, Reasoning, Text};
use crate::engine::TextFormat;
use crate::failure::Failure;
use crate::field::{Field, Path};
use crate::id::{ConversationId, ResponseId};
use crate::item::Item;
use crate::message::{Members, Terms};
use crate::response::Echo;
use crate::session::Transport;
use crate::standing::Standing;
use crate::stored::Permit;
use crate::tool::{ChoiceRequest, NotOffered, Tools, ToolsRead};

pub(crate) use crate::create::input::read_input;
pub(crate) use crate::create::sealed::{open, reveal};

mod input;
mod sealed;
pub(crate) mod settings;

pub(crate) use settings::Include;

/// A request for one turn, without its lane and its parent.
#[derive(Clone, Debug)]
pub(crate) struct CreateRequest {
    pub(crate) model: Arc<str>,
    pub(crate) input: Arc<[Item]>,
    /// What the items of `input` set.
    pub(crate) standing: Standing,
    pub(crate) instructions: Option<Arc<str>>,
    pub(crate) tools: Tools,
    pub(crate) tools_not_offered: NotOffered,
    pub(crate) tool_choice: ChoiceRequest,
    pub(crate) parallel_tool_calls: bool,
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    pub(crate) presence_penalty: f32,
    pub(crate) frequency_penalty: f32,
    pub(crate) max_output_tokens: Option<u32>,
    pub(crate) top_logprobs: u8,
    pub(crate) include: Include,
    /// None if the request does not say. What the chain says holds then.
    pub(crate) format: Option<TextFormat>,
    /// Likewise.
    pub(crate) reasoning_effort: Option<Arc<str>>,
    pub(crate) truncate: bool,
    /// Tokens of a prompt that is compacted before it is answered.
    pub(crate) compact_threshold: Option<u64>,
    pub(crate) task: Task,
    pub(crate) generate: bool,
    /// Made whether anybody waits for it or not, and stored from its beginning.
    pub(crate) background: bool,
    /// What it continues, and what goes on with the response to it.
    pub(crate) conversation: Option<ConversationId>,
    /// None if the response must not be stored.
    pub(crate) permit: Option<Permit>,
    /// The members of the response object that follow from the request alone.
    pub(crate) echo: Bytes,
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Or a warm-up.
    Answer,
    /// Compact, and do nothing else.
    Compact,
    /// Count the tokens of the prompt, and do nothing else.
    Count,
}

/// How the answer to a POST is to be given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// As server-sent events.
    pub stream: bool,
    /// The response is made whether anybody waits for it or not.
    pub background: bool,
}

impl Delivery {
    /// What a body asks for; the default for one that a session would refuse.
    pub fn of(body: &[u8]) -> Self {
        #[derive(Default, Deserialize)]
        struct Body {
            stream: Option<bool>,
            background: Option<bool>,
        }
        let body: Body = serde_json::from_slice(body).unwrap_or_default();
        Self {
            stream: body.stream.unwrap_or(false),
            background: body.background.unwrap_or(false),
        }
    }
}

impl CreateRequest {
    pub(crate) fn parse(
        message: &Bytes,
        members: &Members<'_>,
        parent: Option<&ResponseId>,
        terms: Terms<'_>,
    ) -> Result<Self, Failure> {
        let Terms { strict, sealer, .. } = terms;
        if strict {
            refuse_unknown(message)?;
        }
        if terms.permit.is_none() {
            refuse_retention(members)?;
        }
        refuse_unsupported(members, terms)?;

        let model = Field::required("model", members.model)?.string()?;
        let generate = Field::optional("generate", members.generate, Field::boolean)?;
        let cache_options = members.prompt_cache_options;
        let prewarm = Field::optional("prompt_cache_options", cache_options, settings::prewarm)?;
        // A warm-up can be asked for in two ways, instead of an answer only.
        let is_warm_up = !generate.unwrap_or(true) || prewarm.unwrap_or(false);
        let generate = !is_warm_up || terms.task != Task::Answer;
        let input = read_input(Field::named("input", members.input), message)?;
        let input = sealed::open(input, Path::Name("input"), sealer)?;
        let (input, has_trigger) = input::take_trigger(input, generate)?;
        // Codex opens with a warm-up of nothing but instructions and tools, or not even those.
        // What is counted may be nothing, too.
        let conversation = Field::named("conversation", members.conversation);
        let conversation = conversation.map(settings::read_conversation).transpose()?;
        let continues = parent.is_some() || conversation.is_some();
        let may_be_empty = continues || !generate || terms.task == Task::Count;
        if input.is_empty() && !may_be_empty {
            return Err(Failure::missing_required_parameter("input"));
        }
        let instructions = Field::named("instructions", members.instructions);
        let instructions_text = instructions.map(Field::string).transpose()?;
        let ToolsRead {
            tools,
            echo: tools_echo,
            mut not_offered,
        } = ToolsRead::read(Field::named("tools", members.tools), message, strict)?;
        let tool_choice_field = Field::named("tool_choice", members.tool_choice);
        let tool_choice = ChoiceRequest::read(tool_choice_field)?;
        let standing = Standing::of_input(&input, Path::Name("input"), strict, &mut not_offered)?;
        let parallel_tool_calls = members.parallel_tool_calls;
        let parallel_tool_calls =
            Field::optional("parallel_tool_calls", parallel_tool_calls, Field::boolean)?
                .unwrap_or(true);

        let temperature = Decimal::read("temperature", members.temperature, 0.0, 2.0, "1.0")?;
        let top_p = Decimal::read("top_p", members.top_p, 0.0, 1.0, "1.0")?;
        let presence = members.presence_penalty;
        let presence_penalty = Decimal::read("presence_penalty", presence, -2.0, 2.0, "0.0")?;
        let frequency = members.frequency_penalty;
        let frequency_penalty = Decimal::read("frequency_penalty", frequency, -2.0, 2.0, "0.0")?;
        let max_output_tokens =
            Field::optional("max_output_tokens", members.max_output_tokens, |field| {
                field.integer(16, u32::MAX)
            })?;
        let max_tool_calls = Field::optional("max_tool_calls", members.max_tool_calls, |field| {
            field.integer(1, u32::MAX)
        })?;
        let top_logprobs = Field::optional("top_logprobs", members.top_logprobs, |field| {
            field.integer(0, 20)
        })?;
        let top_logprobs = top_logprobs.unwrap_or(0);
        let include = Field::optional("include", members.include, settings::read_include)?;

        let text = Text::read(Field::named("text", members.text), message)?;
        let reasoning = Reasoning::read(Field::named("reasoning", members.reasoning))?;
        let store = Field::optional("store", members.store, Field::boolean)?.unwrap_or(true);
        // What has a path of its own is answered and forgotten.
        let permit = terms.permit.filter(|_| store && terms.task == Task::Answer);
        let background = Field::optional("background", members.background, Field::boolean)?;
        let background = background.unwrap_or(false);
        if background && permit.is_none() {
            let why = "A response can only be made in the background if it is stored, so that it \
                       can be asked for. Leave 'store' out.";
            return Err(Failure::unsupported_parameter("background", why));
        }
        if conversation.is_some() && permit.is_none() && terms.task == Task::Answer {
            let why = "A conversation keeps what is said in it, so its responses must be stored. \
                       Leave 'store' out.";
            return Err(Failure::unsupported_parameter("conversation", why));
        }

        // What is only shown again, or not even that, must be right all the same.
        let truncation = Field::named("truncation", members.truncation);
        let metadata = Field::named("metadata", members.metadata);
        let safety_identifier = Field::named("safety_identifier", members.safety_identifier);
        let prompt_cache_key = Field::named("prompt_cache_key", members.prompt_cache_key);
        let truncate = truncation
            .map(|field| field.one_of(&["auto", "disabled"]))
            .transpose()?
            == Some("auto");
        metadata.map(settings::check_metadata).transpose()?;
        // One document says 64 characters, a later one 128.
        safety_identifier
            .map(|field| field.string_up_to(128))
            .transpose()?;
        prompt_cache_key.map(Field::string).transpose()?;
        let user = Field::named("user", members.user);
        user.map(Field::string).transpose()?;
        Field::optional(
            "service_tier",
            members.service_tier,
            settings::check_service_tier,
        )?;
        let compact_threshold = Field::optional(
            "context_management",
            members.context_management,
            settings::compact_threshold,
        )?;

        let echo = Echo {
            model: &model,
            instructions: instructions.map_or("null", Field::text),
            tools: &tools_echo,
            tool_choice: tool_choice_field.map_or("\"auto\"", Field::text),
            truncation: truncation.map_or("\"disabled\"", Field::text),
            text: &text.echo,
            reasoning: &reasoning.echo,
            temperature: temperature.text,
            top_p: top_p.text,
            presence_penalty: presence_penalty.text,
            frequency_penalty: frequency_penalty.text,
            metadata: metadata.map_or("{}", Field::text),
            safety_identifier: safety_identifier.map_or("null", Field::text),
            prompt_cache_key: prompt_cache_key.map_or("null", Field::text),
            user: user.map(Field::text),
            parallel_tool_calls,
            top_logprobs,
            max_output_tokens,
            max_tool_calls,
            store: permit.is_some(),
            background,
        };
        Ok(Self {
            echo: echo.members().into(),
            model: model.into(),
            input,
            standing,
            tools_not_offered: not_offered,
            instructions: instructions_text.map(|text| text.into()),
            tools,
            tool_choice,
            parallel_tool_calls,
            temperature: temperature.value,
            top_p: top_p.value,
            presence_penalty: presence_penalty.value,
            frequency_penalty: frequency_penalty.value,
            max_output_tokens,
            top_logprobs,
            include: include.unwrap_or_default(),
            format: text.format,
            reasoning_effort: reasoning.effort.map(Arc::from),
            truncate,
            compact_threshold: compact_threshold.flatten(),
            task: match terms.task {
                Task::Answer if has_trigger => Task::Compact,
                task => task,
            },
            generate,
            background,
            conversation,
            permit,
        })
    }

    /// Whether a response to it may have output.
    pub(crate) fn wants_output(&self) -> bool {
        self.generate && self.task != Task::Count
    }

    /// The same settings without the input, for a turn that continues the one made by this
    /// request. What items of the input have set comes to it with the chain, but must not be
    /// overruled by the request again.
    pub(crate) fn without_input(self) -> Self {
        let update = self.standing;
        Self {
            input: Arc::new([]),
            format: update.format.or(self.format),
            reasoning_effort: update.reasoning_effort.or(self.reasoning_effort),
            standing: Standing::default(),
            ..self
        }
    }
}

/// Refuses what a server that retains nothing cannot do, whatever `store` says.
fn refuse_retention(members: &Members<'_>) -> Result<(), Failure> {
    let background = Field::optional("background", members.background, Field::boolean)?;
    if background == Some(true) {
        let why = "This server retains nothing, and so no response for a client to come back for.";
        return Err(Failure::unsupported_parameter("background", why));
    }
    if Field::named("conversation", members.conversation).is_some() {
        let why = "This server retains nothing, and so no conversations. Continue with \
                   'previous_response_id' on one connection, or send all items again.";
        return Err(Failure::unsupported_parameter("conversation", why));
    }
    Ok(())
}

/// Refuses what would be wrong to ignore.
fn refuse_unsupported(members: &Members<'_>, terms: Terms<'_>) -> Result<(), Failure> {
    let given = |name, raw| Field::named(name, raw).is_some();
    if terms.transport == Transport::Http {
        let why = "It is for WebSocket connections only.";
        for (name, raw) in [
            ("stream_id", members.stream_id),
            ("generate", members.generate),
        ] {
            if given(name, raw) {
                return Err(Failure::unsupported_parameter(name, why));
            }
        }
        // The session does not care, but a wrong type must not pass for false.
        Field::optional("stream", members.stream, Field::boolean)?;
    }
    if Field::optional("background", members.background, Field::boolean)? == Some(true) {
        let why = match (terms.transport, terms.task) {
            (Transport::WebSocket, _) => Some(
                "What is asked for on a WebSocket is not made in the background. Send it as a \
                 POST instead.",
            ),
            (Transport::Http, Task::Answer) => None,
            (Transport::Http, _) => Some("Only responses are made in the background."),
        };
        if let Some(why) = why {
            return Err(Failure::unsupported_parameter("background", why));
        }
    }
    if given("conversation", members.conversation) {
        if given("previous_response_id", members.previous_response_id) {
            let (param, other) = ("previous_response_id", "conversation");
            return Err(Failure::mutually_exclusive_parameters(param, other));
        }
        if terms.task == Task::Compact {
            let why = "Send its items as 'input', or continue with 'previous_response_id'.";
            return Err(Failure::unsupported_parameter("conversation", why));
        }
    }
    if given("prompt", members.prompt) {
        let why = "Send 'model', 'instructions' and 'input' instead of a template.";
        return Err(Failure::unsupported_parameter("prompt", why));
    }
    let multi_agent = Field::optional(
        "multi_agent",
        members.multi_agent,
        settings::multi_agent_enabled,
    )?;
    if multi_agent == Some(true) {
        let why = "This server runs no multi-agent responses.";
        return Err(Failure::unsupported_parameter("multi_agent", why));
    }
    Ok(())
}

/// Everything that is documented for a create, and what clients are known to send besides.
const KNOWN_MEMBERS: &[&str] = &[
    "access_programs",
    "background",
    "background_options",
    "client_metadata",
    "context_management",
    "conversation",
    "event_id",
    "frequency_penalty",
    "generate",
    "image",
    "include",
    "input",
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "model",
    "moderation",
    "multi_agent",
    "parallel_tool_calls",
    "personality",
    "presence_penalty",
    "previous_response_id",
    "prompt",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning",
    "request_id",
    "safety_identifier",
    "service_tier",
    "store",
    "stream",
    "stream_id",
    "stream_options",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "truncation",
    "type",
    "user",
];

/// Refuses the first member that is not known, as strict mode does.
fn refuse_unknown(message: &[u8]) -> Result<(), Failure> {
    let members: BTreeMap<String, IgnoredAny> =
        serde_json::from_slice(message).map_err(Failure::invalid_json)?;
    match members
        .keys()
        .find(|name| !KNOWN_MEMBERS.contains(&name.as_str()))
    {
        Some(name) => Err(Failure::unknown_parameter(Path::Name(name))),
        None => Ok(()),
    }
}
