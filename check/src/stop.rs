//! Stop: why a conversation does not go on.

use turnwire_client::Error;

use crate::transcript::shortened;

/// Bytes of a reason.
pub(crate) const SENTENCE_BYTES: usize = 500;

/// Ends a conversation, and decides the rules that it has not decided yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The server broke a rule: what was expected and what came, in one sentence.
    Fail(String),
    /// The rule cannot be judged here: why.
    Skip(String),
}

pub(crate) type Held = Result<(), Stop>;

/// Ends the conversation with a failure unless the first argument is true. The rest is the
/// sentence that says what was expected and what came.
macro_rules! ensure {
    ($holds:expr, $($sentence:tt)+) => {
        if !$holds {
            return Err($crate::stop::Stop::Fail(format!($($sentence)+)));
        }
    };
}

/// Ends the conversation with a failure.
macro_rules! fail {
    ($($sentence:tt)+) => {
        return Err($crate::stop::Stop::Fail(format!($($sentence)+)))
    };
}

/// Ends the conversation without a verdict.
macro_rules! skip {
    ($($reason:tt)+) => {
        return Err($crate::stop::Stop::Skip(format!($($reason)+)))
    };
}

pub(crate) use {ensure, fail, skip};

impl Stop {
    /// The same with a sentence that fits a table, even where it quotes a server.
    pub(crate) fn shortened(self) -> Self {
        match self {
            Self::Fail(sentence) => Self::Fail(shortened(&sentence, SENTENCE_BYTES)),
            Self::Skip(reason) => Self::Skip(shortened(&reason, SENTENCE_BYTES)),
        }
    }
}

/// A connection that breaks is the server's doing unless a row expects it.
impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Fail(error.to_string())
    }
}
