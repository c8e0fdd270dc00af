"""The backup of docs/deploying.md: a copy that is made under a running server."""

import sqlite3
from contextlib import closing
from pathlib import Path

from conftest import Start
from connections import create, post


def test_a_copy_of_a_running_servers_database_is_a_database(start: Start, tmp_path: Path):
    original, copy = tmp_path / "turnwire.db", tmp_path / "copy.db"
    server = start("scripted", "--store", f"sqlite:{original}")
    request = {"model": server.model, "input": "Say something."}
    with server.client().responses.connect() as connection:
        parent = create(connection, request)
        # What `.backup` of the sqlite3 program does.
        with closing(sqlite3.connect(original)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        later = create(connection, {**request, "previous_response_id": parent.id})
        assert later.error is None
    copy.chmod(0o600)
    restored = start("scripted", "--store", f"sqlite:{copy}").client()
    assert restored.responses.retrieve(parent.id).to_dict() == parent.response
    assert post(restored, {**request, "previous_response_id": parent.id}).output
