"""Budgets, callers, tokens and two ledgers with one interface: a pure one in memory, and the one on SQLite."""

import shutil
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from sqlalchemy import Engine

from fairlead_operator.ledger import catalog, escrow
from fairlead_operator.ledger.access import Caller
from fairlead_operator.ledger.escrow import Account, Refusal, Row, Session
from fairlead_operator.ledger.places import Resolved
from fairlead_operator.ledger.schema import migrate, open_engine
from fairlead_operator.ledger.transaction import Entry, Sync, decide
from fairlead_operator.ledger.upkeep import upkeep
from fairlead_operator.ledger.windows import window_at
from fairlead_operator.tokens import Identity
from fairlead_router.contract import (
    AccountAnswer,
    LedgerBudget,
    PutBudgets,
    SyncAnswer,
    SyncRequest,
    UsageLine,
    Window,
)

NOW = 1_795_258_800_000
"""2026-11-21T11:00:00Z, the start of an hour."""
HOUR = 3_600_000
TTL_MS = 30_000
ISSUER = "https://issuer.test"


def budget(name: str = "monthly", **changes: Any) -> LedgerBudget:
    """A budget of 1,000 an hour for all of namespace team-a together."""
    base = LedgerBudget(
        namespace="team-a",
        name=name,
        uid="b1",
        unit="USD",
        per="Total",
        period="Hour",
        time_zone="UTC",
        limit=1_000,
        namespaces=("team-a",),
    )
    return msgspec.structs.replace(base, **changes)


def line(**changes: Any) -> UsageLine:
    """One request of team-a that cost 100."""
    base = UsageLine(
        bucket=NOW,
        namespace="team-a",
        caller="sa:web",
        feature="search",
        model="chat",
        pool="models/chat-8b",
        variant="h100",
        route="short",
        requests=1,
        prompt=10,
        output=5,
        nano_usd=100,
        bins={"27": 1},
    )
    return msgspec.structs.replace(base, **changes)


def caller(pod_uid: str = "pod-1", namespace: str = "fairlead", *, trusted: bool = True) -> Caller:
    """A router; by default the gateway."""
    return Caller(
        Identity(namespace, "fairlead-gateway", f"router-{pod_uid}", pod_uid), trusted=trusted, operator=False
    )


# --- tokens


@cache
def signing_key(key_id: str = "key-1") -> EllipticCurvePrivateKey:
    """A cluster's private key, made for this run."""
    del key_id
    return ec.generate_private_key(ec.SECP256R1())


def jwks(*key_ids: str) -> str:
    """The public keys of those names."""
    keys = []
    for key_id in key_ids or ("key-1",):
        public = jwt.algorithms.ECAlgorithm.to_jwk(signing_key(key_id).public_key(), as_dict=True)
        keys.append(public | {"kid": key_id, "alg": "ES256", "use": "sig"})
    return msgspec.json.encode({"keys": keys}).decode()


def token(
    service_account: str = "fairlead-gateway", namespace: str = "fairlead", pod: str = "gateway-1", **changes: Any
) -> str:
    """A token as the API server signs it; ``changes`` replace claims, ``bound`` the pod's, ``key`` names the key."""
    key_id = changes.pop("key", "key-1")
    who: dict[str, Any] = {"namespace": namespace, "serviceaccount": {"name": service_account, "uid": "sa-uid"}}
    if pod:
        who["pod"] = {"name": pod, "uid": f"uid-{pod}"}
    bound = changes.pop("bound", who)
    claims = {"iss": ISSUER, "aud": ["fairlead.dev/ledger"], "exp": int(time.time()) + 3600, "kubernetes.io": bound}
    return jwt.encode(claims | changes, signing_key(key_id), algorithm="ES256", headers={"kid": key_id})


# --- ledgers


@dataclass(frozen=True, slots=True)
class Book:
    """An account as a test sees it."""

    budget: str
    window: int
    account: Account


