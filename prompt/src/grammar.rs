//! Grammars in Lark for llguidance.
//!
//! Lark here is llguidance's dialect: terminals are regular expressions with `&` and `~`,
//! `[lazy]` ends a terminal at its first match, `%json` embeds a JSON schema, `@name` another
//! grammar, and a bare `<name>` is a control token.

mod custom;
mod schema;
mod size;

use std::fmt::Write;

use bytes::Bytes;

use turnwire_protocol::engine::EngineFailureKind;
use turnwire_protocol::tool::{CustomFormat, Tool, ToolKind};

use self::schema::Schema;
use crate::format::{CALL_CLOSE, CALL_OPEN, CallStyle, PYTHON_TAG, THINK_CLOSE, THINK_OPEN};
use crate::parser::Takes;
use crate::plan::{Manner, Reasoning};
use crate::{Bounds, Refusal};

/// What an output obeys: a grammar in Lark, and those it refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Grammar {
    pub lark: String,
    pub nested: Vec<Nested>,
}

/// A grammar in Lark that another one refers to as `@name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Nested {
    pub name: String,
    pub lark: String,
}

/// What a turn may call.
pub(crate) struct Calls<'a> {
    /// The tools that may be called.
    pub tools: &'a [&'a Tool],
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

/// What an output looks like.
pub(crate) struct Form<'a> {
    pub manner: &'a Manner,
    /// Whether the model knows of any tools, callable or not.
    pub knows_tools: bool,
    pub calls: &'a Calls<'a>,
    pub answer: Answer<'a>,
    /// What stands in the prompt already, a prefix of the first call.
    pub opening: &'a str,
}

/// How the calls of a turn are written.
struct CallRules {
    /// From the marker before the first one on, or from what the prompt left of it.
    all: String,
    /// From behind that marker on.
    behind_marker: String,
}

