"""Nothing of what is said with `store: false` is left in any file, however the server ends.

With `--zero-retention` not even of what is said with `store: true`, nor by a crash that may dump.
"""

import os
import signal
from contextlib import closing
from pathlib import Path

import pytest

from agent import Agent, talk
from confined import Engine
from conftest import Confine, scripted_engine
from marker import Marker
from system_calls import hidden_writes, is_socket, read_trace, search_trace

CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")

# What a server is told, what its requests ask for, and how it ends.
UNSTORED = ((), False, signal.SIGKILL)
ZERO_RETENTION = (("--zero-retention",), True, signal.SIGABRT)

# Of a process that is not dumpable only root can tell which descriptor is which.
TRACEABLE = [UNSTORED, ZERO_RETENTION] if os.geteuid() == 0 else [UNSTORED]

Mode = tuple[tuple[str, ...], bool, signal.Signals]


def in_modes(**modes: list[Mode]):
    """The engines by name, each in its modes."""
    cases = [(engine, mode) for engine in modes for mode in modes[engine]]
    names = {UNSTORED: "unstored", ZERO_RETENTION: "zero-retention"}
    ids = [f"{engine}-{names[mode]}" for engine, mode in cases]
    return pytest.mark.parametrize(("engine", "mode"), cases, ids=ids, indirect=["engine"])


# A real model takes its time, so it gets one mode for each test.
@in_modes(
    scripted=[UNSTORED, ZERO_RETENTION],
    chat=[UNSTORED, ZERO_RETENTION],
    embedded=[ZERO_RETENTION],
)
def test_no_file_holds_what_was_said(confine: Confine, engine: Engine, marker: Marker, mode: Mode):
    flags, store, ending = mode
    server = confine(engine, *flags, core_dumps=mode == ZERO_RETENTION)
    agent = talk(server.origin, engine, marker, store)
    with closing(agent.begin_endless()), closing(agent.begin_streaming()):
        assert server.search_open_files(marker) == []
        server.end(ending)
    assert (server.directory / "log").stat().st_size > 1000
    assert server.search(marker) == []


@in_modes(scripted=TRACEABLE, chat=TRACEABLE, embedded=[UNSTORED])
def test_no_system_call_writes_what_was_said(
    confine: Confine, engine: Engine, marker: Marker, tmp_path: Path, mode: Mode
):
    flags, store, ending = mode
    trace = tmp_path / "trace"
    server = confine(engine, *flags, trace=trace)
    agent = talk(server.origin, engine, marker, store)
    with closing(agent.begin_endless()):
        server.end(ending)

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
