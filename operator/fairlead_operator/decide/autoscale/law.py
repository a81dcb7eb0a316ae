"""The autoscaler's law: one decision for one pool, from what its routers saw, every few seconds.

1. Demand: the rates to expect when a replica that is started now is ready (``demand``), and what waits already.
2. Service: the share of requests that so many replicas serve within the objectives at each rate (``service``).
3. Price: what a missed request may cost, so that the misses of a day end at what is allowed (``misses``).
4. Choice: the numbers of replicas that cost least, misses included (``choice``).
5. Patience: what staying costs more than the choice is added up, and the replicas change once it has cost as much as a
   share of a start (ski rental): at once where much would miss, late where little is to be won.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Final

from fairlead_operator.api.v1alpha1 import Reason, ScalingReason
from fairlead_operator.decide.autoscale import demand as forecast
from fairlead_operator.decide.autoscale import misses as account
from fairlead_operator.decide.autoscale import service as capacity
from fairlead_operator.decide.autoscale.choice import Fleet, best, fleet, listed, options, typical_loads
from fairlead_operator.decide.autoscale.demand import Demand, Outlook
from fairlead_operator.decide.autoscale.group import Numbers
from fairlead_operator.decide.autoscale.misses import Misses
from fairlead_operator.decide.autoscale.service import Service
from fairlead_operator.decide.autoscale.values import STEADY, CapBound, Observation, Settings, Wish
from fairlead_operator.decide.autoscale.words import Judgement, Shown, wish

TICKS_S: Final = 10.0
"""Two rounds: one until a change is seen, one until it is acted on."""
UP: Final = 0.25
DOWN: Final = 0.5
"""Shares of a start's cost that staying must have cost before replicas are added or taken away."""
EXCHANGE: Final = 1.0
"""The same, in starts of what is added, before another set takes the place of this one: of two sets that cost about the
same each looks better for a while."""
SHORTEST_START_S: Final = 240.0
"""Even a faster start costs so much: pods are placed, caches are lost, and routers must learn of a change."""
DOWN_EVERY_S: Final = 60.0
CALM_MISSES: Final = 0.05
"""Above this share of misses in the last minute, or twice what the objectives allow, nothing is taken away, and nothing
that would leave more to expect: it would soon be taken back."""
CALM_COUNT: Final = 2
OVERLOADED: Final = 0.3
"""Above it a queue has built up, and the misses say nothing about the load of now."""
WAITING_S: Final = 1.0
"""So many seconds of arrivals may wait without being a backlog."""
DRAIN_S: Final = 30.0
"""A backlog should be served within so long, or within the time of a start if that is longer."""
MOST_BACKLOG: Final = 0.5
"""A backlog adds at most this share of the rate: it has missed already, and replicas that start come late for it."""
MOST_ADDED: Final = 4
"""Replicas may double, or grow by so many, until those are ready: one wrong figure must not run up a bill."""
EVENTS_HALF_LIFE_S: Final = 43_200.0
EVENTS_FREE: Final = 17.0
THRIFT: Final = 6
"""Above so many changes in about a day each must be worth more, by this power of their number: with 40 a day more than
twenty times a start. So a demand that pays for many changes gets few more than a calm one, and none is forbidden."""
OVERDUE_STARTS: Final = 3
"""A replica that has not become ready in the time of so many starts holds up no decision."""
LOAD_STEP: Final = 1.25
"""Loads up to which sets are listed are rounded up to powers of this, so that the lists can be kept."""
MOST_CHOSEN: Final = 256
SURPRISE: Final = 4.0
SURPRISING: Final = 20
"""A round with so many times the arrivals that the last minute makes expect, and so many more, is believed only as far
as that until the next round confirms it: one wrong figure is no step."""
ACCOUNT_OPENS: Final = 2.0
"""After so many times of a start misses count: until what the first decision starts is ready, and has served the queue
that it finds, no decision could have avoided them, and to make up for them would be paid for hours."""
LONGEST_ROUND_S: Final = 60.0
MINUTE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What the law remembers of a pool. The regrets are in seconds of the cheapest replica."""

    since_ms: int
    at_ms: int = 0
    demand: Demand | None = None
    service: Service = field(default_factory=Service)
    misses: Misses = field(default_factory=Misses)
    regret_up: float = 0.0
    regret_down: float = 0.0
    regret_other: float = 0.0
    down_ms: int = 0
    events: float = 0.0
    last_request_ms: int = 0
    surprised: bool = False
    """The last round had more arrivals than could be believed."""
    minute: tuple[tuple[int, int, int], ...] = ()
    """(at_ms, finished, missed) of the last minute."""


@dataclass(frozen=True, slots=True)
class _Case:
    """One decision's inputs, as numbers."""

    observation: Observation
    settings: Settings
    memory: Memory
    fleet: Fleet
    outlook: Outlook
    current: Numbers
    rate: float
    seconds: float
    cold_start_s: float
    backlog: float

    @property
    def floor(self) -> int:
        """The least number of replicas while the pool is in use."""
        return max(1, self.settings.minimum)


