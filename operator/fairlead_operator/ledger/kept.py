"""The books of a database that one process writes: what a transaction read or wrote stays in memory for the next one.

Everything is written as it would be without; only reading is saved, which is a third of a large message. What is in
memory is believed only if the database shows that it is what the last transaction left there: nobody else changed a
row, on this connection or another one, and that transaction was committed. Anything else, such as upkeep or new
budgets, and memory begins anew.
"""

from collections.abc import Iterable
from typing import Any

from msgspec.structs import astuple, replace
from sqlalchemy import Connection

from fairlead_operator.ledger import sqlite, usage
from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.access import CLASSES, Caller
from fairlead_operator.ledger.escrow import NOTHING, Account, Place, Row, Session, Terms
from fairlead_operator.ledger.exchange import Entry, Facts, Resolved
from fairlead_operator.ledger.structs import same
from fairlead_operator.ledger.transaction import SqlBooks, terms_at
from fairlead_router.contract import Ask, UsageLine

MOST = 200_000
"""Holdings, accounts or dimensions in memory; with more of them, it begins anew."""
_KEY = "kept"
_VERSION = "PRAGMA data_version"


class Memory:
    """What the database holds, in parts: sessions, all holdings of some, accounts, numbers of dimensions."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.rows: dict[str, dict[Place, Row]] = {}
        self.entries: dict[int, Entry] = {}
        self.terms: dict[tuple[int, str], Terms] = {}
        self.ids: usage.Ids = {}
        self.holdings: int = 0
        self.stamp: Session | None = None
        """A session as the last transaction stored it: it was committed if it is there."""
        self.changes: int = 0
        self.version: int = 0

    def full(self) -> bool:
        """Whether it has grown too large."""
        return max(self.holdings, len(self.entries), len(self.ids), len(self.sessions)) > MOST


def recall(connection: Connection, base: SqlBooks) -> Memory:
    """What the last transaction left in memory, if that is what the database holds; else nothing.

    It is taken out of its place until ``keep``: a transaction that fails leaves nothing.
    """
    memory: Memory | None = connection.info.pop(_KEY, None)
    if memory is None or memory.stamp is None or (memory.changes, memory.version) != _counts(connection):
        return Memory()
    stamp = memory.stamp
    return memory if same(base.sessions({stamp.id}).get(stamp.id), stamp) else Memory()


def keep(connection: Connection, memory: Memory) -> None:
    """Leave memory to the next transaction, unless it has grown too large."""
    if not memory.full():
        memory.changes, memory.version = _counts(connection)
        connection.info[_KEY] = memory


def _counts(connection: Connection) -> tuple[int, int]:
    """Rows that this connection has changed, and a number that changes when another one commits."""
    driver: Any = sqlite.raw(connection)
    return driver.total_changes, driver.execute(_VERSION).fetchone()[0]


class KeptBooks:
    """The books for the messages of one transaction: ``exchange.Books``. ``store`` comes last."""

    def __init__(self, connection: Connection, now: int, *, vouched: bool | None) -> None:
        self._connection = connection
        self._now = now
        self._base = SqlBooks(connection, now, vouched=vouched)
        self._memory = recall(connection, self._base)
        self._facts: Facts | None = None
        self._terms: dict[tuple[int, str], Terms] = {}
        self._spoke: dict[str, int] = {}
        """The sessions to store, and the sequence number that is stored."""
        self._accounts: set[int] = set()
        """The changed ones."""
        self._rows: dict[tuple[str, int, int], Row] = {}
        self._lines: list[UsageLine] = []

    def store(self) -> None:
        """Store what was put, and leave the books in memory."""
        memory, base, connection = self._memory, self._base, self._connection
        base.put_accounts((id_, memory.entries[id_].account) for id_ in sorted(self._accounts))
        rows = sorted(self._rows.items())
        sql.write_many(
            connection, sql.UPSERT_HOLDING, [(*at, *astuple(row)) for at, row in rows if not same(row, NOTHING)]
        )
        sql.write_many(connection, sql.DELETE_HOLDING, [at for at, row in rows if same(row, NOTHING)])
        base.put_sessions(memory.sessions[id_] for id_ in sorted(self._spoke))
        usage.add(connection, self._lines, self._now, usage.number(connection, self._lines, memory.ids))
        moved = [memory.sessions[id_] for id_, seq in self._spoke.items() if memory.sessions[id_].seq != seq]
        if moved or not self._spoke:
            memory.stamp = moved[0] if moved else memory.stamp
            keep(connection, memory)

    def facts(self) -> Facts:
        """See Books."""
        if self._facts is None:
            self._facts = self._base.facts()
        return self._facts

    def session(self, session: str) -> Session | None:
        """See Books."""
        sessions = self._memory.sessions
        if session not in sessions:
            sessions |= self._base.sessions({session})
        return sessions.get(session)

    def add_session(self, session: Session) -> None:
        """See Books."""
        self._base.add_session(session)

    def put_session(self, session: Session) -> None:
        """See Books."""
        sessions = self._memory.sessions
        self._spoke.setdefault(session.id, sessions[session.id].seq)
        sessions[session.id] = session

    def rows(self, session: str, accounts: Iterable[int] | None) -> dict[Place, Row]:
        """See Books."""
        held = self._held(session)
        if accounts is None:
            return dict(held)
        places = [(account, klass) for account in accounts for klass in CLASSES]
        return {place: held[place] for place in places if place in held}

    def _held(self, session: str) -> dict[Place, Row]:
        memory = self._memory
        held = memory.rows.get(session)
        if held is None:
            held = memory.rows[session] = self._base.rows(session, None)
            memory.holdings += len(held)
        return held

    def resolve(self, asks: tuple[Ask, ...], caller: Caller, facts: Facts, *, at: int, create: bool) -> list[Resolved]:
        """See Books."""
        return self._base.resolve(asks, caller, facts, at=at, create=create)

    def entries(self, accounts: Iterable[int], facts: Facts) -> dict[int, Entry]:
        """See Books."""
        wanted, known = set(accounts), self._memory.entries
        if missing := wanted - known.keys():
            known |= self._base.entries(missing, facts)
        found: dict[int, Entry] = {}
        for id_ in wanted:
            entry = known.get(id_)
            if entry is not None:
                terms = self._terms_of(entry, facts)
                if terms is not entry.terms:
                    entry = known[id_] = replace(entry, terms=terms)
                found[id_] = entry
        return found

    def _terms_of(self, entry: Entry, facts: Facts) -> Terms:
        """The terms now; the same object for as long as they are the same."""
        group = entry.window.id, entry.namespace
        terms = self._terms.get(group)
        if terms is None:
            before = self._memory.terms.get(group)
            live = bool(entry.name)
            terms = terms_at(entry.budget, entry.window, entry.namespace, facts, self._now, live=live)
            if before is not None and same(terms, before):
                terms = before
            self._terms[group] = self._memory.terms[group] = terms
        return terms

    def put_accounts(self, accounts: dict[int, Account]) -> None:
        """See Books."""
        entries = self._memory.entries
        for id_, account in accounts.items():
            entries[id_] = replace(entries[id_], account=account)
        self._accounts.update(accounts)

    def put_rows(self, session: str, rows: dict[Place, Row]) -> None:
        """See Books."""
        held, changed = self._held(session), self._rows
        before = len(held)
        for place, row in rows.items():
            changed[session, place[0], place[1]] = row
            if same(row, NOTHING):
                held.pop(place, None)
            else:
                held[place] = row
        self._memory.holdings += len(held) - before

    def count(self, lines: tuple[UsageLine, ...]) -> None:
        """See Books."""
        self._lines.extend(lines)

    def recover(self, scope: str, until: int) -> None:
        """See Books."""
        self._base.recover(scope, until)
        self._facts = None
