"""Hypothesis plays routers, a network that loses and repeats, kills, edits and clocks against both ledgers."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fairlead_operator.ledger.escrow import Refusal
from fairlead_router.contract import (
    Ask,
    Close,
    Holding,
    SyncAnswer,
    SyncRequest,
    TemporaryIncrease,
)
from tests.builders.ledger import TTL_MS, Ledger, MemoryLedger, SqliteLedger, budget, caller, line

BUDGETS = ("small", "large")
LIMITS = {"small": 100, "large": 1_000}
AMOUNTS = st.sampled_from([0, 7, 40, 90, 120])
ROUTERS = st.sampled_from([0, 0, 1, 2])

Place = tuple[str, int]
"""Budget and start of the window: what a limit is about."""


@dataclass(slots=True)
class Purse:
    """A router's holding: its own, newest numbers."""

    place: Place
    granted: int = 0
    returned: int = 0
    charged: int = 0
    unbacked: int = 0
    reserved: list[int] = field(default_factory=list)

    @property
    def free(self) -> int:
        return self.granted - self.returned - (self.charged - self.unbacked) - sum(self.reserved)


@dataclass(slots=True)
class Router:
    """A router process: one message in flight, the same bytes until it is answered."""

    name: str
    seq: int = 0
    purses: dict[int, Purse] = field(default_factory=dict)
    sealed: SyncRequest | None = None
    usage: int = 0

    def seal(self, message: dict[str, Any]) -> SyncRequest:
        self.seq += 1
        lines = (line(nano_usd=self.usage),) if self.usage else ()
        self.sealed = SyncRequest(session=self.name, seq=self.seq, usage=lines, **message)
        self.usage = 0
        return self.sealed

    def take(self, answer: SyncAnswer) -> None:
        for account in answer.accounts:
            if account.granted or account.account in self.purses:
                place = account.budget.partition("/")[2], account.window.start
                purse = self.purses.setdefault(account.account, Purse(place))
                purse.granted = max(purse.granted, account.granted)
        self.sealed = None


