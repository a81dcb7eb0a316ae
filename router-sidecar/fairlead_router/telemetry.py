"""The router's metrics: additions to prepared objects on a request's way, text when Prometheus asks.

Labels are bounded: 200 tenants and then ``other``, 2,000 series for each metric; what does not fit is counted without a
series of its own. Money is kept in integers and becomes USD only as text.
"""

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from math import frexp
from typing import Final, Generic, NamedTuple, TypeVar

from fairlead_router.contract import NANO_PER_USD, PICO_PER_NANO, Card, PoolConfig
from fairlead_router.exposition import SLOTS, Buckets, Labels, Metric

MAX_TENANTS: Final = 200
MAX_SERIES: Final = 2_000
MAX_SAMPLES: Final = 16
"""Requests whose sizes one reading tells."""
OTHER_TENANT: Final = "other"

_PICO_PER_USD: Final = NANO_PER_USD * PICO_PER_NANO
_MICRO: Final = 1e6 * (1 - 2**-50)
"""Microseconds in a second, so little less that a value equal to a bound stays below it, as ``le`` promises."""
_MICRO_USD: Final = 1e-3
"""Micro-USD in a nano-USD."""
_SHARES: Final = 32
"""Bins for each power of two, of which frexp's mantissa in [0.5, 1) uses half: each is at most 6 % wide."""
_BIN_BITS: Final = 5
_TURN_S: Final = 30.0
_RECENT_S: Final = 300.0

_PER_ROUTE: Final = ("pool", "route", "priority")
_WAITS: Final = Buckets(1e-6, 6, 29)
STAGES: Final = ("router", "queue", "connect", "engine", "stream")

