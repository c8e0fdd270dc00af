"""Two independent judges of what a server sends: the types of the official SDK, without any
coercion, and the JSON Schemas of the Open Responses specification."""

import json
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator
from openai.types.beta import BetaResponsesServerEvent
from openai.types.responses import Response, ResponsesServerEvent, ResponseStreamEvent
from pydantic import TypeAdapter

SOCKET_EVENT = TypeAdapter(ResponsesServerEvent)
BETA_SOCKET_EVENT = TypeAdapter(BetaResponsesServerEvent)
HTTP_EVENT = TypeAdapter(ResponseStreamEvent)
RESPONSE = TypeAdapter(Response)

# Open Responses calls the first two `response.reasoning.delta` and `.done`, has no custom tools,
# does not steer, and compacts without an event.
ONLY_IN_THE_SDK = {
    "response.reasoning_text.delta",
    "response.reasoning_text.done",
    "response.custom_tool_call_input.delta",
    "response.custom_tool_call_input.done",
    "response.steer.accepted",
    "response.steer.pending",
    "response.steer.failed",
    "response.compaction.compacting",
    "response.inject.failed",
}
ONLY_IN_THE_BETA = {"response.inject.failed"}


def _specification() -> dict[str, Any]:
    [document] = (files("openresponses") / "openapi").iterdir()
    specification = json.loads(document.read_text())
    # It allows nothing but null for the schema in the echo of `text.format`, which can only be a
    # slip: the SDK wants the object that was sent.
    echo = specification["components"]["schemas"]["JsonSchemaResponseFormat"]
    echo["properties"]["schema"] = {"type": "object"}
    return specification


def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": SPECIFICATION["components"]}
    )


def _validators_by_event() -> dict[str, Draft202012Validator]:
    return {
        schema["properties"]["type"]["enum"][0]: _validator(name)
        for name, schema in SPECIFICATION["components"]["schemas"].items()
        if name.endswith("StreamingEvent") and name != "ErrorStreamingEvent"
    }


SPECIFICATION = _specification()
OPEN_RESPONSES_EVENTS = _validators_by_event()
OPEN_RESPONSES_RESPONSE = _validator("ResponseResource")
OPEN_RESPONSES_SOCKET_ERROR = _validator("WebSocketErrorEvent")


class Judged:
    """How many messages have been judged in this run, so that silence is noticed."""

    events = 0


def judge_socket_event(raw: str | bytes) -> dict[str, Any]:
    """One message of the socket. Raises if either judge objects."""
    event = json.loads(raw)
    types = BETA_SOCKET_EVENT if event["type"] in ONLY_IN_THE_BETA else SOCKET_EVENT
    types.validate_json(json.dumps(_without_wrong_echo(event)), strict=True)
    _judge_by_schema(event, OPEN_RESPONSES_SOCKET_ERROR)
    return event


def judge_http_event(event: dict[str, Any]) -> None:
    """One event of an SSE stream."""
    HTTP_EVENT.validate_python(event, strict=True)
    _judge_by_schema(event, _validator("ErrorStreamingEvent"))


def judge_response(response: dict[str, Any]) -> None:
    """A response object by itself, as plain HTTP answers it."""
    RESPONSE.validate_python(response, strict=True)
    OPEN_RESPONSES_RESPONSE.validate(_of_functions_only(response))


def _judge_by_schema(event: dict[str, Any], error: Draft202012Validator) -> None:
    Judged.events += 1
    kind = event["type"]
    if kind == "error":
        error.validate(event)
    elif kind not in ONLY_IN_THE_SDK and not _is_custom(event.get("item")):
        OPEN_RESPONSES_EVENTS[kind].validate(_with_functions_only(event))


def _without_wrong_echo(event: dict[str, Any]) -> dict[str, Any]:
    """A refused steer shows what was refused, which need not be of any type."""
    if event["type"] == "response.steer.failed" and event["error"]["code"] == "invalid_input":
        return {**event, "steer": {**event["steer"], "input": "anything"}}
    return event


def _is_custom(item: Any) -> bool:
    return isinstance(item, dict) and item["type"] in {"custom", "custom_tool_call"}


def _with_functions_only(event: dict[str, Any]) -> dict[str, Any]:
    if "response" not in event:
        return event
    return {**event, "response": _of_functions_only(event["response"])}


def _of_functions_only(response: dict[str, Any]) -> dict[str, Any]:
    """Open Responses knows no other tools, but a client may send them and gets them back."""
    choice = response["tool_choice"]
    return {
        **response,
        "tools": [tool for tool in response["tools"] if tool["type"] == "function"],
        "tool_choice": "auto" if _is_custom(choice) else choice,
        "output": [item for item in response["output"] if not _is_custom(item)],
    }