class LedgerMachine(RuleBasedStateMachine):
    """The rules. Truth is kept aside: what really ran, whether or not the ledger was told."""

    def new_ledger(self) -> Ledger:
        return MemoryLedger()

    def __init__(self) -> None:
        super().__init__()
        self.ledger = self.new_ledger()
        self.routers = [Router(f"r{index}") for index in range(3)]
        self.born = 3
        self.history: list[SyncRequest] = []
        self.limits = {name: budget(name, limit=LIMITS[name]) for name in BUDGETS}
        self.version = 0
        self.highest: Counter[str] = Counter()
        self.backed: Counter[Place] = Counter()
        self.charged = 0
        self.lost: Counter[Place] = Counter()

    @initialize()
    def first_budgets(self) -> None:
        self._put()

    def _put(self, *absent: str) -> None:
        self.version += 1
        present = [item for name, item in self.limits.items() if name not in absent]
        self.ledger.put(self.version, *present)
        for item in present:
            increase = item.temporary_increase.amount if item.temporary_increase else 0
            self.highest[item.name] = max(self.highest[item.name], item.limit + increase)

    # --- messages

    def _deliver(self, router: Router, fate: str) -> None:
        message = router.sealed
        assert message is not None
        if fate == "lose request":
            return
        answer = self.ledger.sync(caller(router.name), message)
        self.history.append(message)
        if fate == "lose answer":
            return
        if isinstance(answer, SyncAnswer):
            router.take(answer)
            if message.close:
                self._replace(router)
            return
        assert answer.status == 410, answer
        self._replace(router)

    def _replace(self, router: Router) -> None:
        """The process is gone. What its requests in flight cost may have run, and nobody will tell."""
        for purse in router.purses.values():
            self.lost[purse.place] += sum(purse.reserved)
        self.routers[self.routers.index(router)] = Router(f"r{self.born}")
        self.born += 1

    @rule(
        index=ROUTERS,
        name=st.sampled_from(BUDGETS),
        at=st.sampled_from(["Now", "Now", "Next"]),
        want=AMOUNTS,
        need=AMOUNTS,
        first=AMOUNTS,
        give=st.sampled_from([0, 0, 30, 100]),
        fate=st.sampled_from(["ok", "ok", "ok", "lose request", "lose answer"]),
    )
    def sync(self, *, index: int, name: str, at: Any, want: int, need: int, first: int, give: int, fate: str) -> None:
        router = self.routers[index]
        if router.sealed is None:
            demand: dict[str, Any] = {"want": want, "need": max(need, first), "first": first}
            place = [id_ for id_, purse in router.purses.items() if purse.place[0] == name]
            holdings = tuple(
                self._told(router, id_, give, demand if id_ in place[-1:] else {}) for id_ in list(router.purses)
            )
            asks = () if place else (Ask(budget=f"team-a/{name}", namespace="", at=at, **demand),)
            router.seal({"holdings": holdings, "asks": asks})
        self._deliver(router, fate)

    @rule(
        index=ROUTERS,
        name=st.sampled_from(BUDGETS),
        need=AMOUNTS,
        percent=st.sampled_from([30, 100, 300]),
        give=st.sampled_from([0, 100]),
    )
    def work(self, *, index: int, name: str, need: int, percent: int, give: int) -> None:
        """Ask, run one request that takes all that is free, report."""
        self.sync(index=index, name=name, at="Now", want=0, need=need, first=need, give=0, fate="ok")
        router = self.routers[index]
        for purse in [purse for purse in router.purses.values() if purse.place[0] == name and purse.free > 0]:
            purse.reserved.append(amount := purse.free)
            self._settle(router, purse, amount, amount * percent // 100)
        self.sync(index=index, name=name, at="Now", want=0, need=0, first=0, give=give, fate="ok")

    @staticmethod
    def _told(router: Router, id_: int, give: int, demand: dict[str, int]) -> Holding:
        purse = router.purses[id_]
        final = give == 100 and not purse.reserved
        if final:
            demand = {}
            del router.purses[id_]
        purse.returned += purse.free * give // 100
        return Holding(
            account=id_,
            granted=purse.granted,
            returned=purse.returned,
            charged=purse.charged,
            unbacked=purse.unbacked,
            reserved=sum(purse.reserved),
            final=final,
            **demand,
        )

    @rule(index=st.integers(0, 1_000))
    @precondition(lambda self: self.history)
    def repeat_an_old_message(self, index: int) -> None:
        message = self.history[index % len(self.history)]
        answer = self.ledger.sync(caller(message.session), message)
        assert isinstance(answer, SyncAnswer) or answer.status == 410

    @rule(index=ROUTERS)
    def a_stranger_speaks_for_a_session(self, index: int) -> None:
        message = SyncRequest(session=self.routers[index].name, seq=self.routers[index].seq + 1)
        if message.seq > 1:
            answer = self.ledger.sync(caller("stranger"), message)
            assert isinstance(answer, Refusal)
            assert answer.status in {403, 409}

    @rule(index=ROUTERS)
    def kill_and_lose_the_volume(self, index: int) -> None:
        self._replace(self.routers[index])

    @rule(index=ROUTERS, fate=st.sampled_from(["ok", "lose answer", "lose request"]))
    def drain(self, index: int, fate: str) -> None:
        router = self.routers[index]
        if router.sealed is None:
            for purse in router.purses.values():
                for amount in list(purse.reserved):
                    self._settle(router, purse, amount, amount)
            holdings = tuple(self._told(router, id_, 0, {}) for id_ in list(router.purses))
            router.seal({"holdings": holdings, "close": Close(complete=True)})
            for purse in router.purses.values():
                purse.returned += purse.free
        self._deliver(router, fate)

    # --- requests

    @rule(index=ROUTERS, which=st.integers(0, 3), amount=st.sampled_from([1, 5, 20, 80]))
    def reserve(self, index: int, which: int, amount: int) -> None:
        purses = list(self.routers[index].purses.values())
        if purses:
            purse = purses[which % len(purses)]
            while purse.free >= amount and len(purse.reserved) < 3:
                purse.reserved.append(amount)

    @rule(index=ROUTERS, which=st.integers(0, 3), percent=st.sampled_from([0, 30, 100, 300]))
    def settle(self, index: int, which: int, percent: int) -> None:
        router = self.routers[index]
        running = [purse for purse in router.purses.values() if purse.reserved]
        if running:
            purse = running[which % len(running)]
            self._settle(router, purse, purse.reserved[0], purse.reserved[0] * percent // 100)

    def _settle(self, router: Router, purse: Purse, amount: int, cost: int) -> None:
        purse.reserved.remove(amount)
        backed = min(cost, purse.free)
        purse.charged += cost
        purse.unbacked += cost - backed
        router.usage += cost
        self.charged += cost
        self.backed[purse.place] += backed

    # --- the world

    @rule(name=st.sampled_from(BUDGETS), limit=st.integers(0, 1_500))
    def edit_the_limit(self, name: str, limit: int) -> None:
        self.limits[name] = budget(name, limit=limit)
        self._put()

    @rule(name=st.sampled_from(BUDGETS), amount=st.integers(1, 500), seconds=st.sampled_from([5, 400, 4_000]))
    def increase_for_a_while(self, name: str, amount: int, seconds: int) -> None:
        increase = TemporaryIncrease(amount=amount, until=self.ledger.now + seconds * 1_000)
        self.limits[name] = budget(name, limit=self.limits[name].limit, temporary_increase=increase)
        self._put()

    @rule(name=st.sampled_from(BUDGETS))
    def delete_and_recreate(self, name: str) -> None:
        self._put(name)
        self._put()

    @rule(name=st.sampled_from(BUDGETS))
    def delete(self, name: str) -> None:
        self._put(name)

    @rule(seconds=st.sampled_from([1, 5, 29, 31, 400, 3_600]))
    def let_time_pass(self, seconds: int) -> None:
        self.ledger.now += seconds * 1_000

    @rule()
    def upkeep(self) -> None:
        self.ledger.upkeep()

    # --- what must hold

    @invariant()
    def the_books_add_up(self) -> None:
        assert self.ledger.upkeep() == 0

    @invariant()
    def nothing_was_granted_beyond_a_limit(self) -> None:
        for book in self.ledger.books():
            account = book.account
            assert account.held - account.unbacked <= self.highest[book.budget.partition("/")[2]]

    @invariant()
    def the_truth_stays_within_the_limit(self) -> None:
        running: Counter[Place] = Counter()
        for router in self.routers:
            for purse in router.purses.values():
                assert purse.free >= 0
                running[purse.place] += sum(purse.reserved)
        for place in {*self.backed, *running, *self.lost}:
            assert self.backed[place] + running[place] + self.lost[place] <= self.highest[place[0]]

    @invariant()
    def what_is_charged_was_used_and_ran(self) -> None:
        told = sum(book.account.charged for book in self.ledger.books())
        assert self.ledger.usage() == told <= self.charged

    def teardown(self) -> None:
        try:
            self._everyone_goes_home()
        finally:
            self.ledger.close()

    def _everyone_goes_home(self) -> None:
        """Once every live router has said goodbye, only the sessions of killed ones hold anything."""
        living = set()
        for index in range(len(self.routers)):
            living.add(self.routers[index].name)
            while self.routers[index].name in living:
                self.drain(index, "ok")
        holders = {session for (session, _), out in self.ledger.out().items() if out}
        assert not holders & living
        out = sum(self.ledger.out().values())
        books = [book.account for book in self.ledger.books()]
        assert sum(account.held for account in books) == sum(account.charged for account in books) + out


class SqliteMachine(LedgerMachine):
    """The same rules on the real transaction."""

    def new_ledger(self) -> Ledger:
        return SqliteLedger()


SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]


@pytest.mark.parametrize(("machine", "examples"), [(LedgerMachine, 200), (SqliteMachine, 60)])
def test_no_order_of_events_breaks_the_books_or_a_limit(machine: type[LedgerMachine], examples: int) -> None:
    config = settings(max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=SLOW)
    run_state_machine_as_test(machine, settings=config)


def test_the_model_uses_the_ttl_of_the_ledgers() -> None:
    assert TTL_MS == 30_000
