"""The official SDK's connections, one turn at a time."""

import json
from typing import Any

from openai import OpenAI
from openai.resources.responses.responses import AsyncResponsesConnection, ResponsesConnection

from judges import judge_http_event, judge_response
from turns import Turn, is_terminal

Request = dict[str, Any]


def create(connection: ResponsesConnection, request: Request) -> Turn:
    connection.send({"type": "response.create", **request})
    return receive(connection)


def on_socket(client: OpenAI, request: Request) -> Turn:
    """On a socket of its own."""
    with client.responses.connect() as connection:
        return create(connection, request)


def send_text(connection: ResponsesConnection, text: str) -> Turn:
    """Sends what the SDK would not."""
    connection.send_raw(text)
    return receive(connection)


def receive(connection: ResponsesConnection) -> Turn:
    events = []
    while not events or not is_terminal(events[-1]):
        events.append(json.loads(connection.recv_bytes()))
        connection.parse_event(json.dumps(events[-1]))
    return Turn(events)


async def create_async(connection: AsyncResponsesConnection, request: Request) -> Turn:
    await connection.send({"type": "response.create", **request})
    return await receive_async(connection)


async def receive_async(connection: AsyncResponsesConnection) -> Turn:
    events = []
    while not events or not is_terminal(events[-1]):
        events.append(json.loads(await connection.recv_bytes()))
    return Turn(events)


def post(client: OpenAI, request: Request) -> Turn:
    """Over HTTP, answered with one JSON object."""
    response = client.responses.create(**request).to_dict()
    judge_response(response)
    return Turn.of_response(response)


def post_streamed(client: OpenAI, request: Request) -> Turn:
    """Over HTTP, answered with server-sent events."""
    events = []
    with client.responses.create(**request, stream=True) as stream:
        for event in stream:
            events.append(event.to_dict())
            judge_http_event(events[-1])
    return Turn(events)