@dataclass(frozen=True, slots=True)
class _Option:
    """Replicas by variant, and what they cost: nano-USD a second, misses included."""

    numbers: Numbers
    cost: float


@dataclass(frozen=True, slots=True)
class _Bound:
    """How many replicas are wanted, and what allows fewer."""

    wanted: int
    by: str = ""


def step(memory: Memory, observation: Observation, settings: Settings) -> tuple[Memory, Wish]:
    """One decision. ``observation`` holds the counts since the last call; calls may come every 1 to 60 seconds."""
    memory, seconds = _observe(memory, observation, settings)
    case = _case(memory, observation, settings, seconds)
    memory, judgement = _judge(case)
    shown = Shown(
        rate=case.rate,
        outlook=case.outlook,
        horizon_ms=round((case.cold_start_s + TICKS_S) * 1000),
        capacity=_capacity(case),
        backlog=round(case.backlog),
        misses=memory.misses,
        miss_price=round(case.fleet.miss_price),
        zero_after_ms=settings.zero_after_ms,
    )
    return memory, wish(judgement, shown, settings)


def _capacity(case: _Case) -> float:
    """Requests/s that a replica of the variant that is cheapest by the request takes."""
    cheapest = min(case.fleet.kinds, key=lambda kind: kind.price / kind.load)
    return cheapest.load


def _observe(memory: Memory, seen: Observation, settings: Settings) -> tuple[Memory, float]:
    """The memory with one more round. From an incomplete round nothing is learned about the demand."""
    at_s = seen.at_ms / 1000
    demand = memory.demand or forecast.started(memory.since_ms / 1000)
    seconds = min(LONGEST_ROUND_S, max(0.0, (seen.at_ms - max(memory.at_ms, memory.since_ms)) / 1000))
    horizon = _cold_start_s(settings) + TICKS_S
    known = demand.age_s >= MINUTE_S
    most = SURPRISING + round(SURPRISE * demand.rate * seconds)
    opened = at_s - memory.since_ms / 1000 >= ACCOUNT_OPENS * horizon
    attainment, reserve = settings.objectives.attainment, account.reserve(_cold_start_s(settings))
    if seen.complete:
        believed = min(seen.arrivals, most) if known and not memory.surprised else seen.arrivals
        demand = forecast.observe(demand, at_s, believed, horizon, settings.history)
    elif at_s > demand.at_s:
        demand = replace(demand, at_s=at_s)
    minute = tuple(one for one in memory.minute if one[0] > seen.at_ms - MINUTE_S * 1000)[-63:]
    after = replace(
        memory,
        at_ms=max(seen.at_ms, memory.at_ms),
        demand=demand,
        misses=account.count(memory.misses, seen.finished, seen.missed, seconds, attainment, reserve)
        if opened
        else memory.misses,
        minute=(*minute, (seen.at_ms, seen.finished, seen.missed)),
        last_request_ms=max(memory.last_request_ms, min(seen.last_request_ms, seen.at_ms)),
        surprised=seen.arrivals > most,
        events=memory.events * 0.5 ** (seconds / EVENTS_HALF_LIFE_S),
    )
    return _learned(after, demand, seen, settings), seconds


def _learned(memory: Memory, demand: Demand, seen: Observation, settings: Settings) -> Memory:
    """The memory with what a round says of the service: all replicas are in use, and the rate lasts if it ever does."""
    at_s, running = seen.at_ms / 1000, tuple(variant.ready for variant in settings.variants)
    steady = (
        seen.complete
        and settings.current == settings.ready > 0
        and demand.rate > 0
        and _missed(memory) <= OVERLOADED
        and (demand.restless or at_s - demand.run.since_s > capacity.STEADY_S)
    )
    attainment = settings.objectives.attainment
    loads = typical_loads(settings.variants, attainment)
    names = (variant.name for variant in settings.variants)
    service = capacity.measured(memory.service, tuple(zip(names, loads, strict=True)))
    shares = (0.0,) * len(running)
    if steady:
        using = fleet(settings.variants, attainment, service.factors, 0.0)
        shares = tuple(missed / demand.rate for missed in using.groups.of(running).missed_by(demand.rate))
    done = capacity.Done(seen.finished, seen.missed, shares)
    service = capacity.learn(service, running, at_s, done, steady=steady)
    return replace(memory, service=service)


