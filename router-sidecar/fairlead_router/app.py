"""The router as a whole: what it knows, and how a request finds its way to an exchange.

Holds the configuration in use, a line for each pool, the wallet, and the counters that the operator reads. One event
loop owns all of it.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from fairlead_router import refusals
from fairlead_router.access_log import AccessLog
from fairlead_router.answers import NO_RETRY, Headers, Refusal, answer, bad_request
from fairlead_router.budget import Wallet
from fairlead_router.contract import (
    AUDIENCE_ROUTER,
    MAX_LABEL,
    Endpoint,
    Endpoints,
    PoolConfig,
    PoolSignals,
    Priority,
    RouteConfig,
    RouterConfig,
    Signals,
    WeightedPool,
    is_label,
)
from fairlead_router.engine_load import EngineLoad
from fairlead_router.engine_watch import EngineWatch
from fairlead_router.exchange import Exchange
from fairlead_router.gauges import Peaks
from fairlead_router.identity import Identity, Verifier
from fairlead_router.lease import Session
from fairlead_router.metering import UsageBook
from fairlead_router.outage import Outages
from fairlead_router.passage import Passage
from fairlead_router.paths import SERVED, ServedPath, closed
from fairlead_router.plan import Lane, Owner, Parts, Plan, Plans
from fairlead_router.policy import (
    Caller,
    Index,
    Labels,
    build_index,
    find_policy,
    matching_budgets,
    refuse_unbudgeted,
    usable_models,
)
from fairlead_router.queueing import Line
from fairlead_router.replicas import Replica
from fairlead_router.retries import RetryBudget
from fairlead_router.server import Client, Head, Limits, Memory, Request
from fairlead_router.sizing import Calibration
from fairlead_router.telemetry import Telemetry
from fairlead_router.tracing import Tracing
from fairlead_router.upstream import Pool, Target, Upstreams, target_of

log = logging.getLogger(__name__)

MODELS: Final = b"/v1/models"
MAX_OWNERS: Final = 4_096
"""Callers with their labels that are prepared for; beyond that the oldest is prepared anew."""
_JUDGED_S: Final = 5.0
"""How long a judgement about a head is good: a key that was revoked meanwhile comes with a new configuration."""
_HOP_MORE: Final = 1024 * 1024
"""What an entry router may write into a body, in bytes."""
_BYTES_PER_TOKEN: Final = 12
_LEAST_BODY: Final = 1024 * 1024
_PRIORITIES: Final[dict[bytes, Priority]] = {b"interactive": "Interactive", b"standard": "Standard", b"batch": "Batch"}
_DRAINING: Final[Headers] = (("x-fairlead-retry", "draining"),)
_REQUEST_PORT: Final = 8000
_SWEEP_S: Final = 660.0
"""A minute more than a request waits for an engine's first byte."""
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


