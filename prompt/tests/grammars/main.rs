//! Plans held against llguidance: what a grammar lets a model write, byte by byte.

#![expect(clippy::unwrap_used, reason = "a test ends where something is amiss")]

mod calls;
mod custom;
mod vocabulary;
