//! Start: from flags to a server that answers, and to the reason why it ended.

use std::collections::HashSet;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use futures_util::future::try_join_all;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use turnwire_bench::Bench;

use crate::auth::Access;
use crate::cli::{HistoryArgs, ServeArgs};
use crate::clock::Clock;
use crate::core_dumps;
use crate::engine::load::Loading;
use crate::engine::spec::EngineSpec;
use crate::engine::{Engines, Model};
use crate::histories::Histories;
use crate::secret::{self, Secret};
use crate::serve::{self, Listener, Server};
use crate::store::Store;
use crate::tls::Tls;

/// Why a server did not start, or stopped without being told to.
#[derive(Debug)]
pub enum StartError {
    /// The flags make no sense together; exit code 2.
    Usage(String),
    /// Exit code 1.
    Failed(anyhow::Error),
}

/// Open files beside connections: listeners, models, connections that are being refused.
const OTHER_FILES: u64 = 128;

/// Serves until SIGTERM or Ctrl-C.
pub fn serve(args: ServeArgs) -> Result<(), StartError> {
    if args.zero_retention {
        let why = "--zero-retention: core dumps cannot be switched off";
        core_dumps::switch_off().context(why)?;
        tracing::info!("nothing is retained: there is no store and there are no core dumps");
    }
    raise_file_limit(args.limits.max_connections.get() as u64);
    let access = access(&args)?;
    let tls = tls(&args)?;
    let secret = secret(&args)?;
    let loading = loading(&args)?;
    let runtime = Runtime::new().context("cannot start the runtime")?;
    let served = runtime.block_on(run(args, access, tls, secret, loading));
    // A model may still be loading, on a thread that cannot be interrupted.
    runtime.shutdown_background();
    Ok(served?)
}

/// Runs a benchmark against a server that is there already.
pub fn bench(bench: Bench) -> Result<(), StartError> {
    let runtime = Runtime::new().context("cannot start the runtime")?;
    Ok(runtime.block_on(bench.run())?)
}

/// Judges a server, this one or another. The exit code says whether it holds to the protocol.
pub fn check(args: turnwire_check::Args) -> Result<ExitCode, StartError> {
    let runtime = Runtime::new().context("cannot start the runtime")?;
    let judged = runtime.block_on(args.run());
    judged.map_err(|error| StartError::Usage(format!("{error:#}")))
}

