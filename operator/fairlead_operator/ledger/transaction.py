"""What ``sync`` messages need of the database, read and written in the writer's transaction."""

import logging
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from operator import itemgetter
from typing import Any

import msgspec
from msgspec.structs import astuple
from sqlalchemy import Connection

from fairlead_operator.ledger import escrow, skew, usage
from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.access import Caller
from fairlead_operator.ledger.catalog import Version
from fairlead_operator.ledger.escrow import NOTHING, Account, Place, Row, Session, Terms
from fairlead_operator.ledger.exchange import Entry, Facts, Resolved
from fairlead_operator.ledger.idle import KEY as IDLE
from fairlead_operator.ledger.idle import Idle, idle_of
from fairlead_operator.ledger.places import Resolver, decode_budget
from fairlead_operator.ledger.structs import Frozen, same
from fairlead_router.contract import Ask, LedgerBudget, UsageLine, Window

RECOVERY = "recovery_until"
HIGH_WATER = "clock_high_water"
"""Keys in ``meta``; the first followed by "/" and its name, for one namespace."""
log = logging.getLogger(__name__)


def log_loss(loss: str, begun: bool) -> None:
    """Say in the log that commits seem to be lost."""
    log.error("%s; %s", loss, "nothing is granted for one ttl" if begun else "no recovery begins by it")


class SqlBooks:
    """The books on the database."""

    def __init__(self, connection: Connection, now: int, *, vouched: bool | None = None) -> None:
        self._connection = connection
        self._now = now
        self._vouched = vouched

    def on(self, connection: Connection) -> "SqlBooks":
        """The same in another transaction."""
        return SqlBooks(connection, self._now, vouched=self._vouched)

    def facts(self) -> Facts:
        """What the ledger knows of itself."""
        return facts(self._connection)

    def sessions(self, ids: set[str]) -> dict[str, Session]:
        """The known ones of these sessions, locked."""
        found = sql.read(self._connection, sql.SESSIONS, ids=sql.as_list(ids))
        return {row.id: stored_session(row) for row in found}

    def add_session(self, session: Session) -> None:
        """Insert a session, unless it exists."""
        sql.write(self._connection, sql.ADD_SESSION, [session_row(session)])

    def put_sessions(self, sessions: Iterable[Session]) -> None:
        """Store sessions."""
        sql.write(self._connection, sql.PUT_SESSION, map(session_row, sessions))

    def rows(self, session: str, accounts: Iterable[int] | None) -> dict[Place, Row]:
        """What a session holds of some accounts, or (None) of all."""
        if accounts is None:
            found = sql.read(self._connection, sql.ALL_HOLDINGS, session=session)
        else:
            found = sql.read(self._connection, sql.HOLDINGS, session=session, ids=sql.as_list(accounts))
        return {(account, klass): Row(*totals) for account, klass, *totals in found}

    def rows_of(self, places: set[tuple[str, int]]) -> Iterable[tuple[str, Place, Row]]:
        """What sessions hold of accounts, by pairs of both."""
        found = sql.read_rows(self._connection, sql.HOLDINGS_OF, places)
        return ((session, (account, klass), Row(*totals)) for session, account, klass, *totals in found)

    def resolve(self, asks: tuple[Ask, ...], caller: Caller, facts: Facts, *, at: int, create: bool) -> list[Resolved]:
        """The accounts of asks: ``exchange.Books``."""
        if not asks:
            return []
        trusted = skew.trusted(self._now, high_water=facts.high_water, vouched=self._vouched)
        return Resolver(self._connection, at, create=create, open_windows=trusted).resolve(asks, caller)

    def entries(self, accounts: Iterable[int], facts: Facts) -> dict[int, Entry]:
        """Accounts as they are now, not locked."""
        found = sql.read(self._connection, sql.ACCOUNTS, ids=sql.as_list(accounts))
        if not found:
            return {}
        windows = sql.as_list({row.window_id for row in found})
        scopes = {row.id: _scope(row) for row in sql.read(self._connection, sql.SCOPES, ids=windows)}
        terms: dict[tuple[int, str], Terms] = {}
        return {row[0]: _entry(row, scopes[row[1]], terms, facts, self._now) for row in found if row[1] in scopes}

    def locked(self, accounts: Iterable[int]) -> dict[int, Account]:
        """Accounts, locked until the transaction ends. It must not wait for others afterwards."""
        found = sql.read(self._connection, sql.LOCKED_ACCOUNTS, ids=sql.as_list(accounts))
        return {id_: Account(*books) for id_, *books in found}

    def put_accounts(self, accounts: Iterable[tuple[int, Account]]) -> None:
        """Store accounts that are locked, by number."""
        sql.write_many(self._connection, sql.PUT_ACCOUNT, [(*astuple(account), id_) for id_, account in accounts])

    def move_accounts(self, moved: dict[int, tuple[Account, Account]]) -> bool:
        """Store MOVED of accounts, where it is as it was (the first of two), without waiting for who locked them.

        False: of at least one it is not, or it is locked; the transaction cannot go on then.
        """
        rows = [
            (new.held, new.charged, new.cap_high, id_, old.held, old.charged, old.cap_high)
            for id_, (old, new) in moved.items()
        ]
        if not rows:
            return True
        ids = {"ids": sql.as_list(moved)}
        return sql.MOVE_ACCOUNT.change_at_once(self._connection, rows, sql.FREE_ACCOUNTS, ids) == len(rows)

    def put_rows(self, rows: Iterable[tuple[str, Place, Row]], known: set[tuple[str, Place]]) -> Callable[[], bool]:
        """Store holdings of many sessions: those ``known`` are there, and removed if they are of nothing now.

        The result tells, once the answers have come, whether all of those were there.
        """
        added, kept, gone = [], [], []
        for session, place, row in rows:
            stored = (session, place) in known
            something = not same(row, NOTHING)
            if something and stored:
                kept.append((*astuple(row), session, *place))
            elif something:
                added.append((session, *place, *astuple(row)))
            elif stored:
                gone.append((session, *place))
        sql.write_many(self._connection, sql.ADD_HOLDING, added)
        changed = sql.write_many(self._connection, sql.PUT_HOLDING, kept)
        removed = sql.write_many(self._connection, sql.DELETE_HOLDING, gone)
        return lambda: changed() == len(kept) and removed() == len(gone)

    def numbers(self, lines: Iterable[UsageLine]) -> list[int]:
        """The numbers of the lines' dimensions."""
        return usage.number(self._connection, lines, {})

    def count(self, lines: Collection[UsageLine], numbers: Iterable[int]) -> None:
        """Add usage lines, whose dimensions have these numbers, to the sums."""
        usage.add(self._connection, lines, self._now, numbers)

    def recover(self, scope: str, until: int) -> None:
        """Store until when nothing is granted: ``exchange.Books``. One ledger at a time, whatever the scopes."""
        sql.exclusive(self._connection, RECOVERY)
        key = f"{RECOVERY}/{scope}" if scope else RECOVERY
        sql.write(self._connection, sql.PUT_META, [{"k": key, "v": str(until)}])


