//! The chat engine: any server of `/v1/chat/completions` behind the Responses protocol.
//!
//! Such a server keeps nothing between two requests, so every turn sends the whole conversation.
//! What this engine knows of a response is how many tokens it had, which stays on its link.

mod assembler;
mod chunk;
mod request;
mod talk;
mod upstream;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{anyhow, bail};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use reqwest::Url;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use turnwire_protocol::engine::{EngineOutput, TurnRequest};

use super::{Engine, Model};
use upstream::{ListingError, Upstream};

/// How often the upstream is asked at most whether it has a new model.
const LISTING_INTERVAL: Duration = Duration::from_secs(10);

/// Pauses between two questions to an upstream that is not there yet, doubling.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// An engine whose upstream has not answered yet.
#[derive(Debug)]
pub struct ChatLoading {
    upstream: Upstream,
    name: Option<Arc<str>>,
    created: u64,
}

#[derive(Debug)]
struct ChatEngine {
    upstream: Arc<Upstream>,
    created: u64,
    offer: Offer,
}

/// Which models are served.
#[derive(Debug)]
enum Offer {
    /// One of the upstream's, perhaps under another name.
    One {
        name: Arc<str>,
        upstream: Arc<str>,
    },
    All(RwLock<Listing>),
}

#[derive(Debug)]
struct Listing {
    names: BTreeSet<Arc<str>>,
    asked: Instant,
}

impl ChatLoading {
    /// `name` limits the engine to one model, which clients ask for by it.
    pub fn new(
        url: Url,
        name: Option<Arc<str>>,
        created: u64,
        key_file: Option<&Path>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            upstream: Upstream::new(url, key_file)?,
            name,
            created,
        })
    }

    pub(crate) fn model(&self) -> Option<Arc<str>> {
        self.name.clone()
    }

    /// Waits for the upstream as long as it takes. Fails if it answers, but not as it should.
    pub async fn load(self) -> anyhow::Result<Arc<dyn Engine>> {
        let Self {
            upstream,
            name,
            created,
        } = self;
        let names = wait_for_models(&upstream).await?;
        let offer = match name {
            Some(name) => Offer::One {
                upstream: model_behind(&name, &names, &upstream)?,
                name,
            },
            None => Offer::All(RwLock::new(Listing {
                names,
                asked: Instant::now(),
            })),
        };
        Ok(Arc::new(ChatEngine {
            upstream: Arc::new(upstream),
            created,
            offer,
        }))
    }
}

async fn wait_for_models(upstream: &Upstream) -> anyhow::Result<BTreeSet<Arc<str>>> {
    let mut pause = FIRST_PAUSE;
    loop {
        match upstream.models().await {
            Ok(names) => return Ok(names),
            Err(ListingError::NotYet(error)) => {
                if pause == FIRST_PAUSE {
                    tracing::warn!(%upstream, %error, "waiting for the upstream");
                }
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(ListingError::Final(error)) => {
                return Err(anyhow!("--engine chat:{upstream}: {error}"));
            }
        }
    }
}

/// The upstream's own name for the model that clients call `name`.
fn model_behind(
    name: &Arc<str>,
    names: &BTreeSet<Arc<str>>,
    upstream: &Upstream,
) -> anyhow::Result<Arc<str>> {
    if names.contains(name) {
        return Ok(Arc::clone(name));
    }
    match names.first() {
        Some(only) if names.len() == 1 => Ok(Arc::clone(only)),
        None => bail!("--engine {name}=chat:{upstream}: the upstream lists no model"),
        Some(_) => {
            let listed: Vec<&str> = names.iter().map(|name| &**name).collect();
            bail!(
                "--engine {name}=chat:{upstream}: the upstream has several models and none of this \
                 name: {}",
                listed.join(", ")
            )
        }
    }
}

impl ChatEngine {
    /// The upstream's name for a model.
    fn upstream_name(&self, model: &str) -> Option<Arc<str>> {
        match &self.offer {
            Offer::One { name, upstream } => (**name == *model).then(|| Arc::clone(upstream)),
            Offer::All(listing) => {
                let listing = listing.read().unwrap_or_else(PoisonError::into_inner);
                listing.names.get(model).cloned()
            }
        }
    }

    async fn list_again(&self, listing: &RwLock<Listing>) {
        {
            let mut listing = listing.write().unwrap_or_else(PoisonError::into_inner);
            if listing.asked.elapsed() < LISTING_INTERVAL {
                return;
            }
            listing.asked = Instant::now();
        }
        match self.upstream.models().await {
            Ok(names) => {
                listing
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .names = names;
            }
            Err(error) => tracing::warn!(upstream = %self.upstream, %error, "no list of models"),
        }
    }
}

impl Engine for ChatEngine {
    fn models(&self) -> Vec<Model> {
        let model = |name: &Arc<str>| Model {
            name: Arc::clone(name),
            created: self.created,
            owned_by: "upstream",
        };
        match &self.offer {
            Offer::One { name, .. } => vec![model(name)],
            Offer::All(listing) => {
                let listing = listing.read().unwrap_or_else(PoisonError::into_inner);
                listing.names.iter().map(model).collect()
            }
        }
    }

    fn serves(&self, model: &str) -> bool {
        self.upstream_name(model).is_some()
    }

    fn learn<'a>(&'a self, model: &'a str) -> BoxFuture<'a, bool> {
        async move {
            if let Offer::All(listing) = &self.offer {
                self.list_again(listing).await;
            }
            self.serves(model)
        }
        .boxed()
    }

    fn start(
        &self,
        request: TurnRequest,
        wrap_up: CancellationToken,
    ) -> BoxStream<'static, EngineOutput> {
        // Between the question whether it is served and this, the list may have changed.
        let model = self
            .upstream_name(&request.model)
            .unwrap_or_else(|| Arc::clone(&request.model));
        talk::start(Arc::clone(&self.upstream), &model, &request, wrap_up)
    }
}
