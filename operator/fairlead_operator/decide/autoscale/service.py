"""What replicas can do: the share of requests that meet the objectives, by load and number of replicas.

The simulated curves say how the share falls with the load. Where the real one falls is learned: when more requests miss
than predicted at a steady load, every load counts as a little heavier, and lighter when fewer do.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from fairlead_operator.performance.curve import Curve

Curves = tuple[tuple[int, Curve], ...]

SHARES: Final = (
    0.9999, 0.9995, 0.999, 0.998, 0.996, 0.993, 0.99, 0.985, 0.98, 0.97, 0.96, 0.94, 0.92, 0.9, 0.85, 0.8, 0.7, 0.6,
    0.5, 0.4, 0.3, 0.2, 0.1, 0.05,
)  # fmt: skip
STEADY_S: Final = 120.0
"""So long after a change of the rate or of the replicas, the misses say something about the load."""
LEARNED_FROM: Final = 200
MISSES_NEEDED: Final = 40.0
"""Misses come in bursts: of fewer at a time most times say that there are too few, and a few times that there are far
too many."""
LEARNING: Final = (0.08, 0.02)
"""The first and the least step of the correction: what is known of a pool becomes more, and chance counts for less."""
LEARNING_FADES: Final = 4.0
"""After so many steps they are half of the first."""
MOST_LEARNED: Final = 1.0
"""Bound of the logarithm of the correction."""


@dataclass(frozen=True, slots=True)
class Service:
    """What was learned: the logarithm of the factor by which real replicas take more load than simulated ones.

    ``load`` is what a replica took by the curves that this corrects, in requests/s.
    """

    correction: float = 0.0
    load: float = 0.0
    ready: int = 0
    ready_since_s: float = 0.0
    finished: int = 0
    missed: int = 0
    predicted: float = 0.0
    lessons: int = 0

    @property
    def factor(self) -> float:
        """By how much a replica takes more load than the curve says."""
        return math.exp(self.correction)


@dataclass(frozen=True, slots=True)
class Done:
    """Requests that finished in a round, those that missed, and the share that should have met the objectives."""

    finished: int
    missed: int
    predicted_share: float


@dataclass(frozen=True, slots=True)
class PoolCurve:
    """Loads of one replica, ascending, at which ``SHARES`` of the requests meet the objectives."""

    loads: tuple[float, ...]

    def share(self, load: float) -> float:
        """At a load of one replica, interpolated."""
        loads = self.loads
        at = bisect_right(loads, load)
        if at == 0:
            return 1.0
        if at == len(loads):
            return SHARES[-1] * loads[-1] / load
        part = (load - loads[at - 1]) / (loads[at] - loads[at - 1])
        return SHARES[at - 1] + part * (SHARES[at] - SHARES[at - 1])

    def capacity(self, attainment: float) -> float:
        """The highest load at which this share meets the objectives."""
        at = next(place for place, share in enumerate(SHARES) if share <= attainment)
        if at == 0 or SHARES[at] == attainment:
            return self.loads[at]
        part = (SHARES[at - 1] - attainment) / (SHARES[at - 1] - SHARES[at])
        return self.loads[at - 1] + part * (self.loads[at] - self.loads[at - 1])


class Pools:
    """The curves of one variant for pools of every size, each made once.

    Between two known sizes the load at which a share is met lies nearly on a line over 1/sqrt(replicas), because the
    fluctuations that spoil a share fall with the square root of the replicas that share them.
    """

    __slots__ = ("_curves", "_known")

    def __init__(self, curves: Curves) -> None:
        self._curves = curves
        self._known: dict[int, PoolCurve] = {}

    def of(self, replicas: int) -> PoolCurve:
        """For a pool of so many replicas."""
        known = self._known.get(replicas)
        if known is None:
            known = self._known[replicas] = self._made(replicas)
        return known

    def _made(self, replicas: int) -> PoolCurve:
        few, narrow = next((one for one in reversed(self._curves) if one[0] <= replicas), self._curves[0])
        many, wide = next((one for one in self._curves if one[0] >= replicas), self._curves[-1])
        part = (replicas**-0.5 - many**-0.5) / (few**-0.5 - many**-0.5) if few < replicas < many else 0.0
        loads: list[float] = []
        for share in SHARES:
            low, high = _load_at(narrow, share), _load_at(wide, share)
            loads.append(max(high + part * (low - high), loads[-1] * (1 + 1e-6) if loads else 1e-9))
        return PoolCurve(tuple(loads))


@lru_cache(maxsize=1024)
def pools(curves: Curves) -> Pools:
    """The same value for the same curves."""
    return Pools(curves)


def learn(service: Service, ready: int, at_s: float, done: Done, *, steady: bool) -> Service:
    """What is known after one round; ``steady``: the rate has been the same for a while, and none was held."""
    if ready != service.ready:
        return replace(_emptied(service), ready=ready, ready_since_s=at_s)
    if not steady or at_s - service.ready_since_s <= STEADY_S:
        return _emptied(service)
    finished, missed = service.finished + done.finished, service.missed + done.missed
    predicted = service.predicted + done.finished * (1 - done.predicted_share)
    if finished < LEARNED_FROM or missed + predicted < MISSES_NEEDED:
        return replace(service, finished=finished, missed=missed, predicted=predicted)
    first, least = LEARNING
    gain = max(least, first / (1 + service.lessons / LEARNING_FADES))
    change = gain * (predicted - missed) / (predicted + missed + MISSES_NEEDED / 2)
    correction = max(-MOST_LEARNED, min(MOST_LEARNED, service.correction + change))
    return replace(_emptied(service), correction=correction, lessons=service.lessons + 1)


def measured(service: Service, load: float) -> Service:
    """What is known once a replica takes so many requests/s by curves that were measured anew.

    Requests that grow are noticed by their misses before they are by their sizes. What was learned of them is in the
    new curves, and would count twice: of the correction remains what these do not explain.
    """
    if load == service.load:
        return service
    explained = math.log(service.load / load) if service.load else 0.0
    low, high = sorted((0.0, service.correction))
    return replace(_emptied(service), load=load, correction=min(high, max(low, service.correction + explained)))


def _emptied(service: Service) -> Service:
    return replace(service, finished=0, missed=0, predicted=0.0) if service.finished else service


def _load_at(curve: Curve, share: float) -> float:
    """The highest load with at least this share; below the first one the share falls from 1 in a straight line."""
    loads, shares = curve.loads, curve.shares
    if shares[0] < share:
        return loads[0] * (1 - share) / (1 - shares[0])
    for place in range(1, len(loads)):
        if shares[place] < share:
            part = (shares[place - 1] - share) / (shares[place - 1] - shares[place])
            return loads[place - 1] + part * (loads[place] - loads[place - 1])
    return loads[-1] * shares[-1] / share
