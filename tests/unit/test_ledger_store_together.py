"""Messages applied in one transaction leave the books, and answer, as if each had one of its own."""

from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fairlead_operator.ledger import escrow
from fairlead_operator.ledger.escrow import Account, Demand, Refusal, Row, Terms
from fairlead_operator.ledger.places import account_id
from fairlead_operator.ledger.together import Said, on_top, sync_all
from fairlead_router.contract import Ask, BudgetAction, Close, Holding, SyncAnswer, SyncRequest
from tests.builders.ledger import NOW, TTL_MS, SqliteLedger, budget, caller, line
from tests.builders.postgres import PostgresLedger

TABLES = {
    "account": "id",
    "holding": "session_id, account_id, class",
    "session": "id",
    "usage": "bucket, dim_id",
    "cost_hist": "bucket, dim_id, bin",
    "dim": "hash",
    "meta": "k",
    "window_ns": "window_id, namespace",
}
SESSIONS = ("s1", "s2", "s3")
KEYS = budget("keys", per="Caller", limit=1_000)
IDS = (*(account_id(KEYS, NOW, "team-a", key) for key in "abc"), 1)
"""The accounts of three keys, and one that does not exist."""
amounts = st.integers(0, 400)


@st.composite
def messages(draw: st.DrawFn) -> Said:
    """What routers say, in order or not, right or wrong."""
    session = draw(st.sampled_from(SESSIONS))
    asks = tuple(
        Ask(budget="team-a/keys", namespace="team-a", key=key, want=draw(amounts), need=draw(amounts), klass=klass)
        for key, klass in draw(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from((0, 1))), max_size=2))
    )
    places = draw(st.lists(st.tuples(st.sampled_from(IDS), st.sampled_from((0, 1))), max_size=3, unique=True))
    holdings = tuple(
        Holding(
            account=account,
            klass=klass,
            charged=draw(amounts),
            returned=draw(st.integers(0, 50)),
            need=0 if final else draw(amounts),
            final=final,
        )
        for account, klass in places
        for final in [draw(st.booleans())]
    )
    message = SyncRequest(
        session=session,
        seq=draw(st.integers(1, 5)),
        asks=asks,
        holdings=holdings,
        usage=tuple(line(feature=draw(st.sampled_from("xy"))) for _ in range(draw(st.integers(0, 2)))),
        replay=draw(st.sampled_from((False, False, False, True))),
        close=draw(st.sampled_from((None, None, None, Close(complete=True)))),
    )
    return Said(caller(draw(st.sampled_from((f"pod-{session}", f"pod-{session}", "other")))), message)


def run(ledger: SqliteLedger, said: Sequence[Said], *, remembering: bool = True) -> list[SyncAnswer | Refusal]:
    with ledger.engine.begin() as connection:
        if not remembering:
            connection.info.clear()
        return sync_all(connection, said, ledger.now, ttl_ms=TTL_MS, alarm=lambda _loss, _begun: None)


def dump(ledger: SqliteLedger) -> dict[str, list[Any]]:
    # Ids of dimensions go by the order of their first use, which groups do not keep.
    tables = {name: ledger.query(f"SELECT * FROM {name} ORDER BY {order}") for name, order in TABLES.items()}  # noqa: S608 - constants
    hashes = {row.id: row.hash for row in tables["dim"]}
    tables["dim"] = [tuple(row)[1:] for row in tables["dim"]]
    for name in ("usage", "cost_hist"):
        tables[name] = sorted((hashes[row.dim_id], row.bucket, *tuple(row)[2:]) for row in tables[name])
    return tables


def made(kind: type[SqliteLedger] = SqliteLedger) -> SqliteLedger:
    ledger = kind()
    ledger.put(1, KEYS)
    return ledger


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(messages(), min_size=1, max_size=6), min_size=1, max_size=5))
def test_a_group_does_what_its_messages_do_alone(groups: list[list[Said]]) -> None:
    together, alone = made(), made()
    try:
        agree([(together, group) for group in groups], alone)
    finally:
        together.close()
        alone.close()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from((0, 1)), st.lists(messages(), min_size=2, max_size=6)), min_size=1, max_size=6)
)
def test_a_group_does_what_its_messages_do_alone_whichever_ledger_on_postgresql_has_it(
    groups: list[tuple[int, list[Said]]],
) -> None:
    together, alone = made(PostgresLedger), made(PostgresLedger)
    assert isinstance(together, PostgresLedger)
    another = PostgresLedger(url=together.url)
    try:
        agree([((together, another)[which], group) for which, group in groups], alone)
    finally:
        another.engine.dispose()
        another.folder.cleanup()
        together.close()
        alone.close()


