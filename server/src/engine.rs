//! Engine: what makes the output of a turn, and the registry that finds one by model name.
//!
//! The server listens before its engines have loaded. Until then a turn for a model that may
//! still come is refused as overloaded, which clients retry, and not as unknown.

pub mod chat;
#[cfg(feature = "engine-llama")]
mod llama;
pub(crate) mod load;
pub mod scripted;
pub mod spec;

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::{fmt, future};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use tokio_util::sync::CancellationToken;
use turnwire_protocol::engine::{EngineFailure, EngineFailureKind, EngineOutput, TurnRequest};

/// What an error message repeats of a model's name that a client sent.
const MAX_QUOTED_CHARS: usize = 200;

/// What an error message tells of the names of all models.
const MAX_LISTED_BYTES: usize = 500;

/// Serves one model, or several.
pub trait Engine: Send + Sync + fmt::Debug {
    /// The models it serves now.
    fn models(&self) -> Vec<Model>;

    fn serves(&self, model: &str) -> bool;

    /// Finds out whether a model that it did not serve a while ago is served by now.
    fn learn<'a>(&'a self, model: &'a str) -> BoxFuture<'a, bool> {
        future::ready(self.serves(model)).boxed()
    }

    /// Starts one turn of a model that it serves. Dropping the stream cancels it; not polling it
    /// holds it back. Once `wrap_up` is cancelled, the engine ends the turn at the next item
    /// boundary, if it can.
    fn start(
        &self,
        request: TurnRequest,
        wrap_up: CancellationToken,
    ) -> BoxStream<'static, EngineOutput>;
}

/// What `GET /v1/models` says of a model.
#[derive(Clone, Debug)]
pub struct Model {
    pub name: Arc<str>,
    /// Seconds since 1970 at which the server began to serve it.
    pub created: u64,
    pub owned_by: &'static str,
}

/// The engines of a server, some of which may still be loading.
#[derive(Debug)]
pub struct Engines(Vec<Slot>);

#[derive(Debug)]
struct Slot {
    /// The name it will be asked for by; none for an engine that serves whatever models it finds.
    name: Option<Arc<str>>,
    engine: OnceLock<Arc<dyn Engine>>,
}

impl Engines {
    /// Room for as many engines. None has loaded yet. One without a name serves whatever models
    /// it will find, as far as no other engine has them.
    pub fn expected(names: impl IntoIterator<Item = Option<Arc<str>>>) -> Self {
        let slot = |name| Slot {
            name,
            engine: OnceLock::new(),
        };
        Self(names.into_iter().map(slot).collect())
    }

    /// Engines that are ready now.
    pub fn ready(engines: impl IntoIterator<Item = Arc<dyn Engine>>) -> Self {
        let slot = |engine: Arc<dyn Engine>| Slot {
            name: None,
            engine: OnceLock::from(engine),
        };
        Self(engines.into_iter().map(slot).collect())
    }

    /// Puts an engine that has loaded in its place, counted as in [`Engines::expected`].
    pub fn put(&self, place: usize, engine: Arc<dyn Engine>) {
        let _ = self.0[place].engine.set(engine);
    }

    pub fn all_ready(&self) -> bool {
        self.0.iter().all(|slot| slot.engine.get().is_some())
    }

    /// The models that can be used now, each once.
    pub fn models(&self) -> Vec<Model> {
        let mut names = HashSet::new();
        let engines = self.by_rank().filter_map(|slot| slot.engine.get());
        let models = engines.flat_map(|engine| engine.models());
        models
            .filter(|model| names.insert(Arc::clone(&model.name)))
            .collect()
    }

    /// Whether a model is called that, of an engine that has loaded or of one that will.
    pub(crate) fn know(&self, model: &str) -> bool {
        self.0.iter().any(|slot| {
            slot.name.as_deref() == Some(model)
                || slot.engine.get().is_some_and(|engine| engine.serves(model))
        })
    }

    pub fn start(
        self: &Arc<Self>,
        request: TurnRequest,
        wrap_up: CancellationToken,
    ) -> BoxStream<'static, EngineOutput> {
        let loading = |slot: &Slot| {
            slot.engine.get().is_none()
                && slot.name.as_ref().is_none_or(|name| *name == request.model)
        };
        let serving = |slot: &Slot| {
            let engine = slot.engine.get();
            engine.is_some_and(|engine| engine.serves(&request.model))
        };
        // A name that was given to one engine is not taken by another in the meantime.
        match self.by_rank().find(|slot| loading(slot) || serving(slot)) {
            Some(Slot { engine, .. }) => match engine.get() {
                Some(engine) => engine.start(request, wrap_up),
                None => failed(
                    EngineFailureKind::Overloaded,
                    format!(
                        "The model '{:.MAX_QUOTED_CHARS$}' is still loading. Try again in a few \
                         seconds.",
                        request.model
                    ),
                    None,
                ),
            },
            None => {
                let engines = Arc::clone(self);
                stream::once(async move { engines.start_unknown(request, wrap_up).await })
                    .flatten()
                    .boxed()
            }
        }
    }

    /// Those with a name first.
    fn by_rank(&self) -> impl Iterator<Item = &Slot> {
        let named = self.0.iter().filter(|slot| slot.name.is_some());
        named.chain(self.0.iter().filter(|slot| slot.name.is_none()))
    }

    /// A model that nobody serves may have become one since the engines last looked.
    async fn start_unknown(
        &self,
        request: TurnRequest,
        wrap_up: CancellationToken,
    ) -> BoxStream<'static, EngineOutput> {
        for engine in self.0.iter().filter_map(|slot| slot.engine.get()) {
            if engine.learn(&request.model).await {
                return engine.start(request, wrap_up);
            }
        }
        let names: Vec<_> = self
            .models()
            .iter()
            .map(|model| format!("'{}'", model.name))
            .collect();
        let mut names = names.join(", ");
        if names.len() > MAX_LISTED_BYTES {
            names.truncate(names.floor_char_boundary(MAX_LISTED_BYTES));
            names.push('…');
        }
        failed(
            EngineFailureKind::ModelNotFound,
            format!(
                "The model '{:.MAX_QUOTED_CHARS$}' is not served here. Served: {names}.",
                request.model
            ),
            Some("model".into()),
        )
    }
}

fn failed(
    kind: EngineFailureKind,
    message: String,
    param: Option<String>,
) -> BoxStream<'static, EngineOutput> {
    let failure = EngineFailure {
        kind,
        message,
        param,
    };
    stream::iter([EngineOutput::Failed(failure)]).boxed()
}
