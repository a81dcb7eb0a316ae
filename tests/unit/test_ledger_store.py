"""The database: groups of writes, schema versions, and a real process that is killed."""

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.escrow import Account, Row
from fairlead_operator.ledger.main import read_settings
from fairlead_operator.ledger.schema import NewerSchemaError, metadata, migrate, open_engine
from fairlead_operator.ledger.sqlite import GROUP
from fairlead_operator.ledger.store import (
    ATTEMPTS,
    AgainError,
    Job,
    OverloadError,
    Store,
    each,
    run_group,
    transactions,
)
from fairlead_operator.ledger.upkeep import RETENTION_MS, upkeep
from fairlead_operator.tokens import ClusterKeys, FileKeys
from fairlead_router.contract import Ask, Holding, PutBudgets, SpendAnswer, SyncAnswer, SyncRequest
from tests.builders.ledger import ISSUER, budget, jwks, line, token

START_S = 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def test_migrations_make_exactly_the_tables_that_the_code_uses(path: Path) -> None:
    engine = open_engine(path)
    migrate(engine)
    migrate(engine)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
    engine.dispose()


def test_a_database_of_a_newer_version_is_left_alone(path: Path) -> None:
    engine = open_engine(path)
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(NewerSchemaError, match="9999"):
        migrate(engine)
    engine.dispose()


def put(key: str) -> Any:
    def job(connection: Connection) -> str:
        connection.execute(text("INSERT INTO meta VALUES (:k, 'v')"), {"k": key})
        return key

    return job


