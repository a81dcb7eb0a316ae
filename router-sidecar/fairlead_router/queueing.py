"""Waiting for a replica: first come, first served, in one line for each pool, bounded in length and in time.

A request whose size no route is known to take, because the pool's engine never told its context, is parked beside the
line: it counts as held, so that the pool is woken, and is looked at again when the configuration changes.

A request waits either because every replica has its slots full (at most the route's maxWait) or because the pool has no
replica (at most its maxColdStartWait); while it waits it may pass from one state to the other.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from fairlead_router.contract import PoolConfig
from fairlead_router.replicas import Replica, choose, merged

MAX_LENGTH: Final = 1_000


class Guest(Protocol):
    """A request that wants a replica."""

    def placed(self, replica: Replica) -> None:
        """A slot of this replica is yours; give it back with ``release``."""

    def timed_out(self, *, cold: bool) -> None:
        """The time to wait is over; ``cold``: no replica appeared."""

    def replan(self) -> None:
        """The configuration changed while this request was parked."""


@dataclass(slots=True, eq=False)
class Place:
    """A request's place in the line."""

    guest: Guest
    max_wait_s: float
    max_cold_s: float
    since: float
    skip: tuple[Replica, ...] = ()
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class Peaks:
    """A gauge with the highest value since each reader's previous reading."""

    value: int = 0
    _peak: int = 0
    _readers: dict[str, int] = field(default_factory=dict)

    def set(self, value: int) -> None:
        """The gauge is now at ``value``."""
        self.value = value
        self._peak = max(self._peak, value)

    def read(self, reader: str) -> int:
        """The peak since this reader's last reading, and begin a new one for it."""
        for name in self._readers:
            self._readers[name] = max(self._readers[name], self._peak)
        peak = max(self._readers.pop(reader, self._peak), self.value)
        self._peak = self.value
        if len(self._readers) >= _MAX_READERS:
            del self._readers[next(iter(self._readers))]
        self._readers[reader] = self.value
        return peak


_MAX_READERS: Final = 8


class Line:
    """One pool: its replicas, and who waits for them."""

    def __init__(self, config: PoolConfig, now: Callable[[], float]) -> None:
        self.config = config
        self.replicas: list[Replica] = []
        self.running = 0
        self.held = Peaks()
        self._now = now
        self._places: deque[Place] = deque()
        self._parked: deque[Place] = deque()

    def enter(self, place: Place) -> Replica | None:
        """A replica at once, if nobody is waiting and one has room."""
        if self._places:
            return None
        return self._take(place.skip)

    def wait(self, place: Place) -> bool:
        """Join the end of the line; false when it is full."""
        if self._full():
            return False
        self._places.append(place)
        self._arm(place)
        self._count()
        return True

    def park(self, place: Place) -> bool:
        """Wait beside the line for the next configuration; false when too many wait."""
        if self._full():
            return False
        self._parked.append(place)
        self._arm(place)
        self._count()
        return True

    def replan(self) -> None:
        """The configuration changed: look at all parked requests again."""
        parked, self._parked = self._parked, deque()
        for place in parked:
            if place.timer is not None:
                place.timer.cancel()
            place.guest.replan()
        self._count()

    def leave(self, place: Place) -> None:
        """Wait no longer."""
        if place.timer is not None:
            place.timer.cancel()
        for places in (self._places, self._parked):
            if place in places:
                places.remove(place)
                self._count()

    def release(self, replica: Replica) -> None:
        """A slot is free again."""
        replica.in_flight -= 1
        self.running -= 1
        if self._places:
            self._advance()

    def update(self, config: PoolConfig, replicas: Iterable[Replica]) -> None:
        """New settings or endpoints."""
        was_empty = self._empty()
        self.config = config
        self.replicas = merged(self.replicas, replicas)
        self._advance()
        if was_empty != self._empty():
            for place in self._places:
                self._arm(place)

    def advance(self) -> None:
        """Try again: a replica may be back from its ejection."""
        if self._places:
            self._advance()

    def _advance(self) -> None:
        while (found := self._next()) is not None:
            place, replica = found
            self.leave(place)
            place.guest.placed(replica)

    def _next(self) -> tuple[Place, Replica] | None:
        """The first who can have a replica; one that may not use those with room holds up nobody."""
        for place in self._places:
            replica = self._take(place.skip)
            if replica is not None:
                return place, replica
            if not place.skip:
                return None
        return None

    def _full(self) -> bool:
        return len(self._places) + len(self._parked) >= MAX_LENGTH

    def _count(self) -> None:
        self.held.set(len(self._places) + len(self._parked))

    def _take(self, skip: Sequence[Replica]) -> Replica | None:
        replica = choose(self.replicas, self.config.slots, self._now(), skip)
        if replica is not None:
            replica.in_flight += 1
            self.running += 1
        return replica

    def _arm(self, place: Place) -> None:
        if place.timer is not None:
            place.timer.cancel()
        cold = self._cold(place)
        limit = place.max_cold_s if cold else place.max_wait_s
        delay = limit if not cold else max(0.0, place.since + limit - self._now())
        place.timer = asyncio.get_running_loop().call_later(delay, self._time_is_up, place)

    def _cold(self, place: Place) -> bool:
        return self._empty() or place in self._parked

    def _empty(self) -> bool:
        """No replica is there, or all that are there drain."""
        return all(replica.leaving_until > self._now() for replica in self.replicas)

    def _time_is_up(self, place: Place) -> None:
        cold = self._cold(place)
        self.leave(place)
        place.guest.timed_out(cold=cold)
