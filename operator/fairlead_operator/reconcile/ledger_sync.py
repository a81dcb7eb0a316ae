"""The leader's talk with the ledger: budgets and costs go there, spending and cards come from there.

Each step stands alone: one that fails is tried again at the next round and keeps none of the others from running.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from fairlead_operator.clock import Clock
from fairlead_operator.config_feed import ConfigFeed
from fairlead_operator.decide.accrual import Accrual, BilledPod, accrue, billed_pod, cost_rows, resume
from fairlead_operator.decide.facts import PodFact
from fairlead_operator.decide.pricing import VariantHardware, hardware_of, price_on
from fairlead_operator.decide.rates import card_of, card_row
from fairlead_operator.errors import LedgerError
from fairlead_operator.kube.cluster import Cluster, Departed, Snapshot
from fairlead_operator.kube.election import Election
from fairlead_operator.kube.queue import Key, WorkQueue
from fairlead_operator.kube.resources import COST_BUDGETS, MODEL_POOLS
from fairlead_operator.ledger_client import LedgerClient
from fairlead_operator.prices.book import Prices
from fairlead_operator.reconcile.books import Books
from fairlead_operator.reconcile.demand_history import DemandHistories
from fairlead_operator.reconcile.history import Histories
from fairlead_router.contract import BUCKET_MS, LedgerBudget, PutBudgets, PutCards, PutCosts, UsageAnswer

log = logging.getLogger(__name__)

ROUND_S = 1.0
SPEND_EVERY_S = 1.0
SETTLE_S = 0.1
"""Changes come in bursts: what is kicked within this time is one round."""
COSTS_EVERY_S = 10.0
USAGE_EVERY_S = 60.0
HOUR_MS = 3_600_000
CONFLICT = 409
SILENCE = "the ledger is silent"


@dataclass(frozen=True, slots=True)
class Parts:
    """What the talk is made of."""

    client: LedgerClient
    cluster: Cluster
    prices: Prices
    books: Books
    feed: ConfigFeed
    election: Election
    queue: WorkQueue
    clock: Clock
    wanted_budgets: Callable[[], tuple[LedgerBudget, ...]]


class LedgerSync:
    """One leader's term with the ledger."""

    def __init__(self, parts: Parts) -> None:
        self._p = parts
        self._kick = asyncio.Event()
        self._counter = 0
        self._told: tuple[LedgerBudget, ...] | None = None
        self._accrual: Accrual | None = None
        self._stored_ms = 0
        self._hardware: dict[tuple[str, str], VariantHardware] = {}
        self._prices: dict[str, int] = {}
        """Nano-USD an hour of each pod, by its uid."""
        self._histories = Histories(parts.client, parts.cluster, parts.books, parts.queue, parts.clock)
        self._demand = DemandHistories(parts.client, parts.cluster, parts.books, parts.clock)
        self._due: dict[str, float] = {}
        self._failing: set[str] = set()

    def kick(self) -> None:
        """Budgets may have changed: do not wait for the next round."""
        self._kick.set()

    async def run(self) -> None:
        """Talk until cancelled."""
        while True:
            self._kick.clear()
            await self.round()
            try:
                async with asyncio.timeout(ROUND_S):
                    await self._kick.wait()
            except TimeoutError:
                continue
            await self._p.clock.sleep(SETTLE_S)

    async def round(self) -> None:
        """Every step that is due. A ledger that does not answer ends the round; one that refuses a step does not."""
        self._p.books.led_since_ms = self._p.books.led_since_ms or self._p.clock.now_ms()
        self._count()
        if not self._p.books.cards_known:
            self._due.pop("cards", None)
        steps = (
            ("budgets", 0.0, self.put_budgets),
            ("spend", SPEND_EVERY_S, self.read_spend),
            ("cards", float("inf"), self.load_cards),
            ("costs", COSTS_EVERY_S, self.put_costs),
            ("usage", USAGE_EVERY_S, self.read_usage),
            ("history", 0.0, self.read_history),
            ("demand", 0.0, self._demand.round),
        )
        for name, every_s, step in steps:
            if self._p.clock.monotonic() >= self._due.get(name, 0.0) and not await self._step(name, every_s, step):
                return

    async def load_cards(self) -> None:
        """Go on with the newest version of each pool's card: a version never changes once it is stored."""
        books, stored = self._p.books, {}
        for row in sorted((await self._p.client.cards()).cards, key=lambda row: row.version):
            stored[row.pool] = card_of(row)
        versions = {key: card.version for key, card in stored.items()}
        newer = {key: card for key, card in books.cards.items() if versions.get(key, 0) < card.version}
        if newer:
            rows = tuple(card_row(key, card) for key, card in newer.items())
            await self._p.client.put_cards(PutCards(cards=rows))
        books.cards = {**stored, **newer}
        books.cards_known = True
        for key in self._p.cluster.snapshot().raw:
            if key.kind == MODEL_POOLS.kind:
                self._p.queue.add(key)

    async def put_budgets(self) -> None:
        """Tell all budgets when any of them differs from what was told last."""
        wanted = self._p.wanted_budgets()
        if wanted == self._told:
            return
        version = (self._p.election.transitions, self._counter + 1)
        try:
            await self._p.client.put_budgets(PutBudgets(version=version, budgets=wanted))
        except LedgerError as error:
            if error.status == CONFLICT:
                await self._catch_up()
            raise
        self._counter += 1
        self._note_budgets(wanted, version)
        self._due.pop("spend", None)

    async def read_spend(self) -> None:
        """How every budget stands; wakes those whose figures moved."""
        answer = await self._p.client.spend()
        books = self._p.books
        books.ledger_answered_ms = self._p.clock.now_ms()
        if self._told is not None and answer.budgets_version != books.budgets_version:
            # Its database was restored or made anew: what it had taken is to be told again.
            log.warning("the ledger has budgets %s, it had taken %s", answer.budgets_version, books.budgets_version)
            self._told = None
            self._due.pop("cards", None)
            self._kick.set()
        for spend in answer.budgets:
            key = f"{spend.namespace}/{spend.name}"
            if books.spend.get(key) != spend:
                books.spend[key] = spend
                self._p.queue.add(Key(COST_BUDGETS.kind, spend.namespace, spend.name))
        for key in books.spend.keys() - {f"{spend.namespace}/{spend.name}" for spend in answer.budgets}:
            del books.spend[key]

    async def put_costs(self) -> None:
        """Count what the pods cost up to now, and tell the running totals."""
        if self._accrual is None:
            now = self._p.clock.now_ms()
            until = (await self._p.client.costs(now)).until or now
            stored = await self._p.client.costs(until - BUCKET_MS)
            self._accrual = resume(stored.costs, stored.until or until)
        told = self._count() or self._accrual
        await self._p.client.put_costs(PutCosts(costs=cost_rows(told), until=told.until_ms))
        self._stored_ms = told.until_ms

    def _count(self) -> Accrual | None:
        """Count up to now, also while the ledger is silent: a node that goes away takes its price with it."""
        if self._accrual is None:
            return None
        now = self._p.clock.now_ms()
        pods = self._billed(self._p.cluster.snapshot(), self._p.cluster.take_departed(), now)
        self._accrual = accrue(self._accrual, pods, now, self._stored_ms)
        return self._accrual

    async def read_usage(self) -> None:
        """What a thousand requests cost over the last hour, idle included."""
        now = self._p.clock.now_ms()
        answer = await self._p.client.usage("pool", now - HOUR_MS, now)
        self._p.books.cost_per_thousand = cost_per_thousand(answer)

    async def read_history(self) -> None:
        """How fast budgets are spent: some of them each round, each of them once a minute."""
        await self._histories.round(self._told or ())

    def _billed(self, snapshot: Snapshot, departed: list[Departed], now_ms: int) -> list[BilledPod]:
        """All pods that cost something. A pool that was deleted is billed while its pods drain."""
        counted = [*((pod, now_ms) for pod in snapshot.pods), *((one.pod, one.at_ms) for one in departed)]
        self._learn(snapshot, [pod for pod, _ in counted], now_ms)
        bills = []
        for pod, end_ms in counted:
            bill = billed_pod(pod, self._prices.get(pod.uid))
            if bill is not None:
                end = end_ms if bill.end_ms is None else min(bill.end_ms, end_ms)
                bills.append(replace(bill, end_ms=end))
        return bills

    def _learn(self, snapshot: Snapshot, pods: Sequence[PodFact], now_ms: int) -> None:
        """What each pod costs an hour: by its node now, else as it was when that was last known."""
        prices, used = self._p.prices.read(), {(pod.pool, pod.variant) for pod in pods}
        kept = {place: hardware for place, hardware in self._hardware.items() if place in used}
        present = {
            (pool.key, one.name): hardware_of(pool.spec, one)
            for pool in snapshot.pools.values()
            for one in pool.spec.variants
        }
        self._hardware = {**kept, **present}
        before, self._prices = self._prices, {}
        for pod in pods:
            hardware, node = self._hardware.get((pod.pool, pod.variant)), snapshot.nodes.get(pod.node)
            known = None if hardware is None or node is None else price_on(prices, hardware, node, now_ms)
            price = before.get(pod.uid) if known is None else known
            if price is not None:
                self._prices[pod.uid] = price

    async def _step(self, name: str, every_s: float, step: Callable[[], Awaitable[None]]) -> bool:
        """Run a step; a failure is logged when it begins and when it ends. False: the ledger does not answer at all."""
        try:
            await step()
        except LedgerError as error:
            what = name if error.status else SILENCE
            if what not in self._failing:
                log.warning("%s: %s", what, error)
            self._failing.add(what)
            return error.status != 0
        except Exception:
            # A fault in one step must not end the leader, and with it all the others.
            if name not in self._failing:
                log.exception("%s: broke off, and is tried again each round", name)
            self._failing.add(name)
            return True
        for what in self._failing & {name, SILENCE}:
            log.info("%s: over, the ledger answers", what)
        self._failing -= {name, SILENCE}
        self._due[name] = self._p.clock.monotonic() + every_s
        return True

    async def _catch_up(self) -> None:
        """The ledger knows a newer term than our Lease counts: the Lease was made anew, unless we lost it."""
        known = (await self._p.client.spend()).budgets_version
        await self._p.election.outrank(known[0])

    def _note_budgets(self, wanted: tuple[LedgerBudget, ...], version: tuple[int, int]) -> None:
        books, before = self._p.books, {_key(one): one for one in self._told or ()}
        for one in wanted:
            if before.get(_key(one)) != one:
                books.budget_in[_key(one)] = version
                self._p.queue.add(Key(COST_BUDGETS.kind, one.namespace, one.name))
        for key in books.budget_in.keys() - {_key(one) for one in wanted}:
            del books.budget_in[key]
        self._told = wanted
        books.budgets_version = version
        self._p.feed.set_budgets_version(version)
        self._p.election.publish(version)


def cost_per_thousand(answer: UsageAnswer) -> dict[str, int]:
    """Nano-USD of a thousand requests by pool: the pool's whole bill, not only what was charged."""
    bills: dict[str, int] = {}
    for row in answer.costs:
        bills[row.pool] = bills.get(row.pool, 0) + row.nano_usd
    return {row.group[0]: bills.get(row.group[0], 0) * 1000 // row.requests for row in answer.rows if row.requests > 0}


def _key(budget: LedgerBudget) -> str:
    return f"{budget.namespace}/{budget.name}"
