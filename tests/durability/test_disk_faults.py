"""A disk that is full, read-only or broken: clear errors, nothing half-written, and service returns
by itself."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

import clients
import judge
from fault_layer import FaultLayer
from http1 import Answer, Http
from ledger import Ledger
from server import NotStarted, Server
from waiting import PATIENCE_SECONDS, grows

FAULTS = ["full", "read-only", "write-error", "sync-error"]

# So long that it never fits where something is already.
LONG = "All that can be said. " * 20_000


@pytest.fixture
def layer(tmp_path: Path) -> FaultLayer:
    (tmp_path / "disk").mkdir()
    return FaultLayer(tmp_path / "disk", tmp_path, records=False)


def start(layer: FaultLayer, log: Path) -> Server:
    store = f"sqlite:{layer.root / 'turnwire.db'}"
    return Server(store, log, environment=layer.environment).wait_until_ready()


def request(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "scripted", "input": text, **more}


def is_unavailable(answer: Answer) -> bool:
    return answer.status == 503 and answer.json()["error"]["code"] == "storage_unavailable"


async def until_it_is_stored(http: Http) -> Answer:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while is_unavailable(answer := await http.post("/v1/responses", request(LONG))):
            await asyncio.sleep(0.05)
    return answer


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_cannot_be_stored_is_refused_and_all_else_goes_on(layer, tmp_path, fault):
    server = start(layer, tmp_path / "log")
    async with Http(server.port) as http:
        kept = await http.post("/v1/responses", request("hello"))
        path = f"/v1/responses/{kept.json()['id']}"
        with layer.fault(fault):
            refused = await http.post("/v1/responses", request(LONG))
            assert is_unavailable(refused), refused
            assert int(refused.headers["retry-after"]) > 0
            in_background = await http.post("/v1/responses", request(LONG, background=True))
            assert is_unavailable(in_background), in_background
            over_socket = await refused_over_socket(server.port)

            not_stored = await http.post("/v1/responses", request("hello", store=False))
            assert not_stored.status == 200, not_stored
            assert (await http.get(path)).body == kept.body
        assert (await until_it_is_stored(http)).status == 200
        assert (await http.get(path)).body == kept.body
        assert (await http.get(f"/v1/responses/{over_socket}")).status == 404
    told = [line for line in judge.complaints(server.said()) if "store" in line]
    assert told, server.said()
    # What a client said is in no line, and the lines are as many as the failures at most.
    assert len(told) <= 6, told
    assert "All that can be said" not in server.said()
    server.kill()
    assert judge.database_problems(layer.root / "turnwire.db") == []


async def refused_over_socket(port: int) -> str:
    """The id of the response that was begun and could not be stored."""
    async with connect(f"ws://127.0.0.1:{port}/v1/responses", max_size=None) as ws:
        await ws.send(json.dumps({"type": "response.create", **request(LONG)}))
        begun = ""
        while True:
            event = json.loads(await ws.recv())
            if event["type"] == "response.created":
                begun = event["response"]["id"]
            if event["type"] in clients.TERMINAL:
                break
        assert event["type"] in ("response.failed", "error"), event
        assert clients.is_of_store(event.get("response", event)["error"]), event
        # The socket goes on.
        await ws.send(json.dumps({"type": "response.create", **request("hello", store=False)}))
        while json.loads(await ws.recv())["type"] != "response.completed":
            pass
    return begun


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_under_load_loses_nothing(layer, tmp_path, fault):
    server = start(layer, tmp_path / "log")
    ledger = Ledger(store_may_fail=True)
    choose = random.Random(3)
    load = asyncio.create_task(clients.load(server.port, ledger, choose, sockets=8, http=4))
    for _ in range(3):
        await grows(lambda: ledger.acknowledged)
        with layer.fault(fault):
            await grows(lambda: ledger.excuses)
    await grows(lambda: ledger.acknowledged)
    server.kill()
    await load
    server = start(layer, tmp_path / "log")
    assert await judge.losses(server.port, ledger.responses, ledger.conversations) == []
    assert ledger.problems == []
    server.kill()
    assert judge.database_problems(layer.root / "turnwire.db") == []


@pytest.mark.parametrize("exists", [False, True])
def test_a_read_only_disk_at_the_start_is_named(layer, tmp_path, exists):
    if exists:
        start(layer, tmp_path / "log").stop()
    with layer.fault("read-only"), pytest.raises(NotStarted) as reason:
        start(layer, tmp_path / "log")
    assert str(layer.root / "turnwire.db") in str(reason.value)
    assert "Read-only file system" in str(reason.value)
