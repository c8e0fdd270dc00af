//! Runs conversations: text files that show a session from the outside, line by line.
//!
//! ```text
//! == A title. The lines up to the next title are one conversation.
//! # A comment.
//! limits running_responses=1          before anything else: limits, `transport http`,
//!                                     `permit none` for a session that may not store, and
//!                                     `matching` for a session that matches histories
//! > {"type":"response.create",…}      the client sends this text
//! compact {"model":"m",…}             the body of a request for a compaction
//! count {"model":"m",…}               the body of a request to count tokens
//! < response.created response.id=$r   the session sends this event; a name in dollars that is
//!                                     new takes the value, a known one must equal it
//! < error !stream_id                  the event has no such member
//! ...                                 any events up to what is expected next
//! start t1 sees=["hi"]                the session starts an engine; the turn is called t1 now
//! engine t1: started; message; text "a"; done; finished
//! engine t1: says "a"                 the same in short; also: calls NAME "ARGUMENTS"
//! engine t1: text "a" times 9         one long piece
//! load t1 / loaded t1: found|none     the session asks the store, and is answered
//! load-items t1 ids=["$i"]            it asks for items; items t1: all|none answers
//! match t1 items=[3,2,1]              it looks for what it was given the first items of
//! matched t1: found|none              the longest of those that were kept, which it has to have
//! open t1 id=… lock=…                 it asks for a conversation; opened t1: found|none|locked
//!                                     (one is empty until something is saved in it)
//! save t1 / saved t1: ok|failed|moved
//! progress response.status=…          it has something stored without waiting for that
//! cancel $id                          the response is cancelled over HTTP
//! stop t1, wrap-up t1, ended t1 outcome=…, close code=1001
//! ~ 90s                               time passes; the session is woken when it asked for it
//! drain, oversized, reconnect         reconnect: a new connection to the same store
//! ```
//!
//! Everything that the session does must be expected, in this order; only `ended` may be left
//! out. What the session wants kept for its history is kept, over every `reconnect`. What must hold of every event whatever the conversation is in [`watch`].

mod engine;
mod expect;
pub(crate) mod watch;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use turnwire_protocol::action::{Action, TurnKey};
use turnwire_protocol::chain::Chain;
use turnwire_protocol::engine::{Purpose, TextFormat, TurnRequest};
use turnwire_protocol::event::Event;
use turnwire_protocol::history::{History, Prefix};
use turnwire_protocol::id::{ConversationId, IdSource, ResponseId};
use turnwire_protocol::item::Item;
use turnwire_protocol::limits::Limits;
use turnwire_protocol::record;
use turnwire_protocol::seal::Transparent;
use turnwire_protocol::session::{Now, OpenedConversation, SaveFailed, Session, Transport};
use turnwire_protocol::stored::{Permit, StoredResponse};
use turnwire_protocol::tool::ToolChoice;

use self::expect::Expected;
use self::watch::Watch;

/// When the first connection of every conversation opens.
const START: Now = Now {
    elapsed: Duration::from_secs(100),
    unix_seconds: 1_800_000_000,
};

/// Ids that count upwards.
#[derive(Debug, Default)]
pub(crate) struct Counter(u128);

impl IdSource for Counter {
    fn mint(&mut self) -> u128 {
        self.0 += 1;
        self.0
    }
}

/// One conversation of a fixture file.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) file: String,
    pub(crate) title: String,
    /// Lines with their numbers in the file.
    lines: Vec<(usize, String)>,
}

/// All conversations, in the order of their files.
pub(crate) fn conversations() -> Vec<Conversation> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conversations");
    let mut files: Vec<_> = fs::read_dir(&folder)
        .expect("the folder of conversations is part of the crate")
        .map(|entry| entry.expect("its entries can be listed").path())
        .collect();
    files.sort();
    let mut all = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).expect("a conversation is a text file");
        let file = path.file_name().expect("a listed file has a name");
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if let Some(title) = line.strip_prefix("== ") {
                all.push(Conversation {
                    file: file.to_string_lossy().into_owned(),
                    title: title.to_owned(),
                    lines: Vec::new(),
                });
            } else if !line.is_empty() && !line.starts_with('#') {
                let current = all.last_mut().expect("a file starts with a title");
                current.lines.push((index + 1, line.to_owned()));
            }
        }
    }
    all
}

