"""What people and the operator read: spend of budgets, usage and costs."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs
from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Row,
    Select,
    Table,
    case,
    func,
    literal_column,
    select,
)

from fairlead_operator.ledger import escrow, rollup
from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.catalog import budgets_version, costs_until
from fairlead_operator.ledger.idle import idle_so_far
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

TIME = "time"
FILTERS = ("caller", "feature", "model", "pool")
"""Dimensions by whose value usage can be asked for, as by the namespace."""
DIMENSIONS = ("namespace", *FILTERS, "variant", "route", "cache", "attempt", TIME)
MAX_USAGE_ROWS = 10_000
MAX_GROUPS = 50_000
MAX_STEP_DIGITS = 12
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

    def terms(self, idle: int) -> escrow.Terms:
        start, end = self.window.start, self.window.end
        return escrow.terms_of(self.budget, self.now, live=True, start=start, end=end, idle=idle)


def spend_list(connection: Connection, now: int, namespace: str | None) -> SpendList:
    """The spend of all budgets, or of those of one namespace."""
    rows = [row for row in sql.read(connection, sql.ALL_BUDGETS) if namespace in {None, row.namespace}]
    answers = tuple(_spend(connection, _located(connection, row, now, now)) for row in rows)
    return SpendList(budgets=answers, budgets_version=budgets_version(connection), now=now)


def spend(connection: Connection, now: int, namespace: str, name: str, at: int | None = None) -> SpendAnswer | None:
    """The spend of one budget in the window of an instant; None if there is no such budget."""
    rows = sql.read_rows(connection, sql.BUDGETS, [(namespace, name)])
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
    terms = located.terms(idle := idle_so_far(connection, budget, first.namespace, window.id))
    books = escrow.act(_books(top), terms, located.now)
    refused = _recently(books.refused_ms, located.now)
    return SpendAnswer(
        namespace=budget.namespace,
        name=budget.name,
        unit=budget.unit,
        per=budget.per,
        limit=budget.limit,
        extra=escrow.increase_at(budget, located.now),
        **{name: getattr(first, name) for name in _ZERO},
        remaining=located.limit - books.used - first.reserved,
        window=window,
        window_label=window_at(window.start, budget.period, budget.time_zone).label,
        counted_from=since,
        action="Reject" if refused else escrow.standing(terms, books),
        active=escrow.active(terms, books.acted),
        pace_per_hour=escrow.pace_per_hour(terms, books),
        idle=idle,
        keys=keys,
        keys_total=total,
        keys_limited=limited,
        sessions=_sessions(connection, window.id),
    )


_ZERO = ("charged", "leased", "reserved", "unreconciled", "unbacked")
_BOOKS = escrow.Account.__struct_fields__


def _books(top: Sequence[Row[Any]]) -> escrow.Account:
    return escrow.Account(*(getattr(top[0], name) for name in _BOOKS)) if top else escrow.Account()


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


class QueryError(ValueError):
    """Usage was asked for in a way that has no answer; the text says which ways have one."""


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """What is asked of usage: how to group, which time, whose, and when.

    ``namespace``: that callers' namespace, and the bills of its pools (None: all). ``only``: equality by dimension.
    ``step``: the length of the groups of ``time``, in ms.
    """

    by: tuple[str, ...]
    since: int
    until: int
    namespace: str | None = None
    only: tuple[tuple[str, str], ...] = ()
    step: int = BUCKET_MS
    now: int = 0


def aligned(since: int, until: int, length: int = BUCKET_MS) -> tuple[int, int]:
    """The quarter hours, or longer steps, that a time touches."""
    return since // length * length, -(-until // length) * length


def usage_query(parameters: Mapping[str, str], since: int, until: int, *, own: str | None, now: int) -> UsageQuery:
    """The query of ``GET /v1/usage``; ``own`` is the namespace that a team is held to. Raises QueryError."""
    by = tuple(part for part in parameters.get("by", "namespace").split(",") if part)
    unknown = sorted(set(by) - set(DIMENSIONS))
    if unknown or len(set(by)) < len(by):
        raise QueryError(f"by={','.join(unknown or by)} is not known; use each once: {', '.join(DIMENSIONS)}")
    namespace = parameters.get("namespace") if own is None else own
    only = tuple((name, parameters[name]) for name in FILTERS if name in parameters)
    step = _step(parameters.get("step", ""), timed=TIME in by)
    if TIME in by and (until - since) // step > MAX_USAGE_ROWS:
        raise QueryError(f"step={step} makes more than {MAX_USAGE_ROWS} steps of that time; use a longer one")
    return UsageQuery(by, since, until, namespace, only, step, now)


def _step(text: str, *, timed: bool) -> int:
    if not text:
        return BUCKET_MS
    step = int(text) if text.isascii() and text.isdecimal() and len(text) <= MAX_STEP_DIGITS else 0
    if not timed or step <= 0 or step % BUCKET_MS:
        raise QueryError(f"step={text} is a length of time in ms, a multiple of {BUCKET_MS}, and goes with by={TIME}")
    return step


def usage_report(connection: Connection, query: UsageQuery) -> UsageAnswer:
    """Sums and percentiles by group, dearest first, and the bills of the pools for the same time. Raises QueryError."""
    days = rollup.days_until(connection)
    query = _on_days(query, days)
    groups = _groups(query, usage)
    rows = connection.execute(_usage_sums(query, groups).limit(MAX_GROUPS + 1)).all()
    if len(rows) > MAX_GROUPS:
        raise QueryError(f"there are more than {MAX_GROUPS} groups: ask for a shorter time or fewer dimensions")
    histograms = _histograms(connection, query)
    found = [
        UsageRow(group=group, **_percentiles(histograms[group]), **_sums(row))
        for group, row in ((_group(row, len(groups)), row) for row in rows)
    ]
    found.sort(key=lambda row: (-row.nano_usd, row.group))
    bills = _bills(connection, query)
    return UsageAnswer(
        since=query.since,
        until=query.until,
        by=query.by,
        rows=_bounded(found, histograms, query.by),
        costs=bills,
        settled=_settled(connection, query.now, billed=bool(bills)),
        days_until=days,
    )


def _on_days(query: UsageQuery, days: int) -> UsageQuery:
    """The query, widened to whole days where sums exist by day only."""
    since, until = aligned(query.since, query.until, rollup.DAY_MS)
    return replace(
        query,
        since=since if query.since < days else query.since,
        until=until if query.until < days else query.until,
    )


def _settled(connection: Connection, now: int, *, billed: bool) -> int:
    """Up to when everything was told: by every open session, and by the operator if pools have bills."""
    heard = connection.execute(select(func.min(session.c.seen_ms)).where(session.c.state == "Open")).scalar_one()
    times = [now, *([] if heard is None else [heard]), *([costs_until(connection)] if billed else [])]
    return int(min(times))


def _groups(query: UsageQuery, table: Table) -> list[ColumnElement[Any]]:
    """The values to group by; ``time`` is the step that a bucket lies in, with its length written out.

    As a parameter it would have two names in SELECT and GROUP BY, and PostgreSQL would not see that they are one.
    """
    step: ColumnElement[int] = literal_column(str(query.step), Integer)
    return [table.c.bucket // step * step if name == TIME else dim.c[name] for name in query.by]


def _group(row: Sequence[Any], width: int) -> tuple[str, ...]:
    return tuple(str(value) for value in row[:width])


def _usage_sums(query: UsageQuery, groups: Sequence[ColumnElement[Any]]) -> Select[Any]:
    sums = [func.sum(usage.c[name]).label(name) for name in sql.SUMS]
    statement = select(*groups, *sums).select_from(dim.join(usage, usage.c.dim_id == dim.c.id))
    return _scoped(statement, usage.c.bucket, query).group_by(*groups)


def _histograms(connection: Connection, query: UsageQuery) -> defaultdict[tuple[str, ...], Counter[int]]:
    groups = _groups(query, cost_hist)
    bins = select(*groups, cost_hist.c.bin, func.sum(cost_hist.c.n).label("n"))
    bins = _scoped(bins.select_from(dim.join(cost_hist, cost_hist.c.dim_id == dim.c.id)), cost_hist.c.bucket, query)
    found: defaultdict[tuple[str, ...], Counter[int]] = defaultdict(Counter)
    for row in connection.execute(bins.group_by(*groups, cost_hist.c.bin)):
        found[_group(row, len(groups))][row.bin] += int(row.n)
    return found


def _scoped(statement: Select[Any], bucket: ColumnElement[int], query: UsageQuery) -> Select[Any]:
    whose = query.only if query.namespace is None else (("namespace", query.namespace), *query.only)
    within = statement.where(bucket >= query.since, bucket < query.until)
    return within.where(*(dim.c[name] == value for name, value in whose))


def _sums(row: Any) -> dict[str, int]:
    return {name: int(getattr(row, name) or 0) for name in sql.SUMS}


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


def _bounded(
    rows: list[UsageRow], histograms: dict[tuple[str, ...], Counter[int]], by: tuple[str, ...]
) -> tuple[UsageRow, ...]:
    """At most so many rows, and one more for each step of time: the cheapest are one, so that totals stay right."""
    if len(rows) <= MAX_USAGE_ROWS:
        return tuple(rows)
    rest: defaultdict[tuple[str, ...], list[UsageRow]] = defaultdict(list)
    for row in rows[MAX_USAGE_ROWS - 1 :]:
        rest[tuple(value if name == TIME else OTHER for name, value in zip(by, row.group, strict=True))].append(row)
    return (*rows[: MAX_USAGE_ROWS - 1], *(_folded(group, some, histograms) for group, some in rest.items()))


def _folded(
    group: tuple[str, ...], rows: Sequence[UsageRow], histograms: dict[tuple[str, ...], Counter[int]]
) -> UsageRow:
    bins = Counter[int]()
    for row in rows:
        bins.update(histograms[row.group])
    sums = {name: sum(getattr(row, name) for row in rows) for name in sql.SUMS}
    return UsageRow(group=group, **_percentiles(bins), **sums)


def _bills(connection: Connection, query: UsageQuery) -> tuple[CostRow, ...]:
    """The bills of the pools, and what everybody's requests were charged there, by step if time is asked for."""
    bills: dict[tuple[int, str, str], CostRow] = {}
    for place, replica_ms, nano_usd in _by_place(connection, query, pool_cost, ("replica_ms", "nano_usd")):
        bills[place] = CostRow(**_place(place), replica_ms=replica_ms, nano_usd=nano_usd)
    for place, charged in _by_place(connection, query, usage, ("nano_usd",)):
        bill = bills.get(place) or CostRow(**_place(place), replica_ms=0, nano_usd=0)
        bills[place] = structs.replace(bill, charged=charged)
    return tuple(bills[place] for place in sorted(bills) if bills[place].nano_usd or bills[place].charged)


