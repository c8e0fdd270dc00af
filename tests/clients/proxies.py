"""nginx and HAProxy as docs/deploying.md says to set them up, in front of servers of a test."""

import os
import re
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from openai import OpenAI

from certificates import Certificate
from programs import REPOSITORY, find
from turnwire_process import free_port

RECIPES = REPOSITORY / "docs/deploying.md"

# The addresses of servers in the recipes.
PLACES = ["10.0.0.1:8080", "10.0.0.2:8080"]

READY_WITHIN_SECONDS = 30

# The SDK's sockets read in one thread and write in another. Python's TLS may lose what is written
# while a session ticket comes in, which in TLS 1.3 is just when the first request leaves.
TLS = "TLSv1.2"


class Proxy:
    """Serves https://localhost, from servers at one or two addresses, until `stop`."""

    def __init__(
        self, program: str, servers: Sequence[str], certificate: Certificate, home: Path
    ) -> None:
        port = free_port()
        self.origin = f"https://localhost:{port}"
        self.base_url = f"{self.origin}/v1"
        self._trust = ssl.create_default_context(cafile=certificate.chain)
        self._log = home / "log"
        start = {"nginx": _nginx, "haproxy": _haproxy}[program]
        command = start(home, port, servers, certificate)
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def client(self, api_key: str = "unused") -> OpenAI:
        return OpenAI(base_url=self.base_url, api_key=api_key, max_retries=0, timeout=120)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        finally:
            self._process.kill()
            self._process.wait()

    def _wait_until_ready(self) -> None:
        give_up = time.monotonic() + READY_WITHIN_SECONDS
        while time.monotonic() < give_up:
            if self._process.poll() is not None:
                raise RuntimeError(f"the proxy ended: {self._log.read_text()}")
            try:
                urllib.request.urlopen(f"{self.origin}/health", timeout=5, context=self._trust)
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        raise TimeoutError(f"the proxy is not ready: {self._log.read_text()}")


def _nginx(
    home: Path, port: int, servers: Sequence[str], certificate: Certificate
) -> list[str | Path]:
    recipe = _recipe(
        "nginx",
        servers,
        {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "/etc/ssl/turnwire/cert.pem": str(certificate.chain),
            "/etc/ssl/turnwire/key.pem": str(certificate.key),
        },
    )
    # What a distribution's nginx.conf has around it.
    main = f"""
        daemon off;
        pid {home}/pid;
        error_log stderr;
        {"user root;" if os.geteuid() == 0 else ""}
        events {{}}
        http {{
            access_log off;
            ssl_protocols {TLS};
            {_nginx_temporaries(home)}
            {recipe}
        }}
    """
    path = home / "nginx.conf"
    path.write_text(main)
    return [find("nginx"), "-p", home, "-e", "stderr", "-c", path]


def _nginx_temporaries(home: Path) -> str:
    kinds = ["client_body", "proxy", "fastcgi", "scgi", "uwsgi"]
    return " ".join(f"{kind}_temp_path {home}/{kind};" for kind in kinds)


def _haproxy(
    home: Path, port: int, servers: Sequence[str], certificate: Certificate
) -> list[str | Path]:
    both = home / "turnwire.pem"
    both.write_bytes(certificate.chain.read_bytes() + certificate.key.read_bytes())
    recipe = _recipe(
        "haproxy",
        servers,
        {
            "bind :443 ssl": f"bind 127.0.0.1:{port} ssl ssl-max-ver {TLS}",
            "/etc/haproxy/turnwire.pem": str(both),
        },
    )
    path = home / "haproxy.cfg"
    path.write_text(recipe)
    return [find("haproxy"), "-db", "-f", path]


def _recipe(language: str, servers: Sequence[str], fill_in: dict[str, str]) -> str:
    """The only block of this language, as a reader who follows it would have it."""
    [recipe] = re.findall(rf"^```{language}\n(.*?)^```$", RECIPES.read_text(), re.M | re.S)
    for place in PLACES[len(servers) :]:
        lines = recipe.splitlines(keepends=True)
        recipe = "".join(line for line in lines if place not in line)
    for written, actual in {**dict(zip(PLACES, servers, strict=False)), **fill_in}.items():
        assert recipe.count(written) == 1, f"{written} in the recipe of {language}"
        recipe = recipe.replace(written, actual)
    return recipe
