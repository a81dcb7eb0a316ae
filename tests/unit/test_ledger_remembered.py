"""Holdings that a ledger remembers between transactions on a PostgreSQL that others write to as well."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from fairlead_operator.ledger import remembered
from fairlead_operator.ledger.escrow import NOTHING, Row, Session
from fairlead_operator.ledger.postgres import raw
from fairlead_operator.ledger.remembered import Held, Memory, memory_of
from fairlead_operator.ledger.schema import open_engine
from fairlead_operator.ledger.store import AgainError, Store
from fairlead_operator.ledger.together import Said, sync_all
from fairlead_operator.ledger.transaction import SqlBooks
from fairlead_router.contract import Ask, Close, Holding, SyncAnswer, SyncRequest
from tests.builders.ledger import TTL_MS, budget, caller, holding, said
from tests.builders.postgres import PostgresLedger

WHO = caller()


@pytest.fixture
def ledger() -> Iterator[PostgresLedger]:
    """A ledger with a budget of which session s1 was granted 500."""
    found = PostgresLedger()
    found.put(1, budget(limit=1_000))
    said(found, asks=(Ask(budget="team-a/monthly", namespace="", want=1_000, need=10, first=10),))
    yield found
    found.close()


@pytest.fixture
def another(ledger: PostgresLedger) -> Iterator[PostgresLedger]:
    """Another ledger on the same database."""
    found = PostgresLedger(url=ledger.url)
    yield found
    found.engine.dispose()
    found.folder.cleanup()


def remembers(connection: Connection) -> bool:
    """Whether a connection would believe what it remembers of s1; it remembers nothing afterwards."""
    stored = SqlBooks(connection, 0).sessions({"s1"})
    return memory_of(connection).take("s1", stored["s1"]) is not None


def test_what_a_session_held_is_remembered_until_it_speaks_to_another_ledger(
    ledger: PostgresLedger, another: PostgresLedger
) -> None:
    said(ledger, 2, holdings=(holding(ledger, charged=100, need=100, first=10),))
    with ledger.engine.begin() as connection:
        assert remembers(connection)
    said(ledger, 3, holdings=(holding(ledger, charged=200),))
    more = said(another, 4, holdings=(holding(ledger, charged=300, need=50, first=50),)).accounts[0].granted
    with ledger.engine.begin() as connection:
        assert not remembers(connection)
    told = said(ledger, 5, holdings=(holding(ledger, granted=more, charged=400, returned=20),))
    assert told.accounts[0].granted == more
    assert ledger.query("SELECT granted, returned, charged FROM holding") == [(more, 20, 400)]
    assert ledger.query("SELECT held, charged FROM account") == [(more - 20, 400)]
    assert ledger.upkeep() == 0


def test_a_message_that_another_ledger_heard_again_is_reason_enough_to_read(
    ledger: PostgresLedger, another: PostgresLedger
) -> None:
    another.now += 1
    said(another)
    with ledger.engine.begin() as connection:
        assert not remembers(connection)


def test_a_transaction_that_is_undone_leaves_nothing(ledger: PostgresLedger) -> None:
    told = holding(ledger, charged=400)
    said = [Said(WHO, SyncRequest(session="s1", seq=2, holdings=(told,)))]
    with ledger.engine.connect() as connection, connection.begin() as transaction:
        sync_all(connection, said, ledger.now, ttl_ms=TTL_MS)
        transaction.rollback()
    with ledger.engine.connect() as connection, connection.begin() as transaction:
        # Even if another ledger stored the same message at the same instant, with other grants.
        connection.execute(text("UPDATE session SET seq = 2, seen_ms = :now"), {"now": ledger.now})
        assert not remembers(connection)
        transaction.rollback()
    answer = ledger.sync(WHO, said[0].message)
    assert isinstance(answer, SyncAnswer)
    assert ledger.query("SELECT charged FROM holding") == [(400,)]


def test_a_connection_that_breaks_says_so_and_the_next_one_believes_nothing(ledger: PostgresLedger) -> None:
    end = "SELECT pg_terminate_backend(pg_backend_pid())"
    said(ledger, 2, holdings=(holding(ledger, charged=100),))
    with pytest.raises(OperationalError, match="terminat"), ledger.engine.begin() as connection:
        connection.execute(text(end))
    with ledger.engine.begin() as connection:
        assert not remembers(connection)
    said(ledger, 3, holdings=(holding(ledger, charged=200),))
    with pytest.raises(OperationalError, match="lost"), ledger.engine.begin() as connection:
        raw(connection).execute(end)
    said(ledger, 4, holdings=(holding(ledger, charged=300),))
    assert ledger.query("SELECT charged FROM account") == [(300,)]


def test_a_holding_that_upkeep_dropped_is_not_stored_from_memory(ledger: PostgresLedger) -> None:
    told = holding(ledger, charged=400)
    final = holding(ledger, charged=400, final=True)
    drop = "DELETE FROM holding"
    for message in (told, final):
        with ledger.engine.begin() as connection:
            connection.exec_driver_sql(drop)
        with pytest.raises(AgainError):
            said(ledger, 2, holdings=(message,))
        with ledger.engine.begin() as connection:
            connection.exec_driver_sql(
                f"INSERT INTO holding VALUES ('s1', {told.account}, 1, {told.granted}, 0, 0, 0, 0)"  # noqa: S608 - numbers
            )
        said(ledger)  # it is remembered as it was


def test_a_store_does_again_without_memory_what_memory_was_wrong_about(ledger: PostgresLedger) -> None:
    store = Store(ledger.url)

    def job(connection: Connection, seq: int, told: Holding) -> SyncAnswer:
        said = Said(WHO, SyncRequest(session="s1", seq=seq, holdings=(told,)))
        answer = sync_all(connection, [said], ledger.now, ttl_ms=TTL_MS, alarm=lambda _loss, _begun: None)[0]
        assert isinstance(answer, SyncAnswer)
        return answer

    told = holding(ledger), holding(ledger, charged=50)
    store.submit(lambda connection: job(connection, 2, told[0])).result(60)
    store.submit(lambda connection: connection.exec_driver_sql("DELETE FROM holding")).result(60)
    answer = store.submit(lambda connection: job(connection, 3, told[1])).result(60)
    assert answer.seq == 3
    assert ledger.query("SELECT granted, charged FROM holding") == [(told[1].granted, 50)]
    store.close()


def test_whoever_needs_all_that_a_session_holds_reads_it(ledger: PostgresLedger) -> None:
    said(ledger, 2, holdings=(holding(ledger, charged=100),))
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM holding")
        connection.exec_driver_sql("UPDATE account SET held = 100, unreconciled = 0, holders = 0")
    said(ledger, 3, close=Close(complete=True))
    assert ledger.query("SELECT held, charged, holders FROM account") == [(100, 100, 0)]


def test_memory_ends_with_its_connection(ledger: PostgresLedger) -> None:
    engine = open_engine(ledger.url)
    with engine.connect() as connection:
        memory = memory_of(connection)
        assert memory_of(connection) is memory
    engine.dispose()
    with engine.connect() as connection:
        assert memory_of(connection) is not memory
    engine.dispose()


def test_memory_that_has_grown_too_large_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST", 3)
    memory, sessions = Memory(), [Session(f"s{number}", "", "", 1, 1) for number in range(4)]
    held = Held()
    held.add({(1, 1): Row(granted=1)})
    for session in sessions:
        memory.leave(session, held)
    assert [memory.take(session.id, session) for session in sessions] == [None] * 4
    memory.leave(sessions[0], held)
    assert memory.take("s0", sessions[0]) is held


def test_what_was_written_is_what_is_stored() -> None:
    held = Held()
    held.add({(1, 1): Row(granted=1), (2, 1): Row(granted=2)})
    held.put({(1, 1): NOTHING, (3, 1): Row(granted=3)})
    held.written()
    assert held.rows == {(2, 1): Row(granted=2), (3, 1): Row(granted=3)}
    assert (held.stored, held.changed) == ({(2, 1), (3, 1)}, set())
    held.put({(2, 1): Row(granted=4)})
    held.replace({(2, 1): Row(granted=2), (4, 1): Row(granted=4)})
    assert held.rows == {(2, 1): Row(granted=4), (4, 1): Row(granted=4)}
    assert (held.stored, held.all) == ({(2, 1), (4, 1)}, True)
