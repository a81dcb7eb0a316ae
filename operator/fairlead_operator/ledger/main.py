"""``fairlead-ledger``: builds the ledger from its settings and runs it until SIGTERM."""

import argparse
import asyncio
import logging
import os
import socket
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from fairlead_operator import logs
from fairlead_operator.clock import SystemClock
from fairlead_operator.ledger import catalog
from fairlead_operator.ledger.app import Rules, Service
from fairlead_operator.ledger.metrics import Metrics
from fairlead_operator.ledger.schema import NewerSchemaError
from fairlead_operator.ledger.store import Store
from fairlead_operator.tokens import ClusterKeys, FileKeys, Verifier

STOP_S = 10
SWITCH_S = 0.0005
"""The writer lets go of the interpreter at each statement and must not wait 5 ms for the event loop to give it back."""
DATABASE = "/var/lib/fairlead/ledger.db"
LISTEN = "0.0.0.0:8080"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the ledger is told by its environment and arguments."""

    database: Path
    host: str
    port: int
    rules: Rules
    keys: FileKeys | ClusterKeys


def main() -> None:
    """Run the program."""
    logs.set_up()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    sys.setswitchinterval(SWITCH_S)
    try:
        asyncio.run(serve(read_settings(sys.argv[1:], os.environ)))
    except NewerSchemaError as error:
        sys.exit(f"fairlead-ledger: {error}")


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from arguments, then the environment, then defaults; exits with a message for what cannot be used."""
    parser = argparse.ArgumentParser(prog="fairlead-ledger", description="Budgets, leases, usage and costs.")
    parser.add_argument("--database", type=Path, default=Path(environment.get("FAIRLEAD_DATABASE", DATABASE)))
    parser.add_argument("--listen", default=LISTEN, metavar="HOST:PORT", help=f"default {LISTEN}")
    parser.add_argument("--jwks", type=Path, help="verify tokens with the keys of this file, not the cluster's")
    parser.add_argument("--issuer", default="", help="the tokens' issuer; needed with --jwks")
    options = parser.parse_args(arguments)
    host, _, port = options.listen.rpartition(":")
    if not host or not port.isdecimal():
        parser.error(f"--listen {options.listen} is not HOST:PORT, such as 127.0.0.1:8080")
    if bool(options.jwks) != bool(options.issuer):
        parser.error("--jwks and --issuer belong together: give both or none")
    platform = environment.get("FAIRLEAD_PLATFORM_NAMESPACES", "").split(",")
    rules = Rules(
        release=environment.get("FAIRLEAD_NAMESPACE", "fairlead"),
        platform=frozenset(name.strip() for name in platform if name.strip()),
    )
    keys = FileKeys(options.jwks, options.issuer) if options.jwks else ClusterKeys()
    return Settings(options.database, host, int(port), rules, keys)


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; what was taken is committed and answered before it ends."""
    metrics = Metrics()
    store = await asyncio.to_thread(Store, settings.database, metrics.transactions.observe)
    try:
        clock = SystemClock()
        epoch = await asyncio.wrap_future(store.submit(lambda c: catalog.epoch(c, lambda: f"e{uuid.uuid4().hex[:8]}")))
        service = Service(store, Verifier(settings.keys, clock), clock, epoch, settings.rules, metrics)
        listener = socket.create_server((settings.host, settings.port), backlog=512)
        host, port = listener.getsockname()[:2]
        log.info("ledger %s listens on http://%s:%d, database %s", epoch, host, port, settings.database)
        config = uvicorn.Config(
            service.app(), log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=STOP_S
        )
        await uvicorn.Server(config).serve(sockets=[listener])
    finally:
        await asyncio.to_thread(store.close)


if __name__ == "__main__":
    main()
