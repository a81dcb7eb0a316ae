"""S9: three tenants of one pool whose budget covers 80, 100 or 120 % of what their day needs.

The clients of S3 by number modulo 3, of priority Interactive, Standard and Batch. The budget of the pool's namespace
pays its replicas, idle ones too; from 90 % on it refuses Batch, at 100 % everybody. The law, what budgets leave for
replicas, the ledger's admission and the router's line are those that run; a replica takes what its curve says at the
objectives, second by second, and no engine is simulated. The pool may go to zero, a minute after its last request, or
as soon as the budget does not pay for it until it is gone. The last line is one JSON object.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from msgspec import structs

from fairlead_operator.decide.autoscale import Memory, Observation, Settings, VariantState, step
from fairlead_operator.decide.spend_cap import Upkeep, accounts_left, pays_a_replica, spend_cap
from fairlead_operator.ledger.escrow import BATCH, OTHERS, Account, Terms, act, active, cap, standing, terms_of
from fairlead_operator.performance.curve import curve
from fairlead_operator.performance.routing import MAX_WAIT, PATIENCE
from fairlead_operator.simulate.workloads import poisson
from fairlead_router.contract import BudgetAction, KeySpend, LedgerBudget, Priority, SpendAnswer, Window
from fairlead_router.fairness import PRIORITIES, FairQueue
from tests.bench.autoscaler.cases import CLAIRVOYANT, Case, reference
from tests.bench.autoscaler.scenarios import CHAT, DAY, LLAMA, SCENARIOS, client_windows, lengths

STEPS: Final = SCENARIOS["S3"]
SHARES: Final = (0.8, 1.0, 1.2)
TICK: Final = 5
START_MS: Final = 1_795_132_800_000
END_MS: Final = START_MS + round(DAY) * 1000
POOL: Final = "platform/chat"
NANO: Final = 1_000_000_000
PRICE: Final = round(STEPS.price_per_hour * NANO)
HOUR: Final = 3600
BATCH_PERCENT: Final = 90
ZERO_AFTER: Final = 60
MIXED: Final = 512
"""Requests that stand for all."""
IN_TIME: Final = PATIENCE * (CHAT.ttft or 0.0)
"""Seconds that a request may wait."""

Counts = Mapping[Priority, Sequence[int]]
"""Requests that arrive in each second."""


@dataclass(eq=False, slots=True)
class Job:
    """The requests of a tenant in one second. ``cost`` is nano-USD."""

    priority: Priority
    requests: int
    since: int
    each: int

    @property
    def tenant(self) -> str:
        """One for each priority."""
        return self.priority

    @property
    def cost(self) -> int:
        """What the ledger has reserved for them."""
        return self.requests * self.each


@dataclass(slots=True)
class Tally:
    """What became of a tenant's requests. ``late`` were served after their objective, or waited too long."""

    asked: int = 0
    served: int = 0
    late: int = 0
    refused: int = 0

    @property
    def share(self) -> float:
        """Of the requests, those served in time."""
        return self.served / self.asked if self.asked else 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A day under one budget. Money is nano-USD; ``spent`` is for replicas, ``charged`` for requests.

    ``upside_down``: seconds in which a request was served while one of a higher priority waited.
    """

    limit: int
    spent: int
    charged: int
    tallies: Mapping[Priority, Tally]
    upside_down: int


@dataclass(slots=True)
class Shop:
    """The pool, its line and its budget, second by second. ``takes``: requests/s of a replica at the objectives."""

    limit: int
    takes: float
    settings: Settings
    ready: int = 1
    starting: list[int] = field(default_factory=list)
    memory: Memory = field(default_factory=lambda: Memory(since_ms=START_MS))
    books: Account = field(default_factory=Account)
    line: FairQueue[Job] = field(default_factory=FairQueue)
    tallies: dict[Priority, Tally] = field(default_factory=lambda: {one: Tally() for one in PRIORITIES})
    spent: int = 0
    upside_down: int = 0
    seen: Observation = field(default_factory=lambda: Observation(START_MS))
    _credit: float = 0.0

    @property
    def each(self) -> int:
        """What a request is charged: a busy replica pays for itself, as the card of a measured pool has it."""
        return round(PRICE / (HOUR * self.takes))

    @property
    def replicas(self) -> int:
        """Those that are paid."""
        return self.ready + len(self.starting)

    def terms(self, now_ms: int) -> Terms:
        """What the ledger holds against requests now: idle cost is what replicas cost above the charges."""
        idle = max(0, self.spent - self.books.charged)
        return terms_of(day_budget(self.limit), now_ms, live=True, start=START_MS, end=END_MS, idle=idle)

    def second(self, now: int, arriving: Mapping[Priority, int]) -> None:
        """Requests come and are served, replicas are paid, and every few seconds the law decides."""
        self.ready += sum(at <= now for at in self.starting)
        self.starting = [at for at in self.starting if at > now]
        for priority, asked in arriving.items():
            self._arrive(now, priority, asked)
        self._serve(now)
        self.spent += self.replicas * PRICE // HOUR
        if (now + 1) % TICK == 0:
            self._decide(now + 1)

    def _arrive(self, now: int, priority: Priority, asked: int) -> None:
        """Those that the budget admits join the line."""
        now_ms = START_MS + now * 1000
        terms = self.terms(now_ms)
        self.books = act(self.books, terms, now_ms)
        room = cap(terms, self.books, BATCH if priority == "Batch" else OTHERS, now_ms) - self.books.held
        admitted = max(0, min(asked, room // self.each))
        tally = self.tallies[priority]
        tally.asked += asked
        tally.refused += asked - admitted
        if admitted:
            self._hold(admitted)
            self.line.add(Job(priority, admitted, now, self.each))
            self.seen = replace(self.seen, arrivals=self.seen.arrivals + admitted, last_request_ms=now_ms)

    def _hold(self, requests: int) -> None:
        """So many more are reserved for, or fewer."""
        self.books = structs.replace(self.books, held=self.books.held + requests * self.each)

    def _serve(self, now: int) -> None:
        """As many as the replicas take, in the line's order."""
        for job in [one for one in self.line if now - one.since > IN_TIME]:
            self.line.put_off(job)
            if now - job.since > MAX_WAIT:
                self.line.remove(job)
                self._hold(-job.requests)
                self._done(job, in_time=False)
        self._credit = min(0.0, self._credit) + self.takes * self.ready
        served: list[Job] = []
        while self.line and self._credit > 0:
            job = next(iter(self.line))
            self.line.serve(job)
            self._credit -= job.requests
            self.books = structs.replace(self.books, charged=self.books.charged + job.cost)
            self._done(job, in_time=now - job.since <= IN_TIME)
            served.append(job)
        self.upside_down += upside_down(served, self.line)

    def _done(self, job: Job, *, in_time: bool) -> None:
        missed = 0 if in_time else job.requests
        tally = self.tallies[job.priority]
        tally.served += job.requests - missed
        tally.late += missed
        self.seen = replace(self.seen, finished=self.seen.finished + job.requests, missed=self.seen.missed + missed)

    def told(self, now_ms: int) -> SpendAnswer:
        """What the ledger answers about the budget."""
        terms, books = self.terms(now_ms), self.books
        key = KeySpend(
            namespace="",
            key="",
            charged=books.charged,
            leased=0,
            reserved=books.held - books.charged,
            unreconciled=0,
            unbacked=0,
            counted_from=START_MS,
        )
        return SpendAnswer(
            namespace="platform",
            name="day",
            unit="USD",
            per="Total",
            limit=self.limit,
            extra=0,
            charged=books.charged,
            leased=0,
            reserved=key.reserved,
            unreconciled=0,
            unbacked=0,
            remaining=self.limit - books.held,
            window=Window(id=0, start=START_MS, end=END_MS),
            window_label="day",
            counted_from=START_MS,
            action=standing(terms, books),
            active=active(terms, books.acted),
            idle=terms.idle,
            keys=(key,),
            keys_total=1,
        )

    def _decide(self, now: int) -> None:
        """One round of the law, under what the budget leaves."""
        now_ms = START_MS + now * 1000
        spend, costs = {"platform/day": self.told(now_ms)}, {POOL: self.replicas * PRICE}
        left = accounts_left(POOL, (day_budget(self.limit),), spend, costs, now_ms)
        paid = Upkeep(costs[POOL], 0, PRICE, self.settings.variants[0].cold_start_ms, drain_ms=0)
        variant = replace(self.settings.variants[0], current=self.replicas, ready=self.ready)
        waiting = sum(one.requests for one in self.line)
        held = 0 if self.ready else waiting
        seen = replace(self.seen, at_ms=now_ms, waiting=waiting - held, held=held)
        given = replace(self.settings, variants=(variant,), spend_cap_per_hour=spend_cap(left))
        self.memory, wish = step(self.memory, seen, replace(given, pays_a_replica=pays_a_replica(left, paid)))
        self.seen = Observation(now_ms, last_request_ms=seen.last_request_ms)
        change = wish.replicas - self.replicas
        self.starting += [now + round(STEPS.cold_start)] * change
        cancelled = min(max(0, -change), len(self.starting))
        del self.starting[len(self.starting) - cancelled :]
        self.ready -= max(0, -change) - cancelled


