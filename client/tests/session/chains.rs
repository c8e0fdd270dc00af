//! What a lane sends, turn after turn.

use serde_json::{Value, json};
use turnwire_client::{Error, Session, Settings, SteerNotice, TurnEvent, item};

use crate::asking::*;
use crate::fake::*;

fn user(text: &str) -> Value {
    json!({"type": "message", "role": "user", "content": text})
}

#[tokio::test]
async fn a_lane_sends_only_what_is_new() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let client = async {
        let mut lane = session.lane("a").unwrap();
        let mut turn = lane
            .create(create("one").instructions("be kind"))
            .await
            .unwrap();
        let mut seen = Vec::new();
        while let Some(event) = turn.next().await.unwrap() {
            seen.push(event);
        }
        let [
            TurnEvent::Created(created),
            TurnEvent::TextDelta { delta, .. },
            TurnEvent::Ended(ended),
        ] = &seen[..]
        else {
            panic!("{seen:?}")
        };
        assert_eq!((created.id.as_str(), delta.as_str()), ("resp_1", "uno"));
        assert_eq!(ended.text(), "uno");
        drop(turn);
        let response = complete(&mut lane, create("two")).await;
        assert_eq!(response.text(), "due");
        assert_eq!(lane.last_response_id(), Some("resp_2"));
        assert_eq!(lane.history().len(), 4);
    };
    let server = async {
        let mut peer = fake.socket().await;
        let expected = json!({"type": "response.create", "stream_id": "a", "model": "m",
            "store": false, "instructions": "be kind", "input": [user("one")]});
        assert_eq!(peer.read().await, expected);
        peer.say(Some("a"), "resp_1", "uno").await;
        let expected = json!({"type": "response.create", "stream_id": "a", "model": "m",
            "store": false, "previous_response_id": "resp_1", "input": [user("two")]});
        assert_eq!(peer.read().await, expected);
        peer.say(Some("a"), "resp_2", "due").await;
    };
    tokio::join!(client, server);
}

#[tokio::test]
async fn a_parent_that_the_server_forgot_is_replaced_by_the_history_once() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let client = async {
        let mut lane = session.default_lane().unwrap();
        complete(&mut lane, create("one")).await;
        let response = complete(&mut lane, create("two")).await;
        assert_eq!(response.text(), "due");

        let refused = lane.create(create("three")).await.unwrap().finish().await;
        let Err(Error::Answered(failure)) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(failure.code.as_deref(), Some("previous_response_not_found"));
    };
    let server = async {
        let mut peer = fake.socket().await;
        peer.read().await;
        // Reasoning that cannot be read again is left out of the history.
        let output = [
            json!({"type": "reasoning", "id": "rs_1", "summary": []}),
            message("uno"),
        ];
        peer.send(lifecycle(None, "created", "resp_1", &[])).await;
        peer.send(lifecycle(None, "completed", "resp_1", &output))
            .await;

        assert_eq!(peer.read().await["previous_response_id"], "resp_1");
        peer.send(error(None, "previous_response_not_found")).await;
        let again = peer.read().await;
        assert_eq!(again.get("previous_response_id"), None);
        assert_eq!(
            again["input"],
            json!([user("one"), message("uno"), user("two")])
        );
        peer.say(None, "resp_2", "due").await;

        // A server that says the same of a whole history is not asked for ever.
        for parent in [json!("resp_2"), Value::Null] {
            assert_eq!(peer.read().await["previous_response_id"], parent);
            peer.send(error(None, "previous_response_not_found")).await;
        }
    };
    tokio::join!(client, server);
}

