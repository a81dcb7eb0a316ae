"""Whether the ledger's clock can be trusted to open a window: what the routers' clocks say of it.

Windows that are in use go on whatever the clock says. Only a window that is opened at a wrong time would be a second
allowance, and the routers' messages carry the time at which they were sent.
"""

from collections import OrderedDict
from statistics import median

MAX_OFF_MS = 60_000
VOTERS = 15
"""So many sessions, those heard last, have a say."""
HEARD_MS = 60_000
"""A vote counts this long: routers speak every few seconds, and who has ended has no say."""
QUORUM = 3
TOLERANCE_MS = 2_000
"""Two ledgers on one database may differ by so much."""


def trusted(now: int, *, high_water: int, vouched: bool | None) -> bool:
    """Whether a window may be opened: the routers decide, or else the latest time that the clock has shown before."""
    return now >= high_water - TOLERANCE_MS if vouched is None else vouched


class Skew:
    """The votes of one ledger process. Used by its event loop only."""

    def __init__(self) -> None:
        self._votes: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """By session, how far the clocks are apart (ms), and when it said so; who was heard last is the last."""
        self._needed = 0
        self._jumped = 0.0
        self._apart: float | None = None

    def hear(self, session: str, sent_at: int, now: int, monotonic: float) -> None:
        """A message came; ``sent_at`` is 0 if it does not tell. A clock that jumped has to be voted for anew."""
        apart = now - monotonic * 1000
        if self._apart is not None and abs(apart - self._apart) > MAX_OFF_MS:
            self._needed, self._jumped = min(QUORUM, len(self._votes)), monotonic
            self._votes.clear()
        self._apart = apart
        if sent_at:
            self._votes[session] = now - sent_at, monotonic
            self._votes.move_to_end(session)
        while self._votes and self._is_over(monotonic):
            self._votes.popitem(last=False)
        if (monotonic - self._jumped) * 1000 > HEARD_MS:  # whoever is still there has spoken since
            self._needed = min(self._needed, max(1, len(self._votes)))
        if self._needed and self.vouched():
            self._needed = 0

    def _is_over(self, monotonic: float) -> bool:
        """Whether the oldest vote counts no more."""
        _, heard = next(iter(self._votes.values()))
        return len(self._votes) > VOTERS or (monotonic - heard) * 1000 > HEARD_MS

    def vouched(self) -> bool | None:
        """Whether the routers' clocks agree with the ledger's; None while too few of them have spoken."""
        if len(self._votes) < max(self._needed, 1):
            return False if self._needed else None
        if len(self._votes) < QUORUM and not self._needed:
            return None
        return abs(median(off for off, _ in self._votes.values())) <= MAX_OFF_MS