def _case(memory: Memory, seen: Observation, settings: Settings, seconds: float) -> _Case:
    attainment = settings.objectives.attainment
    demand = memory.demand or forecast.started(memory.since_ms / 1000)
    cold_start = _cold_start_s(settings)
    miss_price = memory.misses.price(attainment, account.reserve(cold_start))
    queue = max(0.0, seen.waiting + seen.held - demand.rate * WAITING_S)
    extra = min(queue / max(DRAIN_S, cold_start + TICKS_S), MOST_BACKLOG * demand.rate)
    return _Case(
        observation=seen,
        settings=settings,
        memory=memory,
        fleet=fleet(settings.variants, attainment, memory.service.factors, miss_price),
        outlook=forecast.outlook(demand, cold_start + TICKS_S, settings.history, extra),
        current=tuple(variant.current for variant in settings.variants),
        rate=demand.rate,
        seconds=seconds,
        cold_start_s=cold_start,
        backlog=queue,
    )


def _judge(case: _Case) -> tuple[Memory, Judgement]:
    """What to do, and the memory with what staying has cost so far."""
    zero = _idle(case) or _unpaid(case)
    if zero is not None:
        return _moved(case.memory, case, zero), zero
    up, bound = _best_above(case)
    down = _best_below(case)
    other = _best_other(case)
    stay = case.fleet.cost(case.current, case.outlook)
    # What is won by only taking replicas away is not won by an exchange.
    spared = stay if down is None else min(stay, down.cost)
    unit = min(kind.price for kind in case.fleet.kinds)
    memory = replace(
        case.memory,
        regret_up=_regret(case.memory.regret_up, stay, up, unit, case.seconds),
        regret_down=_regret(case.memory.regret_down, stay, down, unit, case.seconds),
        regret_other=_regret(case.memory.regret_other, spared, other, unit, case.seconds),
    )
    case = replace(case, memory=memory)
    judgement = _decided(case, stay, up, down, bound)
    if judgement.numbers == case.current and other is not None and _worth_exchanging(case, other):
        return _exchanged(case, other)
    return _moved(memory, case, judgement), judgement


def _regret(so_far: float, stay: float, other: _Option | None, unit: float, seconds: float) -> float:
    """What staying has cost above another choice, in seconds of a replica."""
    return 0.0 if other is None else max(0.0, so_far + (stay - other.cost) / unit * seconds)


def _decided(case: _Case, stay: float, up: _Option | None, down: _Option | None, bound: _Bound) -> Judgement:
    """Up if it is worth a start or the bounds ask for it, else down if nothing speaks against it, else as it is.

    What the budgets do not pay goes whatever else is known: they are no signal of the routers.
    """
    kept = Judgement(case.current, bound.wanted, STEADY, bound.by)
    if up is not None and (sum(case.current) < case.floor or _worth_a_start(case, up)):
        return Judgement(up.numbers, bound.wanted, _reason_up(case), bound.by)
    if down is not None and _over_budget(case, case.current):
        return Judgement(down.numbers, bound.wanted, ScalingReason.MAX_REPLICAS, CapBound.SPEND)
    if down is None or not _may_shrink(case):
        return kept
    if sum(case.current) > case.settings.maximum:
        return Judgement(down.numbers, sum(case.current), ScalingReason.MAX_REPLICAS, Reason.MAX_REPLICAS)
    gone = sum(case.current) - sum(down.numbers)
    if down.cost < stay and case.memory.regret_down >= DOWN * _start_s(case) * gone:
        return Judgement(down.numbers, sum(down.numbers), ScalingReason.UNNEEDED, "")
    return kept


def _worth_exchanging(case: _Case, other: _Option) -> bool:
    """Whether staying has cost as much as starting what another set has more of is counted for."""
    more = _added(case, _union(other.numbers, case.current))
    return _may_shrink(case) and case.memory.regret_other >= EXCHANGE * _start_s(case) * more


