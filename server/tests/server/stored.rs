//! Stored responses: what they were given, and how they are forgotten.

use async_openai::types::responses::ItemResourceItem;
use serde_json::{Value, json};
use turnwire::auth::{Access, Tenant};

use crate::support::*;

const CALL_FIRST: &str = "
    [[reply]]
    user_contains = 'look'
    steps = [{reasoning = 'hm'}, {call = 'look', arguments = '{}'}]
    [[reply]]
    steps = [{text = 'seen'}]
";

/// A conversation of two stored turns: a call, and its output.
async fn looked(server: &TestServer) -> (Value, Value) {
    let mut connection = server.connect().await;
    let first = json!({
        "input": [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "look"}],
        "tools": [tool("look", &json!({}))],
    });
    let first = response(&turn(&mut connection, &create(first)).await);
    let call = &first["output"][1];
    let second = json!({
        "previous_response_id": first["id"],
        "input": [
            {"type": "function_call_output", "call_id": call["call_id"], "output": "stars"},
            {"type": "message", "id": "msg_mine", "role": "user", "content": [{"type": "input_text", "text": "and?"}]},
        ],
    });
    let second = response(&turn(&mut connection, &create(second)).await);
    assert_eq!(second["status"], "completed");
    (first, second)
}

fn path(response: &Value) -> String {
    format!("/v1/responses/{}", response["id"].as_str().unwrap())
}

