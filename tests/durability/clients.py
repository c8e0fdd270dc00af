"""Clients that keep a server busy until it is gone, and write down what they were told."""

import asyncio
import json
import random
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from http1 import Answer, Gone, Http, sse_events
from ledger import ENDED_WELL, Conversation, Ledger, Response, Writer, response_text

ORDERS = ["@call", "@reason", "@cut", "@long", "@slow"]
TOOL = {
    "type": "function",
    "name": "tell",
    "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
}
ENDS = ("response.completed", "response.incomplete")
TERMINAL = (*ENDS, "response.failed", "error")


def is_of_store(error: dict[str, Any]) -> bool:
    """The codes of responses that fail are few, and none of them is about storage."""
    return error["code"] == "storage_unavailable" or (
        error["code"] == "server_error" and "cannot reach its storage" in error["message"]
    )


async def load(
    port: int, ledger: Ledger, choose: random.Random, *, sockets: int, http: int
) -> None:
    """Goes on until the server is gone. One agent more keeps conversations."""
    seeds = [choose.getrandbits(64) for _ in range(sockets + http)]
    agents = [SocketAgent(port, ledger, random.Random(seed)) for seed in seeds[:sockets]]
    agents += [HttpAgent(port, ledger, random.Random(seed)) for seed in seeds[sockets:]]
    agents.append(ConversationAgent(port, ledger, choose))
    await asyncio.gather(*(agent.run() for agent in agents))


class Agent:
    def __init__(self, port: int, ledger: Ledger, choose: random.Random):
        self._port = port
        self._ledger = ledger
        self._choose = choose
        self._writer = Writer(choose)
        self._latest: Response | None = None

    def _next(self) -> Response:
        """Mostly goes on with what it had; sometimes begins anew, or forks what anyone has."""
        way = self._choose.random()
        latest = self._latest
        if way < 0.15 or latest is None or latest.turn > 30 or not latest.is_continuable:
            parent = None
        elif way < 0.4:
            parent = self._ledger.some_continuable(self._choose)
        else:
            parent = latest
        order = self._choose.choice(ORDERS) if self._choose.random() < 0.4 else "say"
        return Response(parent, self._writer.input(parent, order))

    def _request(self, response: Response) -> dict[str, Any]:
        return {
            "model": "scripted",
            "previous_response_id": response.parent and response.parent.id,
            "input": response.input,
            "tools": [TOOL],
            "store": response.stored,
        }

    def _failed(self, what: str, failure: dict[str, Any], parent: Response | None = None) -> None:
        """`failure` is an error over HTTP, an event, or a response that failed."""
        error = failure.get("response", failure)["error"]
        # Another agent may have deleted the parent meanwhile.
        was_deleted = parent is not None and parent.deletion_was_asked
        if was_deleted and error["code"] == "previous_response_not_found":
            return
        if self._ledger.store_may_fail and is_of_store(error):
            self._ledger.excuses += 1
        else:
            self._ledger.problems.append(f"{what}: {failure}")

    def _succeeded(self, what: str, answer: Answer, parent: Response | None = None) -> bool:
        if answer.status != 200:
            self._failed(what, answer.json(), parent)
        return answer.status == 200


class SocketAgent(Agent):
    """Turns over one socket, some of them not stored."""

    async def run(self) -> None:
        address = f"ws://127.0.0.1:{self._port}/v1/responses"
        try:
            async with connect(address, compression=None, max_size=None, ping_interval=None) as ws:
                while True:
                    await self._turn(ws)
        except (OSError, EOFError, WebSocketException):
            pass

    async def _turn(self, ws: Any) -> None:
        response = self._next()
        response.stored = self._choose.random() < 0.9
        self._ledger.begin(response)
        await ws.send(json.dumps({"type": "response.create", **self._request(response)}))
        while True:
            event = await ws.recv(decode=False)
            parsed = json.loads(event)
            if parsed["type"] == "response.created":
                response.id = parsed["response"]["id"]
            if parsed["type"] in TERMINAL:
                break
        if parsed["type"] in ENDS:
            self._ledger.end(response, response_text(event))
            self._latest = response
        else:
            self._failed("a turn over a socket", parsed, response.parent)
            # A failure takes the parent with it, if only this connection has it.
            self._latest = None


