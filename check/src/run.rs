//! Run: from a URL to a report.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;
use turnwire_client::{Connection, Http, Options};

use crate::case::Case;
use crate::probe;
use crate::rows::{Conversation, Judge, SECTIONS};
use crate::server::Server;
use crate::socket::Answer;
use crate::stop::Stop;
use crate::watch::Violations;
use crate::{Check, Error, Finding, Report, Status};

/// For a connection, which is not the model's to delay, and for the beginning of an HTTP answer,
/// which may be.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

pub(crate) async fn run(check: &Check) -> Result<Report, Error> {
    let server = Arc::new(meet(check).await?);
    let wanted = |conversation: &&'static Conversation| {
        let mut rows = conversation.rows.iter();
        let rows_wanted = check.rows.as_ref();
        rows_wanted.is_none_or(|wanted| rows.any(|row| wanted.contains(&row.number)))
    };
    let conversations = SECTIONS.iter().flat_map(|section| {
        let conversations = section.conversations.iter().filter(wanted);
        conversations.map(|conversation| (section.number, conversation))
    });
    // Each in a task of its own: some handle messages of many megabytes, for which the others
    // must not wait.
    let judged = stream::iter(conversations.collect::<Vec<_>>())
        .map(|(section, conversation)| {
            let judged = judge(Arc::clone(&server), section, conversation);
            AbortOnDropHandle::new(tokio::spawn(judged))
        })
        .buffer_unordered(check.jobs);
    let judged: Vec<_> = judged.collect().await;
    let judged = judged.into_iter();
    let mut findings: Vec<_> = judged
        .flat_map(|judged| judged.expect("a conversation neither panics nor is aborted"))
        .collect();
    findings.retain(|finding| {
        let wanted = check.rows.as_ref();
        wanted.is_none_or(|wanted| wanted.contains(&finding.row))
    });
    findings.sort_by_key(|finding| finding.row);
    for finding in &mut findings {
        // What broke a rule anywhere counts, whatever the row's own conversation saw.
        if finding.status == Status::Fail {
            continue;
        }
        if let Some(violation) = server.violations.of(finding.row) {
            finding.status = Status::Fail;
            finding.reason = violation.sentence;
            finding.wire = violation.wire;
        }
    }
    Ok(Report {
        url: check.url.clone(),
        model: server.model.clone(),
        findings,
    })
}

pub(crate) fn list() -> Vec<(u16, &'static str, &'static str)> {
    let mut list: Vec<_> = SECTIONS
        .iter()
        .flat_map(|section| section.conversations.iter().map(|it| (section.number, it)))
        .flat_map(|(section, it)| {
            it.rows
                .iter()
                .map(move |row| (row.number, section, row.name))
        })
        .collect();
    list.sort_unstable();
    list
}

/// Leads one conversation.
async fn judge(
    server: Arc<Server>,
    section: &'static str,
    conversation: &'static Conversation,
) -> Vec<Finding> {
    let case = Case::new(server);
    let held = match conversation.judge {
        Judge::Conversation(lead) => lead(&case).await,
        Judge::Unseen(reason) => Err(Stop::Skip(reason.to_owned())),
    };
    if let Err(stop) = held {
        for row in conversation.rows {
            case.decide(row.number, stop.clone());
        }
    }
    let mut verdicts = case.into_verdicts();
    let findings = conversation.rows.iter().map(|row| {
        let (status, reason, wire) = match verdicts.remove(&row.number).flatten() {
            None => (Status::Pass, String::new(), Vec::new()),
            Some((Stop::Fail(sentence), wire)) => (Status::Fail, sentence, wire),
            Some((Stop::Skip(reason), _)) => (Status::Skip, reason, Vec::new()),
        };
        Finding {
            row: row.number,
            section,
            name: row.name,
            status,
            reason,
            wire,
        }
    });
    findings.collect()
}

/// Finds out whether there is a server at all, what model to ask it for, and whether its answers
/// can be kept short.
async fn meet(check: &Check) -> Result<Server, Error> {
    let mut keyless = Options::new()
        .connect_timeout(check.timeout.max(CONNECT_TIMEOUT))
        .accept_any_certificate(check.any_certificate);
    if let Some(pem) = &check.root_certificates {
        keyless = keyless.root_certificates(pem.clone());
    }
    let options = match &check.key {
        Some(key) => keyless.clone().key(key),
        None => keyless.clone(),
    };
    let unreachable = |problem| Error::Unreachable {
        url: check.url.clone(),
        problem,
    };
    let http = Http::new(&check.url, &options).map_err(unreachable)?;
    let connection = Connection::open_with(&check.url, &options).await;
    connection.map_err(unreachable)?.abort();
    let model = match &check.model {
        Some(model) => model.clone(),
        None => first_model(&http).await.map_err(|problem| Error::NoModel {
            url: check.url.clone(),
            problem,
        })?,
    };
    let mut server = Server {
        url: check.url.clone(),
        model,
        options,
        keyless,
        has_key: check.key.is_some(),
        http,
        timeout: check.timeout,
        age_limit: check.age_limit,
        takes_max_output_tokens: true,
        violations: Violations::default(),
        lacks: probe::unknown(),
    };
    let case = Case::new(Arc::new(server.clone()));
    if let Ok(mut socket) = case.connect().await {
        let create = case.ask("Say hello.");
        if let Ok(Answer::Refused(refusal)) = socket.answer(create).await {
            if refusal.code() == Some("model_not_found") {
                return Err(Error::UnknownModel(server.model));
            }
            let lack = refusal.declares_lack_of(&["max_output_tokens"]);
            server.takes_max_output_tokens = lack.is_none();
        }
    }
    Ok(server)
}

async fn first_model(http: &Http) -> Result<String, String> {
    let answer = http
        .get("models")
        .await
        .map_err(|error| error.to_string())?;
    let list: Value = serde_json::from_slice(&answer.body).unwrap_or(json!(null));
    match list["data"][0]["id"].as_str() {
        Some(model) => Ok(model.to_owned()),
        None => Err(format!("it answered with HTTP status {}", answer.status)),
    }
}
