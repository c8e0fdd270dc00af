//! Response: what a turn came to.

use serde::Deserialize;

use crate::failure::Failure;
use crate::item::Call;
use crate::json::Json;

/// A response object: what callers go by, and the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub id: String,
    pub status: Status,
    /// Empty until the response has ended.
    pub output: Vec<Json>,
    pub usage: Option<Usage>,
    /// Why it is incomplete, such as `max_output_tokens` or `steered`.
    pub incomplete_reason: Option<String>,
    /// Why it failed.
    pub failure: Option<Failure>,
    pub previous_response_id: Option<String>,
    /// Whether the server keeps it, if it says so.
    pub store: Option<bool>,
    /// The whole object.
    pub json: Json,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Status {
    Queued,
    InProgress,
    Completed,
    Incomplete,
    Cancelled,
    Failed,
    #[serde(untagged)]
    Other(String),
}

/// What a turn took, in tokens. What the server does not tell is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub input_tokens: u64,
    /// Of the input, those that the server did not have to compute.
    pub cached_tokens: u64,
    pub output_tokens: u64,
    /// Of the output, those that were reasoning.
    pub reasoning_tokens: u64,
}

#[derive(Deserialize)]
struct Members {
    id: String,
    status: Option<Status>,
    output: Option<Vec<Json>>,
    usage: Option<UsageMembers>,
    incomplete_details: Option<IncompleteMembers>,
    error: Option<Json>,
    previous_response_id: Option<String>,
    store: Option<bool>,
}

#[derive(Deserialize)]
struct IncompleteMembers {
    reason: Option<String>,
}

#[derive(Deserialize)]
struct UsageMembers {
    #[serde(default)]
    input_tokens: u64,
    input_tokens_details: Option<DetailMembers>,
    #[serde(default)]
    output_tokens: u64,
    output_tokens_details: Option<DetailMembers>,
}

#[derive(Deserialize)]
struct DetailMembers {
    #[serde(default)]
    cached_tokens: u64,
    #[serde(default)]
    reasoning_tokens: u64,
}

impl Response {
    pub fn read(json: Json) -> serde_json::Result<Self> {
        let members: Members = json.to()?;
        Ok(Self {
            id: members.id,
            status: members
                .status
                .unwrap_or_else(|| Status::Other(String::new())),
            output: members.output.unwrap_or_default(),
            usage: members.usage.map(|usage| Usage {
                input_tokens: usage.input_tokens,
                cached_tokens: usage
                    .input_tokens_details
                    .map_or(0, |details| details.cached_tokens),
                output_tokens: usage.output_tokens,
                reasoning_tokens: usage
                    .output_tokens_details
                    .map_or(0, |details| details.reasoning_tokens),
            }),
            incomplete_reason: members
                .incomplete_details
                .and_then(|details| details.reason),
            failure: members.error.map(Failure::read),
            previous_response_id: members.previous_response_id,
            store: members.store,
            json,
        })
    }

    /// All text that it says.
    pub fn text(&self) -> String {
        #[derive(Deserialize)]
        struct Message {
            #[serde(default)]
            content: Vec<Part>,
        }
        #[derive(Deserialize)]
        struct Part {
            #[serde(rename = "type")]
            kind: String,
            text: Option<String>,
        }
        let messages = self
            .output
            .iter()
            .filter_map(|item| item.to::<Message>().ok());
        let parts = messages.flat_map(|message| message.content);
        parts
            .filter(|part| part.kind == "output_text")
            .filter_map(|part| part.text)
            .collect()
    }

    /// The calls that wait for the caller's outputs.
    pub fn calls(&self) -> Vec<Call> {
        self.output.iter().filter_map(Call::read).collect()
    }
}
