"""What replicas of one or several variants miss together, by the load of all of them.

The router gives each replica its part by what its variant can do, until most of what it got more would miss: it keeps
that back, and others that can still serve it in time take it (``performance.routing``).
"""

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

from fairlead_operator.decide.autoscale.service import SHARES, PoolCurve, Pools

Numbers = tuple[int, ...]
"""Replicas by variant, in the order of the settings."""
FULL: Final = 0.5
"""Where more than this share of additional requests would miss, a replica gets no more while others can take it."""
MOST_KEPT: Final = 8192
"""Groups of all fleets; each takes two to six kilobytes."""


@dataclass(frozen=True, slots=True)
class Member:
    """Replicas of one variant: what each can do, how many, and the part (requests/s) by which the router sends.

    ``factor``: how much more load than by its curve a replica takes.
    """

    place: int
    curve: PoolCurve
    number: int
    part: float
    factor: float

    @property
    def full(self) -> float:
        """Requests/s at which a replica gets no more while others can take it."""
        loads = self.curve.loads
        for at, (low, high) in enumerate(pairwise(loads)):
            if high * (1 - SHARES[at + 1]) - low * (1 - SHARES[at]) > FULL * (high - low):
                return low * self.factor
        return loads[-1] * self.factor

    def missed(self, load: float) -> float:
        """Requests/s of all its replicas that miss when each gets so many."""
        return self.number * load * (1 - self.curve.share(load / self.factor))


class Group:
    """Requests/s that miss, by variant, at loads of the whole pool between which they are interpolated."""

    __slots__ = ("_by", "_total", "loads")

    def __init__(self, loads: Sequence[float], by: Sequence[Sequence[float]]) -> None:
        self.loads = array("d", loads)
        self._by = tuple(array("d", one) for one in zip(*by, strict=True))
        self._total = array("d", map(sum, by))

    def missed(self, load: float) -> float:
        """Of all variants; beyond the last load as many are served in time as there."""
        loads, total = self.loads, self._total
        at = bisect_right(loads, load)
        if at == 0:
            return 0.0
        if at == len(loads):
            return total[-1] + load - loads[-1]
        part = (load - loads[at - 1]) / (loads[at] - loads[at - 1])
        return total[at - 1] + part * (total[at] - total[at - 1])

    def missed_by(self, load: float) -> tuple[float, ...]:
        """Of each variant."""
        at = min(len(self.loads) - 1, bisect_right(self.loads, load))
        whole = self._total[at]
        missed = self.missed(load)
        return tuple(missed * one[at] / whole if whole else 0.0 for one in self._by)


class Groups:
    """Those of one fleet."""

    __slots__ = ("_factors", "_parts", "_pools")

    def __init__(self, pools: Sequence[Pools], parts: Sequence[float], factors: Sequence[float]) -> None:
        self._pools, self._parts, self._factors = pools, parts, factors

    @lru_cache(maxsize=MOST_KEPT)  # noqa: B019 - of all fleets together: those that are gone make room
    def of(self, numbers: Numbers) -> Group:
        """Of so many replicas, one at least."""
        size = sum(numbers)
        members = [
            Member(place, self._pools[place].of(size), number, self._parts[place], self._factors[place])
            for place, number in enumerate(numbers)
            if number
        ]
        loads: list[float] = []
        by: list[list[float]] = []
        for each in _loads(members):
            total = sum(member.number * load for member, load in zip(members, each, strict=True))
            if loads and total <= loads[-1] * (1 + 1e-9):
                continue
            missed = [0.0] * len(numbers)
            for member, load in zip(members, each, strict=True):
                missed[member.place] = member.missed(load)
            loads.append(total)
            by.append(missed)
        return Group(loads, by)


def _loads(members: Sequence[Member]) -> list[list[float]]:
    """The load of a replica of each, ascending: by parts until all are full, then all alike beyond."""
    full = [member.full for member in members]
    pressures, beyond = set(), set()
    for member, most in zip(members, full, strict=True):
        for load in member.curve.loads:
            real = load * member.factor
            if real <= most:
                pressures.add(real / member.part)
            else:
                beyond.add(real / most)
    rising = [
        [min(most, pressure * member.part) for member, most in zip(members, full, strict=True)]
        for pressure in sorted(pressures)
    ]
    return rising + [[most * over for most in full] for over in sorted(beyond)]


@lru_cache(maxsize=256)
def groups(pools: tuple[Pools, ...], parts: tuple[float, ...], factors: tuple[float, ...]) -> Groups:
    """The same value for the same fleet."""
    return Groups(pools, parts, factors)
