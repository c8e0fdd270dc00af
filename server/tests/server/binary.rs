//! The program itself: its exit codes and its end.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use turnwire_client::{Connection, Error};

use crate::support::{create, response, turn};
use crate::tls::Identity;

type Log = Lines<BufReader<ChildStderr>>;

fn serve(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnwire"));
    command.arg("serve").args(flags).env_clear();
    // Nothing here is to be found in the data directory of whoever runs the tests.
    command.env("TURNWIRE_STORE", "memory");
    command.stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Starts the program on a free port and reads the address from its log, which tells everything.
pub(crate) async fn started(flags: &[&str]) -> (Child, String, Log) {
    let mut program = serve(&["--engine", "scripted", "--listen", "127.0.0.1:0"])
        .args(flags)
        .env("RUST_LOG", "trace")
        .spawn()
        .unwrap();
    let mut log = BufReader::new(program.stderr.take().unwrap()).lines();
    loop {
        let line = log
            .next_line()
            .await
            .unwrap()
            .expect("it listens before it ends");
        if let Some((_, address)) = line.split_once("listening address=") {
            let (address, scheme) = address.split_once(" scheme=").expect("a scheme");
            return (program, format!("{}://{address}/v1", scheme.trim()), log);
        }
    }
}

#[tokio::test]
async fn what_cannot_work_ends_with_a_reason_and_a_code() {
    for (flags, code, reason) in [
        (
            &["--engine", "scripted", "--listen", "0.0.0.0:0"][..],
            2,
            "--no-auth",
        ),
        (
            &["--engine", "scripted", "--engine", "scripted"],
            2,
            "NAME=SPEC",
        ),
        (&["--engine", "magic"], 2, "`magic` is no engine"),
        (
            &["--engine", "scripted:/no/such/file"],
            1,
            "/no/such/file: No such file",
        ),
        (
            &[
                "--engine",
                "scripted",
                "--tls-cert",
                "/no/such/cert",
                "--tls-key",
                "/no/such/key",
            ],
            1,
            "--tls-cert /no/such/cert: No such",
        ),
        (
            &["--engine", "scripted", "--api-key-file", "/no/such/key"],
            1,
            "/no/such/key: No such",
        ),
        (
            &["--engine", "scripted", "--secret-file", "/no/such/secret"],
            1,
            "/no/such/secret: it cannot be made: No such",
        ),
        (
            &[
                "--engine",
                "scripted",
                "--listen",
                "192.0.2.1:1",
                "--no-auth",
            ],
            1,
            "192.0.2.1:1",
        ),
    ] {
        let ended = serve(flags).output().await.unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(code), "{said}");
        assert_eq!(said.matches(reason).count(), 1, "{said}");
    }
}

/// A soft limit made for shells is no limit to connections; a hard one is, and it is said.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn as_many_files_as_the_system_grants_can_be_open() {
    let shell = "ulimit -Sn 100; ulimit -Hn 400; exec \"$0\" \"$@\"";
    for (connections, warns) in [("200", false), ("300", true)] {
        let mut program = Command::new("sh");
        program.args(["-c", shell, env!("CARGO_BIN_EXE_turnwire"), "serve"]);
        program.args(["--engine", "scripted", "--listen", "127.0.0.1:0"]);
        program.args(["--store", "memory"]).env_clear();
        program.args(["--max-connections", connections]);
        program.stderr(Stdio::piped()).kill_on_drop(true);
        let mut program = program.spawn().unwrap();
        let mut log = BufReader::new(program.stderr.take().unwrap()).lines();
        let mut warned = false;
        loop {
            let line = log.next_line().await.unwrap().expect("it listens");
            warned |= line.contains("--max-connections") && line.contains("open_files=400");
            if line.contains("listening") {
                break;
            }
        }
        assert_eq!(warned, warns);
        let id = program.id().expect("it runs");
        let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
        let files = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let files: Vec<_> = files.unwrap().split_whitespace().collect();
        assert_eq!(files[3], "400");
    }
}

