//! Upstream: the HTTP side of one chat server.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use turnwire_protocol::engine::{EngineFailure, EngineFailureKind};

/// The list of models of a large gateway.
const LISTING_BYTES: usize = 4 << 20;

/// An upstream's account of what is wrong with a request.
const ERROR_BYTES: usize = 64 << 10;

/// What of that account a client is shown.
const SHOWN_CHARS: usize = 500;

/// The codes and types of errors that are logged: what OpenAI, llama.cpp and vLLM are known to
/// say. Any other may repeat what a client said.
const LOGGED_CODES: &[&str] = &[
    "BadRequestError",
    "InternalServerError",
    "NotFoundError",
    "authentication_error",
    "context_length_exceeded",
    "exceed_context_size_error",
    "insufficient_quota",
    "invalid_api_key",
    "invalid_request_error",
    "invalid_value",
    "missing_required_parameter",
    "model_not_found",
    "not_found_error",
    "not_supported_error",
    "overloaded_error",
    "permission_error",
    "rate_limit_error",
    "rate_limit_exceeded",
    "server_error",
    "unavailable_error",
    "unknown_parameter",
    "unsupported_parameter",
    "unsupported_value",
];

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const LISTING_TIMEOUT: Duration = Duration::from_secs(15);

/// Silence after which an answer is given up. A long prompt is prefilled in silence.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

pub(super) struct Upstream {
    client: Client,
    base: Url,
    authorization: Option<HeaderValue>,
    /// The upstream refuses `max_tokens` and wants `max_completion_tokens`.
    completion_limit: AtomicBool,
}

/// The name of the member that limits the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LimitMember {
    MaxTokens,
    MaxCompletionTokens,
}

/// Why there is no list of models.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListingError {
    /// Nobody answers, or somebody who is not ready: worth asking again.
    #[error("{0}")]
    NotYet(String),
    #[error("{0}")]
    Final(String),
}

#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    data: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    id: Arc<str>,
}

impl Upstream {
    pub(super) fn new(base: Url, key_file: Option<&Path>) -> anyhow::Result<Self> {
        let client = Client::builder()
            .user_agent(concat!("turnwire/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(IDLE_TIMEOUT)
            .tcp_nodelay(true)
            // A key must not follow a redirect to wherever it points.
            .redirect(Policy::none())
            .build()
            .context("--engine chat: no HTTP client")?;
        Ok(Self {
            client,
            base,
            authorization: key_file.map(read_key).transpose()?,
            completion_limit: AtomicBool::new(false),
        })
    }

    pub(super) async fn models(&self) -> Result<BTreeSet<Arc<str>>, ListingError> {
        let request = self.authorized(self.client.get(self.address("models")));
        let response = request.timeout(LISTING_TIMEOUT).send().await;
        let response = response.map_err(|error| ListingError::NotYet(cause(error)))?;
        let status = response.status();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(ListingError::Final(format!(
                    "it answers GET /models with {status}; see --upstream-key-file"
                )));
            }
            _ if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                let problem = format!("it answers GET /models with {status}");
                return Err(ListingError::NotYet(problem));
            }
            _ if !status.is_success() => {
                return Err(ListingError::Final(format!(
                    "it answers GET /models with {status}; does the address end as it should, \
                     with /v1 for example?"
                )));
            }
            _ => {}
        }
        let body = bounded_body(response, LISTING_BYTES).await;
        let body = body.map_err(|error| ListingError::NotYet(cause(error)))?;
        let listing: Listing = serde_json::from_slice(&body)
            .map_err(|error| ListingError::Final(format!("its list of models: {error}")))?;
        Ok(listing.data.into_iter().map(|listed| listed.id).collect())
    }

    /// Posts a chat completion. The answer is good; whatever else came is a failure.
    pub(super) async fn complete(&self, body: Vec<u8>) -> Result<Response, EngineFailure> {
        let request = self.client.post(self.address("chat/completions"));
        let request = self
            .authorized(request)
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        let response = request.send().await.map_err(|error| {
            tracing::warn!(upstream = %self, error = cause(error), "no answer");
            failure(
                EngineFailureKind::Overloaded,
                "The model's server does not answer. Try again later.",
            )
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(response).await)
    }

    /// The name of the limit to try first.
    pub(super) fn limit_member(&self) -> LimitMember {
        match self.completion_limit.load(Ordering::Relaxed) {
            true => LimitMember::MaxCompletionTokens,
            false => LimitMember::MaxTokens,
        }
    }

    /// The upstream has answered a request that was sent with this name. What it refuses teaches
    /// nothing: a refusal may repeat what a client wrote.
    pub(super) fn remember_limit(&self, member: LimitMember) {
        if member == LimitMember::MaxCompletionTokens {
            self.completion_limit.store(true, Ordering::Relaxed);
        }
    }

    fn address(&self, resource: &str) -> Url {
        let mut url = self.base.clone();
        let path = format!("{}/{resource}", self.base.path().trim_end_matches('/'));
        url.set_path(&path);
        url
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.authorization {
            Some(value) => request.header(AUTHORIZATION, value),
            None => request,
        }
    }

    async fn refusal(&self, response: Response) -> EngineFailure {
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let body = bounded_body(response, ERROR_BYTES).await;
        let account = Account::read(&body.unwrap_or_default());
        tracing::warn!(upstream = %self, status = status.as_u16(), code = account.logged_code(), "refused");
        let message = |prefix: &str| match &account.message {
            Some(message) => format!("{prefix}: {message:.SHOWN_CHARS$}"),
            None => format!("{prefix} with status {}.", status.as_u16()),
        };
        match status {
            _ if account.is_about_length() => failure(
                EngineFailureKind::ContextLengthExceeded,
                &message("The model's server refused the request"),
            ),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => failure(
                EngineFailureKind::Internal,
                "The model's server refused this server's key.",
            ),
            StatusCode::NOT_FOUND => failure(
                EngineFailureKind::ModelNotFound,
                "The model's server does not have this model any more.",
            ),
            StatusCode::TOO_MANY_REQUESTS => failure(
                EngineFailureKind::RateLimited {
                    retry_after_seconds: retry_after.unwrap_or(1),
                },
                "The model's server is asked too often.",
            ),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY => failure(
                EngineFailureKind::Overloaded,
                "The model's server is not available. Try again later.",
            ),
            _ if status.is_client_error() => failure(
                EngineFailureKind::Invalid,
                &message("The model's server refused the request"),
            ),
            _ => failure(
                EngineFailureKind::Internal,
                &message("The model's server failed"),
            ),
        }
    }
}