class Ledger(Protocol):
    """What both ledgers can do. ``now`` is their clock."""

    now: int

    def put(self, version: int, *budgets: LedgerBudget) -> None:
        """Replace the budgets."""

    def sync(self, who: Caller, message: SyncRequest) -> SyncAnswer | Refusal:
        """Send one message."""

    def upkeep(self) -> int:
        """One round of upkeep; the number of accounts whose books do not add up."""

    def books(self) -> list[Book]:
        """All accounts."""

    def out(self) -> Counter[tuple[str, int]]:
        """What sessions hold, by session and account."""

    def usage(self) -> int:
        """The sum of all usage lines, in nano-USD."""

    def close(self) -> None:
        """Let go of files."""


@dataclass(slots=True)
class MemoryLedger:
    """The pure decisions on dictionaries: budgets per Total and Hour in UTC only."""

    now: int = NOW
    _budgets: dict[str, LedgerBudget] = field(default_factory=dict)
    _live: set[str] = field(default_factory=set)
    _ids: dict[tuple[str, int], int] = field(default_factory=dict)
    _accounts: dict[int, Account] = field(default_factory=dict)
    _rows: dict[tuple[str, int], Row] = field(default_factory=dict)
    _sessions: dict[str, Session] = field(default_factory=dict)
    _usage: int = 0

    def put(self, version: int, *budgets: LedgerBudget) -> None:
        del version
        self._live = {f"{item.namespace}/{item.name}" for item in budgets}
        self._budgets |= {f"{item.namespace}/{item.name}": item for item in budgets}

    def sync(self, who: Caller, message: SyncRequest) -> SyncAnswer | Refusal:
        session = self._sessions.get(message.session)
        uid = who.identity.pod_uid
        decision = escrow.admit(session, message.seq, uid, replay=message.replay, now=self.now, ttl_ms=TTL_MS)
        if isinstance(decision, Refusal):
            return decision
        if session is not None and session.state == "Lost":
            self._relabel(session.id, -1)
        if session is not None and decision == "Duplicate":
            self._sessions[session.id] = replace(session, seen_ms=self.now, state="Open")
            held = [id_ for (name, id_) in self._rows if name == session.id]
            return self._answer(
                session.seq, {id_: escrow.Outcome(self._accounts[id_], self._rows[session.id, id_]) for id_ in held}
            )
        return self._apply(uid, message)

    def _apply(self, uid: str, message: SyncRequest) -> SyncAnswer:
        resolved = [Resolved(ask, self._locate(ask.budget, ask.at)) for ask in message.asks if not message.rewind]
        held = {id_ for (name, id_) in self._rows if name == message.session} if message.close else set()
        named = {holding.account for holding in message.holdings}
        asked = {item.account for item in resolved if item.account is not None}
        entries = {id_: self._entry(message.session, id_) for id_ in held | named | asked}
        outcomes = decide(message, entries, resolved, self.now)
        for id_, outcome in outcomes.items():
            self._accounts[id_] = outcome.account
            self._rows.pop((message.session, id_), None)
            if outcome.row:
                self._rows[message.session, id_] = outcome.row
        self._usage += sum(item.nano_usd for item in message.usage)
        state: escrow.State = "Closed" if message.close else "Open"
        self._sessions[message.session] = Session(message.session, uid, message.seq, self.now, state)
        return self._answer(message.seq, outcomes)

    def _locate(self, name: str, at: str) -> int | None:
        if name not in self._live:
            return None
        start = window_at(self.now, "Hour", "UTC").start + (HOUR if at == "Next" else 0)
        id_ = self._ids.setdefault((name, start), len(self._ids) + 1)
        self._accounts.setdefault(id_, Account())
        return id_

    def _place(self, id_: int) -> tuple[str, Window]:
        name, start = next(place for place, known in self._ids.items() if known == id_)
        return name, Window(id=id_, start=start, end=start + HOUR)

    def _entry(self, session: str, id_: int) -> Entry:
        name, window = self._place(id_)
        limit = escrow.cap(self._budgets[name], self.now, live=name in self._live)
        row = self._rows.get((session, id_))
        return Entry(id_, "", "", 1, window, name, self._budgets[name], self._accounts[id_], row, limit)

    def _answer(self, seq: int, outcomes: dict[int, escrow.Outcome]) -> SyncAnswer:
        accounts = []
        for id_, outcome in outcomes.items():
            name, window = self._place(id_)
            accounts.append(
                AccountAnswer(account=id_, budget=name, window=window, granted=outcome.granted, verdict=outcome.verdict)
            )
        return SyncAnswer(epoch="e", seq=seq, now=self.now, ttl_ms=TTL_MS, accounts=tuple(accounts))

    def _relabel(self, session: str, sign: int) -> None:
        for (name, id_), row in self._rows.items():
            if name == session:
                account = self._accounts[id_]
                left = account.unreconciled + sign * row.out
                self._accounts[id_] = msgspec.structs.replace(account, unreconciled=left)

    def upkeep(self) -> int:
        for session in list(self._sessions.values()):
            if session.state == "Open" and session.seen_ms < self.now - TTL_MS:
                self._relabel(session.id, 1)
                self._sessions[session.id] = replace(session, state="Lost")
        return sum(not self._adds_up(id_, account) for id_, account in self._accounts.items())

    def _adds_up(self, id_: int, account: Account) -> bool:
        rows = {name: row for (name, known), row in self._rows.items() if known == id_}
        lost = sum(row.out for name, row in rows.items() if self._sessions[name].state != "Open")
        return (
            account.held == account.charged + sum(row.out for row in rows.values())
            and account.unreconciled == lost
            and account.holders == len(rows)
            and account.held - account.unbacked <= account.cap_high
        )

    def books(self) -> list[Book]:
        return [Book(name, start, self._accounts[id_]) for (name, start), id_ in self._ids.items()]

    def out(self) -> Counter[tuple[str, int]]:
        return Counter({place: row.out for place, row in self._rows.items()})

    def usage(self) -> int:
        return self._usage

    def close(self) -> None:
        return


