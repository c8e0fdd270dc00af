"""Several clients at once on one model."""

import asyncio
import json
from itertools import pairwise

from conftest import Server
from connections import create_async
from turns import is_terminal

STORY = {
    "input": "Tell a long story about the sea.",
    "max_output_tokens": 64,
    # The same story every time, long enough to be cut.
    "temperature": 0,
    "store": False,
}


async def stream(server: Server, name: str, seen: list[tuple[str, str]]) -> None:
    """Notes each event as it arrives, for all streams in one list."""
    async with server.async_client().responses.connect() as connection:
        await connection.send({"type": "response.create", "model": server.model, **STORY})
        while True:
            event = json.loads(await connection.recv_bytes())
            seen.append((name, event["type"]))
            if is_terminal(event):
                assert event["type"] in ("response.completed", "response.incomplete")
                return


async def test_two_conversations_stream_at_once(embedded: Server):
    seen: list[tuple[str, str]] = []
    await asyncio.gather(stream(embedded, "a", seen), stream(embedded, "b", seen))
    deltas = [name for name, kind in seen if kind == "response.output_text.delta"]
    turns_taken = sum(1 for before, after in pairwise(deltas) if before != after)
    assert turns_taken > 10, f"one waited for the other: {''.join(deltas)}"


async def test_a_client_that_vanishes_leaves_the_others_alone(embedded: Server):
    seen: list[tuple[str, str]] = []
    other = asyncio.create_task(stream(embedded, "other", seen))
    async with embedded.async_client().responses.connect() as connection:
        endless = {**STORY, "model": embedded.model, "max_output_tokens": 4096}
        await connection.send({"type": "response.create", **endless})
        while json.loads(await connection.recv_bytes())["type"] != "response.output_text.delta":
            pass
        # No Close frame: the process is gone.
        connection._connection.transport.abort()
        await other
    assert seen[-1][1] in ("response.completed", "response.incomplete")
    # Had the endless turn gone on, this one would be slow; that it ends at all is the point here.
    async with embedded.async_client().responses.connect() as connection:
        turn = await create_async(connection, {"model": embedded.model, **STORY})
    assert turn.output_tokens > 0


async def test_pings_are_answered_while_the_model_computes(embedded: Server):
    async with embedded.async_client().responses.connect() as connection:
        await connection.send({"type": "response.create", "model": embedded.model, **STORY})
        pong = await connection._connection.ping()
        await asyncio.wait_for(pong, timeout=10)
        last = {"type": ""}
        while not is_terminal(last):
            last = json.loads(await connection.recv_bytes())
    assert last["type"] in ("response.completed", "response.incomplete")
