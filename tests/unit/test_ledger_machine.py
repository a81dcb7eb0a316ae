"""Hypothesis plays routers, a network that loses and repeats, kills, edits and clocks against all ledgers.

The routers are models that follow the protocol to the letter; the ledgers are the real ones: on dictionaries, SQLite
and PostgreSQL. What really ran is kept aside, whether or not anybody was told.
"""

import copy
import os
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fairlead_operator.ledger.access import Caller
from fairlead_operator.ledger.backup import RECOVERY
from fairlead_operator.ledger.escrow import MAX_AMOUNT, Refusal
from fairlead_operator.ledger.schema import open_engine
from fairlead_router.contract import (
    Action,
    Ask,
    BudgetAction,
    Close,
    Holding,
    SyncAnswer,
    SyncRequest,
    TemporaryIncrease,
    Unknown,
)
from tests.builders.ledger import TTL_MS, Ledger, MemoryLedger, SqliteLedger, budget, caller, line
from tests.builders.postgres import PostgresLedger

BUDGETS = ("small", "large")
LIMITS = {"small": 100, "large": 1_000}
AMOUNTS = st.sampled_from([0, 7, 40, 90, 120])
ROUTERS = st.sampled_from([0, 0, 1, 2])
CLASSES = st.sampled_from([1, 1, 0])
FATES = st.sampled_from(["ok", "ok", "ok", "lose request", "lose answer"])
MOST_GRAVES = 3

Window = tuple[str, int]
"""Budget and start of the window: what a limit is about."""
Place = tuple[int, int]
"""Account and class: what a router has a holding of."""


@dataclass(slots=True)
class Purse:
    """A router's holding: its own, newest numbers."""

    window: Window
    granted: int = 0
    returned: int = 0
    charged: int = 0
    unbacked: int = 0
    reserved: int = 0

    @property
    def free(self) -> int:
        return self.granted - self.returned - (self.charged - self.unbacked) - self.reserved


@dataclass(slots=True)
class Router:
    """A router process and its journal: one message in flight, the same bytes until it is answered."""

    session: str
    pod: str
    seq: int = 0
    purses: dict[Place, Purse] = field(default_factory=dict)
    running: list[dict[Place, int]] = field(default_factory=list)
    """Reservations that are not settled: an amount from each of one or more purses."""
    sealed: SyncRequest | None = None
    sent: list[SyncRequest] = field(default_factory=list)
    """Every message of the session, to be told again to a ledger that lost some."""
    again: list[SyncRequest] = field(default_factory=list)
    """Those of them that are being told again; the one in flight is the last."""
    usage: int = 0
    heard: int = 0
    """When the last message that was answered had been sent."""
    taken: bool = False
    """A successor speaks for it. What it still runs it counts for itself, and nobody hears of it."""

    def seal(self, now: int, **message: Any) -> SyncRequest:
        self.seq += 1
        lines = (line(nano_usd=self.usage),) if self.usage else ()
        self.sealed = SyncRequest(session=self.session, seq=self.seq, sent_at=now, usage=lines, **message)
        self.usage = 0
        self.sent.append(self.sealed)
        return self.sealed

    def rewind(self, expected: int) -> None:
        """The ledger does not know of what came after."""
        self.again = [msgspec.structs.replace(message, rewind=True) for message in self.sent[expected - 1 :]]
        self.sealed = self.again[0]

    def take(self, answer: SyncAnswer) -> None:
        # An answer to what is told again is about then: what was given back since must not come to life by it.
        for told in () if self.again else answer.accounts:
            place = told.account, told.klass
            if told.granted or place in self.purses:
                window = told.budget.partition("/")[2], told.window.start
                purse = self.purses.setdefault(place, Purse(window))
                purse.granted = max(purse.granted, told.granted)
        self.again = self.again[1:]
        self.sealed = self.again[0] if self.again else None

    def told(self, place: Place, *, final: bool = False, **demand: int) -> Holding:
        purse = self.purses[place]
        return Holding(
            account=place[0],
            klass=place[1],
            granted=purse.granted,
            returned=purse.returned,
            charged=purse.charged,
            unbacked=purse.unbacked,
            reserved=purse.reserved,
            final=final,
            **demand,
        )

    def open(self) -> tuple[Unknown, ...]:
        """The bounds of what runs, which nobody can account for once the process is dead."""
        return tuple(
            Unknown(account=account, klass=klass, amount=purse.reserved)
            for (account, klass), purse in self.purses.items()
            if purse.reserved
        )


