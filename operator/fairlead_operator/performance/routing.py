"""How the router spreads requests over replicas, as simulations have it: each runs so many at once, the rest wait.

A replica runs at most its slots: as many requests as still meet the objectives beside each other. Beyond that requests
wait at the router, and an overload costs only those that are too many. Whoever can still meet the time to the first
token goes first, in the order of arrival; who cannot any more goes behind, but one in ``LATE_EVERY`` is served. After
``MAX_WAIT`` they are refused.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

from fairlead_operator.performance.replica import Replica, Request

PATIENCE: Final = 0.8
"""A request that has waited for so much of the time to the first token cannot meet it any more."""
LATE_EVERY: Final = 16
MAX_WAIT: Final = 30.0
"""Seconds after which a request that waits is answered with an error, as routes have it unless told otherwise."""
UNBOUNDED: Final = 1 << 30


class Place:
    """A replica that takes requests: its load counts by ``inverse_weight``, and it runs at most ``slots`` at once."""

    __slots__ = ("inverse_weight", "replica", "slots")

    def __init__(self, replica: Replica, inverse_weight: float = 1.0, slots: int = UNBOUNDED) -> None:
        self.replica = replica
        self.inverse_weight = inverse_weight
        self.slots = slots

    def has_room(self) -> bool:
        """Whether a slot is free."""
        return self.replica.running + len(self.replica.waiting) < self.slots


class Router:
    """The requests that wait for a slot. ``ttft`` is the objective in seconds, infinite without one."""

    __slots__ = ("_given", "late", "line", "patience")

    def __init__(self, ttft: float) -> None:
        self.patience = PATIENCE * ttft
        self.line: deque[Request] = deque()
        self.late: deque[Request] = deque()
        self._given = 0

    def waiting(self) -> int:
        """How many wait."""
        return len(self.line) + len(self.late)

    def unfinished(self) -> list[Request]:
        """Those that wait."""
        return [*self.line, *self.late]

    def arrive(self, request: Request, now: float, places: Sequence[Place]) -> bool:
        """To the place with a free slot and the fewest outstanding tokens, or into the line; false if it fits nowhere.

        Of equals the first place takes it.
        """
        for place in places:
            if place.replica.end < now:
                place.replica.advance(now)
        if self.line or self.late:
            self.line.append(request)
            return True
        best = _least(places)
        if best is None:
            self.line.append(request)
            return True
        return _push(request, now, best, places)

    def free_at(self, places: Sequence[Place]) -> float:
        """When the state of a place changes next, while requests wait; else never."""
        found = math.inf
        if self.line or self.late:
            for place in places:
                found = min(found, place.replica.end)
        return found

    def give(self, now: float, places: Sequence[Place]) -> list[Request]:
        """Free slots to those that wait, after all that ends by now; the requests that fit nowhere."""
        misfits: list[Request] = []
        just = math.nextafter(now, math.inf)
        for place in places:
            if place.replica.end <= now:
                place.replica.advance(just)
        while self.line or self.late:
            best = _least(places)
            if best is None:
                break
            request = self._next(now)
            if not _push(request, now, best, places):
                misfits.append(request)
        return misfits

    def expired(self, now: float) -> list[Request]:
        """Those that have waited too long; they wait no more."""
        line, late = self.line, self.late
        while line and now - line[0].released > self.patience:
            late.append(line.popleft())
        found: list[Request] = []
        for waiting in (late, line):
            while waiting and now - waiting[0].released > MAX_WAIT:
                found.append(waiting.popleft())
        return found

    def _next(self, now: float) -> Request:
        """The first that can still be in time; of those that are late one in some."""
        line, late = self.line, self.late
        while line and now - line[0].released > self.patience:
            late.append(line.popleft())
        self._given += 1
        if late and (not line or self._given % LATE_EVERY == 0):
            return late.popleft()
        return line.popleft()


def _least(places: Sequence[Place]) -> Place | None:
    """The place with a free slot that has the fewest outstanding tokens by weight."""
    best: Place | None = None
    least = math.inf
    for place in places:
        load = place.replica.outstanding * place.inverse_weight
        if load < least and place.has_room():
            best, least = place, load
    return best


def _push(request: Request, now: float, best: Place, places: Sequence[Place]) -> bool:
    """To this place, else to the least loaded of those whose KV cache holds it."""
    if not best.replica.fits(request):
        able = [place for place in places if place.replica.fits(request)]
        if not able:
            return False
        best = min(able, key=lambda place: place.replica.outstanding * place.inverse_weight)
    best.replica.push(request, now)
    return True
