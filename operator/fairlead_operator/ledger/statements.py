"""All SQL of the ledger's writes, compiled once to text for each database.

Lists travel as one JSON parameter, so the text does not depend on how many values there are. Reports build their
queries in ``reports``. What differs between databases is in ``sqlite`` and ``postgres``, which have the same names.
"""

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, Final

import msgspec
from sqlalchemy import (
    BigInteger,
    ClauseElement,
    Column,
    Connection,
    Select,
    Table,
    Text,
    bindparam,
    column,
    delete,
    func,
    literal_column,
    select,
    text,
    update,
)

from fairlead_operator.ledger import postgres, sqlite
from fairlead_operator.ledger.escrow import Account, Row
from fairlead_operator.ledger.schema import (
    DIALECTS,
    account,
    audit,
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

ARCHIVE_MS = 7 * 24 * 3_600_000
"""Holdings of windows that ended this long ago are dropped."""
Statement = Mapping[str, sqlite.Text | postgres.Text]
"""One statement, by database."""

_out = "(holding.granted - holding.returned - holding.charged + holding.unbacked)"


def read(connection: Connection, statement: Statement, **parameters: Any) -> list[Any]:
    """All rows of a query, as named tuples."""
    return statement[connection.dialect.name].read(connection, parameters)


def write(connection: Connection, statement: Statement, rows: Iterable[dict[str, Any]]) -> None:
    """Run a statement for all rows, which have at least its parameters; nothing for no rows."""
    order = statement[connection.dialect.name].order
    write_many(connection, statement, ([row[name] for name in order] for row in rows))


def write_many(connection: Connection, statement: Statement, rows: Iterable[Sequence[Any]]) -> Callable[[], int]:
    """As ``write``, for what comes by the hundred: the values of a row as they are listed where it is made.

    The result tells how many rows were touched, once that is answered (``unanswered``).
    """
    values = list(rows)
    return statement[connection.dialect.name].write(connection, values) if values else int


def run(connection: Connection, statement: Statement, **parameters: Any) -> int:
    """Run a statement; how many rows it touched."""
    return statement[connection.dialect.name].run(connection, parameters)


def as_list(values: Iterable[Any]) -> str:
    """A list as the one parameter that the queries take, in a fixed order."""
    return msgspec.json.encode(sorted(values)).decode()


def read_rows(connection: Connection, statement: Statement, rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """All rows of a query that takes a list of rows; none for no rows."""
    dialect, values = connection.dialect.name, sorted(rows)
    return statement[dialect].read(connection, DIALECTS[dialect].listed(values)) if values else []


def database_now(connection: Connection) -> int | None:
    """The clock that all ledgers on this database share, in milliseconds; None where there is but one ledger."""
    now: int | None = DIALECTS[connection.dialect.name].now(connection)
    return now


def shared(connection: Connection) -> bool:
    """Whether other ledgers may write to this database."""
    several: bool = DIALECTS[connection.dialect.name].SHARED
    return several


def exclusive(connection: Connection, name: str) -> None:
    """Keep other ledgers out of what has this name until the transaction ends."""
    DIALECTS[connection.dialect.name].exclusive(connection, name)


def unanswered(connection: Connection) -> AbstractContextManager[Any]:
    """While in it, the answers to writes are not waited for; errors come by its end at the latest."""
    waiting: AbstractContextManager[Any] = DIALECTS[connection.dialect.name].unanswered(connection)
    return waiting


# --- how statements are made


def _sql(build: Callable[[ModuleType], ClauseElement]) -> Statement:
    return {name: d.compiled(statement := build(d), _row(statement)) for name, d in DIALECTS.items()}


def _row(statement: Any) -> type[tuple[Any, ...]]:
    selected = getattr(statement, "selected_columns", ())
    return namedtuple("Row", [item.name for item in selected], rename=True)  # noqa: PYI024 - the names are only known now


_NO_ROW: type[tuple[Any, ...]] = tuple


def _add(table: Table, columns: Sequence[str]) -> Statement:
    """Insert; a row that is there already stays as it is."""
    made = {}
    for name, d in DIALECTS.items():
        statement, keys = d.adding(table, columns)
        made[name] = d.compiled(statement.on_conflict_do_nothing(), _NO_ROW, keys)
    return made


def _insert(table: Table, columns: Sequence[str]) -> Statement:
    """Insert; a row that is there already is an error."""
    made = {}
    for name, d in DIALECTS.items():
        statement, keys = d.adding(table, columns)
        made[name] = d.compiled(statement, _NO_ROW, keys)
    return made


def _put(
    table: Table,
    columns: Sequence[str],
    changed: Sequence[str],
    value: Callable[[ModuleType, Any, Any], Any] = lambda _d, _stored, sent: sent,
) -> Statement:
    """Insert, or change those columns of a row that is there; ``value`` makes the new value of stored and sent."""
    made = {}
    for name, d in DIALECTS.items():
        statement, keys = d.adding(table, columns)
        sets = {item: value(d, table.c[item], statement.excluded[item]) for item in changed}
        primary = [item.name for item in table.primary_key]
        made[name] = d.compiled(statement.on_conflict_do_update(index_elements=primary, set_=sets), _NO_ROW, keys)
    return made


def _change(table: Table, keys: dict[str, str], columns: Sequence[str]) -> Statement:
    """Change columns of the rows that ``keys`` (by column, its parameter) find; the keys come last in a row."""
    made = {}
    for name, d in DIALECTS.items():
        statement, changed = d.updating(table, keys, columns)
        made[name] = d.compiled(statement, _NO_ROW, changed)
    return made


def _remove(table: Table, keys: dict[str, str]) -> Statement:
    made = {}
    for name, d in DIALECTS.items():
        statement, order = d.deleting(table, keys)
        made[name] = d.compiled(statement, _NO_ROW, order)
    return made


def _sum(_d: ModuleType, stored: Any, sent: Any) -> Any:
    return stored + sent


# --- the ledger's own facts

GET_META = _sql(lambda _d: select(meta.c.v).where(meta.c.k == bindparam("k")))
ALL_META = _sql(lambda _d: select(meta.c.k, meta.c.v))
ADD_META = _add(meta, ["k", "v"])
PUT_META = _put(meta, ["k", "v"], ["v"])
ADD_AUDIT = _add(audit, ["at_ms", "who", "what", "detail"])

# --- budgets, series, windows, accounts

_budgets = select(budget.c.namespace, budget.c.name, budget.c.series_id, budget.c.spec)


def _named_budgets(d: ModuleType) -> ClauseElement:
    listed, (namespace, name) = d.rows(Text, Text)
    joined = listed.join(budget, (budget.c.namespace == namespace) & (budget.c.name == name))
    return _budgets.select_from(joined).where(budget.c.deleted == literal_column("0"))


BUDGETS = _sql(_named_budgets)
ALL_BUDGETS = _sql(
    lambda _d: _budgets.where(budget.c.deleted == literal_column("0")).order_by(budget.c.namespace, budget.c.name)
)
PUT_BUDGET = _put(
    budget,
    ["namespace", "name", "series_id", "uid", "spec", "deleted"],
    ["series_id", "uid", "spec", "deleted"],
)
DELETE_BUDGETS = _sql(lambda _d: update(budget).values(deleted=literal_column("1")))
_identity = ("namespace", "name", "unit", "per", "period", "tz")
ADD_SERIES = _add(series, [*_identity, "created_ms"])
SERIES = _sql(
    lambda _d: select(series.c.id, series.c.created_ms).where(
        *(series.c[name] == bindparam(name) for name in _identity)
    )
)
WINDOW = _sql(
    lambda _d: select(budget_window.c.id, budget_window.c.start_ms, budget_window.c.end_ms).where(
        budget_window.c.series_id == bindparam("series"),
        budget_window.c.start_ms <= bindparam("at"),
        budget_window.c.end_ms > bindparam("at"),
    )
)
NEIGHBOURS = _sql(
    lambda _d: select(
        func.max(budget_window.c.end_ms).filter(budget_window.c.end_ms <= bindparam("at")).label("ended"),
        func.min(budget_window.c.start_ms).filter(budget_window.c.start_ms > bindparam("at")).label("begins"),
    ).where(budget_window.c.series_id == bindparam("series"))
)
ADD_WINDOW = _add(budget_window, ["series_id", "start_ms", "end_ms"])


def _places(d: ModuleType) -> ClauseElement:
    listed, (window, namespace, key) = d.rows(BigInteger, Text, Text)
    found = (account.c.window_id == window) & (account.c.namespace == namespace) & (account.c.key == key)
    return select(account.c.id, account.c.window_id, account.c.namespace, account.c.key).select_from(
        listed.join(account, found)
    )


def _keys(d: ModuleType) -> ClauseElement:
    listed, (window, namespace) = d.rows(BigInteger, Text)
    joined = listed.join(window_ns, (window_ns.c.window_id == window) & (window_ns.c.namespace == namespace))
    known = select(window_ns.c.window_id, window_ns.c.namespace, window_ns.c["keys"].label("known"))
    in_order = known.select_from(joined).order_by(window_ns.c.window_id, window_ns.c.namespace)
    return in_order.with_for_update(of=window_ns)


PLACES = _sql(_places)
KEYS = _sql(_keys)
ADD_KEYS = _add(window_ns, ["window_id", "namespace", "keys"])
PUT_KEYS = _put(window_ns, ["window_id", "namespace", "keys"], ["keys"])
ADD_ACCOUNT = _add(account, ["id", "window_id", "namespace", "key"])
BOOKS = Account.__struct_fields__
"""The columns of an account that messages change."""
ACCOUNTS = _sql(
    lambda d: select(
        account.c.id, account.c.window_id, account.c.namespace, account.c.key, *(account.c[name] for name in BOOKS)
    ).where(account.c.id.in_(d.ids("ids", BigInteger)))
)
"""As they are committed now: who changes them locks them first, and looks again."""
LOCKED_ACCOUNTS = _sql(
    lambda d: (
        select(account.c.id, *(account.c[name] for name in BOOKS))
        .where(account.c.id.in_(d.ids("ids", BigInteger)))
        .order_by(account.c.id)
        .with_for_update(key_share=True)
    )
)
"""All ledgers wait for accounts in the order of their numbers, which never change: none waits in a circle.

A transaction that has locked accounts waits for no more of them.
"""
SCOPES = _sql(
    lambda d: (
        select(
            budget_window.c.id,
            budget_window.c.start_ms,
            budget_window.c.end_ms,
            budget_window.c.series_id,
            budget.c.series_id.label("live_series"),
            budget.c.deleted,
            budget.c.spec,
            budget.c.namespace,
            budget.c.name,
        )
        .select_from(
            budget_window.join(series, series.c.id == budget_window.c.series_id).join(
                budget, (budget.c.namespace == series.c.namespace) & (budget.c.name == series.c.name)
            )
        )
        .where(budget_window.c.id.in_(d.ids("ids", BigInteger)))
    )
)
"""Windows and their budgets: the same few of all accounts, and so not read with each of them."""
PUT_ACCOUNT = _change(account, {"id": "account"}, BOOKS)
MOVED: Final[tuple[str, ...]] = ("held", "charged", "cap_high")
"""The columns that most messages change, and often all that they do."""
_moving, _moved = postgres.updating(account, {"id": "account"} | {name: f"was_{name}" for name in MOVED}, MOVED)
MOVE_ACCOUNT = postgres.compiled(_moving, _NO_ROW, _moved)
"""Only where they are what the change was decided on."""
FREE_ACCOUNTS = postgres.compiled(
    select(account.c.id)
    .where(account.c.id.in_(postgres.ids("ids", BigInteger)))
    .with_for_update(key_share=True, nowait=True),
    _NO_ROW,
)
"""Locked; an error if others have one of them locked."""

# --- sessions and holdings

_session = ("id", "pod_uid", "pod", "seq", "seen_ms", "state", "taken")
SESSIONS = _sql(
    lambda d: (
        select(*(session.c[name] for name in _session))
        .where(session.c.id.in_(d.ids("ids", Text)))
        .order_by(session.c.id)
        .with_for_update()
    )
)
ADD_SESSION = _add(session, _session)
"""A new session is added, then read: its first message cannot be applied by two ledgers."""
PUT_SESSION = _put(session, _session, ["seq", "seen_ms", "state", "taken"])
SET_STATE = _change(session, {"id": "session"}, ["state"])
SILENT = _sql(
    lambda _d: (
        select(session.c.id)
        .where(session.c.state == literal_column("'Open'"), session.c.seen_ms < bindparam("before"))
        .order_by(session.c.id)
        .limit(literal_column("1000"))
        .offset(literal_column("0"))
        .with_for_update(skip_locked=True)
    )
)
"""Open sessions that were silent. One that is locked speaks right now."""
TOTALS = Row.__struct_fields__
"""The columns of a holding that messages change."""
_totals = [holding.c.account_id, holding.c["class"].label("klass"), *(holding.c[name] for name in TOTALS)]
HOLDINGS = _sql(
    lambda d: select(*_totals).where(
        holding.c.session_id == bindparam("session"), holding.c.account_id.in_(d.ids("ids", BigInteger))
    )
)


def _holdings_of(d: ModuleType) -> ClauseElement:
    listed, (name, account_id) = d.rows(Text, BigInteger)
    found = (holding.c.session_id == name) & (holding.c.account_id == account_id)
    return select(holding.c.session_id, *_totals).select_from(listed.join(holding, found))


HOLDINGS_OF = _sql(_holdings_of)
ALL_HOLDINGS = _sql(lambda _d: select(*_totals).where(holding.c.session_id == bindparam("session")))
ADD_HOLDING = _insert(holding, ["session_id", "account_id", "class", *TOTALS])
PUT_HOLDING = _change(holding, {"session_id": "session", "account_id": "account", "class": "class"}, TOTALS)
UPSERT_HOLDING = _put(holding, ["session_id", "account_id", "class", *TOTALS], TOTALS)
DELETE_HOLDING = _remove(holding, {"session_id": "session", "account_id": "account", "class": "class"})


def _held_by(d: ModuleType) -> Select[Any]:
    return select(holding.c.account_id).where(holding.c.session_id.in_(d.ids("sessions", Text)))


LOCKED_HELD = _sql(
    lambda d: (
        select(account.c.id).where(account.c.id.in_(_held_by(d))).order_by(account.c.id).with_for_update(key_share=True)
    )
)
"""The accounts that sessions hold something of."""
LOSE = _sql(
    lambda d: (
        update(account)
        .where(account.c.id.in_(_held_by(d)))
        .values(
            unreconciled=account.c.unreconciled
            + select(func.sum(literal_column(_out, BigInteger)))
            .where(holding.c.session_id.in_(d.ids("sessions", Text)), holding.c.account_id == account.c.id)
            .scalar_subquery()
        )
    )
)
"""Count what sessions hold as unreconciled: a label, no money moves."""

# --- usage

DIMS = _sql(lambda d: select(dim.c.id, dim.c.hash).where(dim.c.hash.in_(d.ids("ids", Text))))
DIM_COUNTS = _sql(
    lambda d: (
        select(dim.c.namespace, func.count(dim.c.id).label("dims"))
        .where(dim.c.namespace.in_(d.ids("ids", Text)))
        .group_by(dim.c.namespace)
    )
)
DIM_COLUMNS: Final[tuple[str, ...]] = (
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
ADD_DIM = _add(dim, ["hash", *DIM_COLUMNS])
SUMS: Final[tuple[str, ...]] = ("requests", "prompt", "cached", "output", "nano_usd", "saved")
ADD_USAGE = _put(usage, ["bucket", "dim_id", *SUMS], SUMS, _sum)
ADD_BIN = _put(cost_hist, ["bucket", "dim_id", "bin", "n"], ["n"], _sum)

# --- prices

ADD_CARD = _add(rate_card, ["pool", "version", "prompt_pico", "cached_pico", "output_pico", "source", "at_ms"])
PUT_COST = _put(
    pool_cost,
    ["bucket", "pool", "variant", "replica_ms", "nano_usd"],
    ["replica_ms", "nano_usd"],
    lambda d, stored, sent: d.larger(stored, sent),
)

# --- upkeep

AUDIT = _sql(
    lambda _d: text(f"""
SELECT count(*) AS broken FROM account
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
""").columns(column("broken"))  # noqa: S608 - the only value put in is the constant above
)
"""How many accounts break I1 (nothing was granted beyond a cap) or I2 (the books add up)."""
ARCHIVED = _sql(
    lambda _d: (
        select(account.c.id)
        .join(budget_window, budget_window.c.id == account.c.window_id)
        .where(budget_window.c.end_ms <= bindparam("archived"), account.c.holders > literal_column("0"))
        .order_by(account.c.id)
        .limit(literal_column("1000"))
        .offset(literal_column("0"))
        .with_for_update(key_share=True, of=account, skip_locked=True)
    )
)
"""Accounts that nobody will tell of any more. One that is locked is left for the next round: this one has others."""
ARCHIVE_ACCOUNTS = _sql(
    lambda d: (
        update(account)
        .where(account.c.id.in_(d.ids("ids", BigInteger)))
        .values(unreconciled=account.c.held - account.c.charged, holders=literal_column("0"))
    )
)
ARCHIVE_HOLDINGS = _sql(lambda d: delete(holding).where(holding.c.account_id.in_(d.ids("ids", BigInteger))))
DROPPED = _sql(
    lambda _d: (
        select(budget_window.c.id)
        .where(budget_window.c.end_ms < bindparam("before"))
        .limit(literal_column("100"))
        .offset(literal_column("0"))
    )
)


def _listed(table: Table, key: Column[int]) -> Statement:
    return _sql(lambda d: delete(table).where(key.in_(d.ids("ids", BigInteger))))


def _before(table: Table, key: Column[int]) -> Statement:
    return _sql(lambda _d: delete(table).where(key < bindparam("before")))


DROP_WINDOWS = [
    _listed(table, key)
    for table, key in (
        (account, account.c.window_id),
        (window_ns, window_ns.c.window_id),
        (budget_window, budget_window.c.id),
    )
]
"""Windows older than the retention, with their accounts."""
DROP_WORKFLOWS = _sql(
    lambda _d: text("""
DELETE FROM account WHERE id IN (
    SELECT account.id FROM series
    JOIN budget_window ON budget_window.series_id = series.id
    JOIN account ON account.window_id = budget_window.id
    WHERE series.per = 'Workflow' AND budget_window.end_ms <= :archived AND account.holders = 0 LIMIT 10000)
""")
)
"""Workflows are many and never come back: their accounts go as soon as nobody can charge them any more."""
DROP_SESSIONS = _sql(
    lambda _d: text("""
DELETE FROM session WHERE state <> 'Open' AND seen_ms < :before
AND NOT EXISTS (SELECT 1 FROM holding WHERE holding.session_id = session.id)
""")
)
DROP_AUDIT = _before(audit, audit.c.at_ms)
CROWDED_AUDIT = _sql(lambda _d: text("DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - :kept"))
"""The newest rows stay, whatever their age."""
EXPIRE = [_before(table, table.c.bucket) for table in (usage, cost_hist, pool_cost)]
"""Usage and costs older than the retention."""
ORPHANS = _sql(lambda _d: delete(dim).where(~select(usage.c.dim_id).where(usage.c.dim_id == dim.c.id).exists()))
COUNTS = _sql(
    lambda _d: text("""
SELECT (SELECT count(*) FROM account) AS accounts, (SELECT count(*) FROM holding) AS holdings,
       (SELECT count(*) FROM dim) AS dims
""").columns(column("accounts"), column("holdings"), column("dims"))
)
SESSIONS_BY_STATE = _sql(
    lambda _d: select(session.c.state, func.count(session.c.id).label("sessions")).group_by(session.c.state)
)
