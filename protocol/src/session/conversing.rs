//! Turns in a conversation: what it ends with is their parent, and they are its next end.

use crate::action::{Action, TurnKey};
use crate::chain::Chain;
use crate::create::{CreateRequest, Task};
use crate::failure::Failure;
use crate::id::{ConversationId, IdSource};
use crate::lane::Origin;
use crate::session::{Now, Running, Session, Stage, StoreUnavailable};

/// What an owner says of a conversation that a turn is about to continue.
#[derive(Clone, Debug)]
pub enum OpenedConversation {
    /// What it ends with; none if it has no items yet. It is locked, if it was to be.
    Open(Option<Chain>),
    /// There is none of this name for this credential.
    NotFound,
    /// Something else of this server is going on with it.
    Locked,
}

impl Session {
    pub(super) fn open_conversation(
        &mut self,
        origin: Origin,
        id: ConversationId,
        request: Box<CreateRequest>,
    ) {
        let turn = origin.key;
        // Who only counts leaves no trace.
        let lock = request.task != Task::Count;
        self.actions
            .push_back(Action::LoadConversation { turn, id, lock });
        let stage = Stage::Loading(request);
        self.running.insert(turn, Running { origin, stage });
    }

    /// The answer to [`Action::LoadConversation`].
    pub fn handle_conversation(
        &mut self,
        now: Now,
        _ids: &mut dyn IdSource,
        turn: TurnKey,
        opened: Result<OpenedConversation, StoreUnavailable>,
    ) {
        self.grow_old(now);
        match self.running.remove(&turn) {
            Some(Running {
                origin,
                stage: Stage::Loading(request),
            }) => match (opened, &request.conversation) {
                (Ok(OpenedConversation::Open(chain)), _) => {
                    self.begin(now, origin, request, chain);
                }
                (Ok(OpenedConversation::NotFound), Some(id)) => {
                    let failure = Failure::conversation_not_found(id);
                    self.refuse(origin, failure);
                }
                (Ok(_), _) => self.refuse(origin, Failure::conversation_locked()),
                (Err(unavailable), _) => self.refuse(origin, unavailable.into()),
            },
            Some(running) => drop(self.running.insert(turn, running)),
            None => {}
        }
        self.go_on(now);
    }
}
