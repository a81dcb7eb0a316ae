"""Reads a ledger's database from outside: at the end everything, meanwhile what nobody can spend."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, select, text

from fairlead_operator.ledger.schema import account, budget_window, dim, holding, series, session, usage
from tests.chaos.truth import Account, Books, Line, Stuck

_LABEL = (series.c.namespace + "/" + series.c.name).label("label")
_ACCOUNTS = account.join(budget_window, budget_window.c.id == account.c.window_id).join(
    series, series.c.id == budget_window.c.series_id
)
_OUT = holding.c.granted - holding.c.returned - holding.c.charged + holding.c.unbacked


def read_books(engine: Engine) -> Books:
    """The whole database, as far as the checker needs it. Violations are not in it: the ledger counts them."""
    with engine.connect() as connection:
        return Books(
            accounts=[_account(row) for row in connection.execute(_account_rows())],
            lines=[_line(row) for row in connection.execute(_line_rows())],
            sessions={row.state: row.many for row in connection.execute(_session_rows())},
            holdings_of_closed=_holdings_of_closed(connection),
        )


def _account_rows() -> Any:
    columns = (account.c.held, account.c.charged, account.c.unbacked, account.c.unreconciled)
    place = (account.c.namespace, account.c.key, budget_window.c.start_ms, budget_window.c.end_ms)
    return select(_LABEL, *place, *columns).select_from(_ACCOUNTS)


def _account(row: Row[Any]) -> Account:
    label, namespace, key, start, end, *books = tuple(row)
    return Account(label, namespace, key, start / 1000, end / 1000, *books)


def _line_rows() -> Any:
    sums = [func.sum(usage.c[name]) for name in ("requests", "prompt", "output", "nano_usd")]
    by = (dim.c.namespace, dim.c.caller, dim.c.feature)
    return select(*by, *sums).select_from(usage.join(dim, dim.c.id == usage.c.dim_id)).group_by(*by)


def _line(row: Row[Any]) -> Line:
    namespace, caller, feature, *sums = tuple(row)
    return Line(namespace, caller, feature, *(int(value) for value in sums))


def _session_rows() -> Any:
    return select(session.c.state, func.count().label("many")).group_by(session.c.state)


def _holdings_of_closed(connection: Connection) -> int:
    """Holdings from which nothing can come any more: their session is closed, and nothing of them is open."""
    joined = holding.join(session, session.c.id == holding.c.session_id)
    query = select(func.count()).select_from(joined).where(session.c.state == "Closed", _OUT == 0)
    return int(connection.execute(query).scalar_one())


def read_deadlocks(engine: Engine) -> int:
    """How often PostgreSQL ended a transaction because two waited for each other; SQLite has one writer, so 0."""
    if engine.dialect.name != "postgresql":
        return 0
    with engine.connect() as connection:
        query = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        return int(connection.execute(query).scalar_one())


def read_stuck(engine: Engine, at: float, sessions: Iterable[str], budgets: Iterable[str]) -> list[Stuck]:
    """What these sessions hold of these budgets, by account and window."""
    joined = _ACCOUNTS.join(holding, holding.c.account_id == account.c.id)
    place = (_LABEL, account.c.namespace, account.c.key, budget_window.c.end_ms)
    query = (
        select(*place, func.sum(_OUT).label("out"))
        .select_from(joined)
        .where(holding.c.session_id.in_(list(sessions)), budget_window.c.end_ms > int(at * 1000))
        .group_by(*place)
    )
    wanted = set(budgets)
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    return [
        Stuck(at, row[0], row[1], row[2], row[3] / 1000, int(row[4])) for row in rows if row[0] in wanted and row[4]
    ]
