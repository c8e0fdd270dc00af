"""An agent that talks long and about everything, and says the marker wherever it can.

What it says is answered, refused, cancelled or cut off; what came of it is counted, so that a test
can tell that it was heard.
"""

import gzip
import json
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import zstandard
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from confined import Engine
from marker import Marker

Members = dict[str, Any]
Event = dict[str, Any]

TERMINAL = {"response.completed", "response.incomplete", "response.failed", "error"}

# An event that is late by this has been lost.
PATIENCE_SECONDS = 60

# What hostile peers are answered comes at once, or not at all.
HOSTILE_PATIENCE_SECONDS = 2

# The members of a create. Each of them is also sent as what it must not be.
MEMBERS = [
    *("background", "context_management", "conversation", "frequency_penalty", "generate"),
    *("include", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata"),
    *("model", "multi_agent", "parallel_tool_calls", "presence_penalty", "previous_response_id"),
    *("prompt", "prompt_cache_key", "prompt_cache_options", "reasoning", "safety_identifier"),
    *("service_tier", "store", "stream", "temperature", "text", "tool_choice", "tools"),
    *("top_logprobs", "top_p", "truncation", "user", "unknown_member"),
]


# Members that name what a store may have, and which a server therefore asks its store for.
NAMING = {"previous_response_id", "conversation"}

# The place of a marker that is a name.
NAME = "name"

# Turns of the one long chain.
TURNS = 20


class Agent:
    """Talks to one model of one server. `store` is what all of its requests say. To a model that
    takes seconds for a turn it leaves out what no engine gets to see, and is brief."""

    def __init__(
        self, origin: str, model: str, marker: Marker, store: bool, is_slow: bool = False
    ) -> None:
        self.marker = marker
        self.heard: Counter[str] = Counter()
        """How often each type of event came, each code of an error, each status over HTTP."""
        self.echoes = 0
        """Events in which the marker came back."""
        self._origin, self._model, self._store = origin, model, store
        self._is_slow = is_slow
        self._stored: list[str] = []

    def run(self) -> None:
        """Everything but what ends the server."""
        self._calls_tools()
        self._compacts()
        self._steers_and_cancels()
        self._forks()
        self._is_refused()
        self._speaks_http()
        self._is_hostile()
        self._leaves_in_the_middle()

    # The conversations.

    def _calls_tools(self) -> None:
        """One long chain of calls and their outputs, with reasoning that is brought back."""
        include = {"include": ["reasoning.encrypted_content", "message.output_text.logprobs"]}
        with self._socket() as peer:
            request = {**self._everything(), **include}
            call = {"tool_choice": "required", "max_output_tokens": 200}
            call["input"] = self._say("question")
            turn = self._turn(peer, {**request, **call})
            for number in range(1 if self._is_slow else TURNS):
                outputs = [
                    self._output_of(item, f"output {number}") for item in turn.get("output", [])
                ]
                more = {"previous_response_id": turn.get("id"), **self._everything(), **include}
                more["input"] = [item for item in outputs if item] or self._say(f"turn {number}")
                turn = self._turn(peer, more)
                reasoning = [item for item in turn["output"] if item["type"] == "reasoning"]
                # Another lane: an unstored response can be continued until the next one of its own.
                again = {**self._create(), "stream_id": self._say("again")}
                self._turn(peer, {**again, "input": [*reasoning, self._user("again")]})

    def _output_of(self, item: Event, place: str) -> Members | None:
        kinds = {
            "function_call": "function_call_output",
            "custom_tool_call": "custom_tool_call_output",
        }
        kind = kinds.get(item["type"])
        text = self._say(place)
        return kind and {"type": kind, "call_id": item["call_id"], "output": text}

    def _compacts(self) -> None:
        threshold = [{"type": "compaction", "compact_threshold": 1000}]
        with self._socket() as peer:
            request = {**self._create(), "context_management": threshold}
            long = " and so on" * (0 if self._is_slow else 300)
            turn = self._turn(peer, {**request, "input": self._say("long") + long})
            trigger = {
                "previous_response_id": turn["id"],
                "input": [{"type": "compaction_trigger"}],
            }
            window = self._turn(peer, {**self._create(), **trigger})["output"]
            self._turn(peer, {**self._create(), "input": [*window, self._user("after compaction")]})

    def _steers_and_cancels(self) -> None:
        with self._socket() as peer:
            target = self._begin(peer, "endless steered")
            steer = {"type": "response.steer", "input": self._say("steer")}
            self._send(peer, {**steer, "previous_response_id": target})
            notice = self._wait(peer, "response.steer.accepted", "response.steer.failed")
            if notice["type"] == "response.steer.accepted":
                self._wait(peer, *TERMINAL)
                # The next response takes the steer in, and is cancelled or done already.
                self._wait(peer, "response.created")
                self._send(peer, {"type": "response.cancel"})
                self._wait(peer, *TERMINAL)
            self._send(peer, {**steer, "previous_response_id": target})
            self._wait(peer, "response.steer.failed")
            inject = {"type": "response.inject", "response_id": self._say("inject")}
            self._send(peer, {**inject, "input": [self._user("inject")]})
            self._wait(peer, "response.inject.failed")
            self._begin(peer, "endless cancelled")
            self._send(peer, {"type": "response.cancel"})
            self._wait(peer, *TERMINAL)

    def _forks(self) -> None:
        """Lanes, warm-ups, and items that are only named."""
        with self._socket() as peer:
            warm = {**self._everything(), "input": self._say("warm"), "generate": False}
            parent = self._turn(peer, warm)["id"]
            for lane in ("one", "two"):
                more = {"stream_id": self._say(lane), "previous_response_id": parent}
                turn = self._turn(peer, {**self._create(), **more, "input": self._say(lane)})
            reference = {"type": "item_reference", "id": turn["output"][-1]["id"]}
            missing = {"type": "item_reference", "id": self._say(NAME)}
            for item in (reference, missing):
                more = {"previous_response_id": turn["id"], "input": [item, self._user("named")]}
                self._try(peer, {**self._create(), **more})

    def _is_refused(self) -> None:
        """Every mistake there is, and those of engines."""
        with self._socket() as peer:
            for message in self._mistakes():
                self._try(peer, message)
            for text in (self._say("no JSON"), "{" + self._say("half"), f'["{self._say("list")}"]'):
                peer.send(text)
                self._wait(peer, *TERMINAL)
            self._send(peer, {"type": self._say("type")})
            self._wait(peer, *TERMINAL)
            for failing in ("refused", "broken"):
                self._try(peer, {**self._create(), "input": self._say(f"{failing} by the engine")})

    def _mistakes(self) -> Iterator[Members]:
        said = self._say("mistake")
        create = {**self._create(), "input": said}
        for member in [] if self._is_slow else MEMBERS:
            text = self._say(NAME) if member in NAMING else said
            for wrong in (text, {said: said}, [said], [[said]], [{"type": said}]):
                yield {**create, member: wrong}
        schema = {"type": "object", "properties": {said: {"pattern": f"({said}"}}}
        function = {"type": "function", "name": said, "parameters": schema, "strict": True}
        required = {**create, "tool_choice": "required"}
        yield {**required, "tools": [function]}
        yield {**required, "tools": [function, function]}
        yield {**required, "tools": [{**function, "parameters": {"type": said, "$ref": said}}]}
        for syntax in ("lark", "regex"):
            grammar = {"type": "grammar", "syntax": syntax, "definition": f"start: ({said}"}
            yield {**required, "tools": [{"type": "custom", "name": said, "format": grammar}]}
        formatted = {"type": "json_schema", "name": said, "schema": {"$ref": f"#/{said}"}}
        yield {**create, "text": {"format": formatted}}
        for item in (
            {"type": "function_call_output", "call_id": said, "output": said},
            {"type": "function_call", "call_id": said, "name": said, "arguments": f'{{"{said}"'},
            {"type": "compaction", "encrypted_content": said},
            {"type": "reasoning", "id": said, "summary": [], "encrypted_content": said},
            {"type": "message", "role": said, "content": said},
            {"role": "user", "content": [{"type": "input_image", "image_url": said}]},
            {"role": "user", "content": [{"type": "input_file", "file_data": said}]},
        ):
            yield {**create, "input": [item]}

    def _speaks_http(self) -> None:
        with self._http() as http:
            everything = self._create() if self._is_slow else self._everything()
            create = {**everything, "input": self._say("http")}
            for more in ({}, {"stream": True}):
                self._post(http, "responses", {**create, **more})
            body = json.dumps(create).encode()
            for name, pack in (("gzip", gzip.compress), ("zstd", zstandard.compress)):
                packed = pack(body)
                for content in (packed, packed[: len(packed) // 2], body):
                    self._post_bytes(http, "responses", content, {"content-encoding": name})
            # A summary takes a slow model long; it makes one over its socket.
            compact = [] if self._is_slow else ["responses/compact"]
            for resource in [*compact, "responses/input_tokens"]:
                self._post(http, resource, {"model": self._model, "input": self._say(resource)})
            for message in self._mistakes():
                self._post(http, "responses", message)
            for stored in [*self._stored, self._say(NAME)]:
                for below in ("", "/input_items", f"?include={self._say('query')}", "?stream=true"):
                    self._count(http.get(f"responses/{stored}{below}"))
            if self._store:
                self._asks_to_keep(http)
            else:
                # A stored response stays, so that it is there to be found.
                for stored in self._stored:
                    self._count(http.delete(f"responses/{stored}"))
            self._count(http.get(f"models/{self._say('model')}"))
            self._count(http.request(self._say("method").upper(), f"{self._say('path')}"))

    def _asks_to_keep(self, http: httpx.Client) -> None:
        """Conversations, which are kept whatever `store` says, and responses to come back for."""
        items = {"items": [self._user("conversation")]}
        metadata = {"metadata": {"topic": self._say("topic")}}
        made = self._post(http, "conversations", {**metadata, **items})
        conversation = made.get("id", self._say(NAME))
        self._post(http, f"conversations/{conversation}", metadata)
        self._post(http, f"conversations/{conversation}/items", items)
        self._count(http.get(f"conversations/{conversation}/items"))
        create = {**self._create(), "input": self._say("in a conversation")}
        self._post(http, "responses", {**create, "conversation": conversation})
        kept = self._post(http, "responses", {**create, "background": True})
        response = kept.get("id", self._say(NAME))
        self._count(http.get(f"responses/{response}?stream=true&starting_after=1"))
        self._post(http, f"responses/{response}/cancel", {})

    def _is_hostile(self) -> None:
        """Bytes that are no HTTP, no WebSocket, and no text."""
        said = self._say("hostile")
        host = urlsplit(self._origin).netloc
        for request in (
            said,
            f"{said} /v1/responses HTTP/1.1\r\nHost: {host}\r\n\r\n",
            f"GET /{said} HTTP/9.9\r\n\r\n",
            f"GET /v1/models HTTP/1.1\r\n{said}: {said}\r\nHost: {said}\r\nno colon {said}\r\n\r\n",
            f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{said}\r\n\r\n",
            f"POST /v1/responses HTTP/1.1\r\nHost: {host}\r\nContent-Length: {said}\r\n\r\n",
            f"POST /v1/responses HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n"
            f"{said}\r\n",
            f"GET /v1/responses HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
            "Connection: upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {said}\r\n\r\n",
            # The first handshake of TLS, to a server that does not speak it.
            f"\x16\x03\x01\x01\x00{said}",
        ):
            self._say_raw(request.encode())
        for frame in (
            # Bytes that are no text, in a frame of text.
            lambda peer: peer.send(b"\xff" + said.encode(), text=True),
            lambda peer: peer.send(said.encode()),
            lambda peer: peer.ping(said.encode()),
            lambda peer: peer.close(code=3999, reason=said[:120]),
            # A frame that no protocol knows.
            lambda peer: peer.socket.sendall(b"\xff\xff" + said.encode()),
        ):
            with self._socket() as peer:
                frame(peer)
                self._turn_or_end(peer)
        try:
            with self._socket({"OpenAI-Beta": said, "X-Client": said, "Authorization": said}):
                pass
        except InvalidHandshake:
            pass

    def _leaves_in_the_middle(self) -> None:
        with self._socket() as peer:
            self._begin(peer, "endless left")
            peer.socket.shutdown(socket.SHUT_RDWR)
        self.begin_streaming().close()

    # What a crash interrupts.

    def begin_endless(self) -> ClientConnection:
        """A turn that says the marker for as long as the connection lasts."""
        peer = self._socket()
        self._begin(peer, "endless")
        return peer

    def begin_streaming(self) -> httpx.Client:
        """The same over HTTP."""
        http = self._http()
        create = {**self._create(), "input": self._say("endless stream"), "stream": True}
        request = http.build_request("POST", "responses", json=create)
        response = http.send(request, stream=True)
        self._count(response)
        for line in response.iter_lines():
            if "delta" in line:
                break
        return http

    # What is said.

    def _say(self, place: str) -> str:
        return self.marker.at(place.replace(" ", "-").replace("/", "-"))

    def _user(self, place: str) -> Members:
        content = [{"type": "input_text", "text": self._say(place)}]
        return {"type": "message", "role": "user", "content": content}

    def _create(self) -> Members:
        return {"model": self._model, "store": self._store, "max_output_tokens": 16}

    def _everything(self) -> Members:
        """A create in which everything that can hold a text does."""
        said = self._say("function")
        parameters = {
            "type": "object",
            "description": said,
            # What the model writes is one of these, so that its own words hold the marker.
            "properties": {"it": {"type": "string", "enum": [said]}},
            "required": ["it"],
            "additionalProperties": False,
        }
        function = {"type": "function", "name": said, "parameters": parameters, "strict": True}
        if self._is_slow:
            # A prompt that is read in a second or two.
            return {**self._create(), "tools": [function], "instructions": self._say("system")}
        return {
            **self._create(),
            "instructions": self._say("instructions"),
            "metadata": {self._say("key"): self._say("value")},
            "user": self._say("user"),
            "prompt_cache_key": self._say("cache key"),
            "safety_identifier": self._say("safety"),
            "reasoning": {"effort": "low", "summary": "auto"},
            "tools": [
                {**function, "description": self._say("description")},
                {"type": "custom", "name": self._say("custom"), "description": said},
                {"type": "web_search", "user_location": {"type": "approximate", "city": said}},
            ],
        }

    # How it is said, and what is heard.

    def _socket(self, headers: Members | None = None) -> ClientConnection:
        return connect(
            self._origin.replace("http", "ws", 1) + "/v1/responses",
            additional_headers=headers,
            open_timeout=PATIENCE_SECONDS,
            close_timeout=HOSTILE_PATIENCE_SECONDS,
            max_size=None,
        )

    def _http(self) -> httpx.Client:
        # A server need not keep a connection on which it refused a request.
        once = httpx.Limits(max_keepalive_connections=0)
        return httpx.Client(base_url=f"{self._origin}/v1/", timeout=PATIENCE_SECONDS, limits=once)

    def _send(self, peer: ClientConnection, message: Members) -> None:
        peer.send(json.dumps(message))

    def _turn(self, peer: ClientConnection, members: Members) -> Members:
        """The response object of a turn that comes to its end."""
        event = self._try(peer, members)
        assert "response" in event, event
        return event["response"]

    def _try(self, peer: ClientConnection, members: Members) -> Event:
        """The last event of a turn, however it ends."""
        self._send(peer, {"type": "response.create", **members})
        return self._wait(peer, *TERMINAL)

    def _begin(self, peer: ClientConnection, place: str) -> str:
        """The id of a turn that has begun to say something."""
        # A real model has to be asked for something that takes it long.
        text = f"Count from one to a thousand, in words. {self._say(place)}"
        create = {**self._create(), "input": text, "max_output_tokens": None}
        self._send(peer, {"type": "response.create", **create})
        target = self._wait(peer, "response.created")["response"]["id"]
        self._wait(peer, "response.output_text.delta", "response.reasoning_text.delta")
        return target

    def _wait(self, peer: ClientConnection, *kinds: str) -> Event:
        """The next event of one of these types."""
        while True:
            text = peer.recv(PATIENCE_SECONDS)
            event = json.loads(text)
            self.echoes += self.marker.core in text
            self.heard[event["type"]] += 1
            for item in event.get("response", {}).get("output", []):
                self.heard[f"item {item['type']}"] += 1
                self.heard["sealed"] += bool(item.get("encrypted_content"))
            if event["type"] == "error":
                self.heard[event["error"]["code"]] += 1
            elif event["type"] == "response.completed":
                self._stored.append(event["response"]["id"])
            if event["type"] in kinds:
                return event

    def _turn_or_end(self, peer: ClientConnection) -> None:
        """Whatever a broken message is answered with."""
        try:
            self._send(peer, {"type": "response.create", **self._create(), "input": "x"})
            while json.loads(peer.recv(HOSTILE_PATIENCE_SECONDS))["type"] not in TERMINAL:
                pass
        except (ConnectionClosed, TimeoutError):
            self.heard["closed"] += 1

    def _post(self, http: httpx.Client, resource: str, body: Members) -> Members:
        """What it is answered, if that is an object."""
        return self._post_bytes(http, resource, json.dumps(body).encode(), {})

    def _post_bytes(
        self, http: httpx.Client, resource: str, body: bytes, headers: dict[str, str]
    ) -> Members:
        headers = {"content-type": "application/json", **headers}
        response = http.post(resource, content=body, headers=headers)
        self._count(response)
        is_object = response.headers.get("content-type", "").startswith("application/json")
        return response.json() if is_object else {}

    def _count(self, response: httpx.Response) -> None:
        self.heard[f"HTTP {response.status_code}"] += 1

    def _say_raw(self, request: bytes) -> None:
        host, port = urlsplit(self._origin).netloc.split(":")
        with socket.create_connection((host, int(port)), HOSTILE_PATIENCE_SECONDS) as peer:
            peer.sendall(request)
            # Nothing more will come.
            peer.shutdown(socket.SHUT_WR)
            try:
                while peer.recv(1 << 16):
                    pass
            except OSError:
                pass
        self.heard["raw"] += 1


# What an agent that was understood has heard from every engine.
ALWAYS_HEARD = [
    *("response.completed", "error", "response.steer.failed", "response.inject.failed"),
    *("item compaction", "missing_required_parameter", "invalid_json"),
    *("HTTP 200", "HTTP 400", "HTTP 404", "raw", "closed"),
]

# What takes many turns to hear, or a model that does as it is told.
OFTEN_HEARD = [
    *("response.incomplete", "response.failed", "response.steer.accepted", "item function_call"),
    *("response.compaction.compacting", "sealed", "invalid_type"),
]


def talk(origin: str, engine: Engine, marker: Marker, store: bool) -> Agent:
    """Says everything that can be said, and sees that it was heard."""
    agent = Agent(origin, engine.model, marker, store, engine.is_slow)
    agent.run()
    expected = ALWAYS_HEARD if engine.is_slow else ALWAYS_HEARD + OFTEN_HEARD
    assert [kind for kind in expected if not agent.heard[kind]] == [], agent.heard
    assert agent.echoes > 10, agent.heard
    return agent