@dataclass(slots=True)
class Grave:
    """A router's journal, and the pod of the successor that tells it."""

    router: Router
    pod: str
    rebooted: bool = False


class LedgerMachine(RuleBasedStateMachine):
    """The rules."""

    copies = True

    def new_ledger(self) -> Ledger:
        return MemoryLedger()

    def __init__(self) -> None:
        super().__init__()
        self.ledger = self.new_ledger()
        self.born = 0
        self.routers = [self._born() for _ in range(3)]
        self.graves: list[Grave] = []
        self.history: list[tuple[str, SyncRequest]] = []
        self.limits = {name: budget(name, limit=LIMITS[name]) for name in BUDGETS}
        self.version = 0
        self.highest: Counter[str] = Counter()
        self.backed: Counter[Window] = Counter()
        self.charged = 0
        self.lost: Counter[Window] = Counter()
        """Bounds of requests that ran when their process died: they may have cost that much."""
        self.untold = 0
        """Charges of which nobody can tell any more."""
        self.kept: tuple[Any, set[str]] | None = None
        """A copy of the ledger, and the sessions that spoke to it."""
        self.restored = False
        self._put()

    @initialize()
    def begin(self) -> None:
        self._put()

    def _born(self, pod: str = "") -> Router:
        self.born += 1
        return Router(f"s{self.born}", pod or f"pod-{self.born}", heard=-TTL_MS)

    def _put(self, *absent: str) -> None:
        self.version += 1
        present = [item for name, item in self.limits.items() if name not in absent]
        self.ledger.put(self.version, *present)
        for item in present:
            increase = item.temporary_increase.amount if item.temporary_increase else 0
            self.highest[item.name] = max(self.highest[item.name], item.limit + increase)

    # --- messages

    def _send(self, pod: str, message: SyncRequest) -> SyncAnswer | Refusal:
        self.history.append((pod, message))
        return self.ledger.sync(caller(pod), message)

    def _deliver(self, router: Router, fate: str) -> None:
        message = router.sealed
        assert message is not None
        if fate == "lose request":
            return
        answer = self._send(router.pod, message)
        if fate == "lose answer":
            return
        if isinstance(answer, SyncAnswer):
            assert not router.taken
            router.heard = self.ledger.now
            router.take(answer)
            self._check_classes(answer)
            if message.close:
                self._bury(router)
        elif answer.status == 409 and self.restored:
            router.rewind(answer.expected)
        else:
            # 403: its first message had not arrived when a successor spoke; nothing was granted to it yet.
            assert answer.status == 410 or (answer.status == 403 and router.heard < 0), answer
            self._bury(router)

    def _check_classes(self, answer: SyncAnswer) -> None:
        """Batch got nothing of the headroom, also not of what the others have left of it."""
        held = {(book.budget.partition("/")[2], book.window): book.account.held for book in self.ledger.books()}
        for told in answer.accounts:
            name = told.budget.partition("/")[2]
            item = self.limits.get(name)
            if item is not None and told.klass == 0 and told.verdict == "Granted":
                shares = [action.at_percent for action in item.actions if action.action == "RejectBatch"]
                increase = item.temporary_increase
                extra = increase.amount if increase is not None and self.ledger.now < increase.until else 0
                most = (item.limit + extra) * min(shares, default=100) // 100
                assert held[name, told.window.start] <= most

    def _bury(self, router: Router) -> None:
        """The session is over and its process begins anew. What runs still costs something, and nobody will tell."""
        self._lose(router)
        self.routers[self.routers.index(router)] = self._born(router.pod)

    def _lose(self, router: Router) -> None:
        """Nobody can read its journal: what was not told never will be."""
        if not router.taken:
            self._close_eyes(router)
            self.untold += router.usage + sum(item.nano_usd for item in (router.sealed.usage if router.sealed else ()))

    def _close_eyes(self, router: Router) -> None:
        """What runs may cost its bound, whatever becomes of it."""
        for purse in router.purses.values():
            self.lost[purse.window] += purse.reserved
        router.taken = True
        self.kept = None  # with a copy of before, the ledger could grant once more what this one got since

    @rule(
        index=ROUTERS, name=st.sampled_from(BUDGETS), klass=CLASSES, at=st.sampled_from(["Now", "Now", "Next"]),
        want=AMOUNTS, need=AMOUNTS, first=AMOUNTS, give=st.sampled_from([0, 0, 30, 100]), fate=FATES,
    )  # fmt: skip
    def sync(
        self, *, index: int, name: str, klass: int, at: Any, want: int, need: int, first: int, give: int, fate: str
    ) -> None:
        router = self.routers[index]
        if router.sealed is None:
            demand: dict[str, Any] = {"want": want, "need": max(need, first), "first": first}
            known = [place for place, purse in router.purses.items() if purse.window[0] == name and place[1] == klass]
            holdings = tuple(
                self._told(router, place, give, demand if place in known[-1:] else {}) for place in list(router.purses)
            )
            asks = () if known else (Ask(budget=f"team-a/{name}", namespace="", at=at, klass=klass, **demand),)
            router.seal(self.ledger.now, holdings=holdings, asks=asks)
        self._deliver(router, fate)

    @staticmethod
    def _told(router: Router, place: Place, give: int, demand: dict[str, int]) -> Holding:
        purse = router.purses[place]
        final = give == 100 and not purse.reserved
        purse.returned += purse.free * give // 100
        told = router.told(place, final=final, **({} if final else demand))
        if final:
            del router.purses[place]
        return told

    @rule(
        index=ROUTERS, name=st.sampled_from(BUDGETS), klass=CLASSES, need=AMOUNTS,
        percent=st.sampled_from([30, 100, 300]), give=st.sampled_from([0, 100]),
    )  # fmt: skip
    def work(self, *, index: int, name: str, klass: int, need: int, percent: int, give: int) -> None:
        """Ask, run one request that takes all that is free, report."""
        ask: dict[str, Any] = {"index": index, "name": name, "klass": klass, "at": "Now", "want": 0, "fate": "ok"}
        self.sync(**ask, need=need, first=need, give=0)
        router = self.routers[index]
        for place in [place for place, purse in router.purses.items() if purse.window[0] == name and purse.free > 0]:
            if self._reserve(router, {place: router.purses[place].free}):
                self._settle(router, router.running.pop(), percent)
        self.sync(**ask, need=0, first=0, give=give)

    @rule(index=st.integers(0, 1_000))
    @precondition(lambda self: self.history)
    def repeat_an_old_message(self, index: int) -> None:
        pod, message = self.history[index % len(self.history)]
        answer = self.ledger.sync(caller(pod), message)
        # 403: of a session that a successor began, before the first message of the router itself had come.
        allowed = {403, 410, 425, 409} if self.restored else {403, 410, 425}
        assert isinstance(answer, SyncAnswer) or answer.status in allowed

    @rule(index=ROUTERS)
    def a_stranger_speaks_for_a_session(self, index: int) -> None:
        router = self.routers[index]
        message = SyncRequest(session=router.session, seq=router.seq + 1)
        if message.seq > 1:
            answer = self.ledger.sync(caller("stranger"), message)
            assert isinstance(answer, Refusal)
            assert answer.status in {403, 409, 410}

    @rule(index=ROUTERS, fate=st.sampled_from(["ok", "lose answer", "lose request"]))
    def drain(self, index: int, fate: str) -> None:
        router = self.routers[index]
        if router.sealed is None:
            while router.running:
                self._settle(router, router.running.pop(), 100)
            for purse in router.purses.values():
                purse.returned += purse.free
            holdings = tuple(router.told(place) for place in router.purses)
            router.seal(self.ledger.now, holdings=holdings, close=Close(complete=True))
        self._deliver(router, fate)

    # --- kills and successors

    @rule(index=ROUTERS)
    def kill_and_lose_the_volume(self, index: int) -> None:
        router = self.routers[index]
        self._lose(router)
        self.routers[index] = self._born()

    @rule(index=ROUTERS, elsewhere=st.booleans(), rebooted=st.booleans())
    @precondition(lambda self: len(self.graves) < MOST_GRAVES)
    def kill_and_keep_the_volume(self, index: int, elsewhere: bool, rebooted: bool) -> None:
        """A container restarts in its pod, or the volume comes back in another one."""
        router = self.routers[index]
        self.routers[index] = self._born("" if elsewhere else router.pod)
        if not router.taken:
            self._close_eyes(router)
            self.graves.append(Grave(router, self.routers[index].pod, rebooted))

    @rule(index=ROUTERS)
    @precondition(lambda self: len(self.graves) < MOST_GRAVES)
    def two_pods_have_one_volume(self, index: int) -> None:
        """Another pod finds the journal of a router that lives, or is only cut off."""
        router = self.routers[index]
        if not router.taken and not any(grave.router is router for grave in self.graves):
            self.graves.append(Grave(router, f"thief-{self.born}"))

    @rule(which=st.integers(0, 2), fate=FATES)
    @precondition(lambda self: self.graves)
    def tell_a_journal(self, which: int, fate: str) -> None:
        grave = self.graves[which % len(self.graves)]
        if fate == "lose request":
            return
        router, message = grave.router, self._next_words(grave)
        answer = self._send(grave.pod, message)
        if isinstance(answer, Refusal):
            assert answer.status == 410 or (answer.status == 425 and grave.pod != router.pod), answer
            if answer.status == 410:
                self._lose(router)
                self.graves.remove(grave)
            return
        if not router.taken:  # it lives, but was silent for so long that it has fenced itself
            assert self._fenced(router)
            self._close_eyes(router)
        if fate == "lose answer":
            return
        router.sealed = None
        if message.close:
            self.graves.remove(grave)

    def _fenced(self, router: Router) -> bool:
        return router not in self.routers or self.ledger.now - router.heard >= TTL_MS

    def _next_words(self, grave: Grave) -> SyncRequest:
        """The message that may not have arrived, then the close; marked as a successor's."""
        router = grave.router
        if router.sealed is not None:
            return msgspec.structs.replace(router.sealed, replay=True)
        return SyncRequest(
            session=router.session,
            seq=router.seq + 1,
            sent_at=self.ledger.now,
            replay=True,
            usage=(line(nano_usd=router.usage),) if router.usage else (),
            holdings=tuple(router.told(place) for place in router.purses),
            close=Close(complete=not grave.rebooted, unknown=router.open()),
        )

    # --- copies

    @rule()
    @precondition(lambda self: self.copies)
    def back_up(self) -> None:
        if not self.graves:
            self.kept = snapshot(self.ledger), {router.session for router in self.routers}

    @rule(order=st.permutations(range(3)))
    @precondition(lambda self: self.kept and not self.graves)
    def restore(self, order: list[int]) -> None:
        """The ledger is what it was at the copy. It grants nothing until the routers told again what they hold."""
        assert self.kept is not None
        kept, sessions = self.kept
        if sessions != {router.session for router in self.routers}:
            return
        put_back(self.ledger, kept)
        self.restored = True
        self._put()
        for index in order[:2]:
            self.sync(index=index, name="small", klass=1, at="Now", want=0, need=90, first=7, give=0, fate="ok")
        for index in order:
            for _ in range(len(self.routers[index].sent) + 2):
                self.sync(index=index, name="small", klass=1, at="Now", want=0, need=0, first=0, give=0, fate="ok")

    # --- requests

    def _reserve(self, router: Router, amounts: dict[Place, int]) -> bool:
        """All or nothing, and only while the session counts as alive."""
        if (
            self._fenced(router)
            or not amounts
            or any(router.purses[place].free < amount for place, amount in amounts.items())
        ):
            return False
        for place, amount in amounts.items():
            router.purses[place].reserved += amount
        router.running.append(amounts)
        return True

    @rule(index=ROUTERS, which=st.integers(0, 3), amount=st.sampled_from([1, 5, 20, 80]), several=st.booleans())
    def reserve(self, index: int, which: int, amount: int, several: bool) -> None:
        router = self.routers[index]
        places = list(router.purses)
        if places:
            chosen = places if several else [places[which % len(places)]]
            while len(router.running) < 3 and self._reserve(router, dict.fromkeys(chosen, amount)):
                continue

    @rule(index=ROUTERS, which=st.integers(0, 3), percent=st.sampled_from([0, 30, 100, 300]))
    def settle(self, index: int, which: int, percent: int) -> None:
        router = self.routers[index]
        if router.running:
            self._settle(router, router.running.pop(which % len(router.running)), percent)

    def _settle(self, router: Router, amounts: dict[Place, int], percent: int) -> None:
        for place, amount in amounts.items():
            purse, cost = router.purses[place], amount * percent // 100
            self.charged += cost
            if router.taken:
                self.untold += cost
                continue
            purse.reserved -= amount
            backed = min(cost, purse.free)
            purse.charged += cost
            purse.unbacked += cost - backed
            router.usage += cost
            self.backed[purse.window] += backed

    # --- the world

    @rule(name=st.sampled_from(BUDGETS), limit=st.integers(0, 1_500))
    def edit_the_limit(self, name: str, limit: int) -> None:
        self.limits[name] = msgspec.structs.replace(self.limits[name], limit=limit)
        self._put()

    @rule(
        name=st.sampled_from(BUDGETS),
        actions=st.lists(
            st.tuples(st.integers(1, 99), st.sampled_from(["Pace", "RejectBatch", "Deprioritize"])), max_size=3
        ),
    )
    def edit_the_actions(self, name: str, actions: list[tuple[int, Action]]) -> None:
        told = tuple(BudgetAction(at_percent=percent, action=action) for percent, action in actions)
        self.limits[name] = msgspec.structs.replace(self.limits[name], actions=told)
        self._put()

    @rule(name=st.sampled_from(BUDGETS), amount=st.integers(1, 500), seconds=st.sampled_from([5, 400, 4_000]))
    def increase_for_a_while(self, name: str, amount: int, seconds: int) -> None:
        increase = TemporaryIncrease(amount=amount, until=self.ledger.now + seconds * 1_000)
        self.limits[name] = msgspec.structs.replace(self.limits[name], temporary_increase=increase)
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
        running: Counter[Window] = Counter()
        for router in self.routers:
            for purse in router.purses.values():
                assert purse.free >= 0
                running[purse.window] += 0 if router.taken else purse.reserved
        for window in {*self.backed, *running, *self.lost}:
            assert self.backed[window] + running[window] + self.lost[window] <= self.highest[window[0]]

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
        """Once all living routers and all journals were heard, only what nobody can tell is missing."""
        living = set()
        for index in range(len(self.routers)):
            living.add(self.routers[index].session)
            while self.routers[index].session in living:
                self.drain(index, "ok")
        self.ledger.now += 2 * TTL_MS
        while self.graves:
            self.tell_a_journal(0, "ok")
        books = [book.account for book in self.ledger.books()]
        out = self.ledger.out()
        assert not {session for (session, _), left in out.items() if left} & living
        assert sum(account.held for account in books) == sum(account.charged for account in books) + out.total()
        assert self.charged - self.untold <= self.ledger.usage() <= self.charged < MAX_AMOUNT


