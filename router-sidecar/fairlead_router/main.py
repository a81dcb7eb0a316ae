"""Entry point: builds everything, runs until SIGTERM, then ends what is under way and says goodbye to the ledger."""

import asyncio
import contextlib
import gc
import json
import logging
import secrets
import signal
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import uvloop
from prometheus_client import CollectorRegistry

from fairlead_router.admin import Admin, engine_alive
from fairlead_router.app import Place, Router, Times
from fairlead_router.config import WAIT_S, Configuration, Store, read_files
from fairlead_router.control import POLL_SLACK_S, LedgerPeer, NoLedger, Peer, Token
from fairlead_router.drain import Drain
from fairlead_router.identity import Verifier
from fairlead_router.lease import Clocks, Session, Transport
from fairlead_router.local_lease import LocalLease
from fairlead_router.server import Application, Client, Clients, Limits
from fairlead_router.settings import Settings, from_process
from fairlead_router.telemetry import Telemetry
from fairlead_router.upstream import Patience, Reply, Upstreams, fetch, request_head

log = logging.getLogger(__name__)

_TICK_S: Final = 0.5
_CLOSE_S: Final = 5.0
_CONTEXT_POLL_S: Final = 5.0
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@dataclass(frozen=True, slots=True)
class Parts:
    """What main has built."""

    settings: Settings
    router: Router
    session: Session
    configuration: Configuration
    admin: Admin
    upstreams: Upstreams
    hop_token: Token
    operator: Peer | None
    store: Store | None


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, Any] = {"ts": at, "level": record.levelname.lower(), "message": record.getMessage()}
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def build(settings: Settings) -> Parts:
    """The composition root."""
    now = asyncio.get_running_loop().time
    place = Place(f"{settings.namespace}/{settings.pod}", settings.pool, settings.engine)
    verifier = Verifier(time.time)
    patience = Patience(settings.first_byte_s, settings.between_bytes_s)
    telemetry, upstreams = Telemetry(), Upstreams(now, patience)
    id_base = secrets.randbits(24) << 24
    router = Router(
        place=place,
        times=Times(now, time.time),
        limits=Limits(),
        verifier=verifier,
        upstreams=upstreams,
        telemetry=telemetry,
        id_base=id_base,
    )
    session = Session(
        transport=transport(settings, now),
        wallet=router.wallet,
        clocks=Clocks(now, lambda: time.clock_gettime(time.CLOCK_BOOTTIME), time.time),
        new_id=lambda: uuid.uuid4().hex,
        usage=router.book.take,
        report=lambda result: telemetry.renewals.add((result,)),
    )
    router.session = session

    def apply(index: Any) -> None:
        router.configure(index)
        session.kick()

    configuration = Configuration(apply, router.set_endpoints, now)
    registry = CollectorRegistry(auto_describe=False)
    _add_gauges(telemetry, router, configuration)
    registry.register(telemetry)
    operator = Peer(settings.operator, Token(settings.tokens / "control", now), now) if settings.operator else None
    return Parts(
        settings=settings,
        router=router,
        session=session,
        configuration=configuration,
        admin=Admin(router, configuration, verifier, registry, now()),
        upstreams=upstreams,
        hop_token=Token(settings.tokens / "router", now),
        operator=operator,
        store=Store(settings.state) if settings.state is not None else None,
    )


def transport(settings: Settings, now: Callable[[], float]) -> Transport:
    """How the session reaches a ledger."""
    if settings.local_lease is not None:
        limits = msgspec.json.decode(settings.local_lease.read_bytes(), type=dict[str, int])
        return LocalLease(limits, lambda: int(time.time() * 1000))
    if settings.ledger:
        return LedgerPeer(Peer(settings.ledger, Token(settings.tokens / "ledger", now), now))
    return NoLedger()


