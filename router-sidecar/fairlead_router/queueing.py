"""Waiting for a replica: first come, first served, in one line for each pool, bounded in length and in time.

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

    def enter(self, place: Place) -> Replica | None:
        """A replica at once, if nobody is waiting and one has room."""
        if self._places:
            return None
        return self._take(place.skip)

    def wait(self, place: Place) -> bool:
        """Join the end of the line; false when it is full."""
        if len(self._places) >= MAX_LENGTH:
            return False
        self._places.append(place)
        self._arm(place)
        self.held.set(len(self._places))
        return True

    def leave(self, place: Place) -> None:
        """Wait no longer."""
        if place.timer is not None:
            place.timer.cancel()
        if place in self._places:
            self._places.remove(place)
            self.held.set(len(self._places))

    def release(self, replica: Replica) -> None:
        """A slot is free again."""
        replica.in_flight -= 1
        self.running -= 1
        if self._places:
            self._advance()

    def update(self, config: PoolConfig, replicas: Iterable[Replica]) -> None:
        """New settings or endpoints."""
        was_empty = not self.replicas
        self.config = config
        self.replicas = merged(self.replicas, replicas)
        self._advance()
        if was_empty != (not self.replicas):
            for place in self._places:
                self._arm(place)

    def advance(self) -> None:
        """Try again: a replica may be back from its ejection."""
        if self._places:
            self._advance()

    def _advance(self) -> None:
        while self._places:
            place = self._places[0]
            replica = self._take(place.skip)
            if replica is None:
                return
            self.leave(place)
            place.guest.placed(replica)

    def _take(self, skip: Sequence[Replica]) -> Replica | None:
        replica = choose(self.replicas, self.config.slots, self._now(), skip)
        if replica is not None:
            replica.in_flight += 1
            self.running += 1
        return replica

    def _arm(self, place: Place) -> None:
        if place.timer is not None:
            place.timer.cancel()
        cold = not self.replicas
        limit = place.max_cold_s if cold else place.max_wait_s
        delay = limit if not cold else max(0.0, place.since + limit - self._now())
        place.timer = asyncio.get_running_loop().call_later(delay, self._time_is_up, place)

    def _time_is_up(self, place: Place) -> None:
        cold = not self.replicas
        self.leave(place)
        place.guest.timed_out(cold=cold)
