//! The program itself: its exit codes and its end.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use turnwire_client::{Connection, Error};

fn serve(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnwire"));
    command.arg("serve").args(flags).env_clear();
    command.stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Starts the program on a free port and reads the address from its log.
async fn started() -> (Child, String) {
    let mut program = serve(&["--engine", "scripted", "--listen", "127.0.0.1:0"])
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
            return (program, format!("http://{}/v1", address.trim()));
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
            &["--engine", "scripted", "--api-key-file", "/no/such/key"],
            1,
            "/no/such/key: No such",
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

#[tokio::test]
async fn a_signal_to_end_closes_sockets_with_1001() {
    for signal in ["-TERM", "-INT"] {
        let (mut program, url) = started().await;
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
