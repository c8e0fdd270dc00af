//! Context: whether a response was made with what was said before.
//!
//! Two things can be seen of that. `input_tokens` counts the whole prompt, if the server counts
//! truly; and a model that is able to can repeat a code word. A server is only failed where its
//! own count says that the context was not there, and the code word did not come either.

use serde_json::{Value, json};

use crate::case::Case;
use crate::event::Turn;
use crate::stop::{Held, Stop, fail, skip};

/// Something to remember, which is also long enough to be seen in a count of tokens.
pub(crate) const SECRET: &str = "The code word is PELICAN. Remember it well, because I will ask \
    for it later. It was found on a sheet of paper in the drawer of an old desk, together with a \
    photograph of a harbour, two keys on a ring and a ticket for a ferry that sails no more.";

/// Asks for the code word.
pub(crate) const QUESTION: &str = "What is the code word?";

const WORD: &str = "PELICAN";

/// What the count of tokens must at least grow by where [`SECRET`] is in the context. It has more
/// than fifty words; a chat template adds less than this to a message.
const SECRET_TOKENS: u64 = 30;

/// Whether [`SECRET`] was in the context of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Yes,
    No,
    /// The server does not count, and the model did not say it.
    Unknown,
}

/// Judges a turn that was asked [`QUESTION`]. `without` is what its prompt would cost at most
/// without the secret: what [`bare_tokens`] gives, and the [`total`] of a parent.
fn seen(turn: &Turn, without: Option<u64>) -> Seen {
    if says_word(turn) {
        return Seen::Yes;
    }
    match (turn.input_tokens(), without) {
        (Some(tokens), Some(without)) if tokens >= without + SECRET_TOKENS => Seen::Yes,
        (Some(_), Some(_)) => Seen::No,
        _ => Seen::Unknown,
    }
}

/// Whether the model repeated the code word.
pub(crate) fn says_word(turn: &Turn) -> bool {
    turn.text().to_uppercase().contains(WORD)
}

/// What the prompt of [`QUESTION`] alone costs, if the server counts: a longer prompt must cost
/// more.
pub(crate) async fn bare_tokens(case: &Case) -> Result<Option<u64>, Stop> {
    let mut socket = case.connect().await?;
    let bare = socket.turn(case.ask(QUESTION)).await?.input_tokens();
    let long = format!("{SECRET} {QUESTION}");
    let long = socket.turn(case.ask(&long)).await?.input_tokens();
    let counts = matches!((bare, long), (Some(bare), Some(long)) if long >= bare + SECRET_TOKENS);
    Ok(bare.filter(|_| counts))
}

/// Tokens of a turn's prompt and answer.
pub(crate) fn total(turn: &Turn) -> Option<u64> {
    let output = turn.response()["usage"]["output_tokens"].as_u64();
    turn.input_tokens()
        .zip(output)
        .map(|(input, output)| input + output)
}

/// The turn must have seen the secret.
pub(crate) fn expect_seen(turn: &Turn, without: Option<u64>, what: &str) -> Held {
    match seen(turn, without) {
        Seen::Yes => Ok(()),
        Seen::No => fail!(
            "expected {what} in the context; `input_tokens` is {}, and {} without it",
            json!(turn.input_tokens()),
            json!(without)
        ),
        Seen::Unknown => {
            skip!("the server does not count `input_tokens`, and the model did not repeat a word")
        }
    }
}

/// The turn must not have seen the secret.
pub(crate) fn expect_unseen(turn: &Turn, without: Option<u64>, what: &str) -> Held {
    match seen(turn, without) {
        Seen::Yes => fail!(
            "expected {what} not to be in the context; `input_tokens` is {}, and {} without it; \
             the model said {:?}",
            json!(turn.input_tokens()),
            json!(without),
            turn.text()
        ),
        Seen::No => Ok(()),
        Seen::Unknown => {
            skip!("the server does not count `input_tokens`, and the model did not repeat a word")
        }
    }
}

/// A user message.
pub(crate) fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}
