"""Backups of a running ledger, their return, and databases of every version before this one."""

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Connection

from fairlead_operator.ledger import backup, reports
from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.backup import BackupError, back_up, restore
from fairlead_operator.ledger.escrow import Refusal
from fairlead_operator.ledger.schema import migrate, open_engine
from fairlead_operator.ledger.sqlite import InUseError
from fairlead_operator.ledger.store import Store
from fairlead_operator.ledger.together import Said, sync_all
from fairlead_operator.ledger.transaction import facts
from fairlead_operator.ledger.upkeep import upkeep
from fairlead_router.contract import Ask, Holding, SyncAnswer, SyncRequest
from tests.builders import postgres
from tests.builders.ledger import NOW, TTL_MS, budget, caller

WAIT_S = 30
WRITES = 200


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def put(key: str, connection: Connection) -> None:
    sql.write(connection, sql.PUT_META, [{"k": key, "v": "1"}])


def keys(file: Path) -> set[str]:
    with closing(sqlite3.connect(file)) as connection:
        return {key for (key,) in connection.execute("SELECT k FROM meta")}


@pytest.fixture
def written(path: Path) -> Iterator[tuple[Store, list[int]]]:
    """A ledger that somebody writes to all the time, two rows in each transaction; how many are acknowledged."""
    store, acknowledged, done = Store(path), [0], threading.Event()

    def both(number: int, connection: Connection) -> None:
        put(f"a{number}", connection)
        put(f"b{number}", connection)

    def write() -> None:
        number = 0
        while not done.is_set():
            store.submit(lambda connection, number=number: both(number, connection)).result(WAIT_S)  # type: ignore[misc]
            number += 1
            acknowledged[0] = number

    thread = threading.Thread(target=write)
    thread.start()
    yield store, acknowledged
    done.set()
    thread.join(WAIT_S)
    with suppress(RuntimeError):
        store.close()


def test_a_backup_of_a_running_ledger_has_all_that_was_acknowledged_before_it(
    path: Path, tmp_path: Path, written: tuple[Store, list[int]]
) -> None:
    _, acknowledged = written
    deadline = time.monotonic() + WAIT_S
    while acknowledged[0] < WRITES and time.monotonic() < deadline:
        time.sleep(0.01)
    before = acknowledged[0]
    copy = tmp_path / "copy.db"
    assert str(copy) in back_up(str(path), copy)
    found = keys(copy)
    assert {f"a{number}" for number in range(before)} <= found
    assert {key[1:] for key in found if key[0] == "a"} == {key[1:] for key in found if key[0] == "b"}
    assert [file.name for file in tmp_path.glob("copy*")] == ["copy.db"]


