//! Plays whatever some bytes say against a session, and checks what must hold in any case.
//!
//! Any bytes are an input, of which missing ones are zero: creates on a few lanes, steers, cancels,
//! garbage, output of engines that may be nonsense, answers of the store, time, a drain. The
//! property tests and the fuzz target share this.

mod conversations;
mod items;
mod records;
mod steers;
#[path = "../runner/watch.rs"]
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::Value;
use turnwire_protocol::action::{Action, TurnKey};
use turnwire_protocol::chain::{Chain, EngineState};
use turnwire_protocol::engine::{
    EngineFailure, EngineFailureKind, EngineOutput, FinishReason, ItemStart, Usage,
};
use turnwire_protocol::history::{History, Prefix};
use turnwire_protocol::id::{ConversationId, IdSource, ResponseId};
use turnwire_protocol::lane::LaneName;
use turnwire_protocol::limits::Limits;
use turnwire_protocol::seal::Transparent;
use turnwire_protocol::session::{Now, OpenedConversation, SaveFailed, Session, Transport};
use turnwire_protocol::stored::{Permit, StoredResponse};

use self::conversations::Conversations;
use self::records::Records;
use self::steers::Ledger;
use self::watch::Watch;

const RUNNING: usize = 4;
const PENDING_STEERS: usize = 3;
/// Shorter than what passes at a time, and longer.
const KEEP_ALIVE: Duration = Duration::from_secs(7);

/// Plays inputs to their end, then lets everything come to an end. Panics if anything is wrong.
///
/// A connection that closes is followed by another, of the other kind. The last one is hung up on
/// in the middle of whatever it does, one time out of two.
pub(crate) fn play<'a>(inputs: impl IntoIterator<Item = &'a [u8]>) {
    let mut inputs = inputs.into_iter().peekable();
    let mut play = Play::new(match inputs.peek() {
        Some([_, 192..=255, ..]) => Transport::Http,
        _ => Transport::WebSocket,
    });
    let mut in_order = true;
    for input in inputs {
        let mut script = Script(input);
        let what = script.next().unwrap_or(0);
        play.act(what, &mut script);
        if play.closed {
            let next = match play.transport {
                Transport::WebSocket => Transport::Http,
                Transport::Http => Transport::WebSocket,
            };
            play.wind_up();
            play = Play::new(next);
        }
        in_order = !in_order;
    }
    if in_order {
        play.wind_up();
    } else {
        play.hang_up();
    }
}

/// Gives sessions of both kinds one message, whatever it is. Each answers it at most once, and
/// carries on.
pub(crate) fn hear(message: &[u8]) {
    for (transport, strict) in [
        (Transport::WebSocket, false),
        (Transport::WebSocket, true),
        (Transport::Http, false),
    ] {
        let limits = Limits {
            strict,
            ..Limits::default()
        };
        let now = Now {
            elapsed: Duration::ZERO,
            unix_seconds: 1_800_000_000,
        };
        let mut ids = Counter::default();
        let mut session = Session::new(
            transport,
            limits,
            Arc::new(Transparent),
            Some(Permit::grant()),
            now,
        );
        if transport == Transport::Http {
            session.match_histories();
        }
        session.handle_message(now, &mut ids, message.to_vec().into());
        let mut answers = 0;
        while let Some(action) = session.poll_action() {
            match action {
                Action::Send(event) => {
                    let mut watch = Watch::default();
                    assert!(watch.check(&event, transport).is_ok(), "{event:?}");
                    answers += 1;
                }
                Action::Load { .. }
                | Action::LoadConversation { .. }
                | Action::LoadItems { .. }
                | Action::Match { .. }
                | Action::Save { .. }
                | Action::Start { .. } => answers += 1,
                Action::Ended { .. } => {}
                other => panic!("not an answer: {other:?}"),
            }
        }
        assert!(answers <= 1, "{answers} answers");
    }
}

/// The bytes of an input that are not read yet.
struct Script<'a>(&'a [u8]);

impl Iterator for Script<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }
}

impl Script<'_> {
    /// One of `choices`, by the next byte.
    fn pick<'c, T>(&mut self, choices: &'c [T]) -> Option<&'c T> {
        let byte = usize::from(self.next().unwrap_or(0));
        choices.get(byte % choices.len().max(1))
    }
}

