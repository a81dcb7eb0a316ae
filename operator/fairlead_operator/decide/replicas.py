"""How many replicas a pool should have now, and why.

A replica takes ``slots`` running requests and ``queueDepth`` waiting ones. More are added at once when the demand of
now does not fit; one is taken away only after the highest demand of a whole window would have fitted without it. The
window is as long as a start takes: keeping a replica for that long costs what starting it again would cost in waiting,
so the bill is at most twice that of knowing the future (ski rental).

That is what ``queueDepth`` asks for. Where there are objectives of latency, their law (``decide.autoscale``) decides
what is kept, and ``queueDepth`` only adds: the larger number wins. Neither goes above what the pool's owner or its
budgets will pay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fairlead_operator.api.v1alpha1 import ModelPoolSpec, Reason, ScalingReason, Variant
from fairlead_operator.decide.autoscale import CapBound, Wish
from fairlead_operator.decide.engine_table.hardware import default_sequences
from fairlead_operator.decide.facts import clock_text
from fairlead_operator.decide.signals import STALE_MS, Load, Missing
from fairlead_operator.decide.variants import Counts, Split, VariantOption, change_text, cost_per_hour, distribute
from fairlead_operator.units import format_duration, format_usd

DEFAULT_COLD_START_MS = 120_000
SHORTEST_WINDOW_MS = 30_000
MAX_PEAKS = 512
TEN_CENTS = 100_000_000
STARTS_REMEMBERED = 20
P90_PERCENT = 90

STEADY = "Steady"

_LIMITS: Mapping[str, Reason] = {
    Reason.MAX_REPLICAS: Reason.MAX_REPLICAS,
    Reason.MIN_REPLICAS: Reason.MIN_REPLICAS,
    Reason.VARIANT_BOUNDS: Reason.VARIANT_BOUNDS,
    CapBound.COST: Reason.COST_PER_REQUEST,
    CapBound.SPEND: Reason.BUDGET,
}
"""What bound the law of latency, as conditions say it; a step's size limits only for one round."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The highest demand of one scrape round."""

    at_ms: int
    demand: int


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of a pool between decisions: the window's maxima, oldest and highest first.

    ``since_ms``: since when every moment is known. ``last_request_ms``: 0 = none was ever seen.
    """

    since_ms: int
    peaks: tuple[Peak, ...] = ()
    last_request_ms: int = 0

    @property
    def highest(self) -> int:
        """The highest demand that is still remembered."""
        return max((peak.demand for peak in self.peaks), default=0)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the spec allows. ``fixed``: spec.replicas, which leaves the number to whoever writes it."""

    fixed: int | None
    minimum: int
    maximum: int
    queue_depth: int
    zero_after_ms: int | None


@dataclass(frozen=True, slots=True)
class Spending:
    """What may be paid, in nano-USD; ``None`` = no limit. ``per_hour`` is what budgets leave for the pool.

    ``requests_per_hour`` is what is asked of the pool now, for the cost of a thousand requests.
    """

    per_thousand: int | None = None
    per_hour: int | None = None
    requests_per_hour: int = 0
    pays_a_replica: bool = True
    """Whether the budgets pay for what runs until it is gone."""

    def bound(self, cost: int | None) -> str:
        """What forbids to pay so much an hour, empty if nothing does; a cost that is unknown is above every limit."""
        if not self.pays_a_replica and cost != 0:
            return Reason.BUDGET
        if self.per_hour is not None and (cost is None or cost > self.per_hour):
            return Reason.BUDGET
        if self.per_thousand is not None and (cost is None or cost * 1000 > self.per_thousand * self.requests_per_hour):
            return Reason.COST_PER_REQUEST
        return ""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that a decision is made from. ``latency``: what the objectives of latency ask for."""

    bounds: Bounds
    options: tuple[VariantOption, ...]
    slots: int
    load: Load
    memory: Memory
    cold_start_ms: int
    now_ms: int
    ready: int = 0
    latency: Wish | None = None
    spending: Spending = field(default_factory=Spending)

    @property
    def current(self) -> int:
        """Replicas wanted so far."""
        return sum(option.current for option in self.options)


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas, on which variants, and why.

    ``message`` is the sentence of ``status.scaling``; ``because`` the short form for an Event. ``bound_by`` names what
    kept the number from ``wanted``. Costs are nano-USD an hour, ``None`` without a price.
    """

    replicas: int
    counts: Counts
    current: int
    wanted: int
    reason: str
    message: str
    because: str
    bound_by: str = ""
    signals_missing: bool = False
    cost_per_hour_before: int | None = None
    cost_per_hour_after: int | None = None

    moved: bool = False
    """Whether a variant's number changes."""

    @property
    def changed(self) -> bool:
        """Whether replicas come or go."""
        return self.moved or self.replicas != self.current


