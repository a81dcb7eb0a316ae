"""The ledger's HTTP: decodes, asks who speaks, hands writes to the store, encodes."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import Connection
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fairlead_operator.clock import Clock
from fairlead_operator.ledger import access, catalog, idle, openapi, reports, skew
from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.access import Caller
from fairlead_operator.ledger.escrow import Refusal
from fairlead_operator.ledger.exchange import TTL_MS, patient
from fairlead_operator.ledger.metrics import Metrics
from fairlead_operator.ledger.store import OverloadError, Store, UnwritableError
from fairlead_operator.ledger.together import Said, sync_all
from fairlead_operator.ledger.transaction import facts, log_loss, put_high_water
from fairlead_operator.ledger.upkeep import EVERY_S, Health, upkeep
from fairlead_operator.ledger.write_off import write_off
from fairlead_operator.tokens import KeysUnavailableError, TokenError, Verifier, bearer
from fairlead_router.contract import (
    AUDIENCE_LEDGER,
    PutBudgets,
    PutCards,
    PutCosts,
    SyncAnswer,
    SyncRefusal,
    SyncRequest,
    WriteOff,
)

MAX_BODY = 8 * 1024 * 1024
BUSY_RETRY_MS = 500
DAY_MS = 24 * 3_600_000

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]
log = logging.getLogger(__name__)


class RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, reason: str, *, expected: int = 0, retry_after_ms: int = 0) -> None:
        super().__init__(reason)
        self.status = status
        self.body = SyncRefusal(reason=reason, expected=expected, retry_after_ms=retry_after_ms)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the ledger was told about its cluster."""

    release: str = "fairlead"
    platform: frozenset[str] = frozenset()
    ttl_ms: int = TTL_MS


