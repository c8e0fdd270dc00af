"""Steering through the official SDK, which has a type for every notice."""

import re

from openai.types.responses import (
    ResponseCompletedEvent,
    ResponseCreatedEvent,
    ResponseIncompleteEvent,
)
from openai.types.responses.response_steer_accepted_event import ResponseSteerAcceptedEvent
from openai.types.responses.response_steer_failed_event import ResponseSteerFailedEvent
from openai.types.responses.response_steer_pending_event import ResponseSteerPendingEvent

from conftest import Server
from toolbox import TOOLS

ENDLESS = """
[[reply]]
user_contains = "shorter"
steps = [{ text = "{items} items, the last one: {user}" }]

[[reply]]
after_tool = true
steps = [{ text = "{items} items, the last one: {user}" }]

[[reply]]
has_tools = true
steps = [{ call = "*" }, { hang = true }]

[[reply]]
steps = [{ text = "and so on ", repeat = 1000000000, delay_ms = 1 }]
"""


def until(connection, *kinds: type):
    """The next event of one of these types."""
    for event in connection:
        if isinstance(event, kinds):
            return event
    raise AssertionError(f"the connection ended before one of {kinds}")


def steer(connection, target: str, text: str) -> None:
    connection.send(
        {"type": "response.steer", "previous_response_id": target, "input": text},
    )


def test_a_long_reply_is_steered(start_script):
    server = start_script(ENDLESS)
    with server.client().responses.connect() as connection:
        connection.response.create(model=server.model, input="Go on.", temperature=0.5)
        target = until(connection, ResponseCreatedEvent).response.id
        steer(connection, target, "Make it shorter.")
        accepted = until(connection, ResponseSteerAcceptedEvent)
        assert accepted.steer.previous_response_id == target
        assert re.fullmatch("steer_[0-9a-f]{32}", accepted.steer.id)
        assert accepted.stream_id is None

        steered = until(connection, ResponseIncompleteEvent).response
        assert steered.id == target
        assert steered.incomplete_details.reason == "steered"

        created = until(connection, ResponseCreatedEvent).response
        assert created.previous_response_id == target
        assert created.temperature == 0.5
        completed = until(connection, ResponseCompletedEvent).response
        # The question, the cut answer and the steer.
        assert completed.output_text == "3 items, the last one: Make it shorter."

        steer(connection, target, "Too late.")
        failed = until(connection, ResponseSteerFailedEvent)
        assert failed.error.code in ("response_already_completed", "response_not_found")
        assert failed.steer.input == "Too late."
        assert failed.steer.id is None


def test_calls_are_answered_first(start_script):
    server = start_script(ENDLESS)
    with server.client().responses.connect() as connection:
        connection.response.create(model=server.model, input="Look.", tools=TOOLS)
        target = until(connection, ResponseCreatedEvent).response.id
        call = next(event for event in connection if event.type == "response.output_item.done")
        steer(connection, target, "Look twice.")
        completed = until(connection, ResponseCompletedEvent).response
        pending = until(connection, ResponseSteerPendingEvent)
        assert pending.reason == "waiting_for_required_input"
        [stub] = pending.required_input
        assert stub.type == "function_call_output"
        assert (stub.call_id, stub.name) == (call.item.call_id, call.item.name)

        connection.response.create(
            model=server.model,
            previous_response_id=completed.id,
            input=[{"type": stub.type, "call_id": stub.call_id, "output": "nothing"}],
        )
        completed = until(connection, ResponseCompletedEvent).response
        # The question, the call, the steer and the output.
        assert completed.output_text == "4 items, the last one: Look twice."


def test_every_engine_is_steered(server: Server):
    """Whatever it says: the target ends, and the next response continues it unasked."""
    with server.client().responses.connect() as connection:
        connection.response.create(
            model=server.model,
            input="Tell me a long story of a dragon and a knight.",
            max_output_tokens=256,
            temperature=0,
            store=False,
        )
        target = until(connection, ResponseCreatedEvent).response.id
        steer(connection, target, "Forget the story. Say hello.")
        notice = next(event for event in connection if event.type.startswith("response.steer."))
        if isinstance(notice, ResponseSteerFailedEvent):
            # It was over before it could be steered.
            assert notice.error.code == "response_already_completed"
            return
        assert isinstance(notice, ResponseSteerAcceptedEvent)
        ended = until(connection, ResponseIncompleteEvent, ResponseCompletedEvent).response
        assert ended.id == target
        created = until(connection, ResponseCreatedEvent).response
        assert created.previous_response_id == target
        assert created.max_output_tokens == 256
        ended = until(connection, ResponseIncompleteEvent, ResponseCompletedEvent).response
        assert ended.id == created.id
        assert ended.output_text
