//! `response.steer`: what the user has to say to a response that is being made, and the notices
//! that tell what becomes of it.
//!
//! A frame that can be recognised as a steer is never answered by an `error`, because clients
//! drop a connection on one.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::action::Action;
use crate::chain::{CallKind, Chain, PendingCall};
use crate::create::read_input;
use crate::event::{Event, Sequence, Stamp};
use crate::failure::Failure;
use crate::field::{Field, Path, members};
use crate::id::{self, IdSource, ResponseId};
use crate::item::Item;
use crate::json::Object;
use crate::message::Members;

/// A steer as it came.
#[derive(Debug)]
pub(crate) struct Steer {
    /// The response to steer; empty if the frame names none.
    pub(crate) target: ResponseId,
    /// `input` as it came, which a refusal shows again.
    input: Bytes,
    /// Its items, or what is wrong with the frame.
    items: Result<Arc<[Item]>, String>,
    /// Bytes of the message it came in.
    pub(crate) bytes: usize,
}

/// Why a steer is not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SteerRefusal<'a> {
    /// What is wrong with the frame.
    InvalidInput(&'a str),
    /// The response makes no output, compacts its chain on the way, or is in a conversation.
    NotSupported,
    NotFound,
    AlreadyCompleted,
    /// The response waits to be started, or has failed.
    NotActive,
    TooMany,
    /// Why the response that was to take it could not be started.
    NoSuccessor(&'a str),
    /// The response ended well, but was not continued and is not kept any longer.
    NotContinued,
}

/// A steer that was accepted.
#[derive(Debug)]
struct Submission {
    id: String,
    input: Bytes,
    items: Arc<[Item]>,
    bytes: usize,
}

/// The steers of one response that were accepted, in the order they came.
///
/// They stay together: the next response takes all of them in front of its input, or each is
/// told that it failed.
#[derive(Debug, Default)]
pub(crate) struct Submissions(Vec<Submission>);

/// The steers of a response that has ended.
#[derive(Debug)]
pub(crate) struct Owed {
    target: ResponseId,
    /// The count of the target's events, which goes on with the notices.
    sequence: Sequence,
    submissions: Submissions,
}

members! { MessageMembers { kind = "type", role, content } }
members! { PartMembers { kind = "type" } }

impl Steer {
    pub(crate) fn parse(message: &Bytes, members: &Members<'_>) -> Self {
        let target = Field::named("previous_response_id", members.previous_response_id);
        let target = target.and_then(|field| field.string().ok());
        let input = members.input.map_or("\"\"", RawValue::get);
        let input = Bytes::copy_from_slice(input.as_bytes());
        let items = check_steer(message, members).and_then(|()| read_items(&input));
        Self {
            target: ResponseId::from(&*target.unwrap_or_default()),
            input,
            items: items.map_err(|failure| failure.message),
            bytes: message.len(),
        }
    }

    /// What is wrong with the frame, whatever it is for.
    pub(crate) fn problem(&self) -> Option<SteerRefusal<'_>> {
        let problem = self.items.as_ref().err()?;
        Some(SteerRefusal::InvalidInput(problem))
    }

    /// `response.steer.failed` for a steer that was not accepted. What is wrong with the frame
    /// goes before any other reason.
    pub(crate) fn failed(&self, stamp: Stamp<'_>, refusal: SteerRefusal<'_>) -> Event {
        let refusal = self.problem().unwrap_or(refusal);
        failed(stamp, None, &self.target, &self.input, refusal)
    }
}

impl Submissions {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of the messages that they came in.
    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().map(|submission| submission.bytes).sum()
    }

    /// Takes a steer of the response that `stamp` is of, and says so. One whose frame is wrong
    /// changes nothing.
    pub(crate) fn accept(
        &mut self,
        ids: &mut dyn IdSource,
        stamp: Stamp<'_>,
        steer: Steer,
    ) -> Event {
        let items = match steer.items {
            Ok(items) => items,
            Err(problem) => {
                let refusal = SteerRefusal::InvalidInput(&problem);
                return failed(stamp, None, &steer.target, &steer.input, refusal);
            }
        };
        let submission = Submission {
            id: id::mint(id::STEER, ids),
            input: steer.input,
            items,
            bytes: steer.bytes,
        };
        let event = Event::new(stamp, "response.steer.accepted", 192, |event| {
            submission.name(event, &steer.target).close();
        });
        self.0.push(submission);
        event
    }
}

impl Owed {
    /// None if nobody steered. `sequence` is past the target's terminal event.
    pub(crate) fn new(
        target: ResponseId,
        sequence: Sequence,
        submissions: Submissions,
    ) -> Option<Self> {
        (!submissions.is_empty()).then_some(Self {
            target,
            sequence,
            submissions,
        })
    }

    pub(crate) fn target(&self) -> &ResponseId {
        &self.target
    }

    /// Bytes of the messages that they came in.
    pub(crate) fn bytes(&self) -> usize {
        self.submissions.bytes()
    }

