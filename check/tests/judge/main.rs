//! The judge judged: a server with one flaw fails the row that the flaw breaks, and passes it
//! without the flaw.

#![expect(clippy::unwrap_used, reason = "a test ends where something is amiss")]

mod server;

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use turnwire_check::{Check, Finding, Status};

use crate::server::{Flaw, MODEL, binary, serve, text};

/// A row, what is wrong, and how it is made wrong.
type Case = (u16, &'static str, Flaw);

/// What is wrong with what is said.
const WRONG: &[Case] = &[
    (12, "a binary message", |_, _, said| {
        for event in said {
            *event = binary(event);
        }
    }),
    (19, "[DONE]", |_, _, said| said.push(text("[DONE]"))),
    (20, "an event named like a local one", |_, _, said| {
        said.insert(0, json!({"type": "open"}));
    }),
    (21, "an event of its own", |_, _, said| {
        said.insert(0, json!({"type": "keepalive", "sequence_number": 0}));
    }),
    (29, "no create is ever taken", |_, _, said| {
        refuse(said, "server_error")
    }),
    (31, "stream is refused", |_, message, said| {
        if message.get("stream").is_some() {
            refuse(said, "unsupported_parameter");
        }
    }),
    (37, "the parent is said to be another", |_, _, said| {
        each_response(said, |response| {
            response["previous_response_id"] = json!("resp_x")
        });
    }),
    (39, "a model is not needed", |_, message, said| {
        if message.get("model").is_none() {
            said[0]["error"]["param"] = json!("input");
        }
    }),
    (40, "another code", |_, _, said| {
        if is_error(said, "model_not_found") {
            said[0]["error"]["code"] = json!("not_found");
        }
    }),
    (
        45,
        "an empty continuation is refused",
        |_, message, said| {
            if message["previous_response_id"].is_string() && message["input"] == json!([]) {
                refuse(said, "invalid_value");
            }
        },
    ),
    (47, "the running turn ends with the error", |_, _, said| {
        if is_error(said, "invalid_json") {
            said.insert(1, said[0].clone());
        }
    }),
    (48, "an unknown type is not named", |_, _, said| {
        if is_error(said, "unsupported_event_type") {
            said[0]["error"]["param"] = Value::Null;
        }
    }),
    (49, "an answer to what needs none", |_, message, said| {
        if message["type"] == "response.processed" {
            refuse(said, "unsupported_event_type");
        }
    }),
    (51, "created with output", |_, _, said| {
        on(said, "response.created", |event| {
            event["response"]["output"] = json!([{}])
        });
    }),
    (51, "no created", |_, _, said| {
        drop_all(said, "response.created")
    }),
    (52, "no in_progress", |_, _, said| {
        drop_all(said, "response.in_progress")
    }),
    (53, "numbers from 1", |_, _, said| {
        number(said, |number| number + 1)
    }),
    (53, "a number twice", |_, _, said| {
        number(said, |number| number.saturating_sub(1))
    }),
    (54, "the count goes on", |answered, _, said| {
        if answered > 0 {
            number(said, |number| number + 10);
        }
    }),
    (55, "two terminal events", |_, _, said| {
        said.extend(said.last().cloned())
    }),
    (56, "a delta after the end", |_, _, said| {
        let delta = said
            .iter()
            .find(|event| event["type"] == "response.output_text.delta");
        said.extend(delta.cloned());
    }),
    (57, "an item that is not added", |_, _, said| {
        drop_all(said, "response.output_item.added")
    }),
    (57, "an item that is not done", |_, _, said| {
        drop_all(said, "response.output_item.done")
    }),
    (58, "deltas that are not the text", |_, _, said| {
        on(said, "response.output_text.delta", |event| {
            event["delta"] = json!("Bye")
        });
    }),
    (58, "a part that is not added", |_, _, said| {
        drop_all(said, "response.content_part.added")
    }),
    (59, "another item's id", |_, _, said| {
        on(said, "response.output_text.delta", |event| {
            event["item_id"] = json!("msg_x")
        });
    }),
    (60, "another item at the end", |_, _, said| {
        on(said, "response.completed", |event| {
            event["response"]["output"][0]["role"] = json!("x")
        });
    }),
    (61, "no output at the end", |_, _, said| {
        on(said, "response.completed", |event| {
            event["response"]["output"] = json!([])
        });
    }),
    (62, "another call_id", |_, _, said| {
        on(said, "response.output_item.added", |event| {
            event["item"]["call_id"] = json!("call_2")
        });
    }),
    (62, "other arguments", |_, _, said| {
        on(said, "response.function_call_arguments.done", |event| {
            event["arguments"] = json!("{}")
        });
    }),
    (67, "no logprobs", |_, _, said| {
        on(said, "response.output_text.delta", |event| {
            event["logprobs"] = Value::Null
        });
    }),
    (68, "cut and yet completed", |_, _, said| {
        on(said, "response.incomplete", |event| {
            event["type"] = json!("response.completed");
            event["response"]["status"] = json!("completed");
            event["response"]["usage"]["output_tokens"] = json!(16);
        });
    }),
    (69, "completed at no time", |_, _, said| {
        each_response(said, |response| response["completed_at"] = Value::Null);
    }),
    (70, "usage without details", |_, _, said| {
        each_response(said, |response| {
            response["usage"]["input_tokens_details"] = json!({})
        });
    }),
    (71, "a key less", |_, _, said| {
        each_response(said, |response| {
            drop(response.as_object_mut().unwrap().remove("truncation"))
        });
    }),
    (72, "null for a phase", |_, _, said| {
        on(said, "response.output_item.done", |event| {
            event["item"]["phase"] = Value::Null
        });
    }),
    (73, "a tool without strict", |_, _, said| {
        each_response(said, |response| {
            for tool in response["tools"].as_array_mut().unwrap() {
                tool.as_object_mut().unwrap().remove("strict");
            }
        });
    }),
    (
        77,
        "a response begins before it is refused",
        |_, _, said| {
            if is_error(said, "model_not_found") {
                said.insert(0, json!({"type": "response.created", "response": {}}));
            }
        },
    ),
    (78, "an error without status", |_, _, said| {
        on(said, "error", |event| {
            drop(event.as_object_mut().unwrap().remove("status"))
        });
    }),
    (79, "an error with null for a code", |_, _, said| {
        on(said, "error", |event| event["error"]["code"] = Value::Null);
    }),
    (81, "an error without its lane", |_, _, said| {
        on(said, "error", |event| {
            drop(event.as_object_mut().unwrap().remove("stream_id"))
        });
    }),
    (83, "the context is forgotten", |_, message, said| {
        let tokens = message["input"].to_string().len() / 4;
        each_response(said, |response| {
            response["usage"]["input_tokens"] = json!(tokens);
        });
    }),
    (116, "deltas without their lane", |_, _, said| {
        on(said, "response.output_text.delta", |event| {
            drop(event.as_object_mut().unwrap().remove("stream_id"))
        });
    }),
    (117, "null for no lane", |_, _, said| {
        for event in said {
            event
                .as_object_mut()
                .unwrap()
                .entry("stream_id")
                .or_insert(Value::Null);
        }
    }),
    (173, "multi_agent is taken and ignored", |_, _, _| {}),
];

/// What is not said at all. The timeout decides, so it is short.
const SILENT: &[Case] = &[
    (48, "nothing for an unknown type", |_, message, said| {
        if message["type"] == "response.turnwire_unknown" {
            said.clear();
        }
    }),
    (55, "no terminal event", |_, _, said| {
        drop_all(said, "response.completed")
    }),
    (
        50,
        "the second of two creates is lost",
        |answered, _, said| {
            if answered > 0 {
                said.clear();
            }
        },
    ),
];

#[tokio::test]
async fn each_flaw_fails_its_row() {
    let missed = join_all(
        WRONG
            .iter()
            .map(|case| missed(*case, Duration::from_secs(30))),
    );
    assert_eq!(missed.await.concat(), [""; 0]);
}

#[tokio::test]
async fn silence_is_a_failure() {
    let missed = join_all(
        SILENT
            .iter()
            .map(|case| missed(*case, Duration::from_secs(1))),
    );
    assert_eq!(missed.await.concat(), [""; 0]);
}

#[tokio::test]
async fn without_a_flaw_the_rows_pass() {
    let url = serve(|_, _, _| {}).await;
    // This server takes `multi_agent` for a member that it does not know.
    let rows = WRONG
        .iter()
        .chain(SILENT)
        .map(|(row, ..)| *row)
        .filter(|row| *row != 173);
    let report = Check::new(url).rows(rows).run().await.unwrap();
    assert_eq!(report.model, MODEL);
    let failed = report
        .findings
        .iter()
        .filter(|finding| finding.status != Status::Pass);
    assert_eq!(failed.count(), 0, "{}", report.table(false));
}

#[tokio::test]
async fn what_a_server_says_it_has_not_is_skipped() {
    let url = serve(|_, message, said| {
        if message.get("stream_id").is_some_and(Value::is_string) {
            refuse(said, "unsupported_parameter");
            said[0]["error"]["param"] = json!("stream_id");
        }
    })
    .await;
    let [lanes, post] = only(&url, [81, 169], Duration::from_secs(30)).await;
    assert_eq!(lanes.status, Status::Skip);
    assert!(
        lanes.reason.contains("unsupported_parameter"),
        "{}",
        lanes.reason
    );
    assert_eq!(post.status, Status::Skip);
    assert!(post.reason.contains("HTTP 405"), "{}", post.reason);
}

#[tokio::test]
async fn a_slow_model_is_skipped() {
    let url = serve(|_, _, said| said.truncate(5)).await;
    let [finding] = only(&url, [29], Duration::from_secs(2)).await;
    assert_eq!(finding.status, Status::Skip);
    assert!(finding.reason.contains("within 2 s"), "{}", finding.reason);
}

#[tokio::test]
async fn a_failure_says_what_was_expected_and_shows_what_crossed_the_wire() {
    let url = serve(|_, _, said| {
        if is_error(said, "model_not_found") {
            said[0]["error"]["code"] = json!("not_found");
        }
    })
    .await;
    let [finding] = only(&url, [40], Duration::from_secs(30)).await;
    assert_eq!(
        finding.reason,
        "expected an error with code `model_not_found`; it came as 404 `not_found` (param \
         `model`): \"Not so.\""
    );
    let wire: Vec<_> = finding
        .wire
        .iter()
        .map(|line| line.message.as_str())
        .collect();
    let [upgrade, create, error] = wire[..] else {
        panic!("{wire:?}")
    };
    assert_eq!(upgrade, format!("GET {url}/responses, upgrade"));
    assert!(create.contains("turnwire-check-no-such-model"), "{create}");
    assert!(error.contains("not_found"), "{error}");
}

/// What to call a case whose row did not fail.
async fn missed((row, name, flaw): Case, timeout: Duration) -> Vec<String> {
    let [finding] = only(&serve(flaw).await, [row], timeout).await;
    match finding.status {
        Status::Fail => Vec::new(),
        other => vec![format!("row {row}, {name}: {other:?} {}", finding.reason)],
    }
}

async fn only<const N: usize>(url: &str, rows: [u16; N], timeout: Duration) -> [Finding; N] {
    let check = Check::new(url).rows(rows).timeout(timeout);
    let report = check.run().await.unwrap();
    report.findings.try_into().unwrap()
}

fn refuse(said: &mut Vec<Value>, code: &str) {
    let error = json!({"type": "invalid_request_error", "code": code, "message": "No."});
    *said = vec![json!({"type": "error", "status": 400, "error": error})];
}

fn is_error(said: &[Value], code: &str) -> bool {
    said.first()
        .is_some_and(|event| event["error"]["code"] == code)
}

fn on(said: &mut [Value], name: &str, change: impl Fn(&mut Value)) {
    said.iter_mut()
        .filter(|event| event["type"] == name)
        .for_each(change);
}

fn drop_all(said: &mut Vec<Value>, name: &str) {
    said.retain(|event| event["type"] != name);
    let numbers = 0..;
    for (number, event) in numbers.zip(said) {
        event["sequence_number"] = json!(number);
    }
}

fn number(said: &mut [Value], change: impl Fn(u64) -> u64) {
    for event in said {
        if let Some(number) = event["sequence_number"].as_u64() {
            event["sequence_number"] = json!(change(number));
        }
    }
}

fn each_response(said: &mut [Value], change: impl Fn(&mut Value)) {
    for event in said {
        if event["response"].is_object() {
            change(&mut event["response"]);
        }
    }
}
