"""A /v1/chat/completions server that says again whatever it is told, in its errors too."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "echo"


class ChatUpstream:
    """On a free port of loopback, in threads of this process."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self.base_url = f"http://{self.address}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = _last_of_user(request["messages"])
        try:
            if "refused" in said or not request["messages"]:
                core = said.split("_")[0]
                error = {"message": said, "type": core, "code": core, "param": said}
                self._answer(400, {"error": error})
            else:
                self._stream(request, said)
        except (BrokenPipeError, ConnectionResetError):
            # The turn was cancelled.
            pass

    def _answer(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, request: dict[str, Any], said: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        if "broken" in said:
            self._say({"content": said})
            self.wfile.write(f"data: {{this is no JSON: {said}\n\n".encode())
            return
        while "endless" in said:
            # Sentences, so that it can be steered between two.
            self._say({"content": f"{said}. "})
            time.sleep(0.001)
        self._say({"reasoning_content": said})
        tools, last = request.get("tools"), request["messages"][-1]
        if tools and last["role"] != "tool":
            function = {"name": tools[0]["function"]["name"], "arguments": json.dumps({"it": said})}
            self._say({"tool_calls": [{"index": 0, "id": "call_1", "function": function}]})
            self._end("tool_calls")
        else:
            self._say({"content": said})
            self._end("stop")

    def _say(self, delta: dict[str, Any]) -> None:
        self._chunk({"choices": [{"index": 0, "delta": delta}]})

    def _end(self, reason: str) -> None:
        self._chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        self.wfile.write(b"data: [DONE]\n\n")

    def _chunk(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.flush()


def _last_of_user(messages: list[dict[str, Any]]) -> str:
    for message in reversed(messages):
        if message["role"] == "user":
            content = message["content"]
            if isinstance(content, str):
                return content
            return "".join(part.get("text", "") for part in content)
    return ""
