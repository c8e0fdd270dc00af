"""Search: where a marker is in a tree of files, whatever it was encoded or compressed with."""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from marker import Marker

# Compressed text in compressed text in compressed text.
MOST_LAYERS = 3

# What one stream may unfold to. More is an error: it could not be searched.
MOST_BYTES = 256 << 20

GZIP = b"\x1f\x8b\x08"
ZSTD = b"\x28\xb5\x2f\xfd"
ZIP_ENTRY = b"PK\x03\x04"

# The first byte of a zlib stream says deflate and a window; the second makes both a multiple of 31.
ZLIB = re.compile(
    b"|".join(
        re.escape(bytes([first, second]))
        for first in range(0x08, 0x79, 0x10)
        for second in range(256)
        if (first << 8 | second) % 31 == 0 and not second & 0x20
    ),
    re.DOTALL,
)

# Bytes given to a decompressor at a time: what it makes of those around a fault is lost.
STEP = 256


@dataclass(frozen=True)
class Hit:
    path: str
    form: str
    """Behind the streams it was unpacked from, outermost first."""
    offset: int
    around: bytes

    def __str__(self) -> str:
        return f"{self.path}: {self.form} at {self.offset}: {self.around!r}"


def search_tree(root: Path, marker: Marker) -> list[Hit]:
    """All hits in the files under `root`, and in their names."""
    hits = []
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        hits += search_bytes(f"the name {name}", name.encode(), marker)
        if path.is_symlink():
            hits += search_bytes(f"the target of {name}", str(path.readlink()).encode(), marker)
        elif path.is_file():
            hits += search_bytes(name, path.read_bytes(), marker)
    return hits


def search_bytes(path: str, data: bytes, marker: Marker) -> list[Hit]:
    return list(_search(path, "", data, marker.forms, MOST_LAYERS))


def _search(
    path: str, layers: str, data: bytes, forms: dict[str, bytes], deeper: int
) -> Iterator[Hit]:
    for form, needle in forms.items():
        at = data.find(needle)
        if at >= 0:
            around = data[max(0, at - 40) : at + len(needle) + 40]
            yield Hit(path, layers + form, at, around)
    if deeper:
        for layer, plain in _unpacked(data):
            yield from _search(path, f"{layers}{layer}, ", plain, forms, deeper - 1)


def _unpacked(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What every stream that begins anywhere in `data` unfolds to, cut or damaged ones included."""
    for at in _places(data, GZIP):
        # 31: with the header of gzip.
        yield from _named(f"gzip at {at}", _inflate(data, at, 31))
    for found in ZLIB.finditer(data):
        yield from _named(f"zlib at {found.start()}", _inflate(data, found.start(), 15))
    for at in _places(data, ZSTD):
        yield from _named(
            f"zstd at {at}", _unfold(data, at, zstandard.ZstdDecompressor().decompressobj())
        )
    for at in _places(data, ZIP_ENTRY):
        behind = _behind_zip_header(data, at)
        yield from _named(f"zip entry at {at}", _inflate(data, behind, -15))
    # Nothing tells where a bare stream begins but the beginning of a file.
    yield from _named("deflate", _inflate(data, 0, -15))


def _named(name: str, plain: bytes) -> Iterator[tuple[str, bytes]]:
    if plain:
        yield name, plain


def _places(data: bytes, magic: bytes) -> Iterator[int]:
    at = data.find(magic)
    while at >= 0:
        yield at
        at = data.find(magic, at + 1)


def _inflate(data: bytes, at: int, window_bits: int) -> bytes:
    return _unfold(data, at, zlib.decompressobj(window_bits))


def _unfold(data: bytes, at: int, decompressor) -> bytes:
    """As much as comes out before the end of the stream, or shortly before its first fault."""
    plain = bytearray()
    try:
        while at < len(data) and not decompressor.eof:
            plain += decompressor.decompress(data[at : at + STEP])
            at += STEP
            if len(plain) > MOST_BYTES:
                raise OverflowError(f"a stream of more than {MOST_BYTES} bytes")
    except (zlib.error, zstandard.ZstdError):
        pass
    return bytes(plain)


def _behind_zip_header(data: bytes, at: int) -> int:
    header = data[at + 26 : at + 30]
    if len(header) < 4:
        return len(data)
    name, extra = struct.unpack("<HH", header)
    return at + 30 + name + extra
