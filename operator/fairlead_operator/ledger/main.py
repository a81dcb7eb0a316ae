"""``fairlead-ledger``: builds the ledger from its settings and runs it until SIGTERM; backs it up and restores it."""

import argparse
import asyncio
import gc
import logging
import os
import socket
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import uvicorn
import uvloop

from fairlead_operator import logs
from fairlead_operator.clock import SystemClock
from fairlead_operator.ledger import backup, catalog
from fairlead_operator.ledger.app import Rules, Service
from fairlead_operator.ledger.metrics import Metrics
from fairlead_operator.ledger.schema import NewerSchemaError
from fairlead_operator.ledger.sqlite import InUseError
from fairlead_operator.ledger.store import Store
from fairlead_operator.tokens import ClusterKeys, FileKeys, Verifier

STOP_S = 10
DATABASE = "/var/lib/fairlead/ledger.db"
LISTEN = "0.0.0.0:8080"
DESCRIPTION = "Budgets, leases, usage and costs. Without a command it serves them until SIGTERM."
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the ledger is told by its environment and arguments. ``file`` is of backup and restore."""

    database: str
    host: str
    port: int
    rules: Rules
    keys: FileKeys | ClusterKeys
    synchronous_standby: bool = False
    command: Literal["", "backup", "restore"] = ""
    file: Path = Path()


def main() -> None:
    """Run the program."""
    logs.set_up()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    settings = read_settings(sys.argv[1:], os.environ)
    try:
        match settings.command:
            case "backup":
                log.info("%s", backup.back_up(settings.database, settings.file))
            case "restore":
                log.info("%s", backup.restore(settings.database, settings.file, settings.rules.ttl_ms))
            case _:
                uvloop.run(serve(settings))
    except (NewerSchemaError, InUseError, backup.BackupError) as error:
        sys.exit(f"fairlead-ledger: {error}")


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from arguments, then the environment, then defaults; exits with a message for what cannot be used."""
    parser = _parser(environment)
    options = parser.parse_args(arguments)
    host, _, port = options.listen.rpartition(":")
    if not host or not port.isdecimal():
        parser.error(f"--listen {options.listen} is not HOST:PORT, such as 127.0.0.1:8080")
    if bool(options.jwks) != bool(options.issuer):
        parser.error("--jwks and --issuer belong together: give both or none")
    if "://" in options.database and not options.database.startswith(("postgresql://", "postgres://")):
        parser.error("--database is a file's path, or a URL that begins with postgresql://")
    if bool(options.command) != bool(options.file):
        parser.error(f"{options.command} needs the file to write or read")
    platform = environment.get("FAIRLEAD_PLATFORM_NAMESPACES", "").split(",")
    rules = Rules(
        release=environment.get("FAIRLEAD_NAMESPACE", "fairlead"),
        platform=frozenset(name.strip() for name in platform if name.strip()),
    )
    return Settings(
        database=options.database,
        host=host,
        port=int(port),
        rules=rules,
        keys=FileKeys(options.jwks, options.issuer) if options.jwks else ClusterKeys(),
        synchronous_standby=environment.get("FAIRLEAD_SYNCHRONOUS_STANDBY", "") == "true",
        command=options.command,
        file=options.file or Path(),
    )


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fairlead-ledger", description=DESCRIPTION)
    database = environment.get("FAIRLEAD_DATABASE", DATABASE)
    text = f"a file of SQLite, or postgresql://… (default: $FAIRLEAD_DATABASE, or {DATABASE})"
    parser.add_argument("--database", default=database, metavar="FILE|URL", help=text)
    text = f"address of the HTTP interface while it serves (default {LISTEN})"
    parser.add_argument("--listen", default=LISTEN, metavar="HOST:PORT", help=text)
    text = "verify tokens with the keys of this file, not the cluster's"
    parser.add_argument("--jwks", type=Path, metavar="FILE", help=text)
    parser.add_argument("--issuer", default="", help="the tokens' issuer; needed with --jwks")
    text = "backup: copy the SQLite database to FILE while it is served; restore: put FILE in its place while it is not"
    parser.add_argument(
        "command", nargs="?", default="", choices=["", "backup", "restore"], metavar="backup|restore", help=text
    )
    text = "what backup writes and restore reads, on the ledger's machine"
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help=text)
    return parser


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; what was taken is committed and answered before it ends."""
    metrics = Metrics()
    recovery_ms = None if settings.synchronous_standby else settings.rules.ttl_ms
    store = await asyncio.to_thread(Store, settings.database, metrics.transactions.observe, recovery_ms=recovery_ms)
    try:
        clock = SystemClock()
        epoch = await asyncio.wrap_future(store.submit(lambda c: catalog.epoch(c, new_epoch)))
        service = Service(store, Verifier(settings.keys, clock), clock, settings.rules, metrics)
        listener = socket.create_server((settings.host, settings.port), backlog=512)
        host, port = listener.getsockname()[:2]
        log.info("ledger %s listens on http://%s:%d, database %s", epoch, host, port, store.name)
        config = uvicorn.Config(
            service.app(),
            log_config=None,
            access_log=False,
            proxy_headers=False,
            lifespan="on",
            timeout_graceful_shutdown=STOP_S,
        )
        _freeze()
        await uvicorn.Server(config).serve(sockets=[listener])
    finally:
        await asyncio.to_thread(store.close)


def _freeze() -> None:
    """What is there now stays: the collector need not walk it, which took a tenth of a large message."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def new_epoch() -> str:
    """The name of a history."""
    return f"e{uuid.uuid4().hex[:8]}"


if __name__ == "__main__":
    main()
