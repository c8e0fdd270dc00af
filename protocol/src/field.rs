//! Field: one member of a client message, with its path, for typed reading.
//!
//! Members are first taken as raw JSON and then read one by one, so that a wrong type or a
//! number out of range can name the member at fault. `null` counts as absent everywhere.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::failure::{Failure, Shown};

/// Where a member stands, such as `tools[3].name`. Written out only when something is wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Path<'p> {
    Name(&'p str),
    Member(&'p Self, &'p str),
    Index(&'p Self, usize),
}

/// A member that is present and not null.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a, 'p> {
    pub(crate) raw: &'a RawValue,
    pub(crate) path: Path<'p>,
}

/// Declares a struct of raw members, none for what is absent. A JSON name that is not a Rust
/// identifier stands behind `=`.
macro_rules! members {
    ($name:ident { $($member:ident $(= $json:literal)?),* $(,)? }) => {
        #[derive(Debug, Default, serde::Deserialize)]
        pub(crate) struct $name<'a> {
            $(
                #[serde(
                    borrow,
                    default,
                    deserialize_with = "crate::field::present"
                    $(, rename = $json)?
                )]
                pub(crate) $member: Option<&'a serde_json::value::RawValue>,
            )*
        }
    };
}
pub(crate) use members;

/// Reads a member that is there. Unlike serde's `Option`, keeps a null apart from an absence.
pub(crate) fn present<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl<'a, 'p> Field<'a, 'p> {
    /// The top-level member `name`, unless it is absent or null.
    pub(crate) fn named(name: &'p str, raw: Option<&'a RawValue>) -> Option<Self> {
        let path = Path::Name(name);
        let raw = raw.filter(|raw| raw.get() != "null")?;
        Some(Self { raw, path })
    }

    /// The member `name` of the object at `parent`, unless it is absent or null.
    pub(crate) fn member(
        parent: &'p Path<'p>,
        name: &'p str,
        raw: Option<&'a RawValue>,
    ) -> Option<Self> {
        let path = Path::Member(parent, name);
        let raw = raw.filter(|raw| raw.get() != "null")?;
        Some(Self { raw, path })
    }

    /// Reads the top-level member `name`, unless it is absent or null.
    pub(crate) fn optional<T>(
        name: &'p str,
        raw: Option<&'a RawValue>,
        read: impl FnOnce(Self) -> Result<T, Failure>,
    ) -> Result<Option<T>, Failure> {
        Self::named(name, raw).map(read).transpose()
    }

    /// The top-level member `name`, which must be there.
    pub(crate) fn required(name: &'p str, raw: Option<&'a RawValue>) -> Result<Self, Failure> {
        Self::named(name, raw).ok_or_else(|| Failure::missing_required_parameter(name))
    }

    /// The member `name` of the object at `parent`, which must be there.
    pub(crate) fn required_member(
        parent: &'p Path<'p>,
        name: &'p str,
        raw: Option<&'a RawValue>,
    ) -> Result<Self, Failure> {
        Self::member(parent, name, raw)
            .ok_or_else(|| Failure::missing_required_parameter(Path::Member(parent, name)))
    }

    /// Its JSON text, without white space around it.
    pub(crate) fn text(self) -> &'a str {
        self.raw.get()
    }

    pub(crate) fn string(self) -> Result<Cow<'a, str>, Failure> {
        let Some(inside) = self.quoted() else {
            return Err(self.expected("a string"));
        };
        if !inside.contains('\\') {
            return Ok(Cow::Borrowed(inside));
        }
        // The text is valid JSON, so only an escaped half of a surrogate pair can be wrong.
        serde_json::from_str::<String>(self.text())
            .map(Cow::Owned)
            .map_err(|_| Failure::invalid_value(self.path, "it has an unpaired surrogate"))
    }

    /// A string of at most `max` characters.
    pub(crate) fn string_up_to(self, max: usize) -> Result<Cow<'a, str>, Failure> {
        let text = self.string()?;
        if text.len() > max && text.chars().count() > max {
            return Err(Failure::string_above_max_length(self.path, max));
        }
        Ok(text)
    }

    /// One of a fixed set of strings.
    pub(crate) fn one_of(self, allowed: &[&'static str]) -> Result<&'static str, Failure> {
        let text = self.string()?;
        match allowed.iter().find(|&&value| value == text) {
            Some(value) => Ok(value),
            None => {
                let problem = format!("it must be one of {}", allowed.join(", "));
                Err(Failure::invalid_value(self.path, problem))
            }
        }
    }

    pub(crate) fn boolean(self) -> Result<bool, Failure> {
        match self.text() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(self.expected("a boolean")),
        }
    }

    pub(crate) fn integer<T>(self, min: T, max: T) -> Result<T, Failure>
    where
        T: Into<i64> + TryFrom<i64>,
    {
        let (min, max) = (min.into(), max.into());
        let text = self.text();
        if !self.is_number() || text.contains(['.', 'e', 'E']) {
            return Err(self.expected("an integer"));
        }
        // What does not even fit 64 bits is beyond the limit on the side of its sign.
        let beyond = if text.starts_with('-') {
            i64::MIN
        } else {
            i64::MAX
        };
        let value = text.parse().unwrap_or(beyond);
        if value < min {
            return Err(Failure::integer_below_min_value(self.path, min));
        }
        match T::try_from(value) {
            Ok(number) if value <= max => Ok(number),
            _ => Err(Failure::integer_above_max_value(self.path, max)),
        }
    }

    pub(crate) fn decimal(self, min: f64, max: f64) -> Result<f64, Failure> {
        // Rust reads every JSON number; one that is too large becomes infinite.
        let value = match self.text().parse::<f64>() {
            Ok(value) if self.is_number() => value,
            _ => return Err(self.expected("a number")),
        };
        if value < min {
            return Err(Failure::decimal_below_min_value(self.path, min));
        }
        if value > max {
            return Err(Failure::decimal_above_max_value(self.path, max));
        }
        Ok(value)
    }

    /// The members of an object.
    pub(crate) fn object<T: Deserialize<'a>>(self) -> Result<T, Failure> {
        if !self.text().starts_with('{') {
            return Err(self.expected("an object"));
        }
        // Only a member that comes twice is left to go wrong.
        serde_json::from_str(self.text())
            .map_err(|error| Failure::invalid_value(self.path, without_position(&error)))
    }

    pub(crate) fn array(self) -> Result<Vec<&'a RawValue>, Failure> {
        if !self.text().starts_with('[') {
            return Err(self.expected("an array"));
        }
        serde_json::from_str(self.text())
            .map_err(|error| Failure::invalid_value(self.path, without_position(&error)))
    }

    /// The inside of a string's quotes, escapes and all.
    pub(crate) fn quoted(self) -> Option<&'a str> {
        self.text().strip_prefix('"')?.strip_suffix('"')
    }

    /// The failure of a member that is of another type than it should be.
    pub(crate) fn expected(self, expected: &str) -> Failure {
        let found = match self.text().as_bytes().first() {
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            Some(b'"') => "a string",
            Some(b't' | b'f') => "a boolean",
            Some(b'n') => "null",
            _ if self.text().contains(['.', 'e', 'E']) => "a decimal",
            _ => "an integer",
        };
        Failure::invalid_type(self.path, expected, found)
    }

    fn is_number(self) -> bool {
        matches!(self.text().as_bytes().first(), Some(b'-' | b'0'..=b'9'))
    }
}

/// The message of a JSON error. Line and column would be those of a slice.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{}", Shown(name)),
            Self::Member(parent, name) => write!(f, "{parent}.{}", Shown(name)),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}
