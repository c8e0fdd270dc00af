//! Grammars: those in use lately, compiled.
//!
//! The grammar of one tool takes about 2 ms to compile and that of a hundred 80 ms, while a copy
//! of what was compiled takes a tenth of one. An agent sends the same tools in every turn.

use std::collections::VecDeque;
use std::fmt;

use llguidance::Matcher;
use turnwire_prompt::grammar::Grammar;

/// Found by their very text, for the same reason as heads are: compared in full.
#[derive(Default)]
pub(crate) struct Grammars {
    /// None of the matchers has read anything yet. The most recently used stands first.
    entries: VecDeque<(Grammar, Matcher)>,
}

/// Grammars to remember.
const REMEMBERED: usize = 64;
/// Bytes of their text. Compiled they take about a hundred times as much memory.
const REMEMBERED_BYTES: usize = 1 << 20;

impl Grammars {
    /// A matcher at the beginning of this grammar, if it was compiled before.
    pub(crate) fn get(&mut self, grammar: &Grammar) -> Option<Matcher> {
        let at = self.entries.iter().position(|(text, _)| text == grammar)?;
        let entry = self
            .entries
            .remove(at)
            .expect("a position that was just found");
        // A deep copy: what a matcher learns while it reads is limited, and each turn has all of
        // the limit.
        let matcher = entry.1.deep_clone();
        self.entries.push_front(entry);
        Some(matcher)
    }

    /// Remembers a matcher that has read nothing yet, unless its grammar is too large.
    pub(crate) fn insert(&mut self, grammar: Grammar, matcher: &Matcher) {
        if size(&grammar) > REMEMBERED_BYTES || self.entries.iter().any(|(g, _)| *g == grammar) {
            return;
        }
        self.entries.push_front((grammar, matcher.deep_clone()));
        while self.entries.len() > REMEMBERED || self.bytes() > REMEMBERED_BYTES {
            self.entries.pop_back();
        }
    }

    fn bytes(&self) -> usize {
        self.entries.iter().map(|(grammar, _)| size(grammar)).sum()
    }
}

fn size(grammar: &Grammar) -> usize {
    let nested = grammar.nested.iter().map(|nested| nested.lark.len());
    grammar.lark.len() + nested.sum::<usize>()
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grammars({})", self.entries.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grammar(text: &str) -> Grammar {
        Grammar {
            lark: text.to_owned(),
            nested: Vec::new(),
        }
    }

    /// A matcher that matches nothing, which is all that is needed to be remembered.
    fn matcher() -> Matcher {
        Matcher::new(Err(std::io::Error::other("a stand-in").into()))
    }

    #[test]
    fn the_least_recently_used_is_forgotten_and_the_too_large_never_learnt() {
        let mut grammars = Grammars::default();
        for i in 0..REMEMBERED {
            grammars.insert(grammar(&i.to_string()), &matcher());
        }
        assert!(grammars.get(&grammar("0")).is_some());
        grammars.insert(grammar("one more"), &matcher());
        assert!(grammars.get(&grammar("0")).is_some());
        assert!(grammars.get(&grammar("1")).is_none());

        let half = "x".repeat(REMEMBERED_BYTES / 2);
        grammars.insert(grammar(&half), &matcher());
        assert_eq!(grammars.entries.len(), REMEMBERED);
        grammars.insert(grammar(&format!("{half}y")), &matcher());
        assert_eq!(grammars.entries.len(), 1);
        grammars.insert(grammar(&half.repeat(3)), &matcher());
        assert_eq!(grammars.entries.len(), 1);
    }
}
