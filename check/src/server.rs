//! Server: what all conversations of a run share about the server under judgement.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;
use turnwire_client::{Http, Options};

use crate::case::Case;
use crate::probe::{self, Feature};
use crate::watch::Violations;

#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) model: String,
    /// How every connection is made, but for what a row changes.
    pub(crate) options: Options,
    /// The same without the key.
    pub(crate) keyless: Options,
    pub(crate) has_key: bool,
    pub(crate) http: Http,
    /// Of one turn.
    pub(crate) timeout: Duration,
    /// The age at which the server was told to close connections.
    pub(crate) age_limit: Option<Duration>,
    /// Whether answers can be kept short with `max_output_tokens`.
    pub(crate) takes_max_output_tokens: bool,
    pub(crate) violations: Violations,
    pub(crate) lacks: HashMap<Feature, OnceCell<Option<String>>>,
}

impl Server {
    /// What the server says when it is asked for the feature and has it not. Found out once.
    pub(crate) async fn lack_of(self: &Arc<Self>, feature: Feature) -> Option<String> {
        let lack = self
            .lacks
            .get(&feature)
            .expect("every feature has its cell");
        let found = lack.get_or_init(|| async move {
            let case = Case::new(Arc::clone(self));
            // Boxed: the probe is a conversation of its own, which may need features too.
            Box::pin(probe::probe(&case, feature)).await
        });
        found.await.clone()
    }
}