REQUESTS: Final = Metric(
    "fairlead_requests_total",
    "counter",
    "Requests that ended here, by outcome: ok, an error's code, cancelled, aborted, or engine_ and a status.",
    ("tenant", "pool", "route", "outcome"),
)
TOKENS: Final = Metric(
    "fairlead_tokens_total",
    "counter",
    "Tokens of settled requests, by kind: uncached, cached, output.",
    ("tenant", "pool", "kind"),
)
CHARGED: Final = Metric(
    "fairlead_charged_usd_total", "counter", "Charges, by kind of token.", ("tenant", "pool", "kind")
)
COST: Final = Metric(
    "fairlead_request_cost_usd", "histogram", "Charge of one request.", ("pool", "route"), Buckets(1e-6, 0, 23)
)
TTFT: Final = Metric(
    "fairlead_time_to_first_token_seconds",
    "histogram",
    "Streams: from the request's last byte to the answer's first one.",
    _PER_ROUTE,
    Buckets(1e-6, 10, 29),
)
TPOT: Final = Metric(
    "fairlead_time_per_output_token_seconds",
    "histogram",
    "Streams: the time between two output tokens, the mean of a request.",
    _PER_ROUTE,
    Buckets(1e-6, 8, 23),
)
QUEUE_WAIT: Final = Metric(
    "fairlead_queue_wait_seconds", "histogram", "Waiting for a replica or for a budget's lease.", _PER_ROUTE, _WAITS
)
OVERHEAD: Final = Metric(
    "fairlead_router_overhead_seconds",
    "histogram",
    "From the request's last byte until it was sent on, less waiting.",
    _PER_ROUTE,
    Buckets(1e-6, 3, 20),
)
OBJECTIVE: Final = Metric(
    "fairlead_objective_requests_total",
    "counter",
    "Requests that ended, by whether they met all of their pool's objectives of latency.",
    ("pool", "met"),
)
STAGE: Final = Metric(
    "fairlead_request_stage_seconds",
    "histogram",
    "A request's time by stage: router, queue, connect, engine (until the answer's first byte), stream (the rest).",
    (*_PER_ROUTE, "stage"),
    Buckets(1e-6, 4, 29),
)
RENEWALS: Final = Metric("fairlead_lease_renewals_total", "counter", "Messages to the ledger, by result.", ("result",))
RETRIES: Final = Metric(
    "fairlead_retries_total",
    "counter",
    "Requests that a replica failed, by result: tried (sent to another one), no_budget (too many retries already).",
    ("pool", "result"),
)
SHED: Final = Metric(
    "fairlead_shed_total", "counter", "Waiting requests refused in favour of a higher priority.", ("pool", "priority")
)
EJECTIONS: Final = Metric(
    "fairlead_replica_ejections_total", "counter", "Replicas left alone for a while because they failed.", ("pool",)
)
CONFIG_REJECTED: Final = Metric(
    "fairlead_config_rejected_total", "counter", "Configurations refused; the one before stays.", ("reason",)
)
REQUESTS_RUNNING: Final = Metric("fairlead_requests_running", "gauge", "Requests sent and not answered yet.", ("pool",))
REQUESTS_WAITING: Final = Metric("fairlead_requests_waiting", "gauge", "Requests that wait for a replica.", ("pool",))
CONFIG_AGE: Final = Metric("fairlead_config_age_seconds", "gauge", "Since the operator last confirmed it.")
CONFIG_INFO: Final = Metric(
    "fairlead_config_info", "gauge", "1: the versions in use.", ("version", "endpoints_version")
)
CONNECTIONS: Final = Metric(
    "fairlead_connections", "gauge", "Open connections, by side: client, upstream, upstream_idle.", ("side",)
)
BODIES_BYTES: Final = Metric(
    "fairlead_bodies_bytes", "gauge", "Memory that bodies hold, by kind: requests, answers.", ("kind",)
)
ACCESS_LOG_DROPPED: Final = Metric(
    "fairlead_access_log_dropped_total", "counter", "Lines of the access log that were not written."
)
DRAFTS: Final = Metric(
    "fairlead_drafts_total", "counter", "Times that this pod's engine drafted tokens ahead of the model.", ("pool",)
)
DRAFT_TOKENS: Final = Metric("fairlead_draft_tokens_total", "counter", "Tokens that it drafted.", ("pool",))
DRAFT_ACCEPTED: Final = Metric(
    "fairlead_draft_accepted_tokens_total",
    "counter",
    "Drafted tokens that the model kept, by their place in the draft, from 1 on.",
    ("pool", "position"),
)
DRAFT_RATIO: Final = Metric(
    "fairlead_draft_acceptance_ratio", "gauge", "Of the tokens drafted in the last 5 minutes the share kept.", ("pool",)
)
DRAFT_LENGTH: Final = Metric(
    "fairlead_draft_accepted_length",
    "gauge",
    "Mean tokens of a drafted step in the last 5 minutes: those kept, and the model's own.",
    ("pool",),
)
ENGINE_READY: Final = Metric(
    "fairlead_engine_ready", "gauge", "1: this pod's engine answered its warm-up since its last start.", ("pool",)
)
ADAPTER_LOADED: Final = Metric(
    "fairlead_adapter_loaded",
    "gauge",
    "1: this pod's engine has the LoRA adapter; 0: it should have it.",
    ("pool", "adapter"),
)
DROPPED: Final = Metric(
    "fairlead_series_dropped_total", "counter", "Times that a series did not fit a metric's 2,000.", ("metric",)
)
METRICS: Final = (
    REQUESTS, TOKENS, CHARGED, COST, TTFT, TPOT, QUEUE_WAIT, OVERHEAD, OBJECTIVE, STAGE, RENEWALS, RETRIES, SHED,
    EJECTIONS, CONFIG_REJECTED, REQUESTS_RUNNING, REQUESTS_WAITING, CONFIG_AGE, CONFIG_INFO, CONNECTIONS, BODIES_BYTES,
    ACCESS_LOG_DROPPED, DRAFTS, DRAFT_TOKENS, DRAFT_ACCEPTED, DRAFT_RATIO, DRAFT_LENGTH, ENGINE_READY, ADAPTER_LOADED,
    DROPPED,
)  # fmt: skip
"""Every metric of a router, for the reference."""

