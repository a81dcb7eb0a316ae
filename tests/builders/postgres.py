"""A real PostgreSQL for tests: one server for the run, in a temporary folder, on a port of 127.0.0.1."""

import atexit
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import psycopg
import pytest

from fairlead_operator.ledger.schema import migrate, open_engine
from tests.builders.ledger import SqliteLedger
from tests.ports import free_ports

START_S = 30.0
TEMPLATE = "template_ledger"
UNPRIVILEGED = ("postgres", "nobody")
_numbers = itertools.count(1)


def programs() -> Path | None:
    """The folder of the newest installed PostgreSQL's programs; None if there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@dataclass(slots=True)
class Server:
    """A running server. It keeps what it is told as a real one does: fsync is on."""

    folder: Path
    port: int
    command: list[str]
    process: subprocess.Popen[bytes] | None = None

    def url(self, database: str) -> str:
        """How a ledger is told of a database."""
        return f"postgresql://ledger@127.0.0.1:{self.port}/{database}"

    def execute(self, command: str, database: str = "postgres") -> None:
        """Run one command outside a transaction."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(command.encode())

    def resume(self) -> None:
        """Start it, and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=self.folder)
        _wait(self)

    def halt(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the process (SIGINT: at once, in order; SIGQUIT: as if it crashed); what it stored stays."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(START_S)
            self.process = None

    def stop(self) -> None:
        """End it and delete all it had."""
        self.halt()
        shutil.rmtree(self.folder, ignore_errors=True)


def start(*settings: str) -> Server:
    """A new server with more settings, such as ``wal_level=replica``. Skips the test where PostgreSQL is missing."""
    bin_folder = programs()
    if bin_folder is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql (make doctor names what tests need)")
    folder = Path(mkdtemp(prefix="fairlead-postgres-"))
    prefix = _as_unprivileged(folder)
    data = folder / "data"
    subprocess.run(
        [*prefix, bin_folder / "initdb", "-D", data, "-U", "ledger", "-A", "trust", "-E", "UTF8", "--locale=C"],
        check=True,
        capture_output=True,
        cwd=folder,
        timeout=START_S,
    )
    (port,) = free_ports(1)
    options = [f"--{setting}" for setting in ("listen_addresses=127.0.0.1", "max_connections=200", *settings)]
    command = [*map(str, (*prefix, bin_folder / "postgres", "-D", data, "-p", port, "-k", folder)), *options]
    server = Server(folder, port, command)
    atexit.register(server.stop)
    server.resume()
    return server


def _as_unprivileged(folder: Path) -> list[str]:
    """PostgreSQL refuses root: the words before a command that run it as somebody else, who then owns the folder."""
    if os.geteuid() != 0:
        return []
    users = {entry.pw_name: entry for entry in pwd.getpwall()}
    user = next(users[name] for name in UNPRIVILEGED if name in users)
    os.chown(folder, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _wait(server: Server) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.process is not None and server.process.poll() is None:
        try:
            psycopg.connect(server.url("postgres")).close()
        except psycopg.OperationalError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError((server.folder / "log").read_text())


@cache
def server() -> Server:
    """The run's server, with a migrated and empty database to copy."""
    made = start()
    made.execute(f"CREATE DATABASE {TEMPLATE}")
    engine = open_engine(made.url(TEMPLATE))
    migrate(engine)
    engine.dispose()
    return made


def fresh_url(*, migrated: bool = True) -> str:
    """The URL of a database of its own, empty."""
    name = f"ledger_{os.getpid()}_{next(_numbers)}"
    server().execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE if migrated else 'template0'}")
    return server().url(name)


def drop(url: str) -> None:
    """Delete a database that ``fresh_url`` made."""
    server().execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")


@dataclass(slots=True)
class PostgresLedger(SqliteLedger):
    """The real transaction on a database of PostgreSQL, without the threads and the HTTP around it."""

    url: str = field(default_factory=fresh_url)

    def __post_init__(self) -> None:
        self.engine = open_engine(self.url)

    def close(self) -> None:
        self.engine.dispose()
        self.folder.cleanup()
        drop(self.url)
