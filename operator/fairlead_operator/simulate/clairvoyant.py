"""The reference that a policy is compared with: the cheapest schedule of replicas for demand that is known beforehand.

A table says which share of the requests meets the objectives at each load of a replica. Dynamic programming then
minimises, over the replicas n of every slot, the replica-seconds paid, a start-up for every replica added, and a price
for every request that misses. The price is the one at which the *simulated* attainment is what the objectives ask for.
It is a reference and no bound: the table is of steady states, and demand is smoothed over a minute.
"""

import math
import random
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from fairlead_operator.performance.step import Objectives
from fairlead_operator.simulate.fleet import run
from fairlead_operator.simulate.model import Result, Variant, Workload
from fairlead_operator.simulate.policy import View
from fairlead_operator.simulate.workloads import poisson

SLOT: Final = 15.0
SMOOTH: Final = 4
"""Slots whose mean is the demand of one."""
POOLS: Final = (1, 2, 4, 8)
"""Replicas of the pools that the table is measured on."""
TABLE_SECONDS: Final = 4800.0
"""Replica-seconds of each measurement."""
TABLE_WARM: Final = 120.0
HALF: Final = 0.5
MOST_LOAD: Final = 4096.0
LOADS: Final = (0.2, 0.3, 0.4, 0.5, 0.6, 0.68, 0.75, 0.8, 0.85, 0.9, 0.94, 0.97, 1.0, 1.04, 1.1, 1.2, 1.35, 1.6)
"""Loads of the table, by the load at which about half of the requests still meet the objectives."""
EXACT: Final = 0.0001
"""How far above the attainment asked for a schedule may end."""
TRIALS: Final = 8


@dataclass(frozen=True, slots=True)
class Table:
    """Share of the requests (0..1) that meet all objectives, by the load of a replica (requests/s) and their number.

    ``shares`` and ``running`` (requests that run at once, by replica) are by ``POOLS`` and then by load: many replicas
    carry more each, as the router evens them out.
    """

    loads: tuple[float, ...]
    shares: tuple[tuple[float, ...], ...]
    running: tuple[tuple[float, ...], ...]

    def share(self, load: float, replicas: int) -> float:
        """Interpolated; 1 at no load, 0 from twice the last load on."""
        at, part = _pool(replicas)
        loads = (0.0, *self.loads, 2 * self.loads[-1])
        low, high = (_interpolated(loads, (1.0, *shares, 0.0), load) for shares in self.shares[at : at + 2])
        return low + part * (high - low)

    def capacity(self, share: float, pool: int = 2) -> float:
        """The greatest load at which so many meet them, in the pool of that number; the lowest load if none does."""
        shares = self.shares[pool]
        for at in range(len(self.loads) - 1, 0, -1):
            low, high = shares[at], shares[at - 1]
            if high >= share > low:
                return self.loads[at - 1] + (high - share) / (high - low) * (self.loads[at] - self.loads[at - 1])
        return self.loads[-1] if shares[-1] >= share else self.loads[0]

    def concurrency(self, share: float, pool: int = 2) -> float:
        """Running requests of a replica at that load."""
        return _interpolated((0.0, *self.loads), (0.0, *self.running[pool]), self.capacity(share, pool))


def _pool(replicas: int) -> tuple[int, float]:
    """The pool before so many replicas, and how far they are on the way to the next one, by doublings."""
    for at in range(len(POOLS) - 2, -1, -1):
        if replicas >= POOLS[at]:
            return at, min(1.0, math.log2(replicas / POOLS[at]))
    return 0, 0.0


