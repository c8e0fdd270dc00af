"""When a text left a server, from the log of the fault layer."""

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass

from fault_layer import Kind, Record


@dataclass(frozen=True)
class Departure:
    """The places in the log at which the first and the last byte were given to a socket."""

    first: int
    last: int


class Departures:
    def __init__(self, records: list[Record]):
        self._streams = _streams(records)

    def of(self, text: bytes) -> Departure | None:
        """The first departure; none if the text never left as a whole."""
        departures = (stream.departure(text) for stream in self._streams)
        left = [departure for departure in departures if departure]
        return min(left, key=lambda departure: departure.last, default=None)


class _Stream:
    """All that left by one descriptor, whichever sockets had it."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.begins: list[int] = []
        self.places: list[int] = []

    def add(self, place: int, payload: bytes) -> None:
        self.begins.append(len(self.content))
        self.places.append(place)
        self.content += payload

    def departure(self, text: bytes) -> Departure | None:
        found = self.content.find(text)
        if found < 0:
            return None
        return Departure(self._place(found), self._place(found + len(text) - 1))

    def _place(self, offset: int) -> int:
        return self.places[bisect_right(self.begins, offset) - 1]


def _streams(records: list[Record]) -> list[_Stream]:
    streams: dict[int, _Stream] = defaultdict(_Stream)
    leaving: dict[int, tuple[int, bytes]] = {}
    for place, record in enumerate(records):
        if record.kind is Kind.SENDING:
            leaving[record.file] = (place, record.payload)
        elif record.kind is Kind.SENT:
            begun, payload = leaving.pop(record.file)
            streams[record.file].add(begun, payload[: record.number])
    # The program died within these, which may have left.
    for descriptor, (begun, payload) in leaving.items():
        streams[descriptor].add(begun, payload)
    return list(streams.values())