#[tokio::test]
async fn a_turn_is_one_line_of_the_log_and_none_of_its_content_is_in_it() {
    let (mut program, url, mut log) = started(&[]).await;
    let mut connection = Connection::open(&url, Some("secret")).await.unwrap();
    let members = json!({
        "input": "secret",
        "instructions": "secret",
        "metadata": {"secret": "secret"},
        "tools": [{"type": "web_search"}, {"type": "file_search", "vector_store_ids": ["secret"]}, {"type": "custom", "name": "secret"}],
        "stream_id": "secret",
    });
    turn(&mut connection, &create(members)).await;
    let unknown = json!({"model": "secret", "input": "x"});
    turn(&mut connection, &create(unknown)).await;
    connection.send("secret").await.unwrap();
    connection.next().await.unwrap();
    connection.close().await.unwrap();
    program.start_kill().unwrap();
    let mut lines = Vec::new();
    while let Some(line) = log.next_line().await.unwrap() {
        lines.push(line);
    }
    let turns: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("turnwire::turn"))
        .collect();
    assert_eq!(turns.len(), 2, "{lines:#?}");
    assert!(
        turns[0].contains("model=\"scripted\"")
            && turns[0].contains("tools.not_offered=2: file_search, web_search"),
        "{turns:?}"
    );
    assert!(turns[1].contains("outcome=model_not_found"), "{turns:?}");
    assert!(!lines.concat().contains("secret"), "{lines:#?}");
}

#[tokio::test]
async fn with_a_certificate_it_speaks_tls_and_says_so() {
    let identity = Identity::new();
    let (certificate, key) = (identity.certificate_file(), identity.key_file());
    let paths = [&certificate, &key].map(|path| path.to_str().unwrap());
    let flags = ["--tls-cert", paths[0], "--tls-key", paths[1]];
    let (_program, url, _log) = started(&flags).await;
    assert!(url.starts_with("https://"), "{url}");
    let connection = Connection::open_with(&url, &identity.options()).await;
    let events = turn(&mut connection.unwrap(), &create(json!({"input": "x"}))).await;
    assert_eq!(response(&events)["status"], "completed");
}

#[tokio::test]
async fn a_signal_to_end_closes_sockets_with_1001() {
    for signal in ["-TERM", "-INT"] {
        let (mut program, url, _log) = started(&[]).await;
        let mut connection = Connection::open(&url, None).await.unwrap();
        let id = program.id().expect("it runs").to_string();
        let told = Command::new("kill")
            .args([signal, &id])
            .status()
            .await
            .unwrap();
        assert!(told.success());
        let closed = connection.next().await.unwrap_err();
        assert!(
            matches!(
                closed,
                Error::Closed {
                    code: Some(1001),
                    ..
                }
            ),
            "{closed}"
        );
        drop(connection);
        assert_eq!(program.wait().await.unwrap().code(), Some(0));
    }
}

#[tokio::test]
async fn a_check_ends_with_a_code_that_says_what_was_found() {
    let (_program, url, mut log) = started(&[]).await;
    // A log that nobody reads would fill its pipe and stop the program.
    tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
    let check = async |flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnwire"));
        let ended = command.arg("check").args(flags).output().await.unwrap();
        let said = String::from_utf8(ended.stdout).unwrap();
        (ended.status.code(), said)
    };
    let (code, said) = check(&[&url, "--rows", "1,27,40", "--json"]).await;
    assert_eq!(code, Some(0), "{said}");
    let report: Value = serde_json::from_str(&said).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let found: Vec<_> = checks.iter().map(|check| &check["status"]).collect();
    assert_eq!(found, ["pass", "skip", "pass"]);

    // This server keeps connections for an hour.
    let young = ["--rows", "25", "--age-limit", "1ms", "--timeout", "1s"];
    let (code, said) = check(&[&[url.as_str()], &young[..]].concat()).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("FAIL  25"), "{said}");

    for wrong in [&["http://127.0.0.1:1/v1"][..], &[&url, "--rows", "180"]] {
        assert_eq!(check(wrong).await.0, Some(2));
    }
}
