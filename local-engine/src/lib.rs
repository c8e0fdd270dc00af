//! The embedded engine: llama.cpp with the KV cache pinned to the conversation.
//!
//! A turn costs its new tokens (docs/decisions/0001-head-and-segments.md). What a response was
//! made of stays: its exact token ids in the [`link_state::LinkState`] that its link owns, its
//! keys and values in the cache. Both go when the link goes.
//!
//! [`front`] renders and tokenises a request, on a thread beside that of the engine.
//! [`scheduler`] is one thread that owns the model's context and decodes all conversations in
//! shared batches. [`cache`] decides which conversation's cells are hot, warm or gone.
//!
//! Nothing here waits for a client: output goes into a bounded channel, and a conversation
//! whose channel is full pauses. Dropping the receiver cancels the turn within one step.

mod cache;
mod engine;
mod front;
mod grammars;
mod head;
mod link_state;
mod model;
mod preparing;
mod sampler;
mod scheduler;
mod truncation;
mod turn;
mod wrap_up;

pub use cache::Tier;
pub use engine::{Inspection, LocalEngine, Options, Stats};
pub use model::LoadError;
