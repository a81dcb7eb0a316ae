"""One ``sync`` message on the database, in the writer's transaction: what ``exchange`` needs to load and to store."""

import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy import Connection

from fairlead_operator.ledger import escrow, skew, usage
from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.access import Caller
from fairlead_operator.ledger.catalog import Version
from fairlead_operator.ledger.escrow import NOTHING, Account, Place, Refusal, Row, Session, Terms
from fairlead_operator.ledger.exchange import TTL_MS, Alarm, Entry, Exchange, Facts, Resolved
from fairlead_operator.ledger.idle import KEY as IDLE
from fairlead_operator.ledger.idle import Idle, idle_of
from fairlead_operator.ledger.places import Resolver, decode_budget
from fairlead_router.contract import Ask, SyncAnswer, SyncRequest, UsageLine, Window

RECOVERY = "recovery_until"
HIGH_WATER = "clock_high_water"
"""Keys in ``meta``; the first followed by "/" and its name, for one namespace."""
log = logging.getLogger(__name__)


def log_loss(loss: str, begun: bool) -> None:
    """Say in the log that commits seem to be lost."""
    log.error("%s; %s", loss, "nothing is granted for one ttl" if begun else "no recovery begins by it")


def sync(
    connection: Connection,
    caller: Caller,
    message: SyncRequest,
    now: int,
    *,
    ttl_ms: int = TTL_MS,
    vouched: bool | None = None,
    alarm: Alarm = log_loss,
) -> SyncAnswer | Refusal:
    """Apply one message once, or say why not. ``vouched``: what the routers' clocks say of the ledger's (``skew``)."""
    books = SqlBooks(connection, now, vouched=vouched)
    return Exchange(books, caller, message, now, ttl_ms=ttl_ms, alarm=alarm).run()


class SqlBooks:
    """The books on the database, for one message: ``exchange.Books``."""

    def __init__(self, connection: Connection, now: int, *, vouched: bool | None = None) -> None:
        self._connection = connection
        self._now = now
        self._vouched = vouched

    def facts(self) -> Facts:
        """See Books."""
        return facts(self._connection)

    def session(self, session: str) -> Session | None:
        """See Books."""
        rows = sql.read(self._connection, sql.SESSION, id=session)
        return stored_session(rows[0]) if rows else None

    def sessions(self, ids: set[str]) -> dict[str, Session]:
        """The known ones of these sessions."""
        found = sql.read(self._connection, sql.SESSIONS, ids=sql.as_list(ids))
        return {row.id: stored_session(row) for row in found}

    def add_session(self, session: Session) -> None:
        """See Books."""
        sql.write(self._connection, sql.ADD_SESSION, [session_row(session)])

    def put_session(self, session: Session) -> None:
        """See Books."""
        sql.write(self._connection, sql.PUT_SESSION, [session_row(session)])

    def rows(self, session: str, accounts: Iterable[int] | None) -> dict[Place, Row]:
        """See Books."""
        if accounts is None:
            found = sql.read(self._connection, sql.ALL_HOLDINGS, session=session)
        else:
            found = sql.read(self._connection, sql.HOLDINGS, session=session, ids=sql.as_list(accounts))
        return {(account, klass): Row(*totals) for account, klass, *totals in found}

    def rows_of(self, places: set[tuple[str, int]]) -> Iterable[tuple[str, Place, Row]]:
        """What sessions hold of accounts, by pairs of both."""
        found = sql.read(self._connection, sql.HOLDINGS_OF, rows=sql.as_list(places))
        return ((session, (account, klass), Row(*totals)) for session, account, klass, *totals in found)

    def resolve(self, asks: tuple[Ask, ...], caller: Caller, facts: Facts, *, at: int, create: bool) -> list[Resolved]:
        """See Books."""
        if not asks:
            return []
        trusted = skew.trusted(self._now, high_water=facts.high_water, vouched=self._vouched)
        return Resolver(self._connection, at, create=create, open_windows=trusted).resolve(asks, caller)

    def entries(self, accounts: Iterable[int], facts: Facts) -> dict[int, Entry]:
        """See Books."""
        terms: dict[tuple[int, str], Terms] = {}
        found = sql.read(self._connection, sql.ACCOUNTS, ids=sql.as_list(accounts))
        return {row[0]: _entry(row, terms, facts, self._now) for row in found}

    def put_accounts(self, accounts: dict[int, Account]) -> None:
        """See Books."""
        rows = ({"account": id_, **msgspec.structs.asdict(account)} for id_, account in accounts.items())
        sql.write(self._connection, sql.PUT_ACCOUNT, rows)

    def put_rows(self, session: str, rows: dict[Place, Row]) -> None:
        """See Books."""
        kept = (
            {"session_id": session, "account_id": account, "class": klass, **msgspec.structs.asdict(row)}
            for (account, klass), row in rows.items()
            if row != NOTHING
        )
        sql.write(self._connection, sql.PUT_HOLDING, kept)
        gone = (
            {"session": session, "account": account, "class": klass}
            for (account, klass), row in rows.items()
            if row == NOTHING
        )
        sql.write(self._connection, sql.DELETE_HOLDING, gone)

    def relabel(self, session: str, sign: int) -> None:
        """See Books."""
        relabel(self._connection, session, sign=sign)

    def count(self, lines: tuple[UsageLine, ...]) -> None:
        """See Books."""
        usage.add(self._connection, lines, self._now)

    def recover(self, scope: str, until: int) -> None:
        """See Books."""
        key = f"{RECOVERY}/{scope}" if scope else RECOVERY
        sql.write(self._connection, sql.PUT_META, [{"k": key, "v": str(until)}])


