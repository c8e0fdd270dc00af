"""`--engine chat:URL` in front of a real server with a real model: llama.cpp's."""

import json
import os
from collections.abc import Iterator

import pytest

from conftest import SELECTED, Server, Start
from llama_server import LlamaServer


@pytest.fixture(scope="module")
def upstream(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if "embedded" not in SELECTED or "TURNWIRE_TEST_MODEL" not in os.environ:
        pytest.skip("needs a model: TURNWIRE_TEST_MODEL")
    llama = LlamaServer(tmp_path_factory.mktemp("llama") / "log")
    try:
        yield start(f"chat:{llama.base_url}")
    finally:
        llama.stop()


def turn(connection, server: Server, **members):
    """Sends one create; its terminal event, and the text of all deltas."""
    connection.response.create(model=server.model, temperature=0, **members)
    said = ""
    for event in connection:
        if event.type == "response.output_text.delta":
            said += event.delta
        if event.type in ("response.completed", "response.incomplete", "response.failed", "error"):
            return event, said
    raise AssertionError("the connection ended")


def test_turns_continue_with_only_what_is_new(upstream: Server):
    with upstream.client().responses.connect() as connection:
        parent, tokens = None, 0
        for number in range(3):
            event, said = turn(
                connection,
                upstream,
                store=False,
                previous_response_id=parent,
                input=f"Name a colour, number {number}.",
                max_output_tokens=16,
            )
            response = event.response
            assert said == response.output_text != ""
            assert response.usage.input_tokens > tokens
            parent, tokens = response.id, response.usage.input_tokens
        assert response.usage.input_tokens_details.cached_tokens > 0


def test_a_warm_up_is_prefilled_by_the_upstream(upstream: Server):
    with upstream.client().responses.connect() as connection:
        long = "The quick brown fox jumps over the lazy dog. " * 20
        warm, said = turn(
            connection,
            upstream,
            store=False,
            input=long,
            generate=False,
        )
        assert said == "" and warm.response.output == []
        assert warm.response.usage.output_tokens == 0
        event, _ = turn(
            connection,
            upstream,
            store=False,
            previous_response_id=warm.response.id,
            input="Who jumps?",
            max_output_tokens=16,
        )
        usage = event.response.usage
        assert usage.input_tokens > warm.response.usage.input_tokens
        # The templates differ in what stands between two messages.
        assert usage.input_tokens_details.cached_tokens > warm.response.usage.input_tokens * 0.8


def test_output_keeps_to_a_schema(upstream: Server):
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["age"],
        "additionalProperties": False,
    }
    with upstream.client().responses.connect() as connection:
        event, said = turn(
            connection,
            upstream,
            input="Anna is 30 years old. How old is Anna?",
            text={"format": {"type": "json_schema", "name": "age", "schema": schema}},
            max_output_tokens=64,
        )
        assert event.type == "response.completed"
        assert 0 <= json.loads(said)["age"] <= 99


def test_a_cancelled_turn_makes_room_for_the_next(upstream: Server):
    with upstream.client().responses.connect() as connection:
        connection.response.create(
            model=upstream.model, input="Count to a thousand.", max_output_tokens=2000
        )
        for event in connection:
            if event.type == "response.output_text.delta":
                break
        connection.send({"type": "response.cancel"})
        for event in connection:
            if event.type == "response.incomplete":
                break
        assert event.response.status == "cancelled"
        event, said = turn(connection, upstream, input="Hello!", max_output_tokens=16)
        assert said != ""


def test_streams_over_http_as_well(upstream: Server):
    events = upstream.client().responses.create(
        model=upstream.model, input="Hello!", max_output_tokens=16, temperature=0, stream=True
    )
    said = ""
    for event in events:
        if event.type == "response.output_text.delta":
            said += event.delta
    assert event.type in ("response.completed", "response.incomplete")
    assert said == event.response.output_text != ""
