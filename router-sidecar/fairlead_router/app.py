"""The router as a whole: what it knows, and how a request finds its way to an exchange.

Holds the configuration in use, a line for each pool, the wallet, and the counters that the operator reads. One event
loop owns all of it.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from fairlead_router import refusals
from fairlead_router.answers import Headers, Refusal, answer, bad_request
from fairlead_router.body import CHAT, COMPLETIONS, EMBEDDINGS
from fairlead_router.budget import Wallet
from fairlead_router.contract import (
    AUDIENCE_CALLER,
    AUDIENCE_ROUTER,
    NANO_PER_USD,
    PICO_PER_NANO,
    Card,
    Endpoint,
    Endpoints,
    PolicyConfig,
    PoolConfig,
    PoolSignals,
    RouteConfig,
    RouterConfig,
    Signals,
)
from fairlead_router.exchange import Exchange
from fairlead_router.identity import Identity, Verifier
from fairlead_router.lease import Session
from fairlead_router.metering import Spent, UsageBook
from fairlead_router.passage import Passage
from fairlead_router.policy import MAX_KEY, Caller, Index, Labels, build_index, usable_models
from fairlead_router.queueing import Line, Peaks
from fairlead_router.replicas import Replica
from fairlead_router.server import Client, Limits, Memory, Request
from fairlead_router.sizing import Calibration
from fairlead_router.telemetry import Recent, Telemetry
from fairlead_router.upstream import Pool, Target, Upstreams, target_of

log = logging.getLogger(__name__)

MODELS: Final = b"/v1/models"
OPEN: Final = frozenset({CHAT, COMPLETIONS, EMBEDDINGS})
_DRAINING: Final[Headers] = (("x-fairlead-retry", "draining"),)
_REQUEST_PORT: Final = 8000
_PICO_PER_USD: Final = NANO_PER_USD * PICO_PER_NANO
_QUIET_S: Final = 1.0
_MAX_QUIET: Final = 1_000


@dataclass(frozen=True, slots=True)
class Place:
    """Where this router runs. ``pool`` and ``engine`` are empty for a gateway."""

    pod: str = "local/router"
    pool: str = ""
    engine: str = ""

    @property
    def short(self) -> str:
        """The last part of the pod's name, for request ids."""
        return self.pod.rpartition("/")[2].rpartition("-")[2] or "router"


@dataclass(frozen=True, slots=True)
class Times:
    """Clocks of the router: ``now`` is the event loop's, ``wall`` is UTC in seconds."""

    now: Callable[[], float]
    wall: Callable[[], float]


@dataclass(slots=True, eq=False)
class Tally:
    """What this router counted of one pool as its requests' entry."""

    requests: int = 0
    prompt: int = 0
    cached: int = 0
    output: int = 0
    nano_usd: int = 0
    last_request_ms: int = 0
    ttft: Recent = field(default_factory=Recent)
    tpot: Recent = field(default_factory=Recent)


class _Owner(msgspec.Struct, frozen=True):
    """What a head said: who calls, or that another router admitted it."""

    caller: Caller
    labels: Labels
    hop: bool = False


