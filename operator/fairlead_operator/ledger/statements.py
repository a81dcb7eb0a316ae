"""All SQL of the ledger's writes, compiled once to text for SQLite and run with ``exec_driver_sql``.

Lists travel as one JSON parameter, so the text does not depend on how many values there are. Reports build their
queries in ``reports``.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    ClauseElement,
    Connection,
    Row,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.dialects import sqlite

from fairlead_operator.ledger.schema import (
    account,
    budget,
    budget_window,
    cost_hist,
    dim,
    holding,
    meta,
    pool_cost,
    rate_card,
    series,
    session,
    usage,
    window_ns,
)

_DIALECT = sqlite.dialect(paramstyle="named")
ARCHIVE_MS = 7 * 24 * 3_600_000
"""Holdings of windows that ended this long ago are dropped."""

_ids = func.json_each(bindparam("ids")).table_valued("value")
_rows = func.json_each(bindparam("rows")).table_valued("value")
_out = "(holding.granted - holding.returned - holding.charged + holding.unbacked)"


def _field(index: int) -> Any:
    return func.json_extract(_rows.c.value, literal_column(f"'$[{index}]'"))


def _sql(statement: ClauseElement, columns: Sequence[str] | None = None) -> str:
    return str(statement.compile(dialect=_DIALECT, column_keys=columns))


def read(connection: Connection, sql: str, **parameters: Any) -> Sequence[Row[Any]]:
    """All rows of a compiled query."""
    return connection.exec_driver_sql(sql, parameters).all()


def write(connection: Connection, sql: str, rows: Iterable[dict[str, Any]]) -> None:
    """Run a compiled statement for each row; nothing for no rows."""
    if parameters := list(rows):
        connection.exec_driver_sql(sql, parameters)


def as_list(values: Iterable[Any]) -> str:
    """A list as the one parameter that the queries take, in a fixed order."""
    return msgspec.json.encode(sorted(values)).decode()


GET_META = _sql(select(meta.c.v).where(meta.c.k == bindparam("k")))
_put_meta = sqlite.insert(meta)
PUT_META = _sql(_put_meta.on_conflict_do_update(index_elements=["k"], set_={"v": _put_meta.excluded.v}))

# --- budgets, series, windows, accounts

BUDGETS = _sql(
    select(budget.c.namespace, budget.c.name, budget.c.series_id, budget.c.spec)
    .select_from(_rows.join(budget, (budget.c.namespace == _field(0)) & (budget.c.name == _field(1))))
    .where(budget.c.deleted == literal_column("0"))
)
ALL_BUDGETS = _sql(
    select(budget.c.namespace, budget.c.name, budget.c.series_id, budget.c.spec)
    .where(budget.c.deleted == literal_column("0"))
    .order_by(budget.c.namespace, budget.c.name)
)
_put_budget = sqlite.insert(budget)
PUT_BUDGET = _sql(
    _put_budget.on_conflict_do_update(
        index_elements=["namespace", "name"],
        set_={name: _put_budget.excluded[name] for name in ("series_id", "uid", "spec", "deleted")},
    )
)
DELETE_BUDGETS = _sql(update(budget).values(deleted=literal_column("1")))
_identity = ("namespace", "name", "unit", "per", "period", "tz")
ADD_SERIES = _sql(sqlite.insert(series).on_conflict_do_nothing(), [*_identity, "created_ms"])
SERIES = _sql(
    select(series.c.id, series.c.created_ms).where(*(series.c[name] == bindparam(name) for name in _identity))
)
WINDOW = _sql(
    select(budget_window.c.id, budget_window.c.start_ms, budget_window.c.end_ms).where(
        budget_window.c.series_id == bindparam("series"),
        budget_window.c.start_ms <= bindparam("at"),
        budget_window.c.end_ms > bindparam("at"),
    )
)
NEIGHBOURS = _sql(
    select(
        func.max(budget_window.c.end_ms).filter(budget_window.c.end_ms <= bindparam("at")).label("ended"),
        func.min(budget_window.c.start_ms).filter(budget_window.c.start_ms > bindparam("at")).label("begins"),
    ).where(budget_window.c.series_id == bindparam("series"))
)
ADD_WINDOW = _sql(insert(budget_window), ["series_id", "start_ms", "end_ms"])
PLACES = _sql(
    select(account.c.id, account.c.window_id, account.c.namespace, account.c.key).select_from(
        _rows.join(
            account,
            (account.c.window_id == _field(0)) & (account.c.namespace == _field(1)) & (account.c.key == _field(2)),
        )
    )
)
KEYS = _sql(
    select(window_ns.c.window_id, window_ns.c.namespace, window_ns.c["keys"].label("known")).select_from(
        _rows.join(window_ns, (window_ns.c.window_id == _field(0)) & (window_ns.c.namespace == _field(1)))
    )
)
_put_keys = sqlite.insert(window_ns)
PUT_KEYS = _sql(
    _put_keys.on_conflict_do_update(
        index_elements=["window_id", "namespace"], set_={"keys": _put_keys.excluded["keys"]}
    )
)
ADD_ACCOUNT = _sql(insert(account), ["window_id", "namespace", "key"])
BOOKS = ("held", "charged", "unbacked", "unreconciled", "holders", "recall_until", "refused_ms", "cap_high")
"""The columns of an account that messages change: the fields of ``escrow.Account``."""
ACCOUNTS = _sql(
    select(
        account.c.id,
        account.c.namespace,
        account.c.key,
        *(account.c[name] for name in BOOKS),
        budget_window.c.id.label("window_id"),
        budget_window.c.start_ms,
        budget_window.c.end_ms,
        budget_window.c.series_id,
        budget.c.series_id.label("live_series"),
        budget.c.deleted,
        budget.c.spec,
        budget.c.namespace.label("budget_namespace"),
        budget.c.name.label("budget_name"),
    )
    .select_from(
        account.join(budget_window, budget_window.c.id == account.c.window_id)
        .join(series, series.c.id == budget_window.c.series_id)
        .join(budget, (budget.c.namespace == series.c.namespace) & (budget.c.name == series.c.name))
    )
    .where(account.c.id.in_(select(_ids.c.value)))
)
PUT_ACCOUNT = _sql(update(account).where(account.c.id == bindparam("account")), BOOKS)

# --- sessions and holdings

SESSION = _sql(
    select(session.c.id, session.c.pod_uid, session.c.seq, session.c.seen_ms, session.c.state).where(
        session.c.id == bindparam("id")
    )
)
_put_session = sqlite.insert(session)
PUT_SESSION = _sql(
    _put_session.on_conflict_do_update(
        index_elements=["id"], set_={name: _put_session.excluded[name] for name in ("seq", "seen_ms", "state")}
    ),
    ["id", "pod_uid", "pod", "seq", "seen_ms", "state"],
)
SET_STATE = _sql(update(session).where(session.c.id == bindparam("session")), ["state"])
SILENT = _sql(
    select(session.c.id)
    .where(session.c.state == literal_column("'Open'"), session.c.seen_ms < bindparam("before"))
    .limit(literal_column("1000"))
    .offset(literal_column("0"))
)
TOTALS = ("granted", "returned", "charged", "unbacked", "reserved")
"""The columns of a holding that messages change: the fields of ``escrow.Row``."""
_totals = [holding.c.account_id, *(holding.c[name] for name in TOTALS)]
HOLDINGS = _sql(
    select(*_totals).where(holding.c.session_id == bindparam("session"), holding.c.account_id.in_(select(_ids.c.value)))
)
ALL_HOLDINGS = _sql(select(*_totals).where(holding.c.session_id == bindparam("session")))
_put_holding = sqlite.insert(holding)
PUT_HOLDING = _sql(
    _put_holding.on_conflict_do_update(
        index_elements=["session_id", "account_id", "class"],
        set_={name: _put_holding.excluded[name] for name in TOTALS},
    )
)
DELETE_HOLDING = _sql(
    delete(holding).where(holding.c.session_id == bindparam("session"), holding.c.account_id == bindparam("account"))
)
RELABEL = _sql(
    update(account)
    .where(account.c.id.in_(select(holding.c.account_id).where(holding.c.session_id == bindparam("session"))))
    .values(
        unreconciled=account.c.unreconciled
        + bindparam("sign")
        * select(func.sum(literal_column(_out)))
        .where(holding.c.session_id == bindparam("session"), holding.c.account_id == account.c.id)
        .scalar_subquery()
    )
)
"""Move what a session holds between leased (sign -1) and unreconciled (sign 1): a label, no money."""

# --- usage

DIMS = _sql(select(dim.c.id, dim.c.hash).where(dim.c.hash.in_(select(_ids.c.value))))
DIM_COUNTS = _sql(
    select(dim.c.namespace, func.count(dim.c.id).label("dims"))
    .where(dim.c.namespace.in_(select(_ids.c.value)))
    .group_by(dim.c.namespace)
)
DIM_COLUMNS = (
    "namespace",
    "caller",
    "feature",
    "model",
    "pool",
    "variant",
    "route",
    "cache",
    "attempt",
    "basis",
    "card",
)
ADD_DIM = _sql(sqlite.insert(dim).on_conflict_do_nothing(), ["hash", *DIM_COLUMNS])
SUMS = ("requests", "prompt", "cached", "output", "nano_usd", "saved")
_put_usage = sqlite.insert(usage)
ADD_USAGE = _sql(
    _put_usage.on_conflict_do_update(
        index_elements=["bucket", "dim_id"], set_={name: usage.c[name] + _put_usage.excluded[name] for name in SUMS}
    )
)
_put_bin = sqlite.insert(cost_hist)
ADD_BIN = _sql(
    _put_bin.on_conflict_do_update(
        index_elements=["bucket", "dim_id", "bin"], set_={"n": cost_hist.c.n + _put_bin.excluded.n}
    )
)

# --- prices

ADD_CARD = _sql(sqlite.insert(rate_card).on_conflict_do_nothing())
_put_cost = sqlite.insert(pool_cost)
PUT_COST = _sql(
    _put_cost.on_conflict_do_update(
        index_elements=["bucket", "pool", "variant"],
        set_={name: func.max(pool_cost.c[name], _put_cost.excluded[name]) for name in ("replica_ms", "nano_usd")},
    )
)

# --- upkeep

AUDIT = text(f"""
SELECT count(*) FROM account
JOIN budget_window ON budget_window.id = account.window_id
LEFT JOIN (
    SELECT account_id, count(*) AS holders, sum({_out}) AS out,
           sum(CASE WHEN session.state = 'Open' THEN 0 ELSE {_out} END) AS told_by_nobody
    FROM holding JOIN session ON session.id = holding.session_id GROUP BY account_id
) AS books ON books.account_id = account.id
WHERE budget_window.end_ms > :archived AND (
    account.held <> account.charged + coalesce(books.out, 0)
    OR account.unreconciled <> coalesce(books.told_by_nobody, 0)
    OR account.holders <> coalesce(books.holders, 0)
    OR account.held - account.unbacked > account.cap_high)
