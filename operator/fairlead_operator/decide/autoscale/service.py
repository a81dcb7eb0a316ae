"""What replicas can do: the share of requests that meet the objectives, by load and number of replicas.

The simulated curves say how the share falls with the load. Where the real one falls is learned: when more requests miss
than predicted at a steady load, every load counts as a little heavier, and lighter when fewer do.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
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
HARDLY: Final = 1e-6
"""Where none was predicted to miss, variants learn by their parts of the load."""
MOST_LEARNED: Final = 1.0
"""Bound of the logarithm of the correction."""


@dataclass(frozen=True, slots=True)
class Learned:
    """Of one variant: the logarithm of the factor by which its real replicas take more load than simulated ones.

    ``load`` is what a replica took by the curves that this corrects, in requests/s.
    """

    name: str
    load: float
    correction: float = 0.0
    lessons: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """What was learned of each variant, and what was seen since the last lesson, of so many ready replicas of each."""

    learned: tuple[Learned, ...] = ()
    ready: tuple[int, ...] = ()
    ready_since_s: float = 0.0
    finished: int = 0
    missed: int = 0
    predicted: tuple[float, ...] = ()

    @property
    def corrections(self) -> tuple[float, ...]:
        """By variant. One that never served may be as much worse than simulated as the others are, but not better."""
        known = [one.correction for one in self.learned if one.lessons]
        unknown = min(0.0, sum(known) / len(known)) if known else 0.0
        return tuple(one.correction if one.lessons else unknown for one in self.learned)

    @property
    def factors(self) -> tuple[float, ...]:
        """By how much a replica of each variant takes more load than its curve says."""
        return tuple(math.exp(one) for one in self.corrections)

    @property
    def by_name(self) -> dict[str, float]:
        """The same by the variants' names."""
        return {one.name: factor for one, factor in zip(self.learned, self.factors, strict=True)}


@dataclass(frozen=True, slots=True)
class Done:
    """Requests that finished in a round, those that missed, and by variant the share (0..1) that was to miss there."""

    finished: int
    missed: int
    predicted: tuple[float, ...]


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


def learn(service: Service, ready: tuple[int, ...], at_s: float, done: Done, *, steady: bool) -> Service:
    """What is known after one round; ``steady``: the rate has been the same for a while, and none was held."""
    if ready != service.ready:
        return replace(_emptied(service), ready=ready, ready_since_s=at_s)
    if not steady or at_s - service.ready_since_s <= STEADY_S:
        return _emptied(service)
    finished, missed = service.finished + done.finished, service.missed + done.missed
    before = service.predicted or (0.0,) * len(done.predicted)
    predicted = tuple(so_far + done.finished * share for so_far, share in zip(before, done.predicted, strict=True))
    if finished < LEARNED_FROM or missed + sum(predicted) < MISSES_NEEDED:
        return replace(service, finished=finished, missed=missed, predicted=predicted)
    lesson = (sum(predicted) - missed) / (sum(predicted) + missed + MISSES_NEEDED / 2)
    return replace(_emptied(service), learned=_taught(service, predicted, lesson))


def _taught(service: Service, predicted: Sequence[float], lesson: float) -> tuple[Learned, ...]:
    """Each variant that serves learns by its part of the misses that were predicted."""
    parts = [
        missed + HARDLY * number * one.load
        for missed, number, one in zip(predicted, service.ready, service.learned, strict=True)
    ]
    whole, (first, least) = sum(parts) or 1.0, LEARNING
    learned = []
    for one, correction, part in zip(service.learned, service.corrections, parts, strict=True):
        gain = max(least, first / (1 + one.lessons / LEARNING_FADES)) * part / whole
        after = max(-MOST_LEARNED, min(MOST_LEARNED, correction + gain * lesson))
        learned.append(replace(one, correction=after, lessons=one.lessons + 1) if part else one)
    return tuple(learned)


def measured(service: Service, loads: Sequence[tuple[str, float]]) -> Service:
    """What is known once a replica of each variant takes so many requests/s by its curves, which may be new.

    Requests that grow are noticed by their misses before they are by their sizes. What was learned of them is in the
    new curves, and would count twice: of the correction remains what these do not explain.
    """
    known = {one.name: one for one in service.learned}
    learned = tuple(_explained(known.get(name), Learned(name, load)) for name, load in loads)
    return service if learned == service.learned else replace(_emptied(service), learned=learned)


def _explained(known: Learned | None, fresh: Learned) -> Learned:
    if known is None or known.load == fresh.load:
        return known or fresh
    low, high = sorted((0.0, known.correction))
    correction = min(high, max(low, known.correction + math.log(known.load / fresh.load)))
    return replace(known, load=fresh.load, correction=correction)


def _emptied(service: Service) -> Service:
    return replace(service, finished=0, missed=0, predicted=()) if service.finished else service


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