fn ids(list: &Value) -> Vec<&str> {
    let data = list["data"].as_array().unwrap();
    data.iter()
        .map(|item| item["id"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn what_a_response_was_given_is_listed_in_full() {
    let server = TestServer::start(CALL_FIRST).await;
    let (first, second) = looked(&server).await;
    let items = format!("{}/input_items", path(&second));
    let list = server.get(&format!("{items}?order=asc")).await.json();
    for item in list["data"].as_array().unwrap() {
        let read = serde_json::from_value::<ItemResourceItem>(item.clone());
        assert!(read.is_ok(), "{item}: {read:?}");
    }
    assert_eq!(list["data"].as_array().unwrap().len(), 6);
    assert_eq!(
        list["data"][0]["content"],
        json!([{"type": "input_text", "text": "be brief"}])
    );
    assert_eq!(list["data"][1]["role"], "user");
    assert_eq!(list["data"][2], first["output"][0]);
    assert_eq!(list["data"][3], first["output"][1]);
    assert_eq!(list["data"][4]["output"], "stars");
    assert_eq!(
        list["data"][5],
        json!({"type": "message", "id": "msg_mine", "role": "user", "content": [{"type": "input_text", "text": "and?"}], "status": "completed"})
    );
    let expected = json!({
        "object": "list",
        "data": list["data"],
        "first_id": list["data"][0]["id"],
        "last_id": "msg_mine",
        "has_more": false,
    });
    assert_eq!(list, expected);
    let own = server.get(&format!("{}/input_items", path(&first))).await;
    assert_eq!(ids(&own.json()), [ids(&list)[1], ids(&list)[0]]);
}

#[tokio::test]
async fn pages_follow_one_another_in_both_directions() {
    let server = TestServer::start(CALL_FIRST).await;
    let (_, second) = looked(&server).await;
    let items = format!("{}/input_items", path(&second));
    let all = server.get(&format!("{items}?order=asc")).await.json();
    for order in ["asc", "desc"] {
        let mut seen = Vec::new();
        let mut after = String::new();
        loop {
            let path = format!(
                "{items}?order={order}&limit=4&include[]=reasoning.encrypted_content{after}"
            );
            let page = server.get(&path).await.json();
            seen.extend(ids(&page).into_iter().map(ToOwned::to_owned));
            assert_eq!(page["last_id"], *seen.last().unwrap());
            if page["has_more"] == false {
                break;
            }
            assert_eq!(page["data"].as_array().unwrap().len(), 4);
            after = format!("&after={}", seen.last().unwrap());
        }
        if order == "desc" {
            seen.reverse();
        }
        assert_eq!(seen, ids(&all));
    }
}

#[tokio::test]
async fn wrong_parameters_are_refused_by_name() {
    let server = TestServer::start(CALL_FIRST).await;
    let (first, _) = looked(&server).await;
    for (query, param) in [
        ("/input_items?limit=0", "limit"),
        ("/input_items?limit=101", "limit"),
        ("/input_items?limit=many", "limit"),
        ("/input_items?order=up", "order"),
        ("/input_items?after=msg_other", "after"),
        ("?stream=true", "stream"),
        ("?stream=maybe", "stream"),
    ] {
        let answer = server.get(&(path(&first) + query)).await;
        let param_of = answer.json()["error"]["param"].clone();
        assert_eq!((answer.status, param_of), (400, json!(param)), "{query}");
    }
    let get = path(&first) + "?include[]=reasoning.encrypted_content&stream=false&beta=true";
    assert_eq!(server.get(&get).await.json(), first);
}

#[tokio::test]
async fn a_deleted_response_can_be_named_no_more() {
    let server = TestServer::start(CALL_FIRST).await;
    let (first, second) = looked(&server).await;
    let items = format!("{}/input_items", path(&second));
    let before = server.get(&items).await.json();

    let deleted = request(http().delete(server.url(&path(&first)))).await;
    let expected = json!({"id": first["id"], "object": "response", "deleted": true});
    assert_eq!((deleted.status, deleted.json()), (200, expected));

    let cancel = format!("{}/cancel", path(&first));
    let list = format!("{}/input_items", path(&first));
    for asked in [
        http().get(server.url(&path(&first))),
        http().get(server.url(&list)),
        http().post(server.url(&cancel)),
        http().delete(server.url(&path(&first))),
    ] {
        let answer = request(asked).await;
        assert_eq!(
            (answer.status, answer.error_code()),
            (404, "response_not_found".into())
        );
    }
    let fork = create(json!({"previous_response_id": first["id"], "input": "x"}));
    let refused = turn(&mut server.connect().await, &fork).await;
    assert_eq!(error_code(&refused), "previous_response_not_found");

    // What continues it is whole, and goes on.
    assert_eq!(server.get(&items).await.json(), before);
    let next = json!({"model": "scripted", "previous_response_id": second["id"], "input": "x"});
    assert_eq!(server.post(&next).await.json()["status"], "completed");
}

#[tokio::test]
async fn a_lane_goes_on_from_its_latest_response_even_if_that_was_deleted() {
    let server = TestServer::start("").await;
    let mut connection = server.connect().await;
    let made = response(&turn(&mut connection, &create(json!({"input": "x"}))).await);
    request(http().delete(server.url(&path(&made)))).await;
    let next = create(json!({"previous_response_id": made["id"], "input": "y"}));
    let next = response(&turn(&mut connection, &next).await);
    assert_eq!(next["status"], "completed");
    let items = server.get(&format!("{}/input_items", path(&next))).await;
    assert_eq!(ids(&items.json()).len(), 3);
    assert_eq!(server.get(&path(&made)).await.status, 404);
}

#[tokio::test]
async fn only_a_response_in_the_background_can_be_cancelled() {
    let server = TestServer::start("").await;
    let made = server
        .post(&json!({"model": "scripted", "input": "x"}))
        .await
        .json();
    let cancel = |id: &str| request(http().post(server.url(&format!("/v1/responses/{id}/cancel"))));
    let known = cancel(made["id"].as_str().unwrap()).await;
    assert_eq!(
        (known.status, known.error_code()),
        (400, "not_a_background_response".into())
    );
    let unknown = cancel("resp_1").await;
    assert_eq!(
        (unknown.status, unknown.error_code()),
        (404, "response_not_found".into())
    );
}

#[tokio::test]
async fn an_item_is_named_by_its_own_id_or_by_the_one_it_is_listed_by() {
    let server = TestServer::start(CALL_FIRST).await;
    let (_, second) = looked(&server).await;
    let items = format!("{}/input_items?order=asc", path(&second));
    let list = server.get(&items).await.json();
    let brief = json!({"type": "item_reference", "id": list["data"][0]["id"]});
    let mine = json!({"id": "msg_mine"});
    let mut connection = server.connect().await;
    let mut items_after = async |members: Value| -> Value {
        let made = response(&turn(&mut connection, &create(members)).await);
        assert_eq!(made["status"], "completed", "{made}");
        let list = server.get(&format!("{}/input_items", path(&made))).await;
        json!(list.json()["data"].as_array().unwrap().len())
    };
    // A new chain gets the items; one that has them already gets nothing.
    let input = json!([brief, mine, {"role": "user", "content": "again"}]);
    assert_eq!(items_after(json!({"input": input})).await, 3);
    let more = json!({"previous_response_id": second["id"], "input": input});
    assert_eq!(items_after(more).await, 8);
}

#[tokio::test]
async fn what_is_stored_is_deleted_and_listed_by_its_owner_only() {
    let keys = [b"one", b"two"].map(|key| Tenant::of_key(key));
    let settings = Settings {
        access: Access::Keys(keys.into()),
        ..Settings::default()
    };
    let server = TestServer::with("", settings).await;
    let body = json!({"model": "scripted", "input": "x"}).to_string();
    let post = http().post(server.url("/v1/responses")).bearer_auth("one");
    let made = request(post.body(body)).await.json();
    let reference = json!([{"type": "item_reference", "id": made["output"][0]["id"]}]);
    let named = json!({"model": "scripted", "store": false, "input": reference}).to_string();
    let path = path(&made);
    let items = format!("{path}/input_items");
    for (key, status) in [("two", 404), ("one", 200)] {
        let get = http().get(server.url(&items)).bearer_auth(key);
        assert_eq!(request(get).await.status, status);
        let refer = http().post(server.url("/v1/responses")).bearer_auth(key);
        let found = request(refer.body(named.clone())).await.status == 200;
        assert_eq!(found, status == 200);
        let delete = http().delete(server.url(&path)).bearer_auth(key);
        assert_eq!(request(delete).await.status, status);
    }
}
