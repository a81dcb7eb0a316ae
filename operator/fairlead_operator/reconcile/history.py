"""The leader's memory of what budgets spent hour by hour: read from the ledger once whole, then only what is new."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fairlead_operator.clock import Clock
from fairlead_operator.decide.forecast import HOUR_MS
from fairlead_operator.decide.outlook import Scope, outlook, points_of, scope_of
from fairlead_operator.kube.cluster import Cluster
from fairlead_operator.kube.queue import Key, WorkQueue
from fairlead_operator.kube.resources import COST_BUDGETS
from fairlead_operator.ledger_client import LedgerClient
from fairlead_operator.reconcile.books import Books
from fairlead_router.contract import LedgerBudget

EVERY_MS = 60_000
PER_WINDOW = 12
"""A window is forecast at least so often, that of a minute every 5 s."""
PER_ROUND = 8
"""Budgets whose history is read in one round, at once: more wait for the next round, whoever waited longest first."""
AGAIN_MS = 2 * HOUR_MS
"""Usage that came late: this much of what is known is read again."""


@dataclass(slots=True)
class _Known:
    """One budget's history, of which scope, up to which hour, and when it was last read."""

    scope: Scope
    window_end: int
    read_ms: int = 0
    points: dict[int, int] = field(default_factory=dict)


class Histories:
    """Keeps the outlook of every budget whose usage is kept."""

    def __init__(self, client: LedgerClient, cluster: Cluster, books: Books, queue: WorkQueue, clock: Clock) -> None:
        self._client = client
        self._cluster = cluster
        self._books = books
        self._queue = queue
        self._clock = clock
        self._known: dict[str, _Known] = {}

    async def round(self, budgets: Sequence[LedgerBudget]) -> None:
        """Bring those that are due up to date. Raises LedgerError for the first of them that could not be read."""
        present = {f"{one.namespace}/{one.name}": one for one in budgets}
        scopes = {key: scope for key, one in present.items() if (scope := self._scope(key, one)) is not None}
        for key in (self._known.keys() | self._books.outlooks.keys()) - scopes.keys():
            self._known.pop(key, None)
            self._books.outlooks.pop(key, None)
        due = [(known.read_ms, key) for key, scope in scopes.items() if (known := self._due(key, scope)) is not None]
        chosen = [key for _, key in sorted(due)[:PER_ROUND]]
        results = await asyncio.gather(*(self._read(key, present[key]) for key in chosen), return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                raise error

    def _due(self, key: str, scope: Scope) -> _Known | None:
        """What is known of a budget, if it is time to read on: after a while, in a new window, of another account."""
        window, known = self._books.spend[key].window, self._known.get(key)
        end, while_ms = window.end, min(EVERY_MS, (window.end - window.start) // PER_WINDOW)
        if known is None or known.scope != scope:
            known = self._known[key] = _Known(scope, end)
        if known.window_end != end:
            known.window_end, known.read_ms = end, 0
        return known if self._clock.now_ms() - known.read_ms >= while_ms else None

    def _scope(self, key: str, budget: LedgerBudget) -> Scope | None:
        snapshot, spend = self._cluster.snapshot(), self._books.spend.get(key)
        if spend is None:
            return None
        written = snapshot.budgets.get(key)
        models = written.spec.applies_to.models if written is not None else ()
        return scope_of(budget, spend, models, snapshot.namespaces)

    async def _read(self, key: str, budget: LedgerBudget) -> None:
        """Read on and forecast; without an answer the last forecast stays."""
        known, now = self._known[key], self._clock.now_ms()
        known.read_ms = now
        known.points = await self._points(known.scope, known.points, budget, now)
        spend = self._books.spend.get(key)
        if spend is not None:
            idle = spend.idle if budget.idle_namespaces else 0
            self._books.outlooks[key] = outlook(known.points, spend, idle, now)
            self._queue.add(Key(COST_BUDGETS.kind, spend.namespace, spend.name))

    async def _points(self, scope: Scope, before: Mapping[int, int], budget: LedgerBudget, now: int) -> dict[int, int]:
        hour = now - now % HOUR_MS
        oldest = hour - scope.hours * HOUR_MS
        since = max(oldest, max(before) - AGAIN_MS) if before else oldest
        answer = await self._client.usage(scope.by, since, hour + HOUR_MS, step=str(HOUR_MS), **dict(scope.filters))
        kept = {hour: amount for hour, amount in before.items() if oldest <= hour < since}
        return {**kept, **points_of(answer.rows, scope, budget.unit)}