#[derive(Default)]
struct Counter(u128);

impl IdSource for Counter {
    fn mint(&mut self) -> u128 {
        self.0 += 1;
        self.0
    }
}

/// How far an engine has come with a turn.
#[derive(Clone, Copy, Default)]
enum Making {
    #[default]
    Asked,
    AskedToWarmUp,
    /// To tell first whether the prompt is too long.
    AskedToWatch,
    Watching,
    WarmingUp,
    BetweenItems,
    InMessage,
    InReasoning,
    InCall,
    InCustomCall,
    /// It has finished. A turn that compacts asks for more.
    Over,
}

struct Play {
    transport: Transport,
    session: Session,
    now: Now,
    ids: Counter,
    watch: Watch,
    /// The lane of the event that was sent last, if it ended something.
    ended_on: Option<Option<String>>,
    /// The last create that ended on each lane.
    last_ended: BTreeMap<Option<String>, TurnKey>,
    ended: BTreeSet<TurnKey>,
    loading: BTreeMap<TurnKey, String>,
    /// The conversation that each turn has asked for.
    opening: BTreeMap<TurnKey, ConversationId>,
    conversations: Conversations,
    /// How many items each turn has asked for.
    referring: BTreeMap<TurnKey, usize>,
    /// What was looked for, and what is there to be found.
    looking: BTreeMap<TurnKey, Vec<Prefix>>,
    kept: HashMap<History, Chain>,
    /// Turns that continue what was found, and may have to do without it.
    matched: BTreeSet<TurnKey>,
    making: BTreeMap<TurnKey, Making>,
    /// The lane of each turn that was started.
    lanes: BTreeMap<TurnKey, Option<String>>,
    /// The response that runs on each lane.
    speaking: BTreeMap<Option<String>, String>,
    /// When it sent its last event.
    heard: BTreeMap<Option<String>, Duration>,
    /// The last event of it that told how far it is.
    progress: BTreeMap<Option<String>, String>,
    saving: BTreeMap<TurnKey, StoredResponse>,
    /// What can be continued.
    stored: BTreeMap<String, Chain>,
    records: Records,
    /// Ids of items that were seen.
    items: Vec<String>,
    /// All responses that were seen, with outputs for the calls in them.
    responses: Vec<(String, Vec<String>)>,
    /// The settings of each response, as its `response.created` shows them.
    settings: BTreeMap<String, Value>,
    /// Creates that were sent, each with its number in `metadata`.
    creates: u64,
    /// The numbers that were seen in a `response.created`.
    numbers: BTreeSet<String>,
    steers: Ledger,
    /// Turns whose input is nothing but steers.
    steered: BTreeSet<TurnKey>,
    /// Responses that no create of their own was sent for.
    successors: BTreeSet<String>,
    wrapping_up: BTreeSet<TurnKey>,
    states: Vec<Weak<()>>,
    /// Nothing but the end is to come.
    closed: bool,
}

impl Play {
    fn new(transport: Transport) -> Self {
        let limits = Limits {
            connection_age: Some(Duration::from_secs(120)),
            age_grace: Duration::from_secs(10),
            keep_alive: Some(KEEP_ALIVE),
            running_responses: RUNNING,
            lane_names: 5,
            pending_steers: PENDING_STEERS,
            queued_creates: 6,
            queued_bytes: 4000,
            message_bytes: 1000,
            ..Limits::default()
        };
        let now = Now {
            elapsed: Duration::ZERO,
            unix_seconds: 1_800_000_000,
        };
        Self {
            transport,
            session: Session::new(
                transport,
                limits,
                Arc::new(Transparent),
                Some(Permit::grant()),
                now,
            ),
            now,
            ids: Counter::default(),
            watch: Watch::default(),
            ended_on: None,
            last_ended: BTreeMap::new(),
            ended: BTreeSet::new(),
            loading: BTreeMap::new(),
            opening: BTreeMap::new(),
            conversations: Conversations::default(),
            referring: BTreeMap::new(),
            looking: BTreeMap::new(),
            kept: HashMap::new(),
            matched: BTreeSet::new(),
            making: BTreeMap::new(),
            lanes: BTreeMap::new(),
            speaking: BTreeMap::new(),
            heard: BTreeMap::new(),
            progress: BTreeMap::new(),
            saving: BTreeMap::new(),
            stored: BTreeMap::new(),
            records: Records::default(),
            items: Vec::new(),
            responses: Vec::new(),
            settings: BTreeMap::new(),
            creates: 0,
            numbers: BTreeSet::new(),
            steers: Ledger::default(),
            steered: BTreeSet::new(),
            successors: BTreeSet::new(),
            wrapping_up: BTreeSet::new(),
            states: Vec::new(),
            closed: false,
        }
    }

