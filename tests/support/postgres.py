"""A PostgreSQL server on loopback, of this machine's own programs, in a temporary folder."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

MISSING = (
    "NO POSTGRESQL SERVER FOUND: search on a database is not tested here. "
    "Debian: apt-get install postgresql"
)


def programs() -> Path | None:
    """The folder with initdb and pg_ctl; None where no server is installed."""
    found = [path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve().parent)
    return next((path for path in reversed(found) if (path / "pg_ctl").exists()), None)


class Server:
    """Started and stopped at will; its data stay.

    Args:
      folder: of its own.
    """

    def __init__(self, folder: Path):
        where = programs()
        assert where is not None
        self._programs, self._data = where, folder / "data"
        # It refuses to run as root.
        self._user = {"user": "nobody", "extra_groups": []} if os.getuid() == 0 else {}
        if self._user:
            shutil.chown(folder, "nobody")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        # --no-sync: only here, while the empty folder is made. Commits are flushed as ever.
        self._call("initdb", "--auth=trust", "--username=test", "--no-sync")

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://test@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self._port} -k ''"
        log = self._data.parent / "log"
        self._call("pg_ctl", "start", "--wait", "--timeout=60", f"--log={log}", "-o", options)

    def stop(self) -> None:
        """At once: connections are cut."""
        self._call("pg_ctl", "stop", "--wait", "--mode=fast")

    def _call(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, f"--pgdata={self._data}", *arguments],
            check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/",
            timeout=120, **self._user,
        )  # fmt: skip


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """A server that runs, until the end."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):  # it may be stopped
            server.stop()
        shutil.rmtree(folder)
