"""Entry point: builds everything, runs until SIGTERM, then ends what is under way and says goodbye to the ledger."""

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import secrets
import signal
import ssl
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector

from fairlead_router import exchange
from fairlead_router.access_log import AccessLog
from fairlead_router.admin import Admin
from fairlead_router.app import Place, Router, Times
from fairlead_router.config import WAIT_S, Configuration, Store, read_files
from fairlead_router.contract import DrainReport
from fairlead_router.control import POLL_SLACK_S, LedgerPeer, NoLedger, Peer, Token, address
from fairlead_router.drafting import show_drafting
from fairlead_router.drain import Drain
from fairlead_router.engine_watch import EngineWatch
from fairlead_router.identity import Verifier
from fairlead_router.journal import LEFT, OPEN_ENTRIES, STATE, SWEPT, Journal
from fairlead_router.lease import Clocks, Session, Transport
from fairlead_router.local_lease import LocalLease
from fairlead_router.outage import (
    configuration_words,
    identity_words,
    journal_words,
    ledger_words,
    no_ledger_words,
    replicas_words,
    router_token_words,
    untold_words,
)
from fairlead_router.policy import ConfigError
from fairlead_router.server import Application, Clients, Limits, listener
from fairlead_router.settings import SettingError, Settings, from_process
from fairlead_router.structs import is_compiled
from fairlead_router.successor import Successor
from fairlead_router.telemetry import (
    ACCESS_LOG_DROPPED,
    ADAPTER_LOADED,
    BODIES_BYTES,
    CONFIG_AGE,
    CONFIG_INFO,
    CONNECTIONS,
    ENGINE_READY,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    Telemetry,
)
from fairlead_router.tracing import TracingUnavailableError, open_tracing
from fairlead_router.upstream import Patience, Reply, Upstreams

log = logging.getLogger(__name__)

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_TICK_S: Final = 0.5
_CLOSE_S: Final = 5.0
_PART_S: Final = 2.0
"""After SIGTERM clients are still served for so long, those too that have not yet seen this pod leave its Service."""
_RENEW_S: Final = 30.0
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""mallopt(3)."""
_LARGE_BYTES: Final = 4 * 1024 * 1024
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
    telemetry: Telemetry
    verifier: Verifier
    hop_token: Token
    operator: Peer | None
    store: Store | None
    successor: Successor | None


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
    now = time.monotonic  # the loop's own time has steps of a millisecond
    place = Place(f"{settings.namespace}/{settings.pod}", settings.pool, settings.engine)
    verifier = Verifier(time.time)
    patience = Patience(settings.first_byte_s, settings.between_bytes_s)
    telemetry, upstreams = Telemetry(), Upstreams(now, patience)
    router = Router(
        place=place,
        times=Times(now, time.time),
        limits=Limits(),
        verifier=verifier,
        upstreams=upstreams,
        telemetry=telemetry,
        id_base=secrets.randbits(24) << 24,
    )
    session, successor = _open_session(settings, router, now)
    router.session = session

    def apply(index: Any) -> None:
        router.configure(index)
        session.kick()

    configuration = Configuration(
        apply, router.set_endpoints, now, lambda reason: telemetry.config_rejected.add((reason,))
    )
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    if settings.access_log:
        router.access = AccessLog(settings.access_log, asyncio.get_running_loop())
    if settings.otlp_endpoint:
        router.tracing = open_tracing(settings.otlp_endpoint, settings.trace_share, place.pod)
    _add_gauges(telemetry, router, configuration)
    _add_journal_gauges(telemetry, router, successor)
    operator = Peer(settings.operator, Token(settings.tokens / "control", now), now) if settings.operator else None
    return Parts(
        settings=settings,
        router=router,
        session=session,
        configuration=configuration,
        admin=Admin(router, configuration, verifier, registry, now()),
        upstreams=upstreams,
        telemetry=telemetry,
        verifier=verifier,
        hop_token=Token(settings.tokens / "router", now),
        operator=operator,
        store=Store(settings.state) if settings.state is not None else None,
        successor=successor,
    )


def _open_session(settings: Settings, router: Router, now: Callable[[], float]) -> tuple[Session, Successor | None]:
    """The session with the ledger and, where there is a folder for journals, who speaks for those before it."""
    ledger, boot_id = transport(settings, now), read_boot_id(_BOOT_ID)
    root = settings.state / "journal" if settings.state is not None else None
    successor = Successor(root, ledger, boot_id, time.time) if root is not None else None
    session = Session(
        transport=ledger,
        wallet=router.wallet,
        clocks=Clocks(now, lambda: time.clock_gettime(time.CLOCK_BOOTTIME), time.time),
        new_id=lambda: uuid.uuid4().hex,
        usage=router.book.take,
        report=lambda result: router.telemetry.renewals.add((result,)),
        lines=router.book.lines,
        restored=successor.restored if successor is not None else None,
        journal=(lambda name, snapshot: Journal(root, name, snapshot)) if root is not None else None,
        boot_id=boot_id,
    )
    return session, successor


def read_boot_id(path: Path) -> str:
    """What tells one boot of the machine from another; empty, which equals no other boot's, where there is none."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def transport(settings: Settings, now: Callable[[], float]) -> Transport:
    """How the session reaches a ledger."""
    if settings.local_lease is not None:
        limits = msgspec.json.decode(settings.local_lease.read_bytes(), type=dict[str, int])
        return LocalLease(limits, lambda: int(time.time() * 1000))
    if settings.ledger:
        return LedgerPeer(Peer(settings.ledger, Token(settings.tokens / "ledger", now), now))
    return NoLedger()


