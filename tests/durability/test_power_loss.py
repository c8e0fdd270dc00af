"""Power is lost at random moments: what was acknowledged before is there afterwards.

A server bears load over three lives on the fault layer. For many moments of the log the disk is
made as it would be then, another server starts on it, and everything that had left a socket before
that moment is asked for.
"""

import asyncio
import os
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import clients
import judge
from departures import Departure, Departures
from fault_layer import FaultLayer, Kind, Record
from ledger import Ledger, Response
from power_loss import Disk
from server import NotStarted, Server
from waiting import grows

LIVES = 3
ACKNOWLEDGED_IN_EACH = 150
MOMENTS = int(os.environ.get("POWER_LOSS_MOMENTS", "60"))
# Of the responses of one moment, as many of the last ones and as many of all others are judged.
JUDGED_OF_EACH = 25
DATABASE = "data/turnwire.db"
SECRET = "secret"


@dataclass
class Trace:
    """What went on below a server, and what its clients were told."""

    layer: FaultLayer
    records: list[Record]
    departures: Departures
    responses: list[Response]

    def __post_init__(self) -> None:
        self._of: dict[tuple[Response, str], Departure | None] = {}

    def departure(self, response: Response, text: str) -> Departure | None:
        """When the `text`, the `promise` or the `deletion` of a response left, if it did."""
        if (response, text) not in self._of:
            left = getattr(response, text)
            self._of[response, text] = self.departures.of(left) if left else None
        return self._of[response, text]

    def known_at(self, place: int) -> list[Response]:
        """The responses as clients could know them when this place of the log was reached."""
        known: dict[Response, Response] = {}
        for response in self.responses:
            told = {
                text: getattr(response, text) if self._has_left(response, text, place) else None
                for text in ("text", "promise", "deletion")
            }
            parent = known[response.parent] if response.parent else None
            known[response] = replace(response, parent=parent, **told)
        return list(known.values())

    def _has_left(self, response: Response, text: str, place: int) -> bool:
        departure = self.departure(response, text)
        return departure is not None and departure.last <= place


async def record_trace(tmp_path: Path, *, lies: bool = False) -> Trace:
    root = tmp_path / "disk"
    root.mkdir()
    layer = FaultLayer(root, tmp_path, lies=lies)
    ledger = Ledger()
    choose = random.Random(11)
    for _ in range(LIVES):
        store = f"sqlite:{root / DATABASE}"
        server = Server(
            store, tmp_path / "log", environment=layer.environment, secret=root / SECRET
        ).wait_until_ready()
        load = asyncio.create_task(clients.load(server.port, ledger, choose, sockets=8, http=4))
        await grows(lambda: ledger.acknowledged, by=ACKNOWLEDGED_IN_EACH)
        server.kill()
        await load
    assert not ledger.problems
    records = layer.records()
    trace = Trace(layer, records, Departures(records), ledger.responses)
    for response in ledger.responses:
        assert not response.text or trace.departure(response, "text"), "no text goes unseen"
    return trace


async def losses_at(
    trace: Trace, places: list[int], choose: random.Random, into: Path
) -> list[str]:
    """Cuts the power at each place, twice: nothing that was not synced survives, and some does."""
    found = []
    disk = Disk(trace.layer.root, trace.records)
    for place in sorted(places):
        disk.advance(place + 1)
        known = trace.known_at(place)
        last = [response for response in known if response.text][-JUDGED_OF_EACH:]
        others = choose.sample(known, min(len(known), JUDGED_OF_EACH))
        for sectors_survive in (None, choose):
            image = into / f"{place}-{'some' if sectors_survive else 'none'}"
            disk.write_image(image, sectors_survive)
            told = [replace(response) for response in dict.fromkeys(last + others)]
            found += [f"at {place}: {lost}" for lost in await losses_on(image, told, into)]
            if last and not is_same(image / SECRET, trace.layer.root / SECRET):
                found.append(f"at {place}: the secret is not what it was")
            shutil.rmtree(image)
    return found


def is_same(file: Path, other: Path) -> bool:
    return file.exists() and file.read_bytes() == other.read_bytes()


async def losses_on(image: Path, responses: list[Response], scratch: Path) -> list[str]:
    (image / DATABASE).parent.mkdir(exist_ok=True)
    try:
        server = Server(f"sqlite:{image / DATABASE}", scratch / "log").wait_until_ready()
    except NotStarted as reason:
        return [f"the server does not start: {reason}"]
    try:
        found = await judge.losses(server.port, responses)
    finally:
        server.kill()
    return found + judge.database_problems(image / DATABASE)


def moments(trace: Trace, choose: random.Random) -> list[int]:
    """Where it matters most: as an answer leaves, around syncs, and anywhere."""
    left = [trace.departure(response, "text") for response in trace.responses]
    answers = [departure.last for departure in left if departure]
    syncs = [
        place + choose.choice([-1, 0])
        for place, record in enumerate(trace.records)
        if record.kind in (Kind.SYNC_BEGUN, Kind.SYNCED)
    ]
    anywhere = range(len(trace.records))
    each = MOMENTS // 3
    return [
        place
        for places in (answers, syncs, anywhere)
        for place in choose.sample(places, min(len(places), each))
    ]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return asyncio.run(record_trace(tmp_path_factory.mktemp("trace")))


async def test_nothing_acknowledged_is_lost_with_the_power(trace: Trace, tmp_path: Path):
    choose = random.Random(random.SystemRandom().getrandbits(32))
    places = moments(trace, choose)
    lost = await losses_at(trace, places, choose, tmp_path)
    acknowledged = sum(bool(response.text) for response in trace.responses)
    print(f"{2 * len(places)} losses of power, {acknowledged} acknowledged, {len(lost)} lost")
    assert not lost, "\n".join(text[:2000] for text in lost[:10])


async def test_a_disk_that_does_not_sync_is_found_out(tmp_path: Path):
    trace = await record_trace(tmp_path, lies=True)
    [last] = moments(trace, random.Random(1))[:1]
    assert await losses_at(trace, [last], random.Random(1), tmp_path / "images")


def test_every_answer_leaves_after_the_sync_that_covers_it(trace: Trace):
    written = [
        (place, record) for place, record in enumerate(trace.records) if record.kind is Kind.WRITTEN
    ]
    syncs = list(_syncs(trace.records))
    proven = 0
    for response in trace.responses:
        answer = trace.departure(response, "text")
        if not response.stored or not answer:
            continue
        mark = response.input[-1]["id"].encode()
        write = next((at for at, record in written if mark in record.payload), None)
        # One in some hundred marks lies across two pages.
        if write is None:
            continue
        inode = trace.records[write].file
        assert any(
            file == inode and begun > write and ended < answer.first for file, begun, ended in syncs
        ), f"{response.id} was acknowledged at {answer}, written at {write}, not synced between"
        proven += 1
    print(f"{proven} answers left after the sync that covers them, none before")
    assert proven > len(trace.responses) / 2


def _syncs(records: list[Record]):
    """Each sync that returned: its file, and where it began and returned."""
    begun: dict[tuple[int, int], int] = {}
    for place, record in enumerate(records):
        if record.kind is Kind.SYNC_BEGUN:
            begun[record.file, record.number] = place
        elif record.kind is Kind.SYNCED:
            yield record.file, begun[record.file, record.number], place
