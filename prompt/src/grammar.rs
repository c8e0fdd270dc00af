//! Grammars in Lark for llguidance.
//!
//! Lark here is llguidance's dialect: terminals are regular expressions with `&` and `~`,
//! `[lazy]` ends a terminal at its first match, `%json` embeds a JSON schema, and a bare
//! `<name>` is a control token.

mod schema;
mod size;

use std::fmt::Write;

use bytes::Bytes;

use turnwire_protocol::engine::EngineFailureKind;
use turnwire_protocol::tool::{Tool, ToolKind, Tools};

use self::schema::Schema;
use crate::format::{CALL_CLOSE, CALL_OPEN, CallStyle, PYTHON_TAG, THINK_CLOSE, THINK_OPEN};
use crate::plan::{Manner, Reasoning};
use crate::{Bounds, Refusal};

/// What a turn may call.
pub(crate) struct Calls<'a> {
    pub tools: &'a Tools,
    /// Indices of the functions that may be called.
    pub offered: &'a [usize],
    /// Whether one must be.
    pub must: bool,
    /// How many may be made.
    pub most: u32,
}

/// What a turn may say.
#[derive(Clone, Copy)]
pub(crate) enum Answer<'a> {
    Text,
    /// Any JSON object.
    Object,
    Schema(&'a Bytes),
}

pub(crate) struct Grammar<'a> {
    pub manner: &'a Manner,
    pub calls: &'a Calls<'a>,
    pub answer: Answer<'a>,
    /// What stands in the prompt already, a prefix of the first call.
    pub opening: &'a str,
}

