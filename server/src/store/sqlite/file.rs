//! File: where a database is, that one server alone has it open, and how it is opened.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::schema::{self, SchemaError};

/// How long a connection waits for another program that looks into the database, or makes a copy.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Statements that a connection keeps ready; there are fewer.
const STATEMENTS: usize = 64;

/// Bytes of pages that the writer remembers. Indexes are what it needs again.
const WRITER_CACHE_KIB: i64 = 16 << 10;

/// And each of those who read.
const READER_CACHE_KIB: i64 = 4 << 10;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("database {}: {action}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "database {}: another server has it open. Stop that one, or give this one a database of \
         its own: --store sqlite:PATH",
        .0.display()
    )]
    InUse(PathBuf),
    #[error("database {}: it cannot be used", path.display())]
    Unusable {
        path: PathBuf,
        source: rusqlite::Error,
    },
    #[error("database {}: it is one of another program. Give another file: --store sqlite:PATH", .0.display())]
    Foreign(PathBuf),
    #[error(
        "database {}: a later version of Turnwire has written it (schema {found}, known up to \
         {known}). Use that version, or another file",
        path.display()
    )]
    Later {
        path: PathBuf,
        found: i64,
        known: i64,
    },
}

/// The file, as long as it is ours.
#[derive(Debug)]
pub(super) struct DatabaseFile {
    path: PathBuf,
    /// Locked; the operating system unlocks it when the process ends, however that happens.
    _lock: File,
}

impl DatabaseFile {
    /// Makes the file if it is not there, and the directories above it.
    pub(super) fn claim(path: &Path) -> Result<Self, OpenError> {
        let failed = |action| {
            move |source| OpenError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let directory = match path.parent() {
            Some(directory) if directory != Path::new("") => directory,
            _ => Path::new("."),
        };
        make_directory(directory).map_err(failed("its directory cannot be made"))?;
        let open = |path: &Path| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
        };
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push("-lock");
        let lock = open(Path::new(&lock_path));
        let lock = lock.map_err(failed("the file beside it that locks it cannot be made"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(failed("it cannot be locked")(error)),
        }
        // SQLite gives the files that it makes the mode of this one.
        open(path).map_err(failed("it cannot be made, or not be written to"))?;
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(failed("its directory cannot be synced"))?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The connection that changes the database, which has the latest schema from then on.
    pub(super) fn open_writer(&self, page_bytes: u32) -> Result<Connection, OpenError> {
        let connection = self.open(OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let prepared = schema::prepare(&connection, page_bytes)
            .and_then(|()| Ok(configure_writer(&connection, WRITER_CACHE_KIB)?));
        match prepared {
            Ok(()) => Ok(connection),
            Err(SchemaError::Database(error)) => Err(self.unusable(error)),
            Err(SchemaError::Foreign) => Err(OpenError::Foreign(self.path.clone())),
            Err(SchemaError::Later { found, known }) => Err(OpenError::Later {
                path: self.path.clone(),
                found,
                known,
            }),
        }
    }

    /// A connection that copies the log into the database.
    pub(super) fn open_upkeep(&self) -> Result<Connection, OpenError> {
        let connection = self.open(OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let configured = configure_writer(&connection, READER_CACHE_KIB);
        configured.map_err(|error| self.unusable(error))?;
        Ok(connection)
    }

    pub(super) fn open_reader(&self) -> Result<Connection, OpenError> {
        let connection = self.open(OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let configured = connection.pragma_update(None, "cache_size", -READER_CACHE_KIB);
        configured.map_err(|error| self.unusable(error))?;
        Ok(connection)
    }

    fn open(&self, mode: OpenFlags) -> Result<Connection, OpenError> {
        let flags = mode | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = || {
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.set_prepared_statement_cache_capacity(STATEMENTS);
            connection.busy_timeout(BUSY_TIMEOUT)?;
            // Sorting and the like never needs a file, which would hold content.
            connection.pragma_update(None, "temp_store", "MEMORY")?;
            connection.pragma_update(None, "trusted_schema", false)?;
            Ok(connection)
        };
        open().map_err(|error| self.unusable(error))
    }

    pub(super) fn unusable(&self, source: rusqlite::Error) -> OpenError {
        OpenError::Unusable {
            path: self.path.clone(),
            source,
        }
    }
}

fn configure_writer(connection: &Connection, cache_kib: i64) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    // Nothing refers to rows that could be missing, see the writes.
    connection.pragma_update(None, "foreign_keys", false)?;
    // What was deleted is overwritten, also in pages that nothing uses any more.
    connection.pragma_update(None, "secure_delete", true)?;
    // A thread of its own copies the log, so that no turn waits for it.
    connection.pragma_update(None, "wal_autocheckpoint", 0)
}

/// The directories that are made are for this user alone, and durable.
fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(directory)?;
    for parent in directory.ancestors().skip(1) {
        if parent != Path::new("") {
            File::open(parent)?.sync_all()?;
        }
    }
    Ok(())
}
