"""Compaction through the official SDK: by threshold, by trigger, and over HTTP."""

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from openai import BadRequestError, UnprocessableEntityError

from conftest import Server, Start
from connections import create, post, post_streamed
from judges import SPECIFICATION

SCRIPT = """
[[reply]]
summary = true
steps = [{ text = "They talked about stars." }]

[[reply]]
user_contains = "think"
steps = [{ reasoning = "Hm." }, { text = "Thought." }]

[[reply]]
steps = [{ text = "{user}" }]
"""

COMPACT = [{"type": "compaction", "compact_threshold": 1000}]


@pytest.fixture(scope="module")
def stars(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Server:
    script: Path = tmp_path_factory.mktemp("script") / "stars.toml"
    script.write_text(SCRIPT)
    return start(f"scripted:{script}")


def long(server: Server, **more) -> dict:
    return {
        "model": server.model,
        "input": "Tell me of stars. " + "*" * 4000,
        "store": False,
        "context_management": COMPACT,
        **more,
    }


def test_a_long_context_is_compacted_and_goes_on(stars: Server):
    with stars.client().responses.connect() as connection:
        turn = create(connection, long(stars))
        kinds = [event["type"] for event in turn.events]
        assert kinds[2:5] == [
            "response.output_item.added",
            "response.compaction.compacting",
            "response.output_item.done",
        ]
        assert [item["type"] for item in turn.output] == ["compaction", "message"]
        assert "They talked about stars." in turn.text
        more = {"model": stars.model, "store": False, "input": "more"}
        assert create(connection, {**more, "previous_response_id": turn.id}).text == "more"

        # A client that keeps its own history may begin with the newest compaction item.
        window = [*turn.output, {"role": "user", "content": "again"}]
    with stars.client().responses.connect() as connection:
        assert create(connection, {**more, "input": window}).text == "again"
        only = create(connection, {**more, "input": turn.output[:1]})
        assert "They talked about stars." in only.text


def test_a_stream_is_compacted_as_well(stars: Server):
    turn = post_streamed(stars.client(), long(stars))
    assert [item["type"] for item in turn.output] == ["compaction", "message"]


def test_the_compact_endpoint_gives_a_window_for_a_new_chain(stars: Server):
    client = stars.client()
    parent = post(client, {"model": stars.model, "input": "What is a star?"})
    for what in (
        {"previous_response_id": parent.id},
        {"input": [{"role": "user", "content": "What is a star?"}, *parent.output]},
    ):
        compacted = client.responses.compact(model=stars.model, **what)
        assert compacted.object == "response.compaction"
        assert compacted.usage.total_tokens > 0
        validator = Draft202012Validator(
            {
                "$ref": "#/components/schemas/CompactResource",
                "components": SPECIFICATION["components"],
            }
        )
        validator.validate(compacted.to_dict(mode="json"))
        window = [item.to_dict() for item in compacted.output]
        assert [item["type"] for item in window] == ["compaction"]
        with client.responses.connect() as connection:
            request = {"model": stars.model, "store": False}
            turn = create(connection, {**request, "input": window})
            assert "What is a star?" in turn.text
            tampered = {**window[0], "encrypted_content": window[0]["encrypted_content"][:-4]}
            refused = create(connection, {**request, "input": [tampered]})
            assert refused.error["code"] == "invalid_encrypted_content"
            assert refused.error["param"] == "input[0].encrypted_content"


def test_a_model_must_be_named(stars: Server):
    with pytest.raises((BadRequestError, UnprocessableEntityError)) as refused:
        stars.client().responses.compact(model=None, input="x")
    assert refused.value.param == "model"


def test_a_trigger_compacts_and_does_nothing_else(stars: Server):
    with stars.client().responses.connect() as connection:
        request = {"model": stars.model, "store": False}
        said = create(connection, {**request, "input": "What is a star?"})
        trigger = {"previous_response_id": said.id, "input": [{"type": "compaction_trigger"}]}
        turn = create(connection, {**request, **trigger})
        assert [item["type"] for item in turn.output] == ["compaction"]
        more = create(connection, {**request, "previous_response_id": turn.id, "input": "more"})
        assert more.text == "more"


def test_sealed_reasoning_comes_back(stars: Server):
    include = ["reasoning.encrypted_content"]
    request = {"model": stars.model, "store": False, "include": include}
    with stars.client().responses.connect() as connection:
        turn = create(connection, {**request, "input": "think"})
        reasoning, message = turn.output
        assert reasoning["encrypted_content"]
        sealed = {key: value for key, value in reasoning.items() if key != "content"}
        window = [{"role": "user", "content": "think"}, sealed, message]
        again = create(
            connection, {**request, "input": [*window, {"role": "user", "content": "x"}]}
        )
        assert again.text == "x"


def test_a_model_summarizes(embedded: Server):
    client = embedded.client()
    talk = "The harbour of Oslo was built of granite. " * 150
    with client.responses.connect() as connection:
        request = {
            "model": embedded.model,
            "store": False,
            "temperature": 0,
            "max_output_tokens": 24,
            "context_management": COMPACT,
        }
        turn = create(connection, {**request, "input": talk + "Now say hello."})
        assert [item["type"] for item in turn.output] == ["compaction", "message"]
        # The summary and what was kept are all that is left of the context.
        more = {"previous_response_id": turn.id, "input": "Hello?"}
        more = create(connection, {**request, **more, "context_management": None})
        assert more.status in ("completed", "incomplete") and more.output
        assert more.prefilled_tokens < more.input_tokens
