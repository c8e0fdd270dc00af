"""The protocol crate prints one example of every event it can send; the judges see them all."""

import json
import subprocess

from judges import judge_socket_event
from turnwire_process import REPOSITORY


def test_every_kind_of_event_is_accepted_by_both_judges():
    printed = subprocess.run(
        "cargo run --quiet --locked --package turnwire-protocol --example dump_events".split(),
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    lines = printed.stdout.splitlines()
    kinds = {judge_socket_event(line)["type"] for line in lines}
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
    assert all(json.loads(line)["type"] for line in lines)
