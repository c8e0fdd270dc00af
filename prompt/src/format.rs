//! ChatFormat: one model's way of writing a conversation.

mod calls;
mod marks;
mod messages;
mod python;
mod shape;
mod template;
#[cfg(test)]
mod tests;
mod tools;

use std::sync::Arc;

use turnwire_protocol::engine::{EngineFailureKind, TurnRequest};
use turnwire_protocol::item::Item;
use turnwire_protocol::tool::{Tool, Tools};

use self::marks::Marks;
use self::messages::Message;
use self::shape::{Mode, Shape, Stub};
use self::template::Template;
use crate::grammar::{self, Grammar};
use crate::plan::{self, Manner, Reasoning};
use crate::{Before, Bounds, Plan, Refusal, SpecialTokens, Text};

pub use self::messages::begins_with_user;

pub(crate) use self::calls::{
    CALL_CLOSE, CALL_OPEN, CallStyle, PYTHON_TAG, THINK_CLOSE, THINK_OPEN,
};

/// What delimits calls and reasoning. Models have some of these as control tokens, which are
/// part of their output all the same.
pub const MARKERS: [&str; 5] = [CALL_OPEN, CALL_CLOSE, THINK_OPEN, THINK_CLOSE, PYTHON_TAG];

/// Ends reasoning, wherever in it.
pub const REASONING_END: &str = "\n</think>";

/// What is assumed of a model that comes without a template.
const CHATML: &str = "{% for message in messages %}\
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// How one model writes a conversation, and how it is made to answer.
///
/// A template renders whole conversations; this renders a head and deltas behind it, each at
/// the cost of what is in it (docs/decisions/0001). What is needed for that is found out once,
/// by [`ChatFormat::new`]. Where a template rewrites history or puts instructions elsewhere
/// than at the start, the closest form that only appends is used instead.
#[derive(Debug)]
pub struct ChatFormat {
    template: Template,
    shape: Shape,
    marks: Marks,
    bos: String,
    /// Behind the model's own end-of-turn token.
    after_end_of_turn: String,
    style: CallStyle,
    /// Markers that the model writes as one control token.
    control_markers: Vec<&'static str>,
    bounds: Bounds,
}