impl Form<'_> {
    /// The grammar, or none if any text will do.
    pub(crate) fn grammar(&self) -> Result<Option<Grammar>, Refusal> {
        if !self.knows_tools && matches!(self.answer, Answer::Text) {
            return Ok(None);
        }
        let mut grammar = Grammar::default();
        let body = self.body(&mut grammar)?;
        let start = match self.manner.reasoning {
            Reasoning::Never => body,
            Reasoning::Allowed => format!("{body} | {} {body}", self.thinking(&mut grammar)),
            Reasoning::Open => format!("{} {body}", self.thinking(&mut grammar)),
        };
        grammar.rule("start", &start);
        Ok(Some(grammar))
    }

    /// Reasoning, its closing marker, and the white space that sets a call or JSON off from it.
    fn thinking(&self, grammar: &mut Grammar) -> String {
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
            grammar.rule("THOUGHTS", &without(&thoughts, THINK_CLOSE));
            thinking.extend(["THOUGHTS", THINK_CLOSE]);
        } else {
            let thoughts = format!("{thoughts} {}", quoted(THINK_CLOSE));
            grammar.rule("thoughts[lazy]", &thoughts);
            thinking.push("thoughts");
        }
        if self.calls.must || !matches!(self.answer, Answer::Text) {
            grammar.rule("GAP", r"/[ \n]{1,4}/");
            thinking.push("GAP?");
        }
        thinking.join(" ")
    }

    /// All that may follow the reasoning.
    fn body(&self, grammar: &mut Grammar) -> Result<String, Refusal> {
        let calls = self.calls(grammar)?;
        let llama = matches!(self.manner.style, CallStyle::Llama { .. });
        Ok(match (self.answer, calls) {
            (_, Some(calls)) if self.calls.must => calls.all,
            (Answer::Text, None) => {
                self.text(grammar);
                "TEXT".to_owned()
            }
            (Answer::Text, Some(calls)) => {
                self.text(grammar);
                if llama {
                    format!("(TEXT | {})", calls.all)
                } else if self.is_control(CALL_OPEN) {
                    format!("(TEXT | TEXT {CALL_OPEN} {})", calls.behind_marker)
                } else {
                    let lead = format!("{} {}", self.unlike_thinking(ANY), quoted(CALL_OPEN));
                    grammar.rule("lead[lazy]", &lead);
                    format!("(TEXT | lead {})", calls.behind_marker)
                }
            }
            // An answer and a call that both begin with a brace have to be one schema, so what
            // is no JSON cannot be called here.
            (Answer::Object | Answer::Schema(_), Some(_)) if llama => {
                let mut either = vec![self.answer_schema()?];
                for tool in self.calls.tools {
                    if let ToolKind::Function { parameters, strict } = &tool.kind {
                        let arguments =
                            self.arguments_schema(tool, parameters.as_ref(), *strict)?;
                        let key = self.manner.style.arguments_key();
                        either.push(arguments.into_call(&tool.name.qualified(), key));
                    }
                }
                grammar.rule("answer", &Schema::any_of(either).lark());
                "answer".to_owned()
            }
            (Answer::Object | Answer::Schema(_), calls) => {
                grammar.rule("answer", &self.answer_schema()?.lark());
                match calls {
                    Some(calls) => format!("(answer | {})", calls.all),
                    None => "answer".to_owned(),
                }
            }
        })
    }

    /// Writes the rules of the calls: `first` begins with a call's opening marker, or with what
    /// the prompt left of it, and `call` behind that marker. What goes on to the end of the turn
    /// can only be its last call.
    fn calls(&self, grammar: &mut Grammar) -> Result<Option<CallRules>, Refusal> {
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
        let key = style.arguments_key();
        let (mut closed, mut ending) = (Alternatives::default(), Alternatives::default());
        for (i, tool) in self.calls.tools.iter().enumerate() {
            let name = serde_json::json!(&*tool.name.qualified());
            let (head, rest) = match &tool.kind {
                ToolKind::Function { parameters, strict } => {
                    let arguments = format!("arguments_{i}");
                    let schema = self.arguments_schema(tool, parameters.as_ref(), *strict)?;
                    grammar.rule(&arguments, &schema.lark());
                    let tail = quoted(&format!("}}{}", inside[1]));
                    (
                        format!("{}{{\"name\": {name}, \"{key}\": ", inside[0]),
                        format!("{arguments} {tail} {close}"),
                    )
                }
                ToolKind::Custom(format) => (
                    format!("{}{{\"name\": {name}}}\n", inside[0]),
                    self.input(i, tool, format, grammar)?,
                ),
            };
            let alternatives = match self.manner.takes(tool) {
                Takes::Arguments | Takes::Input => &mut closed,
                Takes::InputToTheEnd => &mut ending,
            };
            alternatives.call.push(format!("{} {rest}", quoted(&head)));
            alternatives.first.push(if self.opening.is_empty() {
                format!("{tag} {open} {} {rest}", quoted(&head))
            } else {
                let head = format!("{}{head}", style.before_call().trim_end());
                let left = head.strip_prefix(self.opening).unwrap_or(&head);
                format!("{} {rest}", quoted(left))
            });
        }
        if closed.call.is_empty() && ending.call.is_empty() {
            return Ok(None);
        }
        let between = match style.between_calls() {
            "" => String::new(),
            between => quoted(between),
        };
        let most = self.calls.most;
        let more = match (most > 1, ending.call.is_empty()) {
            (false, _) => String::new(),
            (true, true) => format!("({between} {open} call){{0,{}}}", most - 1),
            (true, false) => format!(
                "({between} {open} call){{0,{}}} ({between} {open} (call | call_to_the_end))?",
                most - 2
            ),
        };
        let mut rules = Vec::new();
        if !closed.call.is_empty() {
            grammar.rule("first", &closed.first.join(" | "));
            grammar.rule("call", &closed.call.join(" | "));
            rules.push((format!("first {more}"), format!("call {more}")));
        }
        if !ending.call.is_empty() {
            grammar.rule("first_to_the_end", &ending.first.join(" | "));
            grammar.rule("call_to_the_end", &ending.call.join(" | "));
            rules.push(("first_to_the_end".to_owned(), "call_to_the_end".to_owned()));
        }
        let (all, behind_marker): (Vec<String>, Vec<String>) = rules.into_iter().unzip();
        Ok(Some(CallRules {
            all: format!("({})", all.join(" | ")),
            behind_marker: format!("({})", behind_marker.join(" | ")),
        }))
    }

    /// The input of tool `i`, a custom one, up to and including what closes the call.
    fn input(
        &self,
        i: usize,
        tool: &Tool,
        format: &CustomFormat,
        grammar: &mut Grammar,
    ) -> Result<String, Refusal> {
        let terminal = match input(tool, format, self.manner.bounds)? {
            Input::Nested(lark) => {
                let name = format!("input_{i}");
                let reference = format!("@{name}");
                grammar.nested.push(Nested { name, lark });
                return Ok(reference);
            }
            Input::Terminal(terminal) => terminal,
        };
        Ok(match self.manner.takes(tool) {
            Takes::Arguments | Takes::InputToTheEnd => {
                grammar.rule(&format!("INPUT_{i}"), &terminal);
                format!("INPUT_{i}")
            }
            Takes::Input if self.is_control(CALL_CLOSE) => {
                grammar.rule(&format!("INPUT_{i}"), &without(&terminal, CALL_CLOSE));
                format!("INPUT_{i} {CALL_CLOSE}")
            }
            Takes::Input => {
                let close = quoted(&format!("{}{CALL_CLOSE}", self.manner.before_close()));
                let input = format!("({}) {close}", without(&terminal, CALL_CLOSE));
                grammar.rule(&format!("input_{i}[lazy]"), &input);
                format!("input_{i}")
            }
        })
    }

    /// The terminal `TEXT`: whatever is neither a call nor reasoning.
    fn text(&self, grammar: &mut Grammar) {
        let mut text = self.unlike_thinking(ANY);
        match self.manner.style {
            CallStyle::Hermes { .. } => text = without(&text, CALL_OPEN),
            CallStyle::Llama { .. } => {
                let _ = write!(text, r#" & ~(/\s*\{{\s*"name"\s*:(.|\n)*/)"#);
            }
        }
        grammar.rule("TEXT", &text);
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

    fn arguments_schema(
        &self,
        tool: &Tool,
        parameters: Option<&Bytes>,
        strict: bool,
    ) -> Result<Schema, Refusal> {
        arguments_schema(tool, parameters, strict, self.manner.bounds)
    }

    fn answer_schema(&self) -> Result<Schema, Refusal> {
        answer_schema(self.answer, self.manner.bounds)
    }
}

#[derive(Default)]
struct Alternatives {
    first: Vec<String>,
    call: Vec<String>,
}

/// A part of a request that a compiler of grammars may refuse.
struct Part {
    /// A rule for it alone.
    rule: String,
    nested: Option<String>,
    param: String,
    refusal: fn(&str, &str) -> Refusal,
}

/// Which part of a request a compiler of grammars refuses, after it refused the whole. Costs
/// about as much as compiling the whole twice, however many parts there are.
pub(crate) fn blame<'a>(
    tools: impl Iterator<Item = &'a Tool>,
    answer: Answer<'_>,
    bounds: Bounds,
    compile: impl Fn(&Grammar) -> Result<(), String>,
) -> Refusal {
    let parts = tools.map(|tool| {
        Ok(match &tool.kind {
            ToolKind::Function { parameters, strict } => Part {
                rule: arguments_schema(tool, parameters.as_ref(), *strict, bounds)?.lark(),
                nested: None,
                param: parameters_of(tool),
                refusal: |param, error| invalid_schema(param, reason(error)),
            },
            ToolKind::Custom(format) => {
                let (rule, nested) = match input(tool, format, bounds)? {
                    Input::Terminal(terminal) => (terminal, None),
                    Input::Nested(lark) => (String::new(), Some(lark)),
                };
                Part {
                    rule,
                    nested,
                    param: definition_of(tool),
                    refusal: |param, error| invalid_grammar(param, &custom::reason(error)),
                }
            }
        })
    });
    let answer = answer_schema(answer, bounds).map(|schema| Part {
        rule: schema.lark(),
        nested: None,
        param: FORMAT_SCHEMA.to_owned(),
        refusal: |param, error| invalid_schema(param, reason(error)),
    });
    let parts: Result<Vec<Part>, Refusal> = parts.chain([answer]).collect();
    let found = parts.map(|parts| find_refused(&parts, &compile));
    found.unwrap_or_else(Some).unwrap_or_else(|| Refusal {
        kind: EngineFailureKind::Invalid,
        message: "The schemas of the tools and of the output format are too large together."
            .to_owned(),
        param: Some("tools".to_owned()),
    })
}

