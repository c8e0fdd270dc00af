//! Sealed content: it opens for its owner on every server that has the key, and for nobody else.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use turnwire::auth::{Access, Tenant};
use turnwire::secret::Secret;
use turnwire_client::Connection;

use crate::support::*;

const SCRIPT: &str = "[[reply]]\nsteps = [{reasoning = 'private'}, {text = 'public'}]";

async fn server(secrets: &Path) -> TestServer {
    let settings = Settings {
        access: Access::Keys([b"one", b"two"].map(|key| Tenant::of_key(key)).into()),
        secret: Secret::from_file(secrets).unwrap(),
        ..Settings::default()
    };
    TestServer::with(SCRIPT, settings).await
}

async fn connect(server: &TestServer, key: &str) -> Connection {
    Connection::open(&server.url("/v1"), Some(key))
        .await
        .unwrap()
}

/// The reasoning item of a turn that asks for it sealed.
async fn sealed_reasoning(connection: &mut Connection) -> Value {
    let members = json!({"input": "x", "include": ["reasoning.encrypted_content"]});
    let made = response(&turn(connection, &create(members)).await);
    let item = made["output"][0].clone();
    let sealed = item["encrypted_content"].as_str().unwrap();
    assert!(!sealed.contains("private"), "{sealed}");
    item
}

fn bring_back(item: &Value) -> Value {
    create(json!({"input": [item, {"role": "user", "content": "x"}]}))
}

#[tokio::test]
async fn what_was_sealed_comes_back_to_its_owner_alone_and_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(&directory.path().join("secret")).await;
    let mut one = connect(&server, "one").await;
    let item = sealed_reasoning(&mut one).await;
    let back = response(&turn(&mut one, &bring_back(&item)).await);
    assert_eq!(back["status"], "completed");

    let mut two = connect(&server, "two").await;
    let stolen = turn(&mut two, &bring_back(&item)).await;
    assert_eq!(error_code(&stolen), "invalid_encrypted_content");

    let mut tampered = item;
    let sealed = tampered["encrypted_content"].as_str().unwrap();
    let flipped = if sealed.ends_with('A') { "Q" } else { "A" };
    let sealed = [&sealed[..sealed.len() - 1], flipped].concat();
    tampered["encrypted_content"] = sealed.into();
    let refused = turn(&mut one, &bring_back(&tampered)).await;
    assert_eq!(error_code(&refused), "invalid_encrypted_content");
    let over_http = http()
        .post(server.url("/v1/responses"))
        .bearer_auth("one")
        .body(bring_back(&tampered).to_string());
    let over_http = request(over_http).await;
    assert_eq!(over_http.status, 400);
    assert_eq!(
        over_http.json()["error"]["param"],
        "input[0].encrypted_content"
    );
}

#[tokio::test]
async fn servers_that_share_a_file_open_each_others_and_old_keys_still_open() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    let first = server(&path).await;
    let item = sealed_reasoning(&mut connect(&first, "one").await).await;

    let second = server(&path).await;
    let back = turn(&mut connect(&second, "one").await, &bring_back(&item)).await;
    assert_eq!(response(&back)["status"], "completed");

    // A new key on top, as one who rotates keys puts it there.
    let other = directory.path().join("other");
    let _made = Secret::from_file(&other).unwrap();
    let both = [fs::read(&other).unwrap(), fs::read(&path).unwrap()].concat();
    fs::write(&path, both).unwrap();
    let rotated = server(&path).await;
    let mut connection = connect(&rotated, "one").await;
    let back = turn(&mut connection, &bring_back(&item)).await;
    assert_eq!(response(&back)["status"], "completed");

    let by_new_key = sealed_reasoning(&mut connection).await;
    let back = turn(&mut connect(&second, "one").await, &bring_back(&by_new_key)).await;
    assert_eq!(error_code(&back), "invalid_encrypted_content");
}
