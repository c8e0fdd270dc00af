//! Schema: the tables, and the way to them from those of earlier versions.

use rusqlite::Connection;

/// Of every database of ours: "Turn" in ASCII.
const APPLICATION_ID: i64 = 0x5475_726e;

/// How to get from each version to the next. What is here is never changed.
const MIGRATIONS: [&str; 1] = [include_str!("migrations/0001.sql")];

#[derive(Debug)]
pub(super) enum SchemaError {
    Database(rusqlite::Error),
    /// The database of another program.
    Foreign,
    /// That of a later version of this one.
    Later {
        found: i64,
        known: i64,
    },
}

/// Brings a database to the latest version, or makes an empty one so.
pub(super) fn prepare(connection: &Connection, page_bytes: u32) -> Result<(), SchemaError> {
    migrate(connection, page_bytes, &MIGRATIONS)
}

fn migrate(
    connection: &Connection,
    page_bytes: u32,
    migrations: &[&str],
) -> Result<(), SchemaError> {
    let number =
        |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let tables = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| {
        row.get::<_, i64>(0)
    })?;
    if tables > 0 && number("application_id")? != APPLICATION_ID {
        return Err(SchemaError::Foreign);
    }
    let known = migrations.len() as i64;
    let found = number("user_version")?;
    if found > known {
        return Err(SchemaError::Later { found, known });
    }
    if tables == 0 {
        // Both hold from the first page that is written on, and cannot be changed then.
        connection.pragma_update(None, "page_size", page_bytes)?;
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    for (version, migration) in (1_i64..).zip(migrations) {
        if version <= found {
            continue;
        }
        let transaction = connection.unchecked_transaction()?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

impl From<rusqlite::Error> for SchemaError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_versions_are_reached_step_by_step_and_keep_what_is_there() {
        let database = Connection::open_in_memory().unwrap();
        migrate(&database, 4096, &["CREATE TABLE a (x)"]).unwrap();
        database.execute_batch("INSERT INTO a VALUES (1)").unwrap();
        let both = [
            "CREATE TABLE a (x)",
            "ALTER TABLE a ADD y; UPDATE a SET y = x + 1",
        ];
        migrate(&database, 4096, &both).unwrap();
        migrate(&database, 4096, &both).unwrap();
        let y: i64 = database
            .query_row("SELECT y FROM a", [], |row| row.get(0))
            .unwrap();
        assert_eq!(y, 2);
        let back = migrate(&database, 4096, &both[..1]);
        assert!(
            matches!(back, Err(SchemaError::Later { found: 2, known: 1 })),
            "{back:?}"
        );
    }

    #[test]
    fn a_database_of_another_program_is_left_alone() {
        let database = Connection::open_in_memory().unwrap();
        database.execute_batch("CREATE TABLE theirs (x)").unwrap();
        let refused = prepare(&database, 4096);
        assert!(matches!(refused, Err(SchemaError::Foreign)), "{refused:?}");
    }
}
