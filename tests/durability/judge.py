"""Asks a server that was started again for everything it has promised to keep."""

import asyncio
import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from http1 import Http
from ledger import ENDED_WELL, Conversation, Item, Response

DEFINITE = (*ENDED_WELL, "failed", "cancelled")
CONNECTIONS = 4


class Lost(Exception):
    """A promise that was not kept, in words."""


async def losses(
    port: int,
    responses: Iterable[Response],
    conversations: Iterable[Conversation] = (),
    *,
    ends_within: float | None = 0,
) -> list[str]:
    """What is missing of these, or different from what was acknowledged.

    What was being made in the background has an end within so many seconds: at once where nobody
    but this server can be making it. With none, that is for another time.

    What was in doubt when the server died is settled by what it says now, and has to stay so.
    """
    left = iter([*responses, *conversations])
    found = []

    async def work() -> None:
        async with Http(port) as http:
            for kept in left:
                try:
                    match kept:
                        case Response():
                            await _judge(http, kept, ends_within)
                        case Conversation():
                            await _judge_conversation(http, kept)
                except Lost as lost:
                    found.append(f"{kept.id}: {lost}")

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    return found


async def _judge(http: Http, response: Response, ends_within: float | None) -> None:
    if response.id is None:
        # No client knows of it; whether it is there is nobody's business.
        return
    answer = await http.get(f"/v1/responses/{response.id}")
    if answer.status not in (200, 404):
        raise Lost(f"the server cannot say: {answer}")
    is_there = answer.status == 200
    if not response.stored:
        if is_there:
            raise Lost("it is there, but was not to be stored")
        return
    if response.deletion:
        if is_there:
            raise Lost("it was deleted, and is there again")
        return
    if response.deletion_was_asked:
        response.deletion_was_asked = not is_there
        response.deletion = None if is_there else answer.body
        if not is_there:
            return
    was_acknowledged = response.text or response.promise
    if not is_there:
        if was_acknowledged:
            raise Lost("it was acknowledged, and is gone")
        response.stored = False
        return
    if response.text is None:
        give_up = time.monotonic() + (ends_within or 0)
        while answer.json()["status"] not in DEFINITE:
            if ends_within is None:
                return
            if time.monotonic() > give_up:
                raise Lost(f"nobody works on it, and it is {answer.json()['status']}")
            await asyncio.sleep(0.2)
            answer = await http.get(f"/v1/responses/{response.id}")
        response.text = answer.body
    if response.text != answer.body:
        raise Lost(f"it was {response.text.decode()}, and is {answer.body.decode()}")
    given = await _items(http, f"/v1/responses/{response.id}/input_items")
    if given != response.given():
        raise Lost(f"it was given {response.given()}, and that is now {given}")
    if json.loads(response.text)["status"] in ENDED_WELL:
        await _continue(http, response, given)


async def _judge_conversation(http: Http, conversation: Conversation) -> None:
    items = await _items(http, f"/v1/conversations/{conversation.id}/items")
    if not conversation.may_hold(items):
        raise Lost(f"its items were {conversation.items}, and are {items}")
    conversation.settle(items)


async def _items(http: Http, path: str) -> list[Item]:
    items: list[Item] = []
    after = ""
    while True:
        answer = await http.get(f"{path}?order=asc&limit=100{after}")
        if answer.status != 200:
            raise Lost(f"its items cannot be listed: {answer}")
        page = answer.json()
        items += page["data"]
        if not page["has_more"]:
            return items
        after = f"&after={page['last_id']}"


async def _continue(http: Http, response: Response, given: list[Item]) -> None:
    """The engine tells what it is given. Nothing of this is stored."""
    outputs = [
        {"type": "function_call_output", "call_id": call, "output": "Go on."}
        for call in response.unanswered_calls()
    ]
    message = [] if outputs else [{"role": "user", "content": "Go on."}]
    request = {
        "model": "scripted",
        "store": False,
        "previous_response_id": response.id,
        "input": outputs + message,
    }
    answer = await http.post("/v1/responses", request)
    if answer.status != 200:
        raise Lost(f"it cannot be continued: {answer}")
    said = answer.json()["output"][-1]["content"][0]["text"]
    items = len(given) + len(response.output) + len(request["input"])
    expected = f"turn {response.turn + 1}, {items} items: "
    if response.starts_in_conversation:
        # Additions to a conversation are turns, too.
        said, expected = said.partition(", ")[2], f"{items} items: "
    if not said.startswith(expected):
        raise Lost(f"the engine was to see '{expected}', and saw '{said}'")


def complaints(log: str) -> list[str]:
    """Warnings and errors: a start after a crash is an ordinary start, and says nothing of it."""
    return [line for line in log.splitlines() if " WARN " in line or " ERROR " in line]


def database_problems(path: Path) -> list[str]:
    """What SQLite finds wrong with a database that nobody has closed. Looks at a copy: opening it
    would be the recovery that is to be tested."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        for file in (path, path.with_name(path.name + "-wal")):
            if file.exists():
                shutil.copy(file, scratch)
        copy = sqlite3.connect(Path(scratch) / path.name)
        try:
            integrity = [row[0] for row in copy.execute("PRAGMA integrity_check")]
            dangling = [f"dangling: {row}" for row in copy.execute("PRAGMA foreign_key_check")]
        except sqlite3.DatabaseError as error:
            return [str(error)]
        finally:
            copy.close()
    return [found for found in integrity if found != "ok"] + dangling
