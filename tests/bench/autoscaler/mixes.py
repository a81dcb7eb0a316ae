"""S10: one model on seven kinds of replicas with two price books, beside the clairvoyant schedule over all mixes.

Llama-3.1-8B on one L40S, A100-80, H100 or H200, in bf16 and, where the hardware has it, in fp8. The last line is JSON.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Final

from fairlead_operator.performance.concurrency import concurrency
from fairlead_operator.performance.model_config import well_known
from fairlead_operator.performance.seeds import Seed, Unknown, accelerators, engine_of
from fairlead_operator.performance.step import Engine
from fairlead_operator.simulate.clairvoyant import SLOT, Reference, Table, demand, searched, tabulate
from fairlead_operator.simulate.fairlead import Fairlead
from fairlead_operator.simulate.fleet import run
from fairlead_operator.simulate.model import Result, Variant
from fairlead_operator.simulate.policy import View
from tests.bench.autoscaler.cases import CLAIRVOYANT, LAWS, MIXED, OURS, SLICE_TABLE, Case, code, kept

BOOKS: Final = {
    "aws": {"L40S": 1.861, "A100-80": 3.431, "H100-SXM": 6.88, "H200": 7.912},
    "neocloud": {"L40S": 1.548, "A100-80": 1.29, "H100-SXM": 2.29, "H200": 3.39},
}
"""USD an hour. AWS: us-east-1, on demand, 2026-07-20, by way of aws/karpenter-provider-aws (Apache-2.0) at 1d92708.
neocloud: the least of several smaller providers' list prices, by way of skypilot-org/skypilot-catalog at 000c1d0."""
MODEL: Final = "llama-3.1-8b"
COLD_START: Final = 120.0
MOST: Final = 40
SLOTS_A_CHOICE: Final = 4
"""The schedule may change every minute."""
GRID: Final = 400
"""Parts of the highest demand in which mixes are counted."""
SPARE: Final = 1.6
"""Mixes for so many times the highest demand are looked at."""

Mix = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of replica, and what it takes at the objectives (requests/s)."""

    name: str
    variant: Variant
    table: Table
    capacity: float


@dataclass(frozen=True, slots=True)
class Level:
    """The cheapest mix for some demand, with what it takes (requests/s) and costs (USD an hour)."""

    mix: Mix
    capacity: float
    price: float


# --- the kinds


@cache
def engines() -> dict[tuple[str, str], Engine]:
    """By accelerator and weights."""
    found = {}
    for hardware, weights in product(BOOKS["aws"], ("bf16", "fp8")):
        known = well_known(MODEL, quantization="fp8" if weights == "fp8" else None)
        if isinstance(known, Unknown) or (weights == "fp8" and "fp8" not in accelerators()[hardware].flops):
            continue
        seed = engine_of(known[0], accelerators()[hardware])
        if isinstance(seed, Seed):
            found[hardware, weights] = seed.engine
    return found


def kinds(case: Case, book: str) -> tuple[Kind, ...]:
    """What may be bought, measured on the case's requests."""
    found = []
    for (hardware, weights), engine in engines().items():
        bare = Variant(engine, BOOKS[book][hardware], case.cold_start, 0, MOST, slots=slots(case, engine))
        table = _table(case, bare)
        capacity = table.capacity(case.objectives.attainment)
        found.append(Kind(f"{hardware}/{weights}", bare, table, capacity))
    return tuple(found)


def slots(case: Case, engine: Engine) -> int:
    """Requests that a replica should run at once."""
    asked = case.workload()
    return concurrency(
        engine, tuple(zip(asked.prompt_tokens[:MIXED], asked.output_tokens[:MIXED], strict=True)), case.objectives
    )


def _table(case: Case, variant: Variant) -> Table:
    key = (case.scenario, case.slice, variant.engine, variant.slots, code(*LAWS[CLAIRVOYANT]))
    return kept(
        "mix-tables", key, Table, lambda: tabulate(case.workload(), variant, case.objectives, seconds=SLICE_TABLE)
    )


