//! Report: what was found, one finding for each rule.

use serde::Serialize;
use serde_json::{Value, json};

use crate::transcript::Line;

/// What a run of the check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub url: String,
    pub model: String,
    /// In the order of the rules.
    pub findings: Vec<Finding>,
}

/// What was found about one rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Number of the rule, 1 to 179.
    pub row: u16,
    /// Section of the specification that the rule is from.
    pub section: &'static str,
    pub name: &'static str,
    pub status: Status,
    /// Why it failed or was skipped, in one sentence; empty if it passed.
    pub reason: String,
    /// What crossed the wire, where it failed.
    pub wire: Vec<Line>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Pass,
    Fail,
    /// Cannot be seen from outside, or not of this server.
    Skip,
}

impl Report {
    pub fn count(&self, status: Status) -> usize {
        self.with(status).count()
    }

    /// Whether nothing failed.
    pub fn is_clean(&self) -> bool {
        self.count(Status::Fail) == 0
    }

    /// The findings with this status.
    pub fn with(&self, status: Status) -> impl Iterator<Item = &Finding> {
        let findings = self.findings.iter();
        findings.filter(move |finding| finding.status == status)
    }

    /// `{"checks": [{"row", "section", "name", "status", "reason", "wire"}, …]}`.
    pub fn to_json(&self) -> Value {
        json!({
            "url": self.url,
            "model": self.model,
            "pass": self.count(Status::Pass),
            "fail": self.count(Status::Fail),
            "skip": self.count(Status::Skip),
            "checks": self.findings,
        })
    }
}
