//! Event: one thing a server says, still as the JSON it came in.

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::failure::Failure;
use crate::json::Json;

/// One server event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its `type`.
    pub name: String,
    /// Its `stream_id`: the lane it belongs to, if that has a name.
    pub lane: Option<String>,
    pub json: Bytes,
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "type")]
    name: String,
    #[serde(default)]
    stream_id: Option<String>,
}

impl Event {
    /// Reads what every event has.
    pub(crate) fn read(json: Bytes) -> Result<Self, Error> {
        // Serde would read an array as a struct, too.
        if json.trim_ascii_start().first() != Some(&b'{') {
            return Err(Error::NotAnEvent("it is not an object".to_owned()));
        }
        let Header { name, stream_id } = serde_json::from_slice(&json)?;
        Ok(Self {
            name,
            lane: stream_id,
            json,
        })
    }

    pub fn parse<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.json)
    }

    /// Reads an `error` event, in whichever form it is.
    pub fn failure(&self) -> Failure {
        let text = String::from_utf8_lossy(&self.json);
        let json = Json::parse(&*text).unwrap_or_else(|_| Json::from(&*text));
        Failure::read(json)
    }

    /// Whether a response, or a request that became none, ends with this event.
    pub fn is_terminal(&self) -> bool {
        matches!(
            self.name.as_str(),
            "response.completed" | "response.incomplete" | "response.failed" | "error"
        )
    }
}
