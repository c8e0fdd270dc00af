//! Lane: one conversation within a session, turn after turn.

use bytes::Bytes;

use crate::create::{Create, Request};
use crate::error::Error;
use crate::item;
use crate::json::Json;
use crate::response::{Response, Status};
use crate::session::Session;
use crate::turn::Turn;

/// A conversation. It takes one turn at a time, and remembers what was said, so that each create
/// holds only what is new.
///
/// A create continues the lane's last response by its id. Where the server does not know that any
/// more, because the socket is another, or because it says so, everything is sent again instead,
/// without an id. The memory for this is one pointer for each item.
#[derive(Debug)]
pub struct Lane {
    pub(crate) session: Session,
    pub(crate) name: Option<String>,
    history: Vec<Json>,
    /// The history goes back to the beginning, so it can stand for the parent.
    whole: bool,
    /// What steered the last turn and was not taken in: the server puts it before the next input.
    carried: Vec<Json>,
    parent: Option<Parent>,
}

/// The response that the next turn continues.
#[derive(Clone, Debug)]
struct Parent {
    id: String,
    /// The socket that knows it; none if it came from elsewhere.
    link: Option<u64>,
    stored: bool,
}

/// A message ready to be sent, and what it relies on.
pub(crate) struct Prepared {
    pub(crate) message: Bytes,
    /// It names a parent, which the server may not know.
    pub(crate) has_parent: bool,
}

impl Lane {
    pub(crate) fn new(session: Session, name: Option<String>) -> Self {
        Self {
            session,
            name,
            history: Vec::new(),
            whole: true,
            carried: Vec::new(),
            parent: None,
        }
    }

    /// None for the default lane.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// What was said so far, as it would be sent again: without what stands before the last
    /// compaction.
    pub fn history(&self) -> &[Json] {
        &self.history
    }

    /// The response that the next create continues.
    pub fn last_response_id(&self) -> Option<&str> {
        self.parent.as_ref().map(|parent| parent.id.as_str())
    }

    /// Begins a turn. Reading the [`Turn`] carries it on; dropping it before its end cancels it,
    /// and the lane stays where it was.
    ///
    /// # Errors
    ///
    /// When no connection can be had; see [`Settings::reconnect`](crate::Settings::reconnect).
    pub async fn create(&mut self, create: Create) -> Result<Turn<'_>, Error> {
        let mut turn = Turn::new(self, create);
        turn.begin().await?;
        Ok(turn)
    }

    /// Continues a response that was made elsewhere and stored. What was said before is not known
    /// here then, so that the lane cannot help if the server has forgotten the response.
    pub fn continue_from(&mut self, response_id: impl Into<String>) {
        self.forget();
        self.whole = false;
        self.parent = Some(Parent {
            id: response_id.into(),
            link: None,
            stored: true,
        });
    }

    /// Begins a conversation with what was said in another one.
    pub fn restore(&mut self, history: impl IntoIterator<Item = Json>) {
        self.forget();
        self.history = history.into_iter().collect();
    }

    /// Begins a new conversation.
    pub fn forget(&mut self) {
        self.history.clear();
        self.carried.clear();
        self.whole = true;
        self.parent = None;
    }

    /// A new lane that continues where this one is. Both go on by themselves.
    pub fn fork(&self, name: &str) -> Result<Self, Error> {
        let mut fork = self.session.lane(name)?;
        fork.history.clone_from(&self.history);
        fork.whole = self.whole;
        fork.parent.clone_from(&self.parent);
        Ok(fork)
    }

    /// Makes the message for a turn on a socket, or over HTTP if there is no `link`.
    pub(crate) fn prepare(&self, create: &Create, link: Option<u64>) -> Prepared {
        let parent = self.parent.as_ref().filter(|parent| {
            let known = link.is_some() && parent.link == link;
            known || parent.stored || !self.whole
        });
        let mut before = Vec::new();
        match parent {
            // The server itself adds what it was steered by.
            Some(parent) if link.is_some() && parent.link == link => {}
            Some(_) => before.extend(&self.carried),
            None => {
                before.extend(self.history.iter().filter(|item| can_be_sent_again(item)));
                before.extend(&self.carried);
            }
        }
        let request = Request {
            create,
            over_http: link.is_none(),
            lane: self.name.as_deref(),
            parent: parent.map(|parent| parent.id.as_str()),
            before,
        };
        let message = serde_json::to_vec(&request).expect("strings and JSON make JSON");
        Prepared {
            message: message.into(),
            has_parent: parent.is_some(),
        }
    }

    /// Whether everything can be sent again.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// The server does not know the parent any more.
    pub(crate) fn lose_parent(&mut self) {
        self.parent = None;
    }

    /// Takes in how a response ended. `input` is what it was asked with.
    pub(crate) fn take_end(
        &mut self,
        input: &mut Vec<Json>,
        response: &Response,
        link: Option<u64>,
        stored: bool,
    ) {
        // The lane stays where it was. A failure may have cost the server its parent, too; the
        // next create finds that out.
        if matches!(response.status, Status::Cancelled | Status::Failed) {
            return;
        }
        self.history.append(&mut self.carried);
        self.history.append(input);
        let compaction = response
            .output
            .iter()
            .rposition(|item| item::kind(item) == "compaction");
        let output_at = self.history.len();
        self.history.extend(response.output.iter().cloned());
        if let Some(position) = compaction {
            // All that was before is in it.
            self.history.drain(..output_at + position);
            self.whole = true;
        }
        self.parent = Some(Parent {
            id: response.id.clone(),
            link,
            stored: response.store.unwrap_or(stored),
        });
    }

    /// Steering that a successor has taken in.
    pub(crate) fn take_steering(&mut self, items: Vec<Json>) {
        self.history.extend(items);
    }

    /// Steering that the next turn will take in.
    pub(crate) fn carry(&mut self, items: Vec<Json>) {
        self.carried.extend(items);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.session.give_back_lane(&self.name);
    }
}

/// Reasoning without its encrypted content is a reference to what the server has forgotten, and a
/// trigger has done its work.
fn can_be_sent_again(item: &Json) -> bool {
    match item::kind(item).as_str() {
        "reasoning" => item.string("encrypted_content").is_some(),
        "compaction_trigger" => false,
        _ => true,
    }
}
