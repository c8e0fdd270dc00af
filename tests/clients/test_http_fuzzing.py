"""Requests that nobody thought of, made from `docs/openapi.json`. None may be answered by 5xx, and
every answer is one that the description allows."""

import subprocess
import sys
from pathlib import Path

from conftest import Server
from turnwire_process import REPOSITORY

DESCRIPTION = REPOSITORY / "docs/openapi.json"

# Another one finds other requests; a failure is repeated with the same.
SEED = 4

SECONDS = 60

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "use_after_free",
    "ensure_resource_availability",
]


def test_no_request_is_too_strange(scripted: Server, tmp_path: Path):
    command = [sys.executable, "-m", "schemathesis.cli", "run", DESCRIPTION]
    settings = {
        "url": scripted.process.origin,
        "seed": SEED,
        "max-time": SECONDS,
        "checks": ",".join(CHECKS),
        "generation-database": "none",
        "suppress-health-check": "all",
        "warnings": "off",
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    # It prints the requests that were answered wrongly, each as a command to repeat it.
    run = subprocess.run(
        [*command, *flags, "--continue-on-failure", "--no-color"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Where it leaves what it remembers.
        cwd=tmp_path,
    )
    print(f"seed {SEED}\n{run.stdout}")
    assert run.returncode == 0
    assert scripted.process.process.poll() is None
