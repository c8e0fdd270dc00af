//! Schema: brings the tables of a database to what this server knows.

use tokio_postgres::Client;

use super::database::Trouble;

/// In order; the first one makes version 1.
const MIGRATIONS: &[&str] = &[include_str!("migrations/0001.sql")];

/// Servers that start at the same time wait for each other here. The number is any that others
/// who use the same database are not likely to have chosen.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7305808869231650000)";

/// Why a database cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum SchemaError {
    #[error(
        "its tables are of version {found}, and this server knows those up to {}; \
         start a newer server",
        MIGRATIONS.len()
    )]
    TooNew { found: usize },
    #[error("its tables cannot be made: {0}")]
    Failed(#[from] Trouble),
}

/// Makes the tables, or changes those of an earlier version, in one transaction.
pub(super) async fn migrate(client: &Client) -> Result<(), SchemaError> {
    let begun = client.batch_execute(&format!("BEGIN; {LOCK}")).await;
    begun.map_err(Trouble::from)?;
    let migrated = migrate_locked(client).await;
    let end = match migrated {
        Ok(()) => "COMMIT",
        Err(_) => "ROLLBACK",
    };
    let ended = client.batch_execute(end).await;
    migrated?;
    Ok(ended.map_err(Trouble::from)?)
}

async fn migrate_locked(client: &Client) -> Result<(), SchemaError> {
    // Asked for first, because making it takes a right that a server may lack once it is there.
    let exists = "SELECT to_regclass('turnwire.version') IS NOT NULL";
    let exists: bool = client
        .query_one(exists, &[])
        .await
        .map_err(Trouble::from)?
        .get(0);
    if !exists {
        let make = "CREATE SCHEMA IF NOT EXISTS turnwire;
                    CREATE TABLE turnwire.version (version integer NOT NULL);
                    INSERT INTO turnwire.version VALUES (0)";
        client.batch_execute(make).await.map_err(Trouble::from)?;
    }
    let version = "SELECT version FROM turnwire.version";
    let version: i32 = client
        .query_one(version, &[])
        .await
        .map_err(Trouble::from)?
        .get(0);
    let found = usize::try_from(version).unwrap_or(usize::MAX);
    let missing = MIGRATIONS.get(found..);
    for migration in missing.ok_or(SchemaError::TooNew { found })? {
        client
            .batch_execute(migration)
            .await
            .map_err(Trouble::from)?;
    }
    if found < MIGRATIONS.len() {
        let update = format!("UPDATE turnwire.version SET version = {}", MIGRATIONS.len());
        client.batch_execute(&update).await.map_err(Trouble::from)?;
    }
    Ok(())
}
