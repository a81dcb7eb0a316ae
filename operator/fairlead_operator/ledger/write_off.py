"""``POST /v1/write-off``: a person declares what a dead session still held of a window as not spent."""

from typing import Any

from sqlalchemy import Connection, select

from fairlead_operator.ledger import escrow
from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.escrow import NOTHING, Place, Refusal, Row, Session
from fairlead_operator.ledger.schema import account, budget_window, holding, series, session
from fairlead_operator.ledger.transaction import SqlBooks, stored_session
from fairlead_router.contract import WriteOff

DEAD = frozenset({"Lost", "Closed"})


def write_off(connection: Connection, message: WriteOff, who: str, now: int, ttl_ms: int) -> int | Refusal:
    """The amount written off, in the budget's unit. A session may be named by its id or by its pod.

    Only dead sessions: one that is Lost, or whose successor fell silent as well, is closed by it, so that it cannot
    come back with what it had.
    """
    held = _holdings(connection, message)
    if not held:
        where = f"window {message.window} of {message.namespace}/{message.name}"
        return Refusal(404, reason=f"session or pod {message.session} holds nothing of {where}")
    alive = sorted(one.id for one in held if one.state not in DEAD and not _abandoned(one, now - ttl_ms))
    if alive:
        return Refusal(409, reason=f"session {alive[0]} is not dead; wait until it is Lost, nothing was written off")
    amount = sum(row.out for rows in held.values() for row in rows.values())
    books = SqlBooks(connection, now)
    accounts = books.locked(_ids(held))
    for one, rows in held.items():
        for (id_, _klass), row in rows.items():
            accounts[id_] = escrow.write_off(accounts[id_], row)
        known = {(one.id, place) for place in rows}
        books.put_rows(((name, place, NOTHING) for name, place in known), known)
    books.put_accounts(accounts.items())
    sql.write(connection, sql.SET_STATE, ({"session": one.id, "state": "Closed"} for one in held))
    detail = (
        f"{message.namespace}/{message.name} window {message.window}, {message.session}: {amount}; {message.reason}"
    )
    sql.write(connection, sql.ADD_AUDIT, [{"at_ms": now, "who": who, "what": "WrittenOff", "detail": detail}])
    return amount


def _abandoned(session: Session, silent_since: int) -> bool:
    """Whether a journal that was being told is not told any more."""
    return session.state == "Replaying" and session.seen_ms < silent_since


def _ids(held: dict[Session, dict[Place, Row]]) -> set[int]:
    return {id_ for rows in held.values() for id_, _klass in rows}


def _holdings(connection: Connection, message: WriteOff) -> dict[Session, dict[Place, Row]]:
    """What the sessions of that name hold of the window."""
    totals: list[Any] = [holding.c[name] for name in sql.TOTALS]
    found = connection.execute(
        select(
            *(session.c[name] for name in Session.__struct_fields__), holding.c.account_id, holding.c["class"], *totals
        )
        .join(holding, holding.c.session_id == session.c.id)
        .join(account, account.c.id == holding.c.account_id)
        .join(budget_window, budget_window.c.id == account.c.window_id)
        .join(series, series.c.id == budget_window.c.series_id)
        .where(
            budget_window.c.id == message.window,
            series.c.namespace == message.namespace,
            series.c.name == message.name,
            (session.c.id == message.session) | (session.c.pod == message.session),
        )
        .order_by(session.c.id)
        .with_for_update(of=session)
    )
    held: dict[Session, dict[Place, Row]] = {}
    for found_row in found:
        account_id, klass, *row = found_row[7:]
        held.setdefault(stored_session(found_row), {})[account_id, klass] = Row(*row)
    return held
