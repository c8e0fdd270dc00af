"""Agents that send everything with every request, each in the form that it keeps its history in."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from openai.types.responses import Response, ResponseOutputItem

from conftest import Server
from toolbox import TOOLS, call_output, run_tool

TURNS = 10


def as_it_came(item: ResponseOutputItem) -> Any:
    return item


def as_json(item: ResponseOutputItem) -> dict[str, Any]:
    return item.model_dump(exclude_none=True)


def in_few_words(item: ResponseOutputItem) -> dict[str, Any]:
    if item.type == "message":
        return {"role": "assistant", "content": "".join(part.text for part in item.content)}
    kept = ("type", "call_id", "name", "arguments")
    return {name: getattr(item, name) for name in reversed(kept)}


@pytest.mark.parametrize("write", [as_it_came, as_json, in_few_words])
@pytest.mark.parametrize("store", [True, False])
def test_what_was_said_before_is_not_computed_again(
    server: Server, store: bool, write: Callable[[ResponseOutputItem], Any]
):
    client = server.client()
    history: list[Any] = []
    responses: list[Response] = []
    for turn in range(TURNS):
        calls = turn % 2 == 0
        if calls:
            history.append({"role": "user", "content": f"Run errand {turn}."})
        response = client.responses.create(
            model=server.model,
            instructions="Call tools.",
            input=history,
            tools=TOOLS,
            tool_choice="required" if calls else "none",
            parallel_tool_calls=False,
            max_output_tokens=256 if calls else 16,
            temperature=0,
            store=store,
        )
        responses.append(response)
        assert response.previous_response_id is None
        history += [write(item) for item in response.output]
        if calls:
            [call] = response.output
            history.append(call_output(call.call_id, run_tool(call.name, call.arguments)))

    first, *others = [response.usage for response in responses]
    assert first.input_tokens_details.cached_tokens < first.input_tokens
    for before, after in pairwise([first, *others]):
        cached = after.input_tokens_details.cached_tokens
        assert before.input_tokens <= cached < after.input_tokens
