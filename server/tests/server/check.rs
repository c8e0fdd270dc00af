//! `turnwire check` against this server: every rule that can be seen from outside holds.

use std::fs;
use std::time::Duration;

use turnwire::auth::{Access, Tenant};
use turnwire_check::{Check, Report, Status};
use turnwire_protocol::limits::Limits;

use crate::support::*;
use crate::tls::Identity;

/// A model that does what the checklist asks for.
const SCRIPT: &str = include_str!("../../../check/obliging.toml");

/// What cannot be seen from outside, what this server says that it does not have, and what the
/// script does not do.
const MAY_SKIP: &[u16] = &[
    // The age limit is judged below.
    25, 26, //
    // Configuration, shutdown, memory, disk and time.
    27, 28, 104, 105, 114, 137, 153, 159, //
    // No engine refuses, fails or limits rates on request.
    75, 76, 82, 102, //
    // Other programs.
    174, 175, 176, 177, 178, //
    // Reasoning summaries.
    64,
];

fn settings() -> Settings {
    Settings {
        access: Access::Keys([Tenant::of_key(b"one")].into()),
        capacity: Capacity {
            connections: 1000,
            background: 100,
        },
        ..Settings::default()
    }
}

#[tokio::test]
async fn every_rule_that_can_be_seen_holds() {
    let server = TestServer::with(SCRIPT, settings()).await;
    expect_conforming(&Check::new(server.url("/v1")).key("one")).await;
}

#[tokio::test]
async fn every_rule_that_can_be_seen_holds_over_tls() {
    let identity = Identity::new();
    let server = identity.serve(SCRIPT, settings()).await;
    let certificate = fs::read(identity.certificate_file()).unwrap();
    let check = Check::new(server.url("/v1")).key("one");
    expect_conforming(&check.root_certificates(certificate)).await;
}

async fn expect_conforming(check: &Check) {
    let report = check.run().await.unwrap();
    let table = report.table(false);
    assert!(report.is_clean(), "{table}");
    let mut skipped = rows(&report, Status::Skip);
    skipped.retain(|row| !MAY_SKIP.contains(row));
    assert_eq!(skipped, [0; 0], "{table}");
}

#[tokio::test]
async fn the_age_limit_is_judged_where_it_is_short_enough_to_wait_for() {
    let age = Duration::from_millis(300);
    let settings = Settings {
        limits: Limits {
            connection_age: Some(age),
            ..Limits::default()
        },
        ..Settings::default()
    };
    let server = TestServer::with(SCRIPT, settings).await;
    let check = Check::new(server.url("/v1")).rows([25, 26]).age_limit(age);
    let report = check.run().await.unwrap();
    assert_eq!(
        rows(&report, Status::Pass),
        [25, 26],
        "{}",
        report.table(false)
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_and_a_model_that_is_not_served_are_no_failures() {
    let nowhere = Check::new("http://127.0.0.1:1/v1").run().await;
    let error = nowhere.unwrap_err().to_string();
    assert!(error.contains("http://127.0.0.1:1/v1"), "{error}");
    let server = TestServer::start("").await;
    let unknown = Check::new(server.url("/v1")).model("gpt-9").run().await;
    let error = unknown.unwrap_err().to_string();
    assert!(error.contains("gpt-9"), "{error}");
}

fn rows(report: &Report, status: Status) -> Vec<u16> {
    report.with(status).map(|finding| finding.row).collect()
}
