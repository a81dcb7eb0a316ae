"""What pools were asked in the last two weeks, from the ledger: a new leader starts with it instead of with nothing."""

import asyncio
from collections.abc import Iterable

from fairlead_operator.clock import Clock
from fairlead_operator.decide.autoscale import History
from fairlead_operator.kube.cluster import Cluster
from fairlead_operator.ledger_client import LedgerClient
from fairlead_operator.reconcile.autoscaler import Past, objectives_of
from fairlead_operator.reconcile.books import Books
from fairlead_router.contract import BUCKET_MS, UsageAnswer, UsageRow

DAY_MS = 86_400_000
REACH_MS = 14 * DAY_MS
EVERY_MS = 3_600_000
AGAIN_MS = 60_000
PER_ROUND = 4
"""Pools whose history is read in one round, at once: more wait for the next, whoever waited longest first."""
SECOND_MS = 1000


class DemandHistories:
    """Keeps the past of every pool that has objectives of latency."""

    def __init__(self, client: LedgerClient, cluster: Cluster, books: Books, clock: Clock) -> None:
        self._client = client
        self._cluster = cluster
        self._books = books
        self._clock = clock
        self._read_ms: dict[str, int] = {}

    async def round(self) -> None:
        """Read those that are due. Raises LedgerError for the first of them that could not be read."""
        pools, now = self._cluster.snapshot().pools, self._clock.now_ms()
        wanted = [key for key, pool in pools.items() if objectives_of(pool) is not None]
        self._read_ms = {key: self._read_ms.get(key, 0) for key in wanted}
        due = sorted((at, key) for key, at in self._read_ms.items() if now - at >= EVERY_MS)
        chosen = [key for _, key in due[:PER_ROUND]]
        results = await asyncio.gather(*(self._read(key, now) for key in chosen), return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                raise error

    async def _read(self, key: str, now: int) -> None:
        """Read one pool's; what fails is tried again in a minute."""
        self._read_ms[key] = now - EVERY_MS + AGAIN_MS
        until = now - now % BUCKET_MS
        answer = await self._client.usage("time", until - REACH_MS, until, step=str(BUCKET_MS), pool=key)
        self._read_ms[key] = now
        self._books.pool(key, now).past = past_of(answer, until)


def past_of(answer: UsageAnswer, until_ms: int) -> Past | None:
    """Requests a second by quarter of an hour, from the first with a request on; ``None`` if there was none.

    Where sums exist by day only nothing is known of the quarters.
    """
    rows = {int(row.group[0]): row for row in answer.rows if row.group[0].isdecimal()}
    known = {at: row for at, row in rows.items() if answer.days_until <= at < until_ms and row.requests > 0}
    if not known:
        return None
    first = min(known)
    rates = tuple(_rate(known.get(at)) for at in range(first, until_ms, BUCKET_MS))
    newest = max(known)
    return Past(History(first, BUCKET_MS, rates), _usual(row for at, row in known.items() if at > newest - DAY_MS))


def _rate(row: UsageRow | None) -> float:
    return 0.0 if row is None else row.requests * SECOND_MS / BUCKET_MS


def _usual(rows: Iterable[UsageRow]) -> tuple[int, int] | None:
    requests = prompt = output = 0
    for row in rows:
        requests += row.requests
        prompt += row.prompt - row.cached
        output += row.output
    return (max(1, prompt // requests), max(1, output // requests)) if requests else None