/// Lifts the soft limit of open files to the hard one. The soft one is made for programs that
/// cannot deal with large descriptors, and is a tenth of the connections that are the default.
fn raise_file_limit(max_connections: u64) {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(files) if files < max_connections.saturating_add(OTHER_FILES) => tracing::warn!(
            open_files = files,
            max_connections,
            "--max-connections is more than the limit of open files allows; raise it (ulimit -Hn, \
             LimitNOFILE=) or lower --max-connections"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}

fn access(args: &ServeArgs) -> Result<Access, StartError> {
    match &args.api_key_file {
        Some(file) => Ok(Access::from_key_file(file).map_err(anyhow::Error::from)?),
        None if args.no_auth || args.listen.ip().is_loopback() => Ok(Access::Open),
        None => Err(StartError::Usage(format!(
            "--listen {}: other machines can reach this address, and no keys are set. Give \
             --api-key-file FILE (one key per line), or --no-auth to serve everyone",
            args.listen
        ))),
    }
}

fn secret(args: &ServeArgs) -> Result<Secret, StartError> {
    let secret = match &args.secret_file {
        Some(file) => Secret::from_file(file),
        None => {
            let file = secret::default_path(|name| std::env::var_os(name));
            Secret::from_default_file(file.as_deref())
        }
    };
    Ok(secret.map_err(anyhow::Error::from)?)
}

fn tls(args: &ServeArgs) -> anyhow::Result<Option<Tls>> {
    match (&args.tls_cert, &args.tls_key) {
        (Some(certificates), Some(key)) => Ok(Some(Tls::from_files(certificates, key)?)),
        // One without the other is a mistake that the command line has refused.
        _ => Ok(None),
    }
}

/// Reads what can be read at once, so that a typing error shows before anything is downloaded.
fn loading(args: &ServeArgs) -> Result<Vec<Loading>, StartError> {
    let specs = if args.engines.is_empty() {
        default_engines()?
    } else {
        args.engines.clone()
    };
    let created = Clock::start().now().unix_seconds;
    let mut loading = Vec::new();
    let mut names = HashSet::new();
    for spec in specs {
        let engine = Loading::prepare(spec, created, args)?;
        if let Some(name) = engine
            .model()
            .filter(|name| !names.insert(Arc::clone(name)))
        {
            return Err(StartError::Usage(format!(
                "--engine: two engines serve the model '{name}'. Give one of them another name: \
                 --engine NAME=SPEC"
            )));
        }
        loading.push(engine);
    }
    Ok(loading)
}

#[cfg(feature = "engine-llama")]
fn default_engines() -> Result<Vec<EngineSpec>, StartError> {
    tracing::info!(
        "serving the default model, which is as small as can be; for real use try \
         --engine llama:hf:Qwen/Qwen3-0.6B-GGUF"
    );
    Ok(vec![EngineSpec::default_model()])
}

#[cfg(not(feature = "engine-llama"))]
fn default_engines() -> Result<Vec<EngineSpec>, StartError> {
    Err(StartError::Usage(
        "this build has no embedded engine and so no default model. Give --engine scripted".into(),
    ))
}

async fn run(
    args: ServeArgs,
    access: Access,
    tls: Option<Tls>,
    secret: Secret,
    loading: Vec<Loading>,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("--listen {}: cannot listen on this address", args.listen))?;
    let secret = Arc::new(secret);
    let store = store(&args, &secret).await?;
    let names = loading.iter().map(Loading::model);
    let server = Server::new(
        Engines::expected(names),
        store,
        histories(&args),
        access,
        secret,
        args.limits.limits(),
        args.limits.capacity(),
    );
    let stopped = stop_signal().context("cannot wait for signals")?;
    let address = listener.local_addr()?;
    let (listener, scheme) = match tls {
        None => (Listener::from(listener), "http"),
        Some(tls) => (Listener::secure(listener, tls), "https"),
    };
    tracing::info!(%address, %scheme, "listening");
    let mut reason = Ok(());
    serve::serve(listener, Arc::clone(&server), async {
        tokio::select! {
            () = stopped => {}
            Err(error) = load(loading, &server) => reason = Err(error),
        }
    })
    .await;
    reason
}

/// None on a server that retains nothing.
async fn store(args: &ServeArgs, secret: &Arc<Secret>) -> anyhow::Result<Option<Store>> {
    if args.zero_retention {
        return Ok(None);
    }
    let secret = Arc::clone(secret);
    args.store.open(secret, args.retention()).await.map(Some)
}

/// None are kept on a server that retains nothing.
fn histories(args: &ServeArgs) -> Histories {
    let HistoryArgs {
        no_history_matching,
        history_bytes,
        history_idle,
    } = args.histories;
    match args.zero_retention || no_history_matching {
        true => Histories::none(),
        false => Histories::new(history_bytes, history_idle),
    }
}

/// Loads all engines at once: one that waits for its upstream holds no other up.
async fn load(loading: Vec<Loading>, server: &Server) -> anyhow::Result<()> {
    let each = loading
        .into_iter()
        .enumerate()
        .map(async |(place, engine)| {
            let engine = engine.load().await?;
            for Model { name, .. } in engine.models() {
                tracing::info!(model = ?name, "ready");
            }
            server.engines().put(place, engine);
            anyhow::Ok(())
        });
    try_join_all(each).await.map(drop)
}

/// Ready at SIGTERM or Ctrl-C. Both are caught from this call on, not from the first poll: one
/// that came in between would end the process where it stands.
#[cfg(unix)]
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    Ok(async {
        let _ = tokio::signal::ctrl_c().await;
    })
}

impl From<anyhow::Error> for StartError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}
