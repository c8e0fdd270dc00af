"""Programs of others that the tests run, found where distributions and `./test` put them.

Run as a program it prints, one a line, which of the programs named to it are not there.
"""

import os
import shutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


class NotInstalled(Exception):
    pass


def find(program: str) -> Path:
    if found := shutil.which(program, path=os.pathsep.join(_places())):
        return Path(found)
    raise NotInstalled(f"`{program}` was not found: install it, or run ./test, which says how.")


def _places() -> list[str]:
    # PostgreSQL's server is on nobody's PATH, and what is in sbin only on root's.
    beside = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    return [
        *os.environ.get("PATH", os.defpath).split(os.pathsep),
        *("/usr/local/sbin", "/usr/sbin"),
        *map(str, beside),
        # What scripts/test-programs.sh has unpacked.
        str(REPOSITORY / ".tools/bin"),
    ]


def _version(place: Path) -> int:
    name = place.parent.name
    return int(name) if name.isdigit() else 0


def main() -> None:
    for program in sys.argv[1:]:
        try:
            find(program)
        except NotInstalled:
            print(program)


if __name__ == "__main__":
    main()
