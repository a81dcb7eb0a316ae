"""What pools were asked in days past, read from the ledger by whoever leads."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.errors import LedgerError
from fairlead_operator.kube.cluster import Cluster, Snapshot
from fairlead_operator.ledger_client import LedgerClient
from fairlead_operator.reconcile.books import Books
from fairlead_operator.reconcile.demand_history import EVERY_MS, PER_ROUND, REACH_MS, DemandHistories, past_of
from fairlead_router.contract import BUCKET_MS, UsageAnswer, UsageRow
from tests.builders.decisions import NOW
from tests.builders.resources import PoolBuilder, make_pool
from tests.fakes.clock import FakeClock

QUARTER = NOW - NOW % BUCKET_MS
TIMED = {"timeToFirstToken": "2s"}


def row(back: int, requests: int, prompt: int = 1_000, cached: int = 400, output: int = 50) -> UsageRow:
    """Requests of the quarter hour that began so many before now, with these tokens each."""
    zeros = dict.fromkeys(("nano_usd", "saved", "cost_p50_nano", "cost_p95_nano", "cost_p99_nano"), 0)
    totals = {"prompt": prompt * requests, "cached": cached * requests, "output": output * requests}
    return UsageRow(group=(str(QUARTER - back * BUCKET_MS),), requests=requests, **totals, **zeros)


def answer(*rows: UsageRow, days_until: int = 0) -> UsageAnswer:
    return UsageAnswer(since=0, until=QUARTER, by=("time",), rows=rows, days_until=days_until)


class Ledger(LedgerClient):
    def __init__(self) -> None:
        self.asked: list[tuple[int, int, dict[str, str]]] = []
        self.fails: set[str] = set()

    async def usage(self, by: str, since_ms: int, until_ms: int, **filters: str) -> UsageAnswer:
        assert by == "time"
        self.asked.append((since_ms, until_ms, filters))
        if filters["pool"] in self.fails:
            raise LedgerError("GET usage", "no answer")
        return answer(row(1, 900))

    @property
    def pools(self) -> list[str]:
        return [filters["pool"] for _, _, filters in self.asked]


class View(Cluster):
    def __init__(self, *pools: PoolBuilder) -> None:
        self._pools = {one.parsed().key: one.parsed() for one in pools}

    def snapshot(self) -> Snapshot:
        return Snapshot(pools=self._pools)


class Desk:
    def __init__(self, *pools: PoolBuilder) -> None:
        self.clock, self.ledger, self.books = FakeClock(NOW), Ledger(), Books()
        self.histories = DemandHistories(self.ledger, View(*pools), self.books, self.clock)


def timed(name: str) -> PoolBuilder:
    return make_pool(name).autoscaling(8, objectives=TIMED)


def test_rates_are_by_the_quarter_hour_from_the_first_request_on() -> None:
    past = past_of(answer(row(3, 900), row(1, 1_800)), QUARTER)
    assert past is not None
    assert past.history.start_ms == QUARTER - 3 * BUCKET_MS
    assert (past.history.step_ms, past.history.rates) == (BUCKET_MS, (1.0, 0.0, 2.0))


def test_usual_requests_are_those_of_the_newest_day_without_cached_tokens() -> None:
    past = past_of(answer(row(200, 500, prompt=9_000), row(2, 100), row(1, 300, prompt=2_000, output=90)), QUARTER)
    assert past is not None
    assert past.usual == ((100 * 600 + 300 * 1_600) // 400, (100 * 50 + 300 * 90) // 400)


def test_a_pool_that_nobody_asked_has_no_past() -> None:
    assert past_of(answer(), QUARTER) is None
    assert past_of(answer(row(1, 0)), QUARTER) is None


def test_what_is_kept_by_day_only_is_no_demand_of_a_quarter_hour() -> None:
    past = past_of(answer(row(50, 10**6), row(1, 900), days_until=QUARTER - 4 * BUCKET_MS), QUARTER)
    assert past is not None
    assert past.history.rates == (1.0,)


@given(st.lists(st.tuples(st.integers(1, 1_344), st.integers(0, 10**9)), max_size=30))
def test_the_history_is_never_longer_than_two_weeks(rows: list[tuple[int, int]]) -> None:
    past = past_of(answer(*(row(*one) for one in rows)), QUARTER)
    assert past is None or len(past.history.rates) <= REACH_MS // BUCKET_MS


async def test_only_pools_with_objectives_of_latency_are_read_once_an_hour() -> None:
    desk = Desk(timed("chat"), make_pool("plain").autoscaling(8), make_pool("fixed").replicas(3))
    for _ in range(3):
        await desk.histories.round()
    assert desk.ledger.asked == [(QUARTER - REACH_MS, QUARTER, {"step": str(BUCKET_MS), "pool": "ai-platform/chat"})]
    assert desk.books.pools["ai-platform/chat"].past is not None
    await desk.clock.advance(EVERY_MS / 1000)
    await desk.histories.round()
    assert len(desk.ledger.asked) == 2


async def test_many_pools_are_read_some_at_a_time_and_all_in_the_end() -> None:
    desk = Desk(*(timed(f"p{place}") for place in range(PER_ROUND * 2 + 1)))
    await desk.histories.round()
    assert len(desk.ledger.asked) == PER_ROUND
    for _ in range(4):
        await desk.histories.round()
    assert sorted(desk.ledger.pools) == sorted(f"ai-platform/p{place}" for place in range(PER_ROUND * 2 + 1))


async def test_what_could_not_be_read_is_tried_again_in_a_minute() -> None:
    desk = Desk(timed("chat"), timed("other"))
    desk.ledger.fails = {"ai-platform/chat"}
    with pytest.raises(LedgerError):
        await desk.histories.round()
    assert desk.books.pools["ai-platform/other"].past is not None
    await desk.histories.round()
    assert len(desk.ledger.asked) == 2
    desk.ledger.fails = set()
    await desk.clock.advance(60)
    await desk.histories.round()
    assert desk.ledger.pools[2:] == ["ai-platform/chat"]
    assert desk.books.pools["ai-platform/chat"].past is not None


def test_other_words_of_a_row_are_left_out() -> None:
    odd: Any = row(1, 900)
    named = UsageRow(**{name: getattr(odd, name) for name in odd.__struct_fields__} | {"group": ("~",)})
    past = past_of(answer(named, row(2, 900)), QUARTER)
    assert past is not None
    assert past.history.rates == (1.0, 0.0)
