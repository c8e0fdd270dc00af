"""Responses in the background of one server, seen from another on the same database."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from openai import NotFoundError, OpenAI

from conftest import Pair, StartPair
from connections import Request, on_socket, post
from judges import judge_http_event

SCRIPT = """
[[reply]]
user_contains = "hang"
steps = [{ text = "{name}" }, { hang = true }]

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


def begin_to_hang(client: OpenAI) -> str:
    """Begins a response that speaks and never ends by itself, and waits until it has spoken."""
    response = begin(client, "hang")
    with events_of(client, response) as events:
        assert any(event["type"] == "response.output_text.delta" for event in events)
    return response


def test_what_one_server_has_finished_goes_on_at_the_other(pair: Pair):
    one, two = (server.client() for server in pair)
    response = begin(one, "hi")
    with events_of(one, response) as events:
        last = list(events)[-1]
    assert last["type"] == "response.completed"
    assert two.responses.retrieve(response).to_dict() == last["response"]
    turn = post(two, request("on", previous_response_id=response))
    assert turn.text == "two, turn 2, 3 items"


def test_what_one_server_makes_is_seen_on_the_other(pair: Pair):
    one, two = (server.client() for server in pair)
    response = begin_to_hang(one)
    # How far it is is stored without anybody waiting for that.
    assert two.responses.retrieve(response).status in ("queued", "in_progress")
    turn = on_socket(two, request("on", previous_response_id=response))
    assert turn.error is not None and turn.error["code"] == "previous_response_not_found"


def test_what_one_server_makes_is_followed_from_the_other(pair: Pair):
    one, two = (server.client() for server in pair)
    response = begin_to_hang(one)
    with events_of(two, response) as events:
        told = list(itertools.takewhile(lambda event: "delta" not in event["type"], events))
        assert [event["sequence_number"] for event in told] == list(range(len(told)))
        assert two.responses.cancel(response).status == "cancelled"
        last = list(events)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "cancelled")
    assert one.responses.retrieve(response).to_dict() == last["response"]
    # It can be asked for again, from any number on and at either.
    for client in (one, two):
        with events_of(client, response, starting_after=last["sequence_number"] - 1) as events:
            assert list(events) == [last]


def test_what_one_server_makes_is_deleted_at_the_other(pair: Pair):
    one, two = (server.client() for server in pair)
    response = begin_to_hang(one)
    with events_of(one, response) as events:
        two.responses.delete(response)
        assert list(events)[-1]["response"]["status"] == "cancelled"
    for client in (one, two):
        with pytest.raises(NotFoundError):
            client.responses.retrieve(response)


def test_what_a_drained_server_was_making_has_failed(start_pair: StartPair):
    one, two = start_pair(SCRIPT)
    response = begin_to_hang(one.client())
    assert one.process.stop() == 0
    failed = two.client().responses.retrieve(response)
    assert failed.status == "failed" and "shutting down" in failed.error.message


def test_what_a_killed_server_was_making_has_failed_within_a_minute(start_pair: StartPair):
    one, two = start_pair(SCRIPT)
    client = two.client()
    response = begin_to_hang(one.client())
    one.process.process.kill()
    # Servers that are silent for half a minute are taken for dead.
    give_up = time.monotonic() + 60
    while client.responses.retrieve(response).status == "in_progress":
        assert time.monotonic() < give_up
        time.sleep(0.5)
    assert client.responses.retrieve(response).status == "failed"
    turn = on_socket(client, request("on", previous_response_id=response))
    assert turn.error is not None and turn.error["code"] == "previous_response_not_found"
