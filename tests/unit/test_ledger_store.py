"""The database: groups of writes, schema versions, and a real process that is killed."""

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from fairlead_operator.ledger.main import read_settings
from fairlead_operator.ledger.schema import NewerSchemaError, metadata, migrate, open_engine
from fairlead_operator.ledger.store import GROUP, OverloadError, Store, run_group
from fairlead_operator.tokens import ClusterKeys, FileKeys
from fairlead_router.contract import Ask, Holding, PutBudgets, SpendAnswer, SyncAnswer, SyncRequest
from tests.builders.ledger import ISSUER, budget, jwks, line, token

START_S = 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def test_migrations_make_exactly_the_tables_that_the_code_uses(path: Path) -> None:
    engine = open_engine(path, begin="BEGIN IMMEDIATE")
    migrate(engine)
    migrate(engine)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
    engine.dispose()


def test_a_database_of_a_newer_version_is_left_alone(path: Path) -> None:
    engine = open_engine(path, begin="BEGIN IMMEDIATE")
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
    engine = open_engine(path, begin="BEGIN IMMEDIATE")
    migrate(engine)

    def broken(_connection: Connection) -> None:
        raise ZeroDivisionError

    jobs: list[tuple[Any, Future[Any]]] = [(put("a"), Future()), (broken, Future()), (put("b"), Future())]
    run_group(engine, jobs)
    assert (jobs[0][1].result(), jobs[2][1].result()) == ("a", "b")
    assert isinstance(jobs[1][1].exception(), ZeroDivisionError)
    with engine.begin() as connection:
        assert count(connection) == 2
    engine.dispose()


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


def test_settings_come_from_arguments_then_the_environment() -> None:
    environment = {"FAIRLEAD_DATABASE": "/l.db", "FAIRLEAD_NAMESPACE": "fl", "FAIRLEAD_PLATFORM_NAMESPACES": "a, b,"}
    settings = read_settings([], environment)
    assert (settings.database, settings.port) == (Path("/l.db"), 8080)
    assert (settings.rules.release, settings.rules.platform) == ("fl", frozenset({"a", "b"}))
    assert isinstance(settings.keys, ClusterKeys)
    own = read_settings(["--database", "x.db", "--listen", "[::1]:9", "--jwks", "k.json", "--issuer", "i"], environment)
    assert (own.database, own.port, own.keys) == (Path("x.db"), 9, FileKeys(Path("k.json"), "i"))


@pytest.mark.parametrize("arguments", [["--listen", "8080"], ["--listen", "h:x"], ["--jwks", "k.json"]])
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
            if found := re.search(r"listens on (\S+),", log.read_text()):
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
            assert answer.status_code == 200
            assert msgspec.json.decode(answer.content, type=SyncAnswer).seq >= seq
            told += charged
        found = send(again.url, "GET", "/v1/spend?namespace=team-a&name=monthly", None, operator)
        spend = msgspec.json.decode(found.content, type=SpendAnswer)
        assert told <= spend.charged <= told + 4 * 7
    finally:
        assert again.end(signal.SIGTERM) in {0, -signal.SIGTERM}


def talk(url: str, name: str, acknowledged: dict[str, tuple[int, int]], done: threading.Event) -> None:
    """A router that charges 7 with each message, until the ledger is gone."""
    who, seq, charged, granted = token(pod=name), 0, 0, 0
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {who}"}, timeout=5) as client:
        while not done.is_set():
            seq += 1
            asks = () if granted else (Ask(budget="team-a/monthly", namespace="", need=1_000_000, first=1),)
            charge = 7 if granted else 0
            holdings = (Holding(account=1, granted=granted, charged=charged + charge),) if granted else ()
            message = SyncRequest(session=name, seq=seq, holdings=holdings, asks=asks, usage=(line(nano_usd=charge),))
            try:
                response = client.post("/v1/sync", content=msgspec.json.encode(message))
            except httpx.HTTPError:
                return
            assert response.status_code == 200, response.text
            granted = msgspec.json.decode(response.content, type=SyncAnswer).accounts[0].granted
            charged += charge
            acknowledged[name] = (seq, charged)