/// Why a model's chat template cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("chat template: {0}")]
pub struct TemplateError(#[from] minijinja::Error);

impl ChatFormat {
    /// `template` is the model's own Jinja chat template; without one, ChatML is assumed.
    pub fn new(template: Option<&str>, tokens: SpecialTokens) -> Result<Self, TemplateError> {
        let bos = tokens.bos.as_deref().unwrap_or_default();
        let eos = tokens.eos.as_deref().unwrap_or_default();
        let template = Template::new(template.unwrap_or(CHATML), bos, eos)?;
        let shape = Shape::probe(&template, &tokens)?;
        let after_end_of_turn =
            behind_end_of_turn(&shape.after_assistant, &tokens.end_of_turn, &tokens.control);
        let style = shape.native_calls.clone().unwrap_or_else(CallStyle::taught);
        Ok(Self {
            after_end_of_turn: after_end_of_turn.to_owned(),
            marks: Marks::new(tokens.control.iter().chain(&tokens.user_defined)),
            template,
            shape,
            style,
            control_markers: MARKERS
                .into_iter()
                .filter(|marker| tokens.control.iter().any(|token| token == marker))
                .collect(),
            bounds: Bounds::default(),
            bos: tokens.bos.unwrap_or_default(),
        })
    }

    /// Limits what the model may write where a schema sets no limit.
    #[must_use]
    pub fn with_bounds(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        self
    }

    /// The start of a prompt: BOS, instructions, tools.
    pub fn head(&self, instructions: Option<&str>, tools: &Tools) -> Result<Text, Refusal> {
        let native = self.shape.native_calls.is_some();
        let native_tools = match native {
            true => tools::to_value(tools, &self.marks)?,
            false => None,
        };
        let instructions = instructions.map(|text| self.marks.mark(text).into_owned());
        let lesson = self.lesson(&tools.offered, native)?;
        let instructions = join(instructions.into_iter().chain(lesson));
        let (system, as_user) = match instructions {
            Some(text) if self.shape.system_at_start => (Some(Message::System(text)), None),
            Some(text) => (None, Some(Message::User(text))),
            None => (None, None),
        };
        let mut head = self
            .shape
            .head(&self.template, system, native_tools)
            .map_err(|error| refusal(&error))?;
        if !head.starts_with(&self.bos) {
            head.insert_str(0, &self.bos);
        }
        if let Some(message) = as_user {
            head += &self
                .shape
                .delta(&self.template, Stub::Assistant, &[message], &[], Mode::Stop)
                .map_err(|error| refusal(&error))?;
        }
        Ok(marks::cut(&head))
    }

    /// Teaches the model the tools that its template does not show it: custom ones, and functions
    /// unless `shown`. None if there are none.
    fn lesson(&self, tools: &[Tool], shown: bool) -> Result<Option<String>, Refusal> {
        let functions = match shown {
            true => None,
            false => tools::function_lesson(tools, &self.style, &self.marks)?,
        };
        let custom = tools::custom_lesson(tools, &self.style, &self.marks);
        Ok(join(functions.into_iter().chain(custom)))
    }

    /// What a turn appends: the close of what stands before, `items`, and, if the model is to
    /// go on, the generation prompt and the opening of its plan.
    pub fn segment(
        &self,
        before: Before,
        items: &[&Item],
        opening: Option<&str>,
    ) -> Result<Text, Refusal> {
        let mut rendered = match before {
            Before::Closed => String::new(),
            Before::Open => self.shape.after_assistant.clone(),
            Before::Ended => self.after_end_of_turn.clone(),
        };
        let teach = |tools: &[Tool]| self.lesson(tools, false);
        let messages = self.fit(messages::from_items(items, &self.marks, teach)?);
        let mut ids: Vec<Arc<str>> = messages
            .iter()
            .map_while(|message| match message {
                Message::Tool { call_id, .. } => Some(Arc::clone(call_id)),
                _ => None,
            })
            .collect();
        if !self.shape.parallel_calls {
            ids.truncate(1);
        }
        let stub = match messages.first() {
            Some(Message::Tool { .. }) => Stub::Call,
            Some(Message::Assistant { .. }) => Stub::User,
            Some(Message::System(_) | Message::User(_)) | None => Stub::Assistant,
        };
        let mode = match opening {
            Some(_) => Mode::Generate,
            None => Mode::Stop,
        };
        rendered += &self
            .shape
            .delta(&self.template, stub, &messages, &ids, mode)
            .map_err(|error| refusal(&error))?;
        rendered += opening.unwrap_or_default();
        Ok(marks::cut(&rendered))
    }

    /// Opening, grammar and parser for a turn's choice of tools and output format.
    pub fn plan(&self, request: &TurnRequest) -> Result<Plan, Refusal> {
        let no_thinking = match request.reasoning_effort.as_deref() {
            Some("none" | "minimal") => self.shape.no_thinking.as_deref(),
            _ => None,
        };
        let reasoning = if !self.shape.thinks || no_thinking.is_some() {
            Reasoning::Never
        } else if self.shape.opens_thinking {
            Reasoning::Open
        } else {
            Reasoning::Allowed
        };
        let manner = Manner {
            style: self.style.clone(),
            reasoning,
            parallel_calls: self.shape.parallel_calls,
            control_markers: self.control_markers.clone(),
            bounds: self.bounds,
        };
        let mut plan = plan::plan(request, &manner)?;
        if let Some(opening) = no_thinking {
            plan.opening.insert_str(0, opening);
        }
        Ok(plan)
    }

    /// The refusal of a request whose plan has a grammar that `compile` refuses: it names the
    /// schema at fault, found by compiling them one by one.
    pub fn blame(
        &self,
        request: &TurnRequest,
        compile: impl Fn(&Grammar) -> Result<(), String>,
    ) -> Refusal {
        let answer = plan::answer(&request.format);
        grammar::blame(request.offered(), answer, self.bounds, compile)
    }

    /// Messages in the forms that this template can write.
    fn fit(&self, messages: Vec<Message>) -> Vec<Message> {
        let mut fitted: Vec<Message> = Vec::with_capacity(messages.len());
        for message in messages {
            let message = match message {
                Message::System(text) if !self.shape.system_anywhere => Message::User(text),
                message if self.shape.native_calls.is_none() => {
                    let follows_result = matches!(fitted.last(), Some(Message::User(text))
                        if text.ends_with(calls::RESULT_CLOSE));
                    match (tools::spell_out(message, &self.style), fitted.last_mut()) {
                        // Several results are one message.
                        ((true, Message::User(result)), Some(Message::User(results)))
                            if follows_result =>
                        {
                            results.push('\n');
                            results.push_str(&result);
                            continue;
                        }
                        ((_, message), _) => message,
                    }
                }
                message => message,
            };
            let joined =
                self.shape.alternates && fitted.last_mut().is_some_and(|last| last.joins(&message));
            if !joined {
                fitted.push(message);
            }
        }
        if self.shape.parallel_calls {
            fitted
        } else {
            one_call_at_a_time(fitted)
        }
    }
}

/// Paragraphs as one text; none without any.
fn join(paragraphs: impl Iterator<Item = String>) -> Option<String> {
    let paragraphs: Vec<String> = paragraphs.collect();
    (!paragraphs.is_empty()).then(|| paragraphs.join("\n\n"))
}

/// Gives every call a message of its own, followed by its result.
fn one_call_at_a_time(messages: Vec<Message>) -> Vec<Message> {
    let mut results: Vec<Message> = messages
        .iter()
        .filter(|message| matches!(message, Message::Tool { .. }))
        .cloned()
        .collect();
    let mut take = |id: &str| {
        let at = results.iter().position(
            |result| matches!(result, Message::Tool { call_id, .. } if &**call_id == id),
        )?;
        Some(results.remove(at))
    };
    let mut ordered = Vec::with_capacity(messages.len());
    for message in messages {
        match message {
            Message::Assistant {
                mut reasoning,
                mut text,
                calls,
            } if calls.len() > 1 => {
                for call in calls {
                    let result = take(&call.id);
                    ordered.push(Message::Assistant {
                        reasoning: std::mem::take(&mut reasoning),
                        text: std::mem::take(&mut text),
                        calls: vec![call],
                    });
                    ordered.extend(result);
                }
            }
            Message::Tool { call_id, text } => {
                ordered.extend(take(&call_id).map(|_| Message::Tool {
                    call_id: Arc::clone(&call_id),
                    text,
                }))
            }
            message => ordered.push(message),
        }
    }
    ordered
}

/// What `closing` holds behind the token that ended the turn.
fn behind_end_of_turn<'a>(closing: &'a str, end_of_turn: &str, control: &[String]) -> &'a str {
    if !end_of_turn.is_empty()
        && let Some((_, behind)) = closing.split_once(end_of_turn)
    {
        return behind;
    }
    // The template ends a turn with another token than the model was said to; whichever it
    // ended with stands for that one.
    control
        .iter()
        .filter(|token| !token.is_empty())
        .filter_map(|token| closing.find(token.as_str()).map(|at| (at, token.len())))
        .min_by_key(|&(at, length)| (at, usize::MAX - length))
        .map_or(closing, |(at, length)| &closing[at + length..])
}

fn refusal(error: &minijinja::Error) -> Refusal {
    Refusal {
        kind: EngineFailureKind::Invalid,
        message: format!(
            "The model's chat template cannot write this conversation: {}.",
            error.detail().unwrap_or("it fails").trim_end_matches('.')
        ),
        param: Some("input".to_owned()),
    }
}