def _add_gauges(telemetry: Telemetry, router: Router, configuration: Configuration) -> None:
    telemetry.read(REQUESTS_RUNNING, router.running)
    telemetry.read(REQUESTS_WAITING, router.waiting)
    telemetry.read(CONFIG_AGE, lambda: [((), configuration.age_s())])
    telemetry.read(CONFIG_INFO, lambda: [((configuration.version, configuration.endpoints_version), 1.0)])
    telemetry.read(ACCESS_LOG_DROPPED, lambda: [((), float(router.access.dropped if router.access is not None else 0))])
    if router.place.engine:
        show_drafting(telemetry, router.engine_load.drafting, router.place.pool)
        _add_engine_gauges(telemetry, router.place.pool, router.engine_watch)


def _add_engine_gauges(telemetry: Telemetry, pool: str, watch: EngineWatch) -> None:
    telemetry.read(ENGINE_READY, lambda: [((pool,), float(not watch.trouble()))])
    telemetry.read(ADAPTER_LOADED, lambda: [((pool, one.name), float(one.loaded)) for one in watch.adapters.report()])


def _add_journal_gauges(telemetry: Telemetry, router: Router, successor: Successor | None) -> None:
    def state() -> list[tuple[tuple[str, ...], float]]:
        journal = router.session.journal
        now = "off" if journal is None else "full" if journal.full else "on"
        return [((name,), float(name == now)) for name in ("on", "off", "full")]

    telemetry.read(STATE, state)
    telemetry.read(OPEN_ENTRIES, lambda: [((), float(len(router.wallet.open)))])
    telemetry.read(LEFT, lambda: [((), float(successor.unfinished() if successor is not None else 0))])
    telemetry.read(SWEPT, lambda: [((), float(router.swept))])


def _watch(parts: Parts) -> None:
    """What the log tells of while it keeps requests from being served."""
    settings, router, configuration = parts.settings, parts.router, parts.configuration
    outages, session, verifier, successor = router.outages, parts.session, parts.verifier, parts.successor
    operator, ledger = str(address(settings.operator)), str(address(settings.ledger))

    def journal(_: str) -> str:
        found = session.journal
        return journal_words(f"{settings.state}/journal", found.fault, full=found.full) if found is not None else ""

    def identity(_: str) -> str:
        return identity_words(verifier.keyless(), nobody=verifier.knows_nobody()) if router.configured else ""

    outages.watch("invalid_api_key", identity)
    outages.watch("journal_full", journal)
    outages.watch("upstream_error", replicas_words)
    if settings.ledger:
        outages.watch(
            "ledger_unreachable",
            lambda refused: ledger_words(ledger, session.fault, refused, reachable=session.reachable()),
        )
    elif settings.local_lease is None:
        outages.watch("ledger_unreachable", no_ledger_words)
    if settings.ledger and successor is not None:
        outages.watch("journal_untold", lambda _: untold_words(ledger, successor.fault, successor.unfinished()))
    if settings.operator:
        outages.watch(
            "not_configured",
            lambda _: configuration_words(operator, configuration.fault, configured=router.configured),
        )
        outages.watch("router_token", lambda _: router_token_words(str(settings.tokens / "router"), router.hop_token))


