"""The work queue: each key once, one worker at a time for each key, back-off for each key by itself."""

import asyncio
import heapq
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from fairlead_operator.clock import Clock

FIRST_BACKOFF_S = 0.2
LONGEST_BACKOFF_S = 60.0


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What is to be reconciled: an object of a kind."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"


@dataclass(slots=True)
class _Waiting:
    """Keys that are added later; the earliest time of each counts."""

    heap: list[tuple[float, Key]] = field(default_factory=list)
    due: dict[Key, float] = field(default_factory=dict)


class WorkQueue:
    """Keys wait in the order in which they were added. A key that is added while it is worked on runs once more."""

    def __init__(self, clock: Clock, dice: random.Random) -> None:
        self._clock = clock
        self._dice = dice
        self._ready: dict[Key, None] = {}
        self._working: set[Key] = set()
        self._again: set[Key] = set()
        self._later = _Waiting()
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()

    def add(self, key: Key) -> None:
        """Work on the key as soon as a worker is free."""
        if key in self._working:
            self._again.add(key)
            return
        self._ready.setdefault(key)
        self._wake.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Work on the key in so many seconds, or earlier if somebody else adds it earlier."""
        at = self._clock.monotonic() + seconds
        if at < self._later.due.get(key, float("inf")):
            self._later.due[key] = at
            heapq.heappush(self._later.heap, (at, key))
            self._wake.set()

    def backoff_s(self, key: Key) -> float:
        """How long the key waits after its next failure: doubling from FIRST to LONGEST, ± 20 %."""
        failures = min(self._failures.get(key, 0), 16)
        return float(min(FIRST_BACKOFF_S * 2**failures, LONGEST_BACKOFF_S)) * self._dice.uniform(0.8, 1.2)

    def failures(self, key: Key) -> int:
        """How often in a row the key has failed."""
        return self._failures.get(key, 0)

    def __len__(self) -> int:
        return len(self._ready) + len(self._working)

    async def take(self) -> Key:
        """The next key; the caller must say done() or failed() afterwards."""
        while True:
            pause = self._promote()
            if self._ready:
                key = next(iter(self._ready))
                del self._ready[key]
                self._working.add(key)
                return key
            self._wake.clear()
            await self._rest(pause)

    def done(self, key: Key) -> None:
        """The key was worked on without an error."""
        self._failures.pop(key, None)
        self._release(key)

    def failed(self, key: Key) -> None:
        """The work on the key broke off: once more after its back-off."""
        pause = self.backoff_s(key)
        self._failures[key] = self._failures.get(key, 0) + 1
        self._release(key)
        self.add_after(key, pause)

    async def work(self, job: Callable[[Key], Awaitable[None]], broken: Callable[[Key, Exception], None]) -> None:
        """One worker: takes keys until cancelled. An error in one job is told and touches no other key."""
        while True:
            key = await self.take()
            try:
                await job(key)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one object must not stop the others
                broken(key, error)
                self.failed(key)
            except asyncio.CancelledError:
                self._working.discard(key)
                raise
            else:
                self.done(key)

    def _release(self, key: Key) -> None:
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _promote(self) -> float | None:
        """Move what is due to the ready keys; answers the seconds until the next one is."""
        now = self._clock.monotonic()
        while self._later.heap:
            at, key = self._later.heap[0]
            if self._later.due.get(key) != at:
                heapq.heappop(self._later.heap)
                continue
            if at > now:
                return at - now
            heapq.heappop(self._later.heap)
            del self._later.due[key]
            self.add(key)
        return None

    async def _rest(self, seconds: float | None) -> None:
        """Wait until something is added, or until the given seconds are over."""
        woken = asyncio.ensure_future(self._wake.wait())
        timers = [] if seconds is None else [asyncio.ensure_future(self._clock.sleep(seconds))]
        try:
            await asyncio.wait([woken, *timers], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (woken, *timers):
                task.cancel()
