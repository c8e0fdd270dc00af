"""The same on PostgreSQL: servers that are killed, and a database that dies under them."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import PostgresServer

import clients
import judge
import kills
from ledger import Ledger
from server import Server
from waiting import grows

KILLS = 25
RESTARTS = 4


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.close()


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed(postgres, tmp_path: Path):
    seed = random.SystemRandom().getrandbits(32)
    outcome = await kills.run(postgres.new_database(), tmp_path, kills=KILLS, seed=seed)
    print(outcome)
    assert not outcome.losses, str(outcome)
    assert not outcome.problems, str(outcome)
    assert outcome.acknowledged > KILLS


async def test_nothing_acknowledged_is_lost_when_the_database_dies(postgres, tmp_path: Path):
    store = postgres.new_database()
    server = Server(store, tmp_path / "log").wait_until_ready()
    ledger = Ledger(store_may_fail=True)
    choose = random.Random(5)
    load = asyncio.create_task(clients.load(server.port, ledger, choose, sockets=8, http=4))
    for _ in range(RESTARTS):
        await grows(lambda: ledger.acknowledged)
        await asyncio.to_thread(postgres.stop_immediately)
        await grows(lambda: ledger.excuses)
        await asyncio.to_thread(postgres.start)
    await grows(lambda: ledger.acknowledged)
    server.kill()
    await load
    server = Server(store, tmp_path / "log").wait_until_ready()
    lost = await judge.losses(
        server.port,
        ledger.responses,
        ledger.conversations,
        ends_within=kills.SHARED_ENDS_WITHIN_SECONDS,
    )
    print(
        f"{RESTARTS} deaths of the database, {ledger.acknowledged} acknowledged, {len(lost)} lost"
    )
    assert lost == []
    assert ledger.problems == []
    server.kill()
