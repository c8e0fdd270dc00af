//! What becomes of steers: each one that is accepted is applied once and in order, or fails once.

use std::collections::BTreeMap;

use serde_json::Value;
use turnwire_protocol::action::TurnKey;
use turnwire_protocol::engine::TurnRequest;

/// Follows every steer from its acceptance to its fate.
#[derive(Default)]
pub(super) struct Ledger {
    /// Steers that were sent, so that no two say the same.
    sent: u64,
    /// Those that were accepted and have no fate yet, in the order they came.
    open: Vec<Open>,
    /// What turns that have been started, but not created, are going to apply.
    taken: BTreeMap<String, Taken>,
    /// The response that each warm-up continues, and the lane.
    warm_ups: BTreeMap<String, (String, Option<String>)>,
}

struct Open {
    id: String,
    target: String,
    /// The last warm-up behind the target, or the target.
    at: String,
    lane: Option<String>,
    text: String,
    is_pending: bool,
}

struct Taken {
    turn: TurnKey,
    ids: Vec<String>,
}

impl Ledger {
    /// The text of the next steer.
    pub(super) fn text(&mut self) -> String {
        self.sent += 1;
        format!("steer {}", self.sent)
    }

    /// Follows an event of the session.
    pub(super) fn follow(&mut self, lane: Option<&str>, json: &Value) {
        let id = json.pointer("/steer/id").and_then(Value::as_str);
        let position = || self.open.iter().position(|open| Some(&*open.id) == id);
        match json["type"].as_str() {
            Some("response.steer.accepted") => self.open.push(Open {
                id: id.expect("accepted steers have ids").to_owned(),
                target: string(&json["steer"]["previous_response_id"]),
                at: string(&json["steer"]["previous_response_id"]),
                lane: lane.map(str::to_owned),
                text: format!("steer {}", self.sent),
                is_pending: false,
            }),
            Some("response.steer.pending") => {
                let at = position().expect("what waits has no fate");
                self.open[at].is_pending = true;
            }
            Some("response.steer.failed") if id.is_some() => {
                let at = position().expect("what fails has no fate");
                let open = self.open.remove(at);
                let shown = &json["steer"]["input"];
                let shown = shown.as_str().or(shown[0]["content"].as_str());
                assert_eq!(shown, Some(&*open.text), "the input is shown as it came");
            }
            Some("response.created") => {
                let taken = self.taken.remove(&string(&json["response"]["id"]));
                let ids = taken.map(|taken| taken.ids).unwrap_or_default();
                self.open.retain(|open| !ids.contains(&open.id));
            }
            Some("response.completed") => {
                let id = string(&json["response"]["id"]);
                if let Some((parent, lane)) = self.warm_ups.remove(&id) {
                    for open in &mut self.open {
                        let is_for = open.at == parent || open.target == parent;
                        if is_for && open.lane == lane {
                            open.at.clone_from(&id);
                        }
                    }
                }
            }
            Some("response.incomplete") => {
                let response = &json["response"];
                let id = string(&response["id"]);
                let steered = response["incomplete_details"]["reason"] == "steered";
                let asked_to = self.open.iter().any(|open| open.target == id);
                assert!(asked_to || !steered, "nobody steered this");
            }
            _ => {}
        }
    }

    /// A turn begins: it has taken what is owed to it, and nothing else. Returns whether that is
    /// all of its input.
    pub(super) fn start(
        &mut self,
        turn: TurnKey,
        lane: Option<&str>,
        request: &TurnRequest,
    ) -> bool {
        let parent = request.parent.as_ref().map(|chain| chain.id().to_string());
        let texts: Vec<String> = request.input.iter().map(|item| text(item.raw())).collect();
        let steers = texts.iter().take_while(|text| text.starts_with("steer "));
        let steers: Vec<&String> = steers.collect();
        let owed: Vec<&Open> = match &parent {
            Some(parent) if request.generate => {
                let open = self.open.iter().filter(|open| open.lane.as_deref() == lane);
                open.filter(|open| open.target == *parent || open.at == *parent)
                    .collect()
            }
            _ => Vec::new(),
        };
        let all_steers = texts.iter().filter(|text| text.starts_with("steer "));
        assert_eq!(all_steers.count(), steers.len(), "steers come first");
        let wanted: Vec<&String> = owed.iter().map(|open| &open.text).collect();
        assert_eq!(steers, wanted, "all steers are taken once and in order");
        let is_all = !texts.is_empty() && steers.len() == texts.len();
        let ids: Vec<String> = owed.iter().map(|open| open.id.clone()).collect();
        if !ids.is_empty() {
            let taken = Taken { turn, ids };
            self.taken.insert(request.id.to_string(), taken);
        }
        if let (Some(parent), false) = (parent, request.generate) {
            let lane = lane.map(str::to_owned);
            self.warm_ups.insert(request.id.to_string(), (parent, lane));
        }
        is_all
    }

    /// Nothing is left to be done for now. No turn that has ended keeps steers.
    pub(super) fn rest(&self, is_over: impl Fn(TurnKey) -> bool) {
        for taken in self.taken.values().filter(|taken| is_over(taken.turn)) {
            let lost = |open: &Open| taken.ids.contains(&open.id);
            assert!(!self.open.iter().any(lost), "steers got lost with a turn");
        }
    }

    /// No turn runs or waits any longer.
    pub(super) fn idle(&self) {
        let waits = |open: &Open| open.is_pending;
        assert!(self.open.iter().all(waits), "steers wait for nobody");
    }

    pub(super) fn end(&self) {
        assert!(self.open.is_empty(), "a steer has no fate");
    }
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The text of a message, in one of the two forms that the play uses.
fn text(item: &[u8]) -> String {
    let item: Value = serde_json::from_slice(item).expect("items are JSON");
    let content = &item["content"];
    string(content.as_str().map_or(&content[0]["text"], |_| content))
}
