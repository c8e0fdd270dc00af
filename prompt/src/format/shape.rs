//! What a template does, found out by rendering short conversations and cutting them.
//!
//! A stub is a short conversation whose last text is a sentinel. Behind the sentinel stands
//! first what closes that message and then, if more messages follow, only what they add. So a
//! delta is rendered as stub + delta and cut behind the stub; whatever the template does to the
//! stub itself (dropping its reasoning, say) does not matter.

use std::sync::Arc;

use minijinja::{Error, ErrorKind, Value, context};

use super::calls::{CallStyle, PYTHON_TAG, THINK_CLOSE, THINK_OPEN};
use super::messages::{Call, Message};
use super::template::{Conversation, Template};
use crate::SpecialTokens;

/// Ends every stub. Letters only: it comes out of any template as it is.
const SENTINEL: &str = "zqEndOfTheStubqz";
/// A text to look for in what a template renders.
const PROBE: &str = "zqProbeqz";

/// Which kind of message stands before a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stub {
    User,
    Assistant,
    /// An assistant's message with a call.
    Call,
}

#[derive(Debug)]
pub(super) struct Shape {
    after_user: String,
    /// What closes the model's turn: its end-of-turn token and what follows that.
    pub after_assistant: String,
    after_call: String,
    /// What the template adds to the end of a conversation that is not to go on.
    trailer: String,
    user_opening: String,
    /// The opening of the model's message.
    generation: String,
    /// Whether a system message stands by itself at the start.
    pub system_at_start: bool,
    /// Whether it may also stand later on.
    pub system_anywhere: bool,
    /// Whether two messages by the same speaker are refused.
    pub alternates: bool,
    /// How the template writes calls, if it knows tools at all.
    pub native_calls: Option<CallStyle>,
    /// Whether one message may hold several calls.
    pub parallel_calls: bool,
    /// Whether the template knows `<think>`.
    pub thinks: bool,
    /// Whether the generation prompt itself opens `<think>`.
    pub opens_thinking: bool,
    /// What the generation prompt goes on with when thinking is switched off.
    pub no_thinking: Option<String>,
}

impl Shape {
    pub(super) fn probe(template: &Template, tokens: &SpecialTokens) -> Result<Self, Error> {
        let mut shape = Self {
            after_user: String::new(),
            after_assistant: String::new(),
            after_call: String::new(),
            trailer: String::new(),
            user_opening: String::new(),
            generation: String::new(),
            system_at_start: false,
            system_anywhere: false,
            alternates: false,
            native_calls: None,
            parallel_calls: true,
            thinks: template.source().contains(THINK_CLOSE),
            opens_thinking: false,
            no_thinking: None,
        };
        let user = || Message::User(PROBE.to_owned());
        let assistant = || assistant(PROBE);

        (shape.after_user, shape.trailer) = closing(template, Stub::User, assistant(), tokens)?;
        (shape.after_assistant, _) = closing(template, Stub::Assistant, user(), tokens)?;
        let delta = shape.delta(template, Stub::Assistant, &[user()], &[], Mode::Stop)?;
        shape.user_opening = delta
            .split_once(PROBE)
            .ok_or_else(|| cannot_cut("it leaves out a user's message"))?
            .0
            .to_owned();
        shape.head(template, None, None)?;

        let system = Message::System(PROBE.to_owned());
        shape.system_at_start = shape
            .head(template, Some(system.clone()), None)
            .is_ok_and(|head| head.contains(PROBE));
        shape.system_anywhere =
            [vec![system.clone()], vec![system, user()]]
                .iter()
                .all(|messages| {
                    shape
                        .delta(template, Stub::Assistant, messages, &[], Mode::Stop)
                        .is_ok_and(|delta| delta.matches(PROBE).count() == messages.len())
                });
        shape.alternates = shape
            .delta(
                template,
                Stub::Assistant,
                &[user(), user()],
                &[],
                Mode::Stop,
            )
            .is_err();
        shape.probe_calls(template, tokens);

        shape.generation = shape.opening(template, Mode::Generate)?;
        if shape.thinks {
            shape.opens_thinking = shape.generation.trim_end().ends_with(THINK_OPEN);
            shape.no_thinking = shape
                .opening(template, Mode::NoThinking)
                .ok()
                .and_then(|off| off.strip_prefix(&shape.generation).map(str::to_owned))
                .filter(|rest| !rest.is_empty());
        }
        Ok(shape)
    }

