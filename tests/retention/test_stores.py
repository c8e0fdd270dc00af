"""A store holds what may be stored, and of what may not be nothing; both found by the same search.

What is found is the control of all that find nothing.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from agent import NAME, talk
from conftest import Confine, scripted_engine
from marker import Marker
from postgres_server import PostgresServer
from search import Hit, search_tree
from system_calls import hidden_writes, search_trace


@dataclass(frozen=True)
class Store:
    """What `--store` says, and a search of what the store keeps outside of the server's place."""

    spec: str
    search: Callable[[Marker], list[Hit]] = lambda _: []
    address: str = ""
    """Where it is asked for what a request names, if it is another process."""


@contextmanager
def sqlite(directory: Path) -> Iterator[Store]:
    place = directory / "sqlite"
    place.mkdir()
    yield Store(f"sqlite:{place / 'turnwire.db'}", lambda marker: search_tree(place, marker))


@contextmanager
def postgres(_: Path) -> Iterator[Store]:
    database = PostgresServer()

    def search(marker: Marker) -> list[Hit]:
        database.stop()
        return search_tree(database.home, marker)

    try:
        yield Store(database.url, search, urlsplit(database.url).netloc.partition("@")[2])
    finally:
        database.close()


STORES = {"sqlite": sqlite, "postgres": postgres}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with STORES[request.param](tmp_path) as store:
        yield store


@pytest.mark.parametrize("stored", [False, True], ids=["unstored", "stored"])
def test_only_what_is_stored_is_found(confine: Confine, store: Store, tmp_path: Path, stored: bool):
    marker, trace = Marker(), tmp_path / "trace"
    engine = scripted_engine()
    server = confine(engine, "--store", store.spec, trace=trace)
    talk(server.origin, engine, marker, stored)
    server.end(signal.SIGKILL)
    kept = server.search(marker) + store.search(marker)
    names = {store.address: marker.at(NAME)}
    written = search_trace(trace, marker, {server.server.address}, names)
    assert hidden_writes(trace) == []
    assert [bool(kept), bool(written)] == [stored, stored], [*kept[:5], *written[:5]]