@dataclass(frozen=True, slots=True)
class _Wish:
    """What demand asks for, before the bounds."""

    replicas: int
    reason: str
    message: str
    because: str


def bounds_of(spec: ModelPoolSpec) -> Bounds:
    """The pool's bounds; variants' minima raise the lower one, because they are reserved capacity."""
    scaling = spec.autoscaling
    if scaling is None:
        fixed = spec.replicas or 0
        return Bounds(fixed, fixed, fixed, 0, None)
    reserved = sum(variant.min_replicas for variant in spec.variants)
    minimum = min(max(scaling.min_replicas, reserved), scaling.max_replicas)
    return Bounds(None, minimum, scaling.max_replicas, scaling.objectives.queue_depth, scaling.idle_ms)


def slots_of(spec: ModelPoolSpec) -> int:
    """Requests that every replica of the pool can run at once, whichever variant it is of."""
    return min(sequences_of(spec, variant) for variant in spec.variants)


def sequences_of(spec: ModelPoolSpec, variant: Variant) -> int:
    """Requests that a replica of the variant runs at once: what its engine is told, else what vLLM takes by itself."""
    engine = spec.engine_of(variant)
    return engine.max_sequences or default_sequences(variant, engine.max_batched_tokens or 0)


def cold_start_ms(measured: Sequence[int]) -> int:
    """How long a start takes: the 90th percentile of the newest starts, or a default before the first."""
    newest = sorted(measured[-STARTS_REMEMBERED:])
    return newest[-(-len(newest) * P90_PERCENT // 100) - 1] if newest else DEFAULT_COLD_START_MS


def window_ms(cold_start: int) -> int:
    """How long a replica must have been unneeded before it goes."""
    return max(SHORTEST_WINDOW_MS, cold_start)


def remember(memory: Memory, load: Load, now_ms: int, window: int) -> Memory:
    """The memory after one scrape round. A round with a router missing starts the window anew: unknown is not zero."""
    last = max(memory.last_request_ms, min(load.last_request_ms, now_ms))  # a clock ahead of ours keeps nothing awake
    if not load.complete:
        return Memory(now_ms, (), last)
    peak = Peak(now_ms, max(load.peak, load.demand))
    kept = [one for one in memory.peaks if one.at_ms > now_ms - window and one.demand > peak.demand]
    return Memory(memory.since_ms, _bounded((*kept, peak)), last)


def decide(inputs: Inputs) -> Decision:
    """One decision: what the objectives ask for, the most of it, cut to the bounds, on the cheapest variants."""
    latency = inputs.latency
    if latency is not None and _needed(inputs) <= latency.replicas:
        return _as_wished(inputs, latency)
    if latency is not None:
        inputs = replace(inputs, options=_held(inputs.options, latency.counts))
    return _by_queue(inputs)


def _as_wished(inputs: Inputs, wish: Wish) -> Decision:
    """What the law of latency decided; it knows the bounds."""
    current = [(one.name, one.current) for one in inputs.options]
    return Decision(
        replicas=wish.replicas,
        counts=wish.counts,
        current=inputs.current,
        wanted=wish.wanted,
        reason=wish.reason,
        message=wish.message,
        because=wish.because,
        bound_by=_LIMITS.get(wish.bound_by, ""),
        signals_missing=not inputs.load.complete,
        cost_per_hour_before=cost_per_hour(current, inputs.options),
        cost_per_hour_after=cost_per_hour(wish.counts, inputs.options),
        moved=_moved(wish.counts, inputs.options),
    )


def _held(options: Sequence[VariantOption], counts: Counts) -> tuple[VariantOption, ...]:
    """The variants with what the law of latency wants of each as the least."""
    wanted = dict(counts)
    return tuple(replace(one, minimum=max(one.minimum, wanted.get(one.name, 0))) for one in options)


def _by_queue(inputs: Inputs) -> Decision:
    """What demand asks for, cut to the bounds and to what may be paid, on the cheapest variants with room."""
    wish = _wish(inputs)
    bounded, bound = _bounded_total(wish.replicas, inputs.bounds)
    split = distribute(bounded, inputs.options)
    bound_by = Reason.VARIANT_BOUNDS if split.short else bound
    split, bound_by = _affordable(split, bound_by, inputs)
    texts = (*_told(wish, bound_by, inputs, split.total), _set_text(split.counts, inputs.options))
    return Decision(
        replicas=split.total,
        counts=split.counts,
        current=inputs.current,
        wanted=max(wish.replicas, int(bound_by == Reason.BUDGET)),
        reason=_reason(wish, bound_by, inputs.current, split.total),
        message=" ".join(text for text in texts if text),
        because=_because(wish, bound_by, inputs, split.total),
        bound_by=bound_by,
        signals_missing=inputs.bounds.fixed is None and not inputs.load.complete,
        cost_per_hour_before=cost_per_hour(((one.name, one.current) for one in inputs.options), inputs.options),
        cost_per_hour_after=cost_per_hour(split.counts, inputs.options),
        moved=_moved(split.counts, inputs.options),
    )


def _moved(counts: Counts, options: Sequence[VariantOption]) -> bool:
    current = {one.name: one.current for one in options}
    return any(current.get(name, 0) != count for name, count in counts)


def _affordable(split: Split, bound_by: str, inputs: Inputs) -> tuple[Split, str]:
    """The largest number that may be paid, never below the minimum or a pool's first replica.

    What runs stays where a thousand requests cost too much, but not where the budgets leave no money for it; then the
    first replica is not excepted either, and a pool at zero is bound by them before anybody asks it.
    """
    floor = max(inputs.bounds.minimum, int(inputs.spending.pays_a_replica))
    while split.total > floor and inputs.bounds.fixed is None:
        bound = inputs.spending.bound(cost_per_hour(split.counts, inputs.options))
        if not bound or (bound == Reason.COST_PER_REQUEST and split.total <= inputs.current):
            break
        split, bound_by = distribute(split.total - 1, inputs.options), bound
    closed = not split.total and not floor and inputs.bounds.fixed is None
    return split, Reason.BUDGET if closed else bound_by


def missing_text(missing: Sequence[Missing], now_ms: int) -> str:
    """Which routers are silent and since when."""
    first = missing[0]
    if not first.router:
        return "No router is ready that could say what is asked of the pool."
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    allowed = format_duration(STALE_MS)
    if not first.last_ms:
        return f"No signals from router {first.router}{more} yet ({allowed} allowed)."
    age = format_duration((now_ms - first.last_ms) // 1000 * 1000)
    return f"No signals from router {first.router}{more} since {clock_text(first.last_ms)} ({age}; {allowed} allowed)."


def _wish(inputs: Inputs) -> _Wish:
    bounds, load = inputs.bounds, inputs.load
    if bounds.fixed is not None:
        text = f"spec.replicas is {bounds.fixed}"
        return _Wish(bounds.fixed, ScalingReason.REPLICAS_SET, f"{text}.", text)
    needed = _needed(inputs)
    if needed > inputs.current:
        return _grow(inputs, needed)
    if not load.complete:
        text = f"{missing_text(load.missing, inputs.now_ms)} It keeps {_replicas(inputs.current)}."
        return _Wish(inputs.current, Reason.SIGNALS_MISSING, text, "signals are missing")
    return _idle(inputs) or _shrink(inputs) or _keep(inputs)


def _needed(inputs: Inputs) -> int:
    """Replicas that hold what is asked for now with at most queueDepth waiting at each."""
    return -(-inputs.load.demand // (inputs.slots + inputs.bounds.queue_depth))


def _grow(inputs: Inputs, needed: int) -> _Wish:
    load, bounds = inputs.load, inputs.bounds
    waiting = load.waiting + load.held
    parts = [f"{load.running} running"] * bool(load.running) + [f"{waiting} waiting"] * bool(waiting)
    need = "needs" if load.demand == 1 else "need"
    message = f"{' + '.join(parts)} {need} {_replicas(needed)}: {_capacity(inputs)}."
    if inputs.current == 0:
        waits = "1 request waits" if load.demand == 1 else f"{load.demand} requests wait"
        return _Wish(needed, ScalingReason.HELD_REQUESTS, message, f"{waits} and no replica runs")
    room = inputs.current * (inputs.slots + bounds.queue_depth)
    taken = f"{_requests(load.demand)} are above the {room} that {_replicas(inputs.current)} may hold"
    return _Wish(needed, ScalingReason.QUEUE_DEPTH, message, taken)


def _idle(inputs: Inputs) -> _Wish | None:
    after, memory = inputs.bounds.zero_after_ms, inputs.memory
    if after is None or inputs.current == 0 or inputs.load.demand:
        return None
    since = memory.last_request_ms or memory.since_ms
    if inputs.now_ms - since < after:
        return None
    text = f"no request for {format_duration(after)}"
    return _Wish(0, ScalingReason.IDLE, f"{text[0].upper()}{text[1:]} (scaleToZeroAfter).", text)


def _shrink(inputs: Inputs) -> _Wish | None:
    window = window_ms(inputs.cold_start_ms)
    if inputs.now_ms - inputs.memory.since_ms < window:
        return None
    highest = max(inputs.memory.highest, inputs.load.peak, inputs.load.demand)
    fit = max(1, -(-highest // inputs.slots))
    if fit >= inputs.current:
        return None
    seen = f"at most {_requests(highest)} at once in {format_duration(window)}"
    message = (
        f"{seen[0].upper()}{seen[1:]}, the time that a start takes, {'fits' if highest == 1 else 'fit'} "
        f"{_replicas(fit)}: one runs {inputs.slots}."
    )
    return _Wish(fit, ScalingReason.LOW_DEMAND, message, f"{seen}, {_replicas(fit)} can run {fit * inputs.slots}")


def _keep(inputs: Inputs) -> _Wish:
    load = inputs.load
    text = (
        f"{load.running} running + {load.waiting + load.held} waiting keep {_replicas(inputs.current)}: "
        f"{_capacity(inputs)}."
    )
    return _Wish(inputs.current, STEADY, text, "demand is steady")


def _bounded_total(wanted: int, bounds: Bounds) -> tuple[int, str]:
    if wanted > bounds.maximum:
        return bounds.maximum, Reason.MAX_REPLICAS
    if wanted < bounds.minimum:
        return bounds.minimum, Reason.MIN_REPLICAS
    return wanted, ""


def _reason(wish: _Wish, bound_by: str, current: int, total: int) -> str:
    """A change against the wish's direction was made by the bound, not by demand."""
    if _made_by_bound(wish, current, total):
        return ScalingReason.MIN_REPLICAS if bound_by == Reason.MIN_REPLICAS else ScalingReason.MAX_REPLICAS
    return wish.reason


def _told(wish: _Wish, bound_by: str, inputs: Inputs, total: int) -> tuple[str, ...]:
    """What was decided, first: the bound where it made the change. Of a pool's first start signals say nothing yet."""
    bound = _bound_text(bound_by, inputs, total)
    if not _made_by_bound(wish, inputs.current, total):
        return (wish.message, bound)
    unknown = inputs.current == 0 and wish.reason == Reason.SIGNALS_MISSING
    return (bound,) if unknown else (bound, wish.message)


def _because(wish: _Wish, bound_by: str, inputs: Inputs, total: int) -> str:
    if _made_by_bound(wish, inputs.current, total):
        text = _bound_text(bound_by, inputs, total).rstrip(".")
        return text[0].lower() + text[1:]
    return wish.because


def _made_by_bound(wish: _Wish, current: int, total: int) -> bool:
    return (total > current >= wish.replicas) or (total < current <= wish.replicas)


def _bound_text(bound_by: str, inputs: Inputs, total: int) -> str:
    match bound_by:
        case Reason.MAX_REPLICAS:
            return f"autoscaling.maxReplicas is {inputs.bounds.maximum}."
        case Reason.MIN_REPLICAS:
            reserved = sum(option.minimum for option in inputs.options)
            whose = "the variants' minReplicas" if reserved == inputs.bounds.minimum else "autoscaling.minReplicas"
            return f"The minimum is {inputs.bounds.minimum} ({whose})."
        case Reason.VARIANT_BOUNDS:
            return f"The variants' maxReplicas allow {total} together."
        case Reason.COST_PER_REQUEST:
            most = price_text(inputs.spending.per_thousand or 0)
            return f"One more would cost above {most} USD for a thousand requests (maxCostPerThousandRequests)."
        case Reason.BUDGET:
            return _budgets_text(inputs.spending, total)
        case _:
            return "No limit bound." if total != inputs.current and inputs.bounds.fixed is None else ""


def _budgets_text(spending: Spending, total: int) -> str:
    if not total:
        return "The budgets do not pay for a replica until it is gone again."
    return f"The budgets leave {price_text(max(0, spending.per_hour or 0))} USD/h for the pool."


def _set_text(counts: Counts, options: Sequence[VariantOption]) -> str:
    """Which variants change, for pools with a choice."""
    change = change_text(counts, options)
    if len(options) == 1 or not change:
        return ""
    unpriced = sorted({one.name for one in options if one.price is None})
    known = f" ({', '.join(unpriced)} without a price: taken last)" if unpriced else ""
    return f"{change} is the cheapest set{known}."


def cost_text(decision: Decision) -> str:
    """Such as ``8.85 to 10.40 USD/h``; says so when a price is not known."""
    before, after = decision.cost_per_hour_before, decision.cost_per_hour_after
    if before is None or after is None:
        return "cost unknown"
    return f"{price_text(before)} to {price_text(after)} USD/h"


def price_text(nano: int) -> str:
    """USD in cents; with four places below ten cents, where cents would say nothing."""
    return format_usd(nano, 2 if nano == 0 or nano >= TEN_CENTS else 4)


def _capacity(inputs: Inputs) -> str:
    return f"one takes {inputs.slots} running + {inputs.bounds.queue_depth} waiting"


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"


def _bounded(peaks: tuple[Peak, ...]) -> tuple[Peak, ...]:
    """The oldest two become one that is as high as the first and as young as the second: never less than was seen."""
    if len(peaks) <= MAX_PEAKS:
        return peaks
    first, second, *rest = peaks
    return (Peak(second.at_ms, first.demand), *rest)
