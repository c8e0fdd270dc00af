//! The cache directory: where fetched models lie, and how one knows that they are whole.
//!
//! Next to each file lies its *stamp*: size, modification time and SHA-256 at the moment when the
//! file was last hashed. As long as the first two fit, the file is not read again at every start.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// A directory of ours, readable by its owner only.
#[derive(Debug)]
pub(super) struct Cache {
    /// None where the environment names no place for it.
    root: Option<PathBuf>,
}

/// What a file must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) size: u64,
    /// Lower-case hexadecimal digits.
    pub(super) sha256: String,
}

/// The cache directory cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error(
        "no place to keep models: set TURNWIRE_CACHE to a directory, or HOME, or start with a path \
         to a GGUF file (`--engine llama:PATH`)"
    )]
    NoPlace,
    #[error("{action} {}: {cause}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        cause: io::Error,
    },
}

/// Held while a model is fetched, so that two servers that start at once fetch it once.
#[derive(Debug)]
pub(super) struct Lock {
    /// The operating system's lock goes with the descriptor, also when the process is killed.
    _file: File,
}

impl Cache {
    pub(super) fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| variable(name).map(PathBuf::from);
        let root = path("TURNWIRE_CACHE")
            // The XDG specification says that a relative path is to be ignored.
            .or_else(|| {
                let base = path("XDG_CACHE_HOME").filter(|base| base.is_absolute())?;
                Some(base.join("turnwire"))
            })
            .or_else(|| Some(path("HOME")?.join(".cache/turnwire")));
        Self { root }
    }

    /// A directory inside the cache, made if it is not there.
    pub(super) fn directory(&self, relative: &str) -> Result<PathBuf, CacheError> {
        let root = self.root.as_ref().ok_or(CacheError::NoPlace)?;
        let path = root.join(relative);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(failed("making the directory", &path))?;
        Ok(path)
    }
}

impl Identity {
    /// Size and SHA-256 of a file, read whole.
    pub(super) async fn of(path: &Path) -> Result<Self, CacheError> {
        let path = path.to_owned();
        blocking(move || Self::hash(&path).map_err(failed("reading", &path))).await
    }

    /// Whether `path` is this file. Reads it only if its stamp does not vouch for it.
    pub(super) async fn is_intact_at(&self, path: &Path) -> Result<bool, CacheError> {
        let metadata = match fs::metadata(path) {
            Ok(metadata) if metadata.len() == self.size => metadata,
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed("looking for", path)(error)),
        };
        if let Some((seen, identity)) = stamp(path)
            && seen == appearance(&metadata)
        {
            return Ok(identity == *self);
        }
        let intact = Self::of(path).await? == *self;
        if intact {
            write_stamp(path, self)?;
        }
        Ok(intact)
    }

    /// What `path` was when it was last hashed.
    pub(super) fn stamped(path: &Path) -> Option<Self> {
        stamp(path).map(|(_, identity)| identity)
    }

    fn hash(path: &Path) -> io::Result<Self> {
        let mut hasher = Sha256::new();
        let size = io::copy(&mut File::open(path)?, &mut hasher)?;
        let sha256 = hasher.finalize();
        Ok(Self {
            size,
            sha256: sha256.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

/// Work on whole model files would hold up every other task of a worker thread.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .expect("work on files does not panic, and it is not aborted while somebody waits for it")
}

/// Gives a finished and checked file its place. Whoever looks sees all of it or nothing.
pub(super) fn install(finished: &Path, path: &Path, identity: &Identity) -> Result<(), CacheError> {
    File::open(finished)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(finished, path))
        .map_err(failed("keeping", path))?;
    write_stamp(path, identity)
}

/// Waits for its turn. A lock is never broken: whoever holds it is alive.
pub(super) async fn lock(path: &Path) -> Result<Lock, CacheError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(failed("opening the lock", path))?;
    let mut waiting = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(TryLockError::Error(error)) => return Err(failed("locking", path)(error)),
            Err(TryLockError::WouldBlock) => {}
        }
        if !waiting {
            tracing::info!("another process is fetching this model; waiting for it");
            waiting = true;
        }
        // Polled, because a thread that blocks on the lock could not be stopped by Ctrl-C.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    let path = path.to_owned();
    move |cause| CacheError::Io {
        action,
        path,
        cause,
    }
}