impl Conversation {
    /// Plays it. Returns every event that was sent, or what went wrong and where.
    pub(crate) fn play(&self) -> Result<Vec<Event>, String> {
        let mut stage = Stage::default();
        let at = |line: &usize, problem: String| {
            format!("{}:{line}: {}\n    {problem}", self.file, self.title)
        };
        for (number, line) in &self.lines {
            stage.play(line).map_err(|problem| at(number, problem))?;
        }
        let last = self.lines.last().map_or(0, |(number, _)| *number);
        stage.nothing_left().map_err(|problem| at(&last, problem))?;
        Ok(stage.events)
    }
}

/// Whether what a store reads back is what it was given, for every link.
fn read_back(chain: &Chain) -> Result<(), String> {
    for link in chain.ancestry() {
        let record = record::encode(link);
        let read = record::decode(
            link.parent().cloned(),
            link.id().clone(),
            record,
            &Transparent,
        );
        let read = read.map_err(|damaged| damaged.to_string())?;
        let told = |link: &Chain| {
            let items = |items: &[Item]| -> Vec<_> {
                let told = |item: &Item| {
                    let (text, call) = (item.raw().clone(), item.call_id().cloned());
                    (text, call, item.revealed().map(str::to_owned))
                };
                items.iter().map(told).collect()
            };
            format!(
                "{:?} {:?} {:?} {:?} {} turns",
                items(link.asked()),
                items(link.input()),
                items(link.output()),
                link.carried(),
                link.turns()
            )
        };
        if told(link) != told(&read) {
            return Err(format!("read back {}, not {}", told(&read), told(link)));
        }
    }
    Ok(())
}

/// A session on stage, with a clock, a store and the names that the conversation gave.
#[derive(Debug)]
struct Stage {
    session: Option<Session>,
    transport: Transport,
    permit: Option<Permit>,
    matching: bool,
    limits: Limits,
    now: Now,
    ids: Counter,
    actions: VecDeque<Action>,
    names: BTreeMap<String, String>,
    turns: BTreeMap<String, TurnKey>,
    /// What waits to be stored, and what is.
    saving: BTreeMap<TurnKey, StoredResponse>,
    asked: BTreeMap<TurnKey, String>,
    asked_items: BTreeMap<TurnKey, Vec<Arc<str>>>,
    stored: BTreeMap<String, Chain>,
    opening: BTreeMap<TurnKey, ConversationId>,
    /// What the conversations end with that something was saved in.
    conversations: BTreeMap<ConversationId, Chain>,
    looking: BTreeMap<TurnKey, Vec<Prefix>>,
    kept: HashMap<History, Chain>,
    watch: Watch,
    events: Vec<Event>,
    skipping: bool,
}

impl Default for Stage {
    fn default() -> Self {
        Self {
            session: None,
            transport: Transport::WebSocket,
            permit: Some(Permit::grant()),
            matching: false,
            limits: Limits::default(),
            now: START,
            ids: Counter::default(),
            actions: VecDeque::new(),
            names: BTreeMap::new(),
            turns: BTreeMap::new(),
            saving: BTreeMap::new(),
            asked: BTreeMap::new(),
            asked_items: BTreeMap::new(),
            stored: BTreeMap::new(),
            opening: BTreeMap::new(),
            conversations: BTreeMap::new(),
            looking: BTreeMap::new(),
            kept: HashMap::new(),
            watch: Watch::default(),
            events: Vec::new(),
            skipping: false,
        }
    }
}

