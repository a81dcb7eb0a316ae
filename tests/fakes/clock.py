"""A clock that stands still until it is told to go on."""

import asyncio
import heapq
import itertools
from collections.abc import Callable


class FakeClock:
    """Sleepers wake when advance() has passed their time."""

    def __init__(self, now_ms: int = 1_795_172_400_000) -> None:
        self._start_ms = now_ms
        self._at = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now_ms(self) -> int:
        return self._start_ms + round(self._at * 1000)

    def monotonic(self) -> float:
        return self._at

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._at + seconds, next(self._order), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Let time pass, waking sleepers in order, and let everybody run."""
        until = self._at + seconds
        while self._sleepers and self._sleepers[0][0] <= until:
            at, _, future = heapq.heappop(self._sleepers)
            self._at = max(self._at, at)
            if not future.done():
                future.set_result(None)
            await settle()
        self._at = until
        await settle()

    @property
    def sleeping(self) -> int:
        """How many wait."""
        return sum(not future.done() for _, _, future in self._sleepers)


async def settle(rounds: int = 20) -> None:
    """Let every task that can run, run."""
    for _ in range(rounds):
        await asyncio.sleep(0)


async def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until the condition holds, at most so long."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.005)
