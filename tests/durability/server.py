"""One life of a `turnwire serve`, from its start to a death that it does not see coming."""

import os
import re
import subprocess
import time
from pathlib import Path
from typing import ClassVar

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("TURNWIRE_BIN", REPOSITORY / "target/release/turnwire"))
SCRIPT = Path(__file__).with_name("script.toml")

READY_WITHIN_SECONDS = 60


class NotStarted(Exception):
    """The server ended before it was ready; holds what it said."""


class Server:
    """Started at once; ready after `wait_until_ready`. `log` holds what it has said."""

    alive: ClassVar[set["Server"]] = set()

    def __init__(
        self,
        store: str,
        log: Path,
        *flags: str,
        environment: dict[str, str] | None = None,
        secret: Path | None = None,
    ):
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    BINARY,
                    "serve",
                    "--listen=127.0.0.1:0",
                    f"--engine=scripted:{SCRIPT}",
                    f"--store={store}",
                    f"--secret-file={secret or log.with_suffix('.secret')}",
                    *flags,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
            )
        self.port = 0
        Server.alive.add(self)

    def wait_until_ready(self) -> "Server":
        give_up = time.monotonic() + READY_WITHIN_SECONDS
        while time.monotonic() < give_up:
            ended = self.process.poll() is not None
            said = self.said()
            if address := re.search(r"listening address=127\.0\.0\.1:(\d+)", said):
                self.port = int(address[1])
                if "ready model=" in said:
                    return self
            if ended:
                raise NotStarted(said)
            time.sleep(0.001)
        self.kill()
        raise NotStarted(f"not ready after {READY_WITHIN_SECONDS} s: {self.said()}")

    def said(self) -> str:
        return self.log.read_text()

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        self.process.kill()
        self.process.wait()
        Server.alive.discard(self)

    @staticmethod
    def kill_all() -> None:
        for server in list(Server.alive):
            server.kill()

    def stop(self) -> int:
        """Asks it to end and returns its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(timeout=20)
        finally:
            self.kill()