@cache
def template() -> Path:
    """A migrated, empty database to copy: migrating takes longer than most tests."""
    folder = TemporaryDirectory()
    _KEPT.append(folder)
    path = Path(folder.name) / "ledger.db"
    engine = open_engine(path, begin="BEGIN IMMEDIATE")
    migrate(engine)
    engine.dispose()
    return path


_KEPT: list[Any] = []
"""Folders that last as long as the test run."""


@dataclass(slots=True)
class SqliteLedger:
    """The real transaction on a database file, without the thread and the HTTP around it."""

    folder: TemporaryDirectory[str] = field(default_factory=TemporaryDirectory)
    now: int = NOW
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        path = Path(shutil.copy(template(), self.folder.name))
        self.engine = open_engine(path, begin="BEGIN IMMEDIATE")

    def put(self, version: int, *budgets: LedgerBudget) -> None:
        with self.engine.begin() as connection:
            assert catalog.put_budgets(connection, PutBudgets(version=(1, version), budgets=budgets), self.now) is None

    def sync(self, who: Caller, message: SyncRequest) -> SyncAnswer | Refusal:
        with self.engine.begin() as connection:
            return Sync(connection, who, message, self.now, "e", TTL_MS).run()

    def upkeep(self) -> int:
        with self.engine.begin() as connection:
            return upkeep(connection, self.now, TTL_MS).violations

    def query(self, text: str) -> list[Any]:
        """Rows of a query."""
        with self.engine.begin() as connection:
            return list(connection.exec_driver_sql(text).all())

    def books(self) -> list[Book]:
        columns = ", ".join(f"account.{name}" for name in Account.__struct_fields__)
        rows = self.query(
            f"SELECT series.namespace || '/' || series.name, start_ms, {columns} FROM account "  # noqa: S608 - constants
            "JOIN budget_window ON budget_window.id = window_id "
            "JOIN series ON series.id = series_id ORDER BY account.id"
        )
        return [Book(name, start, Account(*values)) for name, start, *values in rows]

    def out(self) -> Counter[tuple[str, int]]:
        rows = self.query("SELECT session_id, account_id, granted - returned - charged + unbacked FROM holding")
        return Counter({(session, account): out for session, account, out in rows})

    def usage(self) -> int:
        return int(self.query("SELECT coalesce(sum(nano_usd), 0) FROM usage")[0][0])

    def close(self) -> None:
        self.engine.dispose()
        self.folder.cleanup()
