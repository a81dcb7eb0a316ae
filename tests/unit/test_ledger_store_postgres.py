"""Several ledgers on one PostgreSQL: what one does, no other does again, and no sum of theirs breaks a limit."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from operator import attrgetter
from typing import Any

import msgspec
import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from fairlead_operator.ledger import catalog
from fairlead_operator.ledger import postgres as postgres_dialect
from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.escrow import Refusal
from fairlead_operator.ledger.schema import NewerSchemaError, metadata, migrate, open_engine
from fairlead_operator.ledger.store import OverloadError, Store, UnwritableError
from fairlead_operator.ledger.together import Said, sync_all
from fairlead_operator.ledger.upkeep import audit, upkeep
from fairlead_router.contract import AccountAnswer, Ask, Close, Holding, PutBudgets, SyncAnswer, SyncRequest
from tests.builders import postgres
from tests.builders.ledger import budget, caller, line

TTL_MS = 30_000
LIMIT = 1_400
ROUTERS = 8
WAIT_S = 60


@pytest.fixture
def url() -> Iterator[str]:
    made = postgres.fresh_url()
    yield made
    postgres.drop(made)


@pytest.fixture
def ledgers(url: str) -> Iterator[tuple[Store, Store]]:
    stores = Store(url), Store(url)
    put = PutBudgets(version=(1, 1), budgets=(budget(limit=LIMIT, period="Year"),))
    assert stores[0].submit(lambda connection: catalog.put_budgets(connection, put, now_ms())).result(WAIT_S) is None
    yield stores
    for store in stores:
        store.close()


def now_ms() -> int:
    return int(time.time() * 1000)


def spoken(who: str, message: SyncRequest) -> Callable[[Connection], SyncAnswer | Refusal]:
    def job(connection: Connection) -> SyncAnswer | Refusal:
        now = sql.database_now(connection)
        assert now is not None
        return sync_all(connection, [Said(caller(who), message)], now, ttl_ms=TTL_MS)[0]

    return job


def told(store: Store, who: str, message: SyncRequest) -> SyncAnswer:
    answer = store.submit(spoken(who, message)).result(WAIT_S)
    assert isinstance(answer, SyncAnswer), answer
    return answer


def put_meta(connection: Connection, key: str, value: str = "0") -> None:
    sql.write(connection, sql.PUT_META, [{"k": key, "v": value}])


def accounts(answer: SyncAnswer | Refusal) -> tuple[AccountAnswer, ...]:
    assert isinstance(answer, SyncAnswer), answer
    return answer.accounts


def one(store: Store, text: str) -> Any:
    return store.read(lambda connection: tuple(connection.exec_driver_sql(text).one()))


ASK = Ask(budget="team-a/monthly", namespace="", want=7, need=7, first=1)


def test_migrations_make_exactly_the_tables_that_the_code_uses_however_many_ledgers_start() -> None:
    url = postgres.fresh_url(migrated=False)
    with ThreadPoolExecutor(4) as pool:
        for store in pool.map(Store, [url] * 4):
            store.close()
    engine = open_engine(url)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(NewerSchemaError, match="9999"):
        migrate(engine)
    engine.dispose()
    postgres.drop(url)


def test_all_start_with_one_epoch(url: str) -> None:
    stores = Store(url), Store(url)
    names = [
        store.submit(partial(catalog.epoch, new=partial(str, name)))
        for name, store in zip(("e1", "e2"), stores, strict=True)
    ]
    assert len({name.result(WAIT_S) for name in names}) == 1
    for store in stores:
        store.close()


def test_two_ledgers_that_grant_at_once_hold_exactly_the_limit(ledgers: tuple[Store, Store]) -> None:
    def talk(number: int) -> int:
        seq = granted = account = 0
        while True:
            seq += 1
            holdings = (
                (Holding(account=account, granted=granted, charged=granted, want=7, need=7, first=1),)
                if granted
                else ()
            )
            message = SyncRequest(
                session=f"s{number}",
                seq=seq,
                asks=() if granted else (ASK,),
                holdings=holdings,
                usage=(line(nano_usd=1, feature=f"f{seq % 3}"),),
            )
            answer = told(ledgers[seq % 2], f"pod-{number}", message).accounts[0]
            granted, account = answer.granted, answer.account
            if answer.verdict != "Granted":
                return seq

    with ThreadPoolExecutor(ROUTERS) as pool:
        said = sum(pool.map(talk, range(ROUTERS)))
    held, charged, high = one(ledgers[0], "SELECT held, charged, cap_high FROM account")
    assert (held, high) == (LIMIT, LIMIT)
    assert charged <= held
    assert one(ledgers[0], "SELECT sum(nano_usd)::bigint, sum(requests)::bigint FROM usage") == (said, said)
    assert one(ledgers[0], "SELECT sum(n)::bigint FROM cost_hist") == (said,)
    assert ledgers[1].submit(lambda c: upkeep(c, now_ms(), TTL_MS)).result(WAIT_S).violations == 0


def test_a_message_that_comes_twice_at_once_is_applied_once(ledgers: tuple[Store, Store]) -> None:
    for number in range(10):
        first = SyncRequest(session=f"s{number}", seq=1, asks=(ASK,), usage=(line(nano_usd=1),))
        answers = [store.submit(spoken("pod-1", first)) for store in ledgers for _ in range(3)]
        assert {accounts(answer.result(WAIT_S))[0].granted for answer in answers} == {7}
    assert one(ledgers[0], "SELECT held, holders FROM account") == (70, 10)
    assert one(ledgers[0], "SELECT sum(nano_usd)::bigint FROM usage") == (10,)


def test_new_keys_that_come_to_both_ledgers_at_once_are_opened_once(ledgers: tuple[Store, Store]) -> None:
    put = PutBudgets(version=(1, 2), budgets=(budget("keys", per="Caller", period="Year", limit=LIMIT),))
    ledgers[0].submit(lambda connection: catalog.put_budgets(connection, put, now_ms())).result(WAIT_S)
    asks = tuple(Ask(budget="team-a/keys", namespace="team-a", key=f"k{n}", need=7, first=1) for n in range(20))
    answers = [
        ledgers[number % 2].submit(spoken(f"pod-{number}", SyncRequest(session=f"s{number}", seq=1, asks=asks)))
        for number in range(ROUTERS)
    ]
    for answer in answers:
        assert len(accounts(answer.result(WAIT_S))) == 20
    assert one(ledgers[0], "SELECT count(*), sum(held)::bigint FROM account") == (20, 20 * ROUTERS * 7)
    assert one(ledgers[0], "SELECT count(*) FROM budget_window") == (1,)


def test_transactions_that_wait_for_each_other_are_run_again(ledgers: tuple[Store, Store]) -> None:
    for key in ("a", "b"):
        ledgers[0].submit(partial(put_meta, key=key)).result(WAIT_S)
    both_hold_one = threading.Barrier(2)
    runs: list[str] = []

    def crossing(first: str, second: str) -> Callable[[Connection], None]:
        def job(connection: Connection) -> None:
            runs.append(first)
            add = "UPDATE meta SET v = (v::int + 1)::text WHERE k = '{}'"
            connection.exec_driver_sql(add.format(first))
            if len(runs) <= 2:
                both_hold_one.wait(WAIT_S)
            connection.exec_driver_sql(add.format(second))

        return job

    jobs = [ledgers[0].submit(crossing("a", "b")), ledgers[1].submit(crossing("b", "a"))]
    for job in jobs:
        job.result(WAIT_S)
    assert len(runs) >= 3
    assert one(ledgers[0], "SELECT string_agg(v, ',') FROM meta WHERE k IN ('a', 'b')") == ("2,2",)


def test_sessions_that_fell_silent_are_lost_once(ledgers: tuple[Store, Store]) -> None:
    told(ledgers[0], "pod-1", SyncRequest(session="s1", seq=1, asks=(ASK,)))
    later = now_ms() + 2 * TTL_MS
    rounds = [store.submit(lambda c: upkeep(c, later, TTL_MS)) for store in ledgers for _ in range(2)]
    assert sum(health.result(WAIT_S).lost for health in rounds) == 1
    assert one(ledgers[0], "SELECT held, unreconciled FROM account") == (7, 7)


def test_a_promoted_standby_grants_nothing_for_one_ttl(url: str) -> None:
    Store(url, recovery_ms=TTL_MS).close()
    with psycopg.connect(url, autocommit=True) as connection:
        assert connection.execute("SELECT 1 FROM meta WHERE k = 'recovery_until'").fetchone() is None
        connection.execute("UPDATE meta SET v = '000000FF' WHERE k = 'pg_timeline'")
    before = now_ms()
    store = Store(url, recovery_ms=TTL_MS)
    (until,) = one(store, "SELECT v FROM meta WHERE k = 'recovery_until'")
    assert before + TTL_MS <= int(until) <= now_ms() + TTL_MS
    assert one(store, "SELECT what, detail FROM audit") == ("Promoted", "000000FF to 00000001")
    store.close()


def test_a_promoted_synchronous_standby_lacks_nothing_and_goes_on(url: str) -> None:
    Store(url).close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE meta SET v = '000000FF' WHERE k = 'pg_timeline'")
    store = Store(url)
    assert one(store, "SELECT count(*) FROM meta WHERE k = 'recovery_until'") == (0,)
    store.close()


def test_a_database_that_goes_away_refuses_and_comes_back() -> None:
    server = postgres.start()
    store = Store(server.url("postgres"))
    put = [{"k": "a", "v": "1"}]
    store.submit(lambda c: sql.write(c, sql.PUT_META, put)).result(WAIT_S)
    server.halt()
    with pytest.raises(UnwritableError):
        store.submit(lambda c: sql.write(c, sql.PUT_META, put)).result(WAIT_S)
    server.resume()
    store.submit(lambda c: sql.write(c, sql.PUT_META, [{"k": "b", "v": "1"}])).result(WAIT_S)
    assert one(store, "SELECT count(*) FROM meta WHERE k IN ('a', 'b')") == (2,)
    store.close()
    server.stop()


def test_an_answer_that_was_not_waited_for_still_undoes_the_transaction(ledgers: tuple[Store, Store]) -> None:
    def job(connection: Connection) -> None:
        with sql.unanswered(connection):
            put_meta(connection, "a")
            sql.write_many(connection, sql.ADD_HOLDING, [("s1", 1, 1, 0, 5, 0, 0, 0)])  # returns what was not granted
            put_meta(connection, "b")

    with pytest.raises(psycopg.errors.CheckViolation, match="holding_out"):
        ledgers[0].submit(job).result(WAIT_S)
    ledgers[0].submit(lambda connection: put_meta(connection, "c")).result(WAIT_S)
    assert one(ledgers[0], "SELECT count(*) FROM meta WHERE k IN ('a', 'b', 'c')") == (1,)


def test_texts_are_stored_as_they_are(ledgers: tuple[Store, Store]) -> None:
    texts = ["", "null", "a b", "{}", "[,]", '"', "\\", '\\"', "\n\t", "ü", "'"]
    rows = [{"k": f"text {number}", "v": text} for number, text in enumerate(texts)]
    ledgers[0].submit(lambda connection: sql.write(connection, sql.PUT_META, rows)).result(WAIT_S)
    found = ledgers[1].read(lambda connection: dict(iter(sql.read(connection, sql.ALL_META))))
    assert [found[row["k"]] for row in rows] == texts
    assert postgres_dialect.array([1, None, "null"]) == '{1,null,"null"}'
    assert postgres_dialect.array([1, None, "\\"]) == '{1,null,"\\\\"}'


def test_updates_leave_the_indexes_alone(ledgers: tuple[Store, Store]) -> None:
    def put(connection: Connection, charged: int) -> None:
        totals, places = (9, 0, charged, 0, 0), [("s1", account, 1) for account in range(500)]
        if charged == 0:
            sql.write_many(connection, sql.ADD_HOLDING, [(*place, *totals) for place in places])
        else:
            sql.write_many(connection, sql.PUT_HOLDING, [(*totals, *place) for place in places])
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")

    for charged in range(3):
        ledgers[0].submit(partial(put, charged=charged)).result(WAIT_S)
    counts = "pg_stat_get_tuples_updated(oid), pg_stat_get_tuples_hot_updated(oid)"
    updated, light = one(ledgers[1], f"SELECT {counts} FROM pg_class WHERE relname = 'holding'")  # noqa: S608
    assert updated == 1_000
    assert light > 900  # pages are full now and then; without room in them, it is some 30


def test_what_is_read_is_one_state(ledgers: tuple[Store, Store]) -> None:
    def query(connection: Connection) -> tuple[int, int]:
        count = "SELECT count(*) FROM meta"
        before = connection.exec_driver_sql(count).scalar_one()
        ledgers[1].submit(lambda c: sql.write(c, sql.PUT_META, [{"k": "new", "v": "1"}])).result(WAIT_S)
        return before, connection.exec_driver_sql(count).scalar_one()

    before, after = ledgers[0].read(query)
    assert before == after
    assert issubclass(UnwritableError, OverloadError)


# --- who waits for whom: accounts are locked at once and in one order, for which another ledger stands here


class OtherLedger:
    """A transaction of another ledger, which locks accounts one by one."""

    def __init__(self, url: str) -> None:
        self._watch = psycopg.connect(url, autocommit=True)
        self.connection = psycopg.connect(url)

    def lock(self, account: int) -> None:
        self.connection.execute("SELECT 1 FROM account WHERE id = %s FOR NO KEY UPDATE", [account])

    def wait_for(self, job: Future[Any]) -> None:
        """Until the job waits for a lock, or needed none."""
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        deadline = time.monotonic() + WAIT_S
        while not job.done() and self._watch.execute(waiting).fetchone() == (0,):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def commit(self) -> None:
        self.connection.commit()

    def close(self) -> None:
        self.connection.close()
        self._watch.close()


@pytest.fixture
def other(url: str) -> Iterator[OtherLedger]:
    made = OtherLedger(url)
    yield made
    made.close()


class Keys:
    """A budget by key with two accounts, ``low`` before ``high`` in the order of their ids."""

    def __init__(self, store: Store) -> None:
        self.store = store
        put = PutBudgets(version=(1, 2), budgets=(budget("keys", per="Caller", period="Year", limit=LIMIT),))
        store.submit(lambda connection: catalog.put_budgets(connection, put, now_ms())).result(WAIT_S)
        opened = told(store, "pod-0", SyncRequest(session="s0", seq=1, asks=(self.ask("a"), self.ask("b"))))
        told(store, "pod-0", SyncRequest(session="s0", seq=2, close=Close(complete=True)))
        low, high = sorted(opened.accounts, key=attrgetter("account"))
        self.low, self.high = low.account, high.account
        self.low_ask, self.high_ask = self.ask(low.key), self.ask(high.key)

    def ask(self, key: str) -> Ask:
        return Ask(budget="team-a/keys", namespace="team-a", key=key, need=7, first=1)

    def hold(self, session: str, *asks: Ask) -> None:
        told(self.store, f"pod-{session}", SyncRequest(session=session, seq=1, asks=asks))

    def lose(self) -> None:
        lost = self.store.submit(lambda c: upkeep(c, now_ms() + 2 * TTL_MS, TTL_MS)).result(WAIT_S).lost
        assert lost > 0

    def spend(self, account: int) -> Holding:
        return Holding(account=account, granted=7, charged=3)


Step = Callable[[Keys], Callable[[Connection], Any]]


def comes_twice(keys: Keys) -> Callable[[Connection], Any]:
    keys.hold("s1", keys.low_ask, keys.high_ask)
    again = SyncRequest(session="s1", seq=2, holdings=(keys.spend(keys.high),))
    told(keys.store, "pod-s1", again)
    group = [Said(caller("pod-s1"), again)] * 2
    return lambda connection: sync_all(connection, group, now_ms(), ttl_ms=TTL_MS)


def is_heard_again(keys: Keys) -> Callable[[Connection], Any]:
    keys.hold("s1", keys.high_ask)
    keys.lose()
    return spoken("pod-s1", SyncRequest(session="s1", seq=2, asks=(keys.low_ask,)))


def is_replayed(keys: Keys) -> Callable[[Connection], Any]:
    keys.hold("s1", keys.low_ask, keys.high_ask)
    return spoken("pod-s1", SyncRequest(session="s1", seq=2, replay=True, holdings=(keys.spend(keys.high),)))


def are_lost(keys: Keys) -> Callable[[Connection], Any]:
    keys.hold("s1", keys.high_ask)
    keys.hold("s2", keys.low_ask)
    later = now_ms() + 2 * TTL_MS
    return lambda connection: upkeep(connection, later, TTL_MS)


@pytest.mark.parametrize("step", [comes_twice, is_heard_again, is_replayed, are_lost])
def test_no_circle_of_waiting_when_a_session(step: Step, ledgers: tuple[Store, Store], other: OtherLedger) -> None:
    keys = Keys(ledgers[0])
    job = step(keys)
    runs = []

    def counted(connection: Connection) -> Any:
        runs.append(1)
        return job(connection)

    other.lock(keys.low)
    done = ledgers[1].submit(counted)
    other.wait_for(done)
    other.lock(keys.high)  # of a circle, one of the two would be ended now
    other.commit()
    done.result(WAIT_S)
    assert len(runs) == 1
    assert ledgers[0].submit(lambda c: audit(c, now_ms())).result(WAIT_S) == 0


def add_held(other: OtherLedger, amount: int) -> None:
    """As if another session had been granted more."""
    other.connection.execute("UPDATE account SET held = held + %s, cap_high = %s", [amount, LIMIT])


@pytest.mark.parametrize(("others", "granted", "decided"), [(1_000, 7, 1), (LIMIT - 5, 5, 2), (LIMIT, 0, 2)])
def test_what_others_are_granted_between_decision_and_commit_counts(
    others: int, granted: int, decided: int, ledgers: tuple[Store, Store], other: OtherLedger
) -> None:
    runs = []

    def job(connection: Connection) -> SyncAnswer | Refusal:
        runs.append(1)
        ask = Ask(budget="team-a/monthly", namespace="", want=7, need=5, first=1)
        return spoken("pod-1", SyncRequest(session="s1", seq=2, asks=(ask,)))(connection)

    told(
        ledgers[0],
        "pod-1",
        SyncRequest(session="s1", seq=1, asks=(msgspec.structs.replace(ASK, want=0, need=0, first=0),)),
    )
    add_held(other, others)
    answer = ledgers[0].submit(job)
    other.wait_for(answer)
    other.commit()
    assert accounts(answer.result(WAIT_S))[0].granted == granted
    assert one(ledgers[0], "SELECT held FROM account") == (others + granted,)
    assert len(runs) == decided