def _add_client_gauges(parts: Parts, clients: Clients) -> None:
    def connections() -> list[tuple[tuple[str, ...], float]]:
        busy, idle = parts.upstreams.count()
        found = (("client", clients.count()), ("upstream", busy), ("upstream_idle", idle))
        return [((side,), float(count)) for side, count in found]

    answers = parts.router.answers
    parts.telemetry.read(CONNECTIONS, connections)
    parts.telemetry.read(
        BODIES_BYTES, lambda: [(("requests",), float(clients.bodies.used)), (("answers",), float(answers.used))]
    )


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    parts = build(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    _load(parts)
    _watch(parts)
    clients = Clients(Limits(), parts.router.now)
    admins = Clients(Limits(), parts.router.now)
    _add_client_gauges(parts, clients)
    certified_at = _changed_at(settings.tls_cert)
    tls = tls_context(settings)
    requests = await _listen(parts.router, clients, settings.listen, settings.port, tls)
    admin = await _listen(parts.admin, admins, settings.listen, settings.admin_port)
    drain = await _listen_for_drain(parts, clients)
    _freeze()
    facts = {"port": settings.port, "pool": settings.pool, "compiled": is_compiled(exchange)}
    log.info("listening", extra={"event": "Listening", **facts})
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(work) for work in _background(parts, (clients, admins))]
        if tls is not None:
            running.append(tasks.create_task(_renew(tls, settings, certified_at)))
        await stop.wait()
        await _part(clients)
        requests.close()
        clients.close()
        await _finish(clients, settings.drain_timeout_s)
        for task in running:
            task.cancel()
    told = await parts.session.close(_CLOSE_S)
    if parts.session.journal is not None:
        parts.session.journal.close()
    log.info("stopped", extra={"event": "Stopped", "ledger_told": told, "cut": clients.busy()})
    admin.close()
    if drain is not None:
        drain.close()
    parts.upstreams.close()
    if parts.router.access is not None:
        await parts.router.access.close()
    if parts.router.tracing is not None:
        await asyncio.to_thread(parts.router.tracing.close)


def _load(parts: Parts) -> None:
    """The configuration to start with: a file, or what was in use before."""
    settings = parts.settings
    if settings.config is not None:
        try:
            parts.configuration.take(read_files(settings.config, settings.endpoints))
        except (OSError, msgspec.DecodeError, ConfigError) as error:
            files = " and ".join(str(path) for path in (settings.config, settings.endpoints) if path is not None)
            raise SettingError(f"the configuration in {files} cannot be used: {error}") from error
    elif parts.store is not None:
        kept = parts.store.load()
        if kept is not None:
            try:
                parts.configuration.take(kept)
            except ConfigError as error:
                log.warning("the configuration that was kept is not used: %s", error)


