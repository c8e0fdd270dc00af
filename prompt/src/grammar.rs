//! Grammars in Lark for llguidance.