    fn act(&mut self, what: u8, script: &mut Script<'_>) {
        match what % 16 {
            0..=3 => {
                let message = self.create(script);
                self.say(message);
            }
            4..=9 => {
                let making: Vec<TurnKey> = self.making.keys().copied().collect();
                // Now and then output comes for a turn that has ended, or never was.
                let stray = TurnKey(u64::from(what / 16));
                let turn = match script.pick(&making) {
                    Some(&turn) if what < 240 => turn,
                    _ => stray,
                };
                let output = self.output(turn, script);
                self.session
                    .handle_output(self.now, &mut self.ids, turn, output);
            }
            10 if what % 32 == 10 && !self.looking.is_empty() => {
                let looking: Vec<TurnKey> = self.looking.keys().copied().collect();
                let turn = script.pick(&looking).copied().unwrap_or(TurnKey(7));
                self.answer_match(turn, what > 60);
            }
            10 if what > 127 || !self.referring.is_empty() => {
                let referring: Vec<TurnKey> = self.referring.keys().copied().collect();
                let turn = script.pick(&referring).copied().unwrap_or(TurnKey(7));
                let asked = self.referring.remove(&turn).unwrap_or(1);
                let item = self.stored.values().next().and_then(|chain| {
                    let mut items = chain.input().iter().chain(chain.output().iter());
                    items.next().cloned()
                });
                let found = item.filter(|_| what > 60);
                let items = vec![found; asked];
                self.session
                    .handle_items(self.now, &mut self.ids, turn, Ok(items));
            }
            10 if !self.opening.is_empty() => {
                let opening: Vec<TurnKey> = self.opening.keys().copied().collect();
                let turn = script.pick(&opening).copied().unwrap_or(TurnKey(7));
                self.answer_open(turn, script.next() != Some(7));
            }
            10 => {
                let loading: Vec<TurnKey> = self.loading.keys().copied().collect();
                let turn = script.pick(&loading).copied().unwrap_or(TurnKey(7));
                let chain = self.loading.remove(&turn);
                let chain = chain.and_then(|id| self.stored.get(&id).cloned());
                self.session
                    .handle_loaded(self.now, &mut self.ids, turn, Ok(chain));
            }
            11 => {
                let saving: Vec<TurnKey> = self.saving.keys().copied().collect();
                let turn = script.pick(&saving).copied().unwrap_or(TurnKey(7));
                let saved = match script.next() {
                    Some(200..) => Err(SaveFailed::Unavailable),
                    _ => Ok(()),
                };
                self.answer_save(turn, saved);
            }
            12 if self.transport == Transport::Http => {
                let saving = self.saving.values().map(|record| record.id.clone());
                let told = self.responses.iter().map(|(id, _)| ResponseId::from(&**id));
                let ids: Vec<ResponseId> = saving.chain(told).collect();
                if let Some(id) = script.pick(&ids) {
                    self.session.handle_cancel(self.now, &mut self.ids, id);
                }
            }
            12 => {
                let id = script.pick(&self.responses).map_or("", |(id, _)| id);
                let message = match script.next().unwrap_or(0) % 5 {
                    0 => format!(r#"{{"type":"response.cancel","response_id":"{id}"}}"#),
                    1 => r#"{"type":"response.cancel"}"#.to_owned(),
                    2 => r#"{"type":"response.cancel","stream_id":"a"}"#.to_owned(),
                    3 => r#"{"type":"response.inject","response_id":"x","input":[]}"#.to_owned(),
                    _ => r#"{"type":"response.processed"}"#.to_owned(),
                };
                self.say(message);
            }
            13 => {
                let length = usize::from(script.next().unwrap_or(0)).min(script.0.len());
                let (garbage, rest) = script.0.split_at(length);
                script.0 = rest;
                self.say(garbage.to_vec());
            }
            14 => {
                self.now.elapsed += Duration::from_secs(u64::from(what / 16));
                let deadline = self.session.deadline();
                if deadline.is_some_and(|deadline| deadline <= self.now.elapsed) {
                    self.session.handle_timeout(self.now);
                }
                self.carry_out();
                self.assert_no_silence();
            }
            _ if what == 255 => {
                self.session.handle_drain(self.now);
                // Of an HTTP request nothing is closed.
                self.carry_out();
                self.closed |= self.transport == Transport::Http;
            }
            _ if what == 223 => self.session.match_histories(),
            _ if what == 239 => self.session.handle_oversized(self.now),
            _ if self.transport == Transport::Http => {
                let message = self.create(script);
                self.say(message);
            }
            _ => {
                let message = self.steer(script);
                self.say(message);
            }
        }
        self.carry_out();
    }

    fn say(&mut self, message: impl Into<Vec<u8>>) {
        let message = message.into();
        self.session
            .handle_message(self.now, &mut self.ids, message.into());
    }

    /// A create that is mostly right.
    fn create(&mut self, script: &mut Script<'_>) -> String {
        let byte = script.next().unwrap_or(0);
        let lane = match byte % 16 {
            0..=14 if self.transport == Transport::Http => "",
            0..=4 => "",
            5..=8 => r#","stream_id":"a""#,
            9..=12 => r#","stream_id":"b""#,
            13 => match byte / 16 % 4 {
                0 => r#","stream_id":"c""#,
                1 => r#","stream_id":"d""#,
                2 => r#","stream_id":"e""#,
                _ => r#","stream_id":"f""#,
            },
            14 => r#","stream_id":"c""#,
            _ => r#","stream_id":"""#,
        };
        let none = (String::new(), Vec::new());
        let (parent, calls) = match script.next().unwrap_or(0) {
            0..=99 => none,
            100..=109 => ("resp_x".to_owned(), Vec::new()),
            back => self
                .responses
                .iter()
                .rev()
                .nth(usize::from(back % 4))
                .cloned()
                .unwrap_or(none),
        };
        let mut items = calls;
        let known = script.pick(&self.items);
        items.extend(items::odd(script.next().unwrap_or(255), known));
        match script.next().unwrap_or(0) {
            0..=150 => items.push(r#"{"role":"user","content":"x"}"#.to_owned()),
            151..=240 => {}
            241..=244 => drop(items.pop()),
            245..=248 => items.push(r#"{"type":"compaction_trigger"}"#.to_owned()),
            _ => items
                .push(r#"{"type":"function_call_output","call_id":"c","output":""}"#.to_owned()),
        }
        let setting = script.next().unwrap_or(0);
        let conversation = setting;
        let setting = match setting % 16 {
            0..=6 => r#","store":false"#,
            7..=13 if self.transport == Transport::Http => match script.next().unwrap_or(0) {
                0..=180 => r#","background":true"#,
                181..=220 => {
                    r#","background":true,"context_management":[{"compact_threshold":1000}]"#
                }
                _ => r#","background":true,"store":false"#,
            },
            7..=9 => "",
            10 | 11 => r#","context_management":[{"compact_threshold":1000}]"#,
            12 | 13 => r#","store":false,"generate":false"#,
            14 => r#","store":false,"tools":[{"type":"function","name":"f","async":true}]"#,
            _ => r#","temperature":9"#,
        };
        let parent = match (&*parent, conversation) {
            (_, 230..) => r#","conversation":"conv_a""#.to_owned(),
            (_, 220..) => r#","conversation":{"id":"conv_b"}"#.to_owned(),
            ("", _) => String::new(),
            (parent, _) => format!(r#","previous_response_id":"{parent}""#),
        };
        let items = items.join(",");
        self.creates += 1;
        let number = self.creates;
        format!(
            r#"{{"type":"response.create","model":"m"{lane}{parent},"input":[{items}]{setting},"metadata":{{"create":"{number}"}}}}"#
        )
    }

    /// A steer that is mostly right, of a response that mostly runs.
    fn steer(&mut self, script: &mut Script<'_>) -> String {
        let back = usize::from(script.next().unwrap_or(0) % 8);
        let running: Vec<&String> = self.speaking.values().collect();
        let target = match (back, self.responses.last()) {
            (0..=5, _) if !running.is_empty() => running[back % running.len()].clone(),
            (6, Some((id, _))) => id.clone(),
            _ => format!("resp_{:032x}", self.ids.0),
        };
        let text = self.steers.text();
        let input = match script.next().unwrap_or(0) {
            0..=149 => format!(r#""{text}""#),
            150..=229 => format!(r#"[{{"role":"user","content":"{text}"}}]"#),
            230..=242 => r#""""#.to_owned(),
            _ => format!(r#"[{{"role":"system","content":"{text}"}}]"#),
        };
        format!(r#"{{"type":"response.steer","previous_response_id":"{target}","input":{input}}}"#)
    }

    /// What an engine says next; mostly something that keeps to its contract.
    fn output(&mut self, turn: TurnKey, script: &mut Script<'_>) -> EngineOutput {
        let byte = script.next().unwrap_or(0);
        let making = self.making.get(&turn).copied().unwrap_or_default();
        let text = ["a", "", "\"\u{0}é"][usize::from(byte % 3)].to_owned();
        let (output, next) = match (making, byte) {
            (_, 250..) => (self.nonsense(script, text), making),
            (_, 248..) => (failed(EngineFailureKind::Invalid), making),
            (_, 246..) => (failed(EngineFailureKind::Overloaded), making),
            (Making::Asked, _) => (EngineOutput::Started, Making::BetweenItems),
            (Making::AskedToWarmUp, _) => (EngineOutput::Started, Making::WarmingUp),
            (Making::AskedToWatch, _) => (EngineOutput::Started, Making::Watching),
            (Making::Watching, 0..=119) => (self.finished(FinishReason::ContextThreshold), making),
            (Making::WarmingUp, _) => (self.finished(FinishReason::Stop), making),
            (Making::BetweenItems, 0..=199) if self.wrapping_up.contains(&turn) => {
                (self.finished(FinishReason::WrappedUp), making)
            }
            (Making::BetweenItems, 0..=79) => (
                EngineOutput::ItemStarted(ItemStart::Message),
                Making::InMessage,
            ),
            (Making::BetweenItems, 80..=119) => {
                let tool = "f".into();
                (
                    EngineOutput::ItemStarted(ItemStart::FunctionCall { tool }),
                    Making::InCall,
                )
            }
            (Making::BetweenItems, 120..=134) => {
                let tool = "c".into();
                (
                    EngineOutput::ItemStarted(ItemStart::CustomToolCall { tool }),
                    Making::InCustomCall,
                )
            }
            (Making::BetweenItems | Making::Watching, 135..=149) => (
                EngineOutput::ItemStarted(ItemStart::Reasoning),
                Making::InReasoning,
            ),
            (Making::BetweenItems | Making::Watching, _) => {
                (self.finished(FinishReason::Stop), making)
            }
            (Making::Over, _) => (EngineOutput::ItemDone, making),
            (_, 240..) if self.wrapping_up.contains(&turn) => {
                (self.finished(FinishReason::WrappedUp), making)
            }
            (_, 230..) => (self.finished(FinishReason::MaxOutputTokens), making),
            (_, 120..) => (EngineOutput::ItemDone, Making::BetweenItems),
            (Making::InCall, _) => (EngineOutput::ArgumentsDelta { text }, making),
            (Making::InCustomCall, _) => (EngineOutput::InputDelta { text }, making),
            (Making::InReasoning, _) => (EngineOutput::ReasoningDelta { text }, making),
            (Making::InMessage, _) => {
                let logprobs = Vec::new();
                (EngineOutput::TextDelta { text, logprobs }, making)
            }
        };
        if let Some(making) = self.making.get_mut(&turn) {
            let over = matches!(output, EngineOutput::Finished { .. });
            *making = if over { Making::Over } else { next };
        }
        output
    }

    fn nonsense(&mut self, script: &mut Script<'_>, text: String) -> EngineOutput {
        let tool = "g".into();
        match script.next().unwrap_or(0) % 10 {
            0 => EngineOutput::Started,
            1 => EngineOutput::ItemStarted(ItemStart::Message),
            2 => EngineOutput::ItemStarted(ItemStart::FunctionCall { tool }),
            3 => EngineOutput::ArgumentsDelta { text },
            4 => EngineOutput::ReasoningDelta { text },
            5 => EngineOutput::RefusalDelta { text },
            6 => EngineOutput::ItemDone,
            7 => self.finished(FinishReason::WrappedUp),
            8 => self.finished(FinishReason::ContextThreshold),
            _ => self.finished(FinishReason::ContentFilter),
        }
    }

    fn finished(&mut self, reason: FinishReason) -> EngineOutput {
        let state = Arc::new(());
        self.states.push(Arc::downgrade(&state));
        EngineOutput::Finished {
            reason,
            usage: Usage::default(),
            state: Some(EngineState::new(state)),
        }
    }

    /// Answers a search with the longest of what was kept, or with nothing.
    fn answer_match(&mut self, turn: TurnKey, find: bool) {
        let prefixes = self.looking.remove(&turn).unwrap_or_default();
        let found = prefixes.iter().filter(|_| find).find_map(|prefix| {
            let chain = self.kept.get(&prefix.history)?;
            Some((prefix.items, chain.clone()))
        });
        if let Some((items, chain)) = &found {
            let links = chain.ancestry();
            let held: usize = links
                .map(|link| link.input().len() + link.output().len())
                .sum();
            assert_eq!(held, *items, "a chain of another length has this history");
            self.matched.insert(turn);
        }
        self.session
            .handle_matched(self.now, &mut self.ids, turn, found);
    }

    /// Opens the conversation of a turn, if it exists.
    fn answer_open(&mut self, turn: TurnKey, exists: bool) {
        let opened = match self.opening.remove(&turn) {
            Some(id) if exists => self.conversations.open(turn, id),
            _ => OpenedConversation::NotFound,
        };
        self.session
            .handle_conversation(self.now, &mut self.ids, turn, Ok(opened));
    }

    /// Tells the session whether something was stored.
    fn answer_save(&mut self, turn: TurnKey, saved: Result<(), SaveFailed>) {
        if let Some(record) = self.saving.remove(&turn) {
            self.records.follow_answer(&record, saved.is_ok());
            if saved.is_ok() && record.status.is_continuable() {
                self.conversations.advance(&record);
                self.stored.insert(record.id.to_string(), record.chain);
            }
        }
        self.session
            .handle_saved(self.now, &mut self.ids, turn, saved);
    }

    fn carry_out(&mut self) {
        self.ended_on = None;
        while let Some(action) = self.session.poll_action() {
            let is_socket = self.transport == Transport::WebSocket;
            assert!(!self.closed || !is_socket, "after the close: {action:?}");
            match action {
                Action::Send(event) => {
                    let json = match self.watch.check(&event, self.transport) {
                        Ok(json) => json,
                        Err(problem) => panic!("{problem}"),
                    };
                    let lane = json.get("stream_id").and_then(|lane| lane.as_str());
                    let lane = lane.map(str::to_owned);
                    assert_eq!(event.lane.as_ref().map(LaneName::as_str), lane.as_deref());
                    self.listen(&lane, &json, event.is_terminal());
                    self.steers.follow(lane.as_deref(), &json);
                    self.records.follow_event(&json);
                    self.compare_settings(&json);
                    self.ended_on = event.is_terminal().then_some(lane);
                    if let Some(id) = json.pointer("/response/id").and_then(|id| id.as_str()) {
                        self.responses.retain(|(seen, _)| seen != id);
                        let output = json["response"]["output"].as_array();
                        let output: Vec<&Value> = output.into_iter().flatten().collect();
                        let ids = output.iter().filter_map(|item| item["id"].as_str());
                        self.items.extend(ids.map(str::to_owned));
                        let outputs = output.iter().filter_map(|item| items::output_of(item));
                        self.responses.push((id.to_owned(), outputs.collect()));
                    }
                }
                Action::LoadConversation { turn, id, lock } => {
                    assert!(lock, "whoever goes on with it locks it");
                    self.opening.insert(turn, id);
                }
                Action::Load { turn, id } => {
                    self.loading.insert(turn, id.to_string());
                }
                Action::LoadItems { turn, ids } => {
                    self.loading.remove(&turn);
                    assert!(!ids.is_empty(), "nothing is asked for");
                    self.referring.insert(turn, ids.len());
                }
                Action::Start {
                    turn,
                    lane,
                    request,
                } => {
                    let lane = lane.map(|lane| lane.as_str().to_owned());
                    let is_first_run = !self.lanes.contains_key(&turn);
                    if is_first_run && self.steers.start(turn, lane.as_deref(), &request) {
                        self.steered.insert(turn);
                    }
                    self.lanes.insert(turn, lane);
                    assert!(!self.ended.contains(&turn), "started after its end");
                    self.loading.remove(&turn);
                    self.referring.remove(&turn);
                    self.looking.remove(&turn);
                    let asked = match request.generate {
                        true => Making::Asked,
                        false => Making::AskedToWarmUp,
                    };
                    let asked = match request.compact_threshold {
                        Some(_) => Making::AskedToWatch,
                        None => asked,
                    };
                    let former = self.making.insert(turn, asked);
                    let refused = former.is_some() && self.matched.remove(&turn);
                    let again = refused || matches!(former, Some(Making::Over));
                    assert!(former.is_none() || again, "started twice");
                }
                Action::Match { turn, prefixes } => {
                    self.loading.remove(&turn);
                    self.referring.remove(&turn);
                    let longest = prefixes.first().expect("something is looked for");
                    assert_eq!(longest.items, prefixes.len(), "a beginning is left out");
                    self.looking.insert(turn, prefixes);
                }
                Action::Keep { history, chain } => drop(self.kept.insert(history, chain)),
                Action::WrapUp { turn } => {
                    assert!(self.making.contains_key(&turn), "it is not being made");
                    assert!(self.wrapping_up.insert(turn), "asked twice");
                }
                Action::Stop { turn } => {
                    assert!(self.making.remove(&turn).is_some(), "stopped for nothing");
                }
                Action::Save { turn, record } => {
                    let was_made = self.making.remove(&turn).is_some();
                    let is_end = record.status.is_continuable();
                    assert!(was_made || !is_end, "saved before it was made");
                    self.records.check(&record);
                    self.loading.remove(&turn);
                    self.referring.remove(&turn);
                    self.looking.remove(&turn);
                    self.conversations.check(turn, &record);
                    self.opening.remove(&turn);
                    self.saving.insert(turn, record);
                }
                Action::SaveProgress { record } => self.records.follow_progress(&record),
                Action::Ended { turn, summary } => {
                    let created = self.settings.contains_key(summary.id.as_str());
                    let told = self.ended_on.take();
                    if summary.automatic {
                        assert_eq!(told.is_some(), created, "nobody asked for this one");
                        let started = self.lanes.contains_key(&turn);
                        assert_eq!(started, self.steered.contains(&turn), "with other input");
                    } else {
                        let lane = told.expect("an end is told to the client first");
                        let former = self.last_ended.insert(lane, turn);
                        assert!(former < Some(turn), "a lane is not first in, first out");
                    }
                    if created {
                        let successor = self.successors.contains(summary.id.as_str());
                        assert_eq!(summary.automatic, successor, "whose create was this?");
                    }
                    assert!(self.ended.insert(turn), "ended twice");
                    self.opening.remove(&turn);
                    self.conversations.unlock(turn);
                    self.making.remove(&turn);
                    self.loading.remove(&turn);
                    self.referring.remove(&turn);
                    self.looking.remove(&turn);
                    self.saving.remove(&turn);
                }
                Action::Close { .. } => self.closed = true,
            }
            let waiting =
                self.loading.len() + self.opening.len() + self.referring.len() + self.looking.len();
            let running = waiting + self.making.len() + self.saving.len();
            assert!(running <= RUNNING, "{running} turns run at once");
        }
        self.steers.rest(|turn| self.ended.contains(&turn));
    }

    /// A successor is asked for what its target was; each create has a number of its own.
    fn compare_settings(&mut self, json: &Value) {
        if json["type"] != "response.created" {
            return;
        }
        let mut settings = json["response"].clone();
        let members = settings.as_object_mut().expect("a response is an object");
        let mut take = |name: &str| members.remove(name).expect("it has all its members");
        let (id, parent) = (take("id"), take("previous_response_id"));
        take("created_at");
        let id = id.as_str().expect("an id is a string").to_owned();
        let number = settings["metadata"]["create"].as_str();
        if number.is_some_and(|number| !self.numbers.insert(number.to_owned())) {
            let target = parent.as_str().and_then(|parent| self.settings.get(parent));
            assert_eq!(Some(&settings), target, "a successor with other settings");
            self.successors.insert(id.clone());
        }
        self.settings.insert(id, settings);
    }

    /// Notes when a response was heard of. One that speaks shows no other sign of life.
    fn listen(&mut self, lane: &Option<String>, json: &Value, is_terminal: bool) {
        let number = json["sequence_number"].as_u64();
        let last = self.heard.get(lane).copied();
        match json["type"].as_str() {
            Some(name) if self.progress.get(lane).is_some_and(|told| told == name) => {
                let last = last.expect("only a response that runs shows that it does");
                assert!(
                    self.now.elapsed - last >= KEEP_ALIVE,
                    "a sign of life too early"
                );
            }
            Some("error") => return,
            // The target of this one has ended.
            Some(name) if name.starts_with("response.steer.") && last.is_none() => return,
            Some(_) if number == Some(0) && json.get("response").is_none() => return,
            _ => {}
        }
        if is_terminal {
            self.heard.remove(lane);
            self.speaking.remove(lane);
            self.progress.remove(lane);
        } else {
            if let Some(name) = json["type"]
                .as_str()
                .filter(|_| json.get("response").is_some())
            {
                self.progress.insert(lane.clone(), name.to_owned());
            }
            self.heard.insert(lane.clone(), self.now.elapsed);
            if let Some(id) = json["response"]["id"].as_str() {
                self.speaking.insert(lane.clone(), id.to_owned());
            }
        }
    }

    /// Once the time has passed that the session asked for, every response that is being made
    /// has been heard of.
    fn assert_no_silence(&self) {
        for turn in self.making.keys() {
            if let Some(last) = self.lanes.get(turn).and_then(|lane| self.heard.get(lane)) {
                assert!(self.now.elapsed - *last < KEEP_ALIVE, "{turn:?} is silent");
            }
        }
    }

    /// Ends all turns in their own ways, then the connection.
    fn wind_up(mut self) {
        loop {
            if let Some((&turn, _)) = self.opening.first_key_value() {
                self.answer_open(turn, true);
            } else if let Some((turn, _)) = self.loading.pop_first() {
                self.session
                    .handle_loaded(self.now, &mut self.ids, turn, Ok(None));
            } else if let Some((turn, asked)) = self.referring.pop_first() {
                let items = vec![None; asked];
                self.session
                    .handle_items(self.now, &mut self.ids, turn, Ok(items));
            } else if let Some((&turn, _)) = self.looking.first_key_value() {
                self.answer_match(turn, true);
            } else if let Some((&turn, _)) = self.saving.first_key_value() {
                self.answer_save(turn, Ok(()));
            } else if let Some((turn, _)) = self.making.pop_first() {
                let failure = failed(EngineFailureKind::Overloaded);
                self.session
                    .handle_output(self.now, &mut self.ids, turn, failure);
            } else {
                break;
            }
            self.carry_out();
        }
        self.steers.idle();
        self.session.handle_drain(self.now);
        self.carry_out();
        self.steers.end();
        self.records.end();
        let is_http = self.transport == Transport::Http;
        assert!(self.closed || is_http, "a drained connection closes");
        let keys: Vec<u64> = self.ended.iter().map(|turn| turn.0).collect();
        let all: Vec<u64> = (0..keys.len() as u64).collect();
        assert_eq!(keys, all, "a create has no end");

        self.say(r#"{"type":"response.create","model":"m","input":"x"}"#);
        self.carry_out();

        self.hang_up();
    }

    /// Drops the connection as it is.
    fn hang_up(self) {
        drop(self.session);
        drop(self.stored);
        drop(self.conversations);
        drop(self.saving);
        drop(self.kept);
        assert!(
            self.states.iter().all(|state| state.strong_count() == 0),
            "a link outlives its connection"
        );
    }
}

fn failed(kind: EngineFailureKind) -> EngineOutput {
    EngineOutput::Failed(EngineFailure {
        kind,
        message: "Busy.".to_owned(),
        param: None,
    })
}
