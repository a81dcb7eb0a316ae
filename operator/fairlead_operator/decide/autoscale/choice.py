"""Which whole numbers of replicas cost least: what they are paid, plus the price of the requests that they let miss."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from fairlead_operator.decide.autoscale.demand import Outlook
from fairlead_operator.decide.autoscale.group import Groups, Numbers, groups
from fairlead_operator.decide.autoscale.service import pools
from fairlead_operator.decide.autoscale.values import VariantState

TYPICAL_POOL: Final = 4
"""Pool size at which variants are compared."""
MOST_OPTIONS: Final = 400
ALIKE: Final = 1.02
"""Loads of which none is so many times the other count as the same when sets are listed."""
UNPRICED: Final = 1_000_000_000
"""Nano-USD an hour where no variant has a price: only ratios matter then."""


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

    groups: Groups
    kinds: tuple[Kind, ...]
    miss_price: float

    def paid(self, numbers: Numbers) -> float:
        """Nano-USD a second for the replicas."""
        return sum(kind.price * number for kind, number in zip(self.kinds, numbers, strict=True))

    def cost(self, numbers: Numbers, outlook: Outlook) -> float:
        """Nano-USD a second for the replicas and for the misses that are to be expected."""
        return self.paid(numbers) + self.miss_price * self.misses(numbers, outlook)

    def misses(self, numbers: Numbers, outlook: Outlook) -> float:
        """Requests a second that will miss."""
        if sum(numbers) == 0:
            return sum(rate * weight for rate, weight in outlook.points)
        group = self.groups.of(numbers)
        safe = group.loads[0]
        return sum(weight * group.missed(rate) for rate, weight in outlook.points if rate > safe)


def typical_loads(variants: Sequence[VariantState], attainment: float) -> tuple[float, ...]:
    """Requests/s that a replica of each variant takes by its curves."""
    return tuple(_load(variant, attainment) for variant in variants)


def _load(variant: VariantState, attainment: float) -> float:
    return max(1e-6, pools(variant.curves).of(TYPICAL_POOL).capacity(attainment))


def fleet(variants: Sequence[VariantState], attainment: float, factors: Sequence[float], misses_cost: float) -> Fleet:
    """The variants to choose from, each with the factor by which its replicas take more load than its curves say.

    A miss costs ``misses_cost`` times what a request costs on the cheapest of them.
    """
    known = [variant.price for variant in variants if variant.price is not None]
    dearest = max(known, default=0) or UNPRICED
    loads = typical_loads(variants, attainment)
    kinds = tuple(
        Kind(
            price=(dearest if variant.price is None else max(1, variant.price)) / 3600,
            load=load * factor,
            least=variant.minimum,
            most=1 << 30 if variant.maximum is None else variant.maximum,
        )
        for variant, load, factor in zip(variants, loads, factors, strict=True)
    )
    request = min(kind.price / kind.load for kind in kinds)
    using = groups(tuple(pools(one.curves) for one in variants), loads, tuple(factors))
    return Fleet(using, kinds, misses_cost * request)


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


def listed(kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """The same with rounded loads: while a little is learned of them, the lists of sets stay."""
    return tuple(replace(kind, load=ALIKE ** round(math.log(kind.load, ALIKE))) for kind in kinds)


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
