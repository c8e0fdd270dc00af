"""Whatever a client gets wrong, it is told so, and its connection lives on."""

import json

import pytest
from openai import APIStatusError, OpenAI

from conftest import Server, Start
from connections import create, send_text

GOOD = {"model": "scripted", "input": "hi", "store": False}


def message(**fields) -> str:
    return json.dumps({"type": "response.create", **GOOD, **fields})


def without(name: str) -> str:
    return json.dumps({key: value for key, value in json.loads(message()).items() if key != name})


CASES = {
    "not JSON": ("{", 400, "invalid_json", None),
    "not an object": ("[1]", 400, "missing_required_parameter", "type"),
    "no type": (without("type"), 400, "missing_required_parameter", "type"),
    "unknown type": ('{"type":"response.dance"}', 400, "unsupported_event_type", "type"),
    "no model": (without("model"), 400, "missing_required_parameter", "model"),
    "unknown model": (message(model="gpt-0"), 404, "model_not_found", "model"),
    "model of the wrong type": (message(model=7), 400, "invalid_type", "model"),
    "no input": (without("input"), 400, "missing_required_parameter", "input"),
    "input of the wrong type": (message(input=5), 400, "invalid_type", "input"),
    "item of the wrong type": (message(input=[5]), 400, "invalid_type", "input[0]"),
    "temperature too high": (message(temperature=9), 400, "decimal_above_max_value", "temperature"),
    "temperature too low": (message(temperature=-1), 400, "decimal_below_min_value", "temperature"),
    "too few tokens": (
        message(max_output_tokens=1),
        400,
        "integer_below_min_value",
        "max_output_tokens",
    ),
    "too many alternatives": (
        message(top_logprobs=21),
        400,
        "integer_above_max_value",
        "top_logprobs",
    ),
    "tools of the wrong type": (message(tools="all"), 400, "invalid_type", "tools"),
    "in the background": (message(background=True), 400, "unsupported_parameter", "background"),
}


@pytest.mark.parametrize("case", list(CASES))
def test_a_bad_message_is_answered_and_the_connection_lives_on(scripted: Server, case: str):
    text, status, code, param = CASES[case]
    with scripted.client().responses.connect() as connection:
        before = create(connection, GOOD)
        turn = send_text(connection, text)
        assert turn.error is not None
        assert (turn.events[-1]["status"], turn.error["code"], turn.error["param"]) == (
            status,
            code,
            param,
        )
        assert turn.error["message"]
        after = create(connection, {**GOOD, "previous_response_id": before.id})
        assert after.status == "completed"


# A body over HTTP has no `type`.
@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][3] != "type"])
def test_over_http_the_same_is_a_status_with_a_body(scripted: Server, case: str):
    text, status, code, param = CASES[case]
    body = text.replace('"type": "response.create", ', "")
    with pytest.raises(APIStatusError) as raised:
        scripted.client().post("/responses", content=body.encode(), cast_to=object)
    assert raised.value.status_code == status
    assert (raised.value.code, raised.value.param) == (code, param)


def test_a_message_over_the_limit_is_refused(start: Start):
    server = start("scripted", "--max-message-bytes", "64KiB")
    with server.client().responses.connect() as connection:
        before = create(connection, GOOD)
        turn = send_text(connection, message(input="x" * 100_000))
        assert turn.error is not None
        assert (turn.events[-1]["status"], turn.error["code"]) == (413, "request_too_large")
        after = create(connection, {**GOOD, "previous_response_id": before.id})
        assert after.status == "completed"


def test_what_clients_send_in_practice_is_accepted(scripted: Server):
    fields = {
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "client_metadata": {"session_id": "1"},
        "prompt_cache_key": "key",
        "text": {"verbosity": "low"},
        "reasoning": {"summary": "auto"},
        "background": False,
        "stream_options": {"include_obfuscation": False},
        "metadata": None,
        "temperature": None,
        "tools": [{"type": "web_search"}],
        "vendor_extension": {"anything": [1, 2]},
        "input": [
            {"role": "developer", "content": "be kind"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "message", "role": "assistant", "content": "hello"},
            {"role": "user", "content": "again"},
        ],
    }
    with scripted.client().responses.connect() as connection:
        assert send_text(connection, message(**fields)).status == "completed"


def test_keys_are_asked_for_where_there_are_keys(start: Start, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("sk-one\nsk-two\n")
    keys.chmod(0o600)
    # `start` lists the models with a key of its own, which this server does not know.
    with pytest.raises(APIStatusError) as refused:
        start("scripted", "--api-key-file", str(keys))
    assert refused.value.status_code == 401
    base_url = str(refused.value.request.url).removesuffix("/models")

    one, two = (
        OpenAI(base_url=base_url, api_key=key, max_retries=0) for key in ("sk-one", "sk-two")
    )
    with one.responses.connect() as connection:
        stored = create(connection, {**GOOD, "store": True})
    assert one.responses.retrieve(stored.id).id == stored.id
    # Nobody else's.
    with pytest.raises(APIStatusError) as refused:
        two.responses.retrieve(stored.id)
    assert refused.value.status_code == 404