#[tokio::test]
async fn a_failed_or_cancelled_turn_leaves_the_lane_where_it_was() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let client = async {
        let mut lane = session.default_lane().unwrap();
        complete(&mut lane, create("one")).await;
        let mut turn = lane.create(create("two")).await.unwrap();
        turn.cancel().await;
        let cancelled = turn.finish().await.unwrap();
        assert_eq!(cancelled.status, turnwire_client::Status::Cancelled);
        let failed = complete(&mut lane, create("three")).await;
        assert_eq!(failed.failure.unwrap().message, "sorry");
        assert_eq!(lane.last_response_id(), Some("resp_1"));
        assert_eq!(lane.history().len(), 2);
    };
    let server = async {
        let mut peer = fake.socket().await;
        peer.read().await;
        peer.say(None, "resp_1", "uno").await;
        peer.read().await;
        // The cancellation waits until there is an id to name.
        peer.send(lifecycle(None, "created", "resp_2", &[])).await;
        let expected = json!({"type": "response.cancel", "response_id": "resp_2"});
        assert_eq!(peer.read().await, expected);
        let mut end = lifecycle(None, "incomplete", "resp_2", &[]);
        end["response"]["status"] = "cancelled".into();
        peer.send(end).await;
        assert_eq!(peer.read().await["previous_response_id"], "resp_1");
        peer.send(lifecycle(None, "created", "resp_3", &[])).await;
        let mut end = lifecycle(None, "failed", "resp_3", &[]);
        end["response"]["error"] = json!({"code": "server_error", "message": "sorry"});
        peer.send(end).await;
    };
    tokio::join!(client, server);
}

#[tokio::test]
async fn a_turn_that_is_dropped_is_cancelled_and_its_events_do_not_reach_the_next() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let client = async {
        let mut lane = session.lane("a").unwrap();
        let mut turn = lane.create(create("one")).await.unwrap();
        turn.next().await.unwrap();
        drop(turn);
        let response = complete(&mut lane, create("two")).await;
        assert_eq!(response.text(), "due");
    };
    let server = async {
        let mut peer = fake.socket().await;
        peer.read().await;
        peer.send(lifecycle(Some("a"), "created", "resp_1", &[]))
            .await;
        assert_eq!(peer.read().await["response_id"], "resp_1");
        assert_eq!(peer.read().await["input"], json!([user("two")]));
        for event in &spoken(Some("a"), "resp_1", "uno")[1..] {
            peer.send(event.clone()).await;
        }
        peer.say(Some("a"), "resp_2", "due").await;
    };
    tokio::join!(client, server);
}

#[tokio::test]
async fn a_steered_turn_goes_on_with_its_successor() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let client = async {
        let mut lane = session.lane("a").unwrap();
        let mut turn = lane.create(create("one")).await.unwrap();
        turn.next().await.unwrap();
        turn.steer(vec![item::user("shorter")]).await.unwrap();
        let accepted = turn.next().await.unwrap();
        let expected = SteerNotice::Accepted {
            id: "steer_1".into(),
        };
        assert_eq!(accepted, Some(TurnEvent::Steer(expected)));
        let last = turn.finish().await.unwrap();
        assert_eq!((last.id.as_str(), last.text().as_str()), ("resp_2", "u"));
        let said: Vec<Value> = lane
            .history()
            .iter()
            .map(|item| item.to().unwrap())
            .collect();
        assert_eq!(
            said,
            [user("one"), message("un"), user("shorter"), message("u")]
        );
        assert_eq!(lane.last_response_id(), Some("resp_2"));
    };
    let server = async {
        let mut peer = fake.socket().await;
        peer.read().await;
        peer.send(lifecycle(Some("a"), "created", "resp_1", &[]))
            .await;
        let expected = json!({"type": "response.steer", "previous_response_id": "resp_1",
            "input": [user("shorter")]});
        assert_eq!(peer.read().await, expected);
        let steer = json!({"id": "steer_1", "previous_response_id": "resp_1"});
        let accepted =
            json!({"type": "response.steer.accepted", "sequence_number": 1, "steer": steer});
        peer.send(on_lane(Some("a"), accepted)).await;
        peer.send(lifecycle(
            Some("a"),
            "incomplete",
            "resp_1",
            &[message("un")],
        ))
        .await;
        peer.say(Some("a"), "resp_2", "u").await;
    };
    tokio::join!(client, server);
}

