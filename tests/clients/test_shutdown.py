"""SIGTERM: sockets are closed in a way that clients understand, and the server is gone in time."""

import time

import pytest
from websockets.exceptions import ConnectionClosed

from connections import create

HANGING = """
[[reply]]
user_contains = "hang"
steps = [{ text = "Wait…" }, { hang = true }]
"""


def close_code(connection) -> int | None:
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            connection.recv()
    return closed.value.rcvd.code if closed.value.rcvd else None


def test_sockets_close_with_1001_within_five_seconds(start_script):
    server = start_script(HANGING)
    request = {"model": server.model, "store": False}
    responses = server.client().responses
    with responses.connect() as idle, responses.connect() as busy:
        create(idle, {**request, "input": "hi"})
        busy.send({"type": "response.create", **request, "input": "hang"})
        while busy.recv().type != "response.output_text.delta":
            pass

        started = time.monotonic()
        server.process.process.terminate()
        assert close_code(idle) == 1001
        assert close_code(busy) == 1001
        assert server.process.process.wait(timeout=5) == 0
        assert time.monotonic() - started < 5
