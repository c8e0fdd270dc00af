//! A second opinion: every event of every conversation is one of async-openai's server events.

mod runner;

use async_openai::types::responses::websocket::ResponsesServerEvent;
use turnwire_protocol::event::Event;

#[test]
fn every_event_is_known_to_an_independent_client() {
    let mut judged = 0;
    for conversation in runner::conversations() {
        let events = conversation.play().expect("conversations go as written");
        for event in events.iter().filter(|event| can_be_judged(event)) {
            if let Err(error) = serde_json::from_slice::<ResponsesServerEvent>(&event.json) {
                let json = String::from_utf8_lossy(&event.json);
                panic!(
                    "{}: {}\n{error}\n{json}",
                    conversation.file, conversation.title
                );
            }
            judged += 1;
        }
    }
    assert!(judged > 1000, "only {judged} events were judged");
}

/// The enum is closed. It does not know the beta event `response.inject.failed`, nor input that
/// no steer may have, which `response.steer.failed` shows again as it came.
fn can_be_judged(event: &Event) -> bool {
    match event.name {
        "response.inject.failed" => false,
        "response.steer.failed" => {
            !String::from_utf8_lossy(&event.json).contains(r#""code":"invalid_input""#)
        }
        _ => true,
    }
}
