"""Ledgers on one PostgreSQL take rows in one order: none waits for another one that waits for it.

A connection of the test holds rows until both ledgers have come to where they would cross. The ledgers are kept from
hiding a deadlock by running the transaction that PostgreSQL ended again.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection

from fairlead_operator.ledger import catalog
from fairlead_operator.ledger import postgres as postgres_dialect
from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.escrow import Refusal
from fairlead_operator.ledger.store import Store
from fairlead_operator.ledger.together import Said, sync_all
from fairlead_operator.ledger.transaction import SqlBooks
from fairlead_operator.ledger.windows import window_at
from fairlead_router.contract import Ask, Holding, LedgerBudget, PutBudgets, SyncAnswer, SyncRequest
from tests.builders import postgres
from tests.builders.ledger import budget, caller, line

WAIT_S = 60
TTL_MS = 30_000


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    retried = tuple(state for state in postgres_dialect.RETRIED if state != psycopg.errors.DeadlockDetected.sqlstate)
    monkeypatch.setattr(postgres_dialect, "RETRIED", retried)
    made = postgres.fresh_url()
    yield made
    postgres.drop(made)


@pytest.fixture
def ledgers(url: str) -> Iterator[tuple[Store, Store]]:
    stores = Store(url), Store(url)
    yield stores
    for store in stores:
        store.close()


@pytest.fixture
def gate(url: str, ledgers: tuple[Store, Store]) -> Iterator[psycopg.Connection]:
    """A connection of nobody's, closed before the stores are: they may wait for it."""
    assert ledgers
    with psycopg.connect(url) as connection:
        yield connection


def now_ms() -> int:
    return int(time.time() * 1000)


def put(store: Store, *budgets: LedgerBudget) -> None:
    message = PutBudgets(version=(1, 1), budgets=budgets)
    assert store.submit(lambda connection: catalog.put_budgets(connection, message, now_ms())).result(WAIT_S) is None


def say(store: Store, message: SyncRequest) -> Future[SyncAnswer | Refusal]:
    def job(connection: Connection) -> SyncAnswer | Refusal:
        now = sql.database_now(connection)
        assert now is not None
        return sync_all(connection, [Said(caller(f"pod-{message.session}"), message)], now, ttl_ms=TTL_MS)[0]

    return store.submit(job)


def answer(said: Future[SyncAnswer | Refusal]) -> SyncAnswer:
    found = said.result(WAIT_S)
    assert isinstance(found, SyncAnswer), found
    return found


def until_waiting(url: str, count: int, behind: psycopg.Connection | None = None) -> None:
    """Until so many transactions on this database wait for locks: of anybody, or of one connection."""
    deadline = time.monotonic() + WAIT_S
    while waiting(url, behind) != count:
        assert time.monotonic() < deadline, f"{count} transactions were to wait"
        time.sleep(0.01)


def waiting(url: str, behind: psycopg.Connection | None = None) -> int:
    text = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    if behind is not None:
        text += f" AND {behind.info.backend_pid} = ANY(pg_blocking_pids(pid))"
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(text.encode()).fetchone()
    assert found is not None
    return int(found[0])


def one(store: Store, text: str) -> Any:
    return store.read(lambda connection: tuple(connection.exec_driver_sql(text).one()))


def asks(*names: str, key: str = "") -> tuple[Ask, ...]:
    return tuple(Ask(budget=f"team-a/{name}", namespace="team-a", key=key, want=7, need=7, first=1) for name in names)


def test_windows_that_are_asked_for_in_another_order_are_opened_in_the_same(
    url: str, ledgers: tuple[Store, Store], gate: psycopg.Connection
) -> None:
    put(ledgers[0], *(budget(name, period="Year") for name in "abc"))
    span = window_at(now_ms(), "Year", "UTC")
    gate.execute(
        "INSERT INTO budget_window (series_id, start_ms, end_ms) SELECT id, %s, %s FROM series WHERE name = 'c'",
        (span.start, span.end),
    )
    there = say(ledgers[0], SyncRequest(session="s1", seq=1, asks=asks("a", "c", "b")))
    until_waiting(url, 1, gate)
    back = say(ledgers[1], SyncRequest(session="s2", seq=1, asks=asks("b", "a")))
    until_waiting(url, 2)
    gate.rollback()
    assert {item.granted for said in (there, back) for item in answer(said).accounts} == {7}
    assert one(ledgers[0], "SELECT count(*) FROM budget_window") == (3,)


def test_keys_that_two_ledgers_open_first_are_both_counted(
    url: str, ledgers: tuple[Store, Store], gate: psycopg.Connection
) -> None:
    put(ledgers[0], budget("keys", per="Caller", period="Year"))
    span = window_at(now_ms(), "Year", "UTC")
    gate.execute(
        "INSERT INTO budget_window (series_id, start_ms, end_ms) SELECT id, %s, %s FROM series", (span.start, span.end)
    )
    gate.commit()
    gate.execute(
        "INSERT INTO account (id, window_id, namespace, key) "
        "SELECT number, id, 'team-a', 'k' || number FROM budget_window, generate_series(1, 2) AS number"
    )
    said = [
        say(store, SyncRequest(session=f"s{number}", seq=1, asks=asks("keys", key=f"k{number}")))
        for number, store in enumerate(ledgers, 1)
    ]
    until_waiting(url, 2)
    gate.rollback()
    for item in said:
        answer(item)
    assert one(ledgers[0], "SELECT keys FROM window_ns") == (2,)


