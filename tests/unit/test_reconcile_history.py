"""What the leader reads of each budget's history: whole once, then what is new, some budgets at a time."""

import random
from typing import Any

import msgspec
import pytest

from fairlead_operator.decide.forecast import HISTORY, HOUR_MS
from fairlead_operator.errors import LedgerError
from fairlead_operator.kube.cluster import Cluster, Snapshot
from fairlead_operator.kube.queue import Key, WorkQueue
from fairlead_operator.ledger_client import LedgerClient
from fairlead_operator.reconcile.books import Books
from fairlead_operator.reconcile.history import AGAIN_MS, PER_ROUND, Histories
from fairlead_operator.render.ledger_budgets import ledger_budget
from fairlead_router.contract import LedgerBudget, UsageAnswer, UsageRow, Window
from tests.builders.decisions import NOW, USD, spend
from tests.builders.resources import BudgetBuilder, make_budget
from tests.fakes.clock import FakeClock

HOUR = NOW - NOW % HOUR_MS
SUPPORT = make_budget("support", "support").limit(2300)


class Ledger(LedgerClient):
    """Every hour of the last two days, and the one that begins now, spent one dollar."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int, dict[str, str]]] = []
        self.per_hour = USD
        self.error: LedgerError | None = None

    async def usage(self, by: str, since_ms: int, until_ms: int, **filters: str) -> UsageAnswer:
        self.asked.append((by, since_ms, until_ms, filters))
        if self.error is not None:
            raise self.error
        zeros = dict.fromkeys(("requests", "prompt", "cached", "output", "saved"), 0)
        quantiles = dict.fromkeys(("cost_p50_nano", "cost_p95_nano", "cost_p99_nano"), 0)
        hours = [hour for hour in range(HOUR - 48 * HOUR_MS, until_ms, HOUR_MS) if hour >= since_ms]
        rows = [UsageRow(group=(str(hour),), nano_usd=self.per_hour, **zeros, **quantiles) for hour in hours]
        return UsageAnswer(since=since_ms, until=until_ms, by=("time",), rows=tuple(rows))


class View(Cluster):
    def __init__(self, *written: BudgetBuilder) -> None:
        budgets = [one.parsed() for one in written]
        self.now = Snapshot(budgets={one.key: one for one in budgets}, namespaces={"support": {}, "search": {}})

    def snapshot(self) -> Snapshot:
        return self.now


class Desk:
    def __init__(self, *written: BudgetBuilder) -> None:
        self.clock, self.ledger, self.books, self.view = FakeClock(NOW), Ledger(), Books(), View(*written)
        self.queue = WorkQueue(self.clock, random.Random(1))  # noqa: S311 - spreads retries
        self.histories = Histories(self.ledger, self.view, self.books, self.queue, self.clock)
        self.budgets = [self.sent(one) for one in written]
        for one in self.budgets:
            self.books.spend[f"{one.namespace}/{one.name}"] = spend(namespace=one.namespace, name=one.name)

    def sent(self, written: BudgetBuilder) -> LedgerBudget:
        return ledger_budget(written.parsed(), ("support",))

    def stands(self, **fields: Any) -> None:
        key = "support/support"
        self.books.spend[key] = msgspec.structs.replace(self.books.spend[key], **fields)

    async def round(self, seconds: float = 0) -> None:
        await self.clock.advance(seconds)
        await self.histories.round(self.budgets)


async def test_a_history_is_read_whole_and_then_only_what_is_new() -> None:
    desk = Desk(SUPPORT)
    await desk.round()
    await desk.round(59)
    await desk.round(1)
    filters = {"step": str(HOUR_MS), "namespace": "support"}
    assert desk.ledger.asked == [
        ("time", HOUR - HISTORY * HOUR_MS, HOUR + HOUR_MS, filters),
        ("time", HOUR - AGAIN_MS, HOUR + HOUR_MS, filters),
    ]


async def test_what_was_read_again_takes_the_place_of_what_was_known() -> None:
    desk = Desk(SUPPORT)
    await desk.round()
    assert desk.books.outlooks["support/support"].burn_per_hour == 2 * USD
    before = desk.books.outlooks["support/support"].at_end
    desk.ledger.per_hour = 5 * USD
    await desk.round(60)
    assert desk.books.outlooks["support/support"].burn_per_hour > 4 * USD
    assert desk.books.outlooks["support/support"].at_end > before
    assert await desk.queue.take() == Key("CostBudget", "support", "support")


async def test_another_account_or_window_does_not_wait_for_the_minute() -> None:
    desk = Desk(SUPPORT)
    await desk.round()
    desk.stands(window=Window(id=4, start=NOW, end=NOW + 60_000))
    await desk.round(1)
    assert desk.ledger.asked[-1][1] == HOUR - AGAIN_MS
    assert desk.books.outlooks["support/support"].window_end == NOW + 60_000
    (key,) = desk.books.spend["support/support"].keys
    desk.stands(keys=(msgspec.structs.replace(key, namespace="search"),))
    await desk.round(1)
    assert desk.ledger.asked[-1][1] == HOUR - HISTORY * HOUR_MS
    assert desk.ledger.asked[-1][3]["namespace"] == "search"


async def test_a_window_of_a_minute_is_forecast_every_five_seconds() -> None:
    desk = Desk(SUPPORT)
    desk.stands(window=Window(id=4, start=NOW, end=NOW + 60_000))
    for _ in range(10):
        await desk.round(1)
    assert len(desk.ledger.asked) == 2


async def test_many_budgets_are_read_some_at_a_time_and_all_within_the_minute() -> None:
    desk = Desk(*(make_budget(f"b{number}", "support") for number in range(3 * PER_ROUND)))
    for _ in range(3):
        await desk.round(1)
    assert len(desk.ledger.asked) == 3 * PER_ROUND
    assert len(desk.books.outlooks) == 3 * PER_ROUND
    await desk.round(1)
    assert len(desk.ledger.asked) == 3 * PER_ROUND


async def test_a_ledger_that_refuses_leaves_the_last_forecast_and_is_asked_again_later() -> None:
    desk = Desk(SUPPORT, make_budget("other", "support"))
    await desk.round()
    last = dict(desk.books.outlooks)
    desk.ledger.error = LedgerError("GET usage", "answered 422", 422)
    with pytest.raises(LedgerError, match="422"):
        await desk.round(60)
    assert desk.books.outlooks == last
    assert len(desk.ledger.asked) == 4
    desk.ledger.error = None
    await desk.round(59)
    assert len(desk.ledger.asked) == 4
    await desk.round(1)
    assert desk.books.outlooks["support/other"].made_ms == NOW + 120_000


async def test_a_budget_without_figures_is_not_asked_about_and_one_that_is_gone_is_forgotten() -> None:
    desk = Desk(SUPPORT)
    kept = desk.books.spend.pop("support/support")
    await desk.round()
    assert desk.ledger.asked == []
    desk.books.spend["support/support"] = kept
    await desk.round(1)
    desk.budgets = []
    await desk.round(1)
    assert desk.books.outlooks == {}
    assert desk.histories._known == {}


async def test_a_budget_per_workflow_has_no_forecast_because_usage_is_not_kept_by_workflow() -> None:
    desk = Desk(make_budget("support", "support").limit(200, unit="Requests", per="Workflow"))
    await desk.round()
    assert (desk.ledger.asked, desk.books.outlooks) == ([], {})


async def test_the_models_of_a_budget_are_asked_for_by_name() -> None:
    desk = Desk(SUPPORT.for_models("chat"))
    await desk.round()
    assert desk.ledger.asked[0][3] == {"step": str(HOUR_MS), "namespace": "support", "model": "chat"}


async def test_idle_that_counts_is_part_of_the_forecast() -> None:
    plain, counted = Desk(SUPPORT), Desk(SUPPORT.with_idle())
    for desk in (plain, counted):
        desk.stands(idle=10 * USD)
        await desk.round()
    ends = [desk.books.outlooks["support/support"].at_end for desk in (plain, counted)]
    assert ends[1] - ends[0] == 20 * USD
