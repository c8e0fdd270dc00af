"""The protocol crate prints every event of its own test conversations; the judges see them all."""

import subprocess

from judges import judge_socket_event
from turnwire_process import REPOSITORY


def test_every_kind_of_event_is_accepted_by_both_judges():
    printed = subprocess.run(
        [
            "cargo",
            "run",
            "--quiet",
            "--locked",
            "--package",
            "turnwire-protocol",
            "--example",
            "dump_events",
        ],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    kinds = {judge_socket_event(line)["type"] for line in printed.stdout.splitlines()}
    assert {
        "error",
        "response.created",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "response.output_text.delta",
        "response.refusal.delta",
        "response.reasoning_text.delta",
        "response.function_call_arguments.delta",
    } <= kinds
