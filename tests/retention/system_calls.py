"""What strace has seen: every piece of data that a server wrote, and where to."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from marker import Marker
from search import Hit, search_bytes

# `PID name(arguments) = result`, or the first half of it if another thread was heard in between.
CALL = re.compile(r"^\d+ +(?P<name>\w+)\((?P<arguments>.*)$")
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')

WRITES = {
    *("write", "writev", "pwrite64", "pwritev", "pwritev2", "sendto", "sendmsg", "sendmmsg"),
}

# They move data without showing it, or let something else write.
HIDDEN = {
    *("sendfile", "splice", "vmsplice", "tee", "copy_file_range", "process_vm_writev"),
    *("io_uring_setup", "io_submit", "memfd_create"),
}


@dataclass(frozen=True)
class Call:
    name: str
    target: str
    """The file or socket behind the first argument, if that is a descriptor."""
    data: bytes
    """All strings among the arguments, one after the other."""
    text: str
    """The arguments, escaped as they are."""
    is_cut: bool


def read_trace(trace: Path) -> Iterator[Call]:
    with trace.open(encoding="ascii") as lines:
        for line in lines:
            if found := CALL.match(line):
                strings = STRING.findall(found["arguments"])
                data = b"".join(bytes.fromhex(text.replace("\\x", "")) for text, _ in strings)
                yield Call(
                    found["name"],
                    _target(found["arguments"]),
                    data,
                    found["arguments"],
                    any(cut for _, cut in strings),
                )


def _target(arguments: str) -> str:
    number, bracket, rest = arguments.partition("<")
    if not (bracket and number.isdigit()):
        return ""
    # A socket is told like `TCP:[127.0.0.1:1->127.0.0.1:2]`, so that an arrow is no end.
    end = re.search(r"(?<!-)>", rest)
    target = rest[: end.start()] if end else rest
    return _unescaped(target)


def _unescaped(text: str) -> str:
    return re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), text)


def search_trace(
    trace: Path, marker: Marker, sockets: set[str], names: dict[str, str] | None = None
) -> list[Hit]:
    """Writes of the marker to anything but the sockets that have one of these addresses at an end,
    and names of files that hold it. `names` has for an address what may be asked for there."""
    hits = []
    for call in read_trace(trace):
        if call.name in WRITES and is_socket(call.target, sockets):
            continue
        assert not (call.is_cut and call.name in WRITES), f"{call.name} of too much: {call.target}"
        data = call.data
        for address, name in (names or {}).items():
            if is_socket(call.target, {address}):
                data = data.replace(name.encode(), b"")
        hits += search_bytes(f"{call.name} {call.target}", data, marker)
    return hits


def is_socket(target: str, addresses: set[str]) -> bool:
    """Whether it is a connection with one of these at an end."""
    found = re.fullmatch(r"TCP:\[([^-]*)->([^-]*)\]", target)
    return bool(found) and bool({found[1], found[2]} & addresses)


def hidden_writes(trace: Path) -> list[str]:
    """Calls that write what a trace does not show."""
    return [
        f"{call.name}({call.text}"
        for call in read_trace(trace)
        if call.name in HIDDEN or _writes_by_mapping(call)
    ]


def _writes_by_mapping(call: Call) -> bool:
    """SQLite's -shm does not count: it says in which places of the WAL pages are, and is a file
    that is searched like any other."""
    is_shared = call.name == "mmap" and "PROT_WRITE" in call.text and "MAP_SHARED" in call.text
    mapped = _unescaped("".join(re.findall(r"<([^>]*)>", call.text)))
    return is_shared and "MAP_ANONYMOUS" not in call.text and not mapped.endswith("-shm")
