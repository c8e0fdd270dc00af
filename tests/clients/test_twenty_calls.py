"""Twenty function calls in a row, the way agents work, over each way to talk to the server."""

from collections.abc import Generator
from itertools import pairwise

import pytest

from conftest import Server
from connections import Request, create, create_async, post, post_streamed
from toolbox import TOOLS, call_output, check_arguments, run_tool
from turns import Turn

CALLS = 20

Conversation = Generator[Request, Turn, list[Turn]]


def settings(model: str) -> Request:
    return {
        "model": model,
        "instructions": "Call tools.",
        "tools": TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_output_tokens": 256,
        # The same calls every time.
        "temperature": 0,
        "store": False,
    }


TASK = {"role": "user", "content": "Run my errands."}


def continuing(model: str) -> Conversation:
    """Each turn sends nothing but the output of the call before."""
    turns: list[Turn] = []
    request = {**settings(model), "input": [TASK]}
    for _ in range(CALLS):
        turn = yield request
        turns.append(turn)
        call = turn.call
        output = call_output(call["call_id"], run_tool(call["name"], call["arguments"]))
        request = {**settings(model), "previous_response_id": turn.id, "input": [output]}
    return turns


def resending(model: str) -> Conversation:
    """Each turn sends the whole conversation."""
    turns: list[Turn] = []
    history: list[Request] = [TASK]
    for _ in range(CALLS):
        turn = yield {**settings(model), "input": history}
        turns.append(turn)
        call = turn.call
        output = call_output(call["call_id"], run_tool(call["name"], call["arguments"]))
        history = [*history, call, output]
    return turns


def hold(conversation: Conversation, take_turn) -> list[Turn]:
    request = next(conversation)
    while True:
        try:
            request = conversation.send(take_turn(request))
        except StopIteration as end:
            return end.value


def assert_twenty_calls(turns: list[Turn]) -> None:
    assert len(turns) == CALLS
    assert len({turn.id for turn in turns}) == CALLS
    assert len({turn.call["call_id"] for turn in turns}) == CALLS


def assert_only_what_is_new_was_computed(turns: list[Turn]) -> None:
    """A turn's prompt is what the turn before had read and written, and then the new items. Of
    the former at most the last token, which was written but not read yet, may be computed."""
    for before, after in pairwise(turns):
        new = after.input_tokens - (before.input_tokens + before.output_tokens)
        assert new > 0
        assert after.prefilled_tokens - new in (0, 1)
    computed = [turn.prefilled_tokens for turn in turns[1:]]
    assert max(computed) <= 2 * min(computed), "the cost of a turn grows with its history"


def test_on_one_socket(server: Server):
    with server.client().responses.connect() as connection:
        turns = hold(continuing(server.model), lambda request: create(connection, request))
    assert_twenty_calls(turns)
    assert_only_what_is_new_was_computed(turns)


async def test_on_one_socket_with_the_async_client(server: Server):
    turns = []
    async with server.async_client().responses.connect() as connection:
        conversation = continuing(server.model)
        request = next(conversation)
        for _ in range(CALLS - 1):
            turns.append(await create_async(connection, request))
            request = conversation.send(turns[-1])
        turns.append(await create_async(connection, request))
    assert_twenty_calls(turns)
    assert_only_what_is_new_was_computed(turns)


def test_over_http_with_the_whole_history(server: Server):
    client = server.client()
    turns = hold(resending(server.model), lambda request: post(client, request))
    assert_twenty_calls(turns)
    assert_only_what_is_new_was_computed(turns)


def test_over_http_as_a_stream_with_the_whole_history(server: Server):
    client = server.client()
    turns = hold(resending(server.model), lambda request: post_streamed(client, request))
    assert_twenty_calls(turns)
    assert_only_what_is_new_was_computed(turns)


def test_over_http_with_stored_responses(server: Server):
    def take_turn(request: Request) -> Turn:
        return post(client, {**request, "store": True})

    client = server.client()
    turns = hold(continuing(server.model), take_turn)
    assert_twenty_calls(turns)
    assert_only_what_is_new_was_computed(turns)


@pytest.mark.parametrize("name", [tool["name"] for tool in TOOLS])
def test_each_tool_can_be_demanded_by_name(server: Server, name: str):
    request = {
        **settings(server.model),
        "tool_choice": {"type": "function", "name": name},
        "input": [TASK],
    }
    with server.client().responses.connect() as connection:
        call = create(connection, request).call
    assert call["name"] == name
    check_arguments(name, call["arguments"])