""").text  # noqa: S608 - the only value put in is the constant above
"""How many accounts break I1 (nothing was granted beyond a cap) or I2 (the books add up)."""
ARCHIVED = _sql(
    select(account.c.id)
    .join(budget_window, budget_window.c.id == account.c.window_id)
    .where(budget_window.c.end_ms <= bindparam("archived"), account.c.holders > literal_column("0"))
    .limit(literal_column("1000"))
    .offset(literal_column("0"))
)
ARCHIVE_ACCOUNTS = _sql(
    update(account)
    .where(account.c.id.in_(select(_ids.c.value)))
    .values(unreconciled=account.c.held - account.c.charged, holders=literal_column("0"))
)
ARCHIVE_HOLDINGS = _sql(delete(holding).where(holding.c.account_id.in_(select(_ids.c.value))))
DROPPED = _sql(
    select(budget_window.c.id)
    .where(budget_window.c.end_ms < bindparam("before"))
    .limit(literal_column("100"))
    .offset(literal_column("0"))
)
DROP_WINDOWS = [
    _sql(delete(table).where(column.in_(select(_ids.c.value))))
    for table, column in (
        (account, account.c.window_id),
        (window_ns, window_ns.c.window_id),
        (budget_window, budget_window.c.id),
    )
]
"""Windows older than the retention, with their accounts."""
DROP_WORKFLOWS = text("""
DELETE FROM account WHERE id IN (
    SELECT account.id FROM series
    JOIN budget_window ON budget_window.series_id = series.id
    JOIN account ON account.window_id = budget_window.id
    WHERE series.per = 'Workflow' AND budget_window.end_ms <= :archived AND account.holders = 0 LIMIT 10000)
""").text
"""Workflows are many and never come back: their accounts go as soon as nobody can charge them any more."""
DROP_SESSIONS = text("""
DELETE FROM session WHERE state <> 'Open' AND seen_ms < :before
AND NOT EXISTS (SELECT 1 FROM holding WHERE holding.session_id = session.id)
""").text
EXPIRE = [_sql(delete(table).where(table.c.bucket < bindparam("before"))) for table in (usage, cost_hist, pool_cost)]
"""Usage and costs older than the retention."""
ORPHANS = _sql(delete(dim).where(~select(usage.c.dim_id).where(usage.c.dim_id == dim.c.id).exists()))
COUNTS = text("""
SELECT (SELECT count(*) FROM account) AS accounts, (SELECT count(*) FROM holding) AS holdings,
       (SELECT count(*) FROM dim) AS dims
""").text
SESSIONS_BY_STATE = _sql(select(session.c.state, func.count(session.c.id).label("sessions")).group_by(session.c.state))