def _exchanged(case: _Case, other: _Option) -> tuple[Memory, Judgement]:
    """Start what another set has more of. What it has less of is not waited for again when that is ready."""
    both = _union(other.numbers, case.current)
    judgement = Judgement(both, sum(both), ScalingReason.CHEAPER_VARIANT, "")
    memory = _moved(case.memory, case, judgement)
    waited = DOWN * _start_s(replace(case, memory=memory)) * (sum(both) - sum(other.numbers))
    return replace(memory, regret_down=waited), judgement


def _union(one: Numbers, other: Numbers) -> Numbers:
    return tuple(max(pair) for pair in zip(one, other, strict=True))


def _added(case: _Case, numbers: Numbers) -> float:
    """What these have more than the present ones, in replicas of the cheapest."""
    unit = min(kind.price for kind in case.fleet.kinds)
    more = zip(case.fleet.kinds, numbers, case.current, strict=True)
    return sum(kind.price / unit * max(0, new - old) for kind, new, old in more)


def _worth_a_start(case: _Case, up: _Option) -> bool:
    """Whether staying has cost as much as the share of a start that is waited for."""
    if sum(case.current) == 0:
        return case.observation.held > 0 or case.observation.arrivals > 0
    added = sum(max(0, new - old) for new, old in zip(up.numbers, case.current, strict=True))
    return case.memory.regret_up >= UP * _start_s(case) * added


def _start_s(case: _Case) -> float:
    """What a start counts as, in seconds of a replica: more, the more changes there were lately."""
    return max(case.cold_start_s, SHORTEST_START_S * max(1.0, case.memory.events / EVENTS_FREE) ** THRIFT)


def _may_shrink(case: _Case) -> bool:
    """Nothing goes on incomplete signals, while replicas start, while requests wait or miss, or within the minute."""
    return (
        case.observation.complete
        and not _starting(case.settings)
        and case.backlog == 0
        and _missed(case.memory) <= _calm_misses(case)
        and case.observation.at_ms - case.memory.down_ms >= DOWN_EVERY_S * 1000
    )


def _missed(memory: Memory) -> float:
    """Share of the last minute's requests that missed; two may always do."""
    missed = sum(one[2] for one in memory.minute)
    return missed / max(missed, sum(one[1] for one in memory.minute)) if missed > CALM_COUNT else 0.0


def _starting(settings: Settings) -> bool:
    """Whether replicas start that will soon be ready; one that has started for far too long is not waited for."""
    missing = settings.current - settings.ready
    overdue = sum(
        age > OVERDUE_STARTS * variant.cold_start_ms for variant in settings.variants for age in variant.start_ages_ms
    )
    return missing > overdue


def _idle(case: _Case) -> Judgement | None:
    """To zero, after the pool was not asked for so long."""
    seen, settings, after = case.observation, case.settings, case.settings.zero_after_ms
    if after is None or settings.minimum or not seen.complete or seen.running or seen.waiting or seen.held:
        return None
    since = case.memory.last_request_ms or case.memory.since_ms
    if seen.at_ms - since < after or any(variant.minimum > 0 for variant in settings.variants):
        return None
    return Judgement((0,) * len(case.current), 0, ScalingReason.IDLE if sum(case.current) else STEADY, "")


def _unpaid(case: _Case) -> Judgement | None:
    """To zero while there is still money for what runs until it is gone, whatever is asked."""
    current = sum(case.current)
    if case.settings.pays_a_replica or case.settings.minimum:
        return None
    reason = ScalingReason.MAX_REPLICAS if current else STEADY
    return Judgement((0,) * len(case.current), max(1, current), reason, CapBound.SPEND)


def _best_above(case: _Case) -> tuple[_Option | None, _Bound]:
    """The best set that adds replicas, of those that the limits allow; and which limit forbids a better one."""
    sets = {_union(one, case.current) for one in _sets(case)}
    sets.discard(case.current)
    stay = math.inf if sum(case.current) < case.floor else case.fleet.cost(case.current, case.outlook)
    wanted = best(case.fleet, sets, case.outlook)
    if wanted is None or wanted[1] >= stay:
        return None, _Bound(sum(case.current))
    by = _limit(case, wanted[0])
    chosen = best(case.fleet, [one for one in sets if not _limit(case, one)], case.outlook) if by else wanted
    option = None if chosen is None or chosen[1] >= stay else _Option(*chosen)
    return option, _Bound(sum(wanted[0]), by)


