//! Table: a report for people.

use std::fmt::Write as _;

use crate::report::{Finding, Report, Status};
use crate::rows::SECTIONS;

impl Report {
    /// One line for each rule, grouped by section, what crossed the wire where a rule failed, and
    /// a summary. With colours if the text goes to a terminal.
    pub fn table(&self, colours: bool) -> String {
        let mut text = String::new();
        for section in SECTIONS {
            let numbers = section.conversations.iter().flat_map(|it| it.rows);
            let numbers: Vec<_> = numbers.map(|row| row.number).collect();
            let mut findings = self.findings.iter();
            let mut findings = findings
                .by_ref()
                .filter(|finding| numbers.contains(&finding.row))
                .peekable();
            if findings.peek().is_some() {
                let (bold, end) = if colours {
                    ("\x1b[1m", "\x1b[0m")
                } else {
                    ("", "")
                };
                line(
                    &mut text,
                    format_args!("{bold}{} ({}){end}", section.title, section.number),
                );
            }
            for finding in findings {
                rule(&mut text, finding, colours);
            }
        }
        let [pass, fail, skip] = [Status::Pass, Status::Fail, Status::Skip];
        line(
            &mut text,
            format_args!(
                "\n{}, model {}: {} passed, {} failed, {} skipped",
                self.url,
                self.model,
                self.count(pass),
                self.count(fail),
                self.count(skip)
            ),
        );
        text
    }
}

fn rule(text: &mut String, finding: &Finding, colours: bool) {
    let (word, colour) = match finding.status {
        Status::Pass => ("pass", "\x1b[32m"),
        Status::Fail => ("FAIL", "\x1b[31m"),
        Status::Skip => ("skip", "\x1b[33m"),
    };
    let (colour, end) = if colours {
        (colour, "\x1b[0m")
    } else {
        ("", "")
    };
    let Finding {
        row,
        name,
        reason,
        wire,
        ..
    } = finding;
    line(text, format_args!("  {colour}{word}{end} {row:>3}  {name}"));
    if !reason.is_empty() {
        line(text, format_args!("            {reason}"));
    }
    for message in wire {
        line(text, format_args!("            {message}"));
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes everything");
}