def fleet_of(using: Sequence[Kind], case: Case) -> tuple[Variant, ...]:
    """The variants as the simulation has them: routed to by what they take, enough of the cheapest at the start."""
    cheapest = min(using, key=lambda kind: kind.variant.price_per_hour / kind.capacity)
    first = math.ceil(demand(case.workload())[0] * 1.2 / cheapest.capacity)
    return tuple(
        Variant(
            kind.variant.engine,
            kind.variant.price_per_hour,
            case.cold_start,
            0,
            MOST,
            initial=first if kind is cheapest else 0,
            weight=kind.capacity / cheapest.capacity,
            slots=kind.variant.slots,
        )
        for kind in using
    )


# --- the reference


def levels(using: Sequence[Kind], most: float) -> list[Level]:
    """The cheapest mix for each demand up to ``most`` (requests/s), each once, ascending: an unbounded knapsack."""
    unit = most / GRID
    sizes = [max(1, int(kind.capacity / unit)) for kind in using]
    prices = [kind.variant.price_per_hour for kind in using]
    costs, last = [0.0], [0]
    for need in range(1, GRID + 1):
        cost, taken = min((costs[max(0, need - size)] + prices[at], at) for at, size in enumerate(sizes))
        costs.append(cost)
        last.append(taken)
    found: dict[Mix, Level] = {}
    for need in range(1, GRID + 1):
        counts, left = [0] * len(using), need
        while left > 0:
            counts[last[left]] += 1
            left -= sizes[last[left]]
        mix = tuple(counts)
        found[mix] = Level(mix, sum(n * kind.capacity for n, kind in zip(mix, using, strict=True)), costs[need])
    best: list[Level] = []
    for one in sorted(found.values(), key=lambda one: (one.price, -one.capacity)):
        if not best or one.capacity > best[-1].capacity:
            best.append(one)
    return best


def missing(rate: float, level: Level, using: Sequence[Kind]) -> float:
    """Requests a second that miss when every replica is used to the same part of what it takes."""
    if not level.capacity:
        return rate
    used, size, missed = rate / level.capacity, sum(level.mix), 0.0
    for number, kind in zip(level.mix, using, strict=True):
        load = used * kind.capacity
        missed += number * load * (1.0 - kind.table.share(load, size))
    return missed


@dataclass(frozen=True, slots=True)
class Choice:
    """What a schedule is chosen from: USD a second by rate and level, and what changing from one to another costs."""

    levels: list[Level]
    using: Sequence[Kind]
    rates: list[float]
    misses: list[list[float]]
    changing: list[list[float]]


def choice(case: Case, using: Sequence[Kind]) -> Choice:
    """Of a case; the rate of a minute is the highest of its slots."""
    slots = demand(case.workload())
    rates = [max(slots[at : at + SLOTS_A_CHOICE]) for at in range(0, len(slots), SLOTS_A_CHOICE)]
    found = levels(using, SPARE * max(rates))
    prices = [kind.variant.price_per_hour / 3600 for kind in using]

    def change(old: Level, new: Level) -> float:
        added = (max(0, to - was) * price for was, to, price in zip(old.mix, new.mix, prices, strict=True))
        return sum(added) * case.cold_start

    changing = [[change(old, new) for old in found] for new in found]
    misses = [[missing(rate, one, using) for one in found] for rate in rates]
    return Choice(found, using, rates, misses, changing)


def scheduled(of: Choice, price: float) -> list[int]:
    """The level of every minute that costs least when a miss costs ``price`` USD."""
    seconds = SLOT * SLOTS_A_CHOICE
    costs = [0.0] * len(of.levels)
    came: list[list[int]] = []
    for misses in of.misses:
        best, origins = [], []
        for at, level in enumerate(of.levels):
            changing = of.changing[at]
            cost, origin = min((so_far + changing[was], was) for was, so_far in enumerate(costs))
            best.append(cost + (level.price / 3600 + price * misses[at]) * seconds)
            origins.append(origin)
        costs = best
        came.append(origins)
    at, path = min(range(len(costs)), key=costs.__getitem__), []
    for origins in reversed(came):
        path.append(at)
        at = origins[at]
    return path[::-1]


