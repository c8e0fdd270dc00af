//! Agent: a tool-call loop of fixed shape, and what it would send on each turn.

use serde_json::{Value, json};

/// What an agent does.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) model: String,
    pub(crate) turns: usize,
    /// Bytes of the first message.
    pub(crate) start_bytes: usize,
    /// Bytes of each tool's output.
    pub(crate) output_bytes: usize,
    pub(crate) max_output_tokens: u32,
}

/// One run of the loop: it knows everything said so far, as an agent does.
#[derive(Debug)]
pub(crate) struct Agent<'a> {
    shape: &'a Shape,
    /// Everything, as an agent without server state has to send it.
    history: Vec<Value>,
    /// Where in `history` the items begin that the server has not seen.
    seen: usize,
    previous: Option<String>,
    turn: usize,
}

/// How much of the history a request carries, and where the server keeps the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    /// All of it, each time.
    Full,
    /// What is new; the server has stored the rest.
    Stored,
    /// What is new; the connection holds the rest.
    Held,
}

/// What a server said of a finished turn.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turn {
    pub(crate) input_tokens: u64,
    pub(crate) cached_tokens: u64,
}

impl<'a> Agent<'a> {
    pub(crate) fn new(shape: &'a Shape) -> Self {
        let text = prose(shape.start_bytes, 0);
        Self {
            shape,
            history: vec![json!({"type": "message", "role": "user", "content": text})],
            seen: 0,
            previous: None,
            turn: 0,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.turn == self.shape.turns
    }

    /// The members of the next request that all transports share.
    pub(crate) fn request(&self, context: Context) -> Value {
        let input = match context {
            Context::Full => &self.history[..],
            Context::Stored | Context::Held => &self.history[self.seen..],
        };
        let mut request = json!({
            "model": self.shape.model,
            "instructions": "You are an agent that reads files until it knows enough.",
            "tools": [{
                "type": "function",
                "name": "read_file",
                "description": "Reads a part of a file.",
                "strict": false,
                "parameters": {
                    "type": "object",
                    "properties": {
                        "path": {"type": "string", "enum": ["src/main.rs", "src/lib.rs", "README.md"]},
                        "line": {"type": "integer", "minimum": 1, "maximum": 999},
                    },
                    "required": ["path", "line"],
                    "additionalProperties": false,
                },
            }],
            "tool_choice": "required",
            "parallel_tool_calls": false,
            "temperature": 0,
            "max_output_tokens": self.shape.max_output_tokens,
            "store": context == Context::Stored,
            "input": input,
        });
        if let (Context::Stored | Context::Held, Some(previous)) = (context, &self.previous) {
            request["previous_response_id"] = json!(previous);
        }
        request
    }

    /// Takes a finished response in, and runs the tools it calls.
    pub(crate) fn take(&mut self, response: &Value) -> anyhow::Result<Turn> {
        let status = response["status"].as_str().unwrap_or_default();
        anyhow::ensure!(
            status == "completed",
            "turn {} ended {status:?}",
            self.turn + 1
        );
        self.turn += 1;
        self.previous = response["id"].as_str().map(str::to_owned);
        let output = response["output"].as_array().cloned().unwrap_or_default();
        let calls: Vec<Value> = output
            .iter()
            .filter(|item| item["type"] == "function_call")
            .map(|item| item["call_id"].clone())
            .collect();
        self.history.extend(output);
        self.seen = self.history.len();
        let text = prose(self.shape.output_bytes, self.turn);
        if calls.is_empty() {
            self.history
                .push(json!({"type": "message", "role": "user", "content": text}));
        }
        for call_id in calls {
            self.history
                .push(json!({"type": "function_call_output", "call_id": call_id, "output": &text}));
        }
        let usage = &response["usage"];
        Ok(Turn {
            input_tokens: usage["input_tokens"].as_u64().unwrap_or(0),
            cached_tokens: usage["input_tokens_details"]["cached_tokens"]
                .as_u64()
                .unwrap_or(0),
        })
    }
}

/// Text of about this many bytes, different for each `seed`, that tokenises like source code.
fn prose(bytes: usize, seed: usize) -> String {
    let mut text = String::with_capacity(bytes + 80);
    let mut line = seed * 1_000;
    while text.len() < bytes {
        line += 1;
        let value = line * 7_919 % 1_000;
        text.push_str(&format!(
            "{line}: let total_{value} = total + items[{value}].price * rate;\n"
        ));
    }
    text.truncate(bytes);
    text
}
