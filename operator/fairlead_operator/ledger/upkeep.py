"""What the ledger does every few seconds: sessions that fell silent, the audit, and what is too old to keep."""

from dataclasses import dataclass

from sqlalchemy import Connection

from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.rollup import roll_up

EVERY_S = 10
RETENTION_MS = 400 * 24 * 3_600_000
"""Usage, costs and windows are kept a year and a month, so that a month compares with that of the year before."""

AUDIT_ROWS = 100_000
"""What the ledger did: the newest rows are kept, and for as long as usage."""

SESSION_MS = 30 * 24 * 3_600_000
"""Ids of sessions that are over and hold nothing are known this long."""


@dataclass(frozen=True, slots=True)
class Health:
    """What a round of upkeep found."""

    violations: int
    lost: int
    accounts: int
    holdings: int
    dims: int
    sessions: dict[str, int]


def upkeep(connection: Connection, now: int, ttl_ms: int) -> Health:
    """One round; ledgers on one database do theirs one after the other."""
    sql.exclusive(connection, "upkeep")
    lost = mark_lost(connection, now, ttl_ms)
    archive(connection, now)
    roll_up(connection, now)
    expire(connection, now)
    counts = sql.read(connection, sql.COUNTS)[0]
    return Health(
        violations=audit(connection, now),
        lost=lost,
        accounts=counts.accounts,
        holdings=counts.holdings,
        dims=counts.dims,
        sessions={row.state: row.sessions for row in sql.read(connection, sql.SESSIONS_BY_STATE)},
    )


def mark_lost(connection: Connection, now: int, ttl_ms: int) -> int:
    """Open sessions that were silent for longer than the ttl: what they hold is unreconciled, and stays counted."""
    silent = [row.id for row in sql.read(connection, sql.SILENT, before=now - ttl_ms)]
    if silent:
        sessions = sql.as_list(silent)
        sql.read(connection, sql.LOCKED_HELD, sessions=sessions)
        sql.run(connection, sql.LOSE, sessions=sessions)
    sql.write(connection, sql.SET_STATE, ({"session": session, "state": "Lost"} for session in silent))
    return len(silent)


def audit(connection: Connection, now: int) -> int:
    """How many accounts break an invariant; anything but 0 is a defect."""
    return int(sql.read(connection, sql.AUDIT, archived=now - sql.ARCHIVE_MS)[0].broken)


def archive(connection: Connection, now: int) -> None:
    """Drop the holdings of windows that ended long ago; nobody will tell what became of them."""
    ended = [row.id for row in sql.read(connection, sql.ARCHIVED, archived=now - sql.ARCHIVE_MS)]
    if ended:
        ids = sql.as_list(ended)
        sql.run(connection, sql.ARCHIVE_ACCOUNTS, ids=ids)
        sql.run(connection, sql.ARCHIVE_HOLDINGS, ids=ids)


def expire(connection: Connection, now: int) -> None:
    """Drop what is beyond its retention: usage, dimensions that nothing uses any more, windows, workflows, sessions."""
    sql.run(connection, sql.DROP_WORKFLOWS, archived=now - sql.ARCHIVE_MS)
    sql.run(connection, sql.DROP_SESSIONS, before=now - SESSION_MS)
    sql.run(connection, sql.DROP_AUDIT, before=now - RETENTION_MS)
    sql.run(connection, sql.CROWDED_AUDIT, kept=AUDIT_ROWS)
    windows = [row.id for row in sql.read(connection, sql.DROPPED, before=now - RETENTION_MS)]
    for statement in sql.DROP_WINDOWS if windows else ():
        sql.run(connection, statement, ids=sql.as_list(windows))
    deleted = [sql.run(connection, statement, before=now - RETENTION_MS) for statement in sql.EXPIRE]
    if any(deleted):
        sql.run(connection, sql.ORPHANS)
