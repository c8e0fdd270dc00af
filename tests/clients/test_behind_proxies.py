"""The recipes of docs/deploying.md, with the real programs, over TLS."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from openai import APIStatusError
from websockets.exceptions import ConnectionClosed

from certificates import Certificate
from conftest import Server, Start, StartPair
from connections import Request, create, post
from proxies import Proxy
from turns import Turn, is_terminal

MIB = 1 << 20

SCRIPT = """
[[reply]]
user_contains = "hang"
steps = [{ text = "{name}" }, { hang = true }]

[[reply]]
steps = [{ text = "{name}, turn {turn}, {items} items" }]
"""

PROGRAMS = ["nginx", "haproxy"]

StartProxy = Callable[[Sequence[Server]], Proxy]


def request(**more) -> Request:
    return {"model": "scripted", "store": False, "input": "hi", **more}


@pytest.fixture
def start_named(start: Start, tmp_path: Path) -> Callable[[str], Server]:
    """Starts servers that say in all their answers who they are."""

    def start_named(name: str) -> Server:
        path = tmp_path / f"{name}.toml"
        path.write_text(SCRIPT.replace("{name}", name))
        return start(f"scripted:{path}")

    return start_named


@pytest.fixture(params=PROGRAMS)
def start_proxy(
    request: pytest.FixtureRequest,
    certificate: Certificate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[StartProxy]:
    # This is how users tell the SDK what to trust.
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.chain))
    running: list[Proxy] = []

    def start_proxy(servers: Sequence[Server]) -> Proxy:
        addresses = [server.process.address for server in servers]
        running.append(Proxy(request.param, addresses, certificate, tmp_path))
        return running[-1]

    yield start_proxy
    for proxy in running:
        proxy.stop()


@pytest.fixture
def proxy(start_proxy: StartProxy, start_named: Callable[[str], Server]) -> Proxy:
    """In front of one server."""
    return start_proxy([start_named("one")])


def test_a_socket_goes_through_for_twenty_turns(proxy: Proxy):
    with proxy.client().responses.connect() as connection:
        parent = None
        for number in range(1, 21):
            turn = create(connection, request(previous_response_id=parent))
            assert turn.text == f"one, turn {number}, {2 * number - 1} items"
            parent = turn.id


def test_events_of_a_stream_come_before_the_response_is_done(proxy: Proxy):
    # It would never end, so what a proxy held back would never come.
    with proxy.client().responses.create(**request(input="hang"), stream=True) as stream:
        kinds = []
        for event in stream:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                assert event.delta == "one"
                break
    assert kinds[:2] == ["response.created", "response.in_progress"]


def test_a_body_of_60_mib_goes_through_and_a_larger_one_is_refused_by_the_server(proxy: Proxy):
    ten = {"role": "user", "content": "x" * (10 * MIB)}
    turn = post(proxy.client(), request(input=[ten] * 6))
    assert turn.input_tokens >= 60 * MIB / 4
    with pytest.raises(APIStatusError) as refused:
        post(proxy.client(), request(input=[ten] * 7))
    assert refused.value.status_code == 413
    assert refused.value.response.headers["content-type"] == "application/json"


def test_whoever_loses_a_server_comes_back_on_the_other(
    start_proxy: StartProxy, start_named: Callable[[str], Server]
):
    servers = {name: start_named(name) for name in ("one", "two")}
    client = start_proxy(list(servers.values())).client()
    with client.responses.connect() as busy:
        busy.send({"type": "response.create", **request(input="hang")})
        events = [json.loads(busy.recv_bytes())]
        while "delta" not in events[-1]:
            events.append(json.loads(busy.recv_bytes()))
        drained = servers.pop(events[-1]["delta"])
        [other] = servers

        drained.process.process.terminate()
        while not is_terminal(events[-1]):
            events.append(json.loads(busy.recv_bytes()))
        failed = Turn(events)
        assert failed.status == "failed"
        assert "shutting down" in failed.response["error"]["message"]
        with pytest.raises(ConnectionClosed) as closed:
            busy.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001

    with client.responses.connect() as again:
        assert create(again, request()).text.startswith(other)
    # The SDK does not try again by itself here: no request may meet the server that is gone.
    for _ in range(10):
        assert post(client, request()).text.startswith(other)
    assert drained.process.process.wait(timeout=5) == 0


def test_a_stored_chain_goes_on_at_whichever_server_a_request_comes_to(
    start_proxy: StartProxy, start_pair: StartPair
):
    servers = start_pair(SCRIPT)
    proxy = start_proxy(servers)
    parent, seen = None, set()
    for number in range(1, 21):
        # To the servers, who want no keys, all keys are the same. To the proxy they are not.
        client = proxy.client(api_key=f"key {number}")
        turn = post(client, request(store=True, previous_response_id=parent))
        name, rest = turn.text.split(", ", 1)
        assert rest == f"turn {number}, {2 * number - 1} items"
        parent = turn.id
        seen.add(name)
    assert seen == {"one", "two"}

    servers[0].process.process.kill()
    with proxy.client().responses.connect() as connection:
        turn = create(connection, request(store=True, previous_response_id=parent))
        assert turn.text == "two, turn 21, 41 items"
