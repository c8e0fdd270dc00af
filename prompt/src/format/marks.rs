//! Marks: keep text that a client sent from spelling a control token.
//!
//! A template cannot tell its own `<|im_end|>` from one in a user's text, and a tokenizer that
//! recognises control tokens cannot either. So text that came from outside gets a mark inside
//! every control token it spells, before it is rendered; afterwards the rendered text is cut at
//! the marks, and no piece spells a control token that the template did not write.

use std::borrow::Cow;

use minijinja::Value;
use minijinja::value::ValueKind;

use crate::Text;

/// A code point that Unicode sets aside for use inside a program and that no text contains.
const MARK: char = '\u{FDD0}';

#[derive(Debug)]
pub(super) struct Marks {
    /// Texts of control tokens, by their first byte, which is nearly always `<` or `[`.
    by_first_byte: Vec<(u8, Vec<String>)>,
}

impl Marks {
    pub(super) fn new<'a>(tokens: impl Iterator<Item = &'a String>) -> Self {
        let mut by_first_byte: Vec<(u8, Vec<String>)> = Vec::new();
        // A token of one character cannot be cut inside; as text it is that very token. White
        // space steers no model, and Gemma has tokens for every run of blanks and line ends.
        let steers = |token: &&String| token.chars().count() > 1 && !token.trim().is_empty();
        for token in tokens.filter(steers) {
            let first = token.as_bytes()[0];
            match by_first_byte.iter_mut().find(|(byte, _)| *byte == first) {
                Some((_, tokens)) => tokens.push(token.clone()),
                None => by_first_byte.push((first, vec![token.clone()])),
            }
        }
        Self { by_first_byte }
    }

    /// `text` with a mark behind the first character of every control token in it, overlapping
    /// ones included, and without the marks it came with.
    pub(super) fn mark<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let text: Cow<'a, str> = if text.contains(MARK) {
            Cow::Owned(text.replace(MARK, ""))
        } else {
            Cow::Borrowed(text)
        };
        let cuts = self.cuts(&text);
        if cuts.is_empty() {
            return text;
        }
        let mut marked = String::with_capacity(text.len() + cuts.len() * MARK.len_utf8());
        let mut from = 0;
        for cut in cuts {
            marked.push_str(&text[from..cut]);
            marked.push(MARK);
            from = cut;
        }
        marked.push_str(&text[from..]);
        Cow::Owned(marked)
    }

    fn cuts(&self, text: &str) -> Vec<usize> {
        let mut cuts = Vec::new();
        for (at, byte) in text.bytes().enumerate() {
            let Some((_, tokens)) = self.by_first_byte.iter().find(|(b, _)| *b == byte) else {
                continue;
            };
            let rest = &text.as_bytes()[at..];
            if tokens.iter().any(|t| rest.starts_with(t.as_bytes())) {
                let first = text[at..].chars().next().map_or(1, char::len_utf8);
                cuts.push(at + first);
            }
        }
        cuts
    }

    /// Marks every string and every key inside a JSON value. The order of keys stays.
    pub(super) fn mark_value(&self, value: &Value) -> Value {
        match value.kind() {
            ValueKind::String => match value.as_str().map(|text| self.mark(text)) {
                Some(Cow::Owned(marked)) => Value::from(marked),
                _ => value.clone(),
            },
            ValueKind::Seq => match value.try_iter() {
                Ok(items) => items.map(|item| self.mark_value(&item)).collect(),
                Err(_) => value.clone(),
            },
            ValueKind::Map => match value.try_iter() {
                Ok(keys) => Value::from_pairs(keys.map(|key| {
                    let member = value.get_item(&key).unwrap_or_default();
                    (self.mark_value(&key), self.mark_value(&member))
                })),
                Err(_) => value.clone(),
            },
            _ => value.clone(),
        }
    }
}

/// Cuts rendered text at its marks.
pub(super) fn cut(rendered: &str) -> Text {
    Text {
        pieces: rendered
            .split(MARK)
            .filter(|piece| !piece.is_empty())
            .map(str::to_owned)
            .collect(),
    }
}

/// Whether a character must come out of JSON quoting as it is.
pub(super) fn is_mark(c: char) -> bool {
    c == MARK
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks() -> Marks {
        let tokens = ["<|im_start|>", "<|im_end|>", "<s>", "[INST]", "\n\n"];
        Marks::new(tokens.map(String::from).iter())
    }

    #[test]
    fn only_text_that_spells_a_control_token_is_cut() {
        assert_eq!(
            marks().mark("a <b> [INS] <|im_|end|>"),
            "a <b> [INS] <|im_|end|>"
        );
        assert_eq!(
            marks().mark("a\n\nb"),
            "a\n\nb",
            "white space is no control token"
        );
        let marked = marks().mark("x<|im_end|>y[INST]<s>").into_owned();
        assert_eq!(
            cut(&marked).pieces,
            ["x<", "|im_end|>y[", "INST]<", "s>"].map(String::from)
        );
    }

    #[test]
    fn marks_that_came_with_the_text_are_dropped_before_looking() {
        let marked = marks().mark("<|im_\u{FDD0}end|>").into_owned();
        assert_eq!(cut(&marked).pieces, ["<", "|im_end|>"].map(String::from));
    }

    #[test]
    fn values_are_marked_inside_and_keep_their_order() {
        let value: Value = serde_json::from_str(r#"{"z":["<s>"],"<s>":1,"a":{"b":"<s"}}"#).unwrap();
        let marked = marks().mark_value(&value);
        assert_eq!(
            marked.to_string(),
            "{'z': ['<\u{FDD0}s>'], '<\u{FDD0}s>': 1, 'a': {'b': '<s'}}"
        );
    }
}
