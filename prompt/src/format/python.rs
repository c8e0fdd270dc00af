//! What chat templates take for granted from Python: `json.dumps` and `strftime`.
//!
//! Models were trained on prompts that Python rendered, so a comma without a blank behind it
//! already is another prompt.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::marks::is_mark;

/// The `tojson` filter: `json.dumps(value, ensure_ascii=False)` unless told otherwise.
///
/// Unlike Jinja's own filter it does not escape for HTML, as chat templates expect it.
#[expect(
    clippy::needless_pass_by_value,
    reason = "what a filter of minijinja has to look like"
)]
pub(super) fn tojson(
    value: &Value,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let ensure_ascii = options
        .get::<Option<bool>>("ensure_ascii")?
        .unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let separators = options.get::<Option<Value>>("separators")?;
    options.assert_all_used()?;

    let indent = match indent {
        None => None,
        Some(indent) if indent.is_none() || indent.is_undefined() => None,
        Some(indent) => match indent.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(" ".repeat(usize::try_from(indent)?.min(16))),
        },
    };
    let (item, key) = match separators.filter(|pair| !pair.is_none()) {
        Some(pair) => (
            pair.get_item_by_index(0)?.to_string(),
            pair.get_item_by_index(1)?.to_string(),
        ),
        // Python drops the blank behind a comma that ends a line.
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let mut writer = JsonWriter {
        out: String::new(),
        indent,
        item,
        key,
        ensure_ascii,
        sort_keys,
    };
    writer.write(value, 0)?;
    Ok(writer.out)
}

/// `json.dumps(value, ensure_ascii=False)`.
pub(super) fn dumps(value: &Value) -> Result<String, Error> {
    let mut writer = JsonWriter {
        out: String::new(),
        indent: None,
        item: ", ".to_owned(),
        key: ": ".to_owned(),
        ensure_ascii: false,
        sort_keys: false,
    };
    writer.write(value, 0)?;
    Ok(writer.out)
}

