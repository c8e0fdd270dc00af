//! Loading: an engine between its specification and its first turn.

use std::sync::Arc;

use super::Engine;
use super::chat::ChatLoading;
use super::scripted::{Script, ScriptedEngine};
use super::spec::{EngineKind, EngineSpec};
use crate::cli::ServeArgs;
#[cfg(feature = "engine-llama")]
use crate::engine::llama::LlamaLoading;

#[derive(Debug)]
pub(crate) enum Loading {
    Scripted(ScriptedEngine),
    #[cfg(feature = "engine-llama")]
    Llama(LlamaLoading),
    Chat(ChatLoading),
}

impl Loading {
    /// Reads what is small. `created` is the time from which the model is served, in seconds
    /// since 1970.
    pub(crate) fn prepare(
        spec: EngineSpec,
        created: u64,
        args: &ServeArgs,
    ) -> anyhow::Result<Self> {
        match spec.kind {
            EngineKind::Scripted(file) => {
                let mut script = match file {
                    Some(file) => Script::read(&file)?,
                    None => Script::default(),
                };
                if let Some(name) = spec.name {
                    script.model = name;
                }
                Ok(Self::Scripted(ScriptedEngine::new(script, created)))
            }
            #[cfg(feature = "engine-llama")]
            EngineKind::Llama(source) => Ok(Self::Llama(LlamaLoading::new(
                source,
                spec.name,
                created,
                &args.local,
            ))),
            EngineKind::Chat(url) => Ok(Self::Chat(ChatLoading::new(
                url,
                spec.name.map(Arc::from),
                created,
                args.upstream_key_file.as_deref(),
            )?)),
        }
    }

    /// The model it serves; none if it serves whatever its upstream has.
    pub(crate) fn model(&self) -> Option<Arc<str>> {
        match self {
            Self::Scripted(engine) => Some(Arc::clone(&engine.model().name)),
            #[cfg(feature = "engine-llama")]
            Self::Llama(loading) => Some(Arc::clone(&loading.model().name)),
            Self::Chat(loading) => loading.model(),
        }
    }

    /// May take minutes: a model is downloaded first where it is not on this machine.
    pub(crate) async fn load(self) -> anyhow::Result<Arc<dyn Engine>> {
        match self {
            Self::Scripted(engine) => Ok(Arc::new(engine)),
            #[cfg(feature = "engine-llama")]
            Self::Llama(loading) => loading.load().await,
            Self::Chat(loading) => loading.load().await,
        }
    }
}
