//! The client's side of a conversation, where nothing goes wrong.

use turnwire_client::{Create, Lane, Response};

pub(crate) fn create(text: &str) -> Create {
    Create::new("m").user(text)
}

/// One turn from its create to its end.
pub(crate) async fn complete(lane: &mut Lane, create: Create) -> Response {
    lane.create(create).await.unwrap().finish().await.unwrap()
}