def count(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM meta")).scalar_one())


def test_the_values_of_a_row_have_one_order_on_all_databases() -> None:
    holdings = [sql.ADD_HOLDING, sql.PUT_HOLDING, sql.DELETE_HOLDING]
    writes = [sql.PUT_ACCOUNT, *holdings, sql.ADD_USAGE, sql.ADD_BIN, sql.PUT_SESSION]
    for statement in writes:
        assert statement["sqlite"].order == statement["postgresql"].order
    assert sql.PUT_ACCOUNT["sqlite"].order == (*Account.__struct_fields__, "account")
    assert sql.ADD_HOLDING["sqlite"].order[3:] == Row.__struct_fields__
    assert sql.PUT_HOLDING["sqlite"].order[:5] == Row.__struct_fields__
    assert sql.ADD_USAGE["sqlite"].order[2:] == sql.SUMS


def test_what_waits_is_committed_together(path: Path) -> None:
    groups: list[float] = []
    store = Store(path, groups.append)
    gate = threading.Event()
    first = store.submit(lambda _connection: gate.wait(10))
    others = [store.submit(put(f"k{number}")) for number in range(2 * GROUP)]
    gate.set()
    assert first.result(10)
    assert [other.result(10) for other in others] == [f"k{number}" for number in range(2 * GROUP)]
    assert len(groups) <= 4
    assert store.read(count) == 2 * GROUP
    store.close()
    assert not store.alive()


def test_a_message_that_breaks_fails_alone(path: Path) -> None:
    engine = open_engine(path)
    migrate(engine)

    def broken(_connection: Connection) -> None:
        raise ZeroDivisionError

    futures = [Future[Any]() for _ in range(3)]
    run_group(
        engine, [Job(each, job, future) for job, future in zip((put("a"), broken, put("b")), futures, strict=True)]
    )
    assert (futures[0].result(), futures[2].result()) == ("a", "b")
    assert isinstance(futures[1].exception(), ZeroDivisionError)
    with engine.begin() as connection:
        assert count(connection) == 2
    engine.dispose()


def test_what_was_decided_on_old_rows_is_undone_and_run_again_but_not_for_ever(path: Path) -> None:
    store = Store(path)
    runs: list[int] = []

    def job(connection: Connection, agains: int) -> int:
        put(f"run {agains} {len(runs)}")(connection)
        runs.append(count(connection))
        if len(runs) <= agains:
            raise AgainError(put(f"first {agains}"))
        return len(runs)

    assert store.submit(partial(job, agains=1)).result(10) == 2
    assert store.read(lambda c: sql.read(c, sql.GET_META, k="run 1 0")) == []
    assert runs[1] == runs[0] + 1
    runs.clear()
    assert isinstance(store.submit(partial(job, agains=100)).exception(10), OverloadError)
    assert len(runs) == ATTEMPTS
    store.close()


def test_a_database_that_cannot_be_written_is_an_overload_and_not_a_crash(path: Path) -> None:
    store = Store(path)
    store.submit(put("a")).result(10)
    future = store.submit(lambda connection: connection.execute(text("INSERT INTO nowhere VALUES (1)")))
    assert isinstance(future.exception(10), OverloadError)
    assert store.submit(put("b")).result(10) == "b"
    store.close()


async def test_a_caller_that_goes_away_does_not_stop_the_writer(path: Path) -> None:
    store = Store(path)
    gate = threading.Event()
    waiting = asyncio.ensure_future(asyncio.wrap_future(store.submit(lambda _connection: gate.wait(10))))
    await asyncio.sleep(0)
    waiting.cancel()
    gate.set()
    assert await asyncio.wrap_future(store.submit(put("a"))) == "a"
    await asyncio.to_thread(store.close)


async def test_items_of_one_handler_are_given_to_it_together_in_their_order(path: Path) -> None:
    store = Store(path)
    gate = threading.Event()
    given: list[list[int]] = []

    def doubled(_connection: Connection, items: Sequence[int]) -> list[int]:
        given.append(list(items))
        return [2 * item for item in items]

    first = store.submit(lambda _connection: gate.wait(10))
    waiting = asyncio.gather(*(store.apply(doubled, number, alone=False, patient=False) for number in range(10)))
    await asyncio.sleep(0)
    gate.set()
    assert await waiting == [2 * number for number in range(10)]
    assert first.result(10)
    assert given == [list(range(10))]
    await asyncio.to_thread(store.close)


async def test_what_nobody_waits_for_waits_for_others_but_never_holds_them_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairlead_operator.ledger.store.PACE_S", 3600.0)
    store = Store(path)
    given: list[list[str]] = []

    def stored(connection: Connection, items: Sequence[str]) -> list[str]:
        given.append(list(items))
        return [put(item)(connection) for item in items]

    def say(item: str, *, patient: bool = True) -> "asyncio.Future[str]":
        return asyncio.ensure_future(store.apply(stored, item, alone=False, patient=patient))

    assert await say("idle ledgers wait for nobody") == "idle ledgers wait for nobody"
    reports = [say("b"), say("c")]
    await asyncio.sleep(0.05)
    assert not any(report.done() for report in reports)
    assert await say("ask", patient=False) == "ask"
    assert await asyncio.gather(*reports) == ["b", "c"]
    last = say("told before the end")
    await asyncio.sleep(0)
    await asyncio.to_thread(store.close)
    assert await last == "told before the end"
    assert given[1:] == [["b", "c", "ask"], ["told before the end"]]


async def test_those_who_were_answered_together_are_written_together_and_who_was_alone_waits_for_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairlead_operator.ledger.store.COMPANY", 1e9)
    monkeypatch.setattr("fairlead_operator.ledger.store.COMPANY_S", 3600.0)
    store = Store(path)
    started, gate = threading.Event(), threading.Event()
    given: list[list[str]] = []

    def stored(_connection: Connection, items: Sequence[str]) -> Sequence[str]:
        given.append(list(items))
        return items

    def say(item: str) -> "asyncio.Future[str]":
        return asyncio.ensure_future(store.apply(stored, item, alone=False, patient=False))

    assert [await say("alone"), await say("alone again")] == ["alone", "alone again"]

    def hold(_connection: Connection) -> bool:
        started.set()
        return gate.wait(10)

    store.submit(hold)
    await asyncio.to_thread(started.wait, 10)
    both = [say("a"), say("b")]
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*both) == ["a", "b"]
    first = say("c")
    await asyncio.sleep(0.05)
    assert not first.done()
    assert await say("d") == "d"
    assert await first == "c"
    assert given == [["alone"], ["alone again"], ["a", "b"], ["c", "d"]]
    await asyncio.to_thread(store.close)


