//! A stream of server-sent events, whatever it is, in pieces. `cargo +nightly fuzz run sse`

#![no_main]

// The file alone: the client's HTTP and TLS would take minutes to build with a sanitizer.
#[path = "../../client/src/sse.rs"]
mod sse;

use sse::Decoder;

libfuzzer_sys::fuzz_target!(|pieces: Vec<Vec<u8>>| {
    let mut whole = Decoder::new(1000);
    let mut pieced = Decoder::new(1000);
    let in_one = whole.feed(&pieces.concat());
    let in_pieces: Result<(), _> = pieces.iter().try_for_each(|piece| pieced.feed(piece));
    assert_eq!(in_one, in_pieces);
    while let Some(message) = pieced.poll_message() {
        assert!(message.name.len() + message.data.len() <= 3000);
        assert_eq!(whole.poll_message(), Some(message));
    }
});
