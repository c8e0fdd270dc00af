//! Failure: what a client did wrong or may know about what went wrong.
//!
//! The catalogue of codes is this file: one constructor for each. What clients match on is the
//! code; four messages are fixed as well, because clients were seen to match those too.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::chain::CallKind;
use crate::engine::{EngineFailure, EngineFailureKind};
use crate::id::{ConversationId, ResponseId};
use crate::json::Object;

/// An error as the client sees it: an `error` event, or an HTTP status with a JSON body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub status: u16,
    /// `error.type`.
    pub kind: &'static str,
    pub code: &'static str,
    pub message: String,
    pub param: Option<String>,
    pub retry_after_seconds: Option<u32>,
}

/// What clients are told to wait when the server cannot say how long it will be unavailable.
const UNAVAILABLE_SECONDS: u32 = 1;

/// Text of a client, shown in a message. An error is not the place for megabytes of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(256) {
            Some((end, _)) => write!(f, "{}…", &self.0[..end]),
            None => f.write_str(self.0),
        }
    }
}

/// Chains that cannot be continued as asked.
impl Failure {
    pub fn previous_response_not_found(id: &ResponseId) -> Self {
        let id = Shown(id.as_str());
        let message = format!("Previous response with id '{id}' not found.");
        Self::invalid_request(
            "previous_response_not_found",
            message,
            Some("previous_response_id"),
        )
    }

    /// The history and the new items together are larger than the server keeps.
    pub fn chain_too_large(limit: u64) -> Self {
        let message = format!(
            "With this input the conversation takes more than the {limit} bytes of memory that the \
             server has for one. Start a new one with less."
        );
        Self::invalid_request("context_length_exceeded", message, Some("input"))
    }

    pub fn conversation_not_found(id: &ConversationId) -> Self {
        let id = Shown(id.as_str());
        let message = format!("Conversation with id '{id}' not found.");
        Self {
            status: 404,
            ..Self::invalid_request("conversation_not_found", message, Some("conversation"))
        }
    }

    /// Another turn works on the conversation, or has gone on with it.
    pub fn conversation_locked() -> Self {
        let message = "Another response is being made in this conversation. Try again when it is \
                       done.";
        Self {
            status: 409,
            ..Self::invalid_request("conversation_locked", message, Some("conversation"))
        }
    }

    /// A call that the input leaves unanswered.
    pub fn missing_tool_output(kind: CallKind, call_id: &str) -> Self {
        let call = match kind {
            CallKind::Function => "function call",
            CallKind::Custom => "custom tool call",
        };
        let message = format!("No tool output found for {call} {}.", Shown(call_id));
        Self::invalid_request("missing_tool_output", message, Some("input"))
    }

    /// An output that answers no call.
    pub fn orphan_tool_output(kind: CallKind, call_id: &str) -> Self {
        let output = match kind {
            CallKind::Function => "function call output",
            CallKind::Custom => "custom tool call output",
        };
        let id = Shown(call_id);
        let message = format!("No tool call found for {output} with call_id {id}.");
        Self::invalid_request("orphan_tool_output", message, Some("input"))
    }
}

/// Lanes and connections.
impl Failure {
    pub fn invalid_stream_id() -> Self {
        let message = "The 'stream_id' field must be a non-empty string with at most 256 \
                       characters and may only contain letters, numbers, underscores, hyphens, \
                       and periods.";
        Self::invalid_request("invalid_stream_id", message, Some("stream_id"))
    }

    pub fn stream_limit_reached(limit: usize) -> Self {
        let message = format!(
            "This WebSocket connection has reached its maximum number of distinct stream IDs \
             ({limit}). Reuse an existing stream_id or open a new WebSocket connection."
        );
        Self::invalid_request("websocket_stream_limit_reached", message, Some("stream_id"))
    }

    pub fn connection_limit_reached(limit: Duration) -> Self {
        let seconds = limit.as_secs();
        let limit = if seconds > 0 && seconds.is_multiple_of(60) {
            format!("{} minutes", seconds / 60)
        } else {
            format!("{seconds} seconds")
        };
        let message = format!(
            "Responses websocket connection limit reached ({limit}). Create a new websocket \
             connection to continue."
        );
        Self::invalid_request("websocket_connection_limit_reached", message, None)
    }

    pub fn too_many_queued_responses() -> Self {
        Self {
            status: 429,
            ..Self::invalid_request(
                "too_many_queued_responses",
                "Too many responses are waiting on this connection. Wait until some have ended, \
                 or open another connection.",
                None,
            )
        }
    }

    pub fn request_too_large(limit: usize) -> Self {
        Self {
            status: 413,
            ..Self::invalid_request(
                "request_too_large",
                format!("The message is larger than the limit of {limit} bytes."),
                None,
            )
        }
    }

    pub fn server_shutting_down() -> Self {
        Self {
            status: 503,
            kind: "server_error",
            retry_after_seconds: Some(UNAVAILABLE_SECONDS),
            ..Self::invalid_request(
                "server_shutting_down",
                "The server is shutting down. Send the request again on a new connection.",
                None,
            )
        }
    }

