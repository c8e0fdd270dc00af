//! Sessions against servers that drop, refuse, forget and grow old.

#![expect(clippy::unwrap_used, reason = "a test ends where something is amiss")]

mod asking;
mod chains;
mod fake;
mod losses;
mod transports;