impl Stage {
    fn play(&mut self, line: &str) -> Result<(), String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "limits" => self.set_limits(rest),
            "transport" => {
                self.transport = Transport::Http;
                Ok(())
            }
            "permit" => {
                self.permit = None;
                Ok(())
            }
            "matching" => {
                self.matching = true;
                Ok(())
            }
            "..." => {
                self.skipping = true;
                Ok(())
            }
            "<" => self.expect_event(rest),
            "progress" | "start" | "load" | "open" | "load-items" | "match" | "save" | "stop"
            | "wrap-up" | "ended" | "close" => self.expect_action(word, rest),
            _ => {
                self.nothing_left()?;
                self.act(word, rest)
            }
        }
    }

    /// Something happens to the session.
    fn act(&mut self, word: &str, rest: &str) -> Result<(), String> {
        let (turn, argument) = rest.split_once(": ").unwrap_or((rest, ""));
        match word {
            ">" => {
                let message = Bytes::from(self.substitute(rest));
                self.drive(|session, now, ids| session.handle_message(now, ids, message));
            }
            "compact" => {
                let message = Bytes::from(self.substitute(rest));
                self.drive(|session, now, ids| session.handle_compact(now, ids, message));
            }
            "count" => {
                let message = Bytes::from(self.substitute(rest));
                self.drive(|session, now, ids| session.handle_count(now, ids, message));
            }
            "engine" => {
                let key = self.turn(turn)?;
                for output in engine::parse(argument)? {
                    let output = &output;
                    self.drive(|session, now, ids| {
                        session.handle_output(now, ids, key, output.clone());
                    });
                }
            }
            "loaded" => {
                let key = self.turn(turn)?;
                let id = self
                    .asked
                    .get(&key)
                    .ok_or("nothing was asked of the store")?;
                let chain = self.stored.get(id).cloned();
                let chain = match argument {
                    "found" => Some(chain.ok_or("that response is not stored")?),
                    _ => None,
                };
                self.drive(|session, now, ids| session.handle_loaded(now, ids, key, Ok(chain)));
            }
            "opened" => {
                let key = self.turn(turn)?;
                let id = self.opening.remove(&key);
                let id = id.ok_or("no conversation was asked for")?;
                let opened = match argument {
                    "found" => OpenedConversation::Open(self.conversations.get(&id).cloned()),
                    "none" => OpenedConversation::NotFound,
                    _ => OpenedConversation::Locked,
                };
                self.drive(|session, now, ids| {
                    session.handle_conversation(now, ids, key, Ok(opened));
                });
            }
            "items" => {
                let key = self.turn(turn)?;
                let asked = self.asked_items.remove(&key);
                let asked = asked.ok_or("no items were asked of the store")?;
                let find = |id: &Arc<str>| {
                    let chains = self.stored.values().flat_map(Chain::ancestry);
                    let mut items =
                        chains.flat_map(|link| link.input().iter().chain(link.output().iter()));
                    items.find(|item| item.id() == Some(id)).cloned()
                };
                let items: Vec<Option<Item>> = match argument {
                    "all" => asked.iter().map(find).collect(),
                    _ => vec![None; asked.len()],
                };
                self.drive(|session, now, ids| {
                    session.handle_items(now, ids, key, Ok(items));
                });
            }
            "matched" => {
                let key = self.turn(turn)?;
                let prefixes = self.looking.remove(&key).ok_or("nothing was looked for")?;
                let mut found = prefixes.into_iter().filter_map(|prefix| {
                    let chain = self.kept.get(&prefix.history)?;
                    Some((prefix.items, chain.clone()))
                });
                let found = match argument {
                    "found" => Some(found.next().ok_or("nothing of that was kept")?),
                    _ => None,
                };
                self.drive(|session, now, ids| session.handle_matched(now, ids, key, found));
            }
            "saved" => {
                let key = self.turn(turn)?;
                let record = self.saving.remove(&key);
                let record = record.ok_or("nothing was to be saved")?;
                let saved = match argument {
                    "ok" => Ok(()),
                    "moved" => Err(SaveFailed::ConversationMoved),
                    _ => Err(SaveFailed::Unavailable),
                };
                if saved.is_ok() && record.status.is_continuable() {
                    if let Some(step) = record.conversation {
                        self.conversations.insert(step.id, record.chain.clone());
                    }
                    self.stored.insert(record.id.to_string(), record.chain);
                }
                self.drive(|session, now, ids| session.handle_saved(now, ids, key, saved));
            }
            "cancel" => {
                let id = ResponseId::from(&*self.substitute(rest));
                self.drive(|session, now, ids| session.handle_cancel(now, ids, &id));
            }
            "~" => self.pass(rest)?,
            "drain" => self.drive(|session, now, _| session.handle_drain(now)),
            "oversized" => self.drive(|session, now, _| session.handle_oversized(now)),
            "reconnect" => {
                self.session = None;
                self.watch = Watch::default();
            }
            other => return Err(format!("there is no '{other}' in a conversation")),
        }
        Ok(())
    }

    fn drive(&mut self, feed: impl FnOnce(&mut Session, Now, &mut Counter)) {
        let session = self.session.get_or_insert_with(|| {
            let sealer = Arc::new(Transparent);
            let limits = self.limits.clone();
            let mut session = Session::new(self.transport, limits, sealer, self.permit, self.now);
            if self.matching {
                session.match_histories();
            }
            session
        });
        feed(session, self.now, &mut self.ids);
        while let Some(action) = session.poll_action() {
            match action {
                Action::Keep { history, chain } => drop(self.kept.insert(history, chain)),
                action => self.actions.push_back(action),
            }
        }
    }

    fn pass(&mut self, time: &str) -> Result<(), String> {
        let seconds = time
            .strip_suffix('s')
            .and_then(|digits| digits.parse().ok());
        let seconds: u64 = seconds.ok_or("a time looks like 90s")?;
        self.now.elapsed += Duration::from_secs(seconds);
        self.now.unix_seconds += seconds;
        let now = self.now;
        self.drive(|session, _, _| {
            if session
                .deadline()
                .is_some_and(|deadline| deadline <= now.elapsed)
            {
                session.handle_timeout(now);
            }
        });
        Ok(())
    }

    fn set_limits(&mut self, text: &str) -> Result<(), String> {
        for pair in text.split_whitespace() {
            let (name, value) = pair
                .split_once('=')
                .ok_or("a limit looks like name=value")?;
            let number: u64 = value.parse().map_err(|_| "a limit is a number")?;
            let size = number as usize;
            match name {
                "connection_age" => self.limits.connection_age = Some(Duration::from_secs(number)),
                "age_grace" => self.limits.age_grace = Duration::from_secs(number),
                "running_responses" => self.limits.running_responses = size,
                "lane_names" => self.limits.lane_names = size,
                "pending_steers" => self.limits.pending_steers = size,
                "queued_creates" => self.limits.queued_creates = size,
                "queued_bytes" => self.limits.queued_bytes = size,
                "message_bytes" => self.limits.message_bytes = size,
                "chain_bytes" => self.limits.chain_bytes = number,
                "keep_alive" => {
                    self.limits.keep_alive = (number > 0).then_some(Duration::from_secs(number));
                }
                "tools" => self.limits.tools = size,
                "strict" => self.limits.strict = number == 1,
                other => return Err(format!("there is no limit called {other}")),
            }
        }
        Ok(())
    }

    fn expect_event(&mut self, line: &str) -> Result<(), String> {
        let line = self.substitute(line);
        let (name, fields) = line.split_once(' ').unwrap_or((&line, ""));
        let expected = Expected::parse(fields)?;
        loop {
            let json = self
                .take_event()
                .map_err(|found| format!("expected {name}, got {found}"))?;
            if json["type"] == name {
                self.skipping = false;
                return expected.check(&json, &mut self.names);
            }
            if !self.skipping {
                return Err(format!("expected {name}, got {json}"));
            }
        }
    }

    /// The next event, if that is what the session did next.
    fn take_event(&mut self) -> Result<Value, String> {
        match self.next_action() {
            Some(Action::Send(event)) => {
                let json = self.watch.check(&event, self.transport)?;
                self.events.push(event);
                Ok(json)
            }
            other => Err(format!("{other:?}")),
        }
    }

    fn expect_action(&mut self, word: &str, line: &str) -> Result<(), String> {
        let line = self.substitute(line);
        let (turn, fields) = match word {
            "close" | "progress" => ("", &*line),
            _ => line.split_once(' ').unwrap_or((&line, "")),
        };
        while self.skipping && matches!(self.actions.front(), Some(Action::Send(_))) {
            self.take_event()?;
        }
        self.skipping = false;
        let action = match word {
            "ended" => self.actions.pop_front(),
            _ => self.next_action(),
        };
        let action = action.ok_or_else(|| format!("expected {word}, but nothing came"))?;
        let (found, key, seen) = self.describe(action)?;
        if found != word {
            return Err(format!("expected {word}, got {found} {seen}"));
        }
        if let Some(key) = key
            && *self.turns.entry(turn.to_owned()).or_insert(key) != key
        {
            return Err(format!("{word} is for another turn than {turn}"));
        }
        Expected::parse(fields)?.check(&seen, &mut self.names)
    }

    /// What an action is called in a conversation, the turn it is for, and what it says.
    fn describe(
        &mut self,
        action: Action,
    ) -> Result<(&'static str, Option<TurnKey>, Value), String> {
        Ok(match action {
            Action::Load { turn, id } => {
                self.asked.insert(turn, id.to_string());
                ("load", Some(turn), json!({"id": id.as_str()}))
            }
            Action::LoadConversation { turn, id, lock } => {
                let seen = json!({"id": id.as_str(), "lock": lock});
                self.opening.insert(turn, id);
                ("open", Some(turn), seen)
            }
            Action::LoadItems { turn, ids } => {
                let seen = json!({"ids": ids.iter().map(|id| &**id).collect::<Vec<&str>>()});
                self.asked_items.insert(turn, ids);
                ("load-items", Some(turn), seen)
            }
            Action::Match { turn, prefixes } => {
                let items: Vec<usize> = prefixes.iter().map(|prefix| prefix.items).collect();
                self.looking.insert(turn, prefixes);
                ("match", Some(turn), json!({"items": items}))
            }
            Action::Keep { .. } => return Err("a chain to keep is no line".to_owned()),
            Action::Start { turn, request, .. } => {
                ("start", Some(turn), describe_request(&request))
            }
            Action::WrapUp { turn } => ("wrap-up", Some(turn), Value::Null),
            Action::Stop { turn } => ("stop", Some(turn), Value::Null),
            Action::Save { turn, record } => {
                read_back(&record.chain)?;
                let response: Value = parse(&record.text.with_output_of(&record.chain))?;
                let seen = json!({
                    "id": record.id.as_str(),
                    "response": response,
                    "turns": record.chain.turns(),
                    "conversation": record.conversation.as_ref().map(|step| {
                        let from = step.from.as_ref().map(ResponseId::as_str);
                        json!({"id": step.id.as_str(), "from": from})
                    }),
                    "input": record.chain.asked().iter().map(gist).collect::<Vec<_>>(),
                });
                demand_status(&record, &seen)?;
                self.saving.insert(turn, record);
                ("save", Some(turn), seen)
            }
            Action::SaveProgress { record } => {
                read_back(&record.chain)?;
                let response: Value = parse(&record.text.with_output_of(&record.chain))?;
                let seen = json!({"id": record.id.as_str(), "response": response});
                demand_status(&record, &seen)?;
                ("progress", None, seen)
            }
            Action::Send(event) => ("an event", None, parse(&event.json)?),
            Action::Ended { turn, summary } => {
                let seen = json!({
                    "id": summary.id.as_str(),
                    "model": summary.model,
                    "tools_not_offered": summary.tools_not_offered.to_string(),
                    "outcome": summary.outcome,
                    "turns": summary.turns,
                    "stored": summary.stored,
                    "automatic": summary.automatic,
                    "input_tokens": summary.usage.input_tokens,
                });
                ("ended", Some(turn), seen)
            }
            Action::Close { code, reason } => {
                ("close", None, json!({"code": code, "reason": reason}))
            }
        })
    }

    /// The next action, not counting those that a conversation may leave out.
    fn next_action(&mut self) -> Option<Action> {
        while let Some(Action::Ended { .. }) = self.actions.front() {
            self.actions.pop_front();
        }
        self.actions.pop_front()
    }

    fn nothing_left(&mut self) -> Result<(), String> {
        if self.skipping {
            return Err("nothing is expected after the dots".to_owned());
        }
        match self.next_action() {
            None => Ok(()),
            Some(action) => {
                let (found, _, seen) = self.describe(action)?;
                Err(format!("not expected: {found} {seen}"))
            }
        }
    }

    fn turn(&self, name: &str) -> Result<TurnKey, String> {
        let key = self.turns.get(name).copied();
        key.ok_or_else(|| format!("there is no turn {name}"))
    }

    /// Puts in what names stand for. A name that has no value yet stays.
    fn substitute(&self, text: &str) -> String {
        let mut pieces = text.split('$');
        let mut out = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let end = piece
                .find(|c: char| !c.is_ascii_alphanumeric())
                .unwrap_or(piece.len());
            let (name, rest) = piece.split_at(end);
            match self.names.get(name) {
                Some(value) => out.push_str(value),
                None => out.extend(["$", name]),
            }
            out.push_str(rest);
        }
        out
    }
}