class Router:
    """Answers requests. Built once by main; everything it needs is handed in."""

    def __init__(
        self,
        *,
        place: Place,
        times: Times,
        limits: Limits,
        verifier: Verifier,
        upstreams: Upstreams,
        telemetry: Telemetry,
        id_base: int,
    ) -> None:
        self.place = place
        self.now = times.now
        self.wall = times.wall
        self.upstreams = upstreams
        self.telemetry = telemetry
        self.wallet = Wallet()
        self.book = UsageBook()
        self.answers = Memory(limits.answers)
        self.session: Session
        self.index: Index = build_index(RouterConfig())
        self.nowhere = Line(PoolConfig(pool=""), times.now)
        self.configured = False
        self.draining = False
        self.hop_token = ""
        self.max_context_tokens = 0
        self.own_engine = Peaks()
        self._limits = limits
        self._verifier = verifier
        self._lines: dict[str, Line] = {}
        self._endpoints = Endpoints()
        self._calibrations: dict[str, Calibration] = {}
        self._tallies: dict[str, Tally] = {}
        self._turn = 0
        self._next_id = id_base
        self._quiet: dict[tuple[str, str], tuple[float, int]] = {}

    # --- configuration ---

    def configure(self, index: Index) -> None:
        """Take a validated configuration; it applies to the next request."""
        self.index = index
        self._verifier.trust(index.config.issuers)
        for name in [name for name in self._lines if name not in index.pools]:
            gone = self._lines.pop(name)
            gone.update(PoolConfig(pool=name), ())
            gone.replan()
        for name, pool in index.pools.items():
            if name not in self._lines:
                self._lines[name] = Line(pool, self.now)
        self.configured = True
        self.set_endpoints(self._endpoints)
        for line in list(self._lines.values()):
            line.replan()

    def set_endpoints(self, endpoints: Endpoints) -> None:
        """Take the replicas of all pools; what is known of those that stay is kept."""
        self._endpoints = endpoints
        found = {entry.pool: entry.endpoints for entry in endpoints.pools}
        targets: set[Target] = set()
        for name, line in self._lines.items():
            replicas = self._replicas(name, found.get(name, ()))
            targets |= {replica.target for replica in replicas}
            line.update(self.index.pools[name], replicas)
        if self.place.engine:
            targets.add(Target(path=self.place.engine))
        self.upstreams.keep_only(targets)

    def _replicas(self, pool: str, endpoints: Iterable[Endpoint]) -> list[Replica]:
        found = []
        for endpoint in endpoints:
            local = pool == self.place.pool and endpoint.pod == self.place.pod
            if local and self.draining:
                continue
            target = Target(path=self.place.engine) if local else target_of(endpoint.address, _REQUEST_PORT)
            # What is not another router but an engine's own socket gets no hop headers.
            found.append(Replica(endpoint.pod, endpoint.variant, target, local=local or bool(target.path)))
        return found

    def drain(self) -> None:
        """Take no more requests for this pod's engine."""
        self.draining = True
        self.set_endpoints(self._endpoints)

    def resume(self) -> None:
        """The engine was restarted in this pod: take requests for it again."""
        self.draining = False
        self.set_endpoints(self._endpoints)

    # --- server.Application ---

    def judge(self, request: Request) -> Refusal | None:
        """Who is calling, and is the path open? Nothing passes without identity."""
        path, _, _ = request.path.partition(b"?")
        request.path = path
        hop = self._hop(request)
        if hop is not None:
            request.owner = hop
        else:
            identity = self._caller(request)
            if identity is None:
                return refusals.unauthorized()
            if not self._speaks_for(identity.namespace):
                return refusals.foreign_caller(identity.namespace, self.place.pool)
            labels = _labels(request)
            if isinstance(labels, Refusal):
                return labels
            request.owner = _Owner(Caller(identity.namespace, f"sa:{identity.name}"), labels)
        if not (path in OPEN and request.method == b"POST") and not (path == MODELS and request.method == b"GET"):
            return refusals.unknown_path(request.method.decode("latin-1"), path.decode("latin-1"))
        return None

    def body_limit(self, request: Request) -> int:
        """A hop may be larger than what a client may send, by what its entry router wrote into it."""
        owner = request.owner
        return self._limits.hop_body if isinstance(owner, _Owner) and owner.hop else self._limits.body

    def start(self, client: Client, request: Request) -> None:
        """Answer a request."""
        owner = request.owner
        assert isinstance(owner, _Owner)  # noqa: S101 - judged
        if owner.hop and request.path in OPEN:
            self._pass(client, request)
        elif request.path == MODELS:
            client.send(self._models(owner.caller, request, close=not client.keeps_alive()))
        else:
            exchange = Exchange(self, client, request, owner.caller, owner.labels)
            client.attach(exchange)
            exchange.begin()

    def new_request_id(self) -> str:
        """Names the router, so that a look-up asks only one."""
        self._next_id += 1
        return f"fl-{self.place.short}-{self._next_id:x}"

    def _hop(self, request: Request) -> _Owner | None:
        """A request that another router admitted, if its token says that it may hop to this pod's pool."""
        token = request.headers.get(b"x-fairlead-router-token")
        if token is None or not self.place.pool:
            return None
        identity = self._verifier.verify(token.decode("latin-1"), AUDIENCE_ROUTER)
        pool = request.headers.get(b"x-fairlead-hop", b"").decode("latin-1").partition(";")[2]
        if identity is None or pool != self.place.pool:
            return None
        config = self.index.config
        allowed = {pool.partition("/")[0], config.release_namespace, *config.platform_namespaces}
        if identity.namespace not in allowed:
            return None
        return _Owner(Caller(identity.namespace, f"sa:{identity.name}"), Labels(), hop=True)

    def _speaks_for(self, namespace: str) -> bool:
        """A pod of a team's own pool may spend and report for its own namespace only: the ledger refuses the rest."""
        home = self.place.pod.partition("/")[0]
        return not self.place.pool or namespace == home or home in self.index.config.platform_namespaces

    def _caller(self, request: Request) -> Identity | None:
        scheme, _, token = request.headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        return self._verifier.verify(token.strip().decode("latin-1"), AUDIENCE_CALLER)

    def _pass(self, client: Client, request: Request) -> None:
        if self.draining:
            refusal = Refusal(503, "draining", "This replica is draining.", "server_error", headers=_DRAINING)
            client.refuse(refusal)
            return
        passage = Passage(self, client, request)
        client.attach(passage)
        passage.begin()

    def _models(self, caller: Caller, request: Request, *, close: bool) -> bytes:
        models = [
            {"id": model, "object": "model", "created": 0, "owned_by": owner}
            for model, owner in usable_models(self.index, caller.namespace)
        ]
        body = msgspec.json.encode({"object": "list", "data": models})
        return answer(200, body, (("x-request-id", request.request_id),), close=close)

    # --- for exchanges ---

    def pick(self, route: RouteConfig) -> Line:
        """The pool for the next request of a route: by weight, among those that have replicas."""
        if len(route.pools) == 1:
            return self._lines[route.pools[0].pool]
        weighted = [ref for ref in route.pools if ref.weight > 0 and self._lines[ref.pool].replicas]
        weighted = weighted or [ref for ref in route.pools if ref.weight > 0] or list(route.pools)
        total = sum(max(1, ref.weight) for ref in weighted)
        self._turn += 1
        rest = self._turn * _STRIDE % total
        for ref in weighted:
            rest -= max(1, ref.weight)
            if rest < 0:
                return self._lines[ref.pool]
        return self._lines[weighted[-1].pool]

    def calibration(self, policy: PolicyConfig) -> Calibration:
        """Bytes per token of a policy's models: those of its smallest route."""
        return self.calibration_of(policy.routes[0].pools[0].pool)

    def calibration_of(self, pool: str) -> Calibration:
        """Bytes per token of a pool's model."""
        found = self._calibrations.get(pool)
        if found is None:
            found = self._calibrations[pool] = Calibration()
        return found

    def tally(self, pool: str) -> Tally:
        """The counters of a pool."""
        found = self._tallies.get(pool)
        if found is None:
            found = self._tallies[pool] = Tally()
        return found

    def touch(self, pool: str) -> None:
        """A request for this pool arrived or ended."""
        self.tally(pool).last_request_ms = int(self.wall() * 1000)

    def asleep(self, route: RouteConfig) -> Line | None:
        """A pool of a route that never told its context and has no replica that could."""
        lines = (self._lines[ref.pool] for ref in route.pools)
        return next((line for line in lines if not line.config.max_context_tokens and not line.replicas), None)

    def ledger_or_wall_ms(self) -> int:
        """The time that usage is booked at."""
        return self.session.ledger_ms() or int(self.wall() * 1000)

    def count(self, namespace: str, pool: str, route: str, outcome: str) -> None:
        """A request ended."""
        self.telemetry.requests.add((self.telemetry.tenant(namespace), pool, route, outcome))
        if pool:
            tally = self.tally(pool)
            tally.requests += 1
            tally.last_request_ms = int(self.wall() * 1000)

    def count_tokens(self, namespace: str, pool: str, card: Card | None, spent: Spent) -> None:
        """Tokens and money of a settled request, by kind."""
        tenant = self.telemetry.tenant(namespace)
        uncached = (tenant, pool, "uncached")
        cached = (tenant, pool, "cached")
        output = (tenant, pool, "output")
        self.telemetry.tokens.add(uncached, spent.prompt - spent.cached)
        self.telemetry.tokens.add(cached, spent.cached)
        self.telemetry.tokens.add(output, spent.output)
        if card is not None:
            self.telemetry.charged.add(uncached, (spent.prompt - spent.cached) * card.prompt_pico / _PICO_PER_USD)
            self.telemetry.charged.add(cached, spent.cached * card.cached_pico / _PICO_PER_USD)
            self.telemetry.charged.add(output, spent.output * card.output_pico / _PICO_PER_USD)

    def engine_started(self, replica: Replica) -> None:
        """A request goes to a replica."""
        if replica.target.path and replica.target.path == self.place.engine:
            self.engine_running(1)

    def engine_ended(self, replica: Replica) -> None:
        """A request to a replica ended."""
        if replica.target.path and replica.target.path == self.place.engine:
            self.engine_running(-1)

    def engine_running(self, change: int) -> None:
        """Requests at this pod's engine."""
        self.own_engine.set(self.own_engine.value + change)

    def engine_pool(self) -> Pool:
        """The connections to this pod's engine."""
        return self.upstreams.pool(Target(path=self.place.engine))

    def log_refusal(self, refusal: Refusal, budget: str, tenant: str, request_id: str) -> None:
        """At most one line a second for each budget and code, with the number of those left out."""
        now = self.now()
        since, suppressed = self._quiet.get((budget, refusal.code), (float("-inf"), 0))
        if now - since < _QUIET_S:
            self._quiet[budget, refusal.code] = (since, suppressed + 1)
            return
        if len(self._quiet) >= _MAX_QUIET:
            self._quiet.clear()
        self._quiet[budget, refusal.code] = (now, 0)
        facts = {"request": request_id, "tenant": tenant, "code": refusal.code, "budget": budget}
        log.info("refused", extra={"event": "Refused", **facts, "suppressed": suppressed})

    # --- signals ---

    def waiting(self) -> Iterable[tuple[tuple[str, ...], float]]:
        """Requests that wait, by pool."""
        return [((name,), float(line.held.value)) for name, line in self._lines.items()]

    def running(self) -> Iterable[tuple[tuple[str, ...], float]]:
        """Requests that this router sent and that are not answered yet, by pool."""
        return [((name,), float(line.running)) for name, line in self._lines.items()]

    def advance(self) -> None:
        """Replicas may be back from their ejection."""
        for line in self._lines.values():
            line.advance()

    def signals(self, reader: str, versions: tuple[str, str], uptime_s: int) -> Signals:
        """What the operator reads. Peaks are since this reader's last reading."""
        return Signals(
            router=self.place.pod,
            config_version=versions[0],
            endpoints_version=versions[1],
            budgets_version=self.session.budgets_version,
            now_ms=int(self.wall() * 1000),
            uptime_s=uptime_s,
            draining=self.draining,
            max_context_tokens=self.max_context_tokens,
            pools=tuple(self._pool_signals(name, line, reader) for name, line in self._lines.items()),
        )

    def _pool_signals(self, name: str, line: Line, reader: str) -> PoolSignals:
        tally, now = self.tally(name), self.now()
        own = name == self.place.pool
        return PoolSignals(
            pool=name,
            running=self.own_engine.value if own else 0,
            peak_running=self.own_engine.read(reader) if own else 0,
            held=line.held.value,
            peak_held=line.held.read(reader),
            last_request_ms=tally.last_request_ms,
            requests_total=tally.requests,
            prompt_tokens_total=tally.prompt,
            cached_tokens_total=tally.cached,
            output_tokens_total=tally.output,
            charged_nano_usd_total=tally.nano_usd,
            ttft_ms_p99=tally.ttft.p99_ms(now),
            tpot_ms_p99=tally.tpot.p99_ms(now),
        )


_STRIDE: Final = 7_919
"""A prime, so that turns spread over the pools of a route instead of running through one after the other."""


def _labels(request: Request) -> Labels | Refusal:
    """Feature and workflow, as far as the caller named them."""
    values: list[str | None] = []
    for name in (b"x-fairlead-feature", b"x-fairlead-workflow"):
        raw = request.headers.get(name)
        if raw is None:
            values.append(None)
            continue
        text = raw.decode("latin-1")
        if not 0 < len(text) <= MAX_KEY or not text.isprintable() or not text.isascii():
            return bad_request(f"{name.decode()} must have 1 to {MAX_KEY} printable ASCII characters.")
        values.append(text)
    return Labels(*values)