def expected(of: Choice, path: Sequence[int]) -> float:
    """The share of all requests that meets the objectives by the tables."""
    missed = sum(misses[at] for misses, at in zip(of.misses, path, strict=True))
    return 1 - missed / (sum(of.rates) or 1.0)


def priced(of: Choice, share: float) -> list[int]:
    """The schedule at the least price of a miss at which the tables expect the share."""
    low, high = 1e-7, 10.0
    for _ in range(10):
        middle = math.sqrt(low * high)
        enough = expected(of, scheduled(of, middle)) >= share
        low, high = (low, middle) if enough else (middle, high)
    return scheduled(of, high)


@dataclass(slots=True)
class Planned:
    """The policy that has the mix of every minute ready in it."""

    mixes: Sequence[Mix]
    cold_start: float
    interval: float = SLOT

    def desired(self, view: View) -> Sequence[int]:
        """Of each kind the most that are to be ready by the time that what starts now is."""
        minute = SLOT * SLOTS_A_CHOICE
        first = min(len(self.mixes) - 1, int(view.now / minute))
        last = math.ceil((view.now + self.cold_start + self.interval) / minute)
        return [max(numbers) for numbers in zip(*self.mixes[first : max(first + 1, last)], strict=True)]


def reference(case: Case, book: str) -> Reference:
    """The cheapest mixes found that keep the objectives."""
    key = (case, book, code(*LAWS[CLAIRVOYANT]))
    return kept("mix-references", key, Reference, lambda: _reference(case, book))


def _reference(case: Case, book: str) -> Reference:
    using = kinds(case, book)
    of, variants = choice(case, using), fleet_of(using, case)

    def trial(share: float) -> Reference:
        path = priced(of, share)
        policy = Planned([of.levels[at].mix for at in path], case.cold_start)
        found = run(case.workload(), variants, case.objectives, policy, count_from=case.count_from)
        return Reference(tuple(path), share, found)

    return searched(trial, case.objectives.attainment)


# --- ours


def ours(case: Case, book: str) -> Result:
    """The law on the same choice."""
    return kept("mixes", (case, book, code(*LAWS[OURS])), Result, lambda: _ours(case, book))


def _ours(case: Case, book: str) -> Result:
    variants = fleet_of(kinds(case, book), case)
    policy = Fairlead(variants, case.objectives)
    return run(case.workload(), variants, case.objectives, policy, count_from=case.count_from)


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.autoscaler.mixes", description=__doc__)
    parser.add_argument("--scenarios", default="S1,S2,S3")
    parser.add_argument("--books", default=",".join(BOOKS))
    parser.add_argument("--slice", action="store_true", help="two hours of a day")
    asked = parser.parse_args()
    summary = {}
    print(f"{'case':14} {'clairvoyant $':>13} {'met %':>7} {'ours $':>9} {'met %':>7} {'over %':>7}  replica-hours")
    for scenario, book in product(asked.scenarios.split(","), asked.books.split(",")):
        case = Case(scenario, OURS, COLD_START, slice=asked.slice)
        best, found = reference(case, book).result, ours(case, book)
        over = 100 * (found.dollars / best.dollars - 1)
        name = f"{scenario}/{book}"
        hours = {
            kind.name: round(seconds / 3600, 1)
            for kind, seconds in zip(kinds(case, book), found.replica_seconds, strict=True)
            if seconds
        }
        print(
            f"{name:14} {best.dollars:13.2f} {100 * best.attainment:7.2f} {found.dollars:9.2f} "
            f"{100 * found.attainment:7.2f} {over:7.1f}  {hours}",
            flush=True,
        )
        attainment = round(100 * found.attainment, 3)
        summary[name] = {"attainment_percent": attainment, "over_clairvoyant_percent": round(over, 2)}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
