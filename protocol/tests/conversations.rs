//! Plays the conversations of `tests/conversations`, the main body of this crate's tests.

mod runner;

#[test]
fn every_conversation_goes_as_written() {
    let conversations = runner::conversations();
    assert!(
        conversations.len() >= 40,
        "only {} found",
        conversations.len()
    );
    let problems: Vec<String> = conversations
        .iter()
        .filter_map(|conversation| conversation.play().err())
        .collect();
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}
