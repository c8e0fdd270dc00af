"""A real PostgreSQL server in a temporary directory, which can also be stopped like by a crash.

Run as a program it serves as long as the command that it is given runs, which finds its address in
TURNWIRE_TEST_POSTGRES.
"""

import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from programs import NotInstalled, find

# Making and recovering a small cluster takes a second or two on a busy machine.
READY_WITHIN_SECONDS = 60

# PostgreSQL refuses to run as root, and wants a user who has a name.
UNPRIVILEGED = "nobody"

USER = "turnwire"

# Every test makes databases of its own, each with a pool or two.
MAX_CONNECTIONS = 200


class PostgresServer:
    """On loopback at one port for its whole life; `url` is its first database, as a superuser.

    It syncs like a server that matters. It runs once it is made, and is gone after `close`.
    """

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="turnwire-postgres-"))
        self._data = self.home / "data"
        self.log = self.home / "log"
        self._password = secrets.token_hex(16)
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        try:
            self._make_cluster()
            self.start()
            self.url = self.new_database()
        except BaseException:
            self.close()
            raise

    def new_database(self) -> str:
        """The address of a database that is empty and nobody else's."""
        self._databases += 1
        name = f"{USER}_{self._databases}"
        create = ["--command", f"CREATE DATABASE {name}", self._address("postgres")]
        psql = [find("psql"), "--no-psqlrc", "--quiet", *create]
        subprocess.run(psql, check=True, stdin=subprocess.DEVNULL)
        return self._address(name)

    def start(self) -> None:
        """Returns once it takes connections; what a crash has left is recovered by then."""
        assert self._process is None, "it runs already"
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *_without_root(),
                    *(find("postgres"), "-D", self._data, "-p", str(self._port)),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
                    *("-c", "fsync=on", "-c", f"max_connections={MAX_CONNECTIONS}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        give_up = time.monotonic() + READY_WITHIN_SECONDS
        while not self._is_ready(self._process.pid):
            if self._process.poll() is not None:
                raise RuntimeError(f"PostgreSQL ended: {self.log.read_text()}")
            if time.monotonic() > give_up:
                raise TimeoutError(f"PostgreSQL is not ready: {self.log.read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Rolls back what is open and writes all down."""
        self._end(signal.SIGINT)

    def stop_immediately(self) -> None:
        """Leaves everything as it is, like a crash; the next start recovers."""
        self._end(signal.SIGQUIT)

    def close(self) -> None:
        if self._process is not None:
            self.stop_immediately()
        shutil.rmtree(self.home, ignore_errors=True)

    def _make_cluster(self) -> None:
        password_file = self.home / "password"
        password_file.write_text(self._password)
        if os.geteuid() == 0:
            account = pwd.getpwnam(UNPRIVILEGED)
            for path in (self.home, password_file):
                os.chown(path, account.pw_uid, account.pw_gid)
        made = subprocess.run(
            [
                *_without_root(),
                *(find("initdb"), "-D", self._data, "--username", USER),
                *("--auth", "scram-sha-256", "--pwfile", password_file),
                *("--encoding", "UTF8", "--no-locale"),
                # Nothing is lost yet if the machine fails here.
                "--no-sync",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stdout}{made.stderr}")

    def _address(self, database: str) -> str:
        return f"postgres://{USER}:{self._password}@127.0.0.1:{self._port}/{database}"

    def _is_ready(self, pid: int) -> bool:
        """What the server itself tells pg_ctl: its pid, and in the eighth line how far it is."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _end(self, with_signal: signal.Signals) -> None:
        assert self._process is not None, "it does not run"
        self._process.send_signal(with_signal)
        try:
            self._process.wait(timeout=30)
        finally:
            self._process.kill()
            self._process.wait()
            self._process = None


def _without_root() -> list[str]:
    """What to put before a program of PostgreSQL where the tests run as root."""
    if os.geteuid() != 0:
        return []
    # The clone and the temporary directory may lie where only root may look. Without the last flag
    # the kernel would say so and still deny it when asked by access(2), which initdb believes.
    reach = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    reach.append("--securebits=+no_setuid_fixup")
    account = pwd.getpwnam(UNPRIVILEGED)
    who = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    return [str(find("setpriv")), *who, *reach, "--"]


def _free_port() -> int:
    # Below the ports that the system gives to clients: while the server is down, none of those
    # who try to reach it can be given its port and connect to itself.
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no port is free between 20000 and 32000")


def main() -> int:
    # So that whoever ends this program ends the server as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        server = PostgresServer()
    except NotInstalled as missing:
        print(missing, file=sys.stderr)
        return 1
    try:
        environment = {**os.environ, "TURNWIRE_TEST_POSTGRES": server.url}
        return subprocess.run(sys.argv[1:], env=environment).returncode
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        server.close()


if __name__ == "__main__":
    sys.exit(main())
