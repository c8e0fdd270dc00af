//! The engine with a real model. `TURNWIRE_TEST_MODEL` names a GGUF file; the test command sets it.

mod constraining;
mod continuing;
mod driver;
mod ending;
mod truncating;
mod wrapping_up;
