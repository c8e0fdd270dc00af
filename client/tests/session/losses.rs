//! Connections that are lost, refused or too old. Where something waits, the clock is paused: it
//! jumps ahead when every task waits for it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, advance};
use turnwire_client::{Error, Remedy, Repeat, Session, Settings, TurnEvent};

use crate::asking::*;
use crate::fake::*;

fn repeating(repeat: Repeat) -> Settings {
    Settings {
        repeat,
        ..Settings::default()
    }
}

/// How many items a request has, and whether it names a parent.
fn form(request: &Value) -> (usize, bool) {
    let items = request["input"].as_array().unwrap().len();
    (items, request.get("previous_response_id").is_some())
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_said_nothing_yet_is_sent_again_with_the_history() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let client = async {
        let mut lane = session.lane("a").unwrap();
        complete(&mut lane, create("one")).await;
        let began = Instant::now();
        let mut turn = lane.create(create("two")).await.unwrap();
        let mut seen = Vec::new();
        while let Some(event) = turn.next().await.unwrap() {
            seen.push(event);
        }
        let [
            TurnEvent::Created(first),
            TurnEvent::Restarted,
            TurnEvent::Created(second),
            TurnEvent::TextDelta { .. },
            TurnEvent::Ended(_),
        ] = &seen[..]
        else {
            panic!("{seen:?}")
        };
        assert_eq!(
            (first.id.as_str(), second.id.as_str()),
            ("resp_2", "resp_3")
        );
        let waited = began.elapsed().as_millis();
        assert!((375..=510).contains(&waited), "{waited} ms");
    };
    let server = async {
        let mut peer = fake.socket().await;
        peer.read().await;
        peer.say(Some("a"), "resp_1", "uno").await;
        assert_eq!(form(&peer.read().await), (1, true));
        peer.send(lifecycle(Some("a"), "created", "resp_2", &[]))
            .await;
        peer.close(1012).await;
        let mut peer = fake.socket().await;
        assert_eq!(form(&peer.read().await), (3, false));
        peer.say(Some("a"), "resp_3", "due").await;
    };
    tokio::join!(client, server);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_has_spoken_is_sent_again_only_if_it_may_be() {
    for (repeat, again) in [
        (Repeat::Never, false),
        (Repeat::BeforeOutput, false),
        (Repeat::Always, true),
    ] {
        let fake = Fake::start().await;
        let session = Session::new(&fake.url(), repeating(repeat)).unwrap();
        let client = async {
            let mut lane = session.default_lane().unwrap();
            let response = lane.create(create("one")).await.unwrap().finish().await;
            assert_eq!(response.is_ok(), again, "{response:?}");
            if let Err(error) = response {
                assert!(matches!(error, Error::Closed { code: None, .. }), "{error}");
                assert_eq!(error.remedy(), Remedy::Repeat { after: None });
            }
        };
        let server = async {
            let mut peer = fake.socket().await;
            peer.read().await;
            for event in &spoken(None, "resp_1", "uno")[..2] {
                peer.send(event.clone()).await;
            }
            drop(peer);
            if again {
                let mut peer = fake.socket().await;
                peer.read().await;
                peer.say(None, "resp_2", "due").await;
            }
        };
        tokio::join!(client, server);
    }
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_always_loses_its_connection_is_given_up() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let client = async {
        let mut lane = session.default_lane().unwrap();
        let began = Instant::now();
        let lost = lane.create(create("one")).await.unwrap().finish().await;
        assert!(matches!(lost, Err(Error::Closed { .. })), "{lost:?}");
        // The sum of all pauses, without up to a quarter of each.
        let waited = began.elapsed().as_millis();
        assert!((11_625..=15_600).contains(&waited), "{waited} ms");
    };
    let server = async {
        for _ in 0..=5 {
            fake.socket().await.read().await;
        }
    };
    tokio::join!(client, server);
}

#[tokio::test(start_paused = true)]
async fn lanes_that_lose_one_socket_go_to_one_other() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let client = async {
        let mut lanes = [session.lane("a").unwrap(), session.lane("b").unwrap()];
        let [a, b] = &mut lanes;
        let (a, b) = tokio::join!(a.create(create("one")), b.create(create("two")));
        let (a, b) = tokio::join!(a.unwrap().finish(), b.unwrap().finish());
        assert_eq!(
            (a.unwrap().text(), b.unwrap().text()),
            ("A".into(), "B".into())
        );
    };
    let server = async {
        let mut peer = fake.socket().await;
        for lane in ["a", "b"] {
            assert_eq!(peer.read().await["stream_id"], lane);
            peer.send(lifecycle(Some(lane), "created", "resp_1", &[]))
                .await;
            // An event of the vendor's is nothing that the model said.
            let limits = json!({"type": "codex.rate_limits", "plan_type": "pro"});
            peer.send(on_lane(Some(lane), limits)).await;
        }
        peer.close(1012).await;
        let mut peer = fake.socket().await;
        for _ in 0..2 {
            let request = peer.read().await;
            let lane = request["stream_id"].as_str().unwrap();
            let text = lane.to_uppercase();
            peer.say(Some(lane), &format!("resp_{text}"), &text).await;
        }
        peer
    };
    tokio::join!(client, server);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_asks_for_time_gets_it() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let client = async {
        let began = Instant::now();
        session.connect().await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 7);
    };
    let server = async {
        let busy = fake.visitor().await;
        busy.answer(503, "retry-after: 7\r\n", "").await;
        fake.socket().await
    };
    tokio::join!(client, server);
}

