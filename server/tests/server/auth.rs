//! Keys: who gets in, and who owns what.

use serde_json::json;
use turnwire::auth::{Access, Tenant};
use turnwire_client::{Connection, Error};

use crate::support::*;

async fn server_with_two_keys() -> TestServer {
    let keys = [b"one", b"two"].map(|key| Tenant::of_key(key));
    let settings = Settings {
        access: Access::Keys(keys.into()),
        ..Settings::default()
    };
    TestServer::with("", settings).await
}

#[tokio::test]
async fn without_a_known_key_nothing_but_health_answers() {
    let server = server_with_two_keys().await;
    for key in [None, Some("three")] {
        let refused = Connection::open(&server.url("/v1"), key).await;
        assert!(
            matches!(refused, Err(Error::Refused { status: 401, .. })),
            "{refused:?}"
        );
        for path in [
            "/v1/responses",
            "/v1/models",
            "/v1/responses/resp_1",
            "/v1/other",
        ] {
            let mut get = http().get(server.url(path));
            if let Some(key) = key {
                get = get.bearer_auth(key);
            }
            let answer = request(get).await;
            assert_eq!(
                (answer.status, answer.error_code()),
                (401, "invalid_api_key".into())
            );
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
        }
    }
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn without_keys_pages_of_other_machines_are_refused() {
    let server = TestServer::with("", Settings::default()).await;
    let from = |origin| {
        http()
            .get(server.url("/v1/models"))
            .header("origin", origin)
    };
    let refused = request(from("http://example.com")).await;
    assert_eq!(
        (refused.status, refused.error_code()),
        (403, "forbidden_origin".into())
    );
    assert_eq!(request(from("http://localhost:3000")).await.status, 200);
}

#[tokio::test]
async fn a_key_finds_only_the_responses_it_created() {
    let server = server_with_two_keys().await;
    let connect = async |key| {
        Connection::open(&server.url("/v1"), Some(key))
            .await
            .unwrap()
    };
    let mut one = connect("one").await;
    let made = response(&turn(&mut one, &create(json!({"input": "mine"}))).await);
    let path = format!("/v1/responses/{}", made["id"].as_str().unwrap());
    let next = create(json!({"previous_response_id": made["id"], "input": "and on"}));

    let mut two = connect("two").await;
    let stolen = turn(&mut two, &next).await;
    assert_eq!(error_code(&stolen), "previous_response_not_found");
    let get = |key| request(http().get(server.url(&path)).header("api-key", key));
    assert_eq!(get("two").await.status, 404);
    assert_eq!(get("one").await.json(), made);
    let continued = turn(&mut connect("one").await, &next).await;
    assert_eq!(response(&continued)["status"], "completed");
}
