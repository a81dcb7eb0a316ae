"""``sync`` messages in one transaction where other ledgers write as well: loaded once, decided, and stored once.

The messages are applied one after the other, each on what those before it left, as if each had a transaction of its
own. Sessions are locked when they are loaded, but accounts only when they are stored, all of them at once and in one
order: nobody waits in a circle, and accounts that many use are held for the time of the writes and not of the
decisions. What transactions wait for comes in this order: sessions, windows, counts of keys, new accounts, recoveries,
dimensions, accounts, usage. Accounts that a session has for itself come last of all, and are not waited for. What
others did to an account since it was loaded is added to what was decided; where the decision might have been another
one then, all is undone and decided again on locked accounts.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace
from sqlalchemy import Connection

from fairlead_operator.ledger import escrow
from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.access import CLASSES, Caller
from fairlead_operator.ledger.escrow import NOTHING, Account, Place, Refusal, Row, Session, Terms
from fairlead_operator.ledger.exchange import TTL_MS, Alarm, Entry, Exchange, Facts, Resolved
from fairlead_operator.ledger.kept import KeptBooks
from fairlead_operator.ledger.remembered import Held, memory_of
from fairlead_operator.ledger.store import AgainError
from fairlead_operator.ledger.structs import same
from fairlead_operator.ledger.transaction import RECOVERY, SqlBooks, log_loss, only_moved
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
    """Apply messages in their order, each once, or say of each why not. Raises AgainError, having changed nothing."""
    books: SharedBooks | KeptBooks
    if sql.shared(connection):
        books = SharedBooks(connection, SqlBooks(connection, now, vouched=said[-1].vouched), now)
        books.load([item.message for item in said])
    else:
        books = KeptBooks(connection, now, vouched=said[-1].vouched)
    answers = [Exchange(books, item.caller, item.message, now, ttl_ms=ttl_ms, alarm=alarm).run() for item in said]
    books.store()
    return answers


class SharedBooks:
    """The books of a transaction in memory, between ``load`` and ``store``: ``exchange.Books``."""

    def __init__(self, connection: Connection, base: SqlBooks, now: int) -> None:
        self._connection = connection
        self._base = base
        self._now = now
        self._facts: Facts | None = None
        self._sessions: dict[str, Session | None] = {}
        self._spoke: set[str] = set()
        self._memory = memory_of(connection)
        self._held: dict[str, Held] = defaultdict(Held)
        self._entries: dict[int, Entry] = {}
        self._loaded: dict[int, Account] = {}
        """The changed accounts as they were loaded."""
        self._peaks: dict[int, int] = {}
        """The most that was held of them after a message."""
        self._asked: list[tuple[tuple[Ask, ...], Caller, int]] = []
        """What accounts may have been opened for."""
        self._lines: list[UsageLine] = []
        self._recovered = False

    def load(self, messages: Sequence[SyncRequest]) -> None:
        """Load what messages name, for all of them at once."""
        ids = {message.session for message in messages}
        self._sessions = dict.fromkeys(ids) | self._base.sessions(ids)
        for id_, session in self._sessions.items():
            if held := self._memory.take(id_, session):
                self._held[id_] = held
        wanted: set[int] = set()
        unknown: set[tuple[str, int]] = set()
        for message in messages:
            accounts = {holding.account for holding in message.holdings}
            wanted |= accounts
            held = self._held[message.session]
            unknown.update((message.session, account) for account in accounts - held.accounts)
            held.accounts |= accounts
        for name, place, row in self._base.rows_of(unknown):
            self._held[name].add({place: row})
        self._entries = self._base.entries(wanted, self.facts())

    def store(self) -> None:
        """Store what changed since it was loaded. Raises AgainError."""
        held = sorted(self._held.items())
        with sql.unanswered(self._connection):
            found = self._base.put_rows(
                ((name, place, of.rows[place]) for name, of in held for place in sorted(of.changed)),
                {(name, place) for name, of in held for place in of.stored & of.changed},
            )
            self._base.put_sessions(session for name in sorted(self._spoke) if (session := self._sessions[name]))
            numbers = self._base.numbers(self._lines)
        if not found():
            raise self._again()
        alone, common = self._parted()
        with sql.unanswered(self._connection):
            self._base.put_accounts(self._locked(common))
            self._base.count(self._lines, numbers)
        if not self._base.move_accounts(alone):
            raise self._again()
        for name, of in held:
            if session := self._sessions[name]:
                of.written()
                self._memory.leave(session, of)

    def _parted(self) -> tuple[dict[int, tuple[Account, Account]], list[int]]:
        """The changed accounts: those without other holders, before and after, and those that must be locked first.

        Those without are changed without waiting for them. All must be locked first where one of them is changed in
        such a way that others would have to decide anew.
        """
        changed = {id_: (loaded, self._entries[id_].account) for id_, loaded in sorted(self._loaded.items())}
        alone = {id_: pair for id_, pair in changed.items() if pair[0].holders <= 1}
        if not all(only_moved(loaded, decided) for loaded, decided in alone.values()):
            alone = {}
        return alone, [id_ for id_ in changed if id_ not in alone]

    def _locked(self, ids: list[int]) -> list[tuple[int, Account]]:
        """Changed accounts with what others changed of them, who cannot any more. Raises AgainError."""
        stored = self._base.locked(ids) if ids else {}
        made = []
        for id_ in ids:
            entry, found = self._entries[id_], stored.get(id_)
            peak, terms, loaded = self._peaks[id_], entry.terms, self._loaded[id_]
            on = on_top(entry.account, loaded, found, peak=peak, terms=terms, now=self._now) if found else None
            if on is None:
                raise self._again()
            made.append((id_, on))
        return made

    def _again(self) -> AgainError:
        return AgainError(partial(self._first, sessions=set(self._sessions), accounts=set(self._entries)))

    def _first(self, connection: Connection, *, sessions: set[str], accounts: set[int]) -> None:
        """Lock, before all is done again, what it will need, in the order of locks: nobody else can change it then."""
        base = self._base.on(connection)
        base.sessions(sessions)
        for asks, caller, at in self._asked:
            base.resolve(asks, caller, base.facts(), at=at, create=True)
        if self._recovered:
            sql.exclusive(connection, RECOVERY)
        base.numbers(self._lines)
        base.locked(accounts)

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
        self._sessions |= self._base.sessions({session.id})

    def put_session(self, session: Session) -> None:
        """See Books."""
        self._sessions[session.id] = session
        self._spoke.add(session.id)

    def rows(self, session: str, accounts: Iterable[int] | None) -> dict[Place, Row]:
        """See Books."""
        held = self._held[session]
        if accounts is None:
            if not held.all:
                held.replace(self._base.rows(session, None))
            return {place: row for place, row in held.rows.items() if not same(row, NOTHING)}
        wanted = set(accounts)
        if not held.all and (missing := wanted - held.accounts):
            held.add(self._base.rows(session, missing))
            held.accounts |= missing
        rows = held.rows
        places = ((account, klass) for account in wanted for klass in CLASSES)
        return {place: rows[place] for place in places if not same(rows.get(place, NOTHING), NOTHING)}

    def resolve(self, asks: tuple[Ask, ...], caller: Caller, facts: Facts, *, at: int, create: bool) -> list[Resolved]:
        """See Books."""
        if asks and create:
            self._asked.append((asks, caller, at))
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
            entry = self._entries[id_]
            self._loaded.setdefault(id_, entry.account)
            self._peaks[id_] = max(self._peaks.get(id_, 0), account.held)
            self._entries[id_] = replace(entry, account=account)

    def put_rows(self, session: str, rows: dict[Place, Row]) -> None:
        """See Books."""
        self._held[session].put(rows)

    def count(self, lines: tuple[UsageLine, ...]) -> None:
        """See Books."""
        self._lines.extend(lines)

    def recover(self, scope: str, until: int) -> None:
        """See Books."""
        self._base.recover(scope, until)
        self._facts = None
        self._recovered = True


def on_top(decided: Account, loaded: Account, stored: Account, *, peak: int, terms: Terms, now: int) -> Account | None:
    """What was decided on ``loaded``, made of what others have ``stored`` since; None where it may not stand on that.

    Sums take what was added to them. It stands if every grant would still have been within every class's cap (``peak``
    is the most that was held when one was made), and if neither side found a reason to refuse, to recall or to act.
    """
    if same(stored, loaded):
        return decided
    before, after = loaded.held, stored.held
    made = replace(
        stored,
        held=after + decided.held - before,
        charged=stored.charged + decided.charged - loaded.charged,
        unbacked=stored.unbacked + decided.unbacked - loaded.unbacked,
        unreconciled=stored.unreconciled + decided.unreconciled - loaded.unreconciled,
        holders=stored.holders + decided.holders - loaded.holders,
        cap_high=max(stored.cap_high, decided.cap_high),
    )
    most = min(escrow.cap(terms, made, klass, now) for klass in CLASSES)
    fits = after <= before or peak + after - before <= most
    calm = _moods(decided) == _moods(loaded) == _moods(stored)
    return made if fits and calm and same(escrow.act(made, terms, now), made) else None


def _moods(account: Account) -> tuple[int | None, ...]:
    """All but the sums."""
    return account.recall_until, account.refused_ms, account.acted, account.pace_from, account.pace_base
