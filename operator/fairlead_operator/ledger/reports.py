"""What people and the operator read: spend of budgets, usage and costs."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Row, Select, case, func, select

from fairlead_operator.ledger import escrow
from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.catalog import budgets_version, costs_until
from fairlead_operator.ledger.places import calendar_window, decode_budget, stored_window
from fairlead_operator.ledger.schema import (
    account,
    cost_hist,
    dim,
    holding,
    pool_cost,
    rate_card,
    series,
    session,
    usage,
)
from fairlead_operator.ledger.windows import window_at
from fairlead_router.contract import (
    BUCKET_MS,
    OTHER,
    CardRow,
    CostRow,
    KeySpend,
    LedgerBudget,
    PutCards,
    PutCosts,
    SessionSpend,
    SpendAnswer,
    SpendList,
    UsageAnswer,
    UsageRow,
    Window,
    bin_upper_nano,
)

DIMENSIONS = ("namespace", "caller", "feature", "model", "pool", "variant", "route", "cache")
MAX_USAGE_ROWS = 10_000
TOP_KEYS = 10
TOP_SESSIONS = 100
LIMITED_MS = 5 * 60_000
"""An account counts as limited this long after a request was last refused."""

_out = holding.c.granted - holding.c.returned - holding.c.charged + holding.c.unbacked
_used = account.c.charged + account.c.unreconciled


@dataclass(frozen=True, slots=True)
class _Budget:
    """A budget's window, as stored or, before anything was asked for, as the calendar has it."""

    budget: LedgerBudget
    series: int
    window: Window
    now: int

    @property
    def limit(self) -> int:
        return self.budget.limit + escrow.increase_at(self.budget, self.now)


def spend_list(connection: Connection, now: int, namespace: str | None) -> SpendList:
    """The spend of all budgets, or of those of one namespace."""
    rows = [row for row in sql.read(connection, sql.ALL_BUDGETS) if namespace in {None, row.namespace}]
    answers = tuple(_spend(connection, _located(connection, row, now, now)) for row in rows)
    return SpendList(budgets=answers, budgets_version=budgets_version(connection), now=now)


def spend(connection: Connection, now: int, namespace: str, name: str, at: int | None = None) -> SpendAnswer | None:
    """The spend of one budget in the window of an instant; None if there is no such budget."""
    rows = sql.read(connection, sql.BUDGETS, rows=sql.as_list([(namespace, name)]))
    return _spend(connection, _located(connection, rows[0], now, now if at is None else at)) if rows else None


def _located(connection: Connection, row: Row[Any], now: int, at: int) -> _Budget:
    budget = decode_budget(row.spec)
    window = stored_window(connection, row.series_id, at)
    if window is None:
        start, end = calendar_window(connection, row.series_id, budget, at)
        window = Window(id=0, start=start, end=end)
    return _Budget(budget, row.series_id, window, now)


def _spend(connection: Connection, located: _Budget) -> SpendAnswer:
    budget, window = located.budget, located.window
    created = connection.execute(select(series.c.created_ms).where(series.c.id == located.series)).scalar_one()
    since = max(window.start, created)
    top = _fullest(connection, window.id)
    keys = _keys(connection, top, since)
    first = keys[0] if keys else KeySpend(**dict.fromkeys(_ZERO, 0), namespace="", key="", counted_from=since)
    total, limited = _key_counts(connection, located)
    used = first.charged + first.unreconciled
    refused = bool(top) and _recently(top[0].refused_ms, located.now)
    return SpendAnswer(
        namespace=budget.namespace,
        name=budget.name,
        unit=budget.unit,
        per=budget.per,
        limit=budget.limit,
        extra=escrow.increase_at(budget, located.now),
        **{name: getattr(first, name) for name in _ZERO},
        remaining=located.limit - used - first.reserved,
        window=window,
        window_label=window_at(window.start, budget.period, budget.time_zone).label,
        counted_from=since,
        action="Reject" if refused else escrow.action_at(budget.actions, used + first.reserved, located.limit),
        keys=keys,
        keys_total=total,
        keys_limited=limited,
        sessions=_sessions(connection, window.id),
    )


_ZERO = ("charged", "leased", "reserved", "unreconciled", "unbacked")


