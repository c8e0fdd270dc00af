"""Engines to talk to, and servers that are gone after the test."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chat_upstream import MODEL, ChatUpstream
from confined import Confined, Engine
from marker import Marker

# As for tests/clients: a build without the embedded engine sets TURNWIRE_TEST_ENGINES=scripted.
SELECTED = os.environ.get("TURNWIRE_TEST_ENGINES", "scripted,embedded").split(",")

SCRIPT = Path(__file__).with_name("scripted.toml")

Confine = Callable[..., Confined]


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The one that the test is parametrized with: scripted, chat or embedded."""
    if request.param == "chat":
        upstream = ChatUpstream()
        yield Engine(f"chat:{upstream.base_url}", MODEL, upstream.address)
        upstream.stop()
    elif request.param == "scripted":
        yield scripted_engine()
    elif "embedded" not in SELECTED:
        pytest.skip("TURNWIRE_TEST_ENGINES leaves embedded out")
    else:
        model = os.environ["TURNWIRE_TEST_MODEL"]
        # A summary may take a quarter of the cells.
        flags = ("--threads", "1", "--kv-cells", "1024")
        yield Engine(f"embedded=llama:{model}", "embedded", flags=flags, is_slow=True)


def scripted_engine() -> Engine:
    return Engine(f"scripted:{SCRIPT}", "scripted")


@pytest.fixture
def marker(engine: Engine) -> Marker:
    return Marker(1 if engine.is_slow else 3)


@pytest.fixture
def confine(tmp_path: Path) -> Iterator[Confine]:
    """Starts servers, each in a directory of its own."""
    running: list[Confined] = []

    def confine(*arguments, **options) -> Confined:
        directory = tmp_path / f"server-{len(running)}"
        directory.mkdir()
        running.append(Confined(directory, *arguments, **options))
        return running[-1]

    yield confine
    for server in running:
        server.close()
