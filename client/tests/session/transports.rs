//! Sessions without a socket.

use serde_json::{Value, json};
use turnwire_client::{Error, Session, Settings, Transport};

use crate::asking::*;
use crate::fake::*;

#[tokio::test]
async fn a_server_that_refuses_sockets_is_asked_over_http_from_then_on() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let client = async {
        let mut lane = session.lane("a").unwrap();
        for (input, output) in [("one", "uno"), ("two", "due")] {
            let response = complete(&mut lane, create(input)).await;
            assert_eq!(response.text(), output);
        }
        assert!(session.is_http().await);
        let mut stored = session.lane("b").unwrap();
        for input in ["one", "two"] {
            let turn = stored.create(create(input).store(true)).await.unwrap();
            turn.finish().await.unwrap();
        }
        let warm_up = lane.create(create("x").generate(false)).await.unwrap_err();
        assert!(matches!(warm_up, Error::NotOverHttp(_)), "{warm_up}");
    };
    let server = async {
        fake.visitor().await.answer(426, "", "").await;
        // How many items come, and after which parent.
        for (id, items, parent, text) in [
            ("resp_1", 1, Value::Null, "uno"),
            ("resp_2", 3, Value::Null, "due"),
            ("resp_3", 1, Value::Null, "tre"),
            ("resp_4", 1, json!("resp_3"), "quattro"),
        ] {
            let visitor = fake.visitor().await;
            let body = &visitor.body;
            assert_eq!(body["input"].as_array().unwrap().len(), items);
            assert_eq!(body["previous_response_id"], parent);
            assert_eq!(
                (&body["stream"], &body["stream_id"]),
                (&json!(true), &Value::Null)
            );
            visitor.stream(&spoken(None, id, text)).await;
        }
    };
    tokio::join!(client, server);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_off_and_a_parent_that_is_unknown_are_made_good() {
    let fake = Fake::start().await;
    let settings = Settings {
        transport: Transport::Http,
        ..Settings::default()
    };
    let session = Session::new(&fake.url(), settings).unwrap();
    let client = async {
        let mut lane = session.default_lane().unwrap();
        for (input, output) in [("one", "uno"), ("two", "due")] {
            let turn = lane.create(create(input).store(true)).await.unwrap();
            assert_eq!(turn.finish().await.unwrap().text(), output);
        }
        let busy = lane.create(create("three")).await.unwrap_err();
        let Error::Answered(failure) = busy else {
            panic!("{busy}")
        };
        assert_eq!(failure.status, Some(429));
        assert_eq!(failure.retry_after.unwrap().as_secs(), 9);
    };
    let server = async {
        let created = lifecycle(None, "created", "resp_0", &[]);
        fake.visitor().await.stream(&[created]).await;
        fake.visitor()
            .await
            .stream(&spoken(None, "resp_1", "uno"))
            .await;
        let visitor = fake.visitor().await;
        assert_eq!(visitor.body["previous_response_id"], "resp_1");
        let body = json!({"error": {"code": "previous_response_not_found", "message": "gone"}});
        visitor.answer(400, "", &body.to_string()).await;
        let visitor = fake.visitor().await;
        assert_eq!(visitor.body["input"].as_array().unwrap().len(), 3);
        visitor.stream(&spoken(None, "resp_2", "due")).await;
        let body = json!({"error": {"code": "rate_limit_exceeded", "message": "slowly"}});
        let visitor = fake.visitor().await;
        visitor
            .answer(429, "retry-after: 9\r\n", &body.to_string())
            .await;
    };
    tokio::join!(client, server);
}