/// The first of the parts that is refused by itself, found by halving.
fn find_refused(
    parts: &[Part],
    compile: &impl Fn(&Grammar) -> Result<(), String>,
) -> Option<Refusal> {
    let mut grammar = Grammar::default();
    let mut names = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        match &part.nested {
            Some(lark) => {
                let name = format!("part_{i}");
                names.push(format!("@{name}"));
                let lark = lark.clone();
                grammar.nested.push(Nested { name, lark });
            }
            None => {
                let name = format!("part_{i}");
                grammar.rule(&name, &part.rule);
                names.push(name);
            }
        }
    }
    grammar.rule("start", &names.join(" | "));
    let error = compile(&grammar).err()?;
    match parts {
        [] => None,
        [part] => Some((part.refusal)(&part.param, &error)),
        parts => {
            let (left, right) = parts.split_at(parts.len() / 2);
            find_refused(left, compile).or_else(|| find_refused(right, compile))
        }
    }
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

fn definition_of(tool: &Tool) -> String {
    format!("{}.format.definition", tool.path)
}

const FORMAT_SCHEMA: &str = "text.format.schema";

fn arguments_schema(
    tool: &Tool,
    parameters: Option<&Bytes>,
    strict: bool,
    bounds: Bounds,
) -> Result<Schema, Refusal> {
    let schema = match parameters {
        Some(parameters) => Schema::parse_arguments(parameters, bounds)
            .map_err(|error| invalid_schema(&parameters_of(tool), &error))?,
        None => Schema::any_object(bounds),
    };
    Ok(if strict { schema } else { schema.lenient() })
}