#[tokio::test]
async fn a_fork_begins_where_its_source_is() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let client = async {
        let mut source = session.default_lane().unwrap();
        complete(&mut source, create("one")).await;
        let mut fork = source.fork("b").unwrap();
        assert!(matches!(source.fork("b"), Err(Error::LaneTaken { .. })));
        let fork = fork.create(create("left")).await.unwrap().finish();
        let source = source.create(create("right")).await.unwrap().finish();
        let (fork, source) = tokio::join!(fork, source);
        assert_eq!(
            (fork.unwrap().text(), source.unwrap().text()),
            ("L".into(), "R".into())
        );
    };
    let server = async {
        let mut peer = fake.socket().await;
        peer.read().await;
        peer.say(None, "resp_1", "uno").await;
        for lane in [json!("b"), Value::Null] {
            let request = peer.read().await;
            assert_eq!(
                (&request["stream_id"], &request["previous_response_id"]),
                (&lane, &json!("resp_1"))
            );
        }
        let [left, right] = [
            spoken(Some("b"), "resp_2", "L"),
            spoken(None, "resp_3", "R"),
        ];
        for (left, right) in left.into_iter().zip(right) {
            peer.send(left).await;
            peer.send(right).await;
        }
    };
    tokio::join!(client, server);
}

#[tokio::test]
async fn what_stands_before_a_compaction_is_forgotten() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let compaction = json!({"type": "compaction", "id": "cmp_1", "encrypted_content": "…"});
    let client = async {
        let mut lane = session.default_lane().unwrap();
        complete(&mut lane, create("one")).await;
        let said: Vec<Value> = lane
            .history()
            .iter()
            .map(|item| item.to().unwrap())
            .collect();
        assert_eq!(said, [compaction.clone(), message("uno")]);
    };
    let server = async {
        let mut peer = fake.socket().await;
        peer.read().await;
        let output = [message("before"), compaction.clone(), message("uno")];
        peer.send(lifecycle(None, "created", "resp_1", &[])).await;
        peer.send(lifecycle(None, "completed", "resp_1", &output))
            .await;
    };
    tokio::join!(client, server);
}

#[tokio::test]
async fn a_reader_that_is_slow_loses_nothing() {
    let fake = Fake::start().await;
    let settings = Settings {
        buffered_bytes: 1000,
        ..Settings::default()
    };
    let session = Session::new(&fake.url(), settings).unwrap();
    let mut lane = session.lane("a").unwrap();
    let opened = tokio::join!(lane.create(create("one")), fake.socket());
    let (turn, mut peer) = (opened.0.unwrap(), opened.1);
    peer.read().await;
    peer.send(lifecycle(Some("a"), "created", "resp_1", &[]))
        .await;
    for number in 0..100 {
        let delta = json!({"type": "response.output_text.delta", "item_id": "i",
            "delta": format!("{number} ")});
        peer.send(on_lane(Some("a"), delta)).await;
    }
    peer.send(lifecycle(Some("a"), "completed", "resp_1", &[]))
        .await;

    let mut turn = turn;
    let mut text = String::new();
    while let Some(event) = turn.next().await.unwrap() {
        if let TurnEvent::TextDelta { delta, .. } = event {
            text.push_str(&delta);
        }
    }
    let expected: String = (0..100).map(|number| format!("{number} ")).collect();
    assert_eq!(text, expected);
}

#[tokio::test]
async fn a_server_without_cancel_says_so_and_the_turn_goes_on() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let client = async {
        let mut lane = session.default_lane().unwrap();
        let mut turn = lane.create(create("one")).await.unwrap();
        turn.next().await.unwrap();
        turn.cancel().await;
        let told = turn.next().await.unwrap();
        assert!(matches!(told, Some(TurnEvent::Other(_))), "{told:?}");
        assert_eq!(turn.finish().await.unwrap().text(), "uno");
    };
    let server = async {
        let mut peer = fake.socket().await;
        peer.read().await;
        let [created, delta, completed] = spoken(None, "resp_1", "uno");
        peer.send(created).await;
        peer.read().await;
        let mut unknown = error(None, "invalid_value");
        unknown["error"]["param"] = "type".into();
        peer.send(unknown).await;
        peer.send(delta).await;
        peer.send(completed).await;
    };
    tokio::join!(client, server);
}