def upside_down(served: Iterable[Job], line: Iterable[Job]) -> bool:
    """Whether one that is left waiting, and can still be in time, has a higher priority than one that was served."""
    lowest = max((PRIORITIES.index(job.priority) for job in served), default=-1)
    return any(PRIORITIES.index(job.priority) < lowest for job in line)


def day_budget(limit: int) -> LedgerBudget:
    """The day's, of the pool's namespace and all tenants'; nano-USD."""
    return LedgerBudget(
        namespace="platform",
        name="day",
        uid="day",
        unit="USD",
        per="Total",
        period="Day",
        time_zone="UTC",
        limit=limit,
        namespaces=("interactive", "standard", "batch"),
        actions=(BudgetAction(at_percent=BATCH_PERCENT, action="RejectBatch"),),
        idle_namespaces=("platform",),
    )


def pool() -> tuple[float, Settings]:
    """Requests/s that a replica takes, and what the law is told of the pool."""
    mix = tuple(random.Random("budgets").sample(lengths("conv"), MIXED))  # noqa: S311 - choices that can be repeated
    curves = tuple((replicas, curve(LLAMA, mix, CHAT, replicas=replicas)) for replicas in (1, 4))
    variant = VariantState("h100", curves, PRICE, round(STEPS.cold_start * 1000))
    takes = curves[-1][1].capacity(CHAT.attainment)
    return takes, Settings(0, STEPS.maximum, (variant,), CHAT, zero_after_ms=ZERO_AFTER * 1000)


