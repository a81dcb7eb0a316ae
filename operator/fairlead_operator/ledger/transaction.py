"""One ``sync`` message on the database: load, decide (``escrow``), store, answer. Runs in the writer's transaction."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection

from fairlead_operator.ledger import escrow, usage
from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.access import Caller
from fairlead_operator.ledger.catalog import budgets_version
from fairlead_operator.ledger.escrow import Account, Demand, Outcome, Refusal, Report, Row, Session
from fairlead_operator.ledger.places import Resolved, Resolver, decode_budget
from fairlead_router.contract import AccountAnswer, Holding, LedgerBudget, SyncAnswer, SyncRequest, Window

TTL_MS = 300_000
BUSY_SYNC_MS = 1_000
IDLE_SYNC_MS = 5_000
SHARES = 8
"""A lease is sized at most at an eighth of what is available for each holder (the routers' sizing rule)."""


@dataclass(frozen=True, slots=True)
class Entry:
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
    account: Account
    row: Row | None
    cap: int


@dataclass(frozen=True, slots=True)
class Sync:
    """One message of a caller at an instant of the ledger's clock."""

    connection: Connection
    caller: Caller
    message: SyncRequest
    now: int
    epoch: str
    ttl_ms: int = TTL_MS

    def run(self) -> SyncAnswer | Refusal:
        """Apply the message once, or say why not."""
        session = load_session(self.connection, self.message.session)
        pod_uid = self.caller.identity.pod_uid
        decision = escrow.admit(
            session, self.message.seq, pod_uid, replay=self.message.replay, now=self.now, ttl_ms=self.ttl_ms
        )
        if isinstance(decision, Refusal):
            return decision
        if session is not None and session.state == "Lost":
            self._heal(session)
        if session is not None and decision == "Duplicate":
            return self._present(session)
        return self._apply(session)

    def _heal(self, session: Session) -> None:
        """The session lives after all: what it holds is leased again. No money moves."""
        relabel(self.connection, session.id, sign=-1)
        self._store_session(session.seq, "Open")

    def _store_session(self, seq: int, state: escrow.State) -> None:
        identity = self.caller.identity
        row = {"id": self.message.session, "pod_uid": identity.pod_uid, "pod": f"{identity.namespace}/{identity.pod}"}
        sql.write(self.connection, sql.PUT_SESSION, [row | {"seq": seq, "seen_ms": self.now, "state": state}])

    def _present(self, session: Session) -> SyncAnswer:
        """The answer to a message that was applied before: how everything that the session holds stands now."""
        self._store_session(session.seq, "Open")  # the answer lets the router spend on: it must count as heard
        resolved = Resolver(self.connection, self.now, create=False).resolve(self.message.asks, self.caller)
        rows = load_rows(self.connection, session.id, None)
        ids = rows.keys() | named(self.message.holdings, resolved)
        entries = self._entries(ids, rows)
        outcomes = {entry.id: Outcome(entry.account, entry.row) for entry in entries.values()}
        return self._answer(session.seq, entries, outcomes, resolved)

    def _apply(self, session: Session | None) -> SyncAnswer | Refusal:
        asks = () if self.message.rewind or self.message.close else self.message.asks
        resolved = Resolver(self.connection, self.now, create=True).resolve(asks, self.caller)
        ids = named(self.message.holdings, resolved)
        rows = load_rows(self.connection, self.message.session, None if self.message.close else ids)
        entries = self._entries(ids | rows.keys(), rows)
        refusal = self._untouchable(ids, entries)
        if refusal is not None:
            return refusal
        try:
            outcomes = decide(self.message, entries, resolved, self.now)
        except escrow.BooksError as error:
            return self._quarantine(session, error)
        self._store(entries, outcomes)
        return self._answer(self.message.seq, entries, outcomes, resolved)

    def _entries(self, ids: Iterable[int], rows: dict[int, Row]) -> dict[int, Entry]:
        found = sql.read(self.connection, sql.ACCOUNTS, ids=sql.as_list(ids))
        return {row.id: _entry(row, rows.get(row.id), self.now) for row in found}

    def _untouchable(self, ids: set[int], entries: dict[int, Entry]) -> Refusal | None:
        """An account that is gone with its window, or that this caller has no business with."""
        archived = self.now - sql.ARCHIVE_MS
        if any(id_ not in entries or entries[id_].window.end <= archived for id_ in ids):
            return Refusal(410, reason="WindowArchived")
        for index, holding in enumerate(self.message.holdings):
            entry = entries[holding.account]
            if entry.row is None and not self.caller.covers(entry.budget, entry.namespace):
                return Refusal(403, reason=f"holdings[{index}] is an account of namespace {entry.namespace or 'all'}")
        return None

    def _quarantine(self, session: Session | None, error: escrow.BooksError) -> Refusal:
        """A session whose books do not add up is closed; everything it holds stays counted."""
        self._store_session(session.seq if session else 0, "Closed")
        relabel(self.connection, self.message.session, sign=1)
        return Refusal(422, reason=f"{error}; the session is closed and what it holds stays counted")

    def _store(self, entries: dict[int, Entry], outcomes: dict[int, Outcome]) -> None:
        changed = [(entries[id_], outcome) for id_, outcome in sorted(outcomes.items())]
        sql.write(
            self.connection,
            sql.PUT_ACCOUNT,
            ({"account": e.id, **msgspec.structs.asdict(o.account)} for e, o in changed if o.account != e.account),
        )
        kept = [(e, o.row) for e, o in changed if o.row is not None and o.row != e.row]
        base = {"session_id": self.message.session, "class": 1}
        sql.write(
            self.connection,
            sql.PUT_HOLDING,
            ({**base, "account_id": e.id, **msgspec.structs.asdict(row)} for e, row in kept),
        )
        gone = [e.id for e, o in changed if o.row is None and e.row is not None]
        sql.write(
            self.connection, sql.DELETE_HOLDING, ({"session": self.message.session, "account": id_} for id_ in gone)
        )
        usage.add(self.connection, self.message.usage, self.now)
        self._store_session(self.message.seq, "Closed" if self.message.close else "Open")

    def _answer(
        self, seq: int, entries: dict[int, Entry], outcomes: dict[int, Outcome], resolved: list[Resolved]
    ) -> SyncAnswer:
        asked: dict[int, set[str | None]] = defaultdict(set)
        for item in resolved:
            if item.account is not None:
                asked[item.account].add(item.asked_key)
        urgent = any(_urgent(entries[id_], outcome, self.now) for id_, outcome in outcomes.items())
        answers = (
            _account_answer(entries[id_], outcomes[id_], key, self.now)
            for id_ in sorted(outcomes)
            for key in sorted(asked[id_] or {None}, key=str)
        )
        return SyncAnswer(
            epoch=self.epoch,
            seq=seq,
            now=self.now,
            ttl_ms=self.ttl_ms,
            sync_after_ms=BUSY_SYNC_MS if urgent else IDLE_SYNC_MS,
            budgets_version=budgets_version(self.connection),
            accounts=tuple(answers),
            unknown_budgets=tuple(sorted({item.ask.budget for item in resolved if item.account is None})),
        )


def decide(message: SyncRequest, entries: dict[int, Entry], resolved: list[Resolved], now: int) -> dict[int, Outcome]:
    """The outcome of a message for each account that it names, or that a closing session holds."""
    holdings = {holding.account: holding for holding in message.holdings}
    demands = {} if message.rewind or message.close else _demands(message.holdings, resolved)
    unknown = Counter[int]()
    for item in message.close.unknown if message.close else ():
        unknown[item.account] += item.amount
    outcomes = {}
    for id_, entry in entries.items():
        report = _report(holdings[id_]) if id_ in holdings else None
        demand = demands.get(id_, Demand())
        outcome = escrow.step(entry.account, entry.row, report, demand, cap=entry.cap, now=now)
        if message.close and outcome.row:
            complete = message.close.complete
            outcome = escrow.close(outcome.account, outcome.row, complete=complete, unknown=unknown[id_])
        outcomes[id_] = outcome
    return outcomes


def _report(holding: Holding) -> Report:
    totals = Row(holding.granted, holding.returned, holding.charged, holding.unbacked, holding.reserved)
    return Report(totals, holding.final)


def _demands(holdings: Iterable[Holding], resolved: Iterable[Resolved]) -> dict[int, Demand]:
    """What is asked for by account, whether it is held already or not."""
    demands = {line.account: Demand(line.want, line.need, line.first) for line in holdings}
    for account, line in ((item.account, item.ask) for item in resolved):
        if account is not None:
            asked = Demand(line.want, line.need, line.first)
            demands[account] = demands[account].plus(asked) if account in demands else asked
    return demands


def _entry(row: Any, held: Row | None, now: int) -> Entry:
    # In the order of sql.ACCOUNTS: taking columns by name would cost as much as all else here together.
    id_, namespace, key, *books, window, start, end, series, live_series, deleted, spec, home, name = row
    budget = decode_budget(spec)
    live = not deleted and series == live_series
    return Entry(
        id=id_,
        namespace=namespace,
        key=key,
        series=series,
        window=Window(id=window, start=start, end=end),
        name=f"{home}/{name}" if live else "",
        budget=budget,
        account=Account(*books),
        row=held,
        cap=escrow.cap(budget, now, live=live),
    )


def _urgent(entry: Entry, outcome: Outcome, now: int) -> bool:
    """Whether the session holds free money that others may wait for before it would speak by itself.

    That is so when the account runs low, and when the session holds more than a lease would be sized at now: others
    can then use up the rest while it is idle, and their requests wait no longer than two seconds.
    """
    free = outcome.row.out - outcome.row.reserved if outcome.row else 0
    account = outcome.account
    over_its_share = free * SHARES * (account.holders + 1) > entry.cap - account.held
    return free > 0 and (account.held * 5 >= entry.cap * 4 or over_its_share or escrow.recalling(account, now))


def _account_answer(entry: Entry, outcome: Outcome, asked_key: str | None, now: int) -> AccountAnswer:
    account = outcome.account
    return AccountAnswer(
        account=entry.id,
        budget=entry.name,
        series=entry.series,
        namespace=entry.namespace,
        key=entry.key,
        asked_key=asked_key,
        window=entry.window,
        granted=outcome.granted,
        verdict=outcome.verdict,
        recall=escrow.must_return(account, cap=entry.cap, now=now),
        available=max(0, entry.cap - account.held),
        holders=account.holders,
        limit=entry.cap,
        used=account.used,
        action=escrow.action_at(entry.budget.actions, account.used, entry.cap),
        retry_after_ms=max(0, entry.window.end - now) if outcome.verdict == "Exhausted" else 0,
    )


def load_session(connection: Connection, id_: str) -> Session | None:
    """What is known of a session."""
    rows = sql.read(connection, sql.SESSION, id=id_)
    return next((Session(row.id, row.pod_uid, row.seq, row.seen_ms, row.state) for row in rows), None)


def load_rows(connection: Connection, session: str, accounts: Iterable[int] | None) -> dict[int, Row]:
    """What a session holds of some accounts, or (None) of all."""
    if accounts is None:
        found = sql.read(connection, sql.ALL_HOLDINGS, session=session)
    else:
        found = sql.read(connection, sql.HOLDINGS, session=session, ids=sql.as_list(accounts))
    return {row.account_id: Row(*row[1:]) for row in found}


def relabel(connection: Connection, session: str, *, sign: int) -> None:
    """Count what a session holds as unreconciled (1) or as leased again (-1)."""
    sql.write(connection, sql.RELABEL, [{"session": session, "sign": sign}])


def named(holdings: Iterable[Holding], resolved: Iterable[Resolved]) -> set[int]:
    """The accounts that a message names."""
    asked = {item.account for item in resolved if item.account is not None}
    return asked | {holding.account for holding in holdings}