Read = Callable[[], Iterable[tuple[Labels, float]]]


class Counter:
    """A counter of rare things."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.dropped = 0
        self._values: dict[Labels, int] = {}

    def add(self, labels: Labels) -> None:
        """Count one."""
        values = self._values
        if labels in values or len(values) < MAX_SERIES:
            values[labels] = values.get(labels, 0) + 1
        else:
            self.dropped += 1

    def samples(self) -> Iterator[str]:
        """The lines as they are now."""
        for labels, value in self._values.items():
            yield self.metric.sample(labels, value)


class Recent:
    """The values of a latency in the last five minutes, for the operator's signals.

    Kept as counts in bins at most 6 % wide, in eleven parts of 30 s: what a part holds leaves together. A bin's number
    is 32 x the exponent + 32 x the mantissa of the value in µs (``frexp``).
    """

    __slots__ = ("_past", "bins", "until")

    def __init__(self) -> None:
        self.bins: defaultdict[int, int] = defaultdict(int)
        self.until = -math.inf
        self._past: deque[tuple[float, dict[int, int]]] = deque(maxlen=math.ceil(_RECENT_S / _TURN_S))

    def add(self, now: float, seconds: float) -> None:
        """Remember a value. ``Series.streamed`` does the same in line."""
        if now >= self.until:
            self.turn(now)
        mantissa, exponent = frexp(seconds * _MICRO)
        self.bins[(exponent << _BIN_BITS) + int(mantissa * _SHARES)] += 1

    def turn(self, now: float) -> None:
        """Begin a part."""
        if self.bins:
            self._past.append((self.until, self.bins))
            self.bins = defaultdict(int)
        self.until = now + _TURN_S

    def p99_ms(self, now: float) -> int:
        """The 99th percentile in ms, at least 1; 0 when there is nothing recent."""
        counts: defaultdict[int, int] = defaultdict(int)
        for until, bins in (*self._past, (self.until, self.bins)):
            if until > now - _RECENT_S:
                for number, count in bins.items():
                    counts[number] += count
        rest = math.ceil(sum(counts.values()) * 0.99)
        for number in sorted(counts):
            rest -= counts[number]
            if rest <= 0:
                return max(1, round(_middle_ms(number)))
        return 0


def _middle_ms(number: int) -> float:
    share = (number & (_SHARES - 1)) + 0.5
    return math.ldexp(share / _SHARES, number >> _BIN_BITS) / 1000


class _Outcomes:
    """How the requests of one (tenant, pool, route) ended."""

    __slots__ = ("counts", "others", "shown")

    def __init__(self, *, shown: bool = True) -> None:
        self.shown = shown
        self.counts: dict[str, int] = {}
        self.others = 0


class _Money:
    """Tokens of one (tenant, pool), and what they cost.

    What they cost is computed when the pool's card changes, and when it is asked for: ``_priced`` is how many tokens
    ``_pico`` has, each by kind.
    """

    __slots__ = ("_pico", "_priced", "cached", "card", "output", "uncached")

    def __init__(self) -> None:
        self.uncached = 0
        self.cached = 0
        self.output = 0
        self.card: Card | None = None
        self._priced = (0, 0, 0)
        self._pico = (0, 0, 0)

    def reprice(self, card: Card | None) -> None:
        """Tokens from now on cost what this card says; without one, nothing."""
        self._pico = self.pico()
        self._priced = self.tokens()
        self.card = card

    def tokens(self) -> tuple[int, int, int]:
        """Uncached, cached, output."""
        return self.uncached, self.cached, self.output

    def pico(self) -> tuple[int, int, int]:
        """What they cost, in pico-USD."""
        card, before, priced = self.card, self._pico, self._priced
        if card is None:
            return before
        return (
            before[0] + (self.uncached - priced[0]) * card.prompt_pico,
            before[1] + (self.cached - priced[1]) * card.cached_pico,
            before[2] + (self.output - priced[2]) * card.output_pico,
        )


class _Cost:
    """Charges of the requests of one (pool, route)."""

    __slots__ = ("counts", "nano")

    def __init__(self) -> None:
        self.counts = [0] * SLOTS
        self.nano = 0


class _Stages:
    """Times of one (pool, route, priority): counts in ``SLOTS``, and sums in seconds.

    ``queue`` and ``connect`` leave out those of 0 seconds, as most are: they are as many as ``engine`` has more.
    """

    __slots__ = (
        "connect", "connect_s", "engine", "engine_s", "queue", "queue_s", "router", "router_s", "stream", "stream_s",
        "tpot", "tpot_s", "ttft", "ttft_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self.router, self.queue, self.connect = [0] * SLOTS, [0] * SLOTS, [0] * SLOTS
        self.engine, self.stream = [0] * SLOTS, [0] * SLOTS
        self.ttft, self.tpot = [0] * SLOTS, [0] * SLOTS
        self.router_s = self.queue_s = self.connect_s = self.engine_s = self.stream_s = 0.0
        self.ttft_s = self.tpot_s = 0.0

    def by_stage(self) -> Iterator[tuple[str, list[int], float]]:
        """Name, counts and sum of each stage."""
        yield "router", self.router, self.router_s
        yield "queue", self.waits(), self.queue_s
        yield "connect", self._with_zeros(self.connect), self.connect_s
        yield "engine", self.engine, self.engine_s
        yield "stream", self.stream, self.stream_s

    def waits(self) -> list[int]:
        """Counts of the queue, those that did not wait among them."""
        return self._with_zeros(self.queue)

    def _with_zeros(self, counts: list[int]) -> list[int]:
        return [counts[0] + sum(self.engine) - sum(counts), *counts[1:]]


_Part = TypeVar("_Part")


class _Table(Generic[_Part]):
    """The parts of some metrics, by labels. ``share`` is how many series a part shows in each."""

    def __init__(self, metrics: tuple[Metric, ...], make: Callable[[], _Part], share: int = 1) -> None:
        self.metrics = metrics
        self.dropped = 0
        self._parts: dict[Labels, _Part] = {}
        self._make = make
        self._most = MAX_SERIES // share

    def __len__(self) -> int:
        return len(self._parts)

    def items(self) -> Iterable[tuple[Labels, _Part]]:
        """Labels and parts, oldest first."""
        return self._parts.items()

    def find(self, labels: Labels, known: list[_Part]) -> _Part:
        """The part of these labels, added to ``known``; when it does not fit, the first of those."""
        found = self._parts.get(labels)
        if found is not None:
            return found
        if len(self._parts) >= self._most:
            self.dropped += 1
            return known[0]
        found = self._parts[labels] = self._make()
        known.append(found)
        return found


class Totals(NamedTuple):
    """What a router counted of one pool. ``prompt`` counts all prompt tokens, cached or not."""

    requests: int
    prompt: int
    cached: int
    output: int
    nano_usd: int


class Demand:
    """What is asked of one pool through this router, and how it was served: for the autoscaler.

    ``decoding``, ``waiting_tokens`` and ``context_tokens`` are of now, the rest are totals.
    """

    __slots__ = (
        "arrivals", "arrived_tokens", "context_tokens", "decoding", "finished", "met", "met_tpot", "met_ttft", "missed",
        "missed_tpot", "missed_ttft", "samples", "waiting_tokens",
    )  # fmt: skip

    def __init__(self) -> None:
        self.arrivals = self.arrived_tokens = self.finished = 0
        self.met = self.missed = 0
        self.met_ttft = self.missed_ttft = self.met_tpot = self.missed_tpot = 0
        self.waiting_tokens = self.decoding = self.context_tokens = 0
        self.samples: deque[tuple[int, int]] = deque(maxlen=MAX_SAMPLES)

    def arrived(self, tokens: int) -> None:
        """A request of so many prompt tokens wants a replica."""
        self.arrivals += 1
        self.arrived_tokens += tokens
        self.waiting_tokens += tokens

    def began(self, tokens: int) -> None:
        """Its output is being made."""
        self.waiting_tokens -= tokens
        self.decoding += 1
        self.context_tokens += tokens

    def left(self, tokens: int, *, decoding: bool) -> None:
        """It wants nothing more of this pool."""
        if decoding:
            self.decoding -= 1
            self.context_tokens -= tokens
        else:
            self.waiting_tokens -= tokens

    def turned_away(self, config: PoolConfig) -> None:
        """The pool had no room for it in time."""
        if config.ttft_ms or config.tpot_ms:
            self.missed += 1
            if config.ttft_ms:
                self.missed_ttft += 1

    def streamed(self, config: PoolConfig, ttft_s: float, stream_s: float, output: int) -> None:
        """A stream was answered whole: judge it by the pool's objectives."""
        ttft, tpot = config.ttft_ms, config.tpot_ms
        if not (ttft or tpot):
            return
        kept = True
        if ttft:
            kept = ttft_s * 1000 <= ttft
            if kept:
                self.met_ttft += 1
            else:
                self.missed_ttft += 1
        if tpot:
            if stream_s * 1000 <= tpot * max(1, output - 1):
                self.met_tpot += 1
            else:
                self.missed_tpot += 1
                kept = False
        if kept:
            self.met += 1
        else:
            self.missed += 1

    def answered(self, config: PoolConfig, took_s: float, output: int) -> None:
        """An answer that is no stream came whole: only the time for all of it is known, so both objectives are needed.

        What is slower than they allow together has missed one of them.
        """
        if config.ttft_ms and config.tpot_ms:
            if took_s * 1000 <= config.ttft_ms + config.tpot_ms * max(0, output - 1):
                self.met += 1
            else:
                self.missed += 1


