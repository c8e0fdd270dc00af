"""Two servers on one PostgreSQL: what one has made is there on the other."""

import json
from pathlib import Path

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from conftest import API_KEY, Pair, StartPair
from connections import Request, create, on_socket, post, post_streamed
from toolbox import TOOLS, call_output

SCRIPT = """
[[reply]]
user_contains = "hang"
steps = [{ text = "{name}" }, { hang = true }]

[[reply]]
has_tools = true
after_tool = false
steps = [{ call = "*" }]

[[reply]]
steps = [{ text = "{name}, turn {turn}, {items} items, “{user}”" }]
"""


@pytest.fixture(scope="module")
def pair(start_pair: StartPair) -> Pair:
    return start_pair(SCRIPT)


WAYS = {"socket": on_socket, "json": post, "stream": post_streamed}


def request(text: str, **more) -> Request:
    return {"model": "scripted", "input": text, **more}


@pytest.mark.parametrize("there", WAYS)
@pytest.mark.parametrize("here", WAYS)
def test_a_chain_goes_on_wherever_it_is_named(pair: Pair, here: str, there: str):
    one, two = (server.client() for server in pair)
    parent = None
    for number in range(1, 7, 2):
        asked = WAYS[here](one, request(f"ask {number}", previous_response_id=parent))
        assert asked.text == f"one, turn {number}, {2 * number - 1} items, “ask {number}”"
        again = request(f"and {number + 1}", previous_response_id=asked.id)
        answered = WAYS[there](two, again)
        assert answered.text == (
            f"two, turn {number + 1}, {2 * number + 1} items, “and {number + 1}”"
        )
        parent = answered.id


def test_a_call_is_answered_on_the_other_server(pair: Pair):
    one, two = (server.client() for server in pair)
    asked = on_socket(one, request("Look it up.", tools=TOOLS))
    output = [call_output(asked.call["call_id"], "42")]
    answered = post(two, request(output, tools=TOOLS, previous_response_id=asked.id))
    assert answered.text == "two, turn 2, 3 items, “Look it up.”"
    with pytest.raises(BadRequestError) as refused:
        post(two, request("Never mind.", previous_response_id=asked.id))
    assert asked.call["call_id"] in refused.value.message


def test_both_servers_show_the_same_response_and_its_input(pair: Pair):
    one, two = (server.client() for server in pair)
    parent = post(one, request("first"))
    child = post(two, request("second", previous_response_id=parent.id))
    for client in (one, two):
        assert client.responses.retrieve(parent.id).to_dict() == parent.response
        assert client.responses.retrieve(child.id).to_dict() == child.response
        items = client.responses.input_items.list(child.id, order="asc").data
        said = [part.text for item in items for part in item.content]
        assert said == ["first", parent.text, "second"]


def test_both_servers_may_fork_the_same_response(pair: Pair):
    one, two = (server.client() for server in pair)
    root = post(one, request("root"))
    left = post(one, request("left", previous_response_id=root.id))
    right = post(two, request("right", previous_response_id=root.id))
    assert left.text == "one, turn 2, 3 items, “left”"
    assert right.text == "two, turn 2, 3 items, “right”"
    # Each branch goes on at the other's server.
    for client, branch in ((two, left), (one, right)):
        assert "turn 3, 5 items" in post(client, request("on", previous_response_id=branch.id)).text


def test_what_is_deleted_on_one_server_is_gone_on_the_other(pair: Pair):
    one, two = (server.client() for server in pair)
    with one.responses.connect() as connection:
        parent = create(connection, request("first"))
        child = create(connection, request("second", previous_response_id=parent.id))
    assert two.responses.retrieve(parent.id).id == parent.id
    two.responses.delete(parent.id)
    for client in (one, two):
        with pytest.raises(NotFoundError):
            client.responses.retrieve(parent.id)
        with pytest.raises(NotFoundError):
            client.responses.delete(parent.id)
        turn = on_socket(client, request("on", previous_response_id=parent.id))
        assert turn.error is not None and turn.error["code"] == "previous_response_not_found"
        # What continues it keeps it.
        kept = post(client, request("on", previous_response_id=child.id))
        assert "turn 3, 5 items" in kept.text


