//! JUnit: a report for build servers.

use std::fmt::Write as _;

use crate::report::{Report, Status};
use crate::rows::SECTIONS;
use crate::transcript::Line;

impl Report {
    /// One test suite, with a test case for each rule.
    pub fn to_junit(&self) -> String {
        let mut cases = String::new();
        for finding in &self.findings {
            let section = SECTIONS
                .iter()
                .find(|section| section.number == finding.section);
            let class = section.map_or(finding.section, |section| section.title);
            let reason = escaped(&finding.reason);
            let verdict = match finding.status {
                Status::Pass => String::new(),
                Status::Skip => format!("<skipped message=\"{reason}\"/>"),
                Status::Fail => {
                    let wire = finding.wire.iter().map(Line::to_string).collect::<Vec<_>>();
                    let wire = escaped(&wire.join("\n"));
                    format!("<failure message=\"{reason}\">{wire}</failure>")
                }
            };
            writeln!(
                cases,
                "  <testcase classname=\"{}\" name=\"{} {}\">{verdict}</testcase>",
                escaped(class),
                finding.row,
                escaped(finding.name)
            )
            .expect("a String takes everything");
        }
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <testsuite name=\"turnwire check {}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\">\n\
             {cases}</testsuite>\n",
            escaped(&self.url),
            self.findings.len(),
            self.count(Status::Fail),
            self.count(Status::Skip)
        )
    }
}

/// Text for an attribute or an element. XML has no way to write most control characters.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use crate::report::{Finding, Report, Status};

    #[test]
    fn what_a_server_said_cannot_break_the_report() {
        let finding = Finding {
            row: 7,
            section: "1",
            name: "a name",
            status: Status::Fail,
            reason: "expected <a> & \"b\"; \u{1} came".to_owned(),
            wire: Vec::new(),
        };
        let report = Report {
            url: "ws://x/v1?a=1&b=2".to_owned(),
            model: "m".to_owned(),
            findings: vec![finding],
        };
        let expected = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
            <testsuite name=\"turnwire check ws://x/v1?a=1&amp;b=2\" tests=\"1\" failures=\"1\" skipped=\"0\">\n  \
            <testcase classname=\"Handshake and transport\" name=\"7 a name\"><failure \
            message=\"expected &lt;a&gt; &amp; &quot;b&quot;; \u{fffd} came\"></failure></testcase>\n\
            </testsuite>\n";
        assert_eq!(report.to_junit(), expected);
    }
}