/// `path` with something after its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Appearance and identity of a file at the moment when it was hashed.
fn stamp(path: &Path) -> Option<(String, Identity)> {
    let text = fs::read_to_string(stamp_path(path)).ok()?;
    let (seen, sha256) = text.trim_end().rsplit_once(' ')?;
    let (size, _) = seen.split_once(' ')?;
    let identity = Identity {
        size: size.parse().ok()?,
        sha256: sha256.to_owned(),
    };
    Some((seen.to_owned(), identity))
}

fn write_stamp(path: &Path, identity: &Identity) -> Result<(), CacheError> {
    let file = stamp_path(path);
    fs::metadata(path)
        .and_then(|metadata| {
            let text = format!("{} {}\n", appearance(&metadata), identity.sha256);
            fs::write(&file, text)
        })
        .map_err(failed("writing", &file))
}

fn stamp_path(path: &Path) -> PathBuf {
    beside(path, ".checked")
}

/// What changes whenever a file is written to.
fn appearance(metadata: &Metadata) -> String {
    format!(
        "{} {}.{:09}",
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec()
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Mutex;
    use std::time::SystemTime;

    use super::*;

    fn cache(variables: &[(&str, &str)]) -> Cache {
        Cache::from_environment(|name| {
            let (_, value) = variables.iter().find(|(key, _)| *key == name)?;
            Some(value.into())
        })
    }

    #[test]
    fn the_cache_lies_where_the_user_wants_it() {
        let root = |variables| cache(variables).root.unwrap();
        let all = [
            ("TURNWIRE_CACHE", "/t"),
            ("XDG_CACHE_HOME", "/x"),
            ("HOME", "/h"),
        ];
        assert_eq!(root(&all), Path::new("/t"));
        assert_eq!(root(&all[1..]), Path::new("/x/turnwire"));
        assert_eq!(root(&all[2..]), Path::new("/h/.cache/turnwire"));
        let relative = [("XDG_CACHE_HOME", "x"), ("HOME", "/h")];
        assert_eq!(root(&relative), Path::new("/h/.cache/turnwire"));
        let nowhere = cache(&[]).directory("models");
        assert!(matches!(nowhere, Err(CacheError::NoPlace)));
    }

    #[test]
    fn its_directories_are_for_the_owner_only() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("deep/turnwire");
        let cache = cache(&[("TURNWIRE_CACHE", root.to_str().unwrap())]);
        let directory = cache.directory("models").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(&root), 0o700);
    }

    #[tokio::test]
    async fn a_changed_file_is_noticed_and_an_unchanged_one_is_not_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        let set_time = |seconds| {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            File::open(&path).unwrap().set_modified(time).unwrap();
        };
        fs::write(&path, "GGUF one").unwrap();
        set_time(1);
        let identity = Identity::of(&path).await.unwrap();
        assert_eq!(identity.size, 8);
        assert_eq!(Identity::stamped(&path), None);
        assert!(identity.is_intact_at(&path).await.unwrap());
        assert_eq!(Identity::stamped(&path), Some(identity.clone()));

        // The stamp is believed: the time is the old one, so the file is not read.
        fs::write(&path, "GGUF two").unwrap();
        set_time(1);
        assert!(identity.is_intact_at(&path).await.unwrap());
        set_time(2);
        assert!(!identity.is_intact_at(&path).await.unwrap());

        // A file that was merely touched is read once and stamped anew.
        fs::write(&path, "GGUF one").unwrap();
        set_time(3);
        assert!(identity.is_intact_at(&path).await.unwrap());

        fs::write(&path, "GGUF").unwrap();
        set_time(3);
        assert!(!identity.is_intact_at(&path).await.unwrap());
        fs::remove_file(&path).unwrap();
        assert!(!identity.is_intact_at(&path).await.unwrap());
    }

    #[tokio::test]
    async fn the_second_to_come_waits_for_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = lock(&path).await.unwrap();
        let order = Mutex::new(Vec::new());
        tokio::join!(
            async {
                let _second = lock(&path).await.unwrap();
                order.lock().unwrap().push("second");
            },
            async {
                order.lock().unwrap().push("first");
                drop(first);
            },
        );
        assert_eq!(order.into_inner().unwrap(), ["first", "second"]);
    }
}