async def _listen(
    app: Application, clients: Clients, host: str, port: int, tls: ssl.SSLContext | None = None
) -> asyncio.Server:
    loop, limits = asyncio.get_running_loop(), Limits()
    return await loop.create_server(listener(app, limits, clients), host, port, backlog=4096, ssl=tls)


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS for the port of requests, if a certificate is given; raises SettingError for files that cannot be used."""
    if settings.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except OSError as error:
        raise SettingError(f"FAIRLEAD_TLS_CERT and FAIRLEAD_TLS_KEY cannot be used: {error}") from error
    context.set_alpn_protocols(["http/1.1"])
    return context


async def _renew(context: ssl.SSLContext, settings: Settings, seen: float) -> None:
    """Take a certificate renewed after `seen` for new connections; one that cannot be read leaves the old in use."""
    cert = settings.tls_cert
    assert cert is not None  # noqa: S101 - there is a context
    while True:
        await asyncio.sleep(_RENEW_S)
        changed = await asyncio.to_thread(_changed_at, cert)
        if changed == seen:
            continue
        try:
            await asyncio.to_thread(context.load_cert_chain, cert, settings.tls_key)
            seen = changed
            log.info("certificate renewed", extra={"event": "CertificateRenewed"})
        except (OSError, ssl.SSLError) as error:
            log.warning("the renewed certificate %s cannot be used, the old one stays: %s", cert, error)


def _changed_at(path: Path | None) -> float:
    """When a file was last changed, in seconds since the epoch; 0 for one that is not there."""
    try:
        return 0.0 if path is None else path.stat().st_mtime
    except OSError:
        return 0.0


async def _listen_for_drain(parts: Parts, clients: Clients) -> asyncio.Server | None:
    if not parts.settings.drain:
        return None
    router = parts.router

    def begin() -> None:
        router.drain()
        clients.closing = True

    def end() -> None:
        router.resume()
        clients.closing = False

    drain = Drain(
        begin=begin,
        end=end,
        running=lambda: router.own_engine.value,
        dead=router.engine_watch.dead,
        ready=router.engine_watch.ready,
        timeout_s=parts.settings.drain_timeout_s,
        now=router.now,
        report=lambda report: _leave_words(parts.settings.termination_log, report),
    )
    return await drain.listen(parts.settings.drain)


def _leave_words(place: Path | None, report: DrainReport | None) -> None:
    """Write how a drain went where the kubelet finds it, at once: a router that is killed has told it too."""
    if place is None:
        return
    try:
        place.write_bytes(b"" if report is None else msgspec.json.encode(report))
    except OSError as error:
        log.warning("how the drain went cannot be written to %s: %s", place, error)


def _background(parts: Parts, clients: tuple[Clients, ...]) -> list[Any]:
    """What runs beside the requests."""
    work: list[Any] = [_tick(parts, clients), parts.session.run()]
    if parts.operator is not None:
        operator = parts.operator

        async def poll(path: str) -> Reply:
            return await operator.call("GET", path, b"", WAIT_S + POLL_SLACK_S)

        work.append(parts.configuration.follow(poll, parts.store))
    if parts.successor is not None:
        work += [parts.successor.run(), parts.session.keep_journal()]
    else:
        log.warning("FAIRLEAD_STATE_DIR is not set: there is no journal, and what a killed router held stays counted")
    if parts.settings.engine:
        work += [parts.router.engine_watch.follow(), parts.router.engine_load.follow(parts.router.engine_pool)]
    return work


async def _tick(parts: Parts, clients: tuple[Clients, ...]) -> None:
    """Deadlines, idle connections, ejected replicas, rotated tokens."""
    while True:
        for group in clients:
            group.check()
        parts.upstreams.check()
        parts.router.hop_token = parts.hop_token.get().encode()
        parts.router.tick()
        await asyncio.sleep(_TICK_S)


async def _part(clients: Clients) -> None:
    """Tell clients to come back on another connection: one that is closed while it sends would get no answer."""
    clients.closing = True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PART_S):
            while clients.count():  # noqa: ASYNC110 - as in _finish
                await asyncio.sleep(_TICK_S / 10)


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


def _keep_memory() -> None:
    """Let malloc keep what bodies used: handing it back and faulting it in anew took a third of a 400 KB request.

    glibc's own thresholds adapt to what is freed and then trim after each large body. Elsewhere nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BYTES)


def main() -> None:
    """The command ``fairlead-router``."""
    _keep_memory()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        uvloop.run(serve(from_process(sys.argv[1:])))
    except (SettingError, TracingUnavailableError) as error:
        log.error("the router cannot start: %s", error)  # noqa: TRY400 - the words say it; a trace would not
        sys.exit(2)


if __name__ == "__main__":
    main()