def test_a_conversation_is_the_same_on_both_servers(pair: Pair):
    one, two = (server.client() for server in pair)

    def said(client: OpenAI, conversation: str) -> list[str]:
        items = client.conversations.items.list(conversation, order="asc").data
        return [part.text for item in items for part in item.content]

    message = {"type": "message", "role": "user"}
    conversation = one.conversations.create(items=[{**message, "content": "first"}]).id
    two.conversations.items.create(conversation, items=[{**message, "content": "second"}])
    two.conversations.update(conversation, metadata={"topic": "stars"})
    for client in (one, two):
        assert said(client, conversation) == ["first", "second"]
        assert client.conversations.retrieve(conversation).metadata == {"topic": "stars"}
    two.conversations.delete(conversation)
    for client in (one, two):
        with pytest.raises(NotFoundError):
            client.conversations.retrieve(conversation)


def test_what_one_server_has_sealed_the_other_opens(pair: Pair):
    one, two = (server.client() for server in pair)
    long_ago = [{"role": "user", "content": "Long ago."}]
    compacted = one.responses.compact(model="scripted", input=long_ago)
    window = [item.to_dict() for item in compacted.output]
    assert window[-1]["type"] == "compaction"
    asked = post(two, request([*window, {"role": "user", "content": "And now?"}]))
    assert asked.text.endswith("“And now?”")


def test_what_is_not_stored_stays_on_its_connection(pair: Pair):
    one, two = (server.client() for server in pair)
    with one.responses.connect() as connection:
        parent = create(connection, request("first", store=False))
        elsewhere = on_socket(two, request("second", previous_response_id=parent.id))
        assert elsewhere.error is not None
        assert elsewhere.error["code"] == "previous_response_not_found"
        with pytest.raises(NotFoundError):
            two.responses.retrieve(parent.id)
        assert create(connection, request("second", previous_response_id=parent.id)).error is None


def test_owners_are_the_same_on_both_servers(start_pair: StartPair, tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text(f"{API_KEY}\nsk-stranger\n")
    one, two = start_pair(SCRIPT, "--api-key-file", str(keys))
    mine = post(one.client(), request("mine"))
    assert two.client().responses.retrieve(mine.id).id == mine.id
    stranger = two.client(api_key="sk-stranger")
    with pytest.raises(NotFoundError):
        stranger.responses.retrieve(mine.id)
    with pytest.raises(NotFoundError):
        stranger.responses.delete(mine.id)
    turn = on_socket(stranger, request("yours", previous_response_id=mine.id))
    assert turn.error is not None and turn.error["code"] == "previous_response_not_found"


def test_a_server_that_is_killed_leaves_what_it_has_acknowledged_and_nothing_else(
    start_pair: StartPair,
):
    one, two = start_pair(SCRIPT)
    client = two.client()
    with one.client().responses.connect() as connection:
        parent = create(connection, request("first"))
        again = request("hang", previous_response_id=parent.id)
        connection.send({"type": "response.create", **again})
        unfinished = json.loads(connection.recv_bytes())["response"]["id"]
        one.process.process.kill()
        one.process.process.wait()
    assert client.responses.retrieve(parent.id).to_dict() == parent.response
    with pytest.raises(NotFoundError):
        client.responses.retrieve(unfinished)
    with client.responses.connect() as connection:
        turn = create(connection, request("on", previous_response_id=unfinished))
        assert turn.error is not None and turn.error["code"] == "previous_response_not_found"
        turn = create(connection, request("on", previous_response_id=parent.id))
        assert turn.text == "two, turn 2, 3 items, “on”"
