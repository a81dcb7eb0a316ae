"""Usage reports: parts add up to the whole however they are cut, also where quarter hours have become days."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, text

from fairlead_operator.ledger import catalog, reports, usage
from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.idle import put_idle
from fairlead_operator.ledger.reports import DIMENSIONS, QueryError, UsageQuery, percentile, usage_query, usage_report
from fairlead_operator.ledger.rollup import DAY_MS, QUARTERS_MS, days_until, roll_up
from fairlead_operator.ledger.schema import account, budget_window, open_engine
from fairlead_router.contract import (
    BUCKET_MS,
    BudgetAction,
    CostRow,
    LedgerBudget,
    PutBudgets,
    PutCosts,
    SpendAnswer,
    TemporaryIncrease,
    UsageAnswer,
    UsageLine,
    UsageRow,
    bin_upper_nano,
    cost_bin,
)
from tests.builders.ledger import HOUR, NOW, SqliteLedger, line
from tests.builders.ledger import budget as hourly
from tests.builders.postgres import fresh_url

MIDNIGHT = NOW // DAY_MS * DAY_MS
SUMS = ("requests", "prompt", "cached", "output", "nano_usd", "saved")


def lines(most: int = 12) -> st.SearchStrategy[list[UsageLine]]:
    """Requests of two days by several dimensions."""
    one = st.builds(
        lambda quarter, namespace, feature, attempt, cost, count: line(
            bucket=MIDNIGHT - 2 * DAY_MS + quarter * BUCKET_MS,
            namespace=namespace,
            feature=feature,
            attempt=attempt,
            requests=count,
            prompt=count * 7,
            cached=count * 3,
            output=count * 2,
            nano_usd=cost * count,
            saved=cost,
            bins={str(cost_bin(cost)): count},
        ),
        st.integers(0, 191),
        st.sampled_from(["team-a", "team-b"]),
        st.sampled_from(["", "search", "chat"]),
        st.sampled_from(["Primary", "Fallback", "Wasted"]),
        st.integers(0, 10**12),
        st.integers(1, 1000),
    )
    return st.lists(one, max_size=most)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"], name="ledger")
def _ledger(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A real database of each kind."""
    if request.param == "postgresql":
        engine = open_engine(fresh_url())
        yield engine
        engine.dispose()
        return
    ledger = SqliteLedger()
    yield ledger.engine
    ledger.close()


def within(ledger: Engine, job: Callable[[Connection], None]) -> None:
    """Run a job in a transaction that leaves nothing behind."""
    with ledger.connect() as connection:
        transaction = connection.begin()
        job(connection)
        transaction.rollback()


def asked(connection: Connection, *by: str, since: int = 0, until: int = NOW + DAY_MS, **other: object) -> UsageAnswer:
    query = UsageQuery(by, since, until, **other)  # type: ignore[arg-type]
    return usage_report(connection, query)


def totals(rows: "tuple[UsageRow, ...] | list[UsageLine]") -> dict[str, int]:
    return {name: sum(getattr(row, name) for row in rows) for name in SUMS}


def rolled(connection: Connection, now: int, rounds: int = 200) -> None:
    """Roll up until nothing is left to do, or for so many rounds."""
    for _ in range(rounds):
        roll_up(connection, now)
        if days_until(connection) >= (now - QUARTERS_MS) // DAY_MS * DAY_MS:
            return


# --- parts and whole


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines(), st.lists(st.sampled_from(DIMENSIONS), max_size=3, unique=True), st.sampled_from([1, 4, 96]))
def test_the_parts_add_up_to_the_whole_whatever_they_are_grouped_by(
    ledger: Engine, some: list[UsageLine], by: list[str], step: int
) -> None:
    def job(connection: Connection) -> None:
        usage.add(connection, tuple(some), NOW)
        answer = asked(connection, *by, step=step * BUCKET_MS)
        assert totals(answer.rows) == totals(some)
        assert sum(bill.charged for bill in answer.costs) == totals(some)["nano_usd"]

    within(ledger, job)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines(), st.integers(0, 250))
def test_adding_up_to_days_changes_no_total_and_no_percentile_of_any_day(
    ledger: Engine, some: list[UsageLine], rounds: int
) -> None:
    def job(connection: Connection) -> None:
        usage.add(connection, tuple(some), NOW)
        before = asked(connection, "time", "namespace", "feature", step=DAY_MS).rows
        rolled(connection, NOW + QUARTERS_MS + DAY_MS, rounds)
        assert asked(connection, "time", "namespace", "feature", step=DAY_MS).rows == before

    within(ledger, job)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines(), lines())
