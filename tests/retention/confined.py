"""A server whose every place to write is one directory, and everything that it leaves there."""

import contextlib
import os
import signal
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from marker import Marker
from programs import find
from search import Hit, search_bytes, search_tree
from turnwire_process import Turnwire

# What a process asks for to learn where to write.
PLACES = [
    *("HOME", "TMPDIR", "TMP", "TEMP", "SQLITE_TMPDIR", "TURNWIRE_CACHE"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"),
]

SHARED_MEMORY = Path("/dev/shm")

# What is traced: all that can write, that names a file, and that switches dumps off.
TRACED = [
    *("%file", "write", "writev", "pwrite64", "pwritev", "pwritev2", "sendto", "sendmsg"),
    *("sendmmsg", "sendfile", "splice", "vmsplice", "tee", "copy_file_range", "mmap"),
    *("process_vm_writev", "io_uring_setup", "io_submit", "memfd_create", "prctl"),
]

# Whole requests of the agent, and whole answers.
TRACED_BYTES = 1 << 20

# A tracer has to write down what it has seen after the server is gone.
TRACED_WITHIN_SECONDS = 60


@dataclass(frozen=True)
class Engine:
    """What `--engine` says, the name of the model, and where the engine listens if it does."""

    spec: str
    model: str
    address: str | None = None
    flags: tuple[str, ...] = ()
    is_slow: bool = False


class Confined:
    """Runs in `directory`, which must be empty. The log is there too, at its finest."""

    def __init__(
        self,
        directory: Path,
        engine: Engine,
        *flags: str,
        core_dumps: bool = False,
        trace: Path | None = None,
    ) -> None:
        self.directory, self.trace = directory, trace
        self._shared_before = _names(SHARED_MEMORY)
        # Crashes of a server that may dump leave the largest file there can be.
        limit = "$(ulimit -Hc)" if core_dumps else "0"
        under = ["sh", "-c", f'ulimit -Sc {limit} && exec "$@"', "sh"]
        if trace:
            # The tracer is not in between: signals for the process that was started reach it.
            under = [*under, *tracing(trace), "-D"]
        self.server = Turnwire(
            engine.spec,
            directory / "log",
            *engine.flags,
            *flags,
            under=under,
            directory=directory,
            environment={
                **{name: str(directory) for name in PLACES},
                "RUST_LOG": "trace",
                "RUST_BACKTRACE": "full",
            },
        )

    @property
    def origin(self) -> str:
        return self.server.origin

    def search_open_files(self, marker: Marker) -> list[Hit]:
        """Files that have no name, or lie elsewhere, as long as the server has them open to write.

        A process that is not dumpable shows them to root only.
        """
        hits = []
        process = Path(f"/proc/{self.server.process.pid}")
        if not os.access(process / "fd", os.R_OK):
            return hits
        for opened in (process / "fd").iterdir():
            # One of a connection may be closed meanwhile.
            with contextlib.suppress(FileNotFoundError):
                flags = (process / "fdinfo" / opened.name).read_text().split("flags:")[1].split()[0]
                is_written = int(flags, 8) & (os.O_WRONLY | os.O_RDWR)
                if is_written and stat.S_ISREG(opened.stat().st_mode):
                    hits += search_bytes(str(opened.readlink()), opened.read_bytes(), marker)
        return hits

    def end(self, with_signal: signal.Signals) -> None:
        """Ends it like this, and waits until all that it has left is there."""
        process = self.server.process
        process.send_signal(with_signal)
        process.wait(timeout=TRACED_WITHIN_SECONDS)
        give_up = time.monotonic() + TRACED_WITHIN_SECONDS
        while self.trace and not _is_complete(self.trace, process.pid):
            assert time.monotonic() < give_up, f"{self.trace} has no end"
            time.sleep(0.05)

    def search(self, marker: Marker) -> list[Hit]:
        """What it has left, in its directory and in shared memory."""
        hits = search_tree(self.directory, marker)
        for name in _names(SHARED_MEMORY) - self._shared_before:
            path = SHARED_MEMORY / name
            hits += search_bytes(f"the name {path}", name.encode(), marker)
            if path.is_file() and path.stat().st_uid == os.getuid():
                hits += search_bytes(str(path), path.read_bytes(), marker)
        return hits

    def close(self) -> None:
        self.server.process.kill()
        self.server.process.wait()


def tracing(trace: Path) -> list[str]:
    """What to put before a command."""
    words = ["-f", "-qq", "--seccomp-bpf", "-yy", "-xx", "-s", str(TRACED_BYTES)]
    return [str(find("strace")), *words, "-e", f"trace={','.join(TRACED)}", "-o", str(trace)]


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} if directory.is_dir() else set()


def _is_complete(trace: Path, pid: int) -> bool:
    """Whether the tracer has written down the end of the process."""
    with trace.open("rb") as file:
        file.seek(max(0, trace.stat().st_size - 4096))
        tail = file.read().decode()
    ends = [line.split(maxsplit=1) for line in tail.splitlines() if "+++ " in line]
    return any(end[0] == str(pid) for end in ends)
