//! OutputParser: a model's text, piece by piece, into items.
//!
//! ```text
//!            ┌──────────────── </think> ───────────────┐
//!   Gap ── <think> ──▶ Reasoning                       ▼
//!    │ ▲◀──────────────────────────────────────────── (Gap)
//!    │ └────────────────── </tool_call> ─────────┐
//!    ├── <tool_call> ──▶ Header ── name ──▶ Arguments ──▶ Tail  (or Input)
//!    │                     ▲  │
//!    │          <tool_call>│  │ malformed
//!    │                     │  ▼
//!    └── anything else ──▶ Text
//! ```

mod header;
mod tape;

use std::sync::Arc;

use turnwire_protocol::engine::{EngineOutput, ItemStart, TokenLogprob};
use turnwire_protocol::tool::ToolName;

use self::header::Header;
use self::tape::Tape;
use crate::format::{CALL_CLOSE, CALL_OPEN, PYTHON_TAG, THINK_CLOSE, THINK_OPEN};
use crate::plan::Reasoning;

/// Bytes of white space, or of a call with an unusual header, that are held back at most.
const MAX_HELD: usize = 16 * 1024;

/// Turns the text of one turn into items as it comes.
///
/// It holds back only what may turn out to be the start of a marker, and loses nothing: what
/// looks like a call and is none comes out as text. White space between reasoning, text and
/// calls belongs to the template and is dropped.
#[derive(Debug)]
pub struct OutputParser {
    syntax: Syntax,
    state: State,
    tape: Tape,
    /// Whether an item has been started and not yet ended.
    open: bool,
    in_reasoning: bool,
}

/// What an output may hold besides text.
#[derive(Debug)]
pub(crate) struct Syntax {
    /// Calls are bare JSON at the start of the output, rather than between markers anywhere.
    pub llama: bool,
    pub arguments_key: &'static str,
    /// What stands between the input of a custom tool and the marker behind it.
    pub before_close: String,
    /// The tools that may be called; the call of any other is text.
    pub tools: Arc<[Callable]>,
    pub reasoning: Reasoning,
}

/// A tool as the model calls it.
#[derive(Debug)]
pub(crate) struct Callable {
    pub name: ToolName,
    /// Its name in the output.
    pub word: Arc<str>,
    pub takes: Takes,
}

