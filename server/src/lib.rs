//! See ARCHITECTURE.md.

pub mod model_files;