def _add_gauges(telemetry: Telemetry, router: Router, configuration: Configuration) -> None:
    telemetry.gauge("fairlead_requests_running", "Requests sent and not answered yet.", ("pool",), router.running)
    telemetry.gauge("fairlead_requests_waiting", "Requests that wait for a replica.", ("pool",), router.waiting)
    telemetry.gauge(
        "fairlead_config_age_seconds",
        "Since the operator last confirmed the configuration.",
        (),
        lambda: [((), configuration.age_s())],
    )


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    parts = build(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    _load(parts)
    clients = Clients(Limits(), loop.time)
    admins = Clients(Limits(), loop.time)
    requests = await _listen(parts.router, clients, settings.listen, settings.port)
    admin = await _listen(parts.admin, admins, settings.listen, settings.admin_port)
    drain = await _listen_for_drain(parts)
    _freeze()
    log.info("listening", extra={"event": "Listening", "port": settings.port, "pool": settings.pool})
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(work) for work in _background(parts, (clients, admins))]
        await stop.wait()
        requests.close()
        clients.close()
        await _finish(clients, settings.drain_timeout_s)
        for task in running:
            task.cancel()
    told = await parts.session.close(_CLOSE_S)
    log.info("stopped", extra={"event": "Stopped", "ledger_told": told, "cut": clients.busy()})
    admin.close()
    if drain is not None:
        drain.close()
    parts.upstreams.close()


def _load(parts: Parts) -> None:
    """The configuration to start with: a file, or what was in use before."""
    settings = parts.settings
    if settings.config is not None:
        parts.configuration.take(read_files(settings.config, settings.endpoints))
    elif parts.store is not None:
        kept = parts.store.load()
        if kept is not None:
            parts.configuration.take(kept)


async def _listen(app: Application, clients: Clients, host: str, port: int) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: Client(app, Limits(), clients), host, port, backlog=4096)


async def _listen_for_drain(parts: Parts) -> asyncio.Server | None:
    if not parts.settings.drain:
        return None
    router = parts.router
    drain = Drain(
        begin=router.drain,
        end=router.resume,
        running=lambda: router.own_engine.value,
        alive=lambda: engine_alive(router),
        timeout_s=parts.settings.drain_timeout_s,
        now=router.now,
    )
    return await drain.listen(parts.settings.drain)


def _background(parts: Parts, clients: tuple[Clients, ...]) -> list[Any]:
    """What runs beside the requests."""
    work: list[Any] = [_tick(parts, clients), parts.session.run()]
    if parts.operator is not None:
        operator = parts.operator

        async def poll(path: str) -> Reply:
            return await operator.call("GET", path, b"", WAIT_S + POLL_SLACK_S)

        work.append(parts.configuration.follow(poll, parts.store))
    if parts.settings.engine:
        work.append(_learn_context(parts.router))
    return work


async def _tick(parts: Parts, clients: tuple[Clients, ...]) -> None:
    """Deadlines, idle connections, ejected replicas, rotated tokens."""
    while True:
        for group in clients:
            group.check()
        parts.upstreams.check()
        parts.router.advance()
        parts.router.hop_token = parts.hop_token.get()
        await asyncio.sleep(_TICK_S)


async def _learn_context(router: Router) -> None:
    """Ask this pod's engine for its context length until it says."""

    class _Model(msgspec.Struct):
        max_model_len: int = 0

    class _Models(msgspec.Struct):
        data: list[_Model] = []

    head = request_head("GET", "/v1/models", "engine", (), 0)
    while not router.max_context_tokens:
        with contextlib.suppress(OSError, TimeoutError, msgspec.DecodeError):
            reply = await fetch(router.engine_pool(), head, b"", _CONTEXT_POLL_S)
            models = msgspec.json.decode(reply.body, type=_Models).data
            router.max_context_tokens = max((model.max_model_len for model in models), default=0)
        await asyncio.sleep(_CONTEXT_POLL_S)


async def _finish(clients: Clients, timeout_s: float) -> None:
    """Wait for the requests under way."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while clients.busy():  # noqa: ASYNC110 - an event for this would be kept up on every request's way
                await asyncio.sleep(_TICK_S / 10)


def _freeze() -> None:
    """What is there now stays: keep the collector from walking it, and let it run less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def main() -> None:
    """The command ``fairlead-router``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    uvloop.run(serve(from_process(sys.argv[1:])))


if __name__ == "__main__":
    main()
