"""Nothing of what is said with `store: false` is left in any file, however the server ends.

With `--zero-retention` not even of what is said with `store: true`, nor by a crash that may dump.
"""

import signal
from contextlib import closing
from pathlib import Path

import pytest

from agent import Agent
from confined import Confined, Engine
from conftest import Confine, scripted_engine
from marker import Marker
from system_calls import hidden_writes, is_socket, read_trace, search_trace

CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")

# What a server is told, and what its requests ask for.
UNSTORED = ((), False)
ZERO_RETENTION = (("--zero-retention",), True)

# What an agent that was understood has heard from every engine.
ALWAYS_HEARD = [
    *("response.completed", "error", "response.steer.failed", "response.inject.failed"),
    *("item compaction", "missing_required_parameter", "invalid_json"),
    *("HTTP 200", "HTTP 400", "HTTP 404", "raw", "closed"),
]

# What takes many turns to hear, or a model that does as it is told.
OFTEN_HEARD = [
    *("response.incomplete", "response.failed", "response.steer.accepted", "item function_call"),
    *("response.compaction.compacting", "sealed", "invalid_type"),
]


def talk(server: Confined, engine: Engine, marker: Marker, store: bool) -> Agent:
    """Says everything that can be said, and sees that it was heard."""
    agent = Agent(server.origin, engine.model, marker, store, engine.is_slow)
    agent.run()
    expected = ALWAYS_HEARD if engine.is_slow else ALWAYS_HEARD + OFTEN_HEARD
    assert [kind for kind in expected if not agent.heard[kind]] == [], agent.heard
    assert agent.echoes > 10, agent.heard
    return agent


@pytest.mark.parametrize(
    ("mode", "ending"),
    [(UNSTORED, signal.SIGKILL), (ZERO_RETENTION, signal.SIGABRT)],
    ids=["unstored", "zero-retention"],
)
def test_no_file_holds_what_was_said(
    confine: Confine,
    engine: Engine,
    marker: Marker,
    mode: tuple[tuple[str, ...], bool],
    ending: signal.Signals,
):
    flags, store = mode
    server = confine(engine, *flags, core_dumps=mode == ZERO_RETENTION)
    agent = talk(server, engine, marker, store)
    with closing(agent.begin_endless()), closing(agent.begin_streaming()):
        assert server.search_open_files(marker) == []
        server.end(ending)
    assert (server.directory / "log").stat().st_size > 1000
    assert server.search(marker) == []


@pytest.mark.parametrize("mode", [UNSTORED, ZERO_RETENTION], ids=["unstored", "zero-retention"])
def test_no_system_call_writes_what_was_said(
    confine: Confine,
    engine: Engine,
    marker: Marker,
    tmp_path: Path,
    mode: tuple[tuple[str, ...], bool],
):
    flags, store = mode
    trace = tmp_path / "trace"
    server = confine(engine, *flags, trace=trace)
    agent = talk(server, engine, marker, store)
    with closing(agent.begin_endless()):
        server.end(signal.SIGKILL)

    sockets = {server.server.address} | {engine.address} - {None}
    assert search_trace(trace, marker, sockets) == []
    assert hidden_writes(trace) == []
    # The control: the marker was said, and the trace shows it where it may be.
    calls = list(read_trace(trace))
    for address in sockets:
        said = b"".join(call.data for call in calls if is_socket(call.target, {address}))
        assert marker.core.encode() in said
    undumpable = any(call.name == "prctl" and "PR_SET_DUMPABLE" in call.text for call in calls)
    assert undumpable == (mode == ZERO_RETENTION)


def test_a_core_dump_is_found_where_there_is_one(confine: Confine):
    """The control of those that find none: without the flag, the same crash leaves one."""
    if CORE_PATTERN.read_text().startswith(("|", "/")):
        pytest.skip("this system puts core dumps elsewhere")
    engine, marker = scripted_engine(), Marker()
    server = confine(engine, core_dumps=True)
    agent = Agent(server.origin, engine.model, marker, store=False)
    with closing(agent.begin_endless()):
        server.end(signal.SIGABRT)
    hits = server.search(marker)
    assert hits and {hit.path.startswith("core") for hit in hits} == {True}
