//! From a turn's choice of tools and output format to what the model is held to.

use turnwire_protocol::engine::{EngineFailureKind, TextFormat, TurnRequest};
use turnwire_protocol::tool::{CustomFormat, Tool, ToolChoice, ToolKind};

use crate::format::{CALL_CLOSE, CallStyle};
use crate::grammar::{Answer, Calls, Form};
use crate::parser::{Callable, OutputParser, Syntax, Takes};
use crate::{Bounds, Plan, Refusal};

/// Whether and how a turn may begin with reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reasoning {
    Never,
    Allowed,
    /// The prompt has opened it already.
    Open,
}

/// How a model writes, apart from the words.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    pub style: CallStyle,
    pub reasoning: Reasoning,
    /// Whether the template can write several calls in one turn.
    pub parallel_calls: bool,
    /// Which markers are control tokens rather than plain text.
    pub control_markers: Vec<&'static str>,
    pub bounds: Bounds,
}

pub(crate) fn plan(request: &TurnRequest, manner: &Manner) -> Result<Plan, Refusal> {
    let allowed = |tool: &&Tool| match &request.tool_choice {
        ToolChoice::None => false,
        ToolChoice::Auto | ToolChoice::Required => true,
        ToolChoice::Tool(chosen) => tool.name == *chosen,
        ToolChoice::Allowed { names, .. } => names.contains(&tool.name),
    };
    let tools: Vec<&Tool> = request.offered().filter(allowed).collect();
    let must_call = matches!(
        request.tool_choice,
        ToolChoice::Required | ToolChoice::Tool(_) | ToolChoice::Allowed { required: true, .. }
    );
    if must_call && tools.is_empty() {
        return Err(Refusal {
            kind: EngineFailureKind::Invalid,
            message: "tool_choice asks for a call, but names none of the tools.".to_owned(),
            param: Some("tool_choice".to_owned()),
        });
    }

    let calls = Calls {
        tools: &tools,
        must: must_call,
        most: match request.tool_choice {
            ToolChoice::Tool(_) => 1,
            _ if request.parallel_tool_calls && manner.parallel_calls => manner.bounds.calls,
            _ => 1,
        },
    };
    let opening = match manner.reasoning {
        Reasoning::Never if must_call => opening(&calls, &manner.style),
        _ => String::new(),
    };
    let grammar = Form {
        manner,
        knows_tools: request.offered().next().is_some(),
        calls: &calls,
        answer: answer(&request.format),
        opening: &opening,
    }
    .grammar()?;
    let callable = |tool: &&Tool| Callable {
        name: tool.name.clone(),
        word: tool.name.qualified(),
        takes: manner.takes(tool),
    };
    let syntax = Syntax {
        llama: matches!(manner.style, CallStyle::Llama { .. }),
        arguments_key: manner.style.arguments_key(),
        before_close: manner.before_close(),
        tools: tools.iter().map(callable).collect(),
        reasoning: manner.reasoning,
    };
    let mut parser = OutputParser::new(syntax);
    parser.assume(&opening);
    Ok(Plan {
        opening,
        grammar,
        parser,
    })
}

impl Manner {
    pub(crate) fn takes(&self, tool: &Tool) -> Takes {
        match (&tool.kind, &self.style) {
            (ToolKind::Function { .. }, _) => Takes::Arguments,
            // Nothing closes a call here, and what a client's rules may write can hold any marker.
            (ToolKind::Custom(_), CallStyle::Llama { .. })
            | (ToolKind::Custom(CustomFormat::Lark(_)), _) => Takes::InputToTheEnd,
            (ToolKind::Custom(CustomFormat::Text | CustomFormat::Regex(_)), _) => Takes::Input,
        }
    }

    /// What stands between the input of a custom tool and the marker that closes the call. A
    /// marker that is a control token needs nothing: it ends any text.
    pub(crate) fn before_close(&self) -> String {
        match &self.style {
            CallStyle::Hermes { inside, .. } if !self.control_markers.contains(&CALL_CLOSE) => {
                inside[1].clone()
            }
            _ => String::new(),
        }
    }
}

pub(crate) fn answer(format: &TextFormat) -> Answer<'_> {
    match format {
        TextFormat::Text => Answer::Text,
        TextFormat::JsonObject => Answer::Object,
        TextFormat::JsonSchema { schema } => Answer::Schema(schema),
    }
}

/// As much of a forced call as there is only one way to write, short of a blank that a
/// tokenizer would want to join with what follows.
fn opening(calls: &Calls<'_>, style: &CallStyle) -> String {
    let call = format!("{}{{\"name\":", style.before_call());
    match calls.tools {
        [only] => {
            let name = serde_json::json!(&*only.name.qualified());
            match only.kind {
                ToolKind::Function { .. } => {
                    format!("{call} {name}, \"{}\":", style.arguments_key())
                }
                ToolKind::Custom(_) => format!("{call} {name}}}"),
            }
        }
        _ => call,
    }
}
