//! The embedded engine behind the trait: from a model's source to turns.

use std::env;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio_util::sync::CancellationToken;
use turnwire_local_engine::{LocalEngine, Options};
use turnwire_protocol::engine::{EngineOutput, TurnRequest};

use super::{Engine, Model};
use crate::cli::LocalArgs;
use crate::model_files::{ModelFiles, ModelSource};

/// A model that is not loaded yet and may not even be on this machine.
#[derive(Debug)]
pub(crate) struct LlamaLoading {
    source: ModelSource,
    model: Model,
    options: Options,
}

#[derive(Debug)]
struct LlamaEngine {
    local: LocalEngine,
    model: Model,
}

impl LlamaLoading {
    pub(crate) fn new(
        source: ModelSource,
        name: Option<String>,
        created: u64,
        args: &LocalArgs,
    ) -> Self {
        let model = Model {
            name: name.unwrap_or_else(|| source.model_name()).into(),
            created,
            owned_by: "turnwire",
        };
        let options = Options {
            threads: args.threads,
            kv_cells: args.kv_cells,
            kv_ram_bytes: args.kv_ram,
            ..Options::default()
        };
        Self {
            source,
            model,
            options,
        }
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    pub(crate) async fn load(self) -> anyhow::Result<Arc<dyn Engine>> {
        let Self {
            source,
            model,
            options,
        } = self;
        let doing = format!("--engine llama:{source}");
        let files = ModelFiles::from_environment(|name| env::var_os(name));
        // Its message names its cause already.
        let path = files.resolve(&source).await;
        let path = path.map_err(|error| anyhow!("{doing}: {error}"))?;
        let load = move || LocalEngine::load(&path, options);
        let local = tokio::task::spawn_blocking(load)
            .await
            .context("loading panicked")?;
        let local = local.context(doing)?;
        Ok(Arc::new(LlamaEngine { local, model }))
    }
}

impl Engine for LlamaEngine {
    fn models(&self) -> Vec<Model> {
        vec![self.model.clone()]
    }

    fn serves(&self, model: &str) -> bool {
        *self.model.name == *model
    }

    fn start(
        &self,
        request: TurnRequest,
        wrap_up: CancellationToken,
    ) -> BoxStream<'static, EngineOutput> {
        let mut output = self.local.start(request, wrap_up);
        stream::poll_fn(move |cx| output.poll_recv(cx)).boxed()
    }
}
