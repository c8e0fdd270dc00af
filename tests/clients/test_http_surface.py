"""Every endpoint beside the socket, through the official SDK; what it is answered is judged."""

from collections.abc import Iterator

import pytest
from openai import BadRequestError, ConflictError, NotFoundError, OpenAI
from openai.types.conversations import Conversation, ConversationItem, Message
from openai.types.responses import Response
from pydantic import TypeAdapter

from conftest import Server, Start
from connections import create
from judges import judge_http_event, judge_response

SCRIPT = """
[[reply]]
user_contains = "wait"
steps = [{ text = "well" }, { hang = true }]

[[reply]]
user_contains = "count"
steps = [{ text = "{items} items" }]

[[reply]]
steps = [{ text = "one two three four" }]
"""

ITEM = TypeAdapter(ConversationItem)


@pytest.fixture(scope="module")
def server(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Server:
    script = tmp_path_factory.mktemp("script") / "surface.toml"
    script.write_text(SCRIPT)
    return start(f"scripted:{script}")


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with server.client() as client:
        yield client


def judged(response: Response) -> Response:
    judge_response(response.to_dict(mode="json"))
    return response


def said(text: str) -> dict:
    return {"type": "message", "role": "user", "content": text}


def texts(items) -> list[str]:
    for item in items:
        ITEM.validate_python(item.to_dict(), strict=True)
    return [part.text for item in items for part in item.content]


def test_a_response_is_made_shown_and_deleted(client: OpenAI, server: Server):
    made = judged(client.responses.create(model=server.model, input="x"))
    assert judged(client.responses.retrieve(made.id)) == made
    page = client.responses.input_items.list(made.id, order="asc", limit=1)
    assert [item.content[0].text for item in page.data] == ["x"]
    assert not page.has_more
    client.responses.delete(made.id)
    for ask in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(NotFoundError):
            ask(made.id)


def test_a_response_in_the_background_is_polled(client: OpenAI, server: Server):
    begun = judged(client.responses.create(model=server.model, input="x", background=True))
    assert begun.status == "queued"
    for _ in client.responses.retrieve(begun.id, stream=True):
        pass
    made = judged(client.responses.retrieve(begun.id))
    assert (made.status, made.output_text) == ("completed", "one two three four")
    assert judged(client.responses.cancel(begun.id)) == made
    more = {"previous_response_id": begun.id, "input": "count"}
    assert client.responses.create(model=server.model, **more).output_text == "3 items"


def test_a_stream_that_was_left_is_taken_up_where_it_was(client: OpenAI, server: Server):
    stream = client.responses.create(model=server.model, input="x", background=True, stream=True)
    events = []
    for event in stream:
        events.append(event)
        if event.type == "response.in_progress":
            break
    stream.close()
    seen = events[-1].sequence_number
    response_id = events[0].response.id
    events.extend(client.responses.retrieve(response_id, stream=True, starting_after=seen))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in events:
        judge_http_event(event.to_dict(mode="json"))
    assert events[1].type == "response.queued"
    assert events[-1].response == client.responses.retrieve(response_id)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == "one two three four"


def test_a_response_in_the_background_is_cancelled(client: OpenAI, server: Server):
    begun = client.responses.create(model=server.model, input="wait", background=True)
    cancelled = judged(client.responses.cancel(begun.id))
    assert cancelled.status == "cancelled"
    assert client.responses.cancel(begun.id) == cancelled
    other = client.responses.create(model=server.model, input="wait", background=True)
    client.responses.delete(other.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(other.id)


def test_what_is_not_in_the_background_is_neither_cancelled_nor_streamed_again(
    client: OpenAI, server: Server
):
    made = client.responses.create(model=server.model, input="x")
    with pytest.raises(BadRequestError) as refused:
        client.responses.cancel(made.id)
    assert refused.value.code == "not_a_background_response"
    with pytest.raises(BadRequestError) as refused:
        client.responses.retrieve(made.id, stream=True)
    assert refused.value.param == "stream"


def test_tokens_are_counted_and_a_conversation_compacted(client: OpenAI, server: Server):
    made = client.responses.create(model=server.model, input="x")
    counted = client.responses.input_tokens.count(model=server.model, input="x")
    assert counted.object == "response.input_tokens"
    assert counted.input_tokens == made.usage.input_tokens
    more = {"input": "y", "previous_response_id": made.id}
    behind = client.responses.input_tokens.count(model=server.model, **more)
    assert behind.input_tokens > counted.input_tokens
    compacted = client.responses.compact(model=server.model, previous_response_id=made.id)
    assert compacted.object == "response.compaction"


def test_models_are_listed(client: OpenAI, server: Server):
    [model] = client.models.list()
    assert client.models.retrieve(server.model) == model
    with pytest.raises(NotFoundError) as refused:
        client.models.retrieve("no/such model")
    assert refused.value.code == "model_not_found"


def test_a_conversation_is_made_changed_and_deleted(client: OpenAI):
    made = client.conversations.create(metadata={"topic": "stars"}, items=[said("a")])
    Conversation.model_validate(made.to_dict(), strict=True)
    assert (made.object, made.metadata) == ("conversation", {"topic": "stars"})
    assert client.conversations.retrieve(made.id) == made
    changed = client.conversations.update(made.id, metadata={"topic": "moons"})
    assert changed.metadata == {"topic": "moons"}
    deleted = client.conversations.delete(made.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (made.id, "conversation.deleted", True)
    with pytest.raises(NotFoundError) as refused:
        client.conversations.retrieve(made.id)
    assert refused.value.code == "conversation_not_found"


def test_a_conversation_goes_on_over_http_and_over_a_socket(client: OpenAI, server: Server):
    conversation = client.conversations.create(items=[said("a"), said("b")])
    asked = {"model": server.model, "conversation": conversation.id, "input": "count"}
    made = judged(client.responses.create(**asked))
    assert made.output_text == "3 items"
    assert made.conversation.id == conversation.id
    assert made.previous_response_id is None
    with client.responses.connect() as connection:
        assert create(connection, asked).text == "5 items"
    listed = client.conversations.items.list(conversation.id, order="asc")
    expected = ["a", "b", "count", "3 items", "count", "5 items"]
    assert texts(listed) == expected

    waiting = client.responses.create(**{**asked, "input": "wait"}, background=True)
    for ask in (
        lambda: client.responses.create(**asked),
        lambda: client.conversations.items.create(conversation.id, items=[said("c")]),
    ):
        with pytest.raises(ConflictError) as refused:
            ask()
        assert refused.value.code == "conversation_locked"
    client.responses.cancel(waiting.id)
    assert texts(client.conversations.items.list(conversation.id, order="asc")) == expected


def test_items_of_a_conversation_are_added_paged_and_deleted(client: OpenAI):
    conversation = client.conversations.create()
    items = client.conversations.items
    for number in range(5):
        added = items.create(conversation.id, items=[said(f"{number}a"), said(f"{number}b")])
        assert texts(added.data) == [f"{number}a", f"{number}b"]
    every = [f"{number}{letter}" for number in range(5) for letter in "ab"]
    # The SDK asks for page after page.
    assert texts(items.list(conversation.id, order="asc", limit=3)) == every
    assert texts(items.list(conversation.id, limit=4)) == every[::-1]
    third = items.list(conversation.id, order="asc", limit=3).data[-1]
    assert isinstance(third, Message)
    assert items.retrieve(third.id, conversation_id=conversation.id) == third
    assert items.delete(third.id, conversation_id=conversation.id) == conversation
    with pytest.raises(NotFoundError):
        items.retrieve(third.id, conversation_id=conversation.id)
    left = [text for text in every if text != third.content[0].text]
    assert texts(items.list(conversation.id, order="asc")) == left
