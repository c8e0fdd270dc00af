"""The files of a directory as they are after power was lost, made from the log of the fault layer.

What was synced is there. Of what was written since, nothing is, or some sectors are; in a
directory that was not synced, the newest names may be missing, and the newest removals undone.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fault_layer import Kind, Record

SECTOR = 512

# SQLite maps its WAL index, which the fault layer does not see, and makes it anew after a crash.
NOT_SEEN = ("-shm",)


@dataclass(slots=True)
class Change:
    """A write, or a new size where `data` is none."""

    offset: int
    data: bytes | None
    place: int


@dataclass(slots=True)
class File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Change] = field(default_factory=list)

    def sync(self, begun: int) -> None:
        for change in self.pending:
            if change.place < begun:
                apply(self.durable, change.offset, change.data)
        self.pending = [change for change in self.pending if change.place >= begun]

    def after_power_loss(self, survives: Callable[[], bool]) -> bytearray:
        content = bytearray(self.durable)
        for change in self.pending:
            if change.data is None:
                if survives():
                    apply(content, change.offset, None)
                continue
            begin = 0
            while begin < len(change.data):
                end = begin + SECTOR - (change.offset + begin) % SECTOR
                if survives():
                    apply(content, change.offset + begin, change.data[begin:end])
                begin = end
        return content


@dataclass(slots=True)
class Directory:
    """`pending` are the changes since the last sync, oldest first, each of them atomic: names, and
    the file or directory that each has now, or none if it was removed."""

    durable: dict[str, "Node"] = field(default_factory=dict)
    pending: list[tuple[int, dict[str, "Node | None"]]] = field(default_factory=list)

    def sync(self, begun: int) -> None:
        self.durable = self._entries([change for change in self.pending if change[0] < begun])
        self.pending = [change for change in self.pending if change[0] >= begun]

    def now(self) -> dict[str, "Node"]:
        return self._entries(self.pending)

    def after_power_loss(self, choose: random.Random | None) -> dict[str, "Node"]:
        """File systems keep the order of such changes, so that some of the first survive."""
        kept = choose.randint(0, len(self.pending)) if choose else 0
        return self._entries(self.pending[:kept])

    def _entries(self, changes: list[tuple[int, dict[str, "Node | None"]]]) -> dict[str, "Node"]:
        entries: dict[str, Node | None] = dict(self.durable)
        for _, names in changes:
            entries.update(names)
        return {name: node for name, node in entries.items() if node is not None}


Node = File | Directory


class Disk:
    """Follows a log. The directory itself is there from the beginning and outlives everything."""

    def __init__(self, root: Path, records: list[Record]):
        self._root = root
        self._records = records
        self._next = 0
        self._tree = Directory()
        self._nodes: dict[int, Node] = {}
        self._begun: dict[tuple[int, int], int] = {}

    def advance(self, end: int) -> None:
        """Takes in all records before `end`."""
        for place in range(self._next, end):
            self._take(place, self._records[place])
        self._next = max(self._next, end)

    def sync_all(self) -> None:
        """As if power had stayed: nothing is pending any more."""
        for node in [self._tree, *self._nodes.values()]:
            node.sync(self._next)

    def write_image(self, into: Path, choose: random.Random | None = None) -> None:
        """Without `choose`, nothing survives that was not synced; with it, some does."""
        likelihood = choose.choice([0.1, 0.5, 0.9, 1.0]) if choose else 0.0

        def survives() -> bool:
            return choose is not None and choose.random() < likelihood

        def write(directory: Directory, at: Path) -> None:
            at.mkdir(parents=True, exist_ok=True)
            for name, node in directory.after_power_loss(choose).items():
                if isinstance(node, Directory):
                    write(node, at / name)
                elif not name.endswith(NOT_SEEN):
                    (at / name).write_bytes(node.after_power_loss(survives))

        write(self._tree, into)

    def _take(self, place: int, record: Record) -> None:
        match record.kind:
            case Kind.CREATED:
                self._enter(place, record, File())
            case Kind.MADE_DIR:
                self._enter(place, record, Directory())
            case Kind.OPENED:
                self._nodes[record.file] = self._find(record.payload)
            case Kind.WRITTEN:
                file = self._nodes[record.file]
                file.pending.append(Change(record.number, record.payload, place))
            case Kind.RESIZED:
                self._nodes[record.file].pending.append(Change(record.number, None, place))
            case Kind.SYNC_BEGUN:
                self._begun[record.file, record.number] = place
            case Kind.SYNCED:
                self._nodes[record.file].sync(self._begun.pop((record.file, record.number)))
            case Kind.RENAMED | Kind.LINKED:
                old, new = (Path(path.decode()) for path in record.payload.split(b"\0"))
                # Renaming is atomic within a directory, and nothing here renames across two.
                assert old.parent == new.parent, f"{old} became {new}"
                directory = self._directory(old)
                names: dict[str, Node | None] = {new.name: directory.now()[old.name]}
                if record.kind is Kind.RENAMED:
                    names[old.name] = None
                directory.pending.append((place, names))
            case Kind.REMOVED:
                path = Path(record.payload.decode())
                self._directory(path).pending.append((place, {path.name: None}))
            case Kind.SENDING | Kind.SENT:
                pass

    def _enter(self, place: int, record: Record, node: Node) -> None:
        path = Path(record.payload.decode())
        self._nodes[record.file] = node
        self._directory(path).pending.append((place, {path.name: node}))

    def _directory(self, path: Path) -> Directory:
        """The one that `path` is in."""
        directory = self._find(str(path.parent).encode())
        assert isinstance(directory, Directory)
        return directory

    def _find(self, path: bytes) -> Node:
        node: Node = self._tree
        for name in Path(path.decode()).relative_to(self._root).parts:
            assert isinstance(node, Directory), f"{path!r} goes through a file"
            node = node.now()[name]
        return node


def apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset : offset + len(data)] = data
