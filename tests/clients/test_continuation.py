"""What a response can be continued from, where, and for how long."""

import pytest
from openai import BadRequestError, NotFoundError

from conftest import Server
from connections import Request, create, post
from toolbox import TOOLS, call_output, run_tool
from turns import Turn


def question(server: Server, **more) -> Request:
    return {
        "model": server.model,
        "input": "Say something.",
        "max_output_tokens": 24,
        # The same answer every time.
        "temperature": 0,
        "store": False,
        **more,
    }


def demanding_a_call(server: Server, **more) -> Request:
    return question(
        server,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=256,
        **more,
    )


def assert_not_found(turn: Turn, missing: str) -> None:
    assert turn.error == {
        "type": "invalid_request_error",
        "code": "previous_response_not_found",
        "message": f"Previous response with id '{missing}' not found.",
        "param": "previous_response_id",
    }
    assert turn.events[-1]["status"] == 400


def test_an_unknown_response_is_not_found(server: Server):
    with server.client().responses.connect() as connection:
        turn = create(connection, question(server, previous_response_id="resp_nowhere"))
        assert_not_found(turn, "resp_nowhere")
        assert create(connection, question(server)).error is None


def test_an_unstored_response_lives_on_its_connection_only(server: Server):
    client = server.client()
    with client.responses.connect() as connection, client.responses.connect() as other:
        parent = create(connection, question(server)).id
        assert_not_found(create(other, question(server, previous_response_id=parent)), parent)
        with pytest.raises(NotFoundError):
            client.responses.retrieve(parent)
        with pytest.raises(BadRequestError) as refused:
            post(client, question(server, previous_response_id=parent))
        assert refused.value.code == "previous_response_not_found"
        # Nobody else's attempts have harmed it.
        child = create(connection, question(server, previous_response_id=parent))
        assert child.response["previous_response_id"] == parent
        # A connection keeps the latest response, not those before it.
        assert_not_found(create(connection, question(server, previous_response_id=parent)), parent)


def test_a_stored_response_is_found_from_everywhere(server: Server):
    client = server.client()
    with client.responses.connect() as connection:
        # Storing is the default.
        request = question(server)
        del request["store"]
        parent = create(connection, request)
    assert client.responses.retrieve(parent.id).to_dict() == parent.response
    with client.responses.connect() as other:
        child = create(other, question(server, previous_response_id=parent.id))
        assert child.error is None
    child = post(client, question(server, previous_response_id=parent.id))
    assert child.input_tokens > parent.input_tokens


def test_an_output_that_nobody_asked_for_is_refused_and_evicts_the_parent(server: Server):
    with server.client().responses.connect() as connection:
        parent = create(connection, question(server)).id
        orphan = [call_output("call_nobody", "42")]
        turn = create(connection, question(server, previous_response_id=parent, input=orphan))
        assert turn.error is not None and "call_nobody" in turn.error["message"]
        assert turn.events[-1]["status"] == 400 and turn.error["param"] == "input"
        assert_not_found(create(connection, question(server, previous_response_id=parent)), parent)


def test_a_call_without_its_output_is_refused(server: Server):
    with server.client().responses.connect() as connection:
        parent = create(connection, demanding_a_call(server))
        turn = create(connection, question(server, previous_response_id=parent.id))
        assert turn.error is not None and parent.call["call_id"] in turn.error["message"]
        assert turn.events[-1]["status"] == 400 and turn.error["param"] == "input"


def test_a_call_may_be_answered_together_with_a_message(server: Server):
    with server.client().responses.connect() as connection:
        parent = create(connection, demanding_a_call(server))
        output = run_tool(parent.call["name"], parent.call["arguments"])
        items = [
            {"role": "user", "content": "And thank you."},
            call_output(parent.call["call_id"], output),
        ]
        turn = create(connection, question(server, previous_response_id=parent.id, input=items))
        assert turn.error is None


def test_an_incomplete_response_can_be_continued(server: Server):
    long = {"input": "Tell a long story about the sea.", "max_output_tokens": 16}
    with server.client().responses.connect() as connection:
        parent = create(connection, question(server, **long))
        if server.model == "scripted":
            # Its answer is shorter than the least limit there is.
            assert parent.status == "completed"
        else:
            assert parent.status == "incomplete"
            assert parent.response["incomplete_details"] == {"reason": "max_output_tokens"}
        child = create(connection, question(server, previous_response_id=parent.id))
        assert child.input_tokens > parent.input_tokens + parent.output_tokens


def test_a_continuation_without_new_input_generates(server: Server):
    with server.client().responses.connect() as connection:
        parent = create(connection, question(server))
        child = create(connection, question(server, previous_response_id=parent.id, input=[]))
        assert child.error is None and child.output


@pytest.mark.parametrize(
    "warm_up", [{"generate": False}, {"prompt_cache_options": {"prewarm": True}}]
)
def test_a_warm_up_prepares_the_first_turn(server: Server, warm_up: Request):
    text = "Here is a long text to read in advance. " * 20
    with server.client().responses.connect() as connection:
        warm = create(connection, question(server, input=text, **warm_up))
        assert [event["type"] for event in warm.events] == [
            "response.created",
            "response.in_progress",
            "response.completed",
        ]
        assert warm.output == [] and warm.output_tokens == 0 and warm.input_tokens > 40

        first = create(connection, question(server, previous_response_id=warm.id, input=[]))
        assert first.output
        assert first.prefilled_tokens <= first.input_tokens - warm.input_tokens + 1

        # The warm-up can be named again although the connection has moved on.
        second = create(connection, question(server, previous_response_id=warm.id))
        assert second.output
        assert second.prefilled_tokens <= second.input_tokens - warm.input_tokens + 1


def test_instructions_and_tools_are_not_inherited(start_script):
    server = start_script(
        """
        [[reply]]
        has_tools = true
        steps = [{ text = "tools, and: {instructions}" }]
        [[reply]]
        steps = [{ text = "no tools, and: {instructions}" }]
        """
    )
    with server.client().responses.connect() as connection:
        parent = create(connection, question(server, instructions="be brief", tools=TOOLS))
        assert parent.text == "tools, and: be brief"
        child = create(connection, question(server, previous_response_id=parent.id))
        assert child.text == "no tools, and: "
        assert child.response["instructions"] is None and child.response["tools"] == []
