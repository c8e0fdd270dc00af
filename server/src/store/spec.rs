//! Spec: what follows `--store`, and the store that it means.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;

use super::{MemoryStore, PostgresStore, PostgresUrl, Retention, SqliteStore, Store};
use crate::data_directory::data_directory;
use crate::quantity;
use crate::secret::Secret;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreSpec {
    Memory {
        budget_bytes: u64,
    },
    /// Without a path it is in the user's data directory.
    Sqlite {
        path: Option<PathBuf>,
    },
    Postgres(PostgresUrl),
}

impl StoreSpec {
    /// `secret` opens what clients had sealed.
    pub async fn open(&self, secret: Arc<Secret>, retention: Retention) -> anyhow::Result<Store> {
        match self {
            Self::Memory { budget_bytes } => {
                let store = MemoryStore::new(*budget_bytes).keeping_for(retention.age);
                Ok(Store::Memory(store))
            }
            Self::Sqlite { path: Some(path) } => {
                let store = SqliteStore::open(path, secret, retention).context("--store")?;
                Ok(Store::Sqlite(store))
            }
            Self::Sqlite { path: None } => {
                let directory = data_directory(|name| std::env::var_os(name)).context(
                    "--store sqlite: the environment names no HOME that the database could be in. \
                     Give --store sqlite:PATH, or --store memory, which forgets everything when \
                     the server ends",
                )?;
                let path = directory.join("turnwire.db");
                let store = SqliteStore::open(&path, secret, retention);
                let store = store.context(
                    "--store sqlite: the database is in the user's data directory, unless you \
                     give --store sqlite:PATH",
                )?;
                Ok(Store::Sqlite(store))
            }
            Self::Postgres(url) => {
                let store = PostgresStore::open(url, secret, retention).await?;
                Ok(Store::Postgres(Box::new(store)))
            }
        }
    }
}

impl FromStr for StoreSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // What is wrong with a URL is told later, since a message from here would print it.
        if let Some(url) = PostgresUrl::of(text) {
            return Ok(Self::Postgres(url));
        }
        match text.split_once(':') {
            None if text == "memory" => Ok(Self::Memory {
                budget_bytes: 1 << 30,
            }),
            Some(("memory", budget)) => match quantity::bytes(budget)? {
                0 => Err(
                    "0 bytes keep no response, and every request that does not say \
                     `store: false` would fail; write `memory:1GiB` or another number of bytes"
                        .into(),
                ),
                budget_bytes => Ok(Self::Memory { budget_bytes }),
            },
            None if text == "sqlite" => Ok(Self::Sqlite { path: None }),
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite {
                path: Some(path.into()),
            }),
            _ => Err(format!(
                "`{text}` is no store; write `sqlite`, `sqlite:PATH`, `memory`, `memory:BYTES` or \
                 `postgres://USER@HOST/NAME`"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_read_as_they_are_written() {
        let read = |text: &str| text.parse::<StoreSpec>();
        let budget_bytes = 1 << 30;
        assert_eq!(read("memory"), Ok(StoreSpec::Memory { budget_bytes }));
        assert_eq!(read("memory:1GiB"), read("memory"));
        assert_eq!(read("sqlite"), Ok(StoreSpec::Sqlite { path: None }));
        let path = Some("a:b.db".into());
        assert_eq!(read("sqlite:a:b.db"), Ok(StoreSpec::Sqlite { path }));
        for wrong in ["", "memory:", "memory:0", "sqlite:", "mysql:x"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
