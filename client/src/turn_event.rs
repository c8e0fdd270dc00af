//! Turn event: what happens in a turn, as far as a caller has to act on it.

use serde::Deserialize;

use crate::error::Error;
use crate::event::Event;
use crate::failure::Failure;
use crate::item::Call;
use crate::json::Json;
use crate::response::Response;

/// One event of a [`Turn`](crate::Turn).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TurnEvent {
    /// The response has begun. With steering, one turn has several.
    Created(Response),
    /// An item has begun.
    ItemAdded {
        index: usize,
        item: Json,
    },
    /// An item has ended, other than a call.
    ItemDone {
        index: usize,
        item: Json,
    },
    /// A call of one of the caller's tools is complete. The next create of the lane answers it.
    Call(Call),
    TextDelta {
        item_id: String,
        delta: String,
    },
    /// What became of a [`Turn::steer`](crate::Turn::steer).
    Steer(SteerNotice),
    /// The response has ended: completed, incomplete, cancelled or failed.
    Ended(Response),
    /// The connection was lost and the turn was sent again: what it gave out so far is void.
    Restarted,
    /// Any other event, as it came.
    Other(Event),
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SteerNotice {
    /// It waits for the response to reach a point where it can be taken in.
    Accepted { id: String },
    /// The response ended with calls. The next create of the lane, which answers them, takes the
    /// steer in.
    Pending {
        id: String,
        required_input: Vec<Json>,
    },
    /// It will not be taken in.
    Failed {
        id: Option<String>,
        failure: Failure,
    },
}

#[derive(Deserialize)]
struct Lifecycle {
    response: Json,
}

#[derive(Deserialize)]
struct ItemEvent {
    output_index: usize,
    item: Json,
}

#[derive(Deserialize)]
struct Delta {
    item_id: String,
    delta: String,
}

#[derive(Deserialize)]
struct SteerEvent {
    steer: SteerMembers,
    error: Option<Json>,
    #[serde(default)]
    required_input: Vec<Json>,
}

#[derive(Deserialize)]
struct SteerMembers {
    id: Option<String>,
}

impl TurnEvent {
    /// Reads an event other than `error`. Only what decides over the turn has to be in order;
    /// anything else that is not as it should be is passed on.
    pub(crate) fn read(event: Event) -> Result<Self, Error> {
        let read = match event.name.as_str() {
            "response.created" => return Ok(Self::Created(response(&event)?)),
            "response.completed" | "response.incomplete" | "response.failed" => {
                return Ok(Self::Ended(response(&event)?));
            }
            "response.steer.accepted" | "response.steer.pending" | "response.steer.failed" => {
                return Ok(Self::Steer(SteerNotice::read(&event)?));
            }
            "response.output_item.added" => event.parse().ok().map(|read| {
                let ItemEvent { output_index, item } = read;
                Self::ItemAdded {
                    index: output_index,
                    item,
                }
            }),
            "response.output_item.done" => event.parse().ok().map(|read| {
                let ItemEvent { output_index, item } = read;
                match Call::read(&item) {
                    Some(call) => Self::Call(call),
                    None => Self::ItemDone {
                        index: output_index,
                        item,
                    },
                }
            }),
            "response.output_text.delta" => event
                .parse()
                .ok()
                .map(|Delta { item_id, delta }| Self::TextDelta { item_id, delta }),
            _ => None,
        };
        Ok(read.unwrap_or(Self::Other(event)))
    }
}

impl SteerNotice {
    fn read(event: &Event) -> Result<Self, Error> {
        let SteerEvent {
            steer: SteerMembers { id },
            error,
            required_input,
        } = event.parse()?;
        Ok(match (event.name.as_str(), id) {
            ("response.steer.accepted", Some(id)) => Self::Accepted { id },
            ("response.steer.pending", Some(id)) => Self::Pending { id, required_input },
            (_, id) => Self::Failed {
                id,
                failure: Failure::read(error.unwrap_or_else(|| Json::from(""))),
            },
        })
    }
}

fn response(event: &Event) -> Result<Response, Error> {
    let Lifecycle { response } = event.parse()?;
    Ok(Response::read(response)?)
}
