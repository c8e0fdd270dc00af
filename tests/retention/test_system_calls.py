"""A trace shows a marker wherever a program writes it. The control of traces that show none."""

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from confined import tracing
from marker import Marker
from system_calls import hidden_writes, search_trace

# What they write is `said`, and where they may is `place`.
BEFORE = """
import mmap, os, socket, sys, threading
directory, port = sys.argv[1], int(sys.argv[2])
said, place = open(directory + "/said").read(), directory + "/place"
def file(): return os.open(place, os.O_RDWR)
"""

PROGRAMS = {
    "a file": "os.write(file(), said.encode())",
    "a file, in pieces": "os.writev(file(), [b'a', said.encode()])",
    "a file, in the middle": "os.pwrite(file(), said.encode(), 9)",
    "a file of a thread": "threading.Thread(target=os.write, args=(file(), said.encode())).start()",
    "the name of a file": "open(place + said, 'w')",
    "a new name": "os.rename(place, place + said)",
    "a pipe": "os.write(os.pipe()[1], said.encode())",
    "a socket of this machine": "ends = socket.socketpair(); ends[0].send(said.encode())",
    "a datagram": "socket.socket(type=socket.SOCK_DGRAM).sendto(said.encode(), ('127.0.0.1', 9))",
    "another's socket": "socket.create_connection(('127.0.0.1', port)).send(said.encode())",
}

HIDDEN = {
    "a shared mapping": "mmap.mmap(file(), 0)",
    "a copy within the kernel": "os.sendfile(1, file(), 0, 9)",
    "a file without a name": "os.memfd_create('name')",
}


@pytest.fixture(scope="module")
def port():
    """Where somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]


def _accept(listener: socket.socket) -> None:
    while True:
        try:
            listener.accept()
        except OSError:
            return


def traced(program: str, marker: Marker, port: int, directory: Path) -> Path:
    """The trace of a small program in Python."""
    (directory / "said").write_text(marker.at("said"))
    (directory / "place").write_text("something")
    trace = directory / "trace"
    python = [sys.executable, "-c", BEFORE + program, str(directory), str(port)]
    subprocess.run([*tracing(trace), *python], check=True, stdout=subprocess.DEVNULL)
    return trace


@pytest.mark.parametrize("what", PROGRAMS)
def test_a_write_to_anything_is_seen(what: str, port: int, tmp_path: Path):
    marker = Marker()
    trace = traced(PROGRAMS[what], marker, port, tmp_path)
    assert search_trace(trace, marker, set())
    assert hidden_writes(trace) == []


def test_only_the_named_sockets_may_be_written_to(port: int, tmp_path: Path):
    marker = Marker()
    trace = traced(PROGRAMS["another's socket"], marker, port, tmp_path)
    assert search_trace(trace, marker, {f"127.0.0.1:{port}"}) == []
    assert search_trace(trace, marker, {"127.0.0.1:1"})


@pytest.mark.parametrize("what", HIDDEN)
def test_a_write_that_does_not_show_what_it_writes_is_seen(what: str, port: int, tmp_path: Path):
    assert hidden_writes(traced(HIDDEN[what], Marker(), port, tmp_path))