def _place(place: tuple[int, str, str]) -> dict[str, Any]:
    return dict(zip(("bucket", "pool", "variant"), place, strict=True))


def _by_place(connection: Connection, query: UsageQuery, table: Table, names: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """Sums by step (the whole time, unless time is asked for), pool and variant: ((step, pool, variant), *sums)."""
    where, rows = (table, table) if table is pool_cost else (dim, dim.join(table, table.c.dim_id == dim.c.id))
    time = _groups(replace(query, by=(TIME,)), table) if TIME in query.by else []
    groups = [*time, where.c.pool, where.c.variant]
    statement = select(*groups, *(func.sum(table.c[name]) for name in names)).select_from(rows)
    statement = statement.where(table.c.bucket >= query.since, table.c.bucket < query.until).group_by(*groups)
    if query.namespace is not None:
        statement = statement.where(where.c.pool.startswith(f"{query.namespace}/", autoescape=True))
    statement = statement.where(*(where.c.pool == value for name, value in query.only if name == "pool"))
    first = () if time else (query.since,)
    return [
        ((*first, *row[: len(groups)]), *(int(value) for value in row[len(groups) :]))
        for row in connection.execute(statement)
    ]


def costs(connection: Connection, since: int, until: int) -> PutCosts:
    """The stored totals of a time, and up to when the operator has counted."""
    where = (pool_cost.c.bucket >= since) & (pool_cost.c.bucket < until)
    rows = connection.execute(select(pool_cost).where(where).order_by(*pool_cost.primary_key.columns)).mappings()
    return PutCosts(costs=tuple(CostRow(**row) for row in rows), until=costs_until(connection))


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
