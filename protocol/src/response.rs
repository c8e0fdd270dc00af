//! The response object: what every lifecycle event carries.
//!
//! Every key that the Open Responses schema requires is always there. What follows from the
//! request alone is written once per turn ([`Echo`]); the rest changes from moment to moment.

use std::ops::Range;

use bytes::Bytes;

use crate::engine::Usage;
use crate::failure::Failure;
use crate::id::{ConversationId, ResponseId};
use crate::item::Item;
use crate::json::Object;
use crate::stored::Status;

/// What the response object shows of its request. A `&str` or bytes called JSON is copied.
#[derive(Debug)]
pub(crate) struct Echo<'a> {
    pub(crate) model: &'a str,
    /// JSON, like all of the following up to `prompt_cache_key`.
    pub(crate) instructions: &'a str,
    pub(crate) tools: &'a [u8],
    pub(crate) tool_choice: &'a str,
    pub(crate) truncation: &'a str,
    pub(crate) text: &'a [u8],
    pub(crate) reasoning: &'a [u8],
    pub(crate) temperature: &'a str,
    pub(crate) top_p: &'a str,
    pub(crate) presence_penalty: &'a str,
    pub(crate) frequency_penalty: &'a str,
    pub(crate) metadata: &'a str,
    pub(crate) safety_identifier: &'a str,
    pub(crate) prompt_cache_key: &'a str,
    /// JSON, and shown only if it was sent: it is deprecated.
    pub(crate) user: Option<&'a str>,
    pub(crate) parallel_tool_calls: bool,
    pub(crate) top_logprobs: u8,
    pub(crate) max_output_tokens: Option<u32>,
    pub(crate) max_tool_calls: Option<u32>,
    pub(crate) store: bool,
    pub(crate) background: bool,
}

impl Echo<'_> {
    /// Writes its members, without braces around them.
    pub(crate) fn members(&self) -> Vec<u8> {
        let large = self.instructions.len() + self.tools.len() + self.metadata.len();
        let mut out = Vec::with_capacity(1024 + large + self.text.len());
        let mut members = Object::inside(&mut out);
        members.value("model", self.model);
        members.raw("instructions", self.instructions.as_bytes());
        members.raw("tools", self.tools);
        members.raw("tool_choice", self.tool_choice.as_bytes());
        members.value("parallel_tool_calls", &self.parallel_tool_calls);
        members.raw("text", self.text);
        members.raw("reasoning", self.reasoning);
        members.raw("temperature", self.temperature.as_bytes());
        members.raw("top_p", self.top_p.as_bytes());
        members.raw("presence_penalty", self.presence_penalty.as_bytes());
        members.raw("frequency_penalty", self.frequency_penalty.as_bytes());
        members.value("top_logprobs", &self.top_logprobs);
        members.value("max_output_tokens", &self.max_output_tokens);
        members.value("max_tool_calls", &self.max_tool_calls);
        members.raw("truncation", self.truncation.as_bytes());
        members.value("store", &self.store);
        members.value("background", &self.background);
        members.value("service_tier", "default");
        members.raw("metadata", self.metadata.as_bytes());
        members.raw("safety_identifier", self.safety_identifier.as_bytes());
        members.raw("prompt_cache_key", self.prompt_cache_key.as_bytes());
        if let Some(user) = self.user {
            members.raw("user", user.as_bytes());
        }
        out
    }
}

/// What of the response object changes while its turn goes on.
#[derive(Debug)]
pub(crate) enum Moment<'a> {
    Queued,
    InProgress,
    Completed {
        at: u64,
        usage: &'a Usage,
    },
    Incomplete {
        reason: &'static str,
        usage: &'a Usage,
    },
    Cancelled,
    Failed(&'a Failure),
}

impl Moment<'_> {
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Queued => Status::Queued,
            Self::InProgress => Status::InProgress,
            Self::Completed { .. } => Status::Completed,
            Self::Incomplete { .. } => Status::Incomplete,
            Self::Cancelled => Status::Cancelled,
            Self::Failed(_) => Status::Failed,
        }
    }
}

/// The response object of one turn.
#[derive(Debug)]
pub(crate) struct ResponseObject {
    pub(crate) id: ResponseId,
    pub(crate) created_at: u64,
    /// None in a conversation, whatever that ended with.
    pub(crate) previous_response_id: Option<ResponseId>,
    /// Shown only if there is one.
    pub(crate) conversation: Option<ConversationId>,
    /// The members of its [`Echo`].
    pub(crate) echo: Bytes,
}

impl ResponseObject {
    /// Returns where in `out` the items of the output stand.
    pub(crate) fn write(
        &self,
        out: &mut Vec<u8>,
        moment: &Moment<'_>,
        output: &[Item],
    ) -> Range<usize> {
        let mut object = Object::open(out);
        object.value("id", self.id.as_str());
        object.value("object", "response");
        object.value("created_at", &self.created_at);
        match moment {
            Moment::Completed { at, .. } => object.value("completed_at", at),
            _ => object.raw("completed_at", b"null"),
        }
        object.value("status", moment.status().as_str());
        match moment {
            Moment::Failed(failure) => write_error(&mut object, failure),
            _ => object.raw("error", b"null"),
        }
        match moment {
            Moment::Incomplete { reason, .. } => {
                let mut details = object.object("incomplete_details");
                details.value("reason", reason);
                details.close();
            }
            _ => object.raw("incomplete_details", b"null"),
        }
        let parent = self.previous_response_id.as_ref();
        object.value("previous_response_id", &parent.map(ResponseId::as_str));
        if let Some(id) = &self.conversation {
            let mut conversation = object.object("conversation");
            conversation.value("id", id.as_str());
            conversation.close();
        }
        object.members(&self.echo);
        let items = object.raw_array("output", output.iter().map(|item| &item.raw()[..]));
        match moment {
            Moment::Completed { usage, .. } | Moment::Incomplete { usage, .. } => {
                write_usage(&mut object, usage);
            }
            _ => object.raw("usage", b"null"),
        }
        object.close();
        items
    }

    /// Bytes to reserve for it.
    pub(crate) fn size_hint(&self, output: &[Item]) -> usize {
        let items: usize = output.iter().map(|item| item.raw().len() + 1).sum();
        512 + self.echo.len() + items
    }
}

fn write_error(object: &mut Object<'_>, failure: &Failure) {
    let mut error = object.object("error");
    error.value("code", failure.response_error_code());
    error.value("message", &failure.message);
    // Codex reads the delay of a failed response here, under this spelling.
    if let Some(seconds) = failure.retry_after_seconds {
        let mut headers = error.object("headers");
        headers.value("Retry-After", &seconds.to_string());
        headers.close();
    }
    error.close();
}

fn write_usage(object: &mut Object<'_>, usage: &Usage) {
    let mut members = object.object("usage");
    members.value("input_tokens", &usage.input_tokens);
    let mut input = members.object("input_tokens_details");
    input.value("cached_tokens", &usage.cached_tokens);
    input.value("cache_write_tokens", &0);
    input.close();
    members.value("output_tokens", &usage.output_tokens);
    let mut output = members.object("output_tokens_details");
    output.value("reasoning_tokens", &usage.reasoning_tokens);
    output.close();
    let total = usage.input_tokens.saturating_add(usage.output_tokens);
    members.value("total_tokens", &total);
    members.close();
}