impl Grammar<'_> {
    /// The grammar, or none if any text will do.
    pub(crate) fn lark(&self) -> Result<Option<String>, Refusal> {
        let no_tools = !self.calls.tools.offered.iter().any(Tool::is_function);
        if no_tools && matches!(self.answer, Answer::Text) {
            return Ok(None);
        }
        let mut lark = Lark::default();
        let body = self.body(&mut lark)?;
        let start = match self.manner.reasoning {
            Reasoning::Never => body,
            Reasoning::Allowed => format!("{body} | {} {body}", self.thinking(&mut lark)),
            Reasoning::Open => format!("{} {body}", self.thinking(&mut lark)),
        };
        lark.rule("start", &start);
        Ok(Some(lark.0))
    }

    /// Reasoning, its closing marker, and the white space that sets a call or JSON off from it.
    fn thinking(&self, lark: &mut Lark) -> String {
        let mut thinking = Vec::new();
        let mut thoughts = ANY.to_owned();
        if self.manner.reasoning == Reasoning::Allowed {
            if self.is_control(THINK_OPEN) {
                thinking.push(THINK_OPEN);
            } else {
                thoughts = format!("{WHITE} {} {ANY}", quoted(THINK_OPEN));
            }
        }
        if self.is_control(THINK_CLOSE) {
            lark.rule("THOUGHTS", &without(&thoughts, THINK_CLOSE));
            thinking.extend(["THOUGHTS", THINK_CLOSE]);
        } else {
            let thoughts = format!("{thoughts} {}", quoted(THINK_CLOSE));
            lark.rule("thoughts[lazy]", &thoughts);
            thinking.push("thoughts");
        }
        if self.calls.must || !matches!(self.answer, Answer::Text) {
            lark.rule("GAP", r"/[ \n]{1,4}/");
            thinking.push("GAP?");
        }
        thinking.join(" ")
    }

    /// All that may follow the reasoning.
    fn body(&self, lark: &mut Lark) -> Result<String, Refusal> {
        let offers = !self.calls.offered.is_empty();
        let calls = self.calls(lark)?;
        if self.calls.must {
            return Ok(format!("(first {calls})"));
        }
        let llama = matches!(self.manner.style, CallStyle::Llama { .. });
        Ok(match self.answer {
            Answer::Text => {
                self.text(lark);
                if !offers {
                    "TEXT".to_owned()
                } else if llama {
                    format!("(TEXT | first {calls})")
                } else if self.is_control(CALL_OPEN) {
                    format!("(TEXT | TEXT {CALL_OPEN} call {calls})")
                } else {
                    let lead = format!("{} {}", self.unlike_thinking(ANY), quoted(CALL_OPEN));
                    lark.rule("lead[lazy]", &lead);
                    format!("(TEXT | lead call {calls})")
                }
            }
            // An answer and a call that both begin with a brace have to be one schema.
            Answer::Object | Answer::Schema(_) if offers && llama => {
                let mut either = vec![self.answer_schema()?];
                for &i in self.calls.offered {
                    let name = &self.calls.tools.offered[i].name.qualified();
                    let key = self.manner.style.arguments_key();
                    either.push(self.arguments_schema(i)?.into_call(name, key));
                }
                lark.rule("answer", &Schema::any_of(either).lark());
                "answer".to_owned()
            }
            Answer::Object | Answer::Schema(_) => {
                lark.rule("answer", &self.answer_schema()?.lark());
                if offers {
                    format!("(answer | first {calls})")
                } else {
                    "answer".to_owned()
                }
            }
        })
    }

    /// Writes the rules `first` and `call`, and gives what may stand behind either.
    ///
    /// `call` begins behind its opening marker; `first` begins with that, or with what the
    /// prompt left of it.
    fn calls(&self, lark: &mut Lark) -> Result<String, Refusal> {
        if self.calls.offered.is_empty() {
            return Ok(String::new());
        }
        let style = &self.manner.style;
        let (open, inside, close) = match style {
            CallStyle::Hermes { inside, .. } => (
                self.marker(CALL_OPEN),
                inside.clone(),
                self.marker(CALL_CLOSE),
            ),
            CallStyle::Llama { .. } => Default::default(),
        };
        let tag = match style {
            CallStyle::Llama { tag: true } => format!("{PYTHON_TAG}?"),
            _ => String::new(),
        };
        let (mut first, mut call) = (Vec::new(), Vec::new());
        for &i in self.calls.offered {
            let name = serde_json::json!(&*self.calls.tools.offered[i].name.qualified());
            let key = style.arguments_key();
            let head = format!("{}{{\"name\": {name}, \"{key}\": ", inside[0]);
            let arguments = format!("arguments_{i}");
            lark.rule(&arguments, &self.arguments_schema(i)?.lark());
            let tail = quoted(&format!("}}{}", inside[1]));
            call.push(format!("{} {arguments} {tail} {close}", quoted(&head)));
            first.push(if self.opening.is_empty() {
                let head = quoted(&head);
                format!("{tag} {open} {head} {arguments} {tail} {close}")
            } else {
                let head = format!("{}{head}", style.before_call().trim_end());
                let left = head.strip_prefix(self.opening).unwrap_or(&head);
                format!("{} {arguments} {tail} {close}", quoted(left))
            });
        }
        lark.rule("first", &first.join(" | "));
        lark.rule("call", &call.join(" | "));
        if self.calls.most <= 1 {
            return Ok(String::new());
        }
        let between = match style.between_calls() {
            "" => String::new(),
            between => quoted(between),
        };
        Ok(format!(
            "({between} {open} call){{0,{}}}",
            self.calls.most - 1
        ))
    }

    /// The terminal `TEXT`: whatever is neither a call nor reasoning.
    fn text(&self, lark: &mut Lark) {
        let mut text = self.unlike_thinking(ANY);
        match self.manner.style {
            CallStyle::Hermes { .. } => text = without(&text, CALL_OPEN),
            CallStyle::Llama { .. } => {
                let _ = write!(text, r#" & ~(/\s*\{{\s*"name"\s*:(.|\n)*/)"#);
            }
        }
        lark.rule("TEXT", &text);
    }

    fn unlike_thinking(&self, text: &str) -> String {
        if self.manner.reasoning == Reasoning::Allowed {
            format!("({text} & ~({WHITE} {} {ANY}))", quoted(THINK_OPEN))
        } else {
            text.to_owned()
        }
    }

    fn marker(&self, marker: &str) -> String {
        if self.is_control(marker) {
            marker.to_owned()
        } else {
            quoted(marker)
        }
    }

    fn is_control(&self, marker: &str) -> bool {
        self.manner.control_markers.contains(&marker)
    }

    fn arguments_schema(&self, i: usize) -> Result<Schema, Refusal> {
        arguments_schema(self.calls.tools, i, self.manner.bounds)
    }

    fn answer_schema(&self) -> Result<Schema, Refusal> {
        answer_schema(self.answer, self.manner.bounds)
    }
}

