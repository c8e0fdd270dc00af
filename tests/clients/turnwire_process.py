"""A running `turnwire serve`, as a user would start it."""

import os
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("TURNWIRE_BIN", REPOSITORY / "target/release/turnwire"))

# A cold start may fetch the default model first.
READY_WITHIN_SECONDS = 180

# Whether it is the right one is for the tests to judge, not for the wait until it is there.
ANY_CERTIFICATE = ssl.create_default_context()
ANY_CERTIFICATE.check_hostname = False
ANY_CERTIFICATE.verify_mode = ssl.CERT_NONE


class Turnwire:
    """Started on a free port; `log` holds what it has written so far.

    `under` is a program, with its arguments, that becomes or watches the server.
    """

    def __init__(
        self,
        engine: str,
        log: Path,
        *flags: str,
        under: Sequence[str | Path] = (),
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ):
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        scheme = "https" if "--tls-cert" in flags else "http"
        self.origin = f"{scheme}://{self.address}"
        self.base_url = f"{self.origin}/v1"
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*under, BINARY, "serve", "--listen", self.address, "--engine", engine, *flags],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={
                    **os.environ,
                    "TURNWIRE_SECRET_FILE": str(log.with_suffix(".secret")),
                    "TURNWIRE_STORE": f"sqlite:{log.with_suffix('.db')}",
                    **(environment or {}),
                },
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self) -> None:
        give_up = time.monotonic() + READY_WITHIN_SECONDS
        while time.monotonic() < give_up:
            if self.process.poll() is not None:
                raise RuntimeError(f"turnwire ended: {self.log.read_text()}")
            try:
                urllib.request.urlopen(f"{self.origin}/health", timeout=5, context=ANY_CERTIFICATE)
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        raise TimeoutError(f"turnwire is not ready: {self.log.read_text()}")

    def stop(self) -> int:
        """Asks it to end and returns its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(timeout=10)
        finally:
            self.process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