class PoolTally:
    """Everything that a router counted of one pool as its requests' entry.

    The first of each list has no labels: it counts what did not fit a metric's series.
    """

    __slots__ = ("costs", "demand", "last_request_ms", "money", "outcomes", "tpot", "ttft")

    def __init__(self) -> None:
        self.last_request_ms = 0
        self.demand = Demand()
        self.ttft = Recent()
        self.tpot = Recent()
        self.outcomes = [_Outcomes(shown=False)]
        self.money = [_Money()]
        self.costs = [_Cost()]

    def totals(self) -> Totals:
        """The sums over all tenants and routes."""
        tokens = [money.tokens() for money in self.money]
        uncached, cached, output = (sum(kind) for kind in zip(*tokens, strict=True))
        return Totals(
            requests=sum(part.others + sum(part.counts.values()) for part in self.outcomes),
            prompt=uncached + cached,
            cached=cached,
            output=output,
            nano_usd=sum(cost.nano for cost in self.costs),
        )


class Series:
    """Where the requests of one (tenant, pool, route, priority) are counted. Prepared once, used for each request.

    Its methods are on the way of every request, so they hold what they add to, and share no helpers.
    """

    __slots__ = ("_cost", "_counts", "_money", "_outcomes", "_stages", "_telemetry", "_tpot", "_ttft")

    def __init__(  # noqa: PLR0917 - made in one place, below
        self,
        telemetry: "Telemetry",
        tally: PoolTally,
        outcomes: _Outcomes,
        money: _Money,
        cost: _Cost,
        stages: _Stages,
    ) -> None:
        self._telemetry = telemetry
        self._outcomes = outcomes
        self._counts = outcomes.counts
        self._money = money
        self._cost = cost
        self._stages = stages
        self._ttft = tally.ttft
        self._tpot = tally.tpot

    def outcome(self, code: str) -> None:
        """A request ended so; once for each."""
        try:
            self._counts[code] += 1
        except KeyError:
            self._telemetry.add_outcome(self._outcomes, code)

    def settled(self, uncached: int, cached: int, output: int, card: Card | None, nano_usd: int) -> None:
        """A request used these tokens, and was charged ``nano_usd``; without a card it has no price."""
        money, cost = self._money, self._cost
        if card is not money.card:
            money.reprice(card)
        money.uncached += uncached
        money.cached += cached
        money.output += output
        if card is not None:
            cost.nano += nano_usd
            cost.counts[frexp((nano_usd - 1) * _MICRO_USD)[1]] += 1

    def stages(self, router_s: float, queue_s: float, connect_s: float, engine_s: float) -> None:
        """An engine answered a request: its times in seconds until the answer's first byte, each at least 0.

        ``router_s`` is from the request's last byte until it was sent on, less ``queue_s``; ``queue_s`` and
        ``connect_s`` are 0.0 when there was no waiting and no connecting.
        """
        stages = self._stages
        stages.router[frexp(router_s * _MICRO)[1]] += 1
        stages.router_s += router_s
        stages.engine[frexp(engine_s * _MICRO)[1]] += 1
        stages.engine_s += engine_s
        if queue_s:
            stages.queue[frexp(queue_s * _MICRO)[1]] += 1
            stages.queue_s += queue_s
        if connect_s:
            stages.connect[frexp(connect_s * _MICRO)[1]] += 1
            stages.connect_s += connect_s

    def streamed(self, now: float, ttft_s: float, stream_s: float, output: int) -> None:
        """A stream ended: seconds until its first byte and from there to its last, and its output tokens."""
        stages, recent = self._stages, self._ttft
        mantissa, exponent = frexp(ttft_s * _MICRO)
        stages.ttft[exponent] += 1
        stages.ttft_s += ttft_s
        if now >= recent.until:
            recent.turn(now)
        recent.bins[(exponent << _BIN_BITS) + int(mantissa * _SHARES)] += 1
        stages.stream[frexp(stream_s * _MICRO)[1]] += 1
        stages.stream_s += stream_s
        if output > 1:
            recent, gap = self._tpot, stream_s / (output - 1)
            mantissa, exponent = frexp(gap * _MICRO)
            stages.tpot[exponent] += 1
            stages.tpot_s += gap
            if now >= recent.until:
                recent.turn(now)
            recent.bins[(exponent << _BIN_BITS) + int(mantissa * _SHARES)] += 1