    /// How a create that had not started ends when it is cancelled.
    pub fn response_cancelled() -> Self {
        Self::invalid_request(
            "response_cancelled",
            "The response was cancelled before it started.",
            None,
        )
    }
}

/// Messages and members that are not what they should be. `param` is the path of the member.
impl Failure {
    pub fn invalid_json(problem: impl fmt::Display) -> Self {
        let message = format!("The message is not valid JSON: {problem}.");
        Self::invalid_request("invalid_json", message, None)
    }

    pub fn unsupported_event_type(kind: &str) -> Self {
        let message = format!("Unsupported event type: '{}'.", Shown(kind));
        Self::invalid_request("unsupported_event_type", message, Some("type"))
    }

    pub fn missing_required_parameter(param: impl fmt::Display) -> Self {
        let message = format!("Missing required parameter: '{param}'.");
        Self::invalid_request(
            "missing_required_parameter",
            message,
            Some(&param.to_string()),
        )
    }

    pub fn item_not_found(param: impl fmt::Display, id: &str) -> Self {
        let message = format!("Item with id '{}' not found.", Shown(id));
        Self::invalid_request("item_not_found", message, Some(&param.to_string()))
    }

    pub fn unknown_parameter(param: impl fmt::Display) -> Self {
        let message = format!("Unknown parameter: '{param}'.");
        Self::invalid_request("unknown_parameter", message, Some(&param.to_string()))
    }

    pub fn unsupported_parameter(param: impl fmt::Display, why: &str) -> Self {
        let message = format!("Unsupported parameter: '{param}'. {why}");
        Self::invalid_request("unsupported_parameter", message, Some(&param.to_string()))
    }

    pub fn mutually_exclusive_parameters(param: &str, other: &str) -> Self {
        let message = format!("'{param}' and '{other}' cannot be used together.");
        Self::invalid_request("mutually_exclusive_parameters", message, Some(param))
    }

    pub fn invalid_type(param: impl fmt::Display, expected: &str, found: &str) -> Self {
        let message =
            format!("Invalid type for '{param}': expected {expected}, but got {found} instead.");
        Self::invalid_request("invalid_type", message, Some(&param.to_string()))
    }

    pub fn invalid_value(param: impl fmt::Display, problem: impl fmt::Display) -> Self {
        let message = format!("Invalid value for '{param}': {problem}.");
        Self::invalid_request("invalid_value", message, Some(&param.to_string()))
    }

    pub fn unsupported_value(param: impl fmt::Display, problem: impl fmt::Display) -> Self {
        let message = format!("Unsupported value for '{param}': {problem}.");
        Self::invalid_request("unsupported_value", message, Some(&param.to_string()))
    }

    /// What is sealed in it is not ours, not for this owner, or was changed.
    pub fn invalid_encrypted_content(param: impl fmt::Display) -> Self {
        let message = format!(
            "Invalid value for '{param}': it was not made by this server for this API key, or was \
             changed on the way. Send what came before it instead."
        );
        let param = param.to_string();
        Self::invalid_request("invalid_encrypted_content", message, Some(&param))
    }

    pub fn integer_below_min_value(param: impl fmt::Display, min: i64) -> Self {
        Self::out_of_range(
            "integer_below_min_value",
            param,
            format_args!("at least {min}"),
        )
    }

    pub fn integer_above_max_value(param: impl fmt::Display, max: i64) -> Self {
        Self::out_of_range(
            "integer_above_max_value",
            param,
            format_args!("at most {max}"),
        )
    }

    pub fn decimal_below_min_value(param: impl fmt::Display, min: f64) -> Self {
        Self::out_of_range(
            "decimal_below_min_value",
            param,
            format_args!("at least {min}"),
        )
    }

    pub fn decimal_above_max_value(param: impl fmt::Display, max: f64) -> Self {
        Self::out_of_range(
            "decimal_above_max_value",
            param,
            format_args!("at most {max}"),
        )
    }

    pub fn string_above_max_length(param: impl fmt::Display, max: usize) -> Self {
        let at_most = format_args!("at most {max} characters long");
        Self::out_of_range("string_above_max_length", param, at_most)
    }

    pub fn array_above_max_length(param: impl fmt::Display, max: usize) -> Self {
        let at_most = format_args!("an array of at most {max} elements");
        Self::out_of_range("array_above_max_length", param, at_most)
    }

    pub fn object_above_max_properties(param: impl fmt::Display, max: usize) -> Self {
        let at_most = format_args!("an object of at most {max} members");
        Self::out_of_range("object_above_max_properties", param, at_most)
    }

    fn out_of_range(
        code: &'static str,
        param: impl fmt::Display,
        range: fmt::Arguments<'_>,
    ) -> Self {
        let message = format!("Invalid value for '{param}': it must be {range}.");
        Self::invalid_request(code, message, Some(&param.to_string()))
    }
}

/// What is not the client's fault.
impl Failure {
    pub fn server_error(message: impl Into<String>) -> Self {
        Self {
            status: 500,
            kind: "server_error",
            code: "server_error",
            message: message.into(),
            param: None,
            retry_after_seconds: None,
        }
    }