def test_a_backup_of_a_large_ledger_ends_although_every_moment_has_a_commit(
    path: Path, tmp_path: Path, written: tuple[Store, list[int]]
) -> None:
    store, acknowledged = written
    for number in range(20):
        rows = [{"k": f"large{number}-{index}", "v": "x" * 4_000} for index in range(1_000)]
        store.submit(lambda connection, rows=rows: sql.write(connection, sql.PUT_META, rows)).result(WAIT_S)  # type: ignore[misc]
    before, copy = acknowledged[0], tmp_path / "copy.db"
    program = (
        "import sys; from pathlib import Path; from fairlead_operator.ledger.backup import back_up;"
        " back_up(sys.argv[1], Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, str(path), str(copy)]
    subprocess.run(command, check=True, timeout=WAIT_S)
    assert {"large19-999", f"a{before - 1}"} <= keys(copy)


def test_a_running_ledger_is_not_restored_and_not_joined(path: Path, tmp_path: Path) -> None:
    store = Store(path)
    back_up(str(path), tmp_path / "copy.db")
    with pytest.raises(InUseError, match="stop it first"):
        restore(str(path), tmp_path / "copy.db", TTL_MS)
    with pytest.raises(InUseError):
        Store(path)
    store.submit(lambda connection: put("later", connection)).result(WAIT_S)
    store.close()
    assert "later" in keys(path)


def test_what_is_restored_is_another_history_that_grants_nothing_for_one_ttl(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    store = Store(path)
    store.submit(lambda connection: sql.write(connection, sql.ADD_META, [{"k": "epoch", "v": "e1"}])).result(WAIT_S)
    back_up(str(path), copy)
    store.submit(lambda connection: put("later", connection)).result(WAIT_S)
    store.close()
    before = int(time.time() * 1000)
    assert "nothing is granted for 30 s" in restore(str(path), copy, TTL_MS)
    assert "later" not in keys(path)
    (old,) = tmp_path.glob("ledger.db.before-restore-*")
    assert "later" in keys(old)
    again = Store(path)
    found = again.read(facts)
    assert found.epoch not in {"", "e1"}
    assert before + TTL_MS <= found.recovery[""] <= int(time.time() * 1000) + TTL_MS
    assert again.read(lambda c: tuple(c.exec_driver_sql("SELECT who, what FROM audit").one())) == ("ledger", "Restored")
    again.close()


def test_a_restore_where_nothing_was_before_needs_no_database(path: Path, tmp_path: Path) -> None:
    Store(tmp_path / "other.db").close()
    back_up(str(tmp_path / "other.db"), tmp_path / "copy.db")
    assert "there was none before" in restore(str(path), tmp_path / "copy.db", TTL_MS)
    Store(path).close()


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(4096)])
def test_what_is_no_ledgers_database_changes_nothing(path: Path, tmp_path: Path, content: bytes) -> None:
    store = Store(path)
    store.submit(lambda connection: put("here", connection)).result(WAIT_S)
    store.close()
    (tmp_path / "copy.db").write_bytes(content)
    with pytest.raises(BackupError):
        restore(str(path), tmp_path / "copy.db", TTL_MS)
    assert "here" in keys(path)
    assert not list(tmp_path.glob("*.restored*"))


def test_a_damaged_copy_is_not_restored(path: Path, tmp_path: Path) -> None:
    store = Store(path)
    for number in range(100):
        store.submit(lambda connection, number=number: put(f"{number:0400}", connection)).result(WAIT_S)  # type: ignore[misc]
    store.close()
    copy = tmp_path / "copy.db"
    back_up(str(path), copy)
    content = bytearray(copy.read_bytes())
    for page in range(4096 * 3, len(content), 4096 * 2):
        content[page : page + 400] = bytes(400)
    copy.write_bytes(content)
    with pytest.raises(BackupError):
        restore(str(path), copy, TTL_MS)


def test_a_missing_database_cannot_be_backed_up_and_a_full_disk_leaves_nothing(path: Path, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="there is no database"):
        back_up(str(path), tmp_path / "copy.db")
    Store(path).close()
    with pytest.raises(BackupError, match="was not written"):
        back_up(str(path), tmp_path / "nowhere" / "copy.db")


def test_postgresql_is_told_its_own_tools() -> None:
    with pytest.raises(BackupError, match="pg_dump"):
        back_up("postgresql://h/d", Path("x"))
    with pytest.raises(BackupError, match="pg_restore"):
        restore("postgresql://h/d", Path("x"), TTL_MS)


