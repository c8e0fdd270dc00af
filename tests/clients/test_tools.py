"""Tools other than plain functions, items that bring them, and items that are only named."""

from collections.abc import Callable

from openai.types.responses import ResponseCustomToolCall, ResponseFunctionToolCall
from pydantic import TypeAdapter

from conftest import Server
from connections import Request, create, post, post_streamed
from turns import Turn

# Whatever may be called is called, and its output is answered.
SCRIPT = """
[[reply]]
after_tool = true
steps = [{ text = "{items} items" }]

[[reply]]
has_tools = true
steps = [{ call = "*" }]

[[reply]]
steps = [{ text = "{items} items" }]
"""

SHELL = {
    "type": "custom",
    "name": "shell",
    "description": "Runs a command.",
    "format": {"type": "grammar", "syntax": "regex", "definition": "[a-z ]+"},
}
CRM = {
    "type": "namespace",
    "name": "crm",
    "description": "All about customers.",
    "tools": [
        {
            "type": "function",
            "name": "find",
            "parameters": {
                "type": "object",
                "properties": {"id": {"type": "integer"}},
                "required": ["id"],
                "additionalProperties": False,
            },
            "strict": True,
        },
        {"type": "custom", "name": "query"},
    ],
}

StartScript = Callable[..., Server]


def question(server: Server, **more) -> Request:
    return {"model": server.model, "input": "Go.", "store": False, **more}


def custom_call(turn: Turn) -> ResponseCustomToolCall:
    [item] = turn.output
    assert item["status"] == "completed"
    return TypeAdapter(ResponseCustomToolCall).validate_python(item, strict=True)


def custom_output(call_id: str) -> Request:
    return {"type": "custom_tool_call_output", "call_id": call_id, "output": "done"}


def test_a_custom_tool_is_called_with_text_on_every_transport(start_script: StartScript):
    server = start_script(SCRIPT)
    request = question(
        server, tools=[SHELL], tool_choice={"type": "custom", "name": "shell"}, store=True
    )
    client = server.client()
    with client.responses.connect() as connection:
        turns = [create(connection, request), post(client, request), post_streamed(client, request)]
        for turn in turns:
            call = custom_call(turn)
            assert (call.name, call.input, call.namespace) == ("shell", "some input", None)
            assert call.id.startswith("ctc_") and call.call_id.startswith("call_")
            more = question(
                server, previous_response_id=turn.id, input=[custom_output(call.call_id)]
            )
            assert create(connection, more).text == "3 items"


def test_the_calls_of_a_namespace_say_where_they_are_from(start_script: StartScript):
    server = start_script(SCRIPT)
    client = server.client()
    with client.responses.connect() as connection:
        choice = {"type": "function", "name": "find"}
        turn = create(connection, question(server, tools=[CRM], tool_choice=choice))
        [item] = turn.output
        call = TypeAdapter(ResponseFunctionToolCall).validate_python(item, strict=True)
        assert (call.namespace, call.name) == ("crm", "find")
        output = {
            "type": "function_call_output",
            "call_id": call.call_id,
            "namespace": "crm",
            "name": "find",
            "output": "nobody",
        }
        choice = {"type": "custom", "name": "query"}
        more = question(
            server,
            previous_response_id=turn.id,
            input=[output],
            tools=[CRM],
            tool_choice=choice,
        )
        assert create(connection, more).text == "3 items"
        turn = create(connection, question(server, tools=[CRM], tool_choice=choice))
        call = custom_call(turn)
        assert (call.namespace, call.name) == ("crm", "query")


def test_additional_tools_stay_with_their_chain(start_script: StartScript):
    server = start_script(SCRIPT)
    client = server.client()
    items = [
        {"type": "additional_tools", "role": "developer", "tools": [SHELL]},
        {"role": "user", "content": "Go."},
    ]
    with client.responses.connect() as connection:
        turn = create(connection, question(server, input=items, store=True))
        call = custom_call(turn)
        more = question(
            server, previous_response_id=turn.id, input=[custom_output(call.call_id)], store=True
        )
        answered = create(connection, more)
        assert answered.response["tools"] == []
        assert answered.text == "4 items"
    # From another connection, and over HTTP.
    with client.responses.connect() as connection:
        again = question(server, previous_response_id=answered.id)
        assert custom_call(create(connection, again)).name == "shell"
        assert custom_call(post(client, again)).name == "shell"
        assert create(connection, question(server)).text == "1 items"


def test_an_item_may_be_named_instead_of_sent(start_script: StartScript):
    server = start_script(SCRIPT)
    client = server.client()
    with client.responses.connect() as connection:
        stored = create(connection, question(server, store=True))
        [item] = stored.output
        reference = {"type": "item_reference", "id": item["id"]}
        # The parent has it already.
        more = question(server, previous_response_id=stored.id, input=[reference])
        assert create(connection, more).text == "2 items"
    user = {"role": "user", "content": "Go."}
    with client.responses.connect() as connection:
        named = question(server, input=[reference, user, reference])
        assert create(connection, named).text == "3 items"
        assert post(client, named).text == "3 items"
        wrong = {"type": "item_reference", "id": "msg_nowhere"}
        failed = create(connection, question(server, input=[user, wrong]))
        assert failed.error == {
            "type": "invalid_request_error",
            "code": "item_not_found",
            "message": "Item with id 'msg_nowhere' not found.",
            "param": "input[1].id",
        }


def test_what_is_wrong_with_a_tool_is_named(start_script: StartScript):
    server = start_script(SCRIPT)
    with server.client().responses.connect() as connection:
        for tools, param in [
            ([SHELL, SHELL], "tools[1].name"),
            (
                [{**SHELL, "format": {"type": "grammar", "syntax": "lark"}}],
                "tools[0].format.definition",
            ),
            ([{**CRM, "tools": [{"type": "custom"}]}], "tools[0].tools[0].name"),
        ]:
            turn = create(connection, question(server, tools=tools))
            assert turn.error and turn.error["param"] == param