/// What a call gives its tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// A JSON object.
    Arguments,
    /// Any text without the marker that closes the call.
    Input,
    /// Any text at all: it goes on to the end of the turn.
    InputToTheEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first item or between two.
    Gap(Gap),
    Reasoning,
    Text,
    /// `lead` bytes of white space and marker, then a call up to its arguments.
    Header {
        lead: usize,
    },
    /// A call whose header is not the usual one, until its closing marker.
    Whole {
        lead: usize,
    },
    Arguments {
        depth: u32,
        string: StringState,
    },
    /// Behind the arguments, up to and including the closing marker.
    Tail,
    /// What a custom tool is given, up to and including the closing marker if there is one.
    Input {
        to_the_end: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gap {
    Start,
    AfterReasoning,
    AfterCall,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StringState {
    Outside,
    Inside,
    Escape,
}

/// What an output is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// Nothing that an item has begun for: the last item is complete, or can be completed by
    /// [`OutputParser::stop`].
    Nothing,
    Reasoning,
    Message,
    Call,
}

impl OutputParser {
    /// For an output that is text and nothing else.
    pub fn plain() -> Self {
        Self::new(Syntax {
            llama: false,
            arguments_key: "arguments",
            before_close: String::new(),
            tools: Arc::new([]),
            reasoning: Reasoning::Never,
        })
    }

    pub(crate) fn new(syntax: Syntax) -> Self {
        let state = match syntax.reasoning {
            Reasoning::Open => State::Reasoning,
            Reasoning::Never | Reasoning::Allowed => State::Gap(Gap::Start),
        };
        Self {
            syntax,
            state,
            tape: Tape::default(),
            open: false,
            in_reasoning: false,
        }
    }

    /// The start of a call that stands in the prompt.
    pub(crate) fn assume(&mut self, opening: &str) {
        self.tape.assume(opening);
    }

    /// Takes the bytes of one token (possibly part of a character) and appends what is certain to `out`.
    pub fn push(
        &mut self,
        bytes: &[u8],
        logprob: Option<TokenLogprob>,
        out: &mut Vec<EngineOutput>,
    ) {
        self.in_reasoning = self.state == State::Reasoning;
        self.tape.push(bytes, logprob);
        while self.step(false, out) {
            self.in_reasoning |= self.state == State::Reasoning;
        }
    }

    /// Whether the last pushed token belongs to reasoning.
    pub fn in_reasoning(&self) -> bool {
        self.in_reasoning
    }

    pub fn inside(&self) -> Inside {
        match self.state {
            State::Reasoning => Inside::Reasoning,
            State::Text if self.open => Inside::Message,
            State::Arguments { .. } | State::Tail | State::Input { .. } => Inside::Call,
            State::Gap(_) | State::Text | State::Header { .. } | State::Whole { .. } => {
                Inside::Nothing
            }
        }
    }

    /// The model was stopped outside of a call: closes the open item, and forgets what was pushed
    /// but belongs to none, such as white space or half a marker. Says how many bytes that were.
    pub fn stop(&mut self, out: &mut Vec<EngineOutput>) -> usize {
        self.end_item(out);
        let held = self.tape.bytes().len();
        self.tape.skip(held);
        self.state = State::Gap(Gap::AfterCall);
        held
    }

    /// The model stopped. Gives out what was held back and, if `complete`, closes the open
    /// item; an item that was cut stays open and so ends `incomplete`.
    pub fn finish(&mut self, complete: bool, out: &mut Vec<EngineOutput>) {
        loop {
            while self.step(true, out) {}
            match self.state {
                // A call without its end is not complete, whoever ended it.
                State::Arguments { .. } | State::Input { to_the_end: false } => return,
                // Half a call that was cut is neither a call nor text.
                State::Header { .. } | State::Whole { .. } if !complete => return,
                State::Header { lead } | State::Whole { lead } => self.give_up_call(lead, out),
                State::Gap(_)
                | State::Reasoning
                | State::Text
                | State::Tail
                | State::Input { to_the_end: true } => break,
            }
        }
        if complete {
            self.end_item(out);
        }
    }

    /// Reads what can be read off the tape. False if nothing could.
    fn step(&mut self, last: bool, out: &mut Vec<EngineOutput>) -> bool {
        match self.state {
            State::Gap(gap) => self.gap(gap, last),
            State::Reasoning => self.reasoning(last, out),
            State::Text => self.text(last, out),
            State::Header { lead } => self.header(lead, out),
            State::Whole { lead } => self.whole(lead, out),
            State::Arguments { depth, string } => self.arguments(depth, string, out),
            State::Tail => self.tail(out),
            State::Input { to_the_end } => self.input(to_the_end, last, out),
        }
    }

    fn gap(&mut self, gap: Gap, last: bool) -> bool {
        let bytes = self.tape.bytes();
        let separator = |b: &u8| b.is_ascii_whitespace() || self.separates_calls(gap, *b);
        let white = bytes.iter().take_while(|b| separator(b)).count();
        let rest = &bytes[white..];
        if rest.is_empty() && !last && white < MAX_HELD {
            return false;
        }
        let mut partial = false;
        let mut found = |marker: &str| {
            partial |= !rest.is_empty() && marker.as_bytes().starts_with(rest);
            rest.starts_with(marker.as_bytes())
        };
        if gap == Gap::Start && self.syntax.reasoning == Reasoning::Allowed && found(THINK_OPEN) {
            self.tape.skip(white + THINK_OPEN.len());
            self.state = State::Reasoning;
            return true;
        }
        if self.reads_calls() {
            if self.syntax.llama {
                if found(PYTHON_TAG) {
                    let lead = white + PYTHON_TAG.len();
                    self.state = State::Header { lead };
                    return true;
                }
                if found("{") {
                    self.state = State::Header { lead: white };
                    return true;
                }
            } else if found(CALL_OPEN) {
                let lead = white + CALL_OPEN.len();
                self.state = State::Header { lead };
                return true;
            }
        }
        if partial && !last {
            return false;
        }
        if bytes.is_empty() {
            return false;
        }
        match gap {
            Gap::Start => {}
            Gap::AfterReasoning | Gap::AfterCall => self.tape.skip(white),
        }
        self.state = State::Text;
        true
    }

    /// Llama models write `;` or `,` between calls.
    fn separates_calls(&self, gap: Gap, byte: u8) -> bool {
        gap == Gap::AfterCall && self.syntax.llama && matches!(byte, b';' | b',')
    }

    fn reads_calls(&self) -> bool {
        !self.syntax.tools.is_empty()
    }

    fn reasoning(&mut self, last: bool, out: &mut Vec<EngineOutput>) -> bool {
        let bytes = self.tape.bytes();
        if !self.open {
            let white = white_at_start(bytes);
            if white > 0 {
                self.tape.skip(white);
                return true;
            }
        }
        if let Some(at) = find(bytes, THINK_CLOSE) {
            let thought = trimmed(&bytes[..at]);
            self.think(thought, true, out);
            let rest = at - thought;
            self.tape.skip(rest + THINK_CLOSE.len());
            self.end_item(out);
            self.state = State::Gap(Gap::AfterReasoning);
            return true;
        }
        let certain = if last {
            bytes.len()
        } else {
            without_partial(bytes, THINK_CLOSE)
        };
        self.think(certain, last, out)
    }

    fn think(&mut self, length: usize, last: bool, out: &mut Vec<EngineOutput>) -> bool {
        if length == 0 {
            return false;
        }
        let (text, _) = self.tape.take(length, last);
        if text.is_empty() {
            return false;
        }
        if !self.open {
            self.start_item(ItemStart::Reasoning, out);
        }
        out.push(EngineOutput::ReasoningDelta { text });
        true
    }

    fn text(&mut self, last: bool, out: &mut Vec<EngineOutput>) -> bool {
        let bytes = self.tape.bytes();
        let watches = self.reads_calls() && !self.syntax.llama;
        if watches && let Some(at) = find(bytes, CALL_OPEN) {
            let said = trimmed(&bytes[..at]);
            self.say(said, true, out);
            let lead = at - said + CALL_OPEN.len();
            self.state = State::Header { lead };
            return true;
        }
        let certain = if last || !watches {
            bytes.len()
        } else {
            without_partial(bytes, CALL_OPEN)
        };
        self.say(certain, last, out)
    }

    fn say(&mut self, length: usize, last: bool, out: &mut Vec<EngineOutput>) -> bool {
        if length == 0 {
            return false;
        }
        let (text, logprobs) = self.tape.take(length, last);
        if text.is_empty() {
            return false;
        }
        if !self.open {
            self.start_item(ItemStart::Message, out);
        }
        out.push(EngineOutput::TextDelta { text, logprobs });
        true
    }

    fn header(&mut self, lead: usize, out: &mut Vec<EngineOutput>) -> bool {
        let bytes = &self.tape.bytes()[lead..];
        let begins = match header::read(bytes, self.syntax.arguments_key) {
            Header::Partial => return false,
            Header::Function { name, arguments } => self
                .declared(&name, |takes| takes == Takes::Arguments)
                .map(|(tool, _)| {
                    let state = State::Arguments {
                        depth: 0,
                        string: StringState::Outside,
                    };
                    (arguments, ItemStart::FunctionCall { tool }, state)
                })
                .ok_or(true),
            Header::Custom { name, input } => self
                .declared(&name, |takes| takes != Takes::Arguments)
                .map(|(tool, takes)| {
                    let to_the_end = takes == Takes::InputToTheEnd;
                    let start = ItemStart::CustomToolCall { tool };
                    (input, start, State::Input { to_the_end })
                })
                .ok_or(false),
            Header::Malformed => Err(false),
        };
        match begins {
            Ok((behind, start, state)) => {
                self.tape.skip(lead + behind);
                self.start_item(start, out);
                self.state = state;
            }
            Err(well_formed) if well_formed || self.syntax.llama => self.give_up_call(lead, out),
            Err(_) => self.state = State::Whole { lead },
        }
        true
    }

    fn whole(&mut self, lead: usize, out: &mut Vec<EngineOutput>) -> bool {
        let bytes = &self.tape.bytes()[lead..];
        let Some(length) = find(bytes, CALL_CLOSE) else {
            if bytes.len() < MAX_HELD {
                return false;
            }
            self.give_up_call(lead, out);
            return true;
        };
        let call = header::read_whole(&bytes[..length], self.syntax.arguments_key).and_then(
            |(name, text)| {
                let (tool, _) = self.declared(&name, |takes| takes == Takes::Arguments)?;
                Some((tool, text))
            },
        );
        if let Some((tool, text)) = call {
            self.tape.skip(lead + length + CALL_CLOSE.len());
            self.start_item(ItemStart::FunctionCall { tool }, out);
            out.push(EngineOutput::ArgumentsDelta { text });
            self.end_item(out);
            self.state = State::Gap(Gap::AfterCall);
        } else {
            self.give_up_call(lead, out);
        }
        true
    }

    /// The tool that the model calls by this word, if it takes what it is given.
    fn declared(&self, word: &str, fits: impl Fn(Takes) -> bool) -> Option<(ToolName, Takes)> {
        let mut tools = self.syntax.tools.iter();
        let tool = tools.find(|tool| *tool.word == *word && fits(tool.takes))?;
        Some((tool.name.clone(), tool.takes))
    }

    /// What looked like a call is text up to where the call seemed to begin.
    fn give_up_call(&mut self, lead: usize, out: &mut Vec<EngineOutput>) {
        self.state = State::Text;
        // At least one byte, or the same call would be found again.
        self.say(lead.max(1), false, out);
    }

    fn arguments(
        &mut self,
        mut depth: u32,
        mut string: StringState,
        out: &mut Vec<EngineOutput>,
    ) -> bool {
        let bytes = self.tape.bytes();
        let mut length = bytes.len();
        let mut closed = false;
        for (i, byte) in bytes.iter().enumerate() {
            match (string, byte) {
                (StringState::Escape, _) => string = StringState::Inside,
                (StringState::Inside, b'\\') => string = StringState::Escape,
                (StringState::Inside, b'"') => string = StringState::Outside,
                (StringState::Inside, _) => {}
                (StringState::Outside, b'"') => string = StringState::Inside,
                (StringState::Outside, b'{' | b'[') => depth += 1,
                (StringState::Outside, b'}' | b']') => depth -= 1,
                (StringState::Outside, _) => {}
            }
            if depth == 0 {
                length = i + 1;
                closed = true;
                break;
            }
        }
        self.state = if closed {
            State::Tail
        } else {
            State::Arguments { depth, string }
        };
        let (text, _) = self.tape.take(length, closed);
        if text.is_empty() {
            return false;
        }
        out.push(EngineOutput::ArgumentsDelta { text });
        true
    }

    fn tail(&mut self, out: &mut Vec<EngineOutput>) -> bool {
        let bytes = self.tape.bytes();
        let mut at = white_at_start(bytes);
        let brace = bytes.get(at) == Some(&b'}');
        at += usize::from(brace);
        let close = if self.syntax.llama {
            ""
        } else {
            at += white_at_start(&bytes[at..]);
            CALL_CLOSE
        };
        let rest = &bytes[at..];
        if rest.starts_with(close.as_bytes()) && (brace || !rest.is_empty()) {
            at += close.len();
        } else if close.as_bytes().starts_with(rest) && bytes.len() < MAX_HELD {
            // More of it may come; if nothing does, the model stopped behind the arguments.
            return false;
        }
        self.tape.skip(at);
        self.end_item(out);
        self.state = State::Gap(Gap::AfterCall);
        true
    }

    fn input(&mut self, to_the_end: bool, last: bool, out: &mut Vec<EngineOutput>) -> bool {
        let bytes = self.tape.bytes();
        let close = match to_the_end {
            true => None,
            false => find(bytes, CALL_CLOSE),
        };
        let length = match close {
            Some(at) => {
                let input = &bytes[..at];
                let before = self.syntax.before_close.as_bytes();
                input.strip_suffix(before).unwrap_or(input).len()
            }
            None if to_the_end || last => bytes.len(),
            None => without_partial(bytes, CALL_CLOSE),
        };
        let (text, _) = self.tape.take(length, last || close.is_some());
        let said = !text.is_empty();
        if said {
            out.push(EngineOutput::InputDelta { text });
        }
        let Some(at) = close else {
            return said;
        };
        self.tape.skip(at - length + CALL_CLOSE.len());
        self.end_item(out);
        self.state = State::Gap(Gap::AfterCall);
        true
    }

    fn start_item(&mut self, start: ItemStart, out: &mut Vec<EngineOutput>) {
        self.end_item(out);
        self.open = true;
        out.push(EngineOutput::ItemStarted(start));
    }

    fn end_item(&mut self, out: &mut Vec<EngineOutput>) {
        if std::mem::take(&mut self.open) {
            out.push(EngineOutput::ItemDone);
        }
    }
}

fn white_at_start(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| b.is_ascii_whitespace()).count()
}

/// Length without white space at the end.
fn trimmed(bytes: &[u8]) -> usize {
    bytes.trim_ascii_end().len()
}

fn find(bytes: &[u8], marker: &str) -> Option<usize> {
    bytes
        .windows(marker.len())
        .position(|window| window == marker.as_bytes())
}

/// Length without what may be the white space before a marker and the start of it.
fn without_partial(bytes: &[u8], marker: &str) -> usize {
    let marker = marker.as_bytes();
    let partial = (1..marker.len().min(bytes.len() + 1))
        .rev()
        .find(|&n| bytes.ends_with(&marker[..n]))
        .unwrap_or(0);
    let certain = trimmed(&bytes[..bytes.len() - partial]);
    if bytes.len() - certain > MAX_HELD {
        bytes.len() - partial
    } else {
        certain
    }
}
