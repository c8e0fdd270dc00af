"""Servers to talk to, and the rule that every message of a socket is judged."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import websockets.asyncio.connection
import websockets.sync.connection
from openai import AsyncOpenAI, OpenAI

from certificates import Certificate, make_certificate
from judges import Judged, judge_socket_event
from postgres_server import PostgresServer
from turnwire_process import Turnwire

ENGINES = {"scripted": "scripted", "embedded": "llama:smollm2"}

# Two cores are enough to run the tests on; the engine takes one of them.
FLAGS = {"scripted": [], "embedded": ["--threads", "1"]}

# A build without the embedded engine sets TURNWIRE_TEST_ENGINES=scripted.
SELECTED = os.environ.get("TURNWIRE_TEST_ENGINES", "scripted,embedded").split(",")

# What all clients send; most servers ask for none.
API_KEY = "unused"


@dataclass
class Server:
    """A server that is up, and what its one model is called."""

    process: Turnwire
    model: str

    def client(self, api_key: str = API_KEY) -> OpenAI:
        return OpenAI(base_url=self.process.base_url, api_key=api_key, max_retries=0, timeout=120)

    def async_client(self) -> AsyncOpenAI:
        return AsyncOpenAI(
            base_url=self.process.base_url, api_key=API_KEY, max_retries=0, timeout=120
        )


Start = Callable[..., Server]
Pair = tuple[Server, Server]
StartPair = Callable[..., Pair]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts servers, which end with the run at the latest."""
    running: list[Turnwire] = []

    def start(engine: str, *flags: str) -> Server:
        log = tmp_path_factory.mktemp("turnwire") / "log"
        process = Turnwire(engine, log, *flags)
        running.append(process)
        client = OpenAI(base_url=process.base_url, api_key=API_KEY)
        [model] = client.models.list().data
        return Server(process, model.id)

    yield start
    for process in running:
        process.stop()


@pytest.fixture(scope="session", params=list(ENGINES))
def server(request: pytest.FixtureRequest, start: Start) -> Server:
    """One server for each engine; a test that uses it runs once for each."""
    return _shared(request.param, start)


@pytest.fixture(scope="session")
def scripted(start: Start) -> Server:
    return _shared("scripted", start)


@pytest.fixture(scope="session")
def embedded(start: Start) -> Server:
    return _shared("embedded", start)


_servers: dict[str, Server] = {}


def _shared(name: str, start: Start) -> Server:
    if name not in SELECTED:
        pytest.skip(f"TURNWIRE_TEST_ENGINES leaves {name} out")
    if name not in _servers:
        _servers[name] = start(ENGINES[name], *FLAGS[name])
    return _servers[name]


@pytest.fixture
def start_script(start: Start, tmp_path: Path) -> Callable[..., Server]:
    """Starts a server whose engine follows a script."""

    def start_script(script: str, *flags: str) -> Server:
        path = tmp_path / "script.toml"
        path.write_text(script)
        return start(f"scripted:{path}", *flags)

    return start_script


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def start_pair(
    start: Start, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> StartPair:
    """Starts `one` and `two` on one empty database; `{name}` in their script is who they are."""

    def start_pair(script: str, *flags: str) -> Pair:
        home = tmp_path_factory.mktemp("pair")
        shared = ["--store", postgres.new_database(), "--secret-file", str(home / "secret")]

        def start_named(name: str) -> Server:
            path = home / f"{name}.toml"
            path.write_text(script.replace("{name}", name))
            return start(f"scripted:{path}", *shared, *flags)

        return start_named("one"), start_named("two")

    return start_pair


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(autouse=True, scope="session")
def every_message_is_judged() -> Iterator[None]:
    """All the Python clients read their sockets through one of these two methods."""
    with pytest.MonkeyPatch.context() as patch:
        sync_recv = websockets.sync.connection.Connection.recv
        async_recv = websockets.asyncio.connection.Connection.recv

        def judged_recv(self, *args, **kwargs):
            message = sync_recv(self, *args, **kwargs)
            judge_socket_event(message)
            return message

        async def judged_async_recv(self, *args, **kwargs):
            message = await async_recv(self, *args, **kwargs)
            judge_socket_event(message)
            return message

        patch.setattr(websockets.sync.connection.Connection, "recv", judged_recv)
        patch.setattr(websockets.asyncio.connection.Connection, "recv", judged_async_recv)
        yield


@pytest.fixture(autouse=True)
def judged() -> type[Judged]:
    """Lets a test see how many messages were judged."""
    return Judged