class SqliteMachine(LedgerMachine):
    """The same rules on the real transaction."""

    def new_ledger(self) -> Ledger:
        return SqliteLedger()


class TwoLedgers(PostgresLedger):
    """Two of them on one database take messages in pairs: what one remembers, the other one may have changed."""

    def __init__(self) -> None:
        super().__init__()
        self._engines = self.engine, open_engine(self.url)
        self._heard = 0

    def sync(self, who: Caller, message: SyncRequest) -> SyncAnswer | Refusal:
        self._heard += 1
        self.engine = self._engines[self._heard // 2 % 2]
        return super().sync(who, message)

    def close(self) -> None:
        for engine in self._engines:
            engine.dispose()
        super().close()


class PostgresMachine(LedgerMachine):
    """The same with two ledgers on PostgreSQL; its copies are PostgreSQL's own business."""

    copies = False

    def new_ledger(self) -> Ledger:
        return TwoLedgers()


def snapshot(ledger: Ledger) -> Any:
    """All that a ledger keeps."""
    if isinstance(ledger, MemoryLedger):
        return {item.name: copy.deepcopy(getattr(ledger, item.name)) for item in fields(ledger)}
    assert isinstance(ledger, SqliteLedger)
    with closing(sqlite3.connect(":memory:")) as kept, closing(sqlite3.connect(_file(ledger))) as database:
        database.backup(kept)
        image = kept.serialize()
    return image[:18] + b"\1\1" + image[20:]  # journal mode "delete": memory has no write-ahead log


def put_back(ledger: Ledger, kept: Any) -> None:
    """A ledger goes on with what a copy of it has, as another history."""
    until = ledger.now + TTL_MS
    if isinstance(ledger, MemoryLedger):
        for name, value in kept.items():
            if name != "now":
                setattr(ledger, name, copy.deepcopy(value))
        ledger.recover("", until)
        return
    assert isinstance(ledger, SqliteLedger)
    with closing(sqlite3.connect(":memory:")) as source, closing(sqlite3.connect(_file(ledger))) as database:
        source.deserialize(kept)
        source.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (RECOVERY, str(until)))
        source.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", ("epoch", f"e{until}"))
        source.commit()
        source.backup(database)


def _file(ledger: SqliteLedger) -> Path:
    return Path(ledger.folder.name) / "ledger.db"


SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]
PHASES = (Phase.generate,) if "FAIRLEAD_MUTANT" in os.environ else tuple(Phase)
"""Of a mutant it is only asked whether it is found, not by which shortest history."""
NIGHT = int(os.environ.get("FAIRLEAD_EXAMPLES", "0"))
"""So many examples instead of the few of every day: make test-machines."""


@pytest.mark.timeout(max(120, NIGHT * 6))
@pytest.mark.parametrize(("machine", "examples"), [(LedgerMachine, 200), (SqliteMachine, 60), (PostgresMachine, 15)])
def test_no_order_of_events_breaks_the_books_or_a_limit(machine: type[LedgerMachine], examples: int) -> None:
    config = settings(
        max_examples=NIGHT or examples,
        stateful_step_count=60 if NIGHT else 30,
        deadline=None,
        phases=PHASES,
        suppress_health_check=SLOW,
    )
    run_state_machine_as_test(machine, settings=config)


def test_the_model_uses_the_ttl_of_the_ledgers() -> None:
    assert TTL_MS == 30_000