class Admission:
    """What a head said: who calls for what, or that another router admitted it. No ``path``: GET /v1/models."""

    __slots__ = ("generation", "hop", "owner", "path")

    def __init__(self, owner: Owner, path: ServedPath | None, generation: int, *, hop: bool = False) -> None:
        self.owner = owner
        self.path = path
        self.generation = generation
        self.hop = hop


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
        self.outages = Outages()
        self.access: AccessLog | None = None
        self.tracing: Tracing | None = None
        self.session: Session
        self.index: Index = build_index(RouterConfig())
        self.configured = False
        self.draining = False
        self.hop_token = b""
        self.ticked_ms = int(times.wall() * 1000)
        """Wall time of the last tick: good enough for when a pool was last asked."""
        self.book_ms = self.ticked_ms
        """The ledger's time of the last tick, or the wall's while that is not known: usage is booked at it."""
        self.swept = 0
        """Reservations that their requests left behind; always 0."""
        self.own_engine = Peaks()
        self.engine_load = EngineLoad(self.own_engine)
        self.engine_watch = EngineWatch(place.engine, self.engine_pool, times.now)
        self._limits = limits
        self._verifier = verifier
        self._lines: dict[str, Line] = {}
        self._endpoints = Endpoints()
        self._calibrations: dict[str, Calibration] = {}
        self._retries: dict[str, RetryBudget] = {}
        self._owners: dict[tuple[Caller, Labels], Owner] = {}
        self._generation = 0
        self._body_limit = limits.body
        self._plans = Plans(Parts(self.line, self.calibration_of, self.retries_of, self.wallet, telemetry))
        self._turn = 0
        self._next_id = id_base
        self._id_start = b""
        self.name = f"fl-{place.short}".encode()
        self._quiet: dict[tuple[str, str], tuple[float, int]] = {}

    # --- configuration ---

    def configure(self, index: Index) -> None:
        """Take a validated configuration; it applies to the next request."""
        self.index = index
        self._verifier.trust(index.config.issuers, index.config.keys)
        self._body_limit = body_limit(index.config, self._limits.body)
        self.forget_plans()
        for name in [name for name in self._lines if name not in index.pools]:
            gone = self._lines.pop(name)
            gone.update(PoolConfig(pool=name), ())
            gone.replan()
        for name, pool in index.pools.items():
            if name not in self._lines:
                self._lines[name] = Line(pool, self.now)
        self.configured = True
        own = index.pools.get(self.place.pool)
        self.engine_watch.want(own.adapters if own is not None else ())
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

    def forget_plans(self) -> None:
        """What was prepared for callers is prepared anew with their next request."""
        self._generation += 1
        self._owners.clear()
        self._plans.forget()

    def _replicas(self, pool: str, endpoints: Iterable[Endpoint]) -> list[Replica]:
        found = []
        for endpoint in endpoints:
            local = pool == self.place.pool and endpoint.pod == self.place.pod
            if local and self.draining:
                continue
            target = Target(path=self.place.engine) if local else target_of(endpoint.address, _REQUEST_PORT)
            # What is not another router but an engine's own socket gets no hop headers.
            connections = self.upstreams.pool(target)
            found.append(Replica(endpoint.pod, endpoint.variant, target, local or bool(target.path), connections))
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

    def judge(self, head: Head) -> Refusal | None:
        """Who is calling, and is the path open? Nothing passes without identity."""
        if not self.configured:
            return self._refused(refusals.not_configured())
        head.path = head.path.partition(b"?")[0]
        now = self.now()
        path = SERVED.get(head.path) if head.method == b"POST" else None
        owner = self._hop(head)
        head.until = now + _JUDGED_S
        head.body_limit = self._body_limit
        if owner is not None:
            head.body_limit += _HOP_MORE
            head.owner = Admission(owner, path, self._generation, hop=True)
        else:
            identity = self._identity(head)
            if identity is None:
                return self._refused(refusals.unauthorized())
            if not self._speaks_for(identity.namespace):
                return refusals.foreign_caller(identity.namespace, self.place.pool)
            labels = read_labels(head, identity)
            if isinstance(labels, Refusal):
                return labels
            head.until = min(head.until, now + identity.expires_s - self.wall())
            owner = self.owner(Caller(identity.namespace, identity.caller), labels)
            head.owner = Admission(owner, path, self._generation)
        if path is None and not (head.path == MODELS and head.method == b"GET"):
            return not_served(head)
        return None

    def too_large(self, head: Head) -> Refusal:
        """What bounds a body, and what helps."""
        return refusals.body_too_large(head.body_limit, largest_context(self.index.config))

    def _refused(self, refusal: Refusal) -> Refusal:
        self.outages.refused(refusal)
        return refusal

    def holds(self, head: Head, now: float) -> bool:
        """A judgement is good for some seconds, and no longer than its configuration."""
        admission = head.owner
        return now < head.until and type(admission) is Admission and admission.generation == self._generation

    def owner(self, caller: Caller, labels: Labels) -> Owner:
        """What is kept of a caller with these labels."""
        key = (caller, labels)
        found = self._owners.get(key)
        if found is None:
            if len(self._owners) >= MAX_OWNERS:
                del self._owners[next(iter(self._owners))]
            found = self._owners[key] = Owner(caller, labels)
        return found

    def start(self, client: Client, request: Request) -> None:
        """Answer a request."""
        admission = request.head.owner
        assert type(admission) is Admission  # noqa: S101 - judged
        path = admission.path
        if path is None:
            client.send(self._models(admission.owner.caller, request, close=not client.keeps_alive()))
        elif admission.hop:
            self._pass(client, request)
        else:
            owner = admission.owner
            if admission.generation != self._generation:  # the configuration changed while the body came
                owner = self.owner(owner.caller, owner.labels)
            exchange = Exchange(self, client, request, owner, path)
            client.attach(exchange)
            exchange.begin()

    def new_request_id(self) -> bytes:
        """Names the router, so that a look-up asks only one."""
        number = self._next_id = self._next_id + 1
        last = number & _LAST_BYTE
        if not last or not self._id_start:
            self._id_start = b"%b-%x" % (self.name, number >> 8)
        return self._id_start + _BYTES[last]

    def _hop(self, head: Head) -> Owner | None:
        """A request that another router admitted, if its token says that it may hop to this pod's pool."""
        token = head.headers.get(b"x-fairlead-router-token")
        if token is None or not self.place.pool:
            return None
        identity = self._verifier.verify(token.decode("latin-1"), AUDIENCE_ROUTER)
        pool = head.headers.get(b"x-fairlead-hop", b"").decode("latin-1").partition(";")[2]
        if identity is None or pool != self.place.pool:
            return None
        config = self.index.config
        allowed = {pool.partition("/")[0], config.release_namespace, *config.platform_namespaces}
        if identity.namespace not in allowed:
            return None
        return Owner(Caller(identity.namespace, identity.caller), Labels())

    def _speaks_for(self, namespace: str) -> bool:
        """A pod of a team's own pool may spend and report for its own namespace only: the ledger refuses the rest."""
        home = self.place.pod.partition("/")[0]
        return not self.place.pool or namespace == home or home in self.index.config.platform_namespaces

    def _identity(self, head: Head) -> Identity | None:
        """By ``Authorization: Bearer``, or by ``x-api-key`` as Anthropic's clients send it."""
        headers = head.headers
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            token = headers.get(b"x-api-key", b"") if b"authorization" not in headers else b""
        token = token.strip()
        return self._verifier.identify(token.decode("latin-1")) if token else None

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
        return answer(200, body, (("x-request-id", request.id.decode()),), close=close)

    # --- for exchanges ---

    def plan(self, owner: Owner, model: str) -> Plan | Refusal:
        """How an owner's requests for a model are served."""
        index, caller = self.index, owner.caller
        policy = find_policy(index, caller.namespace, model)
        if isinstance(policy, Refusal):
            return policy
        matches = matching_budgets(index, caller, owner.labels, model)
        refusal = refuse_unbudgeted(index, caller, matches)
        if refusal is not None:
            return refusal
        return self._plans.find(owner, model, policy, matches)

    def pick(self, plan: Plan, index: int) -> Lane:
        """The pool for the next request of a route: by weight, among those that have replicas.

        Where a budget downgrades, it is the route's pool for that, if there is one that has replicas and a price.
        """
        if plan.downgraded:
            lane = self._downgraded(plan, index)
            if lane is not None:
                return lane
        pools = plan.policy.routes[index].pools
        ref = pools[0] if len(pools) == 1 else self._weighted(pools)
        return plan.lane(index, ref.pool, adapter=ref.adapter)

    def _downgraded(self, plan: Plan, index: int) -> Lane | None:
        for fallback in plan.policy.routes[index].fallbacks:
            if "Downgraded" in fallback.when and self.serves(fallback.pool):
                lane = plan.lane(index, fallback.pool, "Fallback", fallback.adapter)
                if lane.refusal is None and not lane.line.empty():
                    return lane
        return None

    def _weighted(self, pools: tuple[WeightedPool, ...]) -> WeightedPool:
        weighted = [ref for ref in pools if ref.weight > 0 and self._lines[ref.pool].replicas]
        weighted = weighted or [ref for ref in pools if ref.weight > 0] or list(pools)
        total = sum(max(1, ref.weight) for ref in weighted)
        self._turn += 1
        rest = self._turn * _STRIDE % total
        for ref in weighted:
            rest -= max(1, ref.weight)
            if rest < 0:
                return ref
        return weighted[-1]

    def serves(self, pool: str) -> bool:
        """Whether the configuration in use has this pool: a request under way may have begun with another."""
        return pool in self._lines

    def line(self, pool: str) -> Line:
        """Who waits for a pool's replicas."""
        return self._lines[pool]

    def calibration_of(self, pool: str) -> Calibration:
        """Bytes per token of a pool's model."""
        found = self._calibrations.get(pool)
        if found is None:
            found = self._calibrations[pool] = Calibration()
        return found

    def retries_of(self, pool: str) -> RetryBudget:
        """How many requests to a pool may still be tried again."""
        found = self._retries.get(pool)
        if found is None:
            found = self._retries[pool] = RetryBudget()
        return found

    def touch(self, pool: str) -> None:
        """A request for this pool arrived or ended."""
        self.telemetry.pool(pool).last_request_ms = int(self.wall() * 1000)

    def asleep(self, route: RouteConfig) -> Line | None:
        """A pool of a route that never told its context and has no replica that could."""
        lines = (self._lines[ref.pool] for ref in route.pools)
        return next((line for line in lines if not line.config.max_context_tokens and not line.replicas), None)

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

    def tick(self) -> None:
        """Twice a second: replicas may be back from their ejection, accounts let go, other actions in force."""
        self.ticked_ms = int(self.wall() * 1000)
        self.session.tick()
        self.book_ms = self.session.ledger_ms() or self.ticked_ms
        for line in self._lines.values():
            line.advance()
        self.wallet.tick(self.session.ledger_ms())
        if self.wallet.changed:
            self.wallet.changed = False
            self.forget_plans()
        self.swept += self.session.sweep(_SWEEP_S)
        self.outages.tick(self.now())

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
            max_context_tokens=self.engine_watch.max_context_tokens,
            engine=self.engine_load.told if self.place.engine else None,
            pools=tuple(self._pool_signals(name, line, reader) for name, line in self._lines.items()),
            adapters=self.engine_watch.adapters.report(),
            engine_trouble=self.engine_watch.trouble(),
        )

    def _pool_signals(self, name: str, line: Line, reader: str) -> PoolSignals:
        tally, now = self.telemetry.pool(name), self.now()
        own = name == self.place.pool
        totals = tally.totals()
        demand = tally.demand
        return PoolSignals(
            pool=name,
            running=self.own_engine.value if own else 0,
            peak_running=self.own_engine.read(reader) if own else 0,
            held=line.held.value,
            peak_held=line.held.read(reader),
            last_request_ms=tally.last_request_ms,
            requests_total=totals.requests,
            prompt_tokens_total=totals.prompt,
            cached_tokens_total=totals.cached,
            output_tokens_total=totals.output,
            charged_nano_usd_total=totals.nano_usd,
            ttft_ms_p99=tally.ttft.p99_ms(now),
            tpot_ms_p99=tally.tpot.p99_ms(now),
            arrivals_total=demand.arrivals,
            arrived_tokens_total=demand.arrived_tokens,
            finished_total=demand.finished,
            met_total=demand.met,
            missed_total=demand.missed,
            met_ttft_total=demand.met_ttft,
            missed_ttft_total=demand.missed_ttft,
            met_tpot_total=demand.met_tpot,
            missed_tpot_total=demand.missed_tpot,
            waiting_tokens=demand.waiting_tokens,
            decoding=demand.decoding,
            context_tokens=demand.context_tokens,
            samples=tuple(demand.samples),
        )


