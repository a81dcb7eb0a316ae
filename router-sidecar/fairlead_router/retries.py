"""How often a request may be tried again: a share of all requests, so that a broken pool is not hit several times over.

Pure. Counted in whole seconds, over the latest ten of them.
"""

from typing import Final

WINDOW_S: Final = 10
SHARE_DIVISOR: Final = 5
"""Retries are at most a fifth of the requests."""
FLOOR_PER_S: Final = 3
"""So many retries in one second are allowed in any case: where little runs a share of it is nothing."""


class RetryBudget:
    """Retries against requests. Times are seconds of any clock that does not go back; each call takes O(1)."""

    def __init__(self, floor_per_s: int = FLOOR_PER_S) -> None:
        self.floor_per_s = floor_per_s
        self._second = 0
        self._requests = [0] * WINDOW_S
        self._retries = [0] * WINDOW_S
        self._all_requests = 0
        self._all_retries = 0

    def request(self, now: float) -> None:
        """A request came in; not called for its retries."""
        second = int(now)
        if second != self._second:
            self._roll(second)
        self._requests[second % WINDOW_S] += 1
        self._all_requests += 1

    def allow(self, now: float) -> bool:
        """Whether one more retry may be sent; if so it counts as sent."""
        second = int(now)
        if second != self._second:
            self._roll(second)
        slot = second % WINDOW_S
        within = SHARE_DIVISOR * (self._all_retries + 1) <= self._all_requests
        if not within and self._retries[slot] >= self.floor_per_s:
            return False
        self._retries[slot] += 1
        self._all_retries += 1
        return True

    def _roll(self, second: int) -> None:
        """Forget the seconds that left the window."""
        for passed in range(self._second + 1, self._second + 1 + min(second - self._second, WINDOW_S)):
            slot = passed % WINDOW_S
            self._all_requests -= self._requests[slot]
            self._all_retries -= self._retries[slot]
            self._requests[slot] = self._retries[slot] = 0
        self._second = second