    /// What is stored cannot be read or written now.
    pub fn storage_unavailable() -> Self {
        Self {
            status: 503,
            code: "storage_unavailable",
            retry_after_seconds: Some(UNAVAILABLE_SECONDS),
            ..Self::server_error(
                "The server cannot reach its storage of responses. Try again later, or send \
                 'store': false if the response need not be kept.",
            )
        }
    }

    /// Whether a response that fails with this was made, and could only not be kept.
    pub(crate) fn is_of_storage(&self) -> bool {
        matches!(self.code, "storage_unavailable" | "conversation_locked")
    }

    /// The code that `response.error` has for this failure: its enumeration is closed and much
    /// shorter than that of `error` events.
    pub(crate) fn response_error_code(&self) -> &'static str {
        match self.status {
            429 => "rate_limit_exceeded",
            // What was asked for is right, and may be asked for again.
            409 => "server_error",
            400..=499 => "invalid_prompt",
            _ => "server_error",
        }
    }
}

impl From<EngineFailure> for Failure {
    fn from(failure: EngineFailure) -> Self {
        let EngineFailure {
            kind,
            mut message,
            param,
        } = failure;
        let (status, kind, code, default_param, retry_after_seconds) = match kind {
            EngineFailureKind::ModelNotFound => {
                (404, INVALID_REQUEST, "model_not_found", Some("model"), None)
            }
            EngineFailureKind::ContextLengthExceeded => (
                400,
                INVALID_REQUEST,
                "context_length_exceeded",
                Some("input"),
                None,
            ),
            EngineFailureKind::Unsupported => {
                (400, INVALID_REQUEST, "unsupported_value", None, None)
            }
            EngineFailureKind::Invalid => (400, INVALID_REQUEST, "invalid_value", None, None),
            EngineFailureKind::Overloaded => (
                503,
                "server_error",
                "server_is_overloaded",
                None,
                Some(UNAVAILABLE_SECONDS),
            ),
            EngineFailureKind::RateLimited {
                retry_after_seconds,
            } => {
                // Codex reads the delay out of the message when it finds no header.
                if !message.contains("try again in") {
                    message = format!("{message} Please try again in {retry_after_seconds}s.");
                }
                let delay = Some(retry_after_seconds);
                (429, "rate_limit_error", "rate_limit_exceeded", None, delay)
            }
            EngineFailureKind::Internal => (500, "server_error", "server_error", None, None),
        };
        Self {
            status,
            kind,
            code,
            message,
            param: param.or_else(|| default_param.map(String::from)),
            retry_after_seconds,
        }
    }
}

const INVALID_REQUEST: &str = "invalid_request_error";

impl Failure {
    /// The body of an HTTP response with this failure's status.
    pub fn http_body(&self) -> Bytes {
        let mut out = Vec::with_capacity(160 + self.message.len());
        let mut body = Object::open(&mut out);
        self.write_error(&mut body);
        body.close();
        out.into()
    }

    /// Writes the member `error`.
    pub(crate) fn write_error(&self, parent: &mut Object<'_>) {
        let mut error = parent.object("error");
        error.value("type", self.kind);
        self.write_facts(&mut error);
        self.write_headers(&mut error);
        error.close();
    }

    /// Writes `code`, `message` and `param`, which the flat form of SSE has at its top level.
    pub(crate) fn write_facts(&self, object: &mut Object<'_>) {
        object.value("code", self.code);
        object.value("message", &self.message);
        object.value("param", &self.param);
    }

    /// Writes `headers` if there are any. The SDKs look for them inside `error` and Codex at the
    /// top level, so they go to both places.
    pub(crate) fn write_headers(&self, object: &mut Object<'_>) {
        if let Some(seconds) = self.retry_after_seconds {
            let mut headers = object.object("headers");
            headers.value("retry-after", &seconds.to_string());
            headers.close();
        }
    }

    fn invalid_request(
        code: &'static str,
        message: impl Into<String>,
        param: Option<&str>,
    ) -> Self {
        Self {
            status: 400,
            kind: INVALID_REQUEST,
            code,
            message: message.into(),
            param: param.map(String::from),
            retry_after_seconds: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::Path;

    #[test]
    fn an_error_does_not_repeat_megabytes() {
        let long = "é".repeat(1 << 20);
        for failure in [
            Failure::previous_response_not_found(&ResponseId::from(&*long)),
            Failure::orphan_tool_output(CallKind::Function, &long),
            Failure::missing_tool_output(CallKind::Custom, &long),
            Failure::unsupported_event_type(&long),
            Failure::unknown_parameter(Path::Name(&long)),
        ] {
            assert!(failure.http_body().len() < 2000, "{}", failure.code);
        }
    }

    #[test]
    fn a_limit_in_minutes_is_told_in_minutes() {
        for (seconds, told) in [
            (3600, "(60 minutes)"),
            (90, "(90 seconds)"),
            (0, "(0 seconds)"),
        ] {
            let failure = Failure::connection_limit_reached(Duration::from_secs(seconds));
            assert!(failure.message.contains(told), "{}", failure.message);
        }
    }
}
