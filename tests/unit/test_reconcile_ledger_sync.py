"""What the leader tells the ledger and reads from it, also when the ledger is silent, refuses or knows better."""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fairlead_operator.config_feed import ConfigFeed
from fairlead_operator.decide.facts import NodeFact, PodFact, node_fact
from fairlead_operator.decide.node_prices import NodePrice, NodePrices
from fairlead_operator.decide.pricing import PriceList
from fairlead_operator.decide.rates import PoolCard, Rates
from fairlead_operator.errors import LedgerError
from fairlead_operator.kube.api import Api
from fairlead_operator.kube.cluster import Cluster, Departed, Snapshot
from fairlead_operator.kube.election import Election, Seat
from fairlead_operator.kube.queue import Key, WorkQueue
from fairlead_operator.ledger_client import LedgerClient
from fairlead_operator.prices.book import Prices
from fairlead_operator.reconcile.books import Books
from fairlead_operator.reconcile.ledger_sync import COSTS_EVERY_S, SPEND_EVERY_S, LedgerSync, Parts, cost_per_thousand
from fairlead_router.contract import (
    CardRow,
    CostRow,
    LedgerBudget,
    PutBudgets,
    PutCards,
    PutCosts,
    SpendAnswer,
    SpendList,
    UsageAnswer,
    UsageRow,
    Window,
)
from tests.builders.resources import make_pool
from tests.fakes.clock import FakeClock

HOUR_MS = 3_600_000
PRICES = """
accelerators:
- {resourceName: nvidia.com/gpu, nodeSelector: {product: L40S}, perHour: "3.60", effectiveFrom: "2026-01-01", source: x}
"""
POOL = make_pool("chat").variant("l40s", nodeSelector={"product": "L40S"}).parsed()
NODE = node_fact(
    {"metadata": {"name": "n1", "labels": {"product": "L40S"}}, "status": {"allocatable": {"nvidia.com/gpu": "8"}}}
)


def pod(name: str, scheduled_ms: int) -> PodFact:
    return PodFact(
        namespace="ai-platform",
        name=name,
        uid=name,
        pool="ai-platform/chat",
        variant="l40s",
        ip="10.0.0.1",
        node="n1",
        phase="Running",
        ready=True,
        router_ready=True,
        terminating=False,
        scheduled_ms=scheduled_ms,
        started_ms=scheduled_ms,
        ready_ms=scheduled_ms,
        ended_ms=None,
        restarts=0,
        trouble=None,
    )


def budget(name: str, limit: int = 100) -> LedgerBudget:
    return LedgerBudget(
        namespace="team-a",
        name=name,
        uid=name,
        unit="USD",
        per="Namespace",
        period="Month",
        time_zone="UTC",
        limit=limit,
    )


def spend(name: str, charged: int = 0) -> SpendAnswer:
    return SpendAnswer(
        namespace="team-a",
        name=name,
        unit="USD",
        per="Namespace",
        limit=100,
        extra=0,
        charged=charged,
        leased=0,
        reserved=0,
        unreconciled=0,
        unbacked=0,
        remaining=100 - charged,
        window=Window(id=1, start=0, end=1),
        window_label="2026-11",
        counted_from=0,
        action="None",
    )


class FakeLedger(LedgerClient):
    """Keeps what it was told; ``fails`` maps a call to the error it gives."""

    def __init__(self) -> None:
        self.told: list[PutBudgets] = []
        self.bills: list[PutCosts] = []
        self.fails: dict[str, LedgerError] = {}
        self.faults: dict[str, Exception] = {}
        self.card_rows: list[str] = []
        self.answer = SpendList()
        self.stored = PutCosts()
        self.asked: list[str] = []
        self.questions: list[tuple[str, int, dict[str, str]]] = []

    def _ask(self, call: str) -> None:
        self.asked.append(call)
        if call in self.fails:
            raise self.fails[call]
        if call in self.faults:
            raise self.faults[call]

    async def put_budgets(self, budgets: PutBudgets) -> None:
        self._ask("budgets")
        self.told.append(budgets)
        self.answer = msgspec.structs.replace(self.answer, budgets_version=budgets.version)

    async def put_costs(self, costs: PutCosts) -> None:
        self._ask("put_costs")
        self.bills.append(costs)

    async def put_cards(self, cards: PutCards) -> None:
        self._ask("put_cards")
        self.card_rows += [row.pool for row in cards.cards]

    async def cards(self) -> PutCards:
        self._ask("cards")
        rows = [
            CardRow(
                pool="ai-platform/chat", version=n, prompt_pico=n, cached_pico=n, output_pico=n, source="Seed", at_ms=1
            )
            for n in (2, 1)
        ]
        return PutCards(cards=tuple(rows))

    async def costs(self, since_ms: int) -> PutCosts:
        assert since_ms > 0
        self._ask("costs")
        return self.stored

    async def spend(self) -> SpendList:
        self._ask("spend")
        return self.answer

    async def usage(self, by: str, since_ms: int, until_ms: int, **filters: str) -> UsageAnswer:
        self._ask("usage")
        self.questions.append((by, until_ms - since_ms, filters))
        return UsageAnswer(since=since_ms, until=until_ms, by=(by,))


