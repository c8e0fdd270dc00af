"""The SDK's session and lane helpers, which check what they are sent more strictly than `recv`."""

import asyncio

from openai.lib.responses_websocket import (
    AsyncResponsesWebSocketSession,
    ResponsesWebSocketAccumulator,
    ResponsesWebSocketLimits,
)

from conftest import Server

LIMITS = ResponsesWebSocketLimits(
    max_lanes=8,
    max_events_per_lane=4096,
    max_events=16384,
    max_bytes_per_lane=16 << 20,
    max_bytes=64 << 20,
    max_response_bytes=None,
)


def question(model: str, **more) -> dict:
    return {
        "type": "response.create",
        "model": model,
        "input": "Say something.",
        "max_output_tokens": 24,
        # The same answer every time.
        "temperature": 0,
        "store": False,
        **more,
    }


async def test_lanes_run_side_by_side_and_each_continues_its_own(server: Server):
    async def talk(session: AsyncResponsesWebSocketSession, name: str | None) -> list[str]:
        lane = session.default if name is None else session.lane(name)
        parent, ids = {}, []
        for _ in range(3):
            await lane.send(question(server.model, **parent))
            response = await lane.get_final_response()
            assert response.status in ("completed", "incomplete")
            assert response.output_text
            ids.append(response.id)
            parent = {"previous_response_id": response.id}
        return ids

    async with (
        server.async_client().responses.connect() as connection,
        AsyncResponsesWebSocketSession(connection, limits=LIMITS) as session,
    ):
        ids = await asyncio.gather(*(talk(session, name) for name in (None, "a", "b.c_d-e")))
    assert len({one for lane in ids for one in lane}) == 9


async def test_the_accumulator_follows_every_event(server: Server):
    accumulator = ResponsesWebSocketAccumulator()
    async with (
        server.async_client().responses.connect() as connection,
        AsyncResponsesWebSocketSession(connection, limits=LIMITS) as session,
    ):
        await session.default.send(question(server.model))
        event = None
        while event is None or event.type not in ("response.completed", "response.incomplete"):
            event = await session.default.recv()
            accumulator.add_event(event)
    assert accumulator.snapshot().output_text == event.response.output_text
    assert accumulator.get_final_response().id == event.response.id
