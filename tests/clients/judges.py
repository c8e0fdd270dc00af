"""Two independent judges of what a server sends: the types of the official SDK, without any
coercion, and the JSON Schemas of the Open Responses specification."""

import json
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator
from openai.types.responses import Response, ResponsesServerEvent, ResponseStreamEvent
from pydantic import TypeAdapter

SOCKET_EVENT = TypeAdapter(ResponsesServerEvent)
HTTP_EVENT = TypeAdapter(ResponseStreamEvent)
RESPONSE = TypeAdapter(Response)

# The SDK's names for reasoning events; Open Responses has `response.reasoning.delta` instead.
ONLY_IN_THE_SDK = {"response.reasoning_text.delta", "response.reasoning_text.done"}


def _specification() -> dict[str, Any]:
    [document] = (files("openresponses") / "openapi").iterdir()
    return json.loads(document.read_text())


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
    SOCKET_EVENT.validate_json(raw, strict=True)
    event = json.loads(raw)
    _judge_by_schema(event, OPEN_RESPONSES_SOCKET_ERROR)
    return event


def judge_http_event(event: dict[str, Any]) -> None:
    """One event of an SSE stream."""
    HTTP_EVENT.validate_python(event, strict=True)
    _judge_by_schema(event, _validator("ErrorStreamingEvent"))


def judge_response(response: dict[str, Any]) -> None:
    """A response object by itself, as plain HTTP answers it."""
    RESPONSE.validate_python(response, strict=True)
    OPEN_RESPONSES_RESPONSE.validate(response)


def _judge_by_schema(event: dict[str, Any], error: Draft202012Validator) -> None:
    Judged.events += 1
    kind = event["type"]
    if kind == "error":
        error.validate(event)
    elif kind not in ONLY_IN_THE_SDK:
        OPEN_RESPONSES_EVENTS[kind].validate(_with_function_tools_only(event))


def _with_function_tools_only(event: dict[str, Any]) -> dict[str, Any]:
    """Open Responses knows no other tools, but a client may send them and gets them back."""
    if "response" not in event:
        return event
    tools = [tool for tool in event["response"]["tools"] if tool["type"] == "function"]
    return {**event, "response": {**event["response"], "tools": tools}}