def tenants(seed: int = 1, mean: float = STEPS.mean) -> Counts:
    """The clients of S3 by number modulo 3, of together so many requests/s."""
    rng = random.Random(f"budgets/{seed}")  # noqa: S311 - choices that can be repeated
    windows = {one: client_windows("m-large", STEPS.day, _third(at)) for at, one in enumerate(PRIORITIES)}
    factor = mean * len(windows["Batch"]) / sum(rate for own in windows.values() for _, _, rate in own)
    counts = {one: [0] * round(DAY) for one in PRIORITIES}
    for one, own in windows.items():
        for at in poisson([(since, until, rate * factor) for since, until, rate in own], rng):
            counts[one][int(at)] += 1
    return counts


def _third(at: int) -> Callable[[int], bool]:
    return lambda client: client % len(PRIORITIES) == at


def day(limit: int, counts: Counts, takes: float, settings: Settings) -> Outcome:
    """A day under a budget of so many nano-USD."""
    shop = Shop(limit, takes, settings)
    for now, arriving in enumerate(zip(*counts.values(), strict=True)):
        shop.second(now, dict(zip(counts, arriving, strict=True)))
    return Outcome(limit, shop.spent, shop.books.charged, shop.tallies, shop.upside_down)


def needed() -> int:
    """What the clairvoyant schedule of S3 costs, nano-USD."""
    return round(reference(Case(STEPS.name, CLAIRVOYANT, STEPS.cold_start)).result.dollars * NANO)


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.autoscaler.budgets", description=__doc__)
    parser.add_argument("--need", type=float, help="USD of a day instead of what the clairvoyant schedule of S3 costs")
    asked = parser.parse_args()
    need = needed() if asked.need is None else round(asked.need * NANO)
    takes, settings = pool()
    counts, summary = tenants(), {}
    print("budget %    budget     spent   charged  served in time %: " + ", ".join(PRIORITIES) + "  out of order, s")
    for share in SHARES:
        one = day(round(share * need), counts, takes, settings)
        served = {priority: round(100 * tally.share, 2) for priority, tally in one.tallies.items()}
        money = (f"{amount / NANO:9.2f}" for amount in (one.limit, one.spent, one.charged))
        print(f"{100 * share:8.0f} ", *money, " ", *(f"{met:6.2f}" for met in served.values()), f" {one.upside_down}")
        summary[f"{100 * share:.0f}"] = {
            "over_budget_usd": round(max(0, one.spent - one.limit) / NANO, 4),
            "served_percent": served,
            "out_of_order_seconds": one.upside_down,
        }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