class HttpAgent(Agent):
    """All the rest: turns in the foreground and the background, and what is done with them."""

    async def run(self) -> None:
        ways = [self._json, self._stream, self._background, self._delete, self._read]
        async with Http(self._port) as http:
            try:
                while True:
                    [way] = self._choose.choices(ways, weights=[4, 2, 2, 1, 2])
                    await way(http)
            except Gone:
                pass

    async def _json(self, http: Http) -> None:
        response = self._ledger.begin(self._next())
        answer = await http.post("/v1/responses", self._request(response))
        if self._succeeded("a turn over HTTP", answer, response.parent):
            self._end(response, answer.body)

    async def _stream(self, http: Http) -> None:
        response = self._ledger.begin(self._next())
        answer = await http.post("/v1/responses", {**self._request(response), "stream": True})
        if not self._succeeded("a stream", answer, response.parent):
            return
        last = sse_events(answer.body)[-1]
        parsed = json.loads(last)
        if parsed["type"] in ENDS:
            self._end(response, response_text(last))
        else:
            self._failed("a stream", parsed, response.parent)

    async def _background(self, http: Http) -> None:
        response = self._ledger.begin(self._next())
        request = {**self._request(response), "background": True}
        answer = await http.post("/v1/responses", request)
        if not self._succeeded("a response in the background", answer, response.parent):
            return
        response.id = answer.json()["id"]
        response.promise = answer.body
        while answer.json()["status"] in ("queued", "in_progress"):
            answer = await http.get(f"/v1/responses/{response.id}")
            if not self._succeeded("to look at a response in the background", answer):
                return
        self._end(response, answer.body)

    async def _delete(self, http: Http) -> None:
        response = self._ledger.some_continuable(self._choose)
        if response is None:
            return
        response.deletion_was_asked = True
        answer = await http.delete(f"/v1/responses/{response.id}")
        if self._succeeded("a deletion", answer):
            response.deletion = answer.body

    async def _read(self, http: Http) -> None:
        response = self._ledger.some_continuable(self._choose)
        if response is None:
            return
        answer = await http.get(f"/v1/responses/{response.id}")
        if response.deletion_was_asked or not self._succeeded("to read a response", answer):
            return
        if answer.body != response.text:
            self._ledger.problems.append(f"{response.id} is not what it was: {answer}")

    def _end(self, response: Response, text: bytes) -> None:
        self._ledger.end(response, text)
        ended = json.loads(text)
        if ended["status"] in ENDED_WELL:
            self._latest = response
        else:
            self._failed("a turn over HTTP", ended)


class ConversationAgent(Agent):
    """Makes conversations, adds to them, and has turns in them."""

    async def run(self) -> None:
        async with Http(self._port) as http:
            try:
                while True:
                    if conversation := await self._conversation(http):
                        way = self._choose.choice([self._add, self._turn])
                        await way(http, conversation)
            except Gone:
                pass

    async def _conversation(self, http: Http) -> Conversation | None:
        if self._ledger.conversations and self._choose.random() < 0.7:
            known = self._choose.choice(self._ledger.conversations)
            return None if known.doubtful else known
        answer = await http.post("/v1/conversations", {})
        if not self._succeeded("a conversation", answer):
            return None
        conversation = Conversation(answer.json()["id"])
        self._ledger.conversations.append(conversation)
        return conversation

    async def _add(self, http: Http, conversation: Conversation) -> None:
        conversation.doubtful = self._writer.input(None, "say")
        path = f"/v1/conversations/{conversation.id}/items"
        answer = await http.post(path, {"items": conversation.doubtful})
        if self._succeeded("to add to a conversation", answer):
            conversation.settle(conversation.items + conversation.doubtful)

    async def _turn(self, http: Http, conversation: Conversation) -> None:
        response = Response(None, self._writer.input(None, "say"), before=conversation.items)
        self._ledger.begin(response)
        conversation.doubtful = response.input
        conversation.is_awaited = True
        request = {"model": "scripted", "conversation": conversation.id, "input": response.input}
        answer = await http.post("/v1/responses", request)
        if self._succeeded("a turn of a conversation", answer):
            self._ledger.end(response, answer.body)
            conversation.settle(response.given() + response.output)
