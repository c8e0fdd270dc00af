//! Grammars in Lark for llguidance.
//!
//! Lark here is llguidance's dialect: terminals are regular expressions with `&` and `~`,
//! `[lazy]` ends a terminal at its first match, `%json` embeds a JSON schema, and a bare
//! `<name>` is a control token.

mod schema;

use std::fmt::Write;

use bytes::Bytes;

use turnwire_protocol::engine::EngineFailureKind;
use turnwire_protocol::tool::Tools;

use self::schema::Schema;
use crate::Refusal;
use crate::format::{CALL_CLOSE, CALL_OPEN, CallStyle, PYTHON_TAG, THINK_CLOSE, THINK_OPEN};
use crate::plan::{Manner, Reasoning};

/// Calls that one turn may make. A model that repeats itself must come to an end.
const MAX_CALLS: usize = 16;

/// What a turn may call.
pub(crate) struct Calls<'a> {
    pub tools: &'a Tools,
    /// Indices of the functions that may be called.
    pub offered: &'a [usize],
    /// Whether one must be.
    pub must: bool,
    /// Whether more than one may be.
    pub parallel: bool,
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
        let no_tools = self.calls.tools.functions.is_empty();
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
            lark.rule("THOUGHTS", &thoughts);
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
        let calls = self.calls(lark)?;
        let body = match (self.answer, &self.manner.style) {
            _ if self.calls.must => format!("first{calls}"),
            (Answer::Text, CallStyle::Hermes { .. }) if !self.offers() => {
                self.text(lark);
                "TEXT".to_owned()
            }
            (Answer::Text, CallStyle::Hermes { .. }) if self.is_control(CALL_OPEN) => {
                self.text(lark);
                format!("TEXT | TEXT {CALL_OPEN} call{calls}")
            }
            (Answer::Text, CallStyle::Hermes { .. }) => {
                self.text(lark);
                let lead = format!("{} {}", self.unlike_thinking(ANY), quoted(CALL_OPEN));
                lark.rule("lead[lazy]", &lead);
                format!("TEXT | lead call{calls}")
            }
            (Answer::Text, CallStyle::Llama { .. }) if !self.offers() => {
                self.text(lark);
                "TEXT".to_owned()
            }
            (Answer::Text, CallStyle::Llama { .. }) => {
                self.text(lark);
                format!("TEXT | first{calls}")
            }
            (Answer::Object | Answer::Schema(_), _) if !self.offers() => {
                lark.rule("answer", &self.answer_schema()?.lark());
                "answer".to_owned()
            }
            (Answer::Object | Answer::Schema(_), CallStyle::Hermes { .. }) => {
                lark.rule("answer", &self.answer_schema()?.lark());
                format!("answer | first{calls}")
            }
            // An answer and a call both begin with a brace, so they are one schema.
            (Answer::Object | Answer::Schema(_), CallStyle::Llama { .. }) => {
                let mut either = vec![self.answer_schema()?];
                for &i in self.calls.offered {
                    let function = &self.calls.tools.functions[i];
                    let key = self.manner.style.arguments_key();
                    either.push(self.arguments_schema(i)?.as_call(&function.name, key));
                }
                lark.rule("answer", &Schema::any_of(either).lark());
                "answer".to_owned()
            }
        };
        Ok(format!("({body})"))
    }

    fn offers(&self) -> bool {
        !self.calls.offered.is_empty()
    }

    /// The rules `first` and `call`, and what may stand behind them.
    ///
    /// `call` begins behind its opening marker, `first` with it or with what the prompt leaves
    /// of it.
    fn calls(&self, lark: &mut Lark) -> Result<String, Refusal> {
        if !self.offers() {
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
        let mut first = Vec::new();
        let mut call = Vec::new();
        for &i in self.calls.offered {
            let name = serde_json::json!(&*self.calls.tools.functions[i].name);
            let head = format!(
                "{}{{\"name\": {name}, \"{}\": ",
                inside[0],
                style.arguments_key()
            );
            let arguments = format!("arguments_{i}");
            lark.rule(&arguments, &self.arguments_schema(i)?.lark());
            let rest = format!(
                "{arguments} {} {close}",
                quoted(&format!("}}{}", inside[1]))
            );
            call.push(format!("{} {rest}", quoted(&head)));
            if self.opening.is_empty() {
                let tag = match style {
                    CallStyle::Llama { tag: true } => format!("{PYTHON_TAG}? "),
                    _ => String::new(),
                };
                first.push(format!("{tag}{open} {} {rest}", quoted(&head)));
            } else {
                let head = format!("{}{head}", style.before_call().trim_end());
                let left = head.strip_prefix(self.opening).unwrap_or(&head);
                first.push(format!("{} {rest}", quoted(left)));
            }
        }
        lark.rule("first", &first.join(" | "));
        if !self.calls.parallel {
            if !self.calls.must && matches!(self.answer, Answer::Text) {
                lark.rule("call", &call.join(" | "));
            }
            return Ok(String::new());
        }
        lark.rule("call", &call.join(" | "));
        let between = match style.between_calls() {
            "" => String::new(),
            between => quoted(between),
        };
        Ok(format!(" ({between} {open} call){{0,{}}}", MAX_CALLS - 1))
    }

    /// The terminal `TEXT`: whatever is neither a call nor reasoning.
    fn text(&self, lark: &mut Lark) {
        let mut text = self.unlike_thinking(ANY);
        match self.manner.style {
            CallStyle::Hermes { .. } if !self.is_control(CALL_OPEN) => {
                let _ = write!(text, " & ~({ANY} {} {ANY})", quoted(CALL_OPEN));
            }
            CallStyle::Hermes { .. } => {}
            CallStyle::Llama { .. } => {
                let _ = write!(text, r#" & ~(/\s*\{{\s*"name"\s*:(.|\n)*/)"#);
            }
        }
        lark.rule("TEXT", &text);
    }

    fn unlike_thinking(&self, text: &str) -> String {
        if self.manner.reasoning == Reasoning::Allowed && !self.is_control(THINK_OPEN) {
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
        let tool = &self.calls.tools.functions[i];
        let schema = match &tool.parameters {
            Some(parameters) => Schema::parse(parameters, self.manner.bounds)
                .map_err(|error| invalid_schema(&format!("tools[{i}].parameters"), &error))?,
            None => Schema::any_object(self.manner.bounds),
        };
        Ok(if tool.strict {
            schema
        } else {
            schema.lenient()
        })
    }

    fn answer_schema(&self) -> Result<Schema, Refusal> {
        match self.answer {
            Answer::Schema(schema) => Schema::parse(schema, self.manner.bounds)
                .map_err(|error| invalid_schema("text.format.schema", &error)),
            Answer::Text | Answer::Object => Ok(Schema::any_object(self.manner.bounds)),
        }
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