_STANDING = itemgetter(*(index for index, name in enumerate(sql.BOOKS) if name not in sql.MOVED))


def only_moved(before: Account, after: Account) -> bool:
    """Whether two states of an account differ in no other columns than sql.MOVED."""
    same_standing: bool = _STANDING(astuple(before)) == _STANDING(astuple(after))
    return same_standing


def stored_session(row: Any) -> Session:
    """A session of its first columns, as they are in its table."""
    id_, pod_uid, pod, seq, seen_ms, state, taken = row[:7]
    return Session(id_, pod_uid, pod, seq, seen_ms, state, bool(taken))


def session_row(session: Session) -> dict[str, Any]:
    """A session as it is stored."""
    return msgspec.structs.asdict(session) | {"taken": int(session.taken)}


class _Scope(Frozen, frozen=True):
    """What the accounts of a window have in common."""

    window: Window
    series: int
    live: bool
    name: str
    budget: LedgerBudget


def _scope(row: Any) -> _Scope:
    live = not row.deleted and row.series_id == row.live_series
    window = Window(id=row.id, start=row.start_ms, end=row.end_ms)
    return _Scope(window, row.series_id, live, f"{row.namespace}/{row.name}" if live else "", decode_budget(row.spec))


def _entry(row: Any, scope: _Scope, terms: dict[tuple[int, str], Terms], facts: Facts, now: int) -> Entry:
    # In the order of sql.ACCOUNTS: taking columns by name would cost as much as all else here together.
    id_, window, namespace, key, *books = row
    group = window, namespace
    if group not in terms:
        terms[group] = terms_at(scope.budget, scope.window, namespace, facts, now, live=scope.live)
    return Entry(
        id_, namespace, key, scope.series, scope.window, scope.name, scope.budget, terms[group], Account(*books)
    )


def terms_at(budget: LedgerBudget, window: Window, namespace: str, facts: Facts, now: int, *, live: bool) -> Terms:
    """The terms of a budget's accounts of a namespace in a window at a time; ``live``: they count for it still."""
    idle = idle_of(facts.idle, budget, namespace, window.id) if budget.idle_namespaces else 0
    return escrow.terms_of(budget, now, live=live, start=window.start, end=window.end, idle=idle)


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
