//! Action: what a session wants done. Its owner carries actions out in the order they come.

use std::sync::Arc;

use crate::chain::Chain;
use crate::engine::TurnRequest;
use crate::event::Event;
use crate::history::{History, Prefix};
use crate::id::{ConversationId, ResponseId};
use crate::lane::LaneName;
use crate::stored::StoredResponse;
use crate::tool::NotOffered;

/// Names a turn between a session and its owner. Never used twice in one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TurnKey(pub u64);

#[derive(Debug)]
pub enum Action {
    /// Look a stored response up, for this credential only, and answer with `handle_loaded`.
    Load { turn: TurnKey, id: ResponseId },
    /// Look a conversation of this credential up and answer with `handle_conversation`.
    LoadConversation {
        turn: TurnKey,
        id: ConversationId,
        /// Whether it is to be locked: nothing else of this server may go on with it until the
        /// turn has [`Action::Ended`].
        lock: bool,
    },
    /// Look items up that this credential may see, and answer with `handle_items`.
    LoadItems {
        turn: TurnKey,
        /// Each one once.
        ids: Vec<Arc<str>>,
    },
    /// Look for a chain of this credential that was kept for the history of one of these
    /// beginnings of the input, the longest first, and answer with `handle_matched`.
    Match {
        turn: TurnKey,
        prefixes: Vec<Prefix>,
    },
    /// Start the engine and feed what it says to `handle_output`.
    Start {
        turn: TurnKey,
        /// The lane of its events.
        lane: Option<LaneName>,
        request: Box<TurnRequest>,
    },
    /// Ask the turn's engine to end it soon, between two items.
    WrapUp { turn: TurnKey },
    /// Drop the turn's engine stream. Nothing more is expected from it.
    Stop { turn: TurnKey },
    /// Store a response and answer with `handle_saved`. Its last event waits for that, or its
    /// first one if it is made in the background and has not begun.
    Save {
        turn: TurnKey,
        record: StoredResponse,
    },
    /// Store how far a response in the background is. There is no answer; what is to be saved
    /// later must be stored later.
    SaveProgress { record: StoredResponse },
    /// Keep a chain for requests that bring its history, for as long as that is worth while. It
    /// can be continued by nothing else because of this.
    Keep { history: History, chain: Chain },
    /// Send one event.
    Send(Event),
    /// The turn is over, its last event sent; for the one log line of the turn.
    Ended { turn: TurnKey, summary: TurnSummary },
    /// Send what is queued, then close the connection with this code.
    Close { code: u16, reason: &'static str },
}

/// What may be said in a log about a turn: nothing of its content.
#[derive(Clone, Debug)]
pub struct TurnSummary {
    pub id: ResponseId,
    /// Empty if the request was refused.
    pub model: String,
    pub tools_not_offered: NotOffered,
    /// `completed`, `incomplete`, `cancelled`, or the code of what went wrong.
    pub outcome: String,
    pub usage: crate::engine::Usage,
    /// Turns in the chain, this one included; 0 if it did not become part of one.
    pub turns: u64,
    /// As a response that can be continued.
    pub stored: bool,
    /// Whether the session started it to apply steers, without a create.
    pub automatic: bool,
}