struct JsonWriter {
    out: String,
    indent: Option<String>,
    item: String,
    key: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl JsonWriter {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self
                .out
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.sequence(['[', ']'], items, depth, |writer, item| {
                    writer.write(&item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.sequence(['{', '}'], keys, depth, |writer, key| {
                    match key.as_str() {
                        Some(text) => writer.string(text),
                        None => writer.string(&key.to_string()),
                    }
                    writer.out.push_str(&writer.key.clone());
                    writer.write(&value.get_item(&key)?, depth + 1)
                })?;
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::BadSerialization,
                    "tojson: not a JSON value",
                ));
            }
        }
        Ok(())
    }

    fn sequence(
        &mut self,
        brackets: [char; 2],
        members: Vec<Value>,
        depth: usize,
        mut member: impl FnMut(&mut Self, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(brackets[0]);
        let empty = members.is_empty();
        for (i, value) in members.into_iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.new_line(depth + 1);
            member(self, value)?;
        }
        if !empty {
            self.new_line(depth);
        }
        self.out.push(brackets[1]);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn number(&mut self, value: &Value) {
        if value.is_integer() {
            let _ = write!(self.out, "{value}");
            return;
        }
        let Ok(number) = f64::try_from(value.clone()) else {
            let _ = write!(self.out, "{value}");
            return;
        };
        // Both print the shortest digits and change to exponents at the same sizes; Python
        // writes the exponent with a sign and at least two digits.
        let text = format!("{number:?}");
        match text.split_once('e') {
            Some((digits, exponent)) => {
                let (sign, exponent) = match exponent.strip_prefix('-') {
                    Some(exponent) => ('-', exponent),
                    None => ('+', exponent),
                };
                let digits = digits.strip_suffix(".0").unwrap_or(digits);
                let _ = write!(self.out, "{digits}e{sign}{exponent:0>2}");
            }
            None => self.out.push_str(&text),
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20 => {
                    let _ = write!(self.out, "\\u{:04x}", c as u32);
                }
                c if self.ensure_ascii && !c.is_ascii() && !is_mark(c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A day of the proleptic Gregorian calendar, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    year: i64,
    month: u8,
    day: u8,
    /// 0 is Sunday.
    weekday: u8,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

impl Date {
    /// `days` since 1970-01-01.
    pub(super) fn from_unix_days(days: i64) -> Self {
        // Years that start in March put the leap day last, so that months have fixed offsets.
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: month as u8,
            day: day as u8,
            weekday: (days + 4).rem_euclid(7) as u8,
        }
    }

    /// The time of day is midnight: prompts must not change from one second to the next.
    pub(super) fn strftime(self, format: &str) -> String {
        let month = MONTHS[usize::from(self.month) - 1];
        let weekday = WEEKDAYS[usize::from(self.weekday)];
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = chars.next();
            let padded = directive != Some('-');
            if !padded {
                directive = chars.next();
            }
            let mut two = |number: i64| {
                let _ = if padded {
                    write!(out, "{number:02}")
                } else {
                    write!(out, "{number}")
                };
            };
            match directive {
                Some('d') => two(i64::from(self.day)),
                Some('m') => two(i64::from(self.month)),
                Some('y') => two(self.year.rem_euclid(100)),
                Some('H' | 'M' | 'S') => two(0),
                Some('I') => two(12),
                Some('p') => out.push_str("AM"),
                Some('Y') => out.push_str(&self.year.to_string()),
                Some('B') => out.push_str(month),
                Some('b' | 'h') => out.push_str(&month[..3]),
                Some('A') => out.push_str(weekday),
                Some('a') => out.push_str(&weekday[..3]),
                Some('Z') => out.push_str("UTC"),
                Some('z') => out.push_str("+0000"),
                Some('F') => out.push_str(&self.strftime("%Y-%m-%d")),
                Some('T') => out.push_str("00:00:00"),
                Some('%') => out.push('%'),
                Some(other) => {
                    out.push('%');
                    out.push(other);
                }
                None => out.push('%'),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;

    use super::*;

    fn render(expression: &str, json: &str) -> String {
        let mut environment = Environment::new();
        environment.add_filter("tojson", tojson);
        let value: Value = serde_json::from_str(json).unwrap();
        environment
            .render_str(expression, minijinja::context! { v => value })
            .unwrap()
    }

    #[test]
    fn json_comes_out_as_python_dumps_it() {
        let json = r#"{"z":[1,-2.5,1e22,0.00001,1.0,12345678901234567890],"a":{},"e":[],"t":"<é\"\n'&\u0001>","n":null,"b":true}"#;
        assert_eq!(
            render("{{ v | tojson }}", json),
            r#"{"z": [1, -2.5, 1e+22, 1e-05, 1.0, 12345678901234567890], "a": {}, "e": [], "t": "<é\"\n'&\u0001>", "n": null, "b": true}"#
        );
        assert_eq!(
            render(
                "{{ v | tojson(ensure_ascii=true, separators=(',', ':')) }}",
                r#"["é😀"]"#
            ),
            r#"["\u00e9\ud83d\ude00"]"#
        );
        assert_eq!(
            render("{{ v | tojson(indent=2) }}", r#"{"a":[1],"b":{}}"#),
            "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}"
        );
        assert_eq!(
            render("{{ v | tojson(sort_keys=true) }}", r#"{"b":1,"a":2}"#),
            r#"{"a": 2, "b": 1}"#
        );
    }

    #[test]
    fn days_become_dates() {
        let date = |days| Date::from_unix_days(days).strftime("%a %d %b %Y, %-d/%-m/%y %B %A %%");
        assert_eq!(date(0), "Thu 01 Jan 1970, 1/1/70 January Thursday %");
        assert_eq!(date(19_782), "Thu 29 Feb 2024, 29/2/24 February Thursday %");
        assert_eq!(date(20_781), "Tue 24 Nov 2026, 24/11/26 November Tuesday %");
    }
}
