//! Failure: what a client did wrong or may know about what went wrong.

/// An error as the client sees it: an `error` event, or an HTTP status with a JSON body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub status: u16,
    /// `error.type`.
    pub kind: &'static str,
    pub code: &'static str,
    pub message: String,
    pub param: Option<String>,
    pub retry_after_seconds: Option<u32>,
}
