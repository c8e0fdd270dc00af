//! Engine: what makes the output of a turn, and the registry that finds one by model name.
//!
//! The server listens before its engines have loaded. Until then a turn for a model that may
//! still come is refused as overloaded, which clients retry, and not as unknown.

#[cfg(feature = "engine-llama")]
mod llama;
pub(crate) mod load;
pub mod scripted;
pub mod spec;

use std::fmt;
use std::sync::{Arc, OnceLock};

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio_util::sync::CancellationToken;
use turnwire_protocol::engine::{EngineFailure, EngineFailureKind, EngineOutput, TurnRequest};

/// What an error message repeats of a model's name that a client sent.
const MAX_QUOTED_CHARS: usize = 200;

/// Serves one model.
pub trait Engine: Send + Sync + fmt::Debug {
    fn model(&self) -> &Model;

    /// Starts one turn. Dropping the stream cancels it; not polling it holds it back. Once
    /// `wrap_up` is cancelled, the engine ends the turn at the next item boundary, if it can.
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
    /// The name it will be asked for by.
    name: Arc<str>,
    engine: OnceLock<Arc<dyn Engine>>,
}

impl Engines {
    /// Room for one engine per name. None has loaded yet.
    pub fn expected<N: Into<Arc<str>>>(names: impl IntoIterator<Item = N>) -> Self {
        let slot = |name: N| Slot {
            name: name.into(),
            engine: OnceLock::new(),
        };
        Self(names.into_iter().map(slot).collect())
    }

    /// Engines that are ready now.
    pub fn ready(engines: impl IntoIterator<Item = Arc<dyn Engine>>) -> Self {
        let slot = |engine: Arc<dyn Engine>| Slot {
            name: Arc::clone(&engine.model().name),
            engine: OnceLock::from(engine),
        };
        Self(engines.into_iter().map(slot).collect())
    }

    /// Puts an engine that has loaded in its place.
    pub fn put(&self, engine: Arc<dyn Engine>) {
        let name = &engine.model().name;
        let slot = self.0.iter().find(|slot| slot.name == *name);
        let slot = slot.expect("an engine is loaded under the name that it was expected by");
        let _ = slot.engine.set(engine);
    }

    pub fn all_ready(&self) -> bool {
        self.0.iter().all(|slot| slot.engine.get().is_some())
    }

    /// The models that can be used now.
    pub fn models(&self) -> impl Iterator<Item = &Model> {
        let ready = self.0.iter().filter_map(|slot| slot.engine.get());
        ready.map(|engine| engine.model())
    }

    pub fn start(
        &self,
        request: TurnRequest,
        wrap_up: CancellationToken,
    ) -> BoxStream<'static, EngineOutput> {
        let slot = self.0.iter().find(|slot| *slot.name == *request.model);
        match slot.map(|slot| slot.engine.get()) {
            Some(Some(engine)) => engine.start(request, wrap_up),
            Some(None) => failed(
                EngineFailureKind::Overloaded,
                format!(
                    "The model '{}' is still loading. Try again in a few seconds.",
                    request.model
                ),
                None,
            ),
            None => failed(
                EngineFailureKind::ModelNotFound,
                format!(
                    "The model '{:.MAX_QUOTED_CHARS$}' is not served here. Served: {}.",
                    request.model,
                    self.names()
                ),
                Some("model".into()),
            ),
        }
    }

    fn names(&self) -> String {
        let names: Vec<_> = self
            .0
            .iter()
            .map(|slot| format!("'{}'", slot.name))
            .collect();
        names.join(", ")
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
