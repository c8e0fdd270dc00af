"""The SDK's session and lane helpers, which check what they are sent more strictly than `recv`."""

import asyncio

from openai.lib.responses_websocket import (
    AsyncResponsesWebSocketSession,
    ResponsesWebSocketAccumulator,
    ResponsesWebSocketLimits,
)

from conftest import Server
from toolbox import TOOLS, call_output, run_tool

LIMITS = ResponsesWebSocketLimits(
    max_lanes=17,
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


async def test_sixteen_lanes_fork_from_one_chain_and_each_goes_its_own_way(server: Server):
    """One agent that splits into sixteen. Every branch starts from the same call, answers it in
    its own words and goes on by itself, while the first lane advances too."""
    settings = {
        "tools": TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_output_tokens": 256,
        "input": "Run my errands.",
    }

    def answer(response, lane: int) -> dict:
        [call] = response.output
        run_tool(call.name, call.arguments)
        output = call_output(call.call_id, f'{{"ok":true,"branch":{lane}}}')
        more = {**settings, "previous_response_id": response.id, "input": [output]}
        return question(server.model, **more)

    async def branch(session: AsyncResponsesWebSocketSession, number: int, parent, bound):
        lane = session.lane(f"branch-{number}")
        await lane.send(answer(parent, number))
        # The fork has its parent for sure from here on.
        while (await lane.recv()).type != "response.in_progress":
            pass
        bound.release()
        responses = [await lane.get_final_response()]
        for _ in range(2):
            await lane.send(answer(responses[-1], number))
            responses.append(await lane.get_final_response())
        return responses

    async with (
        server.async_client().responses.connect() as connection,
        AsyncResponsesWebSocketSession(connection, limits=LIMITS) as session,
    ):
        trunk = session.lane("trunk")
        await trunk.send(question(server.model, **settings))
        parent = await trunk.get_final_response()

        bound = asyncio.Semaphore(0)
        branches = [
            asyncio.create_task(branch(session, number, parent, bound)) for number in range(15)
        ]
        for _ in branches:
            await bound.acquire()
        await trunk.send(answer(parent, 15))
        lanes = [[await trunk.get_final_response()], *await asyncio.gather(*branches)]

    ids = [response.id for lane in lanes for response in lane]
    assert len(set(ids)) == 1 + 15 * 3
    for lane in lanes:
        before = parent
        for response in lane:
            assert response.status == "completed"
            assert response.previous_response_id == before.id
            context = before.usage.input_tokens + before.usage.output_tokens
            assert response.usage.input_tokens > context
            before = response