def _interpolated(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    at = bisect_right(xs, x)
    if at >= len(xs):
        return ys[-1]
    left, right = xs[at - 1], xs[at]
    return ys[at - 1] + (ys[at] - ys[at - 1]) * (x - left) / (right - left)


# --- the table


@dataclass(slots=True)
class _Steady:
    """A constant number of replicas that notes how many requests run."""

    replicas: int
    interval: float = SLOT
    running: int = 0
    ticks: int = 0

    def desired(self, view: View) -> Sequence[int]:
        """The replicas."""
        self.running += view.running
        self.ticks += 1
        return (self.replicas,)


def tabulate(
    workload: Workload, variant: Variant, objectives: Objectives, *, seed: int = 1, seconds: float = TABLE_SECONDS
) -> Table:
    """The table of a variant for requests as the workload has them, by simulation of small pools.

    ``seconds`` of a replica go into each number.
    """
    rng = random.Random(f"table/{seed}")  # noqa: S311 - choices that can be repeated

    def measured(load: float, replicas: int) -> tuple[float, float]:
        drawn = _constant(workload, load * replicas, TABLE_WARM + seconds / replicas, rng)
        pool = Variant(variant.engine, variant.price_per_hour, 0.0, replicas, replicas, slots=variant.slots)
        policy = _Steady(replicas)
        result = run(drawn, (pool,), objectives, policy, count_from=TABLE_WARM)
        return result.attainment, policy.running / max(1, policy.ticks) / replicas

    middle = _half(lambda load: measured(load, POOLS[-1])[0])
    loads = tuple(middle * part for part in LOADS)
    rows = [list(zip(*(measured(load, replicas) for load in loads), strict=True)) for replicas in POOLS]
    shares = tuple(tuple(accumulate(row[0], min)) for row in rows)
    return Table(loads, shares, tuple(row[1] for row in rows))


def _half(share: Callable[[float], float]) -> float:
    """The load at which about half of the requests meet the objectives."""
    low = 1 / 64
    while share(2 * low) > HALF and low < MOST_LOAD:
        low *= 2
    high = 2 * low
    for _ in range(5):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) > HALF else (low, middle)
    return low


def _constant(workload: Workload, rate: float, seconds: float, rng: random.Random) -> Workload:
    """Requests of the workload, drawn, at a constant rate."""
    arrivals = poisson([(0.0, seconds, rate)], rng)
    chosen = [int(rng.random() * len(workload.arrivals)) for _ in arrivals]
    prompts = array("i", [workload.prompt_tokens[at] for at in chosen])
    return Workload(arrivals, prompts, array("i", [workload.output_tokens[at] for at in chosen]), seconds)


# --- the schedule


@dataclass(slots=True)
class Schedule:
    """The policy that wants so many replicas ready in every slot, and asks for them a cold start before."""

    replicas: Sequence[int]
    cold_start: float
    interval: float = SLOT

    def desired(self, view: View) -> Sequence[int]:
        """The most that are to be ready by the time that what starts now is."""
        first = min(len(self.replicas) - 1, int(view.now / SLOT))
        last = math.ceil((view.now + self.cold_start + self.interval) / SLOT)
        return (max(self.replicas[first : max(first + 1, last)]),)


def demand(workload: Workload) -> list[float]:
    """Requests/s of every slot, each the mean of a minute around it."""
    counts = [0] * max(1, math.ceil(workload.duration / SLOT))
    for at in workload.arrivals:
        counts[min(len(counts) - 1, int(at / SLOT))] += 1
    sums = [0, *accumulate(counts)]
    half = SMOOTH // 2
    edges = [(max(0, at - half), min(len(counts), at + half)) for at in range(len(counts))]
    return [(sums[until] - sums[since]) / max(1, until - since) / SLOT for since, until in edges]


def fluid(rates: Sequence[float], capacity: float, minimum: int) -> float:
    """Replica-seconds if replicas came in fractions, at once, and each at its capacity: no schedule is cheaper."""
    return sum(max(float(minimum), rate / capacity) for rate in rates) * SLOT


def scheduled(rates: Sequence[float], table: Table, variant: Variant, price: float) -> list[int]:
    """The cheapest replicas of every slot if a miss costs ``price`` replica-seconds."""
    most = min(variant.maximum, max(variant.minimum, 1) + math.ceil(max(rates) / table.loads[0]))
    choices = range(variant.minimum, most + 1)
    costs = [0.0 for _ in choices]
    came: list[list[int]] = []
    misses: dict[tuple[float, int], float] = {}
    for rate in rates:
        best, origins = _reached(costs, variant.cold_start)
        for at, n in enumerate(choices):
            key = (round(rate, 2), n)
            if key not in misses:
                misses[key] = key[0] * (1.0 - table.share(key[0] / n, n)) if n else key[0]
            best[at] += (n + price * misses[key]) * SLOT
        costs = best
        came.append(origins)
    return [choices[at] for at in _path(costs, came)]