def add_accounts(gate: psycopg.Connection, holders: dict[int, int]) -> None:
    for id_, count in holders.items():
        gate.execute(
            "INSERT INTO account (id, window_id, namespace, key, holders) VALUES (%s, 1, '', %s, %s)",
            (id_, str(id_), count),
        )
    gate.commit()


def lock(accounts: set[int], connection: Connection) -> int:
    return len(SqlBooks(connection, now_ms()).locked(accounts))


def test_accounts_are_locked_in_one_order_while_their_holders_come_and_go(
    url: str, ledgers: tuple[Store, Store], gate: psycopg.Connection
) -> None:
    add_accounts(gate, {1: 2, 2: 1, 3: 1})
    with psycopg.connect(url) as another:
        gate.execute("UPDATE account SET holders = 2 WHERE id = 2")
        another.execute("SELECT 1 FROM account WHERE id = 3 FOR UPDATE")
        first = ledgers[0].submit(partial(lock, {1, 2, 3}))
        until_waiting(url, 1)
        gate.commit()
        second = ledgers[1].submit(partial(lock, {1, 2}))
        until_waiting(url, 2)
    assert (first.result(WAIT_S), second.result(WAIT_S)) == (3, 2)


def test_accounts_that_one_ledger_takes_for_a_sessions_own_are_not_waited_for_in_a_circle(
    url: str, ledgers: tuple[Store, Store], gate: psycopg.Connection
) -> None:
    put(ledgers[0], budget("keys", per="Caller", period="Year"))
    opened = answer(
        say(
            ledgers[0],
            SyncRequest(session="s1", seq=1, asks=tuple(ask for key in "abc" for ask in asks("keys", key=key))),
        )
    )
    keys = {item.account: item.key for item in opened.accounts}
    common, own, last = sorted(keys)
    answer(say(ledgers[1], SyncRequest(session="s2", seq=1, asks=asks("keys", key=keys[common]))))
    with psycopg.connect(url) as another:
        gate.execute("SELECT 1 FROM holding WHERE session_id = 's1' FOR UPDATE")
        told = tuple(Holding(account=id_, granted=7, charged=1) for id_ in sorted(keys))
        first = say(ledgers[0], SyncRequest(session="s1", seq=2, holdings=told))
        until_waiting(url, 1, gate)
        gate.execute("UPDATE account SET holders = 2 WHERE id = %s", (own,))
        another.execute("SELECT 1 FROM account WHERE id = %s FOR UPDATE", (last,))
        gate.commit()
        until_waiting(url, 1, another)
        both = Holding(account=common, granted=7, charged=1)
        second = say(ledgers[1], SyncRequest(session="s2", seq=2, asks=asks("keys", key=keys[own]), holdings=(both,)))
        while waiting(url) < 2 and not second.done():  # it may come between what the first does again
            time.sleep(0.01)
    answer(first)
    answer(second)
    assert one(ledgers[0], "SELECT sum(charged)::bigint, max(holders) FROM account") == (4, 3)


def test_who_changes_a_sessions_own_accounts_last_does_not_wait_for_who_waits_for_it(
    url: str, ledgers: tuple[Store, Store], gate: psycopg.Connection
) -> None:
    ledger = ledgers[0]
    put(ledger, budget("keys", per="Caller", period="Year"))
    keys = tuple(ask for key in "ab" for ask in asks("keys", key=key))
    opened = answer(say(ledger, SyncRequest(session="s1", seq=1, asks=keys)))
    own, common = sorted(item.account for item in opened.accounts)
    (name,) = (item.key for item in opened.accounts if item.account == common)
    answer(say(ledger, SyncRequest(session="s2", seq=1, asks=asks("keys", key=name))))
    answer(say(ledger, SyncRequest(session="s1", seq=2, usage=(line(),))))
    ledger.submit(lambda connection: connection.exec_driver_sql("SET deadlock_timeout = '5ms'")).result(WAIT_S)
    with psycopg.connect(url) as another:
        gate.execute("SELECT 1 FROM usage FOR UPDATE")
        another.execute("SELECT 1 FROM account WHERE id = %s FOR UPDATE", (own,))
        told = tuple(Holding(account=id_, granted=7, charged=1) for id_ in (own, common))
        first = say(ledger, SyncRequest(session="s1", seq=3, holdings=told, usage=(line(),)))
        until_waiting(url, 1, gate)
        with ThreadPoolExecutor(1) as pool:
            behind = pool.submit(another.execute, "SELECT 1 FROM account WHERE id = %s FOR UPDATE", (common,))
            until_waiting(url, 2)
            gate.rollback()
            behind.result(WAIT_S)
    answer(first)
    assert one(ledger, "SELECT sum(charged)::bigint FROM account") == (2,)
