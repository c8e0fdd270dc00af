"""`turnwire check` against a running server: plain and over TLS, scripted and with a real model."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from certificates import Certificate
from conftest import Server
from turnwire_process import BINARY, REPOSITORY, Turnwire

# A model that does what the checklist asks for.
OBLIGING = f"scripted:{REPOSITORY / 'check/obliging.toml'}"

# Of 179 rules, 22 cannot be seen from outside or take what no script can do.
SCRIPTED_PASSES = 150

# The smallest of models does not reason and does not always say as much as it is asked for.
EMBEDDED_PASSES = 135


def check(url: str, *flags: str) -> dict[int, Any]:
    """Findings by row."""
    run = subprocess.run(
        [BINARY, "check", url, "--json", *flags], capture_output=True, text=True, timeout=1500
    )
    assert run.returncode in (0, 1), run.stderr
    findings = {finding["row"]: finding for finding in json.loads(run.stdout)["checks"]}
    assert set(findings) == set(range(1, 180))
    return findings


def failures(findings: dict[int, Any]) -> list[str]:
    return [
        json.dumps(finding, indent=1)
        for finding in findings.values()
        if finding["status"] == "fail"
    ]


def passed(findings: dict[int, Any]) -> set[int]:
    return {row for row, finding in findings.items() if finding["status"] == "pass"}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_every_rule_holds_with_the_scripted_engine(log: Path):
    turnwire = Turnwire(OBLIGING, log)
    try:
        findings = check(turnwire.base_url)
    finally:
        turnwire.stop()
    assert failures(findings) == []
    assert len(passed(findings)) >= SCRIPTED_PASSES


def test_every_rule_holds_over_tls(log: Path, certificate: Certificate):
    files = ["--tls-cert", str(certificate.chain), "--tls-key", str(certificate.key)]
    turnwire = Turnwire(OBLIGING, log, *files)
    try:
        url = turnwire.base_url.replace("127.0.0.1", "localhost")
        findings = check(url, "--ca", str(certificate.chain))
    finally:
        turnwire.stop()
    assert failures(findings) == []
    assert len(passed(findings)) >= SCRIPTED_PASSES


# Summaries and long answers take a while on one core.
@pytest.mark.timeout(1800)
def test_every_rule_holds_with_a_real_model(embedded: Server):
    findings = check(embedded.process.base_url, "--timeout", "240s", "--jobs", "4")
    assert failures(findings) == []
    assert len(passed(findings)) >= EMBEDDED_PASSES
