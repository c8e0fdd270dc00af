"""A text that stands nowhere else, and everything it can look like in a file."""

import base64
import secrets
import string
from functools import cached_property

ALPHABET = string.ascii_lowercase + string.digits

# Long enough to be found in no other place by chance, in any of its forms.
LENGTH = 14


class Marker:
    """Put into everything a client says; `places` tells the finds apart for a reader."""

    def __init__(self, times: int = 3) -> None:
        """What is cut into pages, lines or deltas is whole somewhere if it is said several times
        over. A real model has to read every one."""
        self._times = times
        # Begins with a letter, so that it can be a name.
        self.core = "q" + "".join(secrets.choice(ALPHABET) for _ in range(LENGTH - 1))

    def at(self, place: str) -> str:
        """The marker for one place in a request, no longer than a name may be."""
        return "_".join([self.core] * self._times + [place])[:64]

    @cached_property
    def forms(self) -> dict[str, bytes]:
        """The marker as bytes, by the name of each form."""
        core = self.core.encode()
        points = [f"{byte:04x}" for byte in core]
        forms = {
            "plain": core,
            "upper case": core.upper(),
            "hex": core.hex().encode(),
            "upper hex": core.hex().upper().encode(),
            "hex escapes": "".join(f"\\x{byte:02x}" for byte in core).encode(),
            "percent escapes": "".join(f"%{byte:02x}" for byte in core).encode(),
            "upper percent escapes": "".join(f"%{byte:02X}" for byte in core).encode(),
            "JSON escapes": "".join(f"\\u{point}" for point in points).encode(),
            "upper JSON escapes": "".join(f"\\u{point.upper()}" for point in points).encode(),
            "list of numbers": ", ".join(str(byte) for byte in core).encode(),
            "dense list of numbers": ",".join(str(byte) for byte in core).encode(),
            "UTF-16LE": self.core.encode("utf-16-le"),
            "UTF-16BE": self.core.encode("utf-16-be"),
            "UTF-32LE": self.core.encode("utf-32-le"),
            "UTF-32BE": self.core.encode("utf-32-be"),
        }
        for alignment in range(3):
            for name, encode in [
                ("base64", base64.b64encode),
                ("base64url", base64.urlsafe_b64encode),
            ]:
                forms[f"{name} at {alignment}"] = _inner(encode, core, alignment)
        return forms


def _inner(encode, core: bytes, alignment: int) -> bytes:
    """The digits that depend on nothing but the core, where it begins `alignment` bytes behind a
    multiple of three."""
    digits = encode(bytes(alignment) + core)
    first = -(-alignment * 8 // 6)
    behind = (alignment + len(core)) * 8 // 6
    return digits[first:behind]
