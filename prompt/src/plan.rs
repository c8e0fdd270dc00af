//! From a turn's choice of tools and output format to what the model is held to.

use turnwire_protocol::engine::{EngineFailureKind, TextFormat, TurnRequest};
use turnwire_protocol::tool::{Tool, ToolChoice};

use crate::format::CallStyle;
use crate::grammar::{Answer, Calls, Grammar};
use crate::parser::{OutputParser, Syntax};
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
    let tools = &request.tools.offered;
    let allowed = |tool: &Tool| match &request.tool_choice {
        ToolChoice::None => false,
        ToolChoice::Auto | ToolChoice::Required => true,
        ToolChoice::Tool(chosen) => tool.name == *chosen,
        ToolChoice::Allowed { names, .. } => names.contains(&tool.name),
    };
    let offered: Vec<usize> = (0..tools.len())
        .filter(|&i| tools[i].is_function() && allowed(&tools[i]))
        .collect();
    let must_call = matches!(
        request.tool_choice,
        ToolChoice::Required | ToolChoice::Tool(_) | ToolChoice::Allowed { required: true, .. }
    );
    if must_call && offered.is_empty() {
        return Err(Refusal {
            kind: EngineFailureKind::Invalid,
            message: "tool_choice asks for a call, but names no function in tools.".to_owned(),
            param: Some("tool_choice".to_owned()),
        });
    }

    let calls = Calls {
        tools: &request.tools,
        offered: &offered,
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
    let grammar = Grammar {
        manner,
        calls: &calls,
        answer: answer(&request.format),
        opening: &opening,
    }
    .lark()?;
    let names = offered.iter().map(|&i| tools[i].name.clone()).collect();
    let syntax = Syntax {
        llama: matches!(manner.style, CallStyle::Llama { .. }),
        arguments_key: manner.style.arguments_key(),
        names,
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
    match calls.offered {
        [only] => {
            let name = serde_json::json!(&*calls.tools.offered[*only].name.qualified());
            format!("{call} {name}, \"{}\":", style.arguments_key())
        }
        _ => call,
    }
}
