//! What is promised of the durable store, beside what every store has to do.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::operations::{agree_with_memory, operations};
use super::super::{Storage, Store, story};
use super::*;

fn open(directory: &Path) -> Store {
    let path = directory.join("turnwire.db");
    let secret = Arc::new(Secret::in_memory());
    let store = SqliteStore::open(&path, secret, Retention::default());
    Store::Sqlite(store.unwrap())
}

#[tokio::test]
async fn it_does_what_a_store_has_to_do() {
    let directory = tempfile::tempdir().unwrap();
    story::plays(&Storage::from(open(directory.path()))).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn it_answers_as_memory_does(operations in operations()) {
        let directory = tempfile::tempdir().unwrap();
        agree_with_memory(operations, || open(directory.path()));
    }
}