fn answer_schema(answer: Answer<'_>, bounds: Bounds) -> Result<Schema, Refusal> {
    match answer {
        Answer::Schema(schema) => {
            Schema::parse(schema, bounds).map_err(|error| invalid_schema(FORMAT_SCHEMA, &error))
        }
        Answer::Text | Answer::Object => Ok(Schema::any_object(bounds)),
    }
}

/// What the input of a custom tool is held to.
enum Input {
    Terminal(String),
    /// A grammar of its own.
    Nested(String),
}

fn input(tool: &Tool, format: &CustomFormat, bounds: Bounds) -> Result<Input, Refusal> {
    let input = match format {
        CustomFormat::Text => Ok(Input::Terminal(format!(
            r"/(.|\n){{1,{}}}/",
            bounds.string_chars
        ))),
        CustomFormat::Regex(regex) => custom::terminal(regex).map(Input::Terminal),
        CustomFormat::Lark(lark) => {
            custom::check_lark(lark).map(|()| Input::Nested(lark.to_string()))
        }
    };
    input.map_err(|error| invalid_grammar(&definition_of(tool), &error))
}

fn invalid_schema(param: &str, why: &str) -> Refusal {
    invalid("schema", param, why)
}

fn invalid_grammar(param: &str, why: &str) -> Refusal {
    invalid("grammar", param, why)
}

fn invalid(what: &str, param: &str, why: &str) -> Refusal {
    Refusal {
        kind: EngineFailureKind::Invalid,
        message: format!("Invalid {what} in {param}: {why}"),
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

impl Grammar {
    fn rule(&mut self, name: &str, body: &str) {
        let _ = writeln!(self.lark, "{name}: {body}");
    }
}

/// A Lark string, which is quoted as in JSON.
fn quoted(text: &str) -> String {
    serde_json::json!(text).to_string()
}