def test_late_lines_of_a_day_that_is_a_sum_already_are_counted_once(
    ledger: Engine, early: list[UsageLine], late: list[UsageLine]
) -> None:
    def job(connection: Connection) -> None:
        usage.add(connection, tuple(early), NOW)
        rolled(connection, NOW + QUARTERS_MS)
        usage.add(connection, tuple(late), NOW)
        rolled(connection, NOW + QUARTERS_MS + 2 * DAY_MS)
        assert totals(asked(connection).rows) == totals(early + late)

    within(ledger, job)


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**13), min_size=1), st.lists(st.integers(0, 10**13), min_size=1))
def test_histograms_merge_by_addition(left: list[int], right: list[int]) -> None:
    merged = Counter(map(cost_bin, left)) + Counter(map(cost_bin, right))
    assert merged == Counter(map(cost_bin, left + right))
    for percent in (50, 95, 99):
        exact = sorted(left + right)[-(-len(left + right) * percent // 100) - 1]
        assert exact <= percentile(merged, percent) <= max(1, exact * 5 // 4)


# --- time, filters, bills


def test_time_is_cut_in_steps_of_the_clock_and_the_bills_with_it(ledger: Engine) -> None:
    def job(connection: Connection) -> None:
        usage.add(connection, (line(), line(bucket=NOW - BUCKET_MS, nano_usd=30), line(bucket=NOW + BUCKET_MS)), NOW)
        bills = (bill(500), bill(70, bucket=NOW - BUCKET_MS), bill(5, bucket=NOW + BUCKET_MS))
        assert catalog.put_costs(connection, PutCosts(costs=bills, until=NOW)) is None
        answer = asked(connection, "time", step=4 * BUCKET_MS, since=NOW - DAY_MS)
        hours = {row.group: row.nano_usd for row in answer.rows}
        assert hours == {(str(NOW),): 200, (str(NOW - 4 * BUCKET_MS),): 30}
        assert [(row.bucket, row.nano_usd, row.charged) for row in answer.costs] == [
            (NOW - 4 * BUCKET_MS, 70, 30),
            (NOW, 505, 200),
        ]

    within(ledger, job)


def bill(nano_usd: int, **changes: object) -> CostRow:
    row: dict[str, object] = {"pool": "models/chat-8b", "variant": "h100", "bucket": NOW, "replica_ms": 9}
    return CostRow(**(row | changes), nano_usd=nano_usd)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["namespace", *reports.FILTERS])
def test_a_filter_keeps_what_equals_it_and_nothing_else(ledger: Engine, name: str) -> None:
    def job(connection: Connection) -> None:
        usage.add(connection, (line(**{name: ""}), line(**{name: "x"}, nano_usd=7), line(**{name: "xy"})), NOW)
        assert [row.nano_usd for row in asked_with(connection, {"by": "", name: "x"}).rows] == [7]
        assert [row.nano_usd for row in asked_with(connection, {"by": "", name: ""}).rows] == [100]

    within(ledger, job)


def asked_with(connection: Connection, parameters: dict[str, str], own: str | None = None) -> UsageAnswer:
    query = usage_query(parameters, NOW - DAY_MS, NOW + DAY_MS, own=own, now=NOW)
    return usage_report(connection, query)


def test_a_team_gets_its_own_usage_and_bills_whatever_it_asks_for(ledger: Engine) -> None:
    def job(connection: Connection) -> None:
        mine, theirs = line(pool="team-b/own"), line(namespace="team-b", pool="team-a/own", nano_usd=7)
        usage.add(connection, (mine, theirs), NOW)
        bills = (bill(50, pool="team-a/own"), bill(60, pool="team-b/own"), bill(70, pool="team-ab/own"))
        assert catalog.put_costs(connection, PutCosts(costs=bills, until=NOW)) is None
        for asked_for in ({}, {"namespace": "team-b"}, {"by": "namespace,pool", "pool": "team-a/own"}):
            answer = asked_with(connection, asked_for, own="team-a")
            assert sum(row.nano_usd for row in answer.rows) in {0, 100}
            assert [(row.pool, row.nano_usd, row.charged) for row in answer.costs] == [("team-a/own", 50, 7)]

    within(ledger, job)


def test_charges_on_a_pool_without_a_bill_show_as_negative_idle(ledger: Engine) -> None:
    def job(connection: Connection) -> None:
        usage.add(connection, (line(),), NOW)
        assert [(row.nano_usd, row.charged) for row in asked(connection).costs] == [(0, 100)]

    within(ledger, job)


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"by": "team"}, "by=team is not known"),
        ({"by": "pool,pool"}, "use each once"),
        ({"by": "time", "step": "1000"}, "multiple of 900000"),
        ({"by": "time", "step": "0"}, "multiple of 900000"),
        ({"by": "time", "step": "-900000"}, "multiple of 900000"),
        ({"by": "time", "step": "9" * 13}, "multiple of 900000"),
        ({"by": "pool", "step": "900000"}, "goes with by=time"),
    ],
)
def test_a_query_that_has_no_answer_is_refused_with_those_that_have_one(parameters: dict[str, str], word: str) -> None:
    with pytest.raises(QueryError, match=word):
        usage_query(parameters, 0, NOW, own=None, now=NOW)