    /// The items of all steers, and then those of `input`.
    pub(crate) fn in_front_of(&self, input: &[Item]) -> Arc<[Item]> {
        let steers = self.submissions.0.iter();
        let steers = steers.flat_map(|submission| submission.items.iter());
        steers.chain(input).cloned().collect()
    }

    /// Sends `response.steer.pending` for each: the client has calls of the target to answer
    /// first, and `chain` ends with the target.
    pub(crate) fn wait(&mut self, chain: &Chain, actions: &mut VecDeque<Action>) {
        let required = required_input(chain);
        let Self {
            target,
            sequence,
            submissions,
        } = self;
        for submission in &submissions.0 {
            let name = "response.steer.pending";
            let event = Event::new(sequence.take(), name, 192 + required.len(), |event| {
                submission.name(event, target).close();
                event.value("reason", "waiting_for_required_input");
                event.raw("required_input", &required);
            });
            actions.push_back(Action::Send(event));
        }
    }

    /// Sends `response.steer.failed` for each.
    pub(crate) fn fail(mut self, refusal: SteerRefusal<'_>, actions: &mut VecDeque<Action>) {
        for Submission { id, input, .. } in &self.submissions.0 {
            let stamp = self.sequence.take();
            let event = failed(stamp, Some(id), &self.target, input, refusal);
            actions.push_back(Action::Send(event));
        }
    }
}

impl Submission {
    /// Begins the member `steer`.
    fn name<'o>(&self, event: &'o mut Object<'_>, target: &ResponseId) -> Object<'o> {
        let mut steer = event.object("steer");
        steer.value("id", &self.id);
        steer.value("previous_response_id", target.as_str());
        steer
    }
}

impl SteerRefusal<'_> {
    fn code(self) -> &'static str {
        match self {
            Self::InvalidInput(_) => "invalid_input",
            Self::NotSupported => "steering_not_supported",
            Self::NotFound | Self::NotContinued => "response_not_found",
            Self::AlreadyCompleted => "response_already_completed",
            Self::NotActive => "response_not_active",
            Self::TooMany => "too_many_pending_steers",
            Self::NoSuccessor(_) => "successor_creation_failed",
        }
    }

    fn message(&self) -> Cow<'_, str> {
        Cow::Borrowed(match self {
            Self::InvalidInput(problem) => problem,
            Self::NotSupported => {
                "A warm-up cannot be steered, and neither can a response with \
                 'context_management' or 'conversation'. Send a create that continues it."
            }
            Self::NotFound => "There is no such response on this connection.",
            Self::AlreadyCompleted => {
                "The response has ended and takes no more input. Send a create that continues it."
            }
            Self::NotActive => "The response is not running.",
            Self::TooMany => {
                "Too much input waits on this connection. Wait until the next response has \
                 started."
            }
            Self::NoSuccessor(why) => {
                return format!("The response that was to take this input was not started. {why}")
                    .into();
            }
            Self::NotContinued => {
                "The response was not continued, and this connection has it no longer."
            }
        })
    }
}

fn failed(
    stamp: Stamp<'_>,
    id: Option<&str>,
    target: &ResponseId,
    input: &[u8],
    refusal: SteerRefusal<'_>,
) -> Event {
    let name = "response.steer.failed";
    Event::new(stamp, name, input.len() + 384, |event| {
        let mut error = event.object("error");
        error.value("type", "invalid_request_error");
        error.value("code", refusal.code());
        error.value("message", &refusal.message());
        error.close();
        let mut steer = event.object("steer");
        if let Some(id) = id {
            steer.value("id", id);
        }
        steer.value("previous_response_id", target.as_str());
        steer.raw("input", input);
        steer.close();
    })
}

/// One stub, as JSON, for each call that the next input must answer. Those are all calls of the
/// chain's last response: it could not have started without the outputs of earlier ones.
fn required_input(chain: &Chain) -> Vec<u8> {
    let mut json = vec![b'['];
    for call in chain.required_calls() {
        if json.len() > 1 {
            json.push(b',');
        }
        let mut stub = Object::open(&mut json);
        match call.kind {
            CallKind::Function => {
                stub.value("type", "function_call_output");
                stub.value("call_id", &call.call_id);
                stub.value("name", &name_of(chain, call));
            }
            CallKind::Custom => {
                stub.value("type", "custom_tool_call_output");
                stub.value("call_id", &call.call_id);
            }
        }
        stub.close();
    }
    json.push(b']');
    json
}

/// The name of a function that the chain's last response calls.
fn name_of(chain: &Chain, call: &PendingCall) -> String {
    #[derive(serde::Deserialize)]
    struct Call {
        name: String,
    }
    let mut items = chain.output().iter().chain(chain.input().iter());
    let item = items.find(|item| item.call_id() == Some(&call.call_id));
    item.and_then(|item| serde_json::from_slice::<Call>(item.raw()).ok())
        .map(|call| call.name)
        .unwrap_or_default()
}

/// The items of `input`, which was checked, as slices of it.
fn read_items(input: &Bytes) -> Result<Arc<[Item]>, Failure> {
    let raw: &RawValue = serde_json::from_slice(input).map_err(Failure::invalid_json)?;
    read_input(Field::named("input", Some(raw)), input)
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