@dataclass(slots=True)
class Service:
    """The routes and what they need."""

    store: Store
    verifier: Verifier
    clock: Clock
    rules: Rules = field(default_factory=Rules)
    metrics: Metrics = field(default_factory=Metrics)
    _skew: skew.Skew = field(default_factory=skew.Skew)
    _fault: str = ""
    """Why the last write did not reach the disk."""
    _ahead: int = 0
    """The database's clock less this process's, in ms, at the last write."""

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            self._route("/v1/sync", "POST", self.sync),
            self._route("/v1/budgets", "PUT", self.put_budgets),
            self._route("/v1/cards", "PUT", self.put_cards),
            self._route("/v1/cards", "GET", self.get_cards),
            self._route("/v1/costs", "PUT", self.put_costs),
            self._route("/v1/costs", "GET", self.get_costs),
            self._route("/v1/spend", "GET", self.get_spend),
            self._route("/v1/usage", "GET", self.get_usage),
            self._route("/v1/write-off", "POST", self.write_off),
            self._route("/healthz", "GET", self.healthz),
            self._route("/readyz", "GET", self.readyz),
            self._route("/metrics", "GET", self.get_metrics),
            self._route("/openapi.json", "GET", self.get_openapi),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan)

    @staticmethod
    def _route(path: str, method: str, handler: Handler) -> Route:
        return Route(path, _guarded(handler), methods=[method])

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.verifier.keep_fresh()), asyncio.create_task(self._keep_up())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_up(self) -> None:
        while True:
            try:
                await self.upkeep()
            except Exception:
                log.exception("a round of upkeep did not finish; the next one is in %d s", EVERY_S)
            await self.clock.sleep(EVERY_S)

    async def upkeep(self) -> None:
        """One round of upkeep."""
        vouched = self._skew.vouched()
        health = await self._write(lambda connection: self._upkeep(connection, vouched))
        self.metrics.record(health)
        if health.violations:
            log.error("the books of %d accounts do not add up", health.violations)
        if health.lost:
            log.warning("%d router sessions fell silent; what they hold is unreconciled", health.lost)

    def _upkeep(self, connection: Connection, vouched: bool | None) -> Health:
        sql.exclusive(connection, "upkeep")
        now = self._now(connection)
        known = facts(connection).high_water
        trusted = skew.trusted(now, high_water=known, vouched=vouched)
        self.metrics.clock_suspect.set(not trusted)
        if trusted:
            catalog.record(connection, "ledger", catalog.ended_increases(connection, known, now), now)
            put_high_water(connection, now)
        else:
            log.error("the clock shows %d ms, which the routers' clocks or its own past contradict", now)
        return upkeep(connection, now, self.rules.ttl_ms)

    def _now(self, connection: Connection) -> int:
        """The clock of the database, where several ledgers share one, else of this process."""
        own, shared = self.clock.now_ms(), sql.database_now(connection)
        self._ahead = 0 if shared is None else shared - own
        return own + self._ahead

    async def _write(self, job: Callable[[Connection], T]) -> T:
        return await self._noted(asyncio.wrap_future(self.store.submit(job)))

    async def _noted(self, writing: Awaitable[T]) -> T:
        try:
            written = await writing
        except UnwritableError as error:
            self._fault = str(error)
            raise
        self._fault = ""
        return written

    async def _read(self, query: Callable[[Connection], T]) -> T:
        return await asyncio.to_thread(self.store.read, query)

    async def _caller(self, request: Request) -> Caller:
        identity = await self.verifier.identify(bearer(request.headers.get("authorization", "")), AUDIENCE_LEDGER)
        return access.caller_of(identity, self.rules.release, self.rules.platform)

    async def _operator(self, request: Request) -> Caller:
        caller = await self._caller(request)
        if not caller.operator:
            operator = f"{self.rules.release}/{access.OPERATOR_ACCOUNT}"
            raise RefusedError(
                403, f"ServiceAccount {caller.account} may not {request.method} {request.url.path}; {operator} may"
            )
        return caller

    # --- routers

    async def sync(self, request: Request) -> Response:
        """Report, return, renew and ask."""
        caller = await self._caller(request)
        message = await decoded(request, SyncRequest)
        outcome: SyncAnswer | Refusal | None = access.objection(caller, message)
        if outcome is None:
            now = self.clock.now_ms() + self._ahead
            # Anybody else could outvote the platform's routers by made-up sessions, and old messages tell old times.
            if caller.trusted and not (message.replay or message.rewind):
                self._skew.hear(message.session, message.sent_at, now, self.clock.monotonic())
            vouched = self._skew.vouched()
            said = Said(caller, message, vouched)
            alone = message.seq == 1 or not message.plain
            outcome = await self._noted(self.store.apply(self._sync, said, alone=alone, patient=patient(message)))
        self.metrics.answered(outcome)
        return answered(outcome)

    def _sync(self, connection: Connection, said: Sequence[Said]) -> list[SyncAnswer | Refusal]:
        return sync_all(connection, said, self._now(connection), ttl_ms=self.rules.ttl_ms, alarm=self._loss)

    def _loss(self, loss: str, begun: bool) -> None:
        log_loss(loss, begun)
        self.metrics.losses.inc()
        self.metrics.recoveries.inc(begun)

    # --- the operator

    async def put_budgets(self, request: Request) -> Response:
        """Replace all budgets."""
        who = (await self._operator(request)).account
        message = await decoded(request, PutBudgets)
        fault = catalog.budgets_fault(message)
        if fault is None:
            fault = await self._write(lambda c: catalog.put_budgets(c, message, self._now(c), who))
        return answered(fault)

    async def put_cards(self, request: Request) -> Response:
        """Add rate cards."""
        await self._operator(request)
        message = await decoded(request, PutCards)
        return answered(await self._write(lambda connection: catalog.put_cards(connection, message)))

    async def put_costs(self, request: Request) -> Response:
        """Tell running totals of replica time and cost."""
        await self._operator(request)
        message = await decoded(request, PutCosts)
        fault = await self._write(lambda connection: catalog.put_costs(connection, message))
        if fault is None:
            measured = await self._read(lambda connection: idle.measured(connection, self._now(connection)))
            await self._write(lambda connection: idle.put_idle(connection, measured))
        return answered(fault)

    async def write_off(self, request: Request) -> Response:
        """Declare what a dead session held as not spent; the answer tells how much that was."""
        who = (await self._operator(request)).account
        message = await decoded(request, WriteOff)
        amount = await self._write(
            lambda connection: write_off(connection, message, who, self._now(connection), self.rules.ttl_ms)
        )
        return answered(amount if isinstance(amount, Refusal) else {"amount": amount})

    async def get_cards(self, request: Request) -> Response:
        """The newest rate card of each pool, or all of one."""
        await self._operator(request)
        pool = request.query_params.get("pool")
        return answered(await self._read(lambda connection: reports.cards(connection, pool)))

    async def get_costs(self, request: Request) -> Response:
        """Stored totals of a time."""
        await self._operator(request)
        since, until = _time(request, self.clock.now_ms(), DAY_MS)
        return answered(await self._read(lambda connection: reports.costs(connection, since, until)))

    # --- reports

    async def get_spend(self, request: Request) -> Response:
        """How one budget, or every budget that the caller may see, stands."""
        caller = await self._caller(request)
        query, now = request.query_params, self.clock.now_ms()
        own = None if caller.operator else caller.namespace
        if "name" not in query:
            return answered(await self._read(lambda c: reports.spend_list(c, now, own or query.get("namespace"))))
        namespace, name, at = query.get("namespace", caller.namespace), query["name"], _number(query, "at", now)
        if own not in {None, namespace}:
            raise RefusedError(403, f"budgets of namespace {namespace} are not shown to namespace {own}")
        found = await self._read(lambda connection: reports.spend(connection, now, namespace, name, at))
        if found is None:
            raise RefusedError(404, f"there is no budget {namespace}/{name}")
        return answered(found)

    async def get_usage(self, request: Request) -> Response:
        """Usage by dimensions, and the bills of the same time."""
        caller = await self._caller(request)
        own = None if caller.operator else caller.namespace
        wanted = request.query_params.get("namespace", own)
        if own not in {None, wanted}:
            raise RefusedError(403, f"usage of namespace {wanted} is not shown to namespace {own}")
        now = self.clock.now_ms()
        since, until = _time(request, now, DAY_MS)
        try:
            query = reports.usage_query(request.query_params, since, until, own=own, now=now)
            return answered(await self._read(lambda connection: reports.usage_report(connection, query)))
        except reports.QueryError as error:
            raise RefusedError(422, str(error)) from error

    # --- the house

    async def healthz(self, _request: Request) -> Response:
        """The process runs."""
        return Response("ok" if self.store.alive() else "the writer has ended", 200 if self.store.alive() else 503)

    async def readyz(self, _request: Request) -> Response:
        """Messages can be taken: the writer runs, its last write was kept, and tokens can be verified."""
        fault = self._fault
        if not self.store.alive():
            fault = "the writer has ended"
        elif not self.verifier.ready:
            fault = "the cluster's token keys are not known yet"
        return Response(fault or "ok", 503 if fault else 200)

    async def get_metrics(self, _request: Request) -> Response:
        """For Prometheus."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def get_openapi(self, _request: Request) -> Response:
        """The description of all this."""
        return answered(openapi.document())


def _guarded(handler: Handler) -> Handler:
    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except RefusedError as refused:
            return _refusal(refused)
        except TokenError as error:
            return _refusal(RefusedError(401, str(error)))
        except (OverloadError, KeysUnavailableError) as error:
            return _refusal(RefusedError(503, str(error), retry_after_ms=BUSY_RETRY_MS))

    return guarded


def _refusal(refused: RefusedError) -> Response:
    return Response(msgspec.json.encode(refused.body), refused.status, media_type="application/json")


def answered(outcome: Any) -> Response:
    """The answer for a result; a refusal raises RefusedError. None is an empty object."""
    if isinstance(outcome, Refusal):
        raise RefusedError(
            outcome.status, outcome.reason, expected=outcome.expected, retry_after_ms=outcome.retry_after_ms
        )
    body = msgspec.json.encode({} if outcome is None else outcome)
    return Response(body, media_type="application/json")


async def decoded(request: Request, kind: type[T]) -> T:
    """The body as a message; raises RefusedError for one that is too large or not understood."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise RefusedError(
                413, f"the body has more than {MAX_BODY} bytes; nothing was applied: send less at a time"
            )
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise RefusedError(422, f"the body is not understood: {error}; nothing was applied") from error


_DIGITS = re.compile("[0-9]{1,14}")
LATEST_MS = 32_503_680_000_000
"""The year 3000: calendars end later, but not much."""


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, "")
    if text and not (_DIGITS.fullmatch(text) and int(text) < LATEST_MS):
        raise RefusedError(422, f"{name}={text} is not a time in milliseconds since the epoch")
    return int(text) if text else default


def _time(request: Request, now: int, length_ms: int) -> tuple[int, int]:
    until = _number(request.query_params, "until", now + 1)
    since = _number(request.query_params, "since", until - length_ms)
    if since > until:
        raise RefusedError(422, f"since={since} is after until={until}")
    return reports.aligned(since, until)