class Telemetry:
    """All metrics of a router."""

    def __init__(self) -> None:
        self.renewals = Counter(RENEWALS)
        self.retries = Counter(RETRIES)
        self.shed = Counter(SHED)
        self.ejections = Counter(EJECTIONS)
        self.config_rejected = Counter(CONFIG_REJECTED)
        self._counters = (self.renewals, self.retries, self.shed, self.ejections, self.config_rejected)
        self._tenants: set[str] = set()
        self._pools: dict[str, PoolTally] = {}
        self._nowhere = PoolTally()
        self._outcomes = _Table((REQUESTS,), _Outcomes)
        self._codes = 0
        self._money = _Table((TOKENS, CHARGED), _Money, 3)
        self._costs = _Table((COST,), _Cost)
        self._stages = _Table((TTFT, TPOT, QUEUE_WAIT, OVERHEAD), _Stages)
        self._no_stages = [_Stages()]
        self._read: list[tuple[Metric, Read]] = []

    def series(self, tenant: str, pool: str, route: str, priority: str) -> Series:
        """Where to count the requests of a caller's namespace for a route; pool and route are empty while unknown."""
        tenant, tally = self._tenant(tenant), self.pool(pool)
        return Series(
            self,
            tally,
            self._outcomes.find((tenant, pool, route), tally.outcomes),
            self._money.find((tenant, pool), tally.money),
            self._costs.find((pool, route), tally.costs),
            self._stages.find((pool, route, priority), self._no_stages),
        )

    def pool(self, pool: str) -> PoolTally:
        """What was counted of a pool."""
        found = self._pools.get(pool)
        if found is not None:
            return found
        if len(self._pools) >= MAX_SERIES:
            return self._nowhere
        found = self._pools[pool] = PoolTally()
        return found

    def read(self, metric: Metric, read: Read) -> None:
        """Add a metric whose values, by labels, are asked for when Prometheus asks."""
        self._read.append((metric, read))

    def add_outcome(self, outcomes: _Outcomes, code: str) -> None:
        """Count an outcome that these requests did not have before."""
        if outcomes.shown and self._codes < MAX_SERIES:
            self._codes += 1
            outcomes.counts[code] = 1
            return
        outcomes.others += 1
        self._outcomes.dropped += outcomes.shown

    def render(self) -> Iterator[bytes]:
        """The text of all metrics as they are now, one after the other."""
        for metric, samples in self._families():
            yield (metric.head() + "".join(samples)).encode()

    def _families(self) -> Iterator[tuple[Metric, Iterator[str]]]:
        yield REQUESTS, self._requests()
        yield TOKENS, self._by_kind(TOKENS, _Money.tokens, 1)
        yield CHARGED, self._by_kind(CHARGED, _Money.pico, _PICO_PER_USD)
        yield COST, _histograms(COST, ((key, it.counts, it.nano / NANO_PER_USD) for key, it in self._costs.items()))
        stages = self._stages
        yield TTFT, _histograms(TTFT, ((key, it.ttft, it.ttft_s) for key, it in stages.items()))
        yield TPOT, _histograms(TPOT, ((key, it.tpot, it.tpot_s) for key, it in stages.items()))
        yield QUEUE_WAIT, _histograms(QUEUE_WAIT, ((key, it.waits(), it.queue_s) for key, it in stages.items()))
        yield OVERHEAD, _histograms(OVERHEAD, ((key, it.router, it.router_s) for key, it in stages.items()))
        yield OBJECTIVE, self._objectives()
        yield STAGE, self._by_stage()
        for counter in self._counters:
            yield counter.metric, counter.samples()
        for metric, read in self._read:
            yield metric, (metric.sample(labels, value) for labels, value in read())
        yield DROPPED, (DROPPED.sample((name,), count) for name, count in self._dropped() if count)

    def _requests(self) -> Iterator[str]:
        for key, outcomes in self._outcomes.items():
            for code, count in outcomes.counts.items():
                yield REQUESTS.sample((*key, code), count)

    def _objectives(self) -> Iterator[str]:
        for pool, tally in islice(self._pools.items(), MAX_SERIES // 2):
            demand = tally.demand
            if demand.met or demand.missed:
                yield OBJECTIVE.sample((pool, "true"), demand.met)
                yield OBJECTIVE.sample((pool, "false"), demand.missed)

    def _by_kind(self, metric: Metric, read: Callable[[_Money], tuple[int, int, int]], unit: int) -> Iterator[str]:
        for key, money in self._money.items():
            if any(money.tokens()):
                for kind, value in zip(("uncached", "cached", "output"), read(money), strict=True):
                    yield metric.sample((*key, kind), value / unit)

    def _by_stage(self) -> Iterator[str]:
        most = MAX_SERIES // len(STAGES)
        for key, stages in islice(self._stages.items(), most):
            yield from _histograms(STAGE, (((*key, name), counts, total) for name, counts, total in stages.by_stage()))

    def _dropped(self) -> Iterator[tuple[str, int]]:
        for table in (self._outcomes, self._money, self._costs, self._stages):
            for metric in table.metrics:
                yield metric.name, table.dropped
        hidden = max(0, len(self._stages) - MAX_SERIES // len(STAGES))
        yield STAGE.name, self._stages.dropped + hidden
        for counter in self._counters:
            yield counter.metric.name, counter.dropped

    def _tenant(self, namespace: str) -> str:
        if namespace in self._tenants:
            return namespace
        if len(self._tenants) >= MAX_TENANTS:
            return OTHER_TENANT
        self._tenants.add(namespace)
        return namespace


def _histograms(metric: Metric, series: Iterable[tuple[Labels, list[int], float]]) -> Iterator[str]:
    """Those that have a value; ``series`` are labels, counts and sum."""
    for labels, counts, total in series:
        if any(counts):
            yield metric.histogram(labels, counts, total)
