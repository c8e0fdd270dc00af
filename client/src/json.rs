//! Json: a value as the text it is, so that nothing a server or a caller says is changed on its
//! way: not the order of members, not the form of numbers.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

/// A JSON value. A clone is a pointer.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json(Arc<RawValue>);

impl Json {
    /// Serialises anything. It fails only for what JSON cannot hold, such as a map whose keys are
    /// no strings.
    pub fn of(value: &impl Serialize) -> serde_json::Result<Self> {
        Ok(Self(to_raw_value(value)?.into()))
    }

    /// Takes text as it is, if it is JSON.
    pub fn parse(text: impl Into<String>) -> serde_json::Result<Self> {
        Ok(Self(RawValue::from_string(text.into())?.into()))
    }

    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    pub fn to<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(self.as_str())
    }

    /// The string that this member of an object holds, if this is an object and it holds one.
    pub fn string(&self, member: &str) -> Option<String> {
        let mut members: HashMap<String, &RawValue> = serde_json::from_str(self.as_str()).ok()?;
        serde_json::from_str(members.remove(member)?.get()).ok()
    }
}

impl From<serde_json::Value> for Json {
    fn from(value: serde_json::Value) -> Self {
        Self::of(&value).expect("a Value is JSON")
    }
}

impl From<&str> for Json {
    fn from(value: &str) -> Self {
        Self::of(&value).expect("a string is JSON")
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self::of(&value).expect("a bool is JSON")
    }
}

impl From<u64> for Json {
    fn from(value: u64) -> Self {
        Self::of(&value).expect("an integer is JSON")
    }
}

impl From<Vec<Self>> for Json {
    fn from(values: Vec<Self>) -> Self {
        Self::of(&values).expect("a list of JSON is JSON")
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq for Json {
    /// Whether the texts are the same. `{}` and `{ }` are not.
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Json {}
