"""From a budget's name to an account: series, window, key. Windows are frozen when they are first used."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from operator import attrgetter

import msgspec
from sqlalchemy import Connection

from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.access import MAX_TEXT, Caller
from fairlead_operator.ledger.escrow import MAX_AMOUNT
from fairlead_operator.ledger.exchange import Resolved
from fairlead_operator.ledger.windows import window_at
from fairlead_router.contract import OTHER, Ask, LedgerBudget, Window

MAX_KEYS = 10_000
MAX_WORKFLOWS = 100_000
type_of_place = tuple[int, str, str]
"""Window, namespace, key: what an account is."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """An ask whose budget and window are known."""

    ask: Ask
    budget: LedgerBudget
    opens: int
    """When the window begins."""
    window: int
    namespace: str
    key: str

    @property
    def max_keys(self) -> int:
        return MAX_WORKFLOWS if self.budget.per == "Workflow" else MAX_KEYS

    @property
    def place(self) -> type_of_place:
        return self.window, self.namespace, self.key

    @property
    def counted(self) -> bool:
        """Whether its key counts against the bound of its namespace."""
        return bool(self.key) and self.key != OTHER


@dataclass(slots=True)
class Resolver:
    """Finds, and with ``create`` opens, the accounts of one message's asks.

    Without ``open_windows`` only those of windows that are in use: the clock may be wrong, and a window opened for
    the wrong time would be a second allowance.
    """

    connection: Connection
    now: int
    create: bool
    open_windows: bool = True
    _windows: dict[tuple[int, str], Window | None] = field(default_factory=dict)

    def resolve(self, asks: tuple[Ask, ...], caller: Caller) -> list[Resolved]:
        """The accounts of all asks, in their order."""
        if not asks:
            return []
        budgets = self._budgets(asks)
        # All ledgers open windows in one order, whatever the order of the asks: none waits for another in a circle.
        wishes = {ask: self._wish(ask, budgets, caller) for ask in sorted(asks, key=attrgetter("budget"))}
        wanted = [wish for wish in wishes.values() if wish]
        known = self._accounts({wish.place for wish in wanted})
        folded = self._open([wish for wish in wanted if wish.place not in known]) if self.create else {}
        others = folded.values() if self.create else {(*wish.place[:2], OTHER) for wish in wanted}
        known |= self._accounts(others) if others else {}
        return [self._resolved(ask, wishes[ask], known, folded) for ask in asks]

    def _resolved(
        self,
        ask: Ask,
        wish: _Wish | None,
        known: dict[type_of_place, int],
        folded: dict[type_of_place, type_of_place],
    ) -> Resolved:
        if wish is None:
            return Resolved(ask)
        place = folded.get(wish.place, wish.place)
        if place not in known:
            place = (*place[:2], OTHER)
        return Resolved(ask, known.get(place), ask.key if place[2] == OTHER != ask.key else None)

    def _budgets(self, asks: tuple[Ask, ...]) -> dict[str, tuple[int, LedgerBudget]]:
        names = {tuple(ask.budget.split("/", 1)) for ask in asks if "/" in ask.budget}
        rows = sql.read_rows(self.connection, sql.BUDGETS, names)
        return {f"{row.namespace}/{row.name}": (row.series_id, decode_budget(row.spec)) for row in rows}

    def _wish(self, ask: Ask, budgets: dict[str, tuple[int, LedgerBudget]], caller: Caller) -> _Wish | None:
        series, budget = budgets.get(ask.budget, (0, None))
        where = allowance(budget, ask.namespace, ask.key) if budget else None
        if budget is None or where is None or not caller.covers(budget, where[0]):
            return None
        window = self._window(series, budget, ask.at)
        if window is None:
            return None
        return _Wish(ask, budget, window.start, window.id, *where)

    def _window(self, series: int, budget: LedgerBudget, at: str) -> Window | None:
        if (series, at) not in self._windows:
            now = self.now
            if at == "Next":
                current = self._window(series, budget, "Now")
                now = current.end if current else now
            self._windows[series, at] = self._window_at(series, budget, now)
        return self._windows[series, at]

    def _window_at(self, series: int, budget: LedgerBudget, at: int) -> Window | None:
        found = stored_window(self.connection, series, at)
        if found is None and self.create and self.open_windows:
            start, end = calendar_window(self.connection, series, budget, at)
            sql.write(self.connection, sql.ADD_WINDOW, [{"series_id": series, "start_ms": start, "end_ms": end}])
            found = stored_window(self.connection, series, at)
        return found

    def _accounts(self, places: Iterable[type_of_place]) -> dict[type_of_place, int]:
        rows = sql.read_rows(self.connection, sql.PLACES, places)
        return {(row.window_id, row.namespace, row.key): row.id for row in rows}

    def _open(self, wishes: list[_Wish]) -> dict[type_of_place, type_of_place]:
        """Open the accounts that do not exist; where a namespace has too many keys, the one of the rest."""
        wanted = {wish.place: wish for wish in wishes}
        counts = self._key_counts({wish.place[:2] for wish in wishes if wish.counted})
        before = dict(counts)
        folded: dict[type_of_place, type_of_place] = {}
        for place, wish in sorted(wanted.items()):
            folded[place] = _fold(wish, counts)
        self._add_accounts({folded[place]: wish for place, wish in wanted.items()})
        changed = [group for group in counts if counts[group] != before[group]]
        rows = [
            {"window_id": window, "namespace": name, "keys": counts[window, name]} for window, name in sorted(changed)
        ]
        sql.write(self.connection, sql.PUT_KEYS, rows)
        return folded

    def _add_accounts(self, places: dict[type_of_place, _Wish]) -> None:
        missing = sorted(places.keys() - self._accounts(places).keys())
        ids = [account_id(places[place].budget, places[place].opens, *place[1:]) for place in missing]
        rows = (
            {"id": id_, "window_id": window, "namespace": namespace, "key": key}
            for id_, (window, namespace, key) in zip(ids, missing, strict=True)
        )
        sql.write(self.connection, sql.ADD_ACCOUNT, rows)

    def _key_counts(self, groups: set[tuple[int, str]]) -> dict[tuple[int, str], int]:
        """How many keys there are, locked: a count that is not there yet is added first, for others to wait for."""
        added = ({"window_id": window, "namespace": name, "keys": 0} for window, name in sorted(groups))
        sql.write(self.connection, sql.ADD_KEYS, added)
        rows = sql.read_rows(self.connection, sql.KEYS, groups)
        return {(row.window_id, row.namespace): row.known for row in rows}


def _fold(wish: _Wish, counts: dict[tuple[int, str], int]) -> type_of_place:
    """The place a new key gets, counted against its namespace's bound."""
    if not wish.counted:
        return wish.place
    group = wish.window, wish.namespace
    if counts[group] >= wish.max_keys or len(wish.key) > MAX_TEXT:
        return wish.window, wish.namespace, OTHER
    counts[group] += 1
    return wish.place


