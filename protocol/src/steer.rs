//! `response.steer` and `response.inject`: recognised, checked, and answered that they cannot be
//! applied.
//!
//! A frame that can be recognised as a steer is never answered by an `error`, because clients
//! drop a connection on one.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::event::{Event, Stamp};
use crate::failure::Failure;
use crate::field::{Field, Path, members};
use crate::id::ResponseId;
use crate::message::Members;

/// An instruction for a response that is running.
#[derive(Debug)]
pub(crate) struct Steer {
    /// The response to steer; empty if the frame names none.
    target: String,
    /// `input` as it came, which the answer shows again.
    input: Bytes,
    problem: Option<String>,
}

/// Why a steer is not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SteerRefusal {
    NotSupported,
    AlreadyCompleted,
    NotFound,
}

members! { MessageMembers { kind = "type", role, content } }
members! { PartMembers { kind = "type" } }

impl Steer {
    pub(crate) fn parse(message: &Bytes, members: &Members<'_>) -> Self {
        let target = Field::named("previous_response_id", members.previous_response_id);
        let target = target.and_then(|field| field.string().ok());
        let input = members.input.map_or("\"\"", RawValue::get);
        Self {
            problem: check_steer(message, members)
                .err()
                .map(|failure| failure.message),
            target: target.unwrap_or_default().into_owned(),
            input: Bytes::copy_from_slice(input.as_bytes()),
        }
    }

    pub(crate) fn target(&self) -> ResponseId {
        ResponseId::from(&*self.target)
    }

    /// `response.steer.failed`, numbered like an event of the target.
    pub(crate) fn failed(&self, stamp: Stamp<'_>, refusal: SteerRefusal) -> Event {
        let (code, message) = match (&self.problem, refusal) {
            (Some(problem), _) => ("invalid_input", problem.as_str()),
            (None, SteerRefusal::NotSupported) => (
                "steering_not_supported",
                "This server does not steer running responses.",
            ),
            (None, SteerRefusal::AlreadyCompleted) => (
                "response_already_completed",
                "The response has ended and takes no more input.",
            ),
            (None, SteerRefusal::NotFound) => (
                "response_not_found",
                "There is no such response on this connection.",
            ),
        };
        Event::new(
            stamp,
            "response.steer.failed",
            self.input.len() + 256,
            |event| {
                let mut error = event.object("error");
                error.value("type", "invalid_request_error");
                error.value("code", code);
                error.value("message", message);
                error.close();
                let mut steer = event.object("steer");
                steer.value("previous_response_id", &self.target);
                steer.raw("input", &self.input);
                steer.close();
            },
        )
    }
}

fn check_steer(message: &[u8], members: &Members<'_>) -> Result<(), Failure> {
    let all: BTreeMap<String, &RawValue> =
        serde_json::from_slice(message).map_err(Failure::invalid_json)?;
    let known = ["type", "previous_response_id", "input"];
    if let Some(name) = all.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(Failure::unknown_parameter(Path::Name(name)));
    }
    Field::required("previous_response_id", members.previous_response_id)?.string()?;
    let input = Field::required("input", members.input)?;
    if input.text().starts_with('"') {
        return match &*input.string()? {
            "" => Err(Failure::invalid_value(input.path, "it must not be empty")),
            _ => Ok(()),
        };
    }
    let messages = input.array()?;
    if messages.is_empty() {
        return Err(Failure::invalid_value(input.path, "it must not be empty"));
    }
    for (index, raw) in messages.into_iter().enumerate() {
        let path = Path::Index(&input.path, index);
        check_user_message(Field { raw, path })?;
    }
    Ok(())
}

/// Only `role: "user"`, `content`, and an optional `type: "message"` may be in it.
fn check_user_message(field: Field<'_, '_>) -> Result<(), Failure> {
    let all: BTreeMap<String, &RawValue> = field.object()?;
    if let Some(name) = all
        .keys()
        .find(|name| !["type", "role", "content"].contains(&name.as_str()))
    {
        return Err(Failure::unknown_parameter(Path::Member(&field.path, name)));
    }
    let members: MessageMembers<'_> = field.object()?;
    if let Some(kind) = Field::member(&field.path, "type", members.kind) {
        kind.one_of(&["message"])?;
    }
    Field::required_member(&field.path, "role", members.role)?.one_of(&["user"])?;
    let content = Field::required_member(&field.path, "content", members.content)?;
    if content.text().starts_with('"') {
        return content.string().map(drop);
    }
    for (index, raw) in content.array()?.into_iter().enumerate() {
        let path = Path::Index(&content.path, index);
        let part: PartMembers<'_> = Field { raw, path }.object()?;
        Field::required_member(&path, "type", part.kind)?.one_of(&[
            "input_text",
            "input_image",
            "input_file",
        ])?;
    }
    Ok(())
}

/// Outputs of tools for a response that waits for them while it is running.
#[derive(Debug)]
pub(crate) struct Inject {
    response_id: String,
    input: Bytes,
}

impl Inject {
    pub(crate) fn parse(members: &Members<'_>) -> Result<Self, Failure> {
        let response_id = Field::required("response_id", members.response_id)?.string()?;
        let input = Field::required("input", members.input)?;
        input.array()?;
        Ok(Self {
            response_id: response_id.into_owned(),
            input: Bytes::copy_from_slice(input.text().as_bytes()),
        })
    }

    /// `response.inject.failed`. No response here ever waits for an inject.
    pub(crate) fn failed(&self) -> Event {
        let stamp = Stamp::default();
        Event::new(
            stamp,
            "response.inject.failed",
            self.input.len() + 192,
            |event| {
                event.value("response_id", &self.response_id);
                event.raw("input", &self.input);
                let mut error = event.object("error");
                error.value("code", "response_not_found");
                error.value("message", "There is no such response on this connection.");
                error.close();
            },
        )
    }
}
