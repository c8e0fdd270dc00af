"""HTTP/1.1 as far as the tests need it, with every byte of a body kept as it came."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any


class Gone(Exception):
    """The connection ended before the answer was whole."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Http:
    """One connection, kept alive, one request at a time."""

    def __init__(self, port: int):
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> "Http":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
            self._streams = None

    async def get(self, path: str) -> Answer:
        return await self.request("GET", path)

    async def post(self, path: str, body: Any) -> Answer:
        return await self.request("POST", path, json.dumps(body).encode())

    async def delete(self, path: str) -> Answer:
        return await self.request("DELETE", path)

    async def request(self, method: str, path: str, body: bytes = b"") -> Answer:
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            if body:
                head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            writer.write(head.encode() + b"\r\n" + body)
            await writer.drain()
            return await _answer(reader)
        except (OSError, EOFError) as error:
            self.close()
            raise Gone(f"{method} {path}") from error


async def _answer(reader: asyncio.StreamReader) -> Answer:
    # An end within the head or the body raises IncompleteReadError, which is an EOFError.
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = (line.split(":", 1) for line in lines[1:] if line)
    headers = {name.lower(): value.strip() for name, value in fields}
    if headers.get("transfer-encoding") == "chunked":
        body = await _chunks(reader)
    else:
        body = await reader.readexactly(int(headers["content-length"]))
    return Answer(int(lines[0].split(" ")[1]), headers, body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while True:
        size = int((await reader.readuntil(b"\r\n")).strip(), 16)
        body += await reader.readexactly(size)
        await reader.readexactly(2)
        if size == 0:
            return bytes(body)


def sse_events(body: bytes) -> list[bytes]:
    """The data of each event, the closing `[DONE]` left out."""
    data = (
        line.removeprefix(b"data: ") for line in body.split(b"\n") if line.startswith(b"data: ")
    )
    return [event for event in data if event != b"[DONE]"]
