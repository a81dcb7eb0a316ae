"""Which whole numbers of replicas cost least: what they are paid, plus the price of the requests that they let miss."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from fairlead_operator.decide.autoscale.demand import Outlook
from fairlead_operator.decide.autoscale.service import Pools, pools
from fairlead_operator.decide.autoscale.values import VariantState

TYPICAL_POOL: Final = 4
"""Pool size at which variants are compared."""
MOST_OPTIONS: Final = 400
UNPRICED: Final = 1_000_000_000
"""Nano-USD an hour where no variant has a price: only ratios matter then."""

Numbers = tuple[int, ...]
"""Replicas by variant, in the order of the settings."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A variant as the choice sees it: nano-USD for a replica-second, and requests/s at the objectives."""

    price: float
    load: float
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Fleet:
    """The variants, and what is common to all choices of one round. ``miss_price`` is nano-USD."""

    pools: tuple[Pools, ...]
    kinds: tuple[Kind, ...]
    attainment: float
    factor: float
    miss_price: float

    def paid(self, numbers: Numbers) -> float:
        """Nano-USD a second for the replicas."""
        return sum(kind.price * number for kind, number in zip(self.kinds, numbers, strict=True))

    def cost(self, numbers: Numbers, outlook: Outlook) -> float:
        """Nano-USD a second for the replicas and for the misses that are to be expected."""
        return self.paid(numbers) + self.miss_price * self.misses(numbers, outlook)

    def misses(self, numbers: Numbers, outlook: Outlook) -> float:
        """Requests a second that will miss. Every replica is used to the same part of what it can do."""
        size = sum(numbers)
        if size == 0:
            return sum(rate * weight for rate, weight in outlook.points)
        used = [(one.of(size), number) for one, number in zip(self.pools, numbers, strict=True) if number]
        loads = [curve.capacity(self.attainment) for curve, _ in used]
        scale = 1 / (self.factor * sum(load * number for load, (_, number) in zip(loads, used, strict=True)))
        missing = 0.0
        for curve, number, load in ((*pair, load * scale) for pair, load in zip(used, loads, strict=True)):
            safe = curve.loads[0]
            for rate, weight in outlook.points:
                taken = rate * load  # by one replica, as the curve counts it
                if taken > safe:
                    missing += number * weight * taken * (1 - curve.share(taken)) * self.factor
        return missing


def typical_load(variants: Sequence[VariantState], attainment: float) -> float:
    """Requests/s that a replica takes by the curves, in the mean of the variants."""
    return sum(_load(variant, attainment) for variant in variants) / len(variants)


def _load(variant: VariantState, attainment: float) -> float:
    return max(1e-6, pools(variant.curves).of(TYPICAL_POOL).capacity(attainment))


def fleet(variants: Sequence[VariantState], attainment: float, factor: float, misses_cost: float) -> Fleet:
    """The variants to choose from; a miss costs ``misses_cost`` times what a request costs on the cheapest of them."""
    known = [variant.price for variant in variants if variant.price is not None]
    dearest = max(known, default=0) or UNPRICED
    kinds = tuple(
        Kind(
            price=(dearest if variant.price is None else max(1, variant.price)) / 3600,
            load=_load(variant, attainment),
            least=variant.minimum,
            most=1 << 30 if variant.maximum is None else variant.maximum,
        )
        for variant in variants
    )
    request = min(kind.price / (kind.load * factor) for kind in kinds)
    return Fleet(tuple(pools(one.curves) for one in variants), kinds, attainment, factor, misses_cost * request)


def best(using: Fleet, sets: Iterable[Numbers], outlook: Outlook) -> tuple[Numbers, float] | None:
    """The set that costs least and what it costs, nano-USD a second; None without a set."""
    found: tuple[Numbers, float] | None = None
    for paid, numbers in sorted((using.paid(one), one) for one in sets):
        if found is not None and paid >= found[1]:
            break
        cost = paid + using.miss_price * using.misses(numbers, outlook)
        if found is None or cost < found[1]:
            found = (numbers, cost)
    return found


@lru_cache(maxsize=1024)
def options(kinds: tuple[Kind, ...], least: int, most: int, load: float) -> tuple[Numbers, ...]:
    """Every set of ``least`` to ``most`` replicas that may be the best for some demand up to ``load`` requests/s.

    A set is left out when another of as many replicas takes as much for less money.
    """
    sets: dict[int, list[tuple[float, float, Numbers]]] = {0: [(0.0, 0.0, ())]}
    for kind in kinds:
        enough = min(kind.most, most, max(kind.least, least, math.ceil(load / kind.load) + 1))
        longer: dict[int, list[tuple[float, float, Numbers]]] = {}
        for size, known in sets.items():
            for number in range(kind.least, enough + 1):
                if size + number <= most:
                    more = [(p + number * kind.price, c + number * kind.load, (*n, number)) for p, c, n in known]
                    longer.setdefault(size + number, []).extend(more)
        sets = {size: _undominated(known) for size, known in longer.items()}
    found = [one for size, known in sets.items() if size >= least for one in known]
    return tuple(numbers for _, _, numbers in sorted(found)[:MOST_OPTIONS])


def _undominated(sets: Iterable[tuple[float, float, Numbers]]) -> list[tuple[float, float, Numbers]]:
    """Those for which no cheaper one takes as much."""
    best: list[tuple[float, float, Numbers]] = []
    for one in sorted(sets, key=lambda one: (one[0], -one[1])):
        if not best or one[1] > best[-1][1]:
            best.append(one)
    return best
