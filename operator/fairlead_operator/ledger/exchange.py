"""PURE but for its ``Books``: one ``sync`` message from its session to its answer.

The same steps run on the database (``transaction``) and, in tests, on dictionaries.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import filterfalse
from typing import Protocol

from msgspec.structs import replace

from fairlead_operator.ledger import escrow
from fairlead_operator.ledger.access import Caller
from fairlead_operator.ledger.escrow import NOTHING, Account, Demand, Place, Refusal, Row, Session, State, Terms
from fairlead_operator.ledger.statements import ARCHIVE_MS
from fairlead_operator.ledger.structs import Frozen, same
from fairlead_router.contract import (
    AccountAnswer,
    Ask,
    Close,
    Holding,
    LedgerBudget,
    SyncAnswer,
    SyncRequest,
    UsageLine,
    Verdict,
    Window,
)

TTL_MS = 300_000
BUSY_SYNC_MS = 1_000
IDLE_SYNC_MS = 5_000
SHORT_WINDOW_MS = 600_000
SHARES = 8
"""A lease is sized at most at an eighth of what is available for each holder (the routers' sizing rule)."""


class Facts(Frozen, frozen=True):
    """What the ledger knows of itself.

    ``recovery``: until when nothing is granted, for a namespace or ("") for all. ``idle``: cost so far of idle
    replicas, by window and namespace. ``high_water``: the latest time that the ledger's clock is known to have shown.
    """

    epoch: str = ""
    budgets_version: tuple[int, int] = (0, 0)
    recovery: dict[str, int] = {}  # noqa: RUF012 - each record gets its own
    idle: dict[str, int] = {}  # noqa: RUF012 - each record gets its own
    high_water: int = 0


class Entry(Frozen, frozen=True):
    """An account that a message names, with all that a decision on it needs.

    ``name`` is the budget's, and empty if the account counts for none now: routers then let go of it and ask anew.
    """

    id: int
    namespace: str
    key: str
    series: int
    window: Window
    name: str
    budget: LedgerBudget
    terms: Terms
    account: Account


class Resolved(Frozen, frozen=True):
    """An ask and its account; none when the budget does not exist (for this caller) or does not match."""

    ask: Ask
    account: int | None = None
    asked_key: str | None = None


class Books(Protocol):
    """Where sessions, accounts and holdings are kept, for the time of one message."""

    def facts(self) -> Facts:
        """What the ledger knows of itself."""

    def session(self, session: str) -> Session | None:
        """A session, locked until the message is done."""

    def add_session(self, session: Session) -> None:
        """Insert a session, unless it exists."""

    def put_session(self, session: Session) -> None:
        """Store sequence number, time, state and ``taken``."""

    def rows(self, session: str, accounts: Iterable[int] | None) -> dict[Place, Row]:
        """What a session holds of some accounts, or (None) of all."""

    def resolve(self, asks: tuple[Ask, ...], caller: Caller, facts: Facts, *, at: int, create: bool) -> list[Resolved]:
        """The accounts of asks made at a time, in their order; with ``create`` opened where needed."""

    def entries(self, accounts: Iterable[int], facts: Facts) -> dict[int, Entry]:
        """Accounts, locked until the message is done; those that do not exist are left out."""

    def put_accounts(self, accounts: dict[int, Account]) -> None:
        """Store accounts."""

    def put_rows(self, session: str, rows: dict[Place, Row]) -> None:
        """Store holdings; those of nothing are removed."""

    def count(self, lines: tuple[UsageLine, ...]) -> None:
        """Add usage lines to the sums."""

    def recover(self, scope: str, until: int) -> None:
        """Store until when nothing is granted, to a namespace or ("") at all."""


Alarm = Callable[[str, bool], None]
"""Told what shows that commits were lost, and whether recovery began by it."""


Said = tuple[Verdict, int]
"""A verdict, and after how many ms to ask again."""
UNASKED: Said = "None", 0


class Decision(Frozen, frozen=True):
    """Accounts and holdings after a message, and the verdicts on what was asked for, with when to ask again."""

    accounts: dict[int, Account]
    rows: dict[Place, Row]
    verdicts: dict[Place, Said] = {}  # noqa: RUF012 - each record gets its own


Named = dict[Place, set[str | None]]
"""The places that an answer is about, and the keys that were asked for where another one's account is used."""


def patient(message: SyncRequest) -> bool:
    """Whether no request waits for the answer: the message reports, returns and renews."""
    return message.plain and not any(holding.need for holding in message.holdings)


class Exchange:
    """One message of a caller at an instant of the ledger's clock."""

    def __init__(
        self, books: Books, caller: Caller, message: SyncRequest, now: int, *, ttl_ms: int, alarm: Alarm
    ) -> None:
        self._books = books
        self._caller = caller
        self._message = message
        self._now = now
        self._ttl_ms = ttl_ms
        self._alarm = alarm
        self._facts = books.facts()
        self._holdings = message.holdings
        self._retold = message.rewind or message.replay
        told_at = min(now, max(now - ARCHIVE_MS, message.sent_at))
        self._at = told_at if self._retold and message.sent_at else now

    def run(self) -> SyncAnswer | Refusal:
        """Apply the message once, or say why not."""
        message, who = self._message, self._caller.identity
        session = self._session()
        if session is None:
            return self._refuse(Refusal(409, reason="this session is not known here", expected=1))
        decision = escrow.admit(
            session,
            message.seq,
            who.pod_uid,
            who.namespace,
            replay=message.replay,
            now=self._now,
            ttl_ms=self._ttl_ms,
        )
        if isinstance(decision, Refusal):
            return self._refuse(decision)
        if session.state in {"Lost", "Replaying"}:
            self._relabel(session.id, -1)
        heard = replace(
            session,
            seen_ms=self._now,
            state="Replaying" if message.replay else "Open",
            taken=session.taken or message.replay,
        )
        return self._present(heard) if decision == "Duplicate" else self._apply(heard)

    def _refuse(self, refusal: Refusal) -> Refusal:
        if refusal.expected:
            self._recover(f"session {self._message.session} sent message {self._message.seq}: {refusal.reason}")
        return refusal

    def _session(self) -> Session | None:
        """The session; a new one is stored first and then locked, so that two ledgers do not both begin it."""
        id_ = self._message.session
        found = self._books.session(id_)
        if found is not None or self._message.seq != 1:
            return found
        who = self._caller.identity
        self._books.add_session(Session(id_, who.pod_uid, f"{who.namespace}/{who.pod}", 0, self._now))
        return self._books.session(id_)

    def _leave(self, session: Session, state: State, seq: int) -> None:
        """Store the session; what one that is not open holds, and has not accounted for, is unreconciled."""
        self._books.put_session(replace(session, state=state, seq=seq))
        if state == "Replaying" or (state == "Closed" and seq == session.seq):
            self._relabel(session.id, 1)

    def _relabel(self, session: str, sign: int) -> None:
        """Count all that a session holds as unreconciled (1) or as leased again (-1): no money moves."""
        rows = self._books.rows(session, None)
        entries = self._books.entries({account for account, _ in rows}, self._facts)
        accounts = {id_: entry.account for id_, entry in entries.items()}
        for (id_, _klass), row in rows.items():
            if id_ in accounts:
                before = accounts[id_]
                accounts[id_] = replace(before, unreconciled=before.unreconciled + sign * row.out)
        self._books.put_accounts(accounts)

    def _present(self, session: Session) -> SyncAnswer:
        """The answer to a message that was applied before: how everything that the session holds stands now."""
        self._leave(session, session.state, session.seq)  # it lets the router spend on: it must count as heard
        resolved = self._resolve(create=False)
        rows = self._books.rows(session.id, None)
        named = _named(self._holdings, resolved, rows)
        entries = self._books.entries({account for account, _ in named}, self._facts)
        accounts = {id_: entry.account for id_, entry in entries.items()}
        present = {place: keys for place, keys in named.items() if place[0] in entries}
        return self._answer(session.seq, entries, Decision(accounts, rows), present, _unknown(resolved))

    def _apply(self, session: Session) -> SyncAnswer | Refusal:
        message, books = self._message, self._books
        resolved = self._resolve(create=True)
        accounts = {holding.account for holding in self._holdings}
        accounts.update(item.account for item in resolved if item.account is not None)
        rows = books.rows(session.id, None if message.close else accounts)
        accounts.update(account for account, _ in rows)
        entries = books.entries(accounts, self._facts)
        if self._retold:
            self._leave_out(entries)
        named = _named(self._holdings, resolved, rows if message.close else ())
        refusal = self._untouchable(entries, rows)
        if refusal is not None:
            self._leave(session, session.state, session.seq)
            return refusal
        self._look_for_loss(rows)
        try:
            decision = self._decide(entries, rows, resolved)
        except escrow.BooksError as error:
            self._leave(session, "Closed", session.seq)
            return Refusal(422, reason=f"{error}; the session is closed and what it holds stays counted")
        self._store(entries, rows, decision)
        books.count(message.usage)
        self._leave(session, "Closed" if message.close else session.state, message.seq)
        return self._answer(message.seq, entries, decision, named, _unknown(resolved))

    def _resolve(self, *, create: bool) -> list[Resolved]:
        """The accounts of what is asked for. What is told again asked for them when it was first said."""
        message = self._message
        asks = () if message.close and not self._retold else message.asks
        return self._books.resolve(asks, self._caller, self._facts, at=self._at, create=create)

    def _leave_out(self, entries: dict[int, Entry]) -> None:
        """What is told again may be of accounts that a restored ledger does not know: the rest of it still counts."""
        known = tuple(holding for holding in self._holdings if self._is_kept(holding.account, entries))
        if missing := len(self._holdings) - len(known):
            self._holdings = known
            self._alarm(f"session {self._message.session} told {missing} holdings of unknown accounts again", False)

    def _is_kept(self, account: int, entries: dict[int, Entry]) -> bool:
        return account in entries and entries[account].window.end > self._now - ARCHIVE_MS

    def _untouchable(self, entries: dict[int, Entry], rows: dict[Place, Row]) -> Refusal | None:
        """An account that is gone with its window, or that this caller has no business with."""
        if not all(self._is_kept(holding.account, entries) for holding in self._holdings):
            return Refusal(410, reason="WindowArchived")
        if self._caller.trusted:
            return None
        for index, holding in enumerate(self._holdings):
            entry = entries[holding.account]
            if (holding.account, holding.klass) not in rows and not self._caller.covers(entry.budget, entry.namespace):
                return Refusal(403, reason=f"holdings[{index}] is an account of namespace {entry.namespace or 'all'}")
        return None

    # --- recovery

    def _look_for_loss(self, rows: dict[Place, Row]) -> None:
        for holding in self._holdings:
            known = rows.get((holding.account, holding.klass), NOTHING).granted
            if holding.granted > known:
                told = f"session {self._message.session} was granted {holding.granted} of account {holding.account}"
                self._recover(f"{told}, {known} are known here")
                return

    def _recover(self, loss: str) -> None:
        """Commits were lost: nothing is granted for one ttl, in which the routers tell again what they hold.

        Not sooner again than a ttl after the last time, and for the evidence of a router that is not trusted only in
        its own namespace: nobody can stop the ledger for good, and no team can stop it for others.
        """
        scope = "" if self._caller.trusted else self._caller.namespace
        due = self._now >= self._facts.recovery.get(scope, -self._ttl_ms) + self._ttl_ms
        if due:
            until = self._now + self._ttl_ms
            self._books.recover(scope, until)
            self._facts = replace(self._facts, recovery={**self._facts.recovery, scope: until})
        self._alarm(loss, due)

    def _recovering(self, entry: Entry) -> int:
        """For how long nothing of this account is granted yet."""
        recovery = self._facts.recovery
        if not recovery:
            return 0
        return max(0, recovery.get("", 0) - self._now, recovery.get(entry.namespace, 0) - self._now)

    # --- decisions

    def _decide(self, entries: dict[int, Entry], rows: dict[Place, Row], resolved: list[Resolved]) -> Decision:
        """First all that is told, then actions, then grants: what this message returns can be granted in it."""
        accounts = {id_: entry.account for id_, entry in entries.items()}
        after = dict(rows)
        for holding in self._holdings:
            place = holding.account, holding.klass
            told = Row(holding.granted, holding.returned, holding.charged, holding.unbacked, holding.reserved)
            accounts[place[0]], after[place] = escrow.tell(
                accounts[place[0]], after.get(place, NOTHING), told, final=holding.final
            )
        if self._message.close is not None:
            _close(self._message.close, accounts, after)
        for id_, entry in entries.items():
            accounts[id_] = escrow.act(accounts[id_], entry.terms, self._now)
        verdicts = {} if self._retold or self._message.close else self._grant(entries, accounts, after, resolved)
        return Decision(accounts, after, verdicts)

    def _grant(
        self, entries: dict[int, Entry], accounts: dict[int, Account], rows: dict[Place, Row], resolved: list[Resolved]
    ) -> dict[Place, Said]:
        """Decide all demands; Batch, which may wait for what others leave, is served last."""
        verdicts: dict[Place, Said] = {}
        demands = _demands(self._holdings, resolved)
        for place in [*filter(_is_other, demands), *filterfalse(_is_other, demands)]:
            id_, klass = place
            entry = entries[id_]
            if left := self._recovering(entry):
                verdicts[place] = "Recovering", left
                continue
            row = rows.get(place, NOTHING)
            outcome = escrow.grant(accounts[id_], row, demands[place], terms=entry.terms, klass=klass, now=self._now)
            accounts[id_] = outcome.account
            rows[place] = outcome.row
            verdicts[place] = outcome.verdict, outcome.retry_after_ms
        return verdicts

    def _store(self, entries: dict[int, Entry], before: dict[Place, Row], decision: Decision) -> None:
        self._books.put_accounts(
            {id_: account for id_, account in decision.accounts.items() if not same(account, entries[id_].account)}
        )
        changed = {place: row for place, row in decision.rows.items() if not same(row, before.get(place, NOTHING))}
        self._books.put_rows(self._message.session, changed)

    # --- the answer

    def _answer(
        self, seq: int, entries: dict[int, Entry], decision: Decision, named: Named, unknown: tuple[str, ...]
    ) -> SyncAnswer:
        answers = []
        urgent = False
        for place in sorted(named):
            entry, row = entries[place[0]], decision.rows.get(place, NOTHING)
            account = decision.accounts[entry.id]
            most = escrow.cap(entry.terms, account, place[1], self._now)
            urgent = urgent or self._urgent(entry.window, account, row, most)
            keys = named[place]
            answer = self._account(entry, place, decision, row, most)
            answers += [replace(answer, asked_key=key) for key in sorted(keys, key=str)] if keys else [answer]
        return SyncAnswer(
            epoch=self._facts.epoch,
            seq=seq,
            now=self._now,
            ttl_ms=self._ttl_ms,
            sync_after_ms=BUSY_SYNC_MS if urgent else IDLE_SYNC_MS,
            budgets_version=self._facts.budgets_version,
            accounts=tuple(answers),
            unknown_budgets=unknown,
        )

    def _account(self, entry: Entry, place: Place, decision: Decision, row: Row, most: int) -> AccountAnswer:
        klass, terms, account = place[1], entry.terms, decision.accounts[entry.id]
        verdict, retry_after_ms = decision.verdicts.get(place, UNASKED)
        return AccountAnswer(
            account=entry.id,
            klass=klass,
            budget=entry.name,
            series=entry.series,
            namespace=entry.namespace,
            key=entry.key,
            window=entry.window,
            granted=row.granted,
            verdict=verdict,
            recall=escrow.must_return(account, terms, klass, self._now),
            available=max(0, most - account.held),
            holders=account.holders,
            limit=escrow.ceiling(terms, klass),
            used=account.used,
            action=escrow.standing(terms, account),
            active=escrow.active(terms, account.acted),
            pace_per_hour=escrow.pace_per_hour(terms, account),
            retry_after_ms=retry_after_ms,
        )

    def _urgent(self, window: Window, account: Account, row: Row, most: int) -> bool:
        """Whether the session holds free money that others may wait for before it would speak by itself.

        That is so when the account runs low, when the session holds more than a lease would be sized at now, and in
        windows so short that both may come about within seconds: others can then use up the rest while it is idle, and
        their requests wait no longer than two seconds.
        """
        free = row.out - row.reserved
        if free <= 0:
            return False
        over_its_share = free * SHARES * (account.holders + 1) > most - account.held
        short = window.end - window.start <= SHORT_WINDOW_MS
        return short or over_its_share or account.held * 5 >= most * 4 or escrow.recalling(account, self._now)


def _close(close: Close, accounts: dict[int, Account], rows: dict[Place, Row]) -> None:
    unknown = Counter[Place]()
    for item in close.unknown:
        unknown[item.account, item.klass] += item.amount
    for place, row in rows.items():
        if not same(row, NOTHING):
            accounts[place[0]], rows[place] = escrow.close(
                accounts[place[0]], row, complete=close.complete, unknown=unknown[place]
            )


def _named(holdings: Iterable[Holding], resolved: Iterable[Resolved], rows: Iterable[Place]) -> Named:
    named: Named = defaultdict(set)
    for holding in holdings:
        named[holding.account, holding.klass]
    for place in rows:
        named[place]
    for item in resolved:
        if item.account is not None:
            named[item.account, item.ask.klass].add(item.asked_key)
    return named


def _unknown(resolved: Iterable[Resolved]) -> tuple[str, ...]:
    return tuple(sorted({item.ask.budget for item in resolved if item.account is None}))


def _is_other(place: Place) -> bool:
    """Whether it is of the class of all but Batch."""
    return place[1] != escrow.BATCH


def _demands(holdings: Iterable[Holding], resolved: Iterable[Resolved]) -> dict[Place, Demand]:
    """What is asked for by account and class, whether it is held already or not."""
    demands = {
        (line.account, line.klass): Demand(line.want, line.need, line.first)
        for line in holdings
        if line.want or line.need or line.first
    }
    for item in resolved:
        line = item.ask
        if item.account is not None and (line.want or line.need or line.first):
            place, asked = (item.account, line.klass), Demand(line.want, line.need, line.first)
            demands[place] = demands[place].plus(asked) if place in demands else asked
    return demands
