//! What a turn costs behind a context of many turns, for counting instructions.
//!
//! Makes a chain of the given number of turns, then plays [`MEASURED`] more in a function of
//! their own, which is all that is to be counted:
//!
//! ```text
//! cargo build -p turnwire-protocol --example turn_cost
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect='*measured_turns*' \
//!     target/debug/examples/turn_cost 10000
//! ```
//!
//! The count must not depend on the number of turns.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use turnwire_protocol::action::{Action, TurnKey};
use turnwire_protocol::engine::{EngineOutput, FinishReason, ItemStart, Usage};
use turnwire_protocol::id::{IdSource, ResponseId};
use turnwire_protocol::limits::Limits;
use turnwire_protocol::seal::Transparent;
use turnwire_protocol::session::{Now, Session, Transport};

/// Turns that are counted.
const MEASURED: usize = 100;

fn main() {
    let depth = std::env::args().nth(1).and_then(|depth| depth.parse().ok());
    let depth: usize = depth.expect("usage: turn_cost TURNS");
    let mut connection = Connection::open();
    for _ in 0..depth {
        connection.turn();
    }
    measured_turns(&mut connection);
    println!("{} turns, {} bytes sent", connection.turns, connection.sent);
}

#[inline(never)]
fn measured_turns(connection: &mut Connection) {
    for _ in 0..MEASURED {
        connection.turn();
    }
}

struct Counter(u128);

impl IdSource for Counter {
    fn mint(&mut self) -> u128 {
        self.0 += 1;
        self.0
    }
}

struct Connection {
    session: Session,
    now: Now,
    ids: Counter,
    parent: Option<ResponseId>,
    call_id: String,
    turns: u64,
    sent: usize,
}

impl Connection {
    fn open() -> Self {
        let now = Now {
            elapsed: Duration::ZERO,
            unix_seconds: 1_800_000_000,
        };
        Self {
            session: Session::new(
                Transport::WebSocket,
                Limits::default(),
                Arc::new(Transparent),
                None,
                now,
            ),
            now,
            // All ids have the same length, so the messages have, too.
            ids: Counter(1 << 120),
            parent: None,
            call_id: String::new(),
            turns: 0,
            sent: 0,
        }
    }

    /// One turn of an agent: the output of a tool comes, the model calls the tool again.
    fn turn(&mut self) {
        let new = match &self.parent {
            None => r#""input":"Work through the list.""#.to_owned(),
            Some(parent) => format!(
                r#""previous_response_id":"{parent}","input":[{{"type":"function_call_output","call_id":"{}","output":"36 and some more"}}]"#,
                self.call_id
            ),
        };
        let message = format!(
            r#"{{"type":"response.create","model":"m","store":false,"instructions":"Use the tool.","tools":[{{"type":"function","name":"multiply","description":"Multiply.","parameters":{{"type":"object","properties":{{"a":{{"type":"integer"}},"b":{{"type":"integer"}}}}}},"strict":true}}],{new}}}"#
        );
        self.session
            .handle_message(self.now, &mut self.ids, Bytes::from(message));
        let turn = self.carry_out().expect("a continuation starts at once");
        let delta = |text: &str| EngineOutput::ArgumentsDelta { text: text.into() };
        for output in [
            EngineOutput::Started,
            EngineOutput::ItemStarted(ItemStart::FunctionCall {
                tool: "multiply".into(),
            }),
            delta("{\"a\":"),
            delta("12,"),
            delta("\"b\":"),
            delta("3}"),
            EngineOutput::ItemDone,
            EngineOutput::Finished {
                reason: FinishReason::Stop,
                usage: Usage::default(),
                state: None,
            },
        ] {
            self.session
                .handle_output(self.now, &mut self.ids, turn, output);
            self.carry_out();
        }
        self.turns += 1;
    }

    /// Returns the turn whose engine is to start.
    fn carry_out(&mut self) -> Option<TurnKey> {
        let mut started = None;
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Send(event) => {
                    self.sent += event.json.len();
                    if event.name == "response.output_item.added" {
                        let json = String::from_utf8_lossy(&event.json);
                        let (_, id) = json.split_once("\"call_id\":\"").expect("it is a call");
                        self.call_id = id[..id.find('"').unwrap_or(0)].to_owned();
                    }
                }
                Action::Start { turn, request, .. } => {
                    self.parent = Some(request.id);
                    started = Some(turn);
                }
                Action::Ended { summary, .. } => assert_eq!(summary.outcome, "completed"),
                other => panic!("not expected: {other:?}"),
            }
        }
        started
    }
}