    fn probe_calls(&mut self, template: &Template, tokens: &SpecialTokens) {
        let has_tag = tokens.control.iter().any(|token| token == PYTHON_TAG);
        let tool = context! {
            type => "function",
            function => context! {
                name => PROBE,
                description => "Probe.",
                parameters => context! { type => "object", properties => context! {} },
            },
        };
        let tools = || Some(Value::from(vec![tool.clone()]));
        if !self
            .head(template, None, tools())
            .is_ok_and(|head| head.contains(PROBE))
        {
            return;
        }
        let call = |id: &str| Call {
            id: id.into(),
            name: "zqCallqz".to_owned(),
            arguments: context! {},
            input: None,
        };
        let result = |id: &str| Message::Tool {
            call_id: id.into(),
            text: PROBE.to_owned(),
        };
        let conversation = |ids: &[&str]| {
            let mut messages = vec![Message::Assistant {
                reasoning: String::new(),
                text: String::new(),
                calls: ids.iter().map(|id| call(id)).collect(),
            }];
            messages.extend(ids.iter().map(|id| result(id)));
            messages
        };
        let render = |ids: &[&str]| {
            self.delta(
                template,
                Stub::User,
                &conversation(ids),
                &[],
                Mode::Generate,
            )
            .ok()
            .filter(|delta| delta.matches(PROBE).count() == ids.len())
        };
        let one = render(&["call_1"]);
        let two = render(&["call_1", "call_2"]);
        let parallel_calls = two.is_some();
        let Some(style) = two
            .or(one)
            .and_then(|text| CallStyle::detect(&text, "zqCallqz", has_tag))
        else {
            return;
        };
        if let Ok((after_call, _)) = closing(template, Stub::Call, result("call_0"), tokens) {
            self.after_call = after_call;
            self.native_calls = Some(style);
            self.parallel_calls = parallel_calls;
        }
    }

    /// What opens the model's message behind a user's.
    fn opening(&self, template: &Template, mode: Mode) -> Result<String, Error> {
        let user = [Message::User(PROBE.to_owned())];
        let stopped = self.delta(template, Stub::Assistant, &user, &[], Mode::Stop)?;
        let going_on = self.delta(template, Stub::Assistant, &user, &[], mode)?;
        going_on
            .strip_prefix(stopped.as_str())
            .map(str::to_owned)
            .ok_or_else(|| cannot_cut("it closes a message differently when it is answered"))
    }

    /// The rendered start of a conversation, up to where its first message would stand.
    pub(super) fn head(
        &self,
        template: &Template,
        system: Option<Message>,
        tools: Option<Value>,
    ) -> Result<String, Error> {
        let mut messages: Vec<Message> = system.into_iter().collect();
        messages.push(Message::User(SENTINEL.to_owned()));
        let rendered = template.render(Conversation {
            messages: messages.iter().map(|m| m.to_value(|_| None)).collect(),
            tools,
            ..Conversation::default()
        })?;
        let (before, behind) = rendered
            .rsplit_once(SENTINEL)
            .ok_or_else(|| cannot_cut("it leaves out a user's message"))?;
        // A template that separates messages rather than ending them writes no separator
        // before the first one.
        let head = before
            .strip_suffix(self.user_opening.as_str())
            .or_else(|| before.strip_suffix(self.user_opening.trim_start()))
            .filter(|_| behind.starts_with(&self.after_user))
            .ok_or_else(|| cannot_cut("it writes the system message into a user's"))?;
        Ok(head.to_owned())
    }

    /// What `messages` add behind a stub, the opening of the next message included if wanted.
    ///
    /// `ids` are those of the stub's calls.
    pub(super) fn delta(
        &self,
        template: &Template,
        stub: Stub,
        messages: &[Message],
        ids: &[Arc<str>],
        mode: Mode,
    ) -> Result<String, Error> {
        if messages.is_empty() {
            return Ok(match mode {
                Mode::Stop => String::new(),
                Mode::Generate | Mode::NoThinking => self.generation.clone(),
            });
        }
        // A last message by the assistant is written in many ways, but only in one when a
        // user's follows.
        let fenced =
            mode == Mode::Stop && matches!(messages.last(), Some(Message::Assistant { .. }));
        let rendered = if fenced {
            let fence = Message::User(SENTINEL.to_owned());
            let messages = [messages, &[fence]].concat();
            render(template, stub, &messages, ids, mode)?
        } else {
            render(template, stub, messages, ids, mode)?
        };
        let closing = match stub {
            Stub::User => &self.after_user,
            Stub::Assistant => &self.after_assistant,
            Stub::Call => &self.after_call,
        };
        let delta = behind_stub(&rendered)?
            .strip_prefix(closing.as_str())
            .ok_or_else(|| cannot_cut("it closes a message differently when others follow"))?;
        let delta = match mode {
            Mode::Stop if fenced => delta
                .rsplit_once(SENTINEL)
                .and_then(|(delta, _)| delta.strip_suffix(self.user_opening.as_str()))
                .ok_or_else(|| cannot_cut("it opens a message differently behind others"))?,
            Mode::Stop => delta.strip_suffix(self.trailer.as_str()).unwrap_or(delta),
            Mode::Generate | Mode::NoThinking => delta,
        };
        Ok(delta.to_owned())
    }
}

