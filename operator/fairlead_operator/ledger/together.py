"""Many ``sync`` messages in one transaction: what they need is loaded once, and what they changed is stored once.

The messages are applied one after the other, each on what those before it left, as if each had a transaction of its
own: SQLite has one writer, and on PostgreSQL sessions and accounts are locked as they are loaded, in the order of
their ids.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace
from sqlalchemy import Connection

from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger import usage
from fairlead_operator.ledger.access import CLASSES, Caller
from fairlead_operator.ledger.escrow import NOTHING, Account, Place, Refusal, Row, Session
from fairlead_operator.ledger.exchange import TTL_MS, Alarm, Entry, Exchange, Facts, Resolved
from fairlead_operator.ledger.transaction import SqlBooks, log_loss, session_row
from fairlead_router.contract import Ask, SyncAnswer, SyncRequest, UsageLine


@dataclass(frozen=True, slots=True)
class Said:
    """A message and who said it. ``vouched``: what the routers' clocks say of the ledger's (``skew``)."""

    caller: Caller
    message: SyncRequest
    vouched: bool | None = None


def sync_all(
    connection: Connection,
    said: Sequence[Said],
    now: int,
    *,
    ttl_ms: int = TTL_MS,
    alarm: Alarm = log_loss,
) -> list[SyncAnswer | Refusal]:
    """Apply messages in their order, each once, or say of each why not."""
    base = SqlBooks(connection, now, vouched=said[-1].vouched)
    if len(said) == 1:
        return [Exchange(base, said[0].caller, said[0].message, now, ttl_ms=ttl_ms, alarm=alarm).run()]
    books = SharedBooks(connection, base, now)
    books.load([item.message for item in said])
    answers = [Exchange(books, item.caller, item.message, now, ttl_ms=ttl_ms, alarm=alarm).run() for item in said]
    books.store()
    return answers


@dataclass(slots=True)
class _Held:
    """What is known of a session's holdings: those of ``accounts``, or all. A row of nothing stands for no row."""

    rows: dict[Place, Row] = field(default_factory=dict)
    accounts: set[int] = field(default_factory=set)
    all: bool = False
    changed: set[Place] = field(default_factory=set)


class SharedBooks:
    """The books of a transaction in memory, between ``load`` and ``store``: ``exchange.Books``."""

    def __init__(self, connection: Connection, base: SqlBooks, now: int) -> None:
        self._connection = connection
        self._base = base
        self._now = now
        self._facts: Facts | None = None
        self._sessions: dict[str, Session | None] = {}
        self._spoke: set[str] = set()
        self._held: dict[str, _Held] = defaultdict(_Held)
        self._entries: dict[int, Entry] = {}
        self._changed: set[int] = set()
        self._lines: list[UsageLine] = []

    def load(self, messages: Sequence[SyncRequest]) -> None:
        """Load what messages name, for all of them at once."""
        ids = {message.session for message in messages}
        self._sessions = dict.fromkeys(ids) | self._base.sessions(ids)
        named = {(message.session, holding.account) for message in messages for holding in message.holdings}
        for session, account in named:
            self._held[session].accounts.add(account)
        for session, place, row in self._base.rows_of(named):
            self._held[session].rows[place] = row
        self._entries = self._base.entries({account for _, account in named}, self.facts())

    def store(self) -> None:
        """Store what changed since it was loaded."""
        sessions = (session for name in sorted(self._spoke) if (session := self._sessions[name]))
        held = sorted(self._held.items())
        with sql.unanswered(self._connection):
            self._base.put_accounts({id_: self._entries[id_].account for id_ in sorted(self._changed)})
            self._base.put_rows_of((name, place, of.rows[place]) for name, of in held for place in sorted(of.changed))
            sql.write(self._connection, sql.PUT_SESSION, map(session_row, sessions))
            usage.add(self._connection, self._lines, self._now)
        for _, of in held:
            of.changed.clear()
        self._spoke.clear()
        self._changed.clear()
        self._lines.clear()

    def facts(self) -> Facts:
        """See Books."""
        if self._facts is None:
            self._facts = self._base.facts()
        return self._facts

    def session(self, session: str) -> Session | None:
        """See Books."""
        return self._sessions[session]

    def add_session(self, session: Session) -> None:
        """See Books. Stored at once: another ledger may have the same message."""
        self._base.add_session(session)
        self._sessions[session.id] = self._base.session(session.id)

    def put_session(self, session: Session) -> None:
        """See Books."""
        self._sessions[session.id] = session
        self._spoke.add(session.id)

    def rows(self, session: str, accounts: Iterable[int] | None) -> dict[Place, Row]:
        """See Books."""
        held = self._held[session]
        if accounts is None:
            if not held.all:
                held.rows = self._base.rows(session, None) | held.rows
                held.all = True
            return {place: row for place, row in held.rows.items() if row != NOTHING}
        wanted = set(accounts)
        if not held.all and (missing := wanted - held.accounts):
            held.rows |= self._base.rows(session, missing)
            held.accounts |= missing
        rows = held.rows
        places = ((account, klass) for account in wanted for klass in CLASSES)
        return {place: rows[place] for place in places if rows.get(place, NOTHING) != NOTHING}

    def resolve(self, asks: tuple[Ask, ...], caller: Caller, facts: Facts, *, at: int, create: bool) -> list[Resolved]:
        """See Books."""
        return self._base.resolve(asks, caller, facts, at=at, create=create)

    def entries(self, accounts: Iterable[int], facts: Facts) -> dict[int, Entry]:
        """See Books."""
        wanted = set(accounts)
        if missing := wanted - self._entries.keys():
            self._entries |= self._base.entries(missing, facts)
        return {id_: self._entries[id_] for id_ in wanted if id_ in self._entries}

    def put_accounts(self, accounts: dict[int, Account]) -> None:
        """See Books."""
        for id_, account in accounts.items():
            self._entries[id_] = replace(self._entries[id_], account=account)
        self._changed.update(accounts)

    def put_rows(self, session: str, rows: dict[Place, Row]) -> None:
        """See Books."""
        held = self._held[session]
        held.rows |= rows
        held.changed |= rows.keys()

    def relabel(self, session: str, sign: int) -> None:
        """See Books. It works on what is stored, and rarely comes: all is stored first, and loaded anew."""
        self.store()
        self._base.relabel(session, sign)
        self._entries.clear()

    def count(self, lines: tuple[UsageLine, ...]) -> None:
        """See Books."""
        self._lines.extend(lines)

    def recover(self, scope: str, until: int) -> None:
        """See Books."""
        self._base.recover(scope, until)
        self._facts = None
