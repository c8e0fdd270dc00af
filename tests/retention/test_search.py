"""The search finds what it is there to find. Without this, finding nothing would prove nothing."""

import base64
import gzip
import io
import json
import random
import zipfile
import zlib
from pathlib import Path

import pytest
import zstandard

from marker import Marker
from search import search_bytes, search_tree

MARKER = Marker()
CORE = MARKER.core.encode()
NOISE = random.Random(7).randbytes(5000)


def bare_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush()


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a name", data)
    return file.getvalue()


def escaped(text: str, pattern: str) -> bytes:
    return "".join(pattern.format(ord(character)) for character in text).encode()


ENCODED = {
    "plain": CORE,
    "upper case": CORE.upper(),
    "hex": CORE.hex().encode(),
    "upper hex": CORE.hex().upper().encode(),
    "hex escapes": escaped(MARKER.core, "\\x{:02x}"),
    "percent escapes": escaped(MARKER.core, "%{:02x}"),
    "upper percent escapes": escaped(MARKER.core, "%{:02X}"),
    "JSON escapes": escaped(MARKER.core, "\\u{:04x}"),
    "upper JSON escapes": escaped(MARKER.core, "\\u{:04X}"),
    "list of numbers": str(list(CORE)).encode(),
    "dense list of numbers": json.dumps(list(CORE), separators=(",", ":")).encode(),
    "UTF-16LE": MARKER.core.encode("utf-16-le"),
    "UTF-16BE": MARKER.core.encode("utf-16-be"),
    "UTF-32LE": MARKER.core.encode("utf-32-le"),
    "UTF-32BE": MARKER.core.encode("utf-32-be"),
    "base64 at 0": base64.b64encode(b"123" + CORE + b"?"),
    "base64 at 1": base64.b64encode(b"1" + CORE + b"?"),
    "base64 at 2": base64.b64encode(b"12" + CORE + b"?"),
    "base64url at 0": base64.urlsafe_b64encode(b"???" + CORE + b"?"),
    "base64url at 1": base64.urlsafe_b64encode(b"?" + CORE + b"?"),
    "base64url at 2": base64.urlsafe_b64encode(b"??" + CORE + b"?"),
}

COMPRESSED = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "fast zlib": lambda data: zlib.compress(data, 1),
    "zlib of a small window": lambda data: _small_window(data),
    "zstd": zstandard.compress,
    "zip": zipped,
}


def _small_window(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, 10)
    return compressor.compress(data) + compressor.flush()


def test_every_form_has_an_example():
    assert set(ENCODED) == set(MARKER.forms)


@pytest.mark.parametrize("form", ENCODED)
def test_it_is_found_in_every_form(form: str):
    found = search_bytes("file", NOISE + ENCODED[form] + NOISE, MARKER)
    assert form in {hit.form for hit in found}


@pytest.mark.parametrize("form", ["plain", "base64 at 1"])
@pytest.mark.parametrize("compression", COMPRESSED)
def test_it_is_found_in_streams_anywhere_in_a_file(compression: str, form: str):
    stream = COMPRESSED[compression](NOISE[:700] + ENCODED[form] + NOISE[:700])
    assert search_bytes("file", NOISE + stream + NOISE, MARKER)


def test_it_is_found_in_bare_deflate_at_the_beginning_of_a_file():
    assert search_bytes("file", bare_deflate(b"text " * 9 + CORE), MARKER)


def test_it_is_found_in_streams_within_streams():
    data = zstandard.compress(b"<" + gzip.compress(b"<" + zlib.compress(CORE) + b">") + b">")
    assert search_bytes("file", b"<" + data + b">", MARKER)


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress, zstandard.compress])
def test_it_is_found_in_a_stream_that_is_cut(compress):
    # Noise does not shrink, so the marker is in the first half.
    stream = compress(CORE + NOISE * 60)
    assert search_bytes("file", stream[: len(stream) // 2], MARKER)


def test_it_is_found_in_files_of_any_depth_and_in_their_names(tmp_path: Path):
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(NOISE + CORE)
    (tmp_path / f"{MARKER.core}.tmp").touch()
    (tmp_path / "link").symlink_to(f"/nowhere/{MARKER.core}")
    paths = {hit.path for hit in search_tree(tmp_path, MARKER)}
    assert paths == {"a/b/file", f"the name {MARKER.core}.tmp", "the target of link"}


def test_nothing_is_found_where_nothing_is(tmp_path: Path):
    (tmp_path / "file").write_bytes(NOISE + gzip.compress(NOISE) + Marker().core.encode())
    assert search_tree(tmp_path, MARKER) == []
