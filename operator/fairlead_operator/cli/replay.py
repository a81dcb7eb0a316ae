"""PURE: what a budget would have done with the usage of a time, told by the ledger's own decisions.

Assumed: the requests of a quarter hour came evenly and cost alike; one that was refused or had to wait did not come
again, and none changed because of an action. So requests refused are told at their most, and amounts held back too.
Nothing is known of priorities: Batch requests are counted like the others.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from msgspec import structs

from fairlead_operator.ledger import escrow
from fairlead_operator.ledger.windows import Span, window_at
from fairlead_router.contract import BUCKET_MS, LedgerBudget

OTHERS = 1
"""The class of requests that no headroom is kept from."""
LIMITING = ("Pace", "Reject")
"""The actions that hold requests back."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one key (namespace, caller or feature) asked for in a quarter hour, in the budget's unit."""

    key: str
    at: int
    amount: int
    requests: int


@dataclass(frozen=True, slots=True)
class Begun:
    """An action that began, at a share of the limit and a time (ms). Reject is at 100."""

    action: str
    percent: int
    at: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """One key in one window. ``refused`` of the ``since`` requests since Pace or Reject began, at most."""

    key: str
    window: Span
    asked: int
    spent: int
    requests: int
    refused: int
    since: int
    begun: tuple[Begun, ...]
    pace_per_hour: int


def replay(budget: LedgerBudget, demands: Iterable[Demand]) -> list[Outcome]:
    """What the budget would have done, by window and key, fullest first in each window."""
    windows: dict[int, Span] = {}
    parts: defaultdict[tuple[int, str], list[Demand]] = defaultdict(list)
    for demand in sorted(demands, key=lambda one: one.at):
        window = window_at(demand.at, budget.period, budget.time_zone)
        windows[window.start] = window
        parts[window.start, demand.key].append(demand)
    outcomes = [_Replay(budget, windows[start], key).run(part) for (start, key), part in parts.items()]
    return sorted(outcomes, key=lambda one: (one.window.start, -one.spent, one.key))


@dataclass(slots=True)
class _Replay:
    budget: LedgerBudget
    window: Span
    key: str
    books: escrow.Account = field(default_factory=escrow.Account)
    begun: list[Begun] = field(default_factory=list)
    refused: int = 0
    since: int = 0
    pace_per_hour: int = 0

    def run(self, demands: Sequence[Demand]) -> Outcome:
        for demand in demands:
            self._quarter(demand)
        return Outcome(
            key=self.key,
            window=self.window,
            asked=sum(demand.amount for demand in demands),
            spent=self.books.charged,
            requests=sum(demand.requests for demand in demands),
            refused=self.refused,
            since=self.since,
            begun=tuple(self.begun),
            pace_per_hour=self.pace_per_hour,
        )

    def _quarter(self, demand: Demand) -> None:
        terms = escrow.terms_of(self.budget, demand.at, live=True, start=self.window.start, end=self.window.end)
        left = demand.amount
        while left > 0 and (piece := min(left, self._room(terms, demand.at))) > 0:
            left -= piece
            total = self.books.charged + piece
            self._act(structs.replace(self.books, held=total, charged=total), terms, _moment(demand, left))
        if left > 0:
            self._reject(terms, _moment(demand, left))
            self.refused += -(-demand.requests * left // demand.amount)
        self.since += self._limited(demand)

    def _limited(self, demand: Demand) -> int:
        """How many of the requests came after Pace or Reject began."""
        began = [begun.at for begun in self.begun if begun.action in LIMITING]
        late = demand.at + BUCKET_MS - max(demand.at, min(began, default=demand.at + BUCKET_MS))
        return -(-demand.requests * max(0, late) // BUCKET_MS)

    def _room(self, terms: escrow.Terms, at: int) -> int:
        """What may be spent until the next action begins, or the quarter hour ends."""
        room = escrow.cap(terms, self.books, OTHERS, at + BUCKET_MS - 1) - self.books.held
        shares = (-(-action.at_percent * terms.limit // 100) for action in terms.actions)
        return min([room, *(share - self.books.held for share in shares if share > self.books.held)])

    def _act(self, books: escrow.Account, terms: escrow.Terms, at: int) -> None:
        before, self.books = self.books.acted, escrow.act(books, terms, at)
        for action in terms.actions:
            if before < action.at_percent <= self.books.acted:
                self._begin(action.action, action.at_percent, at)
        self.pace_per_hour = self.pace_per_hour or escrow.pace_per_hour(terms, self.books)
        self._reject(terms, at)

    def _reject(self, terms: escrow.Terms, at: int) -> None:
        if self.books.held >= terms.limit:
            self._begin("Reject", 100, at)

    def _begin(self, action: str, percent: int, at: int) -> None:
        if not any(begun.action == action and begun.percent == percent for begun in self.begun):
            self.begun.append(Begun(action, percent, at))


def _moment(demand: Demand, left: int) -> int:
    """When all but ``left`` of a quarter hour's demand had come."""
    return demand.at + BUCKET_MS * (demand.amount - left) // demand.amount