def _recently(refused_ms: int, now: int) -> bool:
    return refused_ms > now - LIMITED_MS and refused_ms > 0


def _fullest(connection: Connection, window: int) -> Sequence[Row[Any]]:
    order = (_used.desc(), account.c.held.desc(), account.c.namespace, account.c.key)
    return connection.execute(
        select(account).where(account.c.window_id == window).order_by(*order).limit(TOP_KEYS)
    ).all()


def _keys(connection: Connection, top: Sequence[Row[Any]], since: int) -> tuple[KeySpend, ...]:
    leases = connection.execute(
        select(holding.c.account_id, func.sum(_out).label("leased"), func.sum(holding.c.reserved).label("reserved"))
        .join(session, session.c.id == holding.c.session_id)
        .where(holding.c.account_id.in_([row.id for row in top]), session.c.state == "Open")
        .group_by(holding.c.account_id)
    ).all()
    held = {row.account_id: row for row in leases}
    return tuple(
        KeySpend(
            namespace=row.namespace,
            key=row.key,
            charged=row.charged,
            leased=held[row.id].leased if row.id in held else 0,
            reserved=held[row.id].reserved if row.id in held else 0,
            unreconciled=row.unreconciled,
            unbacked=row.unbacked,
            counted_from=since,
        )
        for row in top
    )


def _key_counts(connection: Connection, located: _Budget) -> tuple[int, int]:
    refused = (account.c.refused_ms > located.now - LIMITED_MS) & (account.c.refused_ms > 0)
    limited = case(((_used >= located.limit) | refused, 1), else_=0)
    counts = select(func.count(account.c.id), func.coalesce(func.sum(limited), 0))
    total, at_limit = connection.execute(counts.where(account.c.window_id == located.window.id)).one()
    return total, at_limit


def _sessions(connection: Connection, window: int) -> tuple[SessionSpend, ...]:
    out = func.sum(_out)
    rows = connection.execute(
        select(session.c.pod, session.c.state, out.label("out"))
        .join(holding, holding.c.session_id == session.c.id)
        .join(account, account.c.id == holding.c.account_id)
        .where(account.c.window_id == window)
        .group_by(session.c.id)
        .having(out > 0)
        .order_by(out.desc(), session.c.pod)
        .limit(TOP_SESSIONS)
    )
    return tuple(SessionSpend(pod=row.pod, out=row.out, state=row.state) for row in rows)


# --- usage, costs, cards


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """What is asked of usage: how to group, which time, whose (None: everybody's)."""

    by: tuple[str, ...]
    since: int
    until: int
    namespace: str | None = None


def aligned(since: int, until: int) -> tuple[int, int]:
    """The quarter hours that a time touches."""
    return since // BUCKET_MS * BUCKET_MS, -(-until // BUCKET_MS) * BUCKET_MS


def usage_report(connection: Connection, query: UsageQuery) -> UsageAnswer:
    """Sums and percentiles by group, dearest first, and the bills of the pools for the same time."""
    groups = [dim.c[name] for name in query.by]
    histograms = _histograms(connection, query, groups)
    rows = [
        UsageRow(group=tuple(row[: len(groups)]), **_percentiles(histograms[tuple(row[: len(groups)])]), **_sums(row))
        for row in connection.execute(_usage_sums(query, groups))
    ]
    rows.sort(key=lambda row: (-row.nano_usd, row.group))
    return UsageAnswer(
        since=query.since,
        until=query.until,
        by=query.by,
        rows=_bounded(rows, histograms, len(groups)),
        costs=_bills(connection, query),
    )


def _usage_sums(query: UsageQuery, groups: list[Column[Any]]) -> Select[Any]:
    sums = [func.sum(usage.c[name]).label(name) for name in sql.SUMS]
    statement = select(*groups, *sums).select_from(dim.join(usage, usage.c.dim_id == dim.c.id))
    return _scoped(statement, usage.c.bucket, query).group_by(*groups)


