"""Responses in the background of one server, seen and ended from another on the same database."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from openai import NotFoundError, OpenAI

from conftest import Pair, StartPair
from connections import Request, create, post
from judges import judge_http_event
from turns import is_terminal

SCRIPT = """
[[reply]]
user_contains = "hang"
steps = [{ text = "{name}" }, { hang = true }]

[[reply]]
user_contains = "slowly"
steps = [{ text = "{name} ", repeat = 50, delay_ms = 10 }]

[[reply]]
steps = [{ text = "{name}, turn {turn}, {items} items" }]
"""

Event = dict[str, Any]


@pytest.fixture(scope="module")
def pair(start_pair: StartPair) -> Pair:
    return start_pair(SCRIPT)


def request(text: str, **more) -> Request:
    return {"model": "scripted", "input": text, **more}


def begin(client: OpenAI, text: str) -> str:
    """Begins a response in the background and returns its id."""
    response = client.responses.create(**request(text), background=True)
    assert response.status == "queued" and response.background is True
    return response.id


@contextmanager
def events_of(client: OpenAI, response: str, **more) -> Iterator[Iterator[Event]]:
    """What the stream of a response holds: what was, and what comes."""
    with client.responses.retrieve(response, stream=True, **more) as stream:
        yield (judged(event.to_dict()) for event in stream)


def judged(event: Event) -> Event:
    judge_http_event(event)
    return event


def until_it_speaks(events: Iterator[Event]) -> None:
    for event in events:
        if event["type"] == "response.output_text.delta":
            return
    raise AssertionError("the response ended before it spoke")


def test_a_stream_is_the_same_from_either_server(pair: Pair):
    one, two = (server.client() for server in pair)
    with one.responses.create(**request("slowly"), background=True, stream=True) as stream:
        seen = [judged(next(stream).to_dict())]
        response = seen[0]["response"]["id"]
        # The other server's reader comes in the midst of it.
        with events_of(two, response) as events:
            followed = list(events)
        seen += [judged(event.to_dict()) for event in stream]
    assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
    assert seen[-1]["type"] == "response.completed"
    assert followed == seen
    for client in (one, two):
        with events_of(client, response, starting_after=20) as events:
            assert list(events) == seen[21:]
        assert client.responses.retrieve(response).to_dict() == seen[-1]["response"]
    assert "turn 2, 3 items" in post(two, request("on", previous_response_id=response)).text


def test_a_response_is_cancelled_from_the_other_server(pair: Pair):
    one, two = (server.client() for server in pair)
    response = begin(one, "hang")
    with events_of(two, response) as events:
        until_it_speaks(events)
        assert two.responses.retrieve(response).status == "in_progress"
        assert two.responses.cancel(response).status == "cancelled"
        last = list(events)[-1]
        assert is_terminal(last)
    for client in (one, two):
        assert client.responses.retrieve(response).status == "cancelled"
        # Once more changes nothing.
        assert client.responses.cancel(response).status == "cancelled"


def test_a_response_that_runs_is_deleted_from_the_other_server(pair: Pair):
    one, two = (server.client() for server in pair)
    response = begin(one, "hang")
    with events_of(two, response) as events:
        until_it_speaks(events)
    two.responses.delete(response)
    for client in (one, two):
        with pytest.raises(NotFoundError):
            client.responses.retrieve(response)


# Other servers wait half a minute before they take a silent one for dead.
@pytest.mark.timeout(120)
def test_what_a_killed_server_ran_has_failed(start_pair: StartPair):
    one, two = start_pair(SCRIPT)
    client = two.client()
    with one.client().responses.connect() as connection:
        connection.send({"type": "response.create", **request("hang")})
        in_sight = json.loads(connection.recv_bytes())["response"]["id"]
        in_background = begin(one.client(), "hang")
        with events_of(client, in_background) as events:
            until_it_speaks(events)
            one.process.process.kill()
            last = list(events)[-1]
    assert last["type"] == "response.failed"
    failed = client.responses.retrieve(in_background)
    assert failed.status == "failed" and failed.to_dict() == last["response"]
    # A response whose client was there to see it is stored when it is done, and so never was.
    with pytest.raises(NotFoundError):
        client.responses.retrieve(in_sight)
    with client.responses.connect() as connection:
        for response in (in_sight, in_background):
            turn = create(connection, request("on", previous_response_id=response))
            assert turn.error is not None
            assert turn.error["code"] == "previous_response_not_found"


def test_a_drained_server_leaves_what_it_ran_failed(start_pair: StartPair):
    one, two = start_pair(SCRIPT)
    client = two.client()
    response = begin(one.client(), "hang")
    with events_of(client, response) as events:
        until_it_speaks(events)
        assert one.process.stop() == 0
        assert list(events)[-1]["type"] == "response.failed"
    failed = client.responses.retrieve(response)
    assert failed.status == "failed" and "shutting down" in failed.error.message
