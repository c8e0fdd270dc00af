//! The embedded engine: llama.cpp with KV pinned to the conversation.
