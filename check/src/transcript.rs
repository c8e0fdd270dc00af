//! Transcript: the messages of one conversation, to be shown where it fails.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

/// Messages kept from the beginning of a conversation, and from its end.
const FIRST: usize = 12;
const LAST: usize = 28;
/// Bytes kept of a message, half of them from its end.
const MESSAGE_BYTES: usize = 600;

/// Who sent a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sender {
    Client,
    Server,
}

/// One message that crossed the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Since the conversation began.
    pub ms: u64,
    /// Which of the conversation's connections, counted from 1; 0 for an HTTP exchange.
    pub connection: usize,
    pub from: Sender,
    /// Shortened in the middle where it was long.
    pub message: String,
}

/// Shared by all connections of a conversation.
#[derive(Clone, Debug)]
pub(crate) struct Transcript(Arc<Mutex<Lines>>);

#[derive(Debug)]
struct Lines {
    began: Instant,
    first: Vec<Line>,
    last: VecDeque<Line>,
    /// How many stood between the two.
    left_out: usize,
    connections: usize,
}

impl Transcript {
    pub(crate) fn begin() -> Self {
        Self(Arc::new(Mutex::new(Lines {
            began: Instant::now(),
            first: Vec::new(),
            last: VecDeque::new(),
            left_out: 0,
            connections: 0,
        })))
    }

    /// The number of a new connection.
    pub(crate) fn connection(&self) -> usize {
        self.with(|lines| {
            lines.connections += 1;
            lines.connections
        })
    }

    pub(crate) fn note(&self, connection: usize, from: Sender, message: impl AsRef<str>) {
        self.with(|lines| {
            let line = Line {
                ms: u64::try_from(lines.began.elapsed().as_millis()).unwrap_or(u64::MAX),
                connection,
                from,
                message: shortened(message.as_ref(), MESSAGE_BYTES),
            };
            if lines.first.len() < FIRST {
                lines.first.push(line);
                return;
            }
            if lines.last.len() == LAST {
                lines.last.pop_front();
                lines.left_out += 1;
            }
            lines.last.push_back(line);
        });
    }

    /// The messages up to now.
    pub(crate) fn lines(&self) -> Vec<Line> {
        self.with(|lines| {
            let mut all = lines.first.clone();
            if let Some(next) = lines.last.front().filter(|_| lines.left_out > 0) {
                all.push(Line {
                    message: format!("[{} messages left out]", lines.left_out),
                    ..next.clone()
                });
            }
            all.extend(lines.last.iter().cloned());
            all
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Lines) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = match self.from {
            Sender::Client => '>',
            Sender::Server => '<',
        };
        let Self {
            ms,
            connection,
            message,
            ..
        } = self;
        match connection {
            0 => write!(f, "{ms:>6} ms  http {arrow} {message}"),
            _ => write!(f, "{ms:>6} ms  #{connection:<3} {arrow} {message}"),
        }
    }
}

/// The message, or its two ends: about `bytes` of it.
pub(crate) fn shortened(message: &str, bytes: usize) -> String {
    if message.len() <= bytes {
        return message.to_owned();
    }
    let cut = |at: usize| (0..=at).rev().find(|at| message.is_char_boundary(*at));
    let head = cut(bytes / 2).unwrap_or(0);
    let tail = cut(message.len() - bytes / 2).unwrap_or(message.len());
    format!(
        "{} [{} bytes left out] {}",
        &message[..head],
        tail - head,
        &message[tail..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_long_conversation_and_of_a_long_message_are_kept() {
        let transcript = Transcript::begin();
        for number in 0..100 {
            transcript.note(1, Sender::Server, format!("{number}"));
        }
        let lines = transcript.lines();
        let said: Vec<_> = lines.iter().map(|line| line.message.as_str()).collect();
        assert_eq!(said.len(), FIRST + 1 + LAST);
        assert_eq!((said[0], said[11]), ("0", "11"));
        assert_eq!((said[12], said[13]), ("[60 messages left out]", "72"));
        assert_eq!(said.last(), Some(&"99"));

        let long = format!("a{}z", "ä".repeat(5000));
        let short = shortened(&long, MESSAGE_BYTES);
        assert!(short.starts_with("aä") && short.ends_with("äz"), "{short}");
        assert!(short.len() < 700, "{}", short.len());
    }
}
