//! `--zero-retention`: the program keeps nothing, whatever it is asked to keep.

use serde_json::json;

use crate::binary::started;
use crate::support::*;

#[tokio::test]
async fn every_request_is_one_with_store_false() {
    let (_program, url, _log) = started(&["--zero-retention"]).await;
    let post = async |members: serde_json::Value| {
        let body = create(members).to_string();
        request(http().post(format!("{url}/responses")).body(body)).await
    };
    let response = post(json!({"input": "x", "store": true})).await.json();
    assert_eq!(response["status"], "completed");
    assert_eq!(response["store"], false);

    let path = format!("{url}/responses/{}", response["id"].as_str().unwrap());
    for asked in [
        http().get(&path),
        http().delete(&path),
        http().get(format!("{path}/input_items")),
    ] {
        assert_eq!(request(asked).await.status, 404);
    }
    let next = json!({"input": "y", "previous_response_id": response["id"]});
    let unknown = post(next).await;
    assert_eq!(unknown.error_code(), "previous_response_not_found");

    for (member, value) in [
        ("background", json!(true)),
        ("conversation", json!("conv_1")),
    ] {
        let refused = post(json!({"input": "x", member: value})).await;
        assert_eq!(
            (refused.status, refused.text.contains("retains nothing")),
            (400, true)
        );
        assert_eq!(refused.json()["error"]["param"], member);
    }
}

/// Whatever the limits are that it was started with.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_crash_leaves_no_core_dump() {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;

    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::process::Command;

    let place = tempfile::tempdir().unwrap();
    let as_large_as_allowed = "ulimit -Sc \"$(ulimit -Hc)\"; exec \"$0\" \"$@\"";
    let mut program = Command::new("sh");
    program.args([
        "-c",
        as_large_as_allowed,
        env!("CARGO_BIN_EXE_turnwire"),
        "serve",
    ]);
    program.args(["--engine", "scripted", "--listen", "127.0.0.1:0"]);
    program.env_clear().env("TURNWIRE_ZERO_RETENTION", "1");
    program
        .current_dir(&place)
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut program = program.spawn().unwrap();
    let mut log = BufReader::new(program.stderr.take().unwrap()).lines();
    while !log
        .next_line()
        .await
        .unwrap()
        .expect("it listens")
        .contains("listening")
    {}

    let id = program.id().expect("it runs");
    let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let core: Vec<_> = core.unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"]);

    let killed = Command::new("kill")
        .args(["-ABRT", &id.to_string()])
        .status()
        .await;
    assert!(killed.unwrap().success());
    let ended = program.wait().await.unwrap();
    assert_eq!((ended.signal(), ended.core_dumped()), (Some(6), false));
    assert_eq!(place.path().read_dir().unwrap().count(), 0);
}
