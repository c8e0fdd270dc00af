//! Conversations over HTTP: their metadata, and their items page by page.

use serde_json::{Value, json};
use turnwire::auth::{Access, Tenant};

use crate::support::*;

const CONVERSATIONS: &str = "/v1/conversations";

fn path(conversation: &Value) -> String {
    format!("{CONVERSATIONS}/{}", conversation["id"].as_str().unwrap())
}

fn items_path(conversation: &Value) -> String {
    path(conversation) + "/items"
}

async fn create_with(server: &TestServer, body: &Value) -> Value {
    let created = server.send("POST", CONVERSATIONS, body).await;
    assert_eq!(created.status, 200, "{}", created.text);
    created.json()
}

fn said(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

/// The texts of the messages of a list.
fn texts(list: &Value) -> Vec<&str> {
    let data = list["data"].as_array().unwrap();
    data.iter()
        .map(|item| item["content"][0]["text"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn a_conversation_is_created_shown_changed_and_deleted() {
    let server = TestServer::start("").await;
    let body = json!({"metadata": {"topic": "stars"}, "items": [said("a")]});
    let created = create_with(&server, &body).await;
    assert!(created["id"].as_str().unwrap().starts_with("conv_"));
    assert!(created["created_at"].is_u64());
    let expected = json!({
        "id": created["id"],
        "object": "conversation",
        "created_at": created["created_at"],
        "metadata": {"topic": "stars"},
    });
    assert_eq!(created, expected);
    assert_eq!(server.get(&path(&created)).await.json(), created);

    let other = json!({"metadata": {"topic": "moons"}});
    let updated = server.send("POST", &path(&created), &other).await.json();
    assert_eq!(updated["metadata"], other["metadata"]);
    assert_eq!(updated["created_at"], created["created_at"]);
    assert_eq!(server.get(&path(&created)).await.json(), updated);
    let items = server.get(&items_path(&created)).await.json();
    assert_eq!(texts(&items), ["a"]);

    let deleted = server.delete(&path(&created)).await.json();
    let expected = json!({"id": created["id"], "object": "conversation.deleted", "deleted": true});
    assert_eq!(deleted, expected);
    for gone in [
        server.get(&path(&created)).await,
        server.get(&items_path(&created)).await,
        server.delete(&path(&created)).await,
        server.send("POST", &path(&created), &other).await,
        server
            .send("POST", &items_path(&created), &json!({"items": []}))
            .await,
        server.get(&(items_path(&created) + "/msg_1")).await,
        server.delete(&(items_path(&created) + "/msg_1")).await,
    ] {
        let answer = (gone.status, gone.error_code());
        assert_eq!(answer, (404, "conversation_not_found".into()));
    }
}

#[tokio::test]
async fn a_conversation_needs_neither_items_nor_a_body() {
    let server = TestServer::start("").await;
    for body in ["", "{}", r#"{"items":null,"metadata":null}"#] {
        let post = http().post(server.url(CONVERSATIONS)).body(body);
        let created = request(post).await;
        assert_eq!(
            (created.status, &created.json()["metadata"]),
            (200, &json!({}))
        );
        let list = server.get(&items_path(&created.json())).await.json();
        let expected = json!({
            "object": "list", "data": [], "first_id": null, "last_id": null, "has_more": false,
        });
        assert_eq!(list, expected);
    }
}

#[tokio::test]
async fn items_are_added_listed_and_named() {
    let server = TestServer::start("").await;
    let conversation = create_with(&server, &json!({"items": [said("a")]})).await;
    let items = items_path(&conversation);
    let named = json!({"type": "message", "id": "msg/mine", "role": "user", "content": "c"});
    let more = json!({"items": [said("b"), named]});
    let added = server.send("POST", &items, &more).await.json();
    assert_eq!(texts(&added), ["b", "c"]);
    assert_eq!(added["data"][1]["status"], "completed");
    assert_eq!(added["last_id"], "msg/mine");
    assert_eq!(added["has_more"], false);
    // What is named is there already.
    let again = json!({"items": [{"type": "item_reference", "id": "msg/mine"}]});
    let again = server.send("POST", &items, &again).await.json();
    assert_eq!(again["data"], json!([]));

    let all = server.get(&(items.clone() + "?order=asc")).await.json();
    assert_eq!(texts(&all), ["a", "b", "c"]);
    assert_eq!(
        all["data"].as_array().unwrap()[1..],
        *added["data"].as_array().unwrap()
    );
    let newest = server.get(&(items.clone() + "?limit=2")).await.json();
    assert_eq!(
        (texts(&newest), &newest["has_more"]),
        (vec!["c", "b"], &json!(true))
    );
    let after = newest["last_id"].as_str().unwrap();
    let rest = server
        .get(&format!("{items}?limit=2&after={after}"))
        .await
        .json();
    assert_eq!(
        (texts(&rest), &rest["has_more"]),
        (vec!["a"], &json!(false))
    );
    let wrong = server.get(&(items.clone() + "?after=msg_other")).await;
    assert_eq!(
        (wrong.status, wrong.error_code()),
        (400, "invalid_value".into())
    );

    for (id, at) in [(all["first_id"].as_str().unwrap(), 0), ("msg%2Fmine", 2)] {
        let one = server.get(&format!("{items}/{id}")).await.json();
        assert_eq!(one, all["data"][at]);
    }
    let unknown = server.get(&(items + "/msg_other")).await;
    assert_eq!(
        (unknown.status, unknown.error_code()),
        (404, "item_not_found".into())
    );
}

#[tokio::test]
async fn an_item_that_is_deleted_leaves_the_others_as_they_were() {
    let server = TestServer::start("").await;
    let first = json!({"items": [said("a"), said("b"), said("c")]});
    let conversation = create_with(&server, &first).await;
    let items = items_path(&conversation);
    server
        .send("POST", &items, &json!({"items": [said("d")]}))
        .await;
    let before = server.get(&(items.clone() + "?order=asc")).await.json();
    let id = before["data"][1]["id"].as_str().unwrap();
    let item = format!("{items}/{id}");

    assert_eq!(server.delete(&item).await.json(), conversation);
    let mut expected = before["data"].as_array().unwrap().clone();
    expected.remove(1);
    let after = server.get(&(items.clone() + "?order=asc")).await.json();
    assert_eq!(after["data"], json!(expected));
    for gone in [server.get(&item).await, server.delete(&item).await] {
        assert_eq!(
            (gone.status, gone.error_code()),
            (404, "item_not_found".into())
        );
    }
    // Each of what is left can be deleted by the id that it always had.
    for left in &expected {
        let item = format!("{items}/{}", left["id"].as_str().unwrap());
        assert_eq!(server.delete(&item).await.status, 200);
    }
    assert_eq!(server.get(&items).await.json()["data"], json!([]));
}

#[tokio::test]
async fn what_is_wrong_is_refused_by_name() {
    let server = TestServer::start("").await;
    let conversation = create_with(&server, &json!({})).await;
    let many = vec![said("a"); 21];
    let pairs: serde_json::Map<_, _> = (0..17).map(|n| (n.to_string(), json!("x"))).collect();
    for (path, body, code, param) in [
        (
            CONVERSATIONS.to_owned(),
            json!({"items": many}),
            "array_above_max_length",
            "items",
        ),
        (
            CONVERSATIONS.to_owned(),
            json!({"items": [{"role": "robot"}]}),
            "invalid_value",
            "items[0].role",
        ),
        (
            CONVERSATIONS.to_owned(),
            json!({"metadata": pairs}),
            "object_above_max_properties",
            "metadata",
        ),
        (
            CONVERSATIONS.to_owned(),
            json!({"metadata": {"a": 1}}),
            "invalid_type",
            "metadata.a",
        ),
        (
            path(&conversation),
            json!({}),
            "missing_required_parameter",
            "metadata",
        ),
        (
            path(&conversation),
            json!({"metadata": []}),
            "invalid_type",
            "metadata",
        ),
        (
            items_path(&conversation),
            json!({}),
            "missing_required_parameter",
            "items",
        ),
        (
            items_path(&conversation),
            json!({"items": [said("a"), {"id": "msg_x"}]}),
            "item_not_found",
            "items[1].id",
        ),
    ] {
        let refused = server.send("POST", &path, &body).await;
        let answer = (
            refused.status,
            refused.error_code(),
            refused.json()["error"]["param"].clone(),
        );
        assert_eq!(answer, (400, code.into(), json!(param)));
    }
    for body in ["[]", "{", "nonsense", "\u{1}"] {
        let post = http().post(server.url(CONVERSATIONS)).body(body);
        let refused = request(post).await;
        assert_eq!(
            (refused.status, refused.error_code()),
            (400, "invalid_json".into())
        );
    }
}

#[tokio::test]
async fn a_conversation_is_its_owners_only() {
    let keys = [b"one", b"two"].map(|key| Tenant::of_key(key));
    let settings = Settings {
        access: Access::Keys(keys.into()),
        ..Settings::default()
    };
    let server = TestServer::with("", settings).await;
    let ask = |method: &str, path: &str, key: &str| {
        let method = method.parse().unwrap();
        let body = r#"{"items":[{"role":"user","content":"a"}],"metadata":{}}"#;
        request(
            http()
                .request(method, server.url(path))
                .bearer_auth(key)
                .body(body),
        )
    };
    let made = ask("POST", CONVERSATIONS, "one").await.json();
    let list = ask("GET", &items_path(&made), "one").await.json();
    let item = format!(
        "{}/{}",
        items_path(&made),
        list["first_id"].as_str().unwrap()
    );
    for (key, status) in [("two", 404), ("one", 200)] {
        for (method, path) in [
            ("GET", path(&made)),
            ("POST", path(&made)),
            ("GET", items_path(&made)),
            ("POST", items_path(&made)),
            ("GET", item.clone()),
            ("DELETE", item.clone()),
            ("DELETE", path(&made)),
        ] {
            assert_eq!(
                ask(method, &path, key).await.status,
                status,
                "{method} {path}"
            );
        }
    }
}

#[tokio::test]
async fn a_path_says_which_methods_it_answers() {
    let server = TestServer::start("").await;
    for (path, allowed) in [
        ("/health", "GET, HEAD"),
        ("/v1/models", "GET, HEAD"),
        ("/v1/responses", "GET, POST"),
        ("/v1/responses/compact", "POST"),
        ("/v1/responses/input_tokens", "POST"),
        ("/v1/responses/resp_1", "DELETE, GET, HEAD"),
        ("/v1/responses/resp_1/input_items", "GET, HEAD"),
        ("/v1/responses/resp_1/cancel", "POST"),
        ("/v1/conversations", "POST"),
        ("/v1/conversations/conv_1", "DELETE, GET, HEAD, POST"),
        ("/v1/conversations/conv_1/items", "GET, HEAD, POST"),
        ("/v1/conversations/conv_1/items/msg_1", "DELETE, GET, HEAD"),
    ] {
        for (method, status) in [("OPTIONS", 204), ("PATCH", 405)] {
            let answer = server.send(method, path, &json!({})).await;
            let told = answer.headers["allow"].to_str().unwrap();
            assert_eq!((answer.status, told), (status, allowed), "{method} {path}");
        }
    }
    for path in [
        "/v1/conversations/conv_1/other",
        "/v1/conversations/conv_1/items/a/b",
    ] {
        assert_eq!(server.get(path).await.error_code(), "not_found");
    }
    let head = request(http().head(server.url("/v1/models"))).await;
    assert_eq!((head.status, &*head.text), (200, ""));
}
