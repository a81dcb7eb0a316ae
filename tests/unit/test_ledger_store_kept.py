"""Books kept in memory between transactions: believed only where the database shows that nothing else happened."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection

from fairlead_operator.ledger.kept import MOST, Memory, keep, recall
from fairlead_operator.ledger.together import Said, sync_all
from fairlead_operator.ledger.transaction import SqlBooks
from fairlead_router.contract import Ask, SyncRequest
from tests.builders.ledger import TTL_MS, SqliteLedger, budget, caller, holding, line, said

WHO = caller()


@pytest.fixture
def ledger() -> Iterator[SqliteLedger]:
    """A ledger on a file, with a budget of which session s1 was granted 500."""
    found = SqliteLedger()
    found.put(1, budget(limit=1_000))
    said(found, asks=(Ask(budget="team-a/monthly", namespace="", want=1_000, need=10, first=10),))
    yield found
    found.engine.dispose()
    found.folder.cleanup()


def remembered(connection: Connection) -> Memory:
    return recall(connection, SqlBooks(connection, 0))


def test_what_a_transaction_left_is_there_for_the_next_one(ledger: SqliteLedger) -> None:
    with ledger.engine.begin() as connection:
        memory = remembered(connection)
    assert [sorted(memory.sessions), memory.holdings, len(memory.entries)] == [["s1"], 1, 1]


def test_a_transaction_that_is_not_committed_leaves_nothing(ledger: SqliteLedger) -> None:
    told = holding(ledger, charged=400)
    with ledger.engine.connect() as connection, connection.begin() as transaction:
        sync_all(connection, [Said(WHO, SyncRequest(session="s1", seq=2, holdings=(told,)))], ledger.now, ttl_ms=TTL_MS)
        transaction.rollback()
    with ledger.engine.begin() as connection:
        assert not remembered(connection).sessions
    said(ledger, 2, holdings=(told,))
    assert ledger.query("SELECT charged FROM account") == [(400,)]


def test_what_others_change_is_seen_whichever_connection_they_use(ledger: SqliteLedger) -> None:
    statement = "UPDATE account SET held = 1000, charged = 1000, cap_high = 1000"
    with ledger.engine.connect(), ledger.engine.begin() as another:  # the first one is the ledger's own
        another.exec_driver_sql(statement)
    refused = said(ledger, 2, holdings=(holding(ledger, need=50, first=50),)).accounts[0]
    assert refused.verdict == "Exhausted"
    ledger.put(2, budget(limit=5_000))
    assert said(ledger, 3, holdings=(holding(ledger, need=50, first=50),)).accounts[0].verdict == "Granted"


def test_a_repeated_message_leaves_nothing_that_could_be_mistaken(ledger: SqliteLedger) -> None:
    said(ledger, 1)
    with ledger.engine.begin() as connection:
        assert not remembered(connection).sessions


def test_memory_that_has_grown_too_large_begins_anew(ledger: SqliteLedger) -> None:
    with ledger.engine.begin() as connection:
        memory = remembered(connection)
        memory.holdings = MOST + 1
        keep(connection, memory)
        assert not remembered(connection).sessions


def test_dimensions_keep_their_numbers_from_message_to_message(ledger: SqliteLedger) -> None:
    for seq in (2, 3):
        said(ledger, seq, usage=(line(), line(feature="other")))
    assert ledger.query("SELECT requests FROM usage ORDER BY dim_id") == [(2,), (2,)]