def test_more_steps_than_an_answer_can_hold_are_refused() -> None:
    with pytest.raises(QueryError, match="more than 10000 steps"):
        usage_query({"by": "time"}, NOW - 10_001 * BUCKET_MS, NOW, own=None, now=NOW)


def test_more_groups_than_fit_are_refused(ledger: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MAX_GROUPS", 2)

    def job(connection: Connection) -> None:
        usage.add(connection, tuple(line(feature=f"f{number}") for number in range(3)), NOW)
        assert len(asked(connection, "namespace").rows) == 1
        with pytest.raises(QueryError, match="more than 2 groups"):
            asked(connection, "feature")

    within(ledger, job)


def test_the_cheapest_of_too_many_rows_are_one_row_for_each_step(
    ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "MAX_USAGE_ROWS", 2)

    def job(connection: Connection) -> None:
        some = [line(feature=f"f{number}", bucket=NOW + number % 2 * BUCKET_MS, nano_usd=number) for number in range(6)]
        usage.add(connection, tuple(some), NOW)
        rows = asked(connection, "time", "feature").rows
        assert [(row.group, row.nano_usd) for row in rows] == [
            ((str(NOW + BUCKET_MS), "f5"), 5),
            ((str(NOW), "~other"), 6),
            ((str(NOW + BUCKET_MS), "~other"), 4),
        ]

    within(ledger, job)


def test_a_time_among_days_is_widened_to_them_and_the_answer_says_so(ledger: Engine) -> None:
    def job(connection: Connection) -> None:
        usage.add(connection, (line(bucket=MIDNIGHT - DAY_MS + BUCKET_MS),), NOW)
        rolled(connection, MIDNIGHT + QUARTERS_MS)
        assert days_until(connection) == MIDNIGHT
        answer = asked(connection, since=MIDNIGHT - 3 * BUCKET_MS, until=MIDNIGHT - BUCKET_MS)
        assert (answer.since, answer.until, answer.days_until) == (MIDNIGHT - DAY_MS, MIDNIGHT, MIDNIGHT)
        assert totals(answer.rows)["nano_usd"] == 100
        assert asked(connection, since=MIDNIGHT + BUCKET_MS).since == MIDNIGHT + BUCKET_MS

    within(ledger, job)


def test_one_round_moves_one_quarter_hour(ledger: Engine) -> None:
    def job(connection: Connection) -> None:
        old = MIDNIGHT - DAY_MS
        usage.add(connection, (line(bucket=old + BUCKET_MS), line(bucket=old + 2 * BUCKET_MS), line()), NOW)
        roll_up(connection, NOW + QUARTERS_MS)
        buckets = text("SELECT bucket FROM usage ORDER BY bucket")
        assert [row[0] for row in connection.execute(buckets)] == [old, old + 2 * BUCKET_MS, NOW]
        rolled(connection, NOW + QUARTERS_MS)
        assert [row[0] for row in connection.execute(buckets)] == [old, NOW]

    within(ledger, job)


def test_two_ledgers_that_add_up_at_once_count_nothing_twice() -> None:
    engine = open_engine(fresh_url())
    some = tuple(line(bucket=MIDNIGHT - number * BUCKET_MS) for number in range(1, 40))
    with engine.begin() as connection:
        usage.add(connection, some, NOW)

    def rounds() -> None:
        for _ in range(60):
            with engine.begin() as connection:
                roll_up(connection, NOW + QUARTERS_MS)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(rounds), pool.submit(rounds)]:
            done.result()
    with engine.begin() as connection:
        assert totals(asked(connection).rows) == totals(list(some))
        assert days_until(connection) == MIDNIGHT
        assert connection.execute(text("SELECT count(*) FROM usage")).scalar_one() == 1
    engine.dispose()