/// Which part of a request a compiler of grammars refuses, after it refused the whole.
pub(crate) fn blame(
    tools: &Tools,
    answer: Answer<'_>,
    bounds: Bounds,
    compile: impl Fn(&str) -> Result<(), String>,
) -> Refusal {
    let refused = |schema: Schema, param: &str| {
        let error = compile(&format!("start: {}\n", schema.lark())).err()?;
        Some(invalid_schema(param, reason(&error)))
    };
    let alone = || {
        for i in (0..tools.offered.len()).filter(|&i| tools.offered[i].is_function()) {
            let schema = arguments_schema(tools, i, bounds)?;
            if let Some(refusal) = refused(schema, &parameters_of(&tools.offered[i])) {
                return Err(refusal);
            }
        }
        match refused(answer_schema(answer, bounds)?, FORMAT_SCHEMA) {
            Some(refusal) => Err(refusal),
            None => Ok(()),
        }
    };
    alone().err().unwrap_or_else(|| Refusal {
        kind: EngineFailureKind::Invalid,
        message: "The schemas of the tools and of the output format are too large together."
            .to_owned(),
        param: Some("tools".to_owned()),
    })
}

/// What llguidance says is wrong, without where in a grammar the client never saw.
fn reason(error: &str) -> &str {
    let reason = error
        .rsplit_once("failed to compile JSON schema: ")
        .map_or(error, |(_, reason)| reason);
    reason.lines().next().unwrap_or(reason)
}

fn parameters_of(tool: &Tool) -> String {
    format!("{}.parameters", tool.path)
}

const FORMAT_SCHEMA: &str = "text.format.schema";

fn arguments_schema(tools: &Tools, i: usize, bounds: Bounds) -> Result<Schema, Refusal> {
    let tool = &tools.offered[i];
    let ToolKind::Function { parameters, strict } = &tool.kind else {
        return Ok(Schema::any_object(bounds));
    };
    let schema = match parameters {
        Some(parameters) => Schema::parse_arguments(parameters, bounds)
            .map_err(|error| invalid_schema(&parameters_of(tool), &error))?,
        None => Schema::any_object(bounds),
    };
    Ok(if *strict { schema } else { schema.lenient() })
}

fn answer_schema(answer: Answer<'_>, bounds: Bounds) -> Result<Schema, Refusal> {
    match answer {
        Answer::Schema(schema) => {
            Schema::parse(schema, bounds).map_err(|error| invalid_schema(FORMAT_SCHEMA, &error))
        }
        Answer::Text | Answer::Object => Ok(Schema::any_object(bounds)),
    }
}

fn invalid_schema(param: &str, why: &str) -> Refusal {
    Refusal {
        kind: EngineFailureKind::Invalid,
        message: format!("Invalid schema in {param}: {why}"),
        param: Some(param.to_owned()),
    }
}

/// Any text.
const ANY: &str = r"/(.|\n)*/";
/// White space or nothing.
const WHITE: &str = r"/\s*/";

/// `text` in which `marker` is not spelled out. That goes for control tokens too: the parser
/// reads characters and would take them for the marker.
fn without(text: &str, marker: &str) -> String {
    format!("({text}) & ~({ANY} {} {ANY})", quoted(marker))
}

/// A grammar being written.
#[derive(Default)]
struct Lark(String);

impl Lark {
    fn rule(&mut self, name: &str, body: &str) {
        let _ = writeln!(self.0, "{name}: {body}");
    }
}

/// A Lark string, which is quoted as in JSON.
fn quoted(text: &str) -> String {
    serde_json::json!(text).to_string()
}