def account_id(budget: LedgerBudget, opens: int, namespace: str, key: str) -> int:
    """The id of an account: by what it counts, so that a restored ledger does not give it to another one."""
    series = budget.namespace, budget.name, budget.unit, budget.per, budget.period, budget.time_zone
    digest = sha256(msgspec.json.encode((*series, opens, namespace, key))).digest()
    return int.from_bytes(digest[:8], "big") % (MAX_AMOUNT - 1) + 1


def allowance(budget: LedgerBudget, namespace: str, key: str) -> tuple[str, str] | None:
    """Namespace and key of the allowance that a request uses; None where the budget does not match it."""
    if budget.per == "Total":
        return "", ""
    if not namespace:
        return None
    if budget.per == "Namespace":
        return namespace, ""
    return (namespace, key) if key else None


@lru_cache(maxsize=4096)
def decode_budget(spec: str) -> LedgerBudget:
    """A stored budget; the same few texts are read over and over."""
    return msgspec.json.decode(spec, type=LedgerBudget)


def stored_window(connection: Connection, series: int, at: int) -> Window | None:
    """The window in use at an instant."""
    rows = sql.read(connection, sql.WINDOW, series=series, at=at)
    return Window(id=rows[0].id, start=rows[0].start_ms, end=rows[0].end_ms) if rows else None


def calendar_window(connection: Connection, series: int, budget: LedgerBudget, at: int) -> tuple[int, int]:
    """The calendar's window at an instant, cut to what windows in use leave: new tzdata must not make them overlap."""
    span = window_at(at, budget.period, budget.time_zone)
    row = sql.read(connection, sql.NEIGHBOURS, series=series, at=at)[0]
    return max(span.start, row.ended or span.start), min(span.end, row.begins or span.end)