#[tokio::test]
async fn a_refusal_for_good_and_an_address_without_a_server_are_told_at_once() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let server = async {
        let body = r#"{"error":{"message":"no such key"}}"#;
        fake.visitor().await.answer(401, "", body).await;
    };
    let (refused, ()) = tokio::join!(session.connect(), server);
    let refused = refused.unwrap_err();
    assert_eq!(refused.remedy(), Remedy::ChangeKey);
    assert_eq!(
        refused.to_string(),
        "the server refused with HTTP status 401: no such key"
    );

    let url = fake.url();
    drop(fake);
    let nobody = Session::new(&url, Settings::default()).unwrap();
    let error = nobody.connect().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_turn_that_finds_the_socket_too_old_goes_to_a_new_one() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let client = async {
        let mut lane = session.lane("a").unwrap();
        let mut busy = session.default_lane().unwrap();
        let mut turn = busy.create(create("long")).await.unwrap();
        turn.next().await.unwrap();
        let response = complete(&mut lane, create("one")).await;
        assert_eq!(response.text(), "uno");
        // What runs on the old one comes to its end.
        assert_eq!(turn.finish().await.unwrap().text(), "lungo");
    };
    let server = async {
        let mut old = fake.socket().await;
        old.read().await;
        let [created, delta, completed] = spoken(None, "resp_1", "lungo");
        old.send(created).await;
        old.read().await;
        // One error is about the connection, the other about the create that came too late.
        old.send(error(None, "websocket_connection_limit_reached"))
            .await;
        old.send(error(Some("a"), "websocket_connection_limit_reached"))
            .await;
        let mut new = fake.socket().await;
        assert_eq!(new.read().await["stream_id"], "a");
        new.say(Some("a"), "resp_2", "uno").await;
        old.send(delta).await;
        old.send(completed).await;
        assert_eq!(old.closed().await, Some(1000));
        new
    };
    tokio::join!(client, server);
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_is_old_is_left_when_its_last_turn_has_ended() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let client = async {
        let mut short = session.lane("a").unwrap();
        let mut long = session.lane("b").unwrap();
        complete(&mut short, create("one")).await;
        let mut turn = long.create(create("long")).await.unwrap();
        turn.next().await.unwrap();
        advance(Duration::from_secs(55 * 60)).await;
        let response = complete(&mut short, create("two")).await;
        assert_eq!(response.text(), "due");
        assert_eq!(turn.finish().await.unwrap().text(), "lungo");
    };
    let server = async {
        let mut old = fake.socket().await;
        old.read().await;
        old.say(Some("a"), "resp_1", "uno").await;
        old.read().await;
        let [created, delta, completed] = spoken(Some("b"), "resp_2", "lungo");
        old.send(created).await;
        let mut new = fake.socket().await;
        assert_eq!(form(&new.read().await), (3, false));
        new.say(Some("a"), "resp_3", "due").await;
        old.send(delta).await;
        old.send(completed).await;
        assert_eq!(old.closed().await, Some(1000));
        new
    };
    tokio::join!(client, server);
}

#[tokio::test]
async fn a_lane_too_many_gets_a_socket_of_its_own() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let client = async {
        let mut lane = session.lane("a").unwrap();
        let turn = lane.create(create("one")).await.unwrap();
        assert_eq!(turn.finish().await.unwrap().text(), "uno");
    };
    let server = async {
        let mut full = fake.socket().await;
        full.read().await;
        full.send(error(Some("a"), "websocket_stream_limit_reached"))
            .await;
        let mut peer = fake.socket().await;
        assert_eq!(peer.read().await["stream_id"], "a");
        peer.say(Some("a"), "resp_1", "uno").await;
        assert_eq!(full.closed().await, Some(1000));
    };
    tokio::join!(client, server);
}

#[tokio::test]
async fn a_server_that_talks_nonsense_is_not_asked_again() {
    let fake = Fake::start().await;
    let session = Session::new(&fake.url(), Settings::default()).unwrap();
    let client = async {
        let mut lane = session.default_lane().unwrap();
        let error = lane.create(create("one")).await.unwrap().finish().await;
        let error = error.unwrap_err();
        assert!(matches!(error, Error::NotAnEvent(_)), "{error:?}");
        assert_eq!(error.remedy(), Remedy::ReportServer);
        // The next turn has a socket of its own.
        let response = complete(&mut lane, create("two")).await;
        assert_eq!(response.text(), "due");
    };
    let server = async {
        let mut peer = fake.socket().await;
        peer.read().await;
        peer.send(json!(["no", "event"])).await;
        let mut peer = fake.socket().await;
        assert_eq!(form(&peer.read().await), (1, false));
        peer.say(None, "resp_1", "due").await;
    };
    tokio::join!(client, server);
}
