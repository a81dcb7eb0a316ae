"""Usage of long ago, added up to days: UTC days, because no other day is the same for all who ask.

A day's sums lie in the same tables, in the bucket of its midnight, so that reports need not know. What is older than
QUARTERS_MS is added up oldest first, one quarter hour a round: a round never holds up the routers for long. The
bills of the pools stay in quarter hours: they are few, and their totals merge by maximum, which a day's sum cannot.
"""

from typing import Any

from sqlalchemy import Connection, Table, delete, func, literal, select
from sqlalchemy.dialects import postgresql, sqlite

from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.schema import cost_hist, meta, usage

DAY_MS = 24 * 3_600_000
QUARTERS_MS = 62 * DAY_MS
"""Quarter hours are kept this long: two months, so that a month can be compared with the one before."""
DONE = "rolled_until"
"""Key of ``meta``: buckets before this time (ms) are days."""

_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def roll_up(connection: Connection, now: int) -> None:
    """Add the oldest quarter hour that is old enough to its day; totals of any whole days stay what they are."""
    sql.exclusive(connection, DONE)
    horizon, done = (now - QUARTERS_MS) // DAY_MS * DAY_MS, rolled_until(connection)
    if done >= horizon:
        return
    oldest = select(func.min(usage.c.bucket)).where(usage.c.bucket >= done, usage.c.bucket < horizon)
    bucket = connection.execute(oldest).scalar_one()
    if bucket is not None and bucket % DAY_MS:
        _move(connection, usage, bucket, ("dim_id",), sql.SUMS)
        _move(connection, cost_hist, bucket, ("dim_id", "bin"), ("n",))
    reached = horizon if bucket is None else bucket + 1
    sql.write(connection, sql.PUT_META, [{"k": DONE, "v": str(reached)}])


def rolled_until(connection: Connection) -> int:
    """Where adding up has come to; 0 before it began."""
    text = connection.execute(select(meta.c.v).where(meta.c.k == DONE)).scalar_one_or_none()
    return int(text or 0)


def days_until(connection: Connection) -> int:
    """Before this midnight sums exist by day only."""
    return -(-rolled_until(connection) // DAY_MS) * DAY_MS


def _move(connection: Connection, table: Table, bucket: int, keys: tuple[str, ...], sums: tuple[str, ...]) -> None:
    """Add a bucket's rows to those of its midnight, and drop them."""
    day = literal(bucket // DAY_MS * DAY_MS, table.c.bucket.type)
    rows = select(day, *(table.c[name] for name in (*keys, *sums))).where(table.c.bucket == bucket)
    insert = _INSERT[connection.dialect.name](table).from_select(["bucket", *keys, *sums], rows)
    added = {name: table.c[name] + insert.excluded[name] for name in sums}
    connection.execute(insert.on_conflict_do_update(index_elements=["bucket", *keys], set_=added))
    connection.execute(delete(table).where(table.c.bucket == bucket))