async def test_many_that_nobody_waits_for_are_written_once_they_fill_a_group(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairlead_operator.ledger.store.PACE_S", 3600.0)
    store = Store(path)
    rounds: list[int] = []

    def counted(_connection: Connection, items: Sequence[int]) -> Sequence[int]:
        rounds.append(len(items))
        return items

    assert await store.apply(counted, 0, alone=False, patient=True) == 0
    full = [store.apply(counted, number, alone=False, patient=True) for number in range(GROUP)]
    assert await asyncio.gather(*full) == list(range(GROUP))
    assert rounds == [1, GROUP]
    await asyncio.to_thread(store.close)


async def test_an_item_that_breaks_fails_alone_and_one_whose_caller_went_away_is_still_written(path: Path) -> None:
    store = Store(path)
    gate = threading.Event()

    def stored(connection: Connection, items: Sequence[str]) -> list[str]:
        return [put("" if item == "bad" and 1 / 0 else item)(connection) for item in items]

    store.submit(lambda _connection: gate.wait(10))
    items = ("a", "bad", "gone", "b")
    waiting = [asyncio.ensure_future(store.apply(stored, item, alone=False, patient=False)) for item in items]
    await asyncio.sleep(0)
    waiting[2].cancel()
    gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert (results[0], type(results[1]), results[3]) == ("a", ZeroDivisionError, "b")
    assert store.read(count) == 3
    await asyncio.to_thread(store.close)


def test_more_than_can_wait_is_refused_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead_operator.ledger.store.WAITING", 2)
    store = Store(path)
    started, gate = threading.Event(), threading.Event()

    def hold(_connection: Connection) -> bool:
        started.set()
        return gate.wait(10)

    store.submit(hold)
    started.wait(10)
    waiting = [store.submit(put(key)) for key in ("a", "b")]
    with pytest.raises(OverloadError, match="2 messages wait"):
        store.submit(put("c"))
    gate.set()
    assert [job.result(10) for job in waiting] == ["a", "b"]
    store.close()


def test_what_the_ledger_did_is_kept_within_bounds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead_operator.ledger.upkeep.AUDIT_ROWS", 3)
    store = Store(path)
    now = 2 * RETENTION_MS
    rows = [{"at_ms": at, "who": "o", "what": "w", "detail": str(at)} for at in (1, now - 4, now - 3, now - 2, now - 1)]
    store.submit(lambda connection: sql.write(connection, sql.ADD_AUDIT, rows)).result(10)
    store.submit(lambda connection: upkeep(connection, now, 1)).result(10)
    kept = store.read(
        lambda connection: connection.execute(text("SELECT at_ms FROM audit ORDER BY id")).scalars().all()
    )
    assert kept == [now - 3, now - 2, now - 1]
    store.close()


def test_settings_come_from_arguments_then_the_environment() -> None:
    environment = {"FAIRLEAD_DATABASE": "/l.db", "FAIRLEAD_NAMESPACE": "fl", "FAIRLEAD_PLATFORM_NAMESPACES": "a, b,"}
    settings = read_settings([], environment)
    assert (settings.database, settings.port) == ("/l.db", 8080)
    assert (settings.rules.release, settings.rules.platform) == ("fl", frozenset({"a", "b"}))
    assert isinstance(settings.keys, ClusterKeys)
    own = read_settings(["--database", "x.db", "--listen", "[::1]:9", "--jwks", "k.json", "--issuer", "i"], environment)
    assert (own.database, own.port, own.keys) == ("x.db", 9, FileKeys(Path("k.json"), "i"))


def test_a_database_may_be_postgresqls_and_a_command_names_its_file() -> None:
    settings = read_settings([], {"FAIRLEAD_DATABASE": "postgresql://h/d", "FAIRLEAD_SYNCHRONOUS_STANDBY": "true"})
    assert (settings.database, settings.synchronous_standby, settings.command) == ("postgresql://h/d", True, "")
    assert (command := read_settings(["backup", "x.db"], {})).command == "backup"
    assert command.file == Path("x.db")


@pytest.mark.parametrize(
    "arguments",
    [["--listen", "8080"], ["--listen", "h:x"], ["--jwks", "k.json"], ["--database", "mysql://h/d"], ["backup"], ["x"]],
)
def test_arguments_that_cannot_be_used_end_the_program(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(arguments, {})


class Process:
    """A real ledger process on a free port."""

    def __init__(self, folder: Path) -> None:
        (folder / "jwks.json").write_text(jwks())
        arguments = ["--database", "ledger.db", "--listen", "127.0.0.1:0", "--jwks", "jwks.json", "--issuer", ISSUER]
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fairlead_operator.ledger.main", *arguments], cwd=folder, stderr=self.log
        )
        self.url = self._url(folder / "log")

    def _url(self, log: Path) -> str:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            found = re.search(r"listens on (\S+),", log.read_text())
            if found and httpx.get(found[1] + "/readyz", timeout=10).status_code == 200:
                return found[1]
            time.sleep(0.02)
        raise AssertionError(log.read_text())

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        code = self.process.wait(START_S)
        self.log.close()
        return code


def send(url: str, method: str, path: str, body: Any, who: str) -> httpx.Response:
    content = None if body is None else msgspec.json.encode(body)
    return httpx.request(method, url + path, content=content, headers={"authorization": f"Bearer {who}"}, timeout=10)


def test_nothing_that_was_acknowledged_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    operator = token("fairlead-operator", pod="operator-1")
    process = Process(tmp_path)
    limit = 1_000_000_000
    put = PutBudgets(version=(1, 1), budgets=(budget(limit=limit, period="Year"),))
    assert send(process.url, "PUT", "/v1/budgets", put, operator).status_code == 200
    acknowledged: dict[str, tuple[int, int]] = {}
    done = threading.Event()
    threads = [threading.Thread(target=talk, args=(process.url, f"r{n}", acknowledged, done)) for n in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + START_S
    while sum(seq for seq, _ in list(acknowledged.values())) < 200 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.end(signal.SIGKILL) == -signal.SIGKILL
    done.set()
    for thread in threads:
        thread.join(START_S)

    again = Process(tmp_path)
    try:
        assert len(acknowledged) == 4
        told = 0
        for name, (seq, charged) in acknowledged.items():
            who = token(pod=name)
            answer = send(again.url, "POST", "/v1/sync", SyncRequest(session=name, seq=seq), who)
            assert answer.status_code == 200, answer.text
            assert msgspec.json.decode(answer.content, type=SyncAnswer).seq >= seq
            told += charged
        found = send(again.url, "GET", "/v1/spend?namespace=team-a&name=monthly", None, operator)
        spend = msgspec.json.decode(found.content, type=SpendAnswer)
        assert told <= spend.charged <= told + 4 * 7
    finally:
        assert again.end(signal.SIGTERM) in {0, -signal.SIGTERM}


def talk(url: str, name: str, acknowledged: dict[str, tuple[int, int]], done: threading.Event) -> None:
    """A router that charges 7 with each message, until the ledger is gone."""
    who, seq, charged, granted, account = token(pod=name), 0, 0, 0, 0
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {who}"}, timeout=5) as client:
        while not done.is_set():
            seq += 1
            asks = () if granted else (Ask(budget="team-a/monthly", namespace="", need=1_000_000, first=1),)
            charge = 7 if granted else 0
            holdings = (Holding(account=account, granted=granted, charged=charged + charge),) if granted else ()
            message = SyncRequest(session=name, seq=seq, holdings=holdings, asks=asks, usage=(line(nano_usd=charge),))
            try:
                response = client.post("/v1/sync", content=msgspec.json.encode(message))
            except httpx.HTTPError:
                return
            assert response.status_code == 200, response.text
            first = msgspec.json.decode(response.content, type=SyncAnswer).accounts[0]
            granted, account = first.granted, first.account
            charged += charge
            acknowledged[name] = (seq, charged)


def test_what_locks_step_by_step_has_a_transaction_of_its_own_where_others_write_too() -> None:
    group = [Job(each, name, Future[Any](), alone=name.isupper()) for name in "abCDeF"]
    assert [[job.item for job in part] for part in transactions(group)] == [["a", "b"], ["C"], ["D"], ["e"], ["F"]]
