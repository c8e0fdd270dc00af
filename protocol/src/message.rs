//! ClientMessage: what a client can say, read from one message.
//!
//! A message is scanned once: every member that any message may have is taken as raw JSON, then
//! `type` says which of them to read. It may stand anywhere in the object.

use std::borrow::Cow;

use bytes::Bytes;
use serde::de::IgnoredAny;

use crate::create::{CreateRequest, Task};
use crate::failure::Failure;
use crate::field::{Field, members};
use crate::id::ResponseId;
use crate::inject::Inject;
use crate::lane::LaneName;
use crate::seal::Sealer;
use crate::session::Transport;
use crate::steer::Steer;
use crate::stored::Permit;

#[derive(Debug)]
pub(crate) enum ClientMessage {
    Create(Create),
    Cancel(CancelTarget),
    Steer(Steer),
    Inject(Inject),
    /// `response.processed`: some builds of Codex tell that they are done with a response.
    Processed,
}

/// A create for a lane. Its request may be refused already; the refusal waits for its turn in the
/// lane like an answer would.
#[derive(Debug)]
pub(crate) struct Create {
    pub(crate) lane: Option<LaneName>,
    /// Kept apart from the request, because a refused one evicts its parent too.
    pub(crate) parent: Option<ResponseId>,
    pub(crate) request: Result<Box<CreateRequest>, Failure>,
}

/// What `response.cancel` names.
#[derive(Debug)]
pub(crate) enum CancelTarget {
    Response(ResponseId),
    /// Whatever runs on this lane.
    Lane(Option<LaneName>),
}

members! { Members {
    background, context_management, conversation, frequency_penalty, generate, include, input,
    instructions, kind = "type", max_output_tokens, max_tool_calls, metadata, model, multi_agent,
    parallel_tool_calls, presence_penalty, previous_response_id, prompt, prompt_cache_key,
    prompt_cache_options, reasoning, response_id, safety_identifier, service_tier, store, stream,
    stream_id, temperature, text, tool_choice, tools, top_logprobs, top_p, truncation, user,
} }

/// On what terms the messages of a connection are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'a> {
    pub(crate) transport: Transport,
    /// Whether members that are not known are refused.
    pub(crate) strict: bool,
    pub(crate) sealer: &'a dyn Sealer,
    /// None if nothing may be stored, whatever a request says.
    pub(crate) permit: Option<Permit>,
    /// What a create is for, unless it says so itself.
    pub(crate) task: Task,
}

impl ClientMessage {
    /// Reads one message. An error belongs to no lane: it concerns the message as a whole.
    pub(crate) fn parse(message: &Bytes, terms: Terms<'_>) -> Result<Self, Failure> {
        let members = read_members(message, terms.transport)?;
        let kind = match terms.transport {
            Transport::Http => Cow::Borrowed("response.create"),
            Transport::WebSocket => Field::named("type", members.kind)
                .and_then(|kind| kind.string().ok())
                .ok_or_else(|| Failure::missing_required_parameter("type"))?,
        };
        Ok(match &*kind {
            "response.create" => Self::Create(Create::parse(message, &members, terms)?),
            "response.cancel" => Self::Cancel(CancelTarget::parse(&members)?),
            "response.steer" => Self::Steer(Steer::parse(message, &members)),
            "response.inject" => Self::Inject(Inject::parse(&members)?),
            "response.processed" => Self::Processed,
            other => return Err(Failure::unsupported_event_type(other)),
        })
    }
}

fn read_members(message: &Bytes, transport: Transport) -> Result<Members<'_>, Failure> {
    let text = std::str::from_utf8(message).map_err(Failure::invalid_json)?;
    // Serde would read an array as a struct, too.
    if !text.trim_ascii_start().starts_with('{') {
        serde_json::from_str::<IgnoredAny>(text).map_err(Failure::invalid_json)?;
        return Err(match transport {
            Transport::WebSocket => Failure::missing_required_parameter("type"),
            Transport::Http => Failure::invalid_json("it is not an object"),
        });
    }
    serde_json::from_str(text).map_err(Failure::invalid_json)
}

impl Create {
    /// Reads the body of a request whose path says what it is for. Its members are those of a
    /// create.
    pub(crate) fn parse_body(message: &Bytes, terms: Terms<'_>) -> Result<Self, Failure> {
        let members = read_members(message, terms.transport)?;
        Self::parse(message, &members, terms)
    }

    fn parse(message: &Bytes, members: &Members<'_>, terms: Terms<'_>) -> Result<Self, Failure> {
        let lane = match terms.transport {
            Transport::WebSocket => lane_name(members)?,
            Transport::Http => None,
        };
        let parent = Field::named("previous_response_id", members.previous_response_id)
            .map(|field| field.string().map(|id| ResponseId::from(&*id)))
            .transpose();
        let (parent, request) = match parent {
            Ok(parent) => {
                let named = parent.as_ref();
                let request = CreateRequest::parse(message, members, named, terms);
                (parent, request.map(Box::new))
            }
            Err(failure) => (None, Err(failure)),
        };
        Ok(Self {
            lane,
            parent,
            request,
        })
    }
}

impl CancelTarget {
    fn parse(members: &Members<'_>) -> Result<Self, Failure> {
        match Field::named("response_id", members.response_id) {
            Some(id) => Ok(Self::Response(ResponseId::from(&*id.string()?))),
            None => lane_name(members).map(Self::Lane),
        }
    }
}

fn lane_name(members: &Members<'_>) -> Result<Option<LaneName>, Failure> {
    let Some(field) = Field::named("stream_id", members.stream_id) else {
        return Ok(None);
    };
    let text = field.string().map_err(|_| Failure::invalid_stream_id())?;
    LaneName::new(&text).map(Some)
}