def test_the_program_backs_up_and_restores(path: Path, tmp_path: Path) -> None:
    Store(path).close()
    command = [sys.executable, "-m", "fairlead_operator.ledger.main", "--database", str(path)]
    for word in ("backup", "restore"):
        run = subprocess.run(
            [*command, word, "copy.db"], cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S, check=False
        )
        assert run.returncode == 0, run.stderr
    store = Store(path)
    run = subprocess.run(
        [*command, "restore", "copy.db"], cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert run.returncode == 1
    assert "stop it first" in run.stderr
    store.close()


# --- upgrades

FIRST = """
INSERT INTO meta VALUES ('epoch', 'e1'), ('budgets_version', '[1,1]');
INSERT INTO series VALUES (1, 'team-a', 'monthly', 'USD', 'Total', 'Hour', 'UTC', 1795255200000);
INSERT INTO budget_window VALUES (1, 1, 1795258800000, 1795262400000);
INSERT INTO account VALUES (1, 1, '', '', 300, 100, 0, 0, 1, 0, 0, 1000);
INSERT INTO session VALUES ('s1', 'pod-1', 'fairlead/router-pod-1', 4, 1795258800000, 'Open', 0);
INSERT INTO holding VALUES ('s1', 1, 1, 300, 0, 100, 0, 50);
INSERT INTO dim VALUES (1, 'h', 'team-a', '', '', '', '', '', '', '', '', '', 0);
INSERT INTO usage VALUES (1795258800000, 1, 1, 10, 0, 5, 100, 0);
INSERT INTO cost_hist VALUES (1795258800000, 1, 27, 1);
"""
"""What version 0001 stored: a session that was granted 300 of 1,000 and charged 100, in the hour that begins at NOW."""


@pytest.fixture(params=["sqlite", "postgresql"])
def first_version(request: pytest.FixtureRequest, path: Path) -> Iterator[str]:
    url = str(path) if request.param == "sqlite" else postgres.fresh_url(migrated=False)
    engine = open_engine(url)
    migrate(engine, "0001")
    with engine.begin() as connection:
        for command in FIRST.strip().split(";\n"):
            connection.exec_driver_sql(command.rstrip(";"))
        spec = msgspec.json.encode(budget()).decode()
        connection.exec_driver_sql(f"INSERT INTO budget VALUES ('team-a', 'monthly', 1, 'b1', '{spec}', 0)")  # noqa: S608 - constants
    engine.dispose()
    yield url
    if request.param == "postgresql":
        postgres.drop(url)


def test_a_database_of_the_first_version_goes_on_where_it_was(first_version: str) -> None:
    store = Store(first_version)
    found = store.read(lambda connection: reports.spend(connection, NOW + 1, "team-a", "monthly"))
    assert found is not None
    assert (found.charged, found.leased, found.reserved, found.unreconciled) == (100, 200, 50, 0)
    message = SyncRequest(
        session="s1",
        seq=5,
        holdings=(Holding(account=1, granted=300, charged=250, need=100, first=100),),
        asks=(Ask(budget="team-a/monthly", namespace=""),),
    )

    def job(connection: Connection) -> SyncAnswer | Refusal:
        return sync_all(connection, [Said(caller(), message)], NOW + 1, ttl_ms=TTL_MS)[0]

    answer = store.submit(job).result(WAIT_S)
    assert isinstance(answer, SyncAnswer)
    assert (answer.accounts[0].verdict, answer.accounts[0].granted, answer.accounts[0].used) == ("Granted", 400, 250)
    assert store.submit(lambda connection: upkeep(connection, NOW + 2, TTL_MS)).result(WAIT_S).violations == 0
    store.close()


def test_a_ledger_that_is_killed_in_a_backup_leaves_no_file_that_looks_whole(path: Path, tmp_path: Path) -> None:
    Store(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE big (x)")
        connection.executemany("INSERT INTO big VALUES (zeroblob(100000))", [()] * 200)
        connection.commit()
    command = [sys.executable, "-m", "fairlead_operator.ledger.main", "--database", str(path), "backup", "copy.db"]
    process = subprocess.Popen(command, cwd=tmp_path)
    deadline = time.monotonic() + WAIT_S
    while not (tmp_path / "copy.db.part").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    if process.wait(WAIT_S) == -signal.SIGKILL and (tmp_path / "copy.db").exists():
        with closing(sqlite3.connect(tmp_path / "copy.db")) as connection:
            assert connection.execute(backup.CHECK).fetchone() == ("ok",)
    back_up(str(path), tmp_path / "copy.db")
