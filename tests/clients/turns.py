"""One turn as a client sees it: its events in order, and what they add up to."""

from collections.abc import Iterator
from typing import Any

TERMINAL = {"response.completed", "response.incomplete", "response.failed", "error"}


class Turn:
    """Raises if its events contradict each other."""

    def __init__(self, events: list[dict[str, Any]]):
        self.events = events
        last = events[-1]
        self.error = last["error"] if last["type"] == "error" else None
        self.response: dict[str, Any] = {}
        if self.error is None:
            _check_order(events)
            self.response = last["response"]
            _check_items(events, self.output)

    @classmethod
    def of_response(cls, response: dict[str, Any]) -> "Turn":
        """A turn of which only the end is known."""
        turn = cls.__new__(cls)
        turn.events, turn.error, turn.response = [], None, response
        return turn

    @property
    def id(self) -> str:
        return self.response["id"]

    @property
    def status(self) -> str:
        return self.response["status"]

    @property
    def output(self) -> list[dict[str, Any]]:
        return self.response["output"]

    @property
    def usage(self) -> dict[str, Any]:
        return self.response["usage"]

    @property
    def call(self) -> dict[str, Any]:
        """Its only output item, which must be a finished function call."""
        [item] = self.output
        assert item["type"] == "function_call", item
        assert item["status"] == "completed", item
        return item

    @property
    def text(self) -> str:
        parts = (part for item in self.output for part in item.get("content", []))
        return "".join(part.get("text", "") for part in parts)

    @property
    def input_tokens(self) -> int:
        return self.usage["input_tokens"]

    @property
    def output_tokens(self) -> int:
        return self.usage["output_tokens"]

    @property
    def prefilled_tokens(self) -> int:
        """Tokens of the prompt that had to be computed for this turn."""
        return self.input_tokens - self.usage["input_tokens_details"]["cached_tokens"]


def is_terminal(event: dict[str, Any]) -> bool:
    return event["type"] in TERMINAL


def _check_order(events: list[dict[str, Any]]) -> None:
    kinds = [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert [kind for kind in kinds if kind in TERMINAL] == [kinds[-1]]
    opening = events[0]["response"]
    assert opening["status"] == "in_progress" and opening["output"] == []
    assert {event["response"]["id"] for event in events if "response" in event} == {opening["id"]}


def _check_items(events: list[dict[str, Any]], output: list[dict[str, Any]]) -> None:
    """Every item opens, is filled by its deltas, and closes as the terminal event shows it."""
    opened = [event for event in events if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in opened] == list(range(len(output)))
    for index, item in enumerate(output):
        own = [event for event in events if event.get("output_index") == index]
        assert own[0]["type"] == "response.output_item.added"
        assert own[-1]["type"] == "response.output_item.done"
        assert own[-1]["item"] == item
        assert {event["item_id"] for event in own if "item_id" in event} <= {item["id"]}
        for deltas, whole in _deltas(own, item):
            assert "".join(deltas) == whole


def _deltas(own: list[dict[str, Any]], item: dict[str, Any]) -> Iterator[tuple[list[str], str]]:
    def said(kind: str, part: int | None = None) -> list[str]:
        return [
            event["delta"]
            for event in own
            if event["type"] == kind and event.get("content_index") == part
        ]

    if item["type"] == "function_call":
        yield said("response.function_call_arguments.delta"), item["arguments"]
    if item["type"] == "custom_tool_call":
        yield said("response.custom_tool_call_input.delta"), item["input"]
    kinds = {
        "output_text": "response.output_text.delta",
        "reasoning_text": "response.reasoning_text.delta",
    }
    for number, part in enumerate(item.get("content", [])):
        if part["type"] in kinds:
            yield said(kinds[part["type"]], number), part["text"]
