"""The library `fault_layer.c` under a server: its log of what was written, and its faults."""

import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("fault_layer.c")
HEAD = struct.Struct("<QQII")


class Kind(IntEnum):
    """The same as in the library."""

    CREATED = 1
    OPENED = 2
    WRITTEN = 3
    RESIZED = 4
    SYNC_BEGUN = 5
    SYNCED = 6
    RENAMED = 7
    REMOVED = 8
    MADE_DIR = 9
    SENDING = 10
    SENT = 11
    LINKED = 12


@dataclass(frozen=True, slots=True)
class Record:
    """`file` is an inode, or a descriptor where something was sent."""

    kind: Kind
    file: int
    number: int
    payload: bytes


class FaultLayer:
    """The library, made for the files below `root`, with its own files in `scratch`."""

    def __init__(self, root: Path, scratch: Path, *, lies: bool = False, records: bool = True):
        self.root = root
        self.control = scratch / "fault"
        self.log = scratch / "fault-layer.log"
        library = scratch / "fault_layer.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAULT_LAYER_ROOT": str(root),
            "FAULT_LAYER_CONTROL": str(self.control),
        }
        if records:
            self.environment["FAULT_LAYER_LOG"] = str(self.log)
        if lies:
            self.environment["FAULT_LAYER_LIE"] = "1"

    @contextmanager
    def fault(self, kind: str) -> Iterator[None]:
        """While this lasts, the disk is `full`, `read-only`, or has a `write-error` or a
        `sync-error`."""
        written = self.control.with_suffix(".new")
        written.write_text(kind)
        os.rename(written, self.control)
        try:
            yield
        finally:
            self.control.unlink()

    def records(self) -> list[Record]:
        """The log, up to the last whole record: a killed program leaves half of one."""
        log = self.log.read_bytes()
        records = []
        at = 0
        while at + HEAD.size <= len(log):
            file, number, length, kind = HEAD.unpack_from(log, at)
            at += HEAD.size
            if at + length > len(log):
                break
            records.append(Record(Kind(kind), file, number, log[at : at + length]))
            at += length
        return records
