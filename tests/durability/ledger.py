"""What clients have said and been told: the truth that a store is measured by."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

Item = dict[str, Any]
ENDED_WELL = ("completed", "incomplete")


@dataclass(eq=False)
class Response:
    """One that a client has asked for, and what the server has said of it, byte for byte.

    With `promise`, an object that says `queued`, the server has taken it on. With `text`, the
    object at its end, it has acknowledged it. `deletion` is what answered the wish to delete it.
    `before` are the items of the conversation that it is part of.
    """

    parent: "Response | None"
    input: list[Item]
    before: list[Item] | None = None
    stored: bool = True
    id: str | None = None
    promise: bytes | None = None
    text: bytes | None = None
    deletion_was_asked: bool = False
    deletion: bytes | None = None

    @property
    def turn(self) -> int:
        return 1 if self.parent is None else self.parent.turn + 1

    @property
    def starts_in_conversation(self) -> bool:
        if self.parent is None:
            return self.before is not None
        return self.parent.starts_in_conversation

    @property
    def output(self) -> list[Item]:
        assert self.text is not None, "only what has ended has an output"
        return json.loads(self.text)["output"]

    @property
    def is_continuable(self) -> bool:
        ended_well = self.text is not None and json.loads(self.text)["status"] in ENDED_WELL
        return ended_well and not self.deletion_was_asked

    def given(self) -> list[Item]:
        """All that it was given: the items of its parents, then its own input."""
        if self.parent is None:
            return (self.before or []) + self.input
        return self.parent.given() + self.parent.output + self.input

    def unanswered_calls(self) -> list[str]:
        return [item["call_id"] for item in self.output if item["type"] == "function_call"]


@dataclass(eq=False)
class Conversation:
    """`doubtful` are items that were to be added, until that is answered; with an output behind
    them, if a response `is_awaited`."""

    id: str
    items: list[Item] = field(default_factory=list)
    doubtful: list[Item] = field(default_factory=list)
    is_awaited: bool = False

    def may_hold(self, items: list[Item]) -> bool:
        with_doubtful = self.items + self.doubtful
        if self.is_awaited and len(items) > len(with_doubtful):
            return items[: len(with_doubtful)] == with_doubtful
        return items == self.items or (items == with_doubtful and not self.is_awaited)

    def settle(self, items: list[Item]) -> None:
        self.items = items
        self.doubtful = []
        self.is_awaited = False


@dataclass
class Ledger:
    """`problems` are failures that clients saw and must not see. Where the store may fail, its
    failures are only counted, as `excuses`."""

    responses: list[Response] = field(default_factory=list)
    acknowledged: int = 0
    conversations: list[Conversation] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    store_may_fail: bool = False
    excuses: int = 0

    def begin(self, response: Response) -> Response:
        self.responses.append(response)
        return response

    def end(self, response: Response, text: bytes) -> None:
        response.id = json.loads(text)["id"]
        response.text = text
        self.acknowledged += response.stored

    def some_continuable(self, choose: random.Random) -> Response | None:
        """Found by a few tries, so that it costs the same however long the ledger is."""
        for _ in range(5 if self.responses else 0):
            response = choose.choice(self.responses)
            if response.stored and response.is_continuable:
                return response
        return None


class Writer:
    """Makes inputs that no other input is equal to."""

    def __init__(self, choose: random.Random):
        self._choose = choose

    def input(self, parent: Response | None, order: str) -> list[Item]:
        """One message, behind an answer to each call of the parent."""
        calls = [] if parent is None else parent.unanswered_calls()
        outputs = [
            {
                "type": "function_call_output",
                "id": f"fco_{self._mark()}",
                "call_id": call,
                "status": "completed",
                "output": self._text("output"),
            }
            for call in calls
        ]
        message = {
            "type": "message",
            "id": f"msg_{self._mark()}",
            "role": "user",
            "status": "completed",
            "content": [{"type": "input_text", "text": self._text(order)}],
        }
        return [*outputs, message]

    def _mark(self) -> str:
        return f"{self._choose.getrandbits(96):024x}"

    def _text(self, order: str) -> str:
        """Mostly short; now and then of many pages of a database."""
        mark = self._mark()
        sizes = [0, 40, 400, 4_000, 30_000]
        padding = "ä—" * (self._choose.choices(sizes, weights=[4, 4, 4, 2, 1])[0] // 5)
        return f"{order} {mark} {padding} {mark}"


def response_text(event: bytes) -> bytes:
    """The response object of an event, as it was written."""
    text = event.decode()
    begin = text.index('"response":') + len('"response":')
    _, end = json.JSONDecoder().raw_decode(text, begin)
    return text[begin:end].encode()
