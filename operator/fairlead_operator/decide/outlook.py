"""PURE: how fast a budget is spent and what its window ends with: which usage to ask for, and what follows from it."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from fairlead_operator.decide.forecast import HISTORY, HOUR_MS, forecast
from fairlead_router.contract import LedgerBudget, SpendAnswer, UsageRow

MAX_ROWS = 9_000
"""Below what one answer of the ledger holds: with many namespaces and models the history is shorter."""
MIN_HOURS = 24
MOST = 10**18 - 1
"""What a status can hold; a linear forecast from a window's first second may be absurd."""


_NAMED: Mapping[str, str] = {"Caller": "caller", "Feature": "feature"}
"""The dimension of usage that a budget's key is a value of."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose usage a budget's fullest account is: equality filters for the ledger, and what is picked of its answer.

    ``namespaces`` and ``models`` are what rows are picked by, ``None`` = all. ``hours`` is how far back one answer can
    reach.
    """

    filters: tuple[tuple[str, str], ...] = ()
    namespaces: frozenset[str] | None = None
    models: frozenset[str] | None = None
    hours: int = HISTORY

    @property
    def by(self) -> str:
        """What the ledger groups by."""
        parts = ("namespace", self.namespaces), ("model", self.models)
        return ",".join(["time", *(name for name, picked in parts if picked is not None)])


@dataclass(frozen=True, slots=True)
class Outlook:
    """Burn and forecast of one account, in the budget's unit; ``window_end`` says of which window."""

    burn_per_hour: int
    at_end: int
    low: int
    high: int
    window_end: int
    made_ms: int


def scope_of(
    budget: LedgerBudget, spend: SpendAnswer, models: Collection[str], everywhere: Collection[str]
) -> Scope | None:
    """Whose usage the fullest account counts; ``None`` where no usage is kept by it (Workflow) or there is no account.

    ``models``: those that the budget covers, empty = all. ``everywhere``: all namespaces of the cluster.
    """
    account = spend.keys[0] if spend.keys else None
    places = frozenset(budget.namespaces or (budget.namespace,))
    several = budget.per == "Namespace" and len(places) > 1
    if budget.per == "Workflow" or (account is None and (several or budget.per in _NAMED)):
        return None
    filters: list[tuple[str, str]] = []
    if account is not None and account.namespace:
        places = frozenset({account.namespace})
    if account is not None and budget.per in _NAMED:
        filters.append((_NAMED[budget.per], account.key))
    picked_places = _picked("namespace", places, filters, all_of=places >= frozenset(everywhere))
    picked_models = _picked("model", frozenset(models), filters, all_of=not models)
    groups = (len(everywhere) if picked_places else 1) * (len(models) + 1 if picked_models else 1)
    hours = min(HISTORY, MAX_ROWS // groups)
    return Scope(tuple(filters), picked_places, picked_models, hours) if hours >= MIN_HOURS else None


def _picked(
    name: str, values: frozenset[str], filters: list[tuple[str, str]], *, all_of: bool
) -> frozenset[str] | None:
    """One value is the ledger's filter, several are picked here, all need neither."""
    if all_of:
        return None
    if len(values) == 1:
        filters.extend((name, value) for value in values)
        return None
    return values


def points_of(rows: Iterable[UsageRow], scope: Scope, unit: str) -> dict[int, int]:
    """Amounts by the hour that they were settled in; rows of other namespaces and models are left out."""
    points: dict[int, int] = {}
    for row in rows:
        values = dict(zip(scope.by.split(","), row.group, strict=True))
        if values["time"].isdecimal() and covers(scope, values):
            hour = int(values["time"])
            points[hour] = points.get(hour, 0) + _amount(row, unit)
    return points


def covers(scope: Scope, values: Mapping[str, str]) -> bool:
    """Whether a row's values are of the scope."""
    places, models = scope.namespaces, scope.models
    return (places is None or values["namespace"] in places) and (models is None or values["model"] in models)


def _amount(row: UsageRow, unit: str) -> int:
    return {"USD": row.nano_usd, "Tokens": row.prompt + row.output, "Requests": row.requests}[unit]


def burn_per_hour(points: Mapping[int, int], now: int) -> int:
    """What the last 60 minutes spent: this hour so far, and the rest of them at the last hour's mean."""
    hour = now - now % HOUR_MS
    return points.get(hour, 0) + points.get(hour - HOUR_MS, 0) * (hour + HOUR_MS - now) // HOUR_MS


def outlook(points: Mapping[int, int], spend: SpendAnswer, idle: int, now: int) -> Outlook:
    """The forecast for the fullest account's window; counted idle cost goes on as it went since the window began."""
    account = spend.keys[0] if spend.keys else spend
    spent, start, end = account.charged + account.unreconciled, spend.window.start, spend.window.end
    since = max(start, spend.counted_from)
    ahead = forecast(tuple(points.items()), spent=spent, now=now, start=since, end=end)
    at_idle = idle + idle * max(0, end - now) // max(1, now - start)
    return Outlook(
        burn_per_hour=burn_per_hour(points, now),
        at_end=min(MOST, ahead.at_end + at_idle),
        low=min(MOST, ahead.low + at_idle),
        high=min(MOST, ahead.high + at_idle),
        window_end=end,
        made_ms=now,
    )
