//! A session against anything. `cargo +nightly fuzz run session`
//!
//! Bytes that begin like a message are one; others are a sequence of inputs, five bytes each. The property tests
//! of the crate play the same way on stable Rust.

#![no_main]

#[path = "../../protocol/tests/interleaving/mod.rs"]
mod interleaving;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| match bytes {
    [b'{', ..] => interleaving::hear(bytes),
    _ => interleaving::play(bytes.chunks(5)),
});
