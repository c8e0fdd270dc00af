//! What must hold of the notices about steers.

use std::collections::BTreeMap;

use serde_json::Value;

use super::demand;

/// Why a steer may fail.
const CODES: [&str; 7] = [
    "invalid_input",
    "response_already_completed",
    "response_not_active",
    "response_not_found",
    "steering_not_supported",
    "successor_creation_failed",
    "too_many_pending_steers",
];

/// Follows the steers that were accepted on one connection.
#[derive(Debug, Default)]
pub(crate) struct Steers {
    /// By the response that they are for.
    targets: BTreeMap<String, Target>,
}

#[derive(Debug, Default)]
struct Target {
    lane: Option<String>,
    /// Once it has ended, the number that its next notice has.
    next_number: Option<u64>,
    /// The steers that have not failed, and whether one was told to wait.
    steers: BTreeMap<String, bool>,
}

impl Steers {
    /// A notice among the events of a response that runs.
    pub(crate) fn follow_running(
        &mut self,
        running: &str,
        lane: Option<&str>,
        name: &str,
        json: &Value,
    ) -> Result<(), String> {
        demand(target_of(json)? == running, "a notice of another response")?;
        match name {
            "response.steer.accepted" => {
                let id = accepted_id(json)?;
                let target = self.targets.entry(running.to_owned()).or_default();
                target.lane = lane.map(str::to_owned);
                let former = target.steers.insert(id.to_owned(), false);
                demand(former.is_none(), "accepted twice")
            }
            "response.steer.failed" => {
                demand(json["steer"].get("id").is_none(), "it still runs")?;
                check_failed(json)
            }
            _ => Err("a response that runs has nothing to wait for".to_owned()),
        }
    }

    /// The last event of a response was sent.
    pub(crate) fn end(&mut self, response: &str, next_number: u64) {
        if let Some(target) = self.targets.get_mut(response) {
            target.next_number = Some(next_number);
        }
    }

    /// A notice about a steer whose target does not run.
    pub(crate) fn follow_over(
        &mut self,
        lane: Option<&str>,
        name: &str,
        json: &Value,
    ) -> Result<(), String> {
        let number = json["sequence_number"].as_u64();
        if name == "response.steer.failed" {
            check_failed(json)?;
            if json["steer"].get("id").is_none() {
                return demand(number == Some(0), "what does not run is not numbered");
            }
        }
        let id = accepted_id(json)?;
        let target = self.targets.get_mut(target_of(json)?);
        let target = target.ok_or("no steer was accepted for it")?;
        demand(lane == target.lane.as_deref(), "a notice on another lane")?;
        let next = target.next_number.as_mut().ok_or("it has not ended")?;
        demand(number == Some(*next), "the notices do not count on")?;
        *next += 1;
        match name {
            "response.steer.pending" => {
                demand(
                    json["reason"] == "waiting_for_required_input",
                    "another reason",
                )?;
                let required = json["required_input"].as_array();
                let required = required.filter(|stubs| !stubs.is_empty());
                for stub in required.ok_or("nothing is required")? {
                    demand(stub["call_id"].is_string(), "a stub has no call")?;
                    let named = stub["type"] != "function_call_output" || stub["name"] != "";
                    demand(named, "a function has no name")?;
                }
                let told = target.steers.insert(id.to_owned(), true);
                demand(told == Some(false), "it does not wait, or was told so")
            }
            "response.steer.failed" => demand(
                target.steers.remove(id).is_some(),
                "it was not accepted, or has failed",
            ),
            _ => Err("accepted after the end".to_owned()),
        }
    }
}

fn target_of(json: &Value) -> Result<&str, String> {
    let target = json["steer"]["previous_response_id"].as_str();
    target.ok_or_else(|| "a notice names no response".to_owned())
}

fn accepted_id(json: &Value) -> Result<&str, String> {
    let id = json["steer"]["id"].as_str().ok_or("a steer has no id")?;
    let digits = id.strip_prefix("steer_").unwrap_or_default();
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    demand(
        digits.len() == 32 && digits.bytes().all(is_hex),
        "a steer's id has another form",
    )?;
    Ok(id)
}

fn check_failed(json: &Value) -> Result<(), String> {
    let Value::Object(error) = &json["error"] else {
        return Err("a failure has no error".to_owned());
    };
    demand(error["type"] == "invalid_request_error", "the error's type")?;
    demand(error["message"].is_string(), "an error has no message")?;
    let code = error["code"].as_str().unwrap_or_default();
    demand(CODES.contains(&code), "an unknown code")?;
    demand(json["steer"].get("input").is_some(), "the input is missing")
}
