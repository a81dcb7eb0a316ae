"""Waiting for a replica: one line for each pool, bounded in length and in time.

What a pool admits is up to its replicas: `Fleet.take` finds room or does not. While there is none, requests wait here
instead of in an engine's own queue, from which nobody could call them back: the next slot goes to the highest priority,
and within it to the tenants in turn, by cost (`fairness`). When the line is full, who has least right to wait leaves.

Where the pool promises a time to the first token, those who can still have it go before those of their priority who
have waited too long for that: an overload costs only as many as are too many. Nobody starves: while such wait, one slot
in `LATE_EVERY` is for the first of them, and at the end of their time to wait they leave as everyone does.

A request waits either because every replica has its slots full (at most the route's maxWait) or because the pool has no
replica (at most its maxColdStartWait); while it waits it may pass from one state to the other. A request whose size no
route is known to take, because the pool's engine never told its context, is parked beside the line: it counts as held,
so that the pool is woken, and is looked at again when the configuration changes.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from fairlead_router.affinity import NO_PREFIX, Key
from fairlead_router.contract import PoolConfig, Priority
from fairlead_router.fairness import FairQueue
from fairlead_router.gauges import Peaks
from fairlead_router.replicas import Fleet, Replica

MAX_LENGTH: Final = 1_000
PATIENCE: Final = 0.8
"""Who has waited for so much of the promised time to the first token cannot have it any more."""
LATE_EVERY: Final = 16


class Guest(Protocol):
    """A request that wants a replica. Of the four calls it gets one, and may answer it with any call of the line."""

    def placed(self, replica: Replica) -> None:
        """A slot of this replica is yours; give it back with ``release``."""

    def timed_out(self, *, cold: bool) -> None:
        """The time to wait is over; ``cold``: no replica appeared."""

    def shed(self) -> None:
        """The line is full, and somebody came who has more right to wait."""

    def replan(self) -> None:
        """The configuration changed while this request was parked."""


@dataclass(slots=True, eq=False)
class Place:
    """A request's place in the line.

    It waits ``max_wait_s`` while replicas are there but busy, and until ``max_cold_s`` after ``since`` while there are
    none. It takes none of the replicas in ``skip``. ``cost`` is an upper bound, in one unit for the pool: nano-USD
    if it has a price, else tokens.
    """

    guest: Guest
    max_wait_s: float
    max_cold_s: float
    since: float
    skip: tuple[Replica, ...] = ()
    tenant: str = field(kw_only=True)
    priority: Priority = field(kw_only=True)
    cost: int = field(kw_only=True)
    key: Key = field(kw_only=True, default=NO_PREFIX)
    timer: asyncio.TimerHandle | None = field(init=False, default=None)
    queue: "FairQueue[Place] | None" = field(init=False, default=None)
    """Where it waits; ``None`` once it waits no more."""


class Line:
    """One pool: its replicas, and at most ``most`` requests that wait for them. ``now`` is the event loop's clock."""

    def __init__(self, config: PoolConfig, now: Callable[[], float], most: int = MAX_LENGTH) -> None:
        self.config = config
        self.most = most
        self.held = Peaks()
        """Requests that wait or are parked."""
        self._now = now
        self._fleet = Fleet()
        self._slots = config.slots
        self._open_since = now()
        """When the first replica came: nobody is late for what passed before."""
        self._given = 0
        """Slots given to those that waited."""
        self._waiting: FairQueue[Place] = FairQueue()
        self._parked: FairQueue[Place] = FairQueue()
        self._queued = 0
        """Those of the line that take any replica: while one of them waits, none had room."""
        self._advancing = False

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The pool's replicas, whether or not they take requests now."""
        return self._fleet.replicas

    @property
    def running(self) -> int:
        """Slots that are taken."""
        return self._fleet.running

    def chooses(self) -> bool:
        """Whether there is more than one replica, so that a prompt's key matters."""
        return len(self._fleet.replicas) > 1

    def empty(self) -> bool:
        """Whether no replica is there, or all that are there drain."""
        return self._fleet.empty(self._now())

    def wake(self) -> None:
        """Somebody would have waited for a pool at zero and went elsewhere: let the operator see one that is held."""
        self.held.set(self.held.value + 1)
        self._count()

    # --- requests ---

    def enter(self, key: Key, skip: tuple[Replica, ...] = ()) -> Replica | None:
        """A slot at once, if one is free and nobody waits who could use it; give it back with ``release``."""
        if self._queued:
            return None
        return self._fleet.take(key, self._slots, self._now(), skip)

    def wait(self, place: Place) -> bool:
        """Join the line, which may shed another; false when it is full of requests with no less right to wait."""
        return self._join(self._waiting, place)

    def park(self, place: Place) -> bool:
        """Wait beside the line for the next configuration; false as for ``wait``."""
        return self._join(self._parked, place)

    def leave(self, place: Place) -> None:
        """Wait no longer; nothing happens if it waits no more."""
        if place.queue is not None:
            place.queue.remove(place)
            self._left(place)

    def release(self, replica: Replica) -> None:
        """A slot is free again."""
        self._fleet.release(replica)
        if self._waiting:
            self._advance()

    # --- changes ---

    def replan(self) -> None:
        """The configuration changed: look at all parked requests again."""
        parked, self._parked = self._parked, FairQueue()
        while (place := next(iter(parked), None)) is not None:
            parked.serve(place)
            self._left(place)
            place.guest.replan()

    def update(self, config: PoolConfig, replicas: Iterable[Replica]) -> None:
        """New settings or endpoints; replicas that were there before keep what is known of them."""
        was_empty = self.empty()
        self.config, self._slots = config, config.slots
        self._fleet.update(replicas, dict(config.variant_slots))
        if was_empty:
            self._open_since = self._now()
        self._advance()
        if was_empty != self.empty():
            for place in self._waiting:
                self._arm(place)

    def advance(self) -> None:
        """Try again: time alone may have made room, at a replica that is back or that was said to be full."""
        if self._waiting:
            self._advance()

    def _advance(self) -> None:
        """Place as many as there is room for. Whoever is placed may be over at once and release: the loop sees that."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while (found := self._next()) is not None:
                place, replica = found
                place.guest.placed(replica)
        finally:
            self._advancing = False

    def _next(self) -> tuple[Place, Replica] | None:
        """The first who can have a replica; one that may not use those with room holds up nobody."""
        now = self._now()
        self._put_off(now)
        tried: set[tuple[Replica, ...]] = set()
        for place in self._order():
            if place.skip in tried:
                continue
            replica = self._fleet.take(place.key, self._slots, now, place.skip)
            if replica is not None:
                self._given += 1
                self._waiting.serve(place)
                self._left(place)
                return place, replica
            if not place.skip:
                break
            tried.add(place.skip)
        return None

    def _put_off(self, now: float) -> None:
        """Those at the head of the line who can no longer be served in time go behind the others."""
        if not self.config.ttft_ms:
            return
        patience = PATIENCE * self.config.ttft_ms / 1000
        while (place := next(iter(self._waiting), None)) is not None:
            waited = now - max(place.since, self._open_since)
            if waited <= patience or not self._waiting.put_off(place):
                return

    def _order(self) -> Iterator[Place]:
        """Who is due first; now and then who is late."""
        if self._given % LATE_EVERY == LATE_EVERY - 1:
            yield from self._waiting.late()
        yield from self._waiting

    # --- places ---

    def _join(self, queue: "FairQueue[Place]", place: Place) -> bool:
        shed: Place | None = None
        if len(self._waiting) + len(self._parked) >= self.most:
            shed = queue.yields_to(place)
            if shed is None:
                return False
            self.leave(shed)
        queue.add(place)
        place.queue = queue
        if queue is self._waiting and not place.skip:
            self._queued += 1
        self._arm(place)
        self._count()
        if shed is not None:
            shed.guest.shed()
        return True

    def _left(self, place: Place) -> None:
        """It is out of its queue."""
        if place.queue is self._waiting and not place.skip:
            self._queued -= 1
        place.queue = None
        if place.timer is not None:
            place.timer.cancel()
        self._count()

    def _count(self) -> None:
        self.held.set(len(self._waiting) + len(self._parked))

    def _arm(self, place: Place) -> None:
        if place.timer is not None:
            place.timer.cancel()
        delay = max(0.0, place.since + place.max_cold_s - self._now()) if self._cold(place) else place.max_wait_s
        place.timer = asyncio.get_running_loop().call_later(delay, self._time_is_up, place)

    def _cold(self, place: Place) -> bool:
        return place.queue is not self._waiting or self.empty()

    def _time_is_up(self, place: Place) -> None:
        cold = self._cold(place)
        self.leave(place)
        place.guest.timed_out(cold=cold)