def stored_session(row: Any) -> Session:
    """A session of its first columns, as they are in its table."""
    id_, pod_uid, pod, seq, seen_ms, state, taken = row[:7]
    return Session(id_, pod_uid, pod, seq, seen_ms, state, bool(taken))


def session_row(session: Session) -> dict[str, Any]:
    """A session as it is stored."""
    return msgspec.structs.asdict(session) | {"taken": int(session.taken)}


def _entry(row: Any, terms: dict[tuple[int, str], Terms], facts: Facts, now: int) -> Entry:
    # In the order of sql.ACCOUNTS: taking columns by name would cost as much as all else here together.
    id_, namespace, key, *books, window, start, end, series, live_series, deleted, spec, home, name = row
    budget = decode_budget(spec)
    live = not deleted and series == live_series
    group = window, namespace
    if group not in terms:
        idle = idle_of(facts.idle, budget, namespace, window) if budget.idle_namespaces else 0
        terms[group] = escrow.terms_of(budget, now, live=live, start=start, end=end, idle=idle)
    return Entry(
        id_,
        namespace,
        key,
        series,
        Window(id=window, start=start, end=end),
        f"{home}/{name}" if live else "",
        budget,
        terms[group],
        Account(*books),
    )


def facts(connection: Connection) -> Facts:
    """What the ledger's database knows of itself."""
    return _facts(tuple(sorted((row[0], row[1]) for row in sql.read(connection, sql.ALL_META))))


@lru_cache(maxsize=16)
def _facts(rows: tuple[tuple[str, str], ...]) -> Facts:
    """The facts in ``meta``; the same few rows are read over and over."""
    meta = dict(rows)
    return Facts(
        epoch=meta.get("epoch", ""),
        budgets_version=msgspec.json.decode(meta.get("budgets_version", "[0,0]"), type=Version),
        recovery={k.partition("/")[2]: int(v) for k, v in rows if k == RECOVERY or k.startswith(f"{RECOVERY}/")},
        idle=msgspec.json.decode(meta.get(IDLE, "{}"), type=Idle),
        high_water=int(meta.get(HIGH_WATER, 0)),
    )


def put_high_water(connection: Connection, now: int) -> None:
    """Keep the time that a clock worth trusting shows."""
    sql.write(connection, sql.PUT_META, [{"k": HIGH_WATER, "v": str(now)}])


def relabel(connection: Connection, session: str, *, sign: int) -> None:
    """Count what a session holds as unreconciled (1) or as leased again (-1)."""
    sql.write(connection, sql.RELABEL, [{"session": session, "sign": sign}])
