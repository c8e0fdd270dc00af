"""Kills a server again and again, and looks whether it keeps what it promised.

    python tests/durability/kills.py --kills 5000

Each life of the server: start on what the last one left, judge that, bear some load, die of
SIGKILL at a random moment, sometimes while still starting.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clients
import judge
from ledger import Conversation, Ledger, Response
from server import BINARY, Server
from waiting import grows

# What a server has acknowledged at most when it is killed, and how long it goes on after that.
ACKNOWLEDGED = 40
SECONDS_MORE = 0.02

# Where other servers could be making it, a response is given up some time after its own died.
SHARED_ENDS_WITHIN_SECONDS = 60
OLDER_ONES_JUDGED = 20
LIVES_BETWEEN_LOOKS_AT_THE_DATABASE = 25


@dataclass
class Outcome:
    seed: int
    kills: int = 0
    acknowledged: int = 0
    judged: int = 0
    cut_short: int = 0
    losses: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        figures = (
            f"seed {self.seed}: {self.kills} kills, {self.acknowledged} responses acknowledged, "
            f"{self.judged} times judged, {self.cut_short} cut short in the background, "
            f"{len(self.losses)} lost, {len(self.problems)} problems"
        )
        shown = [f"LOST {lost}" for lost in self.losses[:10]]
        shown += [f"PROBLEM {problem}" for problem in self.problems[:10]]
        return "\n".join([figures, *(text[:2000] for text in shown)])


async def run(
    store: str, scratch: Path, *, kills: int, seed: int, report_every: float = 0
) -> Outcome:
    """`store` is what `--store` takes; what lies in `scratch` may be looked at afterwards."""
    choose = random.Random(seed)
    ledger = Ledger()
    outcome = Outcome(seed)
    fresh = 0
    report_at = time.monotonic() + report_every
    database = Path(store.removeprefix("sqlite:")) if store.startswith("sqlite:") else None

    is_shared = database is None

    async def start() -> Server:
        """What was started is judged before anything new is asked of it."""
        nonlocal fresh
        while choose.random() < 0.1:
            unborn = Server(store, scratch / "log")
            await asyncio.sleep(choose.uniform(0, 0.03))
            unborn.kill()
            outcome.kills += 1
        server = Server(store, scratch / "log").wait_until_ready()
        older = ledger.responses[:fresh]
        responses = ledger.responses[fresh:] + some(older)
        doubtful = [each for each in ledger.conversations if each.doubtful]
        conversations = [*doubtful, *some(ledger.conversations)]
        await judge_all(server, responses, conversations, None if is_shared else 0)
        fresh = len(ledger.responses)
        return server

    def some(older: list[Any]) -> list[Any]:
        return choose.sample(older, min(len(older), OLDER_ONES_JUDGED))

    async def judge_all(
        server: Server,
        responses: list[Response],
        conversations: list[Conversation],
        ends_within: float | None,
    ) -> None:
        outcome.losses += await judge.losses(
            server.port, responses, conversations, ends_within=ends_within
        )
        outcome.judged += len(responses)
        outcome.problems += judge.complaints(server.said())

    while outcome.kills < kills and not outcome.losses:
        server = await start()
        load = asyncio.create_task(clients.load(server.port, ledger, choose, sockets=8, http=4))
        await grows(lambda: ledger.acknowledged, by=choose.randint(0, ACKNOWLEDGED))
        await asyncio.sleep(choose.uniform(0, SECONDS_MORE))
        server.kill()
        await load
        outcome.kills += 1
        if database and outcome.kills % LIVES_BETWEEN_LOOKS_AT_THE_DATABASE == 1:
            outcome.problems += judge.database_problems(database)
        outcome.acknowledged = ledger.acknowledged
        if report_every and time.monotonic() > report_at:
            print(outcome, flush=True)
            report_at = time.monotonic() + report_every
    server = await start()
    ends_within = SHARED_ENDS_WITHIN_SECONDS if is_shared else 0
    await judge_all(server, ledger.responses, ledger.conversations, ends_within)
    server.kill()
    if database:
        outcome.problems += judge.database_problems(database)
    outcome.problems += ledger.problems
    outcome.cut_short = sum(has_failed(response) for response in ledger.responses)
    return outcome


def has_failed(response: Response) -> bool:
    return bool(response.text) and json.loads(response.text)["status"] == "failed"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--kills", type=int, default=5000)
    arguments.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    arguments.add_argument("--store", help="what --store takes; a new SQLite file if not given")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="turnwire-kills-") as scratch:
        store = given.store or f"sqlite:{scratch}/turnwire.db"
        print(f"{BINARY} with seed {given.seed} on {store}", flush=True)
        running = run(store, Path(scratch), kills=given.kills, seed=given.seed, report_every=30)
        try:
            outcome = asyncio.run(running)
        finally:
            Server.kill_all()
    print(outcome)
    return 1 if outcome.losses or outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