def _reached(costs: Sequence[float], cold_start: float) -> tuple[list[float], list[int]]:
    """The least cost to stand at each number of replicas, and the number before it; adding costs a cold start each."""
    best, origins = list(costs), list(range(len(costs)))
    for at in range(len(costs) - 2, -1, -1):
        if best[at + 1] < best[at]:
            best[at], origins[at] = best[at + 1], origins[at + 1]
    for at in range(1, len(costs)):
        if best[at - 1] + cold_start < best[at]:
            best[at], origins[at] = best[at - 1] + cold_start, origins[at - 1]
    return best, origins


def _path(costs: Sequence[float], came: Sequence[Sequence[int]]) -> list[int]:
    at = min(range(len(costs)), key=costs.__getitem__)
    path = []
    for origins in reversed(came):
        path.append(at)
        at = origins[at]
    return path[::-1]


def expected(rates: Sequence[float], table: Table, replicas: Sequence[int]) -> float:
    """The share of all requests that the table says meets the objectives."""
    met = sum(rate * table.share(rate / n, n) for rate, n in zip(rates, replicas, strict=True) if n)
    return met / (sum(rates) or 1.0)


def priced(rates: Sequence[float], table: Table, variant: Variant, share: float) -> list[int]:
    """The schedule at the least price of a miss at which the table expects the share."""
    low, high = 0.0, 16.0
    while expected(rates, table, scheduled(rates, table, variant, math.expm1(high))) < share and high < 24.0:  # noqa: PLR2004 - a miss for months of a replica
        high += 1.0
    for _ in range(12):
        middle = (low + high) / 2
        enough = expected(rates, table, scheduled(rates, table, variant, math.expm1(middle))) >= share
        low, high = (low, middle) if enough else (middle, high)
    return scheduled(rates, table, variant, math.expm1(high))


@dataclass(frozen=True, slots=True)
class Reference:
    """The schedule found, the share that its table expects, and what the simulation made of it."""

    replicas: tuple[int, ...]
    asked: float
    result: Result


def clairvoyant(
    workload: Workload,
    table: Table,
    variant: Variant,
    objectives: Objectives,
    *,
    count_from: float = 900.0,
    asked: float | None = None,
) -> Reference:
    """The cheapest schedule whose simulated attainment is that of the objectives; the best one if none reaches it.

    ``asked`` is the share to expect of the table at first. Each trial corrects it by what the simulation showed.
    """
    rates = demand(workload)
    known: dict[tuple[int, ...], Result] = {}

    def trial(share: float) -> Reference:
        replicas = priced(rates, table, variant, share)
        key = tuple(replicas)
        if key not in known:
            policy = Schedule(key, variant.cold_start)
            known[key] = run(workload, (variant,), objectives, policy, count_from=count_from)
        return Reference(key, share, known[key])

    return searched(trial, objectives.attainment, asked)


def searched(trial: Callable[[float], Reference], goal: float, asked: float | None = None) -> Reference:
    """The cheapest trial with the attainment, from a few trials of shares to expect."""
    low, high, share = 0.0, 1.0, goal if asked is None else asked
    found = one = trial(share)
    for _ in range(TRIALS):
        reached = one.result.attainment
        if goal <= reached <= goal + EXACT:
            break
        low, high = (low, share) if reached >= goal else (share, high)
        share += goal + EXACT / 2 - reached
        if not low < share < high:
            share = (low + high) / 2
        one = trial(share)
        found = one if _better(one, found, goal) else found
    return found


def _better(one: Reference, other: Reference, goal: float) -> bool:
    """Enough attainment before less, then less cost, or more attainment where there is not enough."""
    enough = one.result.attainment >= goal
    if enough != (other.result.attainment >= goal):
        return enough
    if enough:
        return one.result.dollars < other.result.dollars
    return one.result.attainment > other.result.attainment
