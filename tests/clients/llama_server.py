"""llama.cpp's own server of /v1/chat/completions, with a real model.

Run as a program it serves; imported it starts itself.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

# Loading the smallest model takes a second or two on a busy machine.
READY_WITHIN_SECONDS = 120


class LlamaServer:
    """Started on a free port with the model that TURNWIRE_TEST_MODEL names."""

    def __init__(self, log: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        model = os.environ["TURNWIRE_TEST_MODEL"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, __file__, model, str(port)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )
        give_up = time.monotonic() + READY_WITHIN_SECONDS
        while time.monotonic() < give_up:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {log.read_text()}")
            try:
                urllib.request.urlopen(f"{self.base_url}/models", timeout=5)
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        self.stop()
        raise TimeoutError(f"the server is not ready: {log.read_text()}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def _serve(model: str, port: int) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx = 4096
    params.n_parallel = 2
    params.use_jinja = True
    # Its threads spin; the tests run on two cores.
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    # Ends with the tests, however they end.
    sys.stdin.read()
    del server


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