_LAST_BYTE: Final = 0xFF
_BYTES: Final = tuple([b"%02x" % byte for byte in range(_LAST_BYTE + 1)])
"""Bytes in hexadecimal: an id is put together in a third of the time that formatting it takes."""
_STRIDE: Final = 7_919
"""A prime, so that turns spread over the pools of a route instead of running through one after the other."""


def body_limit(config: RouterConfig, unknown: int) -> int:
    """Bytes of a body that a client may send: enough for the largest route's prompt. ``unknown``: while none is known.

    Prose has four bytes a token and JSON escapes up to six a character, so 12 bytes for each token hold any prompt that
    is worth reading.
    """
    known = largest_context(config)
    if known:
        return max(_LEAST_BODY, _BYTES_PER_TOKEN * known)
    return max([unknown, *(_BYTES_PER_TOKEN * pool.max_context_tokens for pool in config.pools)])


def largest_context(config: RouterConfig) -> int:
    """In tokens; 0 while that of a pool is not known, which may be larger."""
    contexts = [pool.max_context_tokens for pool in config.pools]
    return max(contexts) if contexts and all(contexts) else 0


def not_served(head: Head) -> Refusal:
    """Why a method and path are not served: another method is, or the path is closed."""
    method, path = head.method.decode("latin-1"), head.path.decode("latin-1")
    if head.path not in SERVED and head.path != MODELS:
        return closed(method, head.path)
    allowed = "POST" if head.path in SERVED else "GET"
    headers = (("allow", allowed), *NO_RETRY)
    return Refusal(405, "method_not_allowed", f"{method} {path} is not served here. Use {allowed}.", headers=headers)


def read_labels(head: Head, identity: Identity) -> Labels | Refusal:
    """Feature, workflow and priority, as far as the caller named them."""
    values: list[str | None] = []
    for name in (b"x-fairlead-feature", b"x-fairlead-workflow"):
        raw = head.headers.get(name)
        if raw is None:
            values.append(None)
            continue
        text = raw.decode("latin-1")
        if not is_label(text):
            return bad_request(f"{name.decode()} must have 1 to {MAX_LABEL} printable ASCII characters.")
        values.append(text)
    asked = head.headers.get(b"x-fairlead-priority")
    priority = _PRIORITIES.get(asked.lower()) if asked is not None else None
    if asked is not None and priority is None:
        return bad_request("x-fairlead-priority must be Interactive, Standard or Batch.")
    feature, workflow = values
    return Labels(feature or identity.feature or None, workflow, priority)
