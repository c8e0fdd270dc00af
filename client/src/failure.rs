//! Failure: what a server says that went wrong with one turn.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::json::Json;

/// An `error` event, a failed response's error, or the error body of an HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// As in HTTP, if the server said one.
    pub status: Option<u16>,
    /// What programs go by, such as `previous_response_not_found`.
    pub code: Option<String>,
    /// For people.
    pub message: String,
    /// The member of the request that it is about.
    pub param: Option<String>,
    /// When the server would like to be asked again.
    pub retry_after: Option<Duration>,
    /// The whole event, error object or body.
    pub json: Json,
}

/// An error as it comes: nested on sockets, flat on some streams, bare inside a response.
#[derive(Deserialize)]
struct Form {
    error: Option<Members>,
    #[serde(default)]
    headers: Map<String, Value>,
    #[serde(alias = "status_code")]
    status: Option<Value>,
    #[serde(flatten)]
    flat: Members,
}

#[derive(Default, Deserialize)]
struct Members {
    code: Option<Value>,
    message: Option<Value>,
    param: Option<Value>,
    headers: Option<Map<String, Value>>,
}

impl Failure {
    /// Reads an `error` event or an error object, in whichever form it is.
    pub(crate) fn read(json: Json) -> Self {
        let form: Form = json.to().unwrap_or(Form {
            error: None,
            headers: Map::new(),
            status: None,
            flat: Members::default(),
        });
        let status = form.status.as_ref().and_then(Value::as_u64);
        let members = form.error.unwrap_or(form.flat);
        let inner = members.headers.unwrap_or_default();
        let headers = form.headers.into_iter().chain(inner);
        let retry_after = headers
            .filter(|(name, _)| name.eq_ignore_ascii_case("retry-after"))
            .find_map(|(_, value)| seconds(&text(Some(value))?));
        Self {
            status: status.and_then(|status| u16::try_from(status).ok()),
            code: text(members.code),
            message: text(members.message).unwrap_or_else(|| "no reason is given".to_owned()),
            param: text(members.param),
            retry_after,
            json,
        }
    }

    /// Reads the answer to a request that was refused.
    pub(crate) fn from_http(status: u16, headers: &HeaderMap, body: &Bytes) -> Self {
        let text = String::from_utf8_lossy(body);
        let json = Json::parse(text.trim()).unwrap_or_else(|_| Json::from(&*text));
        Self {
            status: Some(status),
            retry_after: retry_after(headers),
            ..Self::read(json)
        }
    }

    pub(crate) fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }

    /// Whether it is about a message whose type the server does not know. A create's is known to
    /// all, so such an error is no answer to one.
    pub(crate) fn is_about_type(&self) -> bool {
        self.param.as_deref() == Some("type") || self.is("unsupported_event_type")
    }
}

/// What a `Retry-After` header says, if that is a number of seconds.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(reqwest::header::RETRY_AFTER)?;
    seconds(value.to_str().ok()?)
}

fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

fn text(value: Option<Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_form_of_an_error_is_read() {
        let nested = json!({"type": "error", "status": 429, "headers": {"Retry-After": "3"},
            "error": {"type": "t", "code": "c", "message": "m", "param": null}});
        let inner = json!({"type": "error", "status_code": 429,
            "error": {"code": "c", "message": "m", "headers": {"retry-after": 3}}});
        let flat = json!({"type": "error", "status": 429, "code": "c", "message": "m",
            "param": null, "headers": {"retry-after": "3.0"}});
        for json in [nested, inner, flat] {
            let failure = Failure::read(json.clone().into());
            let expected = Failure {
                status: Some(429),
                code: Some("c".to_owned()),
                message: "m".to_owned(),
                param: None,
                retry_after: Some(Duration::from_secs(3)),
                json: json.into(),
            };
            assert_eq!(failure, expected);
        }
    }

    #[test]
    fn what_is_no_error_object_is_still_a_failure() {
        let body = Bytes::from_static(b"<html>busy</html>");
        let failure = Failure::from_http(503, &HeaderMap::new(), &body);
        assert_eq!(failure.status, Some(503));
        assert_eq!(failure.json.as_str(), "\"<html>busy</html>\"");
    }
}
