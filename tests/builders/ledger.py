"""Budgets, callers, tokens and two ledgers with one interface: a pure one in memory, and the one on SQLite."""

import shutil
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
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
from fairlead_operator.ledger.escrow import Account, Place, Refusal, Row, Session
from fairlead_operator.ledger.exchange import Entry, Exchange, Facts, Resolved
from fairlead_operator.ledger.places import account_id
from fairlead_operator.ledger.schema import migrate, open_engine
from fairlead_operator.ledger.together import Said, sync_all
from fairlead_operator.ledger.upkeep import upkeep
from fairlead_operator.ledger.windows import window_at
from fairlead_operator.tokens import Identity
from fairlead_router.contract import (
    Ask,
    Holding,
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
    """The same exchange on dictionaries: budgets per Total and Hour in UTC only."""

    now: int = NOW
    alarms: list[str] = field(default_factory=list)
    _budgets: dict[str, LedgerBudget] = field(default_factory=dict)
    _live: set[str] = field(default_factory=set)
    _ids: dict[tuple[str, int], int] = field(default_factory=dict)
    _accounts: dict[int, Account] = field(default_factory=dict)
    _rows: dict[tuple[str, int, int], Row] = field(default_factory=dict)
    _sessions: dict[str, Session] = field(default_factory=dict)
    _recovery: dict[str, int] = field(default_factory=dict)
    _usage: int = 0

    def put(self, version: int, *budgets: LedgerBudget) -> None:
        del version
        self._live = {f"{item.namespace}/{item.name}" for item in budgets}
        self._budgets |= {f"{item.namespace}/{item.name}": item for item in budgets}

    def sync(self, who: Caller, message: SyncRequest) -> SyncAnswer | Refusal:
        def alarm(loss: str, _begun: bool) -> None:
            self.alarms.append(loss)

        return Exchange(self, who, message, self.now, ttl_ms=TTL_MS, alarm=alarm).run()

    # --- exchange.Books

    def facts(self) -> Facts:
        return Facts(epoch="e", recovery=dict(self._recovery))

    def session(self, session: str) -> Session | None:
        return self._sessions.get(session)

    def add_session(self, session: Session) -> None:
        self._sessions.setdefault(session.id, session)

    def put_session(self, session: Session) -> None:
        self._sessions[session.id] = session

    def rows(self, session: str, accounts: Iterable[int] | None) -> dict[Place, Row]:
        wanted = None if accounts is None else set(accounts)
        return {
            (id_, klass): row
            for (name, id_, klass), row in self._rows.items()
            if name == session and (wanted is None or id_ in wanted)
        }

    def resolve(self, asks: tuple[Ask, ...], caller: Caller, facts: Facts, *, at: int, create: bool) -> list[Resolved]:
        del caller, facts
        return [Resolved(ask, self._locate(ask, at, create=create)) for ask in asks]

    def _locate(self, ask: Ask, at: int, *, create: bool) -> int | None:
        name = ask.budget
        if name not in self._live:
            return None
        start = window_at(at, "Hour", "UTC").start + (HOUR if ask.at == "Next" else 0)
        if not create:
            return self._ids.get((name, start))
        id_ = self._ids.setdefault((name, start), account_id(self._budgets[name], start, "", ""))
        self._accounts.setdefault(id_, Account())
        return id_

    def entries(self, accounts: Iterable[int], facts: Facts) -> dict[int, Entry]:
        del facts
        return {id_: self._entry(id_) for id_ in accounts if id_ in self._accounts}

    def _entry(self, id_: int) -> Entry:
        name, start = next(place for place, known in self._ids.items() if known == id_)
        item, live = self._budgets[name], name in self._live
        terms = escrow.terms_of(item, self.now, live=live, start=start, end=start + HOUR)
        window = Window(id=id_, start=start, end=start + HOUR)
        return Entry(id_, "", "", 1, window, name, item, terms, self._accounts[id_])

    def put_accounts(self, accounts: dict[int, Account]) -> None:
        self._accounts |= accounts

    def put_rows(self, session: str, rows: dict[Place, Row]) -> None:
        for (id_, klass), row in rows.items():
            self._rows[session, id_, klass] = row
            if row == Row():
                del self._rows[session, id_, klass]

    def relabel(self, session: str, sign: int) -> None:
        for (name, id_, _klass), row in self._rows.items():
            if name == session:
                account = self._accounts[id_]
                left = account.unreconciled + sign * row.out
                self._accounts[id_] = msgspec.structs.replace(account, unreconciled=left)

    def count(self, lines: tuple[UsageLine, ...]) -> None:
        self._usage += sum(item.nano_usd for item in lines)

    def recover(self, scope: str, until: int) -> None:
        self._recovery[scope] = until

    # --- what tests look at

    def upkeep(self) -> int:
        for session in list(self._sessions.values()):
            if session.state == "Open" and session.seen_ms < self.now - TTL_MS:
                self.relabel(session.id, 1)
                self._sessions[session.id] = msgspec.structs.replace(session, state="Lost")
        return sum(not self._adds_up(id_, account) for id_, account in self._accounts.items())

    def _adds_up(self, id_: int, account: Account) -> bool:
        rows = [(name, row) for (name, known, _klass), row in self._rows.items() if known == id_]
        lost = sum(row.out for name, row in rows if self._sessions[name].state != "Open")
        return (
            account.held == account.charged + sum(row.out for _, row in rows)
            and account.unreconciled == lost
            and account.holders == len(rows)
            and account.held - account.unbacked <= account.cap_high
        )

    def books(self) -> list[Book]:
        return [Book(name, start, self._accounts[id_]) for (name, start), id_ in self._ids.items()]

    def out(self) -> Counter[tuple[str, int]]:
        found = Counter[tuple[str, int]]()
        for (name, id_, _klass), row in self._rows.items():
            found[name, id_] += row.out
        return found

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
    engine = open_engine(path)
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
        self.engine = open_engine(path)

    def put(self, version: int, *budgets: LedgerBudget) -> None:
        with self.engine.begin() as connection:
            assert catalog.put_budgets(connection, PutBudgets(version=(1, version), budgets=budgets), self.now) is None

    def sync(self, who: Caller, message: SyncRequest) -> SyncAnswer | Refusal:
        with self.engine.begin() as connection:
            return sync_all(connection, [Said(who, message)], self.now, ttl_ms=TTL_MS)[0]

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
        out = "sum(granted - returned - charged + unbacked)"
        rows = self.query(f"SELECT session_id, account_id, {out} FROM holding GROUP BY session_id, account_id")  # noqa: S608 - constants
        return Counter({(session, account): out for session, account, out in rows})

    def usage(self) -> int:
        return int(self.query("SELECT coalesce(sum(nano_usd), 0) FROM usage")[0][0])

    def close(self) -> None:
        self.engine.dispose()
        self.folder.cleanup()


def said(ledger: SqliteLedger, seq: int = 1, **parts: Any) -> SyncAnswer:
    """What the usual caller's session s1 is answered."""
    answer = ledger.sync(caller(), SyncRequest(session="s1", seq=seq, **parts))
    assert isinstance(answer, SyncAnswer)
    return answer


def holding(ledger: SqliteLedger, **changes: Any) -> Holding:
    """The only one of the ledger as its holder tells it, with changes."""
    ((account, granted),) = ledger.query("SELECT account_id, granted FROM holding")
    return Holding(account=account, **{"granted": granted} | changes)
