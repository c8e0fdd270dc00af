"""The instrument itself, on a program that is known to be right: SQLite, as Python has it."""

import random
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from departures import Departures
from fault_layer import FaultLayer, Kind
from power_loss import Disk

# Commits numbers and says so; the connection is never closed.
PROGRAM = """
import os, socket, sqlite3, sys
told = socket.socket(fileno=int(sys.argv[2]))
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA journal_mode = WAL")
database.execute("PRAGMA synchronous = FULL")
database.execute("PRAGMA wal_autocheckpoint = 20")
database.execute("CREATE TABLE kept (number INTEGER PRIMARY KEY, padding BLOB)")
for number in range(30):
    database.execute("INSERT INTO kept VALUES (?, randomblob(?))", (number, number * 300))
    told.sendall(b"<%d>" % number)
os._exit(0)
"""
NUMBERS = range(30)


def run_program(layer: FaultLayer, database: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subprocess.run(
            [sys.executable, "-c", PROGRAM, database, str(theirs.fileno())],
            env=layer.environment,
            pass_fds=[theirs.fileno()],
            check=True,
        )


def lost_at_random_moments(layer: FaultLayer, scratch: Path) -> int:
    """Cuts the power right after each commit was told of, and looks what is gone."""
    records = layer.records()
    departures = Departures(records)
    choose = random.Random(7)
    disk = Disk(layer.root, records)
    lost = 0
    for number in NUMBERS:
        departure = departures.of(b"<%d>" % number)
        assert departure, f"{number} was never told"
        disk.advance(departure.first)
        for sectors_survive in (None, choose):
            image = scratch / f"image-{number}-{bool(sectors_survive)}"
            disk.write_image(image, sectors_survive)
            lost += sum(kept not in numbers_in(image / "kept.db") for kept in range(number + 1))
    return lost


def numbers_in(database: Path) -> set[int]:
    with sqlite3.connect(database) as opened:
        try:
            if opened.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                return set()
            return {row[0] for row in opened.execute("SELECT number FROM kept")}
        except sqlite3.DatabaseError:
            return set()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def test_what_was_synced_before_it_was_told_survives_a_loss_of_power(root, tmp_path):
    layer = FaultLayer(root, tmp_path)
    run_program(layer, root / "kept.db")
    assert lost_at_random_moments(layer, tmp_path) == 0


def test_without_syncs_a_loss_of_power_loses_it(root, tmp_path):
    layer = FaultLayer(root, tmp_path, lies=True)
    run_program(layer, root / "kept.db")
    assert lost_at_random_moments(layer, tmp_path) > 0


def test_the_log_makes_the_files_again(root, tmp_path):
    layer = FaultLayer(root, tmp_path)
    run_program(layer, root / "kept.db")
    records = layer.records()
    disk = Disk(root, records)
    disk.advance(len(records))
    disk.sync_all()
    disk.write_image(tmp_path / "image")
    for name in ("kept.db", "kept.db-wal"):
        assert (tmp_path / "image" / name).read_bytes() == (root / name).read_bytes()
    assert any(record.kind is Kind.SYNCED for record in records)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("full", "database or disk is full"),
        ("read-only", "attempt to write a readonly database"),
        ("write-error", "disk I/O error"),
        ("sync-error", "disk I/O error"),
    ],
)
def test_a_fault_is_an_error_to_the_program_and_leaves_nothing(root, tmp_path, kind, message):
    layer = FaultLayer(root, tmp_path)

    def execute(statement: str) -> str:
        program = (
            "import sqlite3, sys\n"
            "try: sqlite3.connect(sys.argv[1], isolation_level=None).execute(sys.argv[2])\n"
            "except sqlite3.Error as error: print(error, end='')\n"
        )
        command = [sys.executable, "-c", program, root / "kept.db", statement]
        ran = subprocess.run(
            command, env=layer.environment, stdout=subprocess.PIPE, check=True, text=True
        )
        return ran.stdout

    insert = "INSERT INTO kept VALUES (1, randomblob(100000))"
    assert execute("CREATE TABLE kept (number INTEGER PRIMARY KEY, padding BLOB)") == ""
    with layer.fault(kind):
        assert execute(insert) == message
    assert numbers_in(root / "kept.db") == set()
    assert execute(insert) == ""