/// How a rendering ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Stop,
    Generate,
    /// The opening of a message whose author is told not to think.
    NoThinking,
}

fn assistant(text: &str) -> Message {
    Message::Assistant {
        reasoning: String::new(),
        text: text.to_owned(),
        calls: Vec::new(),
    }
}

fn render(
    template: &Template,
    stub: Stub,
    messages: &[Message],
    ids: &[Arc<str>],
    mode: Mode,
) -> Result<String, Error> {
    let mut all = match stub {
        Stub::User => vec![Message::User(SENTINEL.to_owned())],
        Stub::Assistant => vec![Message::User("u".to_owned()), assistant(SENTINEL)],
        Stub::Call => {
            let last = ids.len().saturating_sub(1);
            let call = |(i, id): (usize, &Arc<str>)| Call {
                id: Arc::clone(id),
                name: "f".to_owned(),
                arguments: context! { a => if i == last { SENTINEL } else { "" } },
                input: None,
            };
            vec![
                Message::User("u".to_owned()),
                Message::Assistant {
                    reasoning: String::new(),
                    text: String::new(),
                    calls: ids.iter().enumerate().map(call).collect(),
                },
            ]
        }
    };
    all.extend_from_slice(messages);
    let name_of_call = |id: &str| {
        all.iter().find_map(|message| match message {
            Message::Assistant { calls, .. } => calls
                .iter()
                .find(|call| &*call.id == id)
                .map(|call| call.name.clone()),
            _ => None,
        })
    };
    template.render(Conversation {
        messages: all.iter().map(|m| m.to_value(name_of_call)).collect(),
        tools: None,
        generate: mode != Mode::Stop,
        thinking: (mode == Mode::NoThinking).then_some(false),
    })
}

fn behind_stub(rendered: &str) -> Result<&str, Error> {
    rendered
        .split_once(SENTINEL)
        .map(|(_, behind)| behind)
        .ok_or_else(|| cannot_cut("it leaves out a message"))
}

fn cannot_cut(why: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, why.to_owned())
}

/// What closes a stub's last message when `next` follows, and what the template writes instead
/// where nothing does.
fn closing(
    template: &Template,
    stub: Stub,
    next: Message,
    tokens: &SpecialTokens,
) -> Result<(String, String), Error> {
    let ids = ["call_0".into()];
    let alone = render(template, stub, &[], &ids, Mode::Stop)?;
    let alone = behind_stub(&alone)?;
    let followed = render(template, stub, &[next], &ids, Mode::Stop)?;
    let between = behind_stub(&followed)?
        .split_once(PROBE)
        .ok_or_else(|| cannot_cut("it leaves out a message"))?
        .0;

    let end_of_turn = tokens.end_of_turn.as_str();
    let first_control = |control: &str| between.find(control).map(|at| at + control.len());
    // A template may take a last message for one that is to go on, and not close it.
    let at_end_of_turn = (!end_of_turn.is_empty() && !alone.contains(end_of_turn))
        .then(|| first_control(end_of_turn))
        .flatten();
    // Or it may close it for good.
    let for_good = alone.strip_suffix(template.eos()).unwrap_or(alone);
    let at_control = || {
        let starts = |token: &&String| !token.is_empty() && between.starts_with(token.as_str());
        tokens.control.iter().find(starts).map(String::len)
    };
    let closing = if let Some(end) = at_end_of_turn {
        &between[..end]
    } else if between.starts_with(alone) {
        alone
    } else if !for_good.is_empty() && between.starts_with(for_good) {
        for_good
    } else if let Some(end) = at_control() {
        &between[..end]
    } else if between.starts_with(alone.trim_end()) {
        alone.trim_end()
    } else {
        return Err(cannot_cut(
            "it closes a message differently when others follow",
        ));
    };
    let rest = alone.strip_prefix(closing).unwrap_or_default();
    Ok((closing.to_owned(), rest.to_owned()))
}