def agree(groups: Sequence[tuple[SqliteLedger, list[Said]]], alone: SqliteLedger) -> None:
    """Groups of ledgers, which remember, do what the same messages do one by one, with everything read each time."""
    for together, group in groups:
        together.now = alone.now
        answers = run(together, group)
        assert [msgspec.json.encode(a) if isinstance(a, SyncAnswer) else a for a in answers] == [
            msgspec.json.encode(a) if isinstance(a, SyncAnswer) else a
            for said in group
            for a in run(alone, [said], remembering=False)
        ]
        assert dump(together) == dump(alone)
        alone.now += TTL_MS // 2
        together.now = alone.now
        assert (together.upkeep(), alone.upkeep()) == (0, 0)


def test_messages_of_one_session_see_what_those_before_them_did() -> None:
    ledger = made()
    ask = Ask(budget="team-a/keys", namespace="team-a", key="a", need=300, first=300)
    first = SyncRequest(session="s1", seq=1, asks=(ask,))
    told = SyncRequest(session="s1", seq=2, holdings=(Holding(account=IDS[0], charged=100, returned=200, final=True),))
    answers = run(ledger, [Said(caller(), first), Said(caller(), first), Said(caller(), told), Said(caller(), told)])
    assert [answer.seq for answer in answers if isinstance(answer, SyncAnswer)] == [1, 1, 2, 2]
    assert ledger.query("SELECT held, charged, holders FROM account") == [(100, 100, 0)]
    assert ledger.query("SELECT count(*) FROM holding") == [(0,)]
    ledger.close()


# --- what was decided before others changed the account

TERMS = Terms(1_000, NOW - 1_000, NOW + 1_000, actions=(BudgetAction(at_percent=80, action="Pace"),))


@st.composite
def steps(draw: st.DrawFn, account: Account) -> tuple[Account, bool, int]:
    """An account after what a message may do to it, whether it was granted something, and the most that was held."""
    row = Row(granted=account.held, charged=account.charged)
    told = Row(granted=row.granted, charged=row.charged + draw(st.integers(0, row.out)))
    after, row = escrow.tell(account, row, replace(told, returned=draw(st.integers(0, told.out))))
    after = escrow.act(after, TERMS, NOW)
    demand = Demand(draw(amounts), draw(amounts), draw(amounts))
    outcome = escrow.grant(after, row, demand, terms=TERMS, klass=draw(st.sampled_from((0, 1))), now=NOW)
    return outcome.account, outcome.verdict == "Granted", outcome.account.held


@given(st.data(), st.integers(0, 1_000), st.integers(0, 1_000))
def test_a_decision_on_top_of_others_breaks_no_limit(data: st.DataObject, held: int, charged: int) -> None:
    loaded = Account(held=held, charged=min(held, charged), holders=2, cap_high=1_000)
    stored, _, _ = data.draw(steps(loaded))
    decided, granted, peak = data.draw(steps(loaded))
    made = on_top(decided, loaded, stored, peak=peak, terms=TERMS, now=NOW)
    if made is None:
        assert stored != loaded
        return
    for name in ("held", "charged", "holders"):
        assert getattr(made, name) - getattr(stored, name) == getattr(decided, name) - getattr(loaded, name)
    assert made.held <= TERMS.limit or not granted
    assert escrow.act(made, TERMS, NOW) == made


def test_a_decision_on_top_of_others_stands_unless_they_need_the_same_money() -> None:
    loaded = Account(held=100, charged=50, holders=2, cap_high=1_000)
    decided = replace(loaded, held=300, charged=80)
    for added, stands in ((0, True), (700, True), (701, False)):
        stored = replace(loaded, held=loaded.held + added, charged=60)
        made = on_top(decided, loaded, stored, peak=300, terms=TERMS, now=NOW)
        assert made == (replace(loaded, held=300 + added, charged=90) if stands else None)
    for other in (replace(loaded, recall_until=NOW), replace(loaded, refused_ms=NOW), replace(loaded, acted=80)):
        assert on_top(decided, loaded, other, peak=300, terms=TERMS, now=NOW) is None
        assert (
            on_top(replace(other, held=300), loaded, replace(loaded, held=101), peak=300, terms=TERMS, now=NOW) is None
        )
    begins_to_pace = replace(loaded, charged=770, held=800)
    assert on_top(decided, loaded, begins_to_pace, peak=300, terms=TERMS, now=NOW) is None