def _best_other(case: _Case) -> _Option | None:
    """The best set with more of one variant and less of another, where the limits allow both at once for a while."""
    if len(case.current) == 1 or sum(case.current) < case.floor:
        return None
    sets = [
        one
        for one in _sets(case)
        if one != (both := _union(one, case.current)) != case.current and not _limit(case, both)
    ]
    found = best(case.fleet, sets, case.outlook)
    return None if found is None or not _calm(case, found[0]) else _Option(*found)


def _sets(case: _Case) -> tuple[Numbers, ...]:
    """Those that may be the best for some rate up to what is hardly ever exceeded."""
    top = case.outlook.quantile(0.999)
    load = LOAD_STEP ** math.ceil(math.log(max(top, 1e-3), LOAD_STEP))
    least = max(case.floor, sum(kind.least for kind in case.fleet.kinds))
    return options(listed(case.fleet.kinds), least, max(least, MOST_CHOSEN), load)


def _best_below(case: _Case) -> _Option | None:
    """The best of the sets that only take replicas away, of those that the budgets pay and that leave the pool calm."""
    kinds = tuple(
        replace(kind, least=min(kind.least, now), most=min(kind.most, now))
        for kind, now in zip(listed(case.fleet.kinds), case.current, strict=True)
    )
    most = min(sum(case.current) - 1, case.settings.maximum)
    if most < case.floor:
        return None
    able = sum(kind.load * kind.most for kind in kinds)
    forced = sum(case.current) > case.settings.maximum or _over_budget(case, case.current)
    sets = [one for one in options(kinds, case.floor, most, able) if not _over_budget(case, one)]
    found = best(case.fleet, sets, case.outlook)
    if found is not None and not forced and not _calm(case, found[0]):
        found = best(case.fleet, [one for one in sets if _calm(case, one)], case.outlook)
    return None if found is None else _Option(*found)


def _calm(case: _Case, numbers: Numbers) -> bool:
    """Whether so many replicas leave few enough misses to expect."""
    asked = sum(rate * weight for rate, weight in case.outlook.points)
    return case.fleet.misses(numbers, case.outlook) <= _calm_misses(case) * asked


def _calm_misses(case: _Case) -> float:
    return max(CALM_MISSES, 2 * (1 - case.settings.objectives.attainment))


def _limit(case: _Case, numbers: Numbers) -> str:
    """What forbids so many replicas, empty if nothing does. The first replica, and the minimum, need none."""
    settings, total = case.settings, sum(numbers)
    if total <= case.floor:
        return Reason.MAX_REPLICAS if total > settings.maximum else ""
    if _over_budget(case, numbers):
        return CapBound.SPEND
    per_hour, thousands = case.fleet.paid(numbers) * 3600, case.rate * 3.6
    if settings.max_cost_per_thousand is not None and per_hour > settings.max_cost_per_thousand * thousands:
        return CapBound.COST
    if total > settings.maximum:
        return Reason.MAX_REPLICAS
    return CapBound.STEP if total > max(2 * settings.ready, settings.ready + MOST_ADDED) else ""


def _over_budget(case: _Case, numbers: Numbers) -> bool:
    """Whether so many replicas, more than the least, cost more an hour than the budgets leave."""
    cap = case.settings.spend_cap_per_hour
    return cap is not None and sum(numbers) > case.floor and case.fleet.paid(numbers) * 3600 > cap


def _reason_up(case: _Case) -> str:
    if sum(case.current) == 0 and case.observation.held:
        return ScalingReason.HELD_REQUESTS
    if sum(case.current) < case.floor:
        return ScalingReason.MIN_REPLICAS
    return ScalingReason.BACKLOG if case.backlog > case.rate * WAITING_S else ScalingReason.FORECAST


def _moved(memory: Memory, case: _Case, judgement: Judgement) -> Memory:
    """The memory after the decision: a change starts the regrets anew."""
    if judgement.numbers == case.current:
        return memory
    less = sum(judgement.numbers) < sum(case.current)
    down_ms = case.observation.at_ms if less else memory.down_ms
    return replace(memory, regret_up=0.0, regret_down=0.0, regret_other=0.0, down_ms=down_ms, events=memory.events + 1)


def _cold_start_s(settings: Settings) -> float:
    """The longest of the variants that run or may be started."""
    return max(variant.cold_start_ms for variant in settings.variants) / 1000
