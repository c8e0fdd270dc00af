//! `response.inject`: recognised, checked, and answered that it cannot be applied.

use bytes::Bytes;

use crate::event::{Event, Stamp};
use crate::failure::Failure;
use crate::field::Field;
use crate::message::Members;

/// Outputs of tools for a response that waits for them while it is running.
#[derive(Debug)]
pub(crate) struct Inject {
    response_id: String,
    input: Bytes,
}

impl Inject {
    pub(crate) fn parse(members: &Members<'_>) -> Result<Self, Failure> {
        let response_id = Field::required("response_id", members.response_id)?.string()?;
        let input = Field::required("input", members.input)?;
        input.array()?;
        Ok(Self {
            response_id: response_id.into_owned(),
            input: Bytes::copy_from_slice(input.text().as_bytes()),
        })
    }

    /// `response.inject.failed`. No response here ever waits for an inject.
    pub(crate) fn failed(&self) -> Event {
        let stamp = Stamp::default();
        Event::new(
            stamp,
            "response.inject.failed",
            self.input.len() + 192,
            |event| {
                event.value("response_id", &self.response_id);
                event.raw("input", &self.input);
                let mut error = event.object("error");
                error.value("code", "response_not_found");
                error.value("message", "There is no such response on this connection.");
                error.close();
            },
        )
    }
}