# --- settled


def test_settled_is_the_oldest_word_of_an_open_router_and_of_the_operator_where_there_are_bills(
    ledger: Engine,
) -> None:
    def job(connection: Connection) -> None:
        assert asked(connection, now=NOW).settled == NOW
        for name, seen, state in (("s1", 70, "Open"), ("s2", 50, "Open"), ("s3", 10, "Lost")):
            connection.execute(
                text(
                    "INSERT INTO session (id, pod_uid, pod, seq, seen_ms, state) VALUES (:id, '', '', 1, :seen, :state)"
                ),
                {"id": name, "seen": NOW - 100 + seen, "state": state},
            )
        assert asked(connection, now=NOW).settled == NOW - 50
        assert catalog.put_costs(connection, PutCosts(costs=(bill(500),), until=NOW - 80)) is None
        assert asked(connection, now=NOW).settled == NOW - 80

    within(ledger, job)


def test_percentiles_of_a_free_request_are_zero_and_of_none_too() -> None:
    assert percentile(Counter({cost_bin(0): 3}), 99) == 0
    assert percentile(Counter(), 50) == 0
    assert bin_upper_nano(cost_bin(1)) == 1


# --- spend


def spent(connection: Connection, budget: LedgerBudget, now: int = NOW, **books: int) -> SpendAnswer:
    """What is told of a budget whose one account has these books in the window of NOW."""
    assert catalog.put_budgets(connection, PutBudgets(version=(1, 1), budgets=(budget,)), NOW) is None
    row = sql.read_rows(connection, sql.BUDGETS, [(budget.namespace, budget.name)])[0]
    window = {"series_id": row.series_id, "start_ms": NOW, "end_ms": NOW + HOUR}
    id_ = connection.execute(budget_window.insert().values(window).returning(budget_window.c.id)).scalar_one()
    connection.execute(account.insert().values(window_id=id_, namespace="", key="", **books))
    put_idle(connection, {f"{id_}/team-a": 40})
    answer = reports.spend(connection, now, budget.namespace, budget.name)
    assert answer is not None
    return answer


ACTIONS = (
    BudgetAction(at_percent=80, action="Pace"),
    BudgetAction(at_percent=50, action="Alert"),
    BudgetAction(at_percent=60, action="Alert"),
)


def test_every_action_in_force_is_told_in_the_order_of_their_shares_and_pace_with_its_rate(ledger: Engine) -> None:
    def job(connection: Connection) -> None:
        paced = {"held": 820, "charged": 820, "acted": 80, "pace_from": NOW, "pace_base": 800}
        answer = spent(connection, hourly(actions=ACTIONS), **paced)
        assert (answer.action, answer.active) == ("Pace", ("Alert", "Alert", "Pace"))
        assert answer.pace_per_hour == 200

    within(ledger, job)


def test_an_action_that_an_increase_ended_is_told_no_more(ledger: Engine) -> None:
    def job(connection: Connection) -> None:
        more = TemporaryIncrease(amount=1_000, until=NOW + HOUR)
        books = {"held": 850, "charged": 850, "acted": 80, "pace_from": NOW, "pace_base": 800}
        answer = spent(connection, hourly(actions=ACTIONS, temporary_increase=more), **books)
        assert (answer.action, answer.active, answer.pace_per_hour) == ("None", (), 0)
        assert answer.extra == 1_000

    within(ledger, job)


def test_idle_cost_counts_towards_actions_only_where_the_budget_says_so(ledger: Engine) -> None:
    def told(connection: Connection, budget: LedgerBudget) -> tuple[int, str]:
        answer = spent(connection, budget, held=470, charged=470)
        return answer.idle, answer.action

    within(ledger, lambda c: expect(told(c, hourly(actions=ACTIONS)), (0, "None")))
    within(ledger, lambda c: expect(told(c, hourly(actions=ACTIONS, idle_namespaces=("team-a",))), (40, "Alert")))


def expect(found: object, wanted: object) -> None:
    assert found == wanted


def test_unreconciled_amounts_count_and_at_the_limit_it_rejects(ledger: Engine) -> None:
    def job(connection: Connection) -> None:
        answer = spent(connection, hourly(), held=1_000, charged=600, unreconciled=400)
        assert (answer.action, answer.remaining) == ("Reject", 0)

    within(ledger, job)
