"""What replicas cost that nobody's requests were charged for, for budgets with ``idleCost: Included``.

Idle belongs to the namespace of the pool. It is measured whenever the operator tells costs, and kept in ``meta``, so
that a message needs no sums over the usage of a month.
"""

from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, func, select

from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.places import decode_budget, stored_window
from fairlead_operator.ledger.schema import dim, pool_cost, usage
from fairlead_router.contract import LedgerBudget

KEY = "idle"
Idle = dict[str, int]
"""nano-USD by "<window id>/<namespace>"."""


def idle_of(idle: Idle, budget: LedgerBudget, namespace: str, window: int) -> int:
    """What idle replicas took of an account: the pools of its namespace or, per Total, of all covered namespaces."""
    if not namespace:
        return sum(idle.get(f"{window}/{covered}", 0) for covered in budget.idle_namespaces)
    return idle.get(f"{window}/{namespace}", 0) if namespace in budget.idle_namespaces else 0


def idle_so_far(connection: Connection, budget: LedgerBudget, namespace: str, window: int) -> int:
    """As ``idle_of``, as it was last measured."""
    rows = sql.read(connection, sql.GET_META, k=KEY) if budget.idle_namespaces else []
    return idle_of(msgspec.json.decode(rows[0].v, type=Idle), budget, namespace, window) if rows else 0


def put_idle(connection: Connection, idle: Idle) -> None:
    """Store what was measured."""
    sql.write(connection, sql.PUT_META, [{"k": KEY, "v": msgspec.json.encode(idle, order="sorted").decode()}])


def measured(connection: Connection, now: int) -> Idle:
    """Bill less charges, at least 0, for each window in use of a budget that counts idle cost, by namespace."""
    found: Idle = {}
    known: dict[tuple[str, int, int], int] = {}
    for row in sql.read(connection, sql.ALL_BUDGETS):
        budget = decode_budget(row.spec)
        window = stored_window(connection, row.series_id, now) if budget.idle_namespaces else None
        if window is None:
            continue
        for namespace in budget.idle_namespaces:
            span = namespace, window.start, window.end
            if span not in known:
                known[span] = _unused(connection, *span)
            found[f"{window.id}/{namespace}"] = known[span]
    return found


def _unused(connection: Connection, namespace: str, start: int, end: int) -> int:
    own = f"{namespace}/"
    bill = select(func.sum(pool_cost.c.nano_usd)).where(
        pool_cost.c.pool.startswith(own, autoescape=True), _within(pool_cost.c.bucket, start, end)
    )
    charged = (
        select(func.sum(usage.c.nano_usd))
        .join(dim, dim.c.id == usage.c.dim_id)
        .where(dim.c.pool.startswith(own, autoescape=True), _within(usage.c.bucket, start, end))
    )
    return max(0, int(connection.execute(bill).scalar() or 0) - int(connection.execute(charged).scalar() or 0))


def _within(bucket: Any, start: int, end: int) -> ColumnElement[bool]:
    inside: ColumnElement[bool] = (bucket >= start) & (bucket < end)
    return inside
