//! Server-sent events: how a response looks on an HTTP stream.

use bytes::Bytes;

use crate::event::Event;
use crate::failure::Failure;
use crate::json::Object;

/// What follows the last event of a response.
pub const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// One event as the lines of a stream, with the empty line that ends it.
pub fn encode(event: &Event) -> Bytes {
    let mut out = Vec::with_capacity(event.json.len() + event.name.len() + 18);
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(event.name.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    match &event.failure {
        Some(failure) => write_error(&mut out, failure),
        None => out.extend_from_slice(&event.json),
    }
    out.extend_from_slice(b"\n\n");
    out.into()
}

/// The public service's `error` event is flat on a stream and nested on a socket; Open Responses
/// has it nested on both. Members of both forms serve every client.
fn write_error(out: &mut Vec<u8>, failure: &Failure) {
    let mut event = Object::open(out);
    event.value("type", "error");
    event.value("sequence_number", &0);
    event.value("status", &failure.status);
    failure.write_facts(&mut event);
    failure.write_error(&mut event);
    failure.write_headers(&mut event);
    event.close();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_both_forms() {
        let event = Event::error(None, Failure::request_too_large(7));
        let expected = "event: error\ndata: {\"type\":\"error\",\"sequence_number\":0,\
            \"status\":413,\"code\":\"request_too_large\",\
            \"message\":\"The message is larger than the limit of 7 bytes.\",\"param\":null,\
            \"error\":{\"type\":\"invalid_request_error\",\"code\":\"request_too_large\",\
            \"message\":\"The message is larger than the limit of 7 bytes.\",\"param\":null}}\n\n";
        assert_eq!(encode(&event), expected);
    }
}
