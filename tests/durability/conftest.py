"""What holds for every test."""

from collections.abc import Iterator

import pytest

from server import Server


@pytest.fixture(autouse=True)
def no_server_outlives_its_test() -> Iterator[None]:
    yield
    Server.kill_all()