class FakeCluster(Cluster):
    """A snapshot that a test sets."""

    def __init__(self) -> None:
        self.now = Snapshot()
        self.gone: list[Departed] = []

    def snapshot(self) -> Snapshot:
        return self.now

    def take_departed(self) -> list[Departed]:
        gone, self.gone = self.gone, []
        return gone


class FakeElection(Election):
    """A leader of a term that a test sets."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(Api(None, ""), Seat("fairlead", "l", "a"), clock)  # type: ignore[arg-type]
        self.transitions = 3
        self.renews = True

    async def _try_once(self, seconds: float | None = None) -> bool:
        del seconds
        return self.renews


class ListAndNodes(Prices):
    """The list of a file, and what a test lets OpenCost say of nodes."""

    def __init__(self, path: Path, desk: "Desk") -> None:
        super().__init__(path, desk.clock)
        self._desk = desk

    def read(self) -> PriceList:
        return replace(super().read(), node_prices=NodePrices(self._desk.open_cost))


class Desk:
    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock(1_795_172_700_000)  # five minutes into a quarter hour
        self.ledger = FakeLedger()
        self.cluster = FakeCluster()
        self.books = Books()
        self.feed = ConfigFeed((), "fairlead")
        self.election = FakeElection(self.clock)
        self.queue = WorkQueue(self.clock, random.Random(1))  # noqa: S311 - spreads retries
        self.wanted: tuple[LedgerBudget, ...] = ()
        self.open_cost: Mapping[str, NodePrice] = {}
        prices = folder / "prices.yaml"
        prices.write_text(PRICES, encoding="utf-8")
        self.sync = LedgerSync(
            Parts(
                client=self.ledger,
                cluster=self.cluster,
                prices=ListAndNodes(prices, self),
                books=self.books,
                feed=self.feed,
                election=self.election,
                queue=self.queue,
                clock=self.clock,
                wanted_budgets=lambda: self.wanted,
            )
        )

    async def drained(self) -> set[Key]:
        keys = set()
        while len(self.queue):
            key = await self.queue.take()
            self.queue.done(key)
            keys.add(key)
        return keys


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_budgets_are_told_once_with_a_version_of_this_term(desk: Desk) -> None:
    desk.wanted = (budget("one"),)
    await desk.sync.round()
    await desk.sync.round()
    assert [one.version for one in desk.ledger.told] == [(3, 1)]
    assert desk.books.budget_in == {"team-a/one": (3, 1)}
    assert desk.books.budgets_version == (3, 1)


async def test_only_the_budget_that_changed_waits_for_a_new_confirmation(desk: Desk) -> None:
    desk.wanted = (budget("one"), budget("two"))
    await desk.sync.round()
    desk.wanted = (budget("one"), budget("two", 50))
    await desk.sync.round()
    assert desk.books.budget_in == {"team-a/one": (3, 1), "team-a/two": (3, 2)}
    desk.wanted = (budget("one"),)
    await desk.sync.round()
    assert desk.books.budget_in == {"team-a/one": (3, 1)}


async def test_a_budget_that_was_not_taken_is_told_again_with_the_same_number(desk: Desk) -> None:
    desk.wanted = (budget("one"),)
    desk.ledger.fails["budgets"] = LedgerError("PUT", "answered 503", 503)
    await desk.sync.round()
    assert desk.books.budgets_version == (0, 0)
    del desk.ledger.fails["budgets"]
    await desk.sync.round()
    assert [one.version for one in desk.ledger.told] == [(3, 1)]


async def test_a_ledger_that_knows_a_newer_term_is_outranked_by_who_holds_the_lease(desk: Desk) -> None:
    desk.wanted = (budget("one"),)
    desk.ledger.answer = SpendList(budgets_version=(9, 4))
    desk.ledger.fails["budgets"] = LedgerError("PUT", "answered 409", 409)
    await desk.sync.round()
    del desk.ledger.fails["budgets"]
    await desk.sync.round()
    assert desk.ledger.told[0].version == (10, 1)


async def test_who_lost_the_lease_does_not_outrank_its_successor(desk: Desk) -> None:
    desk.wanted = (budget("one"),)
    desk.election.renews = False
    desk.ledger.answer = SpendList(budgets_version=(9, 4))
    desk.ledger.fails["budgets"] = LedgerError("PUT", "answered 409", 409)
    await desk.sync.round()
    assert desk.election.transitions == 3


async def test_a_silent_ledger_ends_the_round_and_is_told_once(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.wanted = (budget("one"),)
    desk.ledger.fails["budgets"] = LedgerError("PUT", "no answer")
    await desk.sync.round()
    await desk.sync.round()
    assert desk.ledger.asked == ["budgets", "budgets"]
    assert len([one for one in caplog.records if "no answer" in one.message]) == 1


async def test_one_refused_step_keeps_none_of_the_others_from_running(desk: Desk) -> None:
    desk.wanted = (budget("one"),)
    desk.ledger.fails["budgets"] = LedgerError("PUT", "answered 400", 400)
    await desk.sync.round()
    assert {"spend", "cards", "put_costs", "usage"} <= set(desk.ledger.asked)


async def test_a_budget_is_woken_when_its_figures_move(desk: Desk) -> None:
    desk.ledger.answer = SpendList(budgets=(spend("one"), spend("two")))
    await desk.sync.round()
    await desk.drained()
    desk.ledger.answer = SpendList(budgets=(spend("one"), spend("two", 5)), budgets_version=(3, 1))
    await desk.clock.advance(SPEND_EVERY_S)
    await desk.sync.round()
    assert await desk.drained() == {Key("CostBudget", "team-a", "two")}


async def test_the_newest_version_of_a_card_goes_on(desk: Desk) -> None:
    await desk.sync.round()
    assert desk.books.cards_known
    assert desk.books.cards["ai-platform/chat"].version == 2


async def test_cards_are_read_again_when_it_is_not_known_which_the_ledger_has(desk: Desk) -> None:
    await desk.sync.round()
    await desk.sync.round()
    assert desk.ledger.asked.count("cards") == 1
    desk.books.cards["ai-platform/chat"] = PoolCard(1, Rates(1, 1, 1), "Seed", 1)
    desk.books.cards_known = False
    await desk.sync.round()
    assert desk.books.cards_known
    assert desk.books.cards["ai-platform/chat"].version == 2
    assert desk.ledger.asked.count("cards") == 2
    assert desk.ledger.card_rows == []


async def test_a_pod_whose_price_is_open_costs_is_billed_also_after_that_price_is_gone(desk: Desk) -> None:
    bare = NodeFact("n1", {}, {"nvidia.com/gpu": "8"})
    desk.cluster.now = Snapshot(pools={POOL.key: POOL}, nodes={"n1": bare}, pods=(pod("p1", desk.clock.now_ms()),))
    node = NodePrice(8 * 3_600_000_000, 1, desk.clock.now_ms(), desk.clock.now_ms())
    desk.open_cost = {"n1": node}
    await desk.sync.round()
    await desk.clock.advance(COSTS_EVERY_S)
    await desk.sync.round()
    desk.open_cost = {}
    await desk.clock.advance(COSTS_EVERY_S)
    await desk.sync.round()
    assert _bill(desk) == 20_000_000


async def test_the_bill_goes_on_where_the_ledger_has_it_and_ends_with_the_pod(desk: Desk) -> None:
    now = desk.clock.now_ms()
    running = pod("p1", now - HOUR_MS)
    desk.cluster.now = Snapshot(pools={POOL.key: POOL}, nodes={"n1": NODE}, pods=(running,))
    desk.ledger.stored = PutCosts(until=now - 1000)
    await desk.sync.round()
    assert _bill(desk) == 1_000_000
    await desk.clock.advance(COSTS_EVERY_S)
    desk.cluster.now = Snapshot(pools={POOL.key: POOL}, nodes={"n1": NODE})
    desk.cluster.gone = [Departed(running, now + 4000)]
    await desk.sync.round()
    assert _bill(desk) == 5_000_000


async def test_a_bill_that_was_not_taken_is_told_with_the_next(desk: Desk) -> None:
    now = desk.clock.now_ms()
    desk.cluster.now = Snapshot(pools={POOL.key: POOL}, nodes={"n1": NODE}, pods=(pod("p1", now),))
    await desk.sync.round()
    desk.ledger.fails["put_costs"] = LedgerError("PUT", "answered 503", 503)
    await desk.clock.advance(COSTS_EVERY_S)
    await desk.sync.round()
    del desk.ledger.fails["put_costs"]
    await desk.clock.advance(COSTS_EVERY_S)
    await desk.sync.round()
    assert _bill(desk) == 20_000_000


async def test_a_ledger_that_was_restored_is_told_again_what_it_lost(desk: Desk) -> None:
    desk.wanted = (budget("one"),)
    await desk.sync.round()
    desk.books.cards["ai-platform/new"] = PoolCard(1, Rates(1, 1, 1), "Seed", 1)
    desk.ledger.answer = SpendList(budgets_version=(0, 0))
    await desk.clock.advance(SPEND_EVERY_S)
    await desk.sync.round()
    await desk.sync.round()
    assert [one.version for one in desk.ledger.told] == [(3, 1), (3, 2)]
    assert desk.ledger.card_rows == ["ai-platform/new"]
    assert set(desk.books.cards) == {"ai-platform/chat", "ai-platform/new"}


async def test_a_fault_in_one_step_keeps_none_of_the_others_from_running(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.ledger.faults["budgets"] = OverflowError("can't serialize ints > 64 bits")
    await desk.sync.round()
    await desk.sync.round()
    assert {"spend", "cards", "put_costs", "usage"} <= set(desk.ledger.asked)
    assert len([one for one in caplog.records if "broke off" in one.message]) == 1


async def test_a_node_that_vanished_is_billed_until_its_pods_did_also_by_a_silent_ledger(desk: Desk) -> None:
    now = desk.clock.now_ms()
    running = pod("p1", now - HOUR_MS)
    desk.cluster.now = Snapshot(pools={POOL.key: POOL}, nodes={"n1": NODE}, pods=(running,))
    desk.ledger.stored = PutCosts(until=now)
    await desk.sync.round()
    desk.ledger.fails["spend"] = LedgerError("GET", "no answer")
    await desk.clock.advance(10)
    await desk.sync.round()
    desk.cluster.now = Snapshot(pools={POOL.key: POOL})
    desk.cluster.gone = [Departed(running, now + 12_000)]
    await desk.clock.advance(10)
    await desk.sync.round()
    desk.ledger.fails.clear()
    await desk.sync.round()
    assert _bill(desk) == 12_000_000


async def test_hardware_and_prices_of_what_is_gone_are_forgotten(desk: Desk) -> None:
    running = pod("p1", desk.clock.now_ms())
    desk.cluster.now = Snapshot(pools={POOL.key: POOL}, nodes={"n1": NODE}, pods=(running,))
    await desk.sync.round()
    desk.cluster.now = Snapshot(nodes={"n1": NODE}, pods=(running,))
    await desk.clock.advance(COSTS_EVERY_S)
    await desk.sync.round()
    assert _bill(desk) == 10_000_000
    desk.cluster.now = Snapshot(nodes={"n1": NODE})
    await desk.sync.round()
    assert not desk.sync._hardware
    assert not desk.sync._prices


def test_a_thousand_requests_cost_the_whole_bill_not_only_what_was_charged() -> None:
    sums: dict[str, Any] = {"prompt": 0, "cached": 0, "output": 0, "saved": 0}
    quantiles = {"cost_p50_nano": 0, "cost_p95_nano": 0, "cost_p99_nano": 0}
    rows = (
        UsageRow(group=("ns/a",), requests=500, nano_usd=1, **sums, **quantiles),
        UsageRow(group=("ns/b",), requests=0, nano_usd=0, **sums, **quantiles),
    )
    costs = tuple(CostRow(pool="ns/a", variant=name, bucket=0, replica_ms=1, nano_usd=10) for name in ("x", "y"))
    assert cost_per_thousand(UsageAnswer(since=0, until=1, by=("pool",), rows=rows, costs=costs)) == {"ns/a": 40}


def _bill(desk: Desk) -> int:
    return sum(row.nano_usd for row in desk.ledger.bills[-1].costs)