def _histograms(
    connection: Connection, query: UsageQuery, groups: list[Column[Any]]
) -> defaultdict[tuple[str, ...], Counter[int]]:
    bins = select(*groups, cost_hist.c.bin, func.sum(cost_hist.c.n).label("n"))
    bins = _scoped(bins.select_from(dim.join(cost_hist, cost_hist.c.dim_id == dim.c.id)), cost_hist.c.bucket, query)
    found: defaultdict[tuple[str, ...], Counter[int]] = defaultdict(Counter)
    for row in connection.execute(bins.group_by(*groups, cost_hist.c.bin)):
        found[tuple(row[: len(groups)])][row.bin] += row.n
    return found


def _scoped(statement: Select[Any], bucket: ColumnElement[int], query: UsageQuery) -> Select[Any]:
    statement = statement.where(bucket >= query.since, bucket < query.until)
    return statement if query.namespace is None else statement.where(dim.c.namespace == query.namespace)


def _sums(row: Any) -> dict[str, int]:
    return {name: getattr(row, name) or 0 for name in sql.SUMS}


def _percentiles(bins: Counter[int]) -> dict[str, int]:
    return {f"cost_p{percent}_nano": percentile(bins, percent) for percent in (50, 95, 99)}


def percentile(bins: Counter[int], percent: int) -> int:
    """The upper edge of the bin in which that share of requests is reached; 0 without requests."""
    rank, seen = -(-bins.total() * percent // 100), 0
    for index in sorted(bins):
        seen += bins[index]
        if seen >= rank:
            return bin_upper_nano(index)
    return 0


def _bounded(rows: list[UsageRow], histograms: dict[tuple[str, ...], Counter[int]], width: int) -> tuple[UsageRow, ...]:
    """At most so many rows; the cheapest of more are one row, so that totals stay what they are."""
    if len(rows) <= MAX_USAGE_ROWS:
        return tuple(rows)
    kept, rest = rows[: MAX_USAGE_ROWS - 1], rows[MAX_USAGE_ROWS - 1 :]
    bins = sum((histograms[row.group] for row in rest), Counter[int]())
    sums = {name: sum(getattr(row, name) for row in rest) for name in sql.SUMS}
    return (*kept, UsageRow(group=(OTHER,) * width, **_percentiles(bins), **sums))


def _bills(connection: Connection, query: UsageQuery) -> tuple[CostRow, ...]:
    sums = [func.sum(pool_cost.c[name]).label(name) for name in ("replica_ms", "nano_usd")]
    statement = (
        select(pool_cost.c.pool, pool_cost.c.variant, *sums)
        .where(pool_cost.c.bucket >= query.since, pool_cost.c.bucket < query.until)
        .group_by(pool_cost.c.pool, pool_cost.c.variant)
        .order_by(pool_cost.c.pool, pool_cost.c.variant)
    )
    if query.namespace is not None:
        statement = statement.where(pool_cost.c.pool.startswith(f"{query.namespace}/", autoescape=True))
    return _cost_rows(connection.execute(statement), bucket=query.since)


def _cost_rows(rows: Iterable[Any], bucket: int | None = None) -> tuple[CostRow, ...]:
    return tuple(
        CostRow(
            pool=row.pool,
            variant=row.variant,
            bucket=row.bucket if bucket is None else bucket,
            replica_ms=row.replica_ms,
            nano_usd=row.nano_usd,
        )
        for row in rows
    )


def costs(connection: Connection, since: int, until: int) -> PutCosts:
    """The stored totals of a time, and up to when the operator has counted."""
    where = (pool_cost.c.bucket >= since) & (pool_cost.c.bucket < until)
    rows = connection.execute(select(pool_cost).where(where).order_by(*pool_cost.primary_key.columns))
    return PutCosts(costs=_cost_rows(rows), until=costs_until(connection))


def cards(connection: Connection, pool: str | None) -> PutCards:
    """The newest card of each pool, or the newest thousand of one pool."""
    newest = select(rate_card.c.pool, func.max(rate_card.c.version)).group_by(rate_card.c.pool)
    statement = select(rate_card).order_by(rate_card.c.pool, rate_card.c.version.desc()).limit(MAX_USAGE_ROWS)
    if pool is None:
        statement = statement.join(
            named := newest.subquery(), (named.c[0] == rate_card.c.pool) & (named.c[1] == rate_card.c.version)
        )
    else:
        statement = statement.where(rate_card.c.pool == pool).limit(1000)
    return PutCards(cards=tuple(CardRow(**row) for row in connection.execute(statement).mappings()))