fn parse(json: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(json).map_err(|error| format!("not JSON: {error}"))
}

/// Whether a record and its text are at one.
fn demand_status(record: &StoredResponse, seen: &Value) -> Result<(), String> {
    let told = seen["response"]["status"].as_str();
    match told == Some(record.status.as_str()) {
        true => Ok(()),
        false => Err(format!("saved as {:?}: {seen}", record.status)),
    }
}

fn describe_request(request: &TurnRequest) -> Value {
    let mut history: Vec<&Chain> = request.parent.iter().flat_map(Chain::ancestry).collect();
    history.reverse();
    let inherited = history
        .into_iter()
        .flat_map(|link| link.input().iter().chain(link.output().iter()));
    let sees: Vec<String> = inherited.chain(request.input.iter()).map(gist).collect();
    let offered = request.offered();
    let offered: Vec<String> = offered
        .map(|tool| tool.name.qualified().to_string())
        .collect();
    json!({
        "id": request.id.as_str(),
        "parent": request.parent.as_ref().map(|chain| chain.id().as_str()),
        "new": request.input.len(),
        "sees": sees,
        "model": &*request.model,
        "instructions": request.instructions.as_deref(),
        "tools": String::from_utf8_lossy(&request.tools.raw),
        "offered": offered,
        "tool_choice": match &request.tool_choice {
            ToolChoice::Auto => json!("auto"),
            ToolChoice::None => json!("none"),
            ToolChoice::Required => json!("required"),
            ToolChoice::Tool(name) => json!({"tool": &*name.qualified()}),
            ToolChoice::Allowed { names, required } => {
                let names = names.iter().map(|name| name.qualified().to_string());
                let names: Vec<String> = names.collect();
                json!({"allowed": names, "required": required})
            }
        },
        "parallel_tool_calls": request.parallel_tool_calls,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "max_output_tokens": request.max_output_tokens,
        "top_logprobs": request.top_logprobs,
        "logprobs": request.logprobs,
        "format": match &request.format {
            TextFormat::Text => json!("text"),
            TextFormat::JsonObject => json!("json_object"),
            TextFormat::JsonSchema { schema } => json!({"schema": String::from_utf8_lossy(schema)}),
        },
        "reasoning_effort": request.reasoning_effort.as_deref(),
        "generate": request.generate,
        "compact_threshold": request.compact_threshold,
        "purpose": match request.purpose {
            Purpose::Answer => "answer",
            Purpose::Summary => "summary",
            Purpose::Count => "count",
        },
    })
}

/// An item in a few characters.
fn gist(item: &Item) -> String {
    let json: Value = serde_json::from_slice(item.raw()).expect("items are JSON");
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts = parts.iter().map(|part| {
                let text = part.get("text").or(part.get("refusal"));
                text.and_then(Value::as_str).unwrap_or_default()
            });
            texts.collect()
        }
        _ => String::new(),
    };
    match json["type"].as_str().unwrap_or("message") {
        "message" => text(&json["content"]),
        "function_call" => format!("{}({})", text(&json["name"]), text(&json["arguments"])),
        "custom_tool_call" => format!("{}[{}]", text(&json["name"]), text(&json["input"])),
        "function_call_output" | "custom_tool_call_output" => {
            format!("={}", text(&json["output"]))
        }
        "reasoning" | "compaction" => match item.revealed() {
            Some(revealed) => format!("({revealed})"),
            None => format!("({})", text(&json["content"])),
        },
        other => other.to_owned(),
    }
}