impl LimitMember {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
        }
    }

    /// The name that is worth a try after such a refusal.
    pub(super) fn after(self, refusal: &EngineFailure) -> Option<Self> {
        let other = Self::MaxCompletionTokens;
        let about_it =
            refusal.kind == EngineFailureKind::Invalid && refusal.message.contains(other.name());
        (self == Self::MaxTokens && about_it).then_some(other)
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upstream({self})")
    }
}

impl fmt::Display for Upstream {
    /// Without the query, which may hold a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            self.base
                .as_str()
                .split(['?', '#'])
                .next()
                .unwrap_or_default(),
        )
    }
}

/// The `error` object of a refusal, in any of the forms that are about.
#[derive(Debug, Default)]
struct Account {
    message: Option<String>,
    code: Option<String>,
}

impl Account {
    fn read(body: &[u8]) -> Self {
        let Ok(body) = serde_json::from_slice::<serde_json::Value>(body) else {
            return Self::default();
        };
        let error = body.get("error").unwrap_or(&body);
        let text = |value: Option<&serde_json::Value>| value?.as_str().map(str::to_owned);
        Self {
            message: text(error.get("message"))
                .or_else(|| text(Some(error)))
                .or_else(|| text(body.get("detail"))),
            code: text(error.get("code")).or_else(|| text(error.get("type"))),
        }
    }

    fn logged_code(&self) -> Option<&'static str> {
        let code = self.code.as_deref()?;
        LOGGED_CODES.iter().find(|known| **known == code).copied()
    }

    fn is_about_length(&self) -> bool {
        let code = self.code.as_deref().unwrap_or_default();
        let message = self.message.as_deref().unwrap_or_default().to_lowercase();
        matches!(
            code,
            "context_length_exceeded" | "exceed_context_size_error"
        ) || message.contains("maximum context length")
            || message.contains("context window")
            || message.contains("exceeds the available context size")
    }
}

pub(super) fn failure(kind: EngineFailureKind, message: &str) -> EngineFailure {
    EngineFailure {
        kind,
        message: message.to_owned(),
        param: None,
    }
}

/// An error and what it comes from, without the address, which may hold a secret.
pub(super) fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(deeper) = source {
        text = format!("{text}: {deeper}");
        source = deeper.source();
    }
    text
}

fn read_key(file: &Path) -> anyhow::Result<HeaderValue> {
    let named = || format!("--upstream-key-file {}", file.display());
    let text = fs::read_to_string(file).with_context(named)?;
    let key = text.trim();
    if key.is_empty() {
        return Err(anyhow!("it is empty; write the key into it").context(named()));
    }
    let value = HeaderValue::try_from(format!("Bearer {key}")).ok();
    let problem = || anyhow!("it is no key; write one line without control characters");
    let mut value = value.ok_or_else(problem).with_context(named)?;
    value.set_sensitive(true);
    Ok(value)
}

/// The body, or as much of it as is read.
async fn bounded_body(mut response: Response, limit: usize) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        body.extend_from_slice(&piece);
        if body.len() > limit {
            body.truncate(limit);
            break;
        }
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_is_shown_of_an_upstream_is_no_secret() {
        let url = "https://host/v1?key=secret#secret".parse().unwrap();
        let upstream = Upstream::new(url, None).unwrap();
        assert_eq!(upstream.to_string(), "https://host/v1");
        assert_eq!(
            upstream.address("models").as_str(),
            "https://host/v1/models?key=secret#secret"
        );
    }

    #[test]
    fn what_is_logged_of_a_refusal_is_a_code_that_is_known() {
        let logged = |code: &str| {
            let body = serde_json::json!({"error": {"code": code}}).to_string();
            Account::read(body.as_bytes()).logged_code().is_some()
        };
        assert!(logged("context_length_exceeded"));
        assert!(!logged("you said: hello") && !logged("hello"));
    }

    #[test]
    fn a_file_of_a_key_has_one() {
        for (text, expected) in [
            ("sk-1\n", Ok("Bearer sk-1")),
            (" \n", Err("it is empty")),
            ("sk-1\nsk-2\n", Err("one line")),
        ] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            match (read_key(file.path()), expected) {
                (Ok(value), Ok(expected)) => assert_eq!(value, expected),
                (Err(error), Err(expected)) => {
                    let error = format!("{error:#}");
                    assert!(error.contains("--upstream-key-file"), "{error}");
                    assert!(error.contains(expected) && !error.contains("sk"), "{error}");
                }
                (read, _) => panic!("{text:?} {read:?}"),
            }
        }
    }
}
