"""What budgets do about requests before they refuse: actions, classes, models; and who cleans up behind a request."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fairlead_router.budget import BATCH_CLASS, CLASS, Claim, Wallet
from fairlead_router.contract import (
    AccountAnswer,
    Action,
    BudgetConfig,
    Card,
    FallbackConfig,
    Holding,
    PoolConfig,
    RouterConfig,
    SyncRequest,
    Window,
)
from fairlead_router.control import NoLedger
from fairlead_router.local_lease import LocalLease
from fairlead_router.policy import BudgetMatch, Caller, Labels, build_index, matching_budgets
from tests.builders.router import (
    CARD,
    LONG_POOL,
    POOL,
    Process,
    Station,
    budget,
    chat,
    configuration,
    policy,
    post,
    route,
    station,
    until,
)
from tests.fakes.engine import Behaviour, FakeEngine

SMALL = Card(version=9, prompt_pico=16_000, cached_pico=1_600, output_pico=48_000)
ONE, SMALL_ONE = 704, 352
"""Nano-USD of one request of the fake engine in either pool: 10 prompt and 4 output tokens."""


class Acting(LocalLease):
    """A ledger with actions in force, and what it was told."""

    def __init__(self, *active: Action) -> None:
        super().__init__({"support/support": 10**9}, lambda: int(time.time() * 1000))
        self.active: tuple[Action, ...] = active
        self.told: list[SyncRequest] = []

    async def sync(self, body: bytes) -> tuple[int, bytes]:
        self.told.append(msgspec.json.decode(body, type=SyncRequest))
        return await super().sync(body)

    def _grant(self, account: int, klass: int, want: int, first: int) -> AccountAnswer:
        return msgspec.structs.replace(super()._grant(account, klass, want, first), active=self.active)


def downgrading(*budgets: BudgetConfig, **changes: Any) -> RouterConfig:
    """A pool with a smaller one for callers whose budget downgrades them."""
    pools = (
        PoolConfig(pool=POOL, max_context_tokens=4096, slots=4, card=CARD),
        PoolConfig(pool=LONG_POOL, max_context_tokens=4096, slots=4, card=SMALL),
    )
    routed = route(fallbacks=(FallbackConfig(pool=LONG_POOL, when=("Downgraded",)),), **changes)
    return configuration(pools=pools, policies=(policy(routes=(routed,)),), budgets=budgets or (budget(),))


async def addresses(engine: FakeEngine, other: FakeEngine | None = None) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {POOL: (await engine.start(),)}
    if other is not None:
        found[LONG_POOL] = (await other.start(),)
    return found


def priority(at: Station) -> str:
    """Of the plan in use."""
    (plan,) = {plan for owner in at.router._owners.values() for plan in owner.plans.values()}
    return plan.priority


async def taken_up(at: Station, *actions: Action) -> None:
    """Until the router knows of these actions and has dropped what it had prepared."""
    config = at.router.index.config.budgets[0]

    def acted() -> bool:
        return at.router.wallet.acting(config, "support", "") == actions and not at.router.wallet.changed

    at.session.kick()
    await until(acted, f"the router knowing of {actions}")


async def test_a_budget_that_deprioritizes_makes_requests_batch_until_it_stops(engine: FakeEngine) -> None:
    ledger = Acting("Alert", "Deprioritize")
    async with station(configuration(budgets=(budget(),)), await addresses(engine), transport=ledger) as at:
        assert (await at.ask(chat(), x_fairlead_priority="interactive")).status == 200
        await taken_up(at, "Alert", "Deprioritize")
        assert (await at.ask(chat())).status == 200
        assert priority(at) == "Batch"
        ledger.active = ()
        for holding in at.router.wallet.holdings.values():
            holding.dirty = True
        await taken_up(at)
        assert (await at.ask(chat())).status == 200
        assert priority(at) == "Standard"


async def test_an_audit_budget_does_nothing_about_requests(engine: FakeEngine, other: FakeEngine) -> None:
    ledger = Acting("Deprioritize", "Downgrade")
    config = downgrading(budget(enforcement="Audit"))
    async with station(config, await addresses(engine, other), transport=ledger) as at:
        await at.ask(chat())
        await taken_up(at, "Deprioritize", "Downgrade")
        answer = await at.ask(chat())
        assert (priority(at), answer.headers["x-fairlead-pool"]) == ("Standard", "chat-8b")


async def test_a_downgraded_request_is_served_and_charged_by_the_fallback_for_it(
    engine: FakeEngine, other: FakeEngine
) -> None:
    ledger = Acting("Downgrade")
    async with station(downgrading(), await addresses(engine, other), transport=ledger) as at:
        assert (await at.ask(chat())).headers["x-fairlead-pool"] == "chat-8b"
        await taken_up(at, "Downgrade")
        answers = [await at.ask(chat()) for _ in range(3)]
        assert {answer.headers["x-fairlead-pool"] for answer in answers} == {"chat-8b-long"}
        charged = sum(holding.charged for holding in at.router.wallet.holdings.values())
        assert charged == ONE + 3 * SMALL_ONE
        assert await at.goodbye()
        line = next(line for message in ledger.told for line in message.usage if line.pool == LONG_POOL)
        assert (line.attempt, line.card) == ("Fallback", 9)
    assert (len(engine.receipts), len(other.receipts)) == (1, 3)


async def test_a_downgraded_request_without_another_replica_is_served_as_before(engine: FakeEngine) -> None:
    async with station(downgrading(), await addresses(engine), transport=Acting("Downgrade")) as at:
        await at.ask(chat())
        await taken_up(at, "Downgrade")
        for _ in range(2):
            assert (await at.ask(chat())).headers["x-fairlead-pool"] == "chat-8b"


async def test_the_access_log_says_what_budgets_did(engine: FakeEngine, other: FakeEngine) -> None:
    lines: list[bytes] = []

    class Log:
        dropped = 0

        def wanted(self, trace: bytes, status: int) -> bool:
            return not trace or bool(status)

        def write(self, record: Any) -> None:
            lines.append(msgspec.json.encode(record.actions))

    async with station(downgrading(), await addresses(engine, other), transport=Acting("Downgrade")) as at:
        at.router.access = Log()  # type: ignore[assignment]
        await at.ask(chat())
        await taken_up(at, "Downgrade")
        await at.ask(chat())
        await until(lambda: len(lines) == 2, "both lines")
        at.router.access = None
    assert [json.loads(line) for line in lines] == [[], ["Downgrade"]]


def test_actions_end_with_their_window() -> None:
    wallet, config = Wallet(), budget()
    wallet.purse(config, "support", "")
    window = Window(id=1, start=0, end=1_000)
    answer = AccountAnswer(
        account=1, budget="support/support", namespace="support", window=window, active=("Deprioritize",)
    )
    wallet.take(answer, 10, 0.0)
    assert (wallet.changed, wallet.acting(config, "support", "")) == (True, ("Deprioritize",))
    wallet.changed = False
    wallet.take(answer, 20, 0.0)
    wallet.tick(999)
    assert not wallet.changed
    wallet.tick(1_000)
    assert (wallet.changed, wallet.acting(config, "support", "")) == (True, ())


def test_actions_of_the_next_window_are_not_those_of_this_one() -> None:
    wallet, config = Wallet(), budget()
    wallet.purse(config, "support", "")
    window = Window(id=2, start=1_000, end=2_000)
    answer = AccountAnswer(
        account=2, budget="support/support", namespace="support", window=window, active=("Downgrade",)
    )
    wallet.take(answer, 10, 0.0)
    assert (wallet.changed, wallet.acting(config, "support", "")) == (False, ())


# --- classes


def classes(holdings: Sequence[Holding]) -> set[int]:
    return {holding.klass for holding in holdings}


@pytest.mark.parametrize(("apart", "expected"), [(True, {BATCH_CLASS, CLASS}), (False, {CLASS})])
async def test_batch_leases_apart_only_where_a_budget_keeps_headroom_for_the_others(
    engine: FakeEngine, apart: bool, expected: set[int]
) -> None:
    ledger = Acting()
    config = configuration(budgets=(budget(batch_apart=apart),))
    async with station(config, await addresses(engine), transport=ledger) as at:
        for name in ("batch", "standard", "batch"):
            assert (await at.ask(chat(), x_fairlead_priority=name)).status == 200
        assert {ask.klass for message in ledger.told for ask in message.asks} == expected
        assert classes([holding for message in ledger.told for holding in message.holdings]) <= expected
        charged = {holding.klass: holding.charged for holding in at.router.wallet.holdings.values()}
        assert charged == ({BATCH_CLASS: 2 * ONE, CLASS: ONE} if apart else {CLASS: 3 * ONE})
        assert await at.goodbye()
        assert sum(holding.charged for holding in ledger._told.values()) == 3 * ONE


# --- models


def test_a_budget_of_some_models_covers_only_what_clients_call_so() -> None:
    some = budget(name="some", models=("chat", "small"))
    index = build_index(configuration(budgets=(some, budget(name="all"))))
    caller, labels = Caller("support", "sa:web"), Labels()

    def names(found: tuple[BudgetMatch, ...]) -> list[str]:
        return [match.budget.name for match in found]

    assert names(matching_budgets(index, caller, labels, "small")) == ["some", "all"]
    assert names(matching_budgets(index, caller, labels, "large")) == ["all"]


async def test_two_names_of_one_model_are_under_different_budgets(engine: FakeEngine) -> None:
    config = configuration(policies=(policy(models=("chat", "chat-free")),), budgets=(budget(models=("chat",)),))
    async with station(config, await addresses(engine), lease={"support/support": 10**9}) as at:
        assert (await at.ask(chat(model="chat-free"))).status == 200
        assert not at.router.wallet.holdings
        assert (await at.ask(chat())).status == 200
        assert [holding.charged for holding in at.router.wallet.holdings.values()] == [ONE]


# --- money under way


@dataclass
class Holder:
    """A request."""

    ended: bool

    def over(self) -> bool:
        return self.ended


@pytest.mark.parametrize(("ended", "swept"), [(True, 1), (False, 0)])
async def test_a_reservation_that_its_request_left_behind_is_charged_at_its_bound(
    tmp_path: Path, ended: bool, swept: int
) -> None:
    process = Process(tmp_path, LocalLease({"support/support": 10**6}, lambda: int(time.time() * 1000)))
    assert await process.talk()
    purse = process.wallet.purse(budget(), "support", "")
    reservation = await process.fetch([Claim(purse, 500)])
    reservation.holder = Holder(ended)
    assert process.session.sweep(60.0) == 0
    assert process.session.sweep(-60.0) == swept
    assert purse.current is not None
    assert (purse.current.charged, len(process.wallet.open)) == (500 * swept, 1 - swept)
    process.kill()


async def test_a_lease_that_ran_out_is_not_extended(tmp_path: Path) -> None:
    process = Process(tmp_path, LocalLease({"support/support": 10**6}, lambda: int(time.time() * 1000)))
    assert await process.talk()
    claims = [Claim(process.wallet.purse(budget(), "support", ""), 500)]
    reservation = await process.fetch(claims)
    process.session._fence_boot = float("-inf")
    more = process.session.extend(reservation, [Claim(claims[0].purse, 501)])
    assert more is not None
    assert more.lack == "Unknown"
    assert reservation.pieces[0].amount == 500
    process.kill()


async def test_a_request_under_way_is_charged_by_the_card_that_it_reserved_by(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(hold=asyncio.Event())
    dearer = msgspec.structs.replace(CARD, version=8, prompt_pico=CARD.prompt_pico * 1_000)
    config = configuration(budgets=(budget(),))
    async with station(config, await addresses(engine), lease={"support/support": 10**9}) as at:
        wire = await at.connect()
        await wire.send(post(chat()))
        await until(lambda: engine.receipts, "the request at the engine")
        pools = (PoolConfig(pool=POOL, max_context_tokens=4096, slots=4, card=dearer),)
        at.router.configure(build_index(configuration(budgets=(budget(),), pools=pools)))
        assert engine.behaviour.hold is not None
        engine.behaviour.hold.set()
        answer = await wire.answer()
        assert answer.headers["x-fairlead-cost-usd"] == "0.000001"
        await until(lambda: not at.router.wallet.open, "the settlement")
        assert [holding.charged for holding in at.router.wallet.holdings.values()] == [ONE]


async def test_a_request_over_a_window_of_a_session_that_ended_is_told_to_nobody(tmp_path: Path) -> None:
    process = Process(tmp_path, LocalLease({"support/support": 10**6}, lambda: int(time.time() * 1000)))
    assert await process.talk()
    claims = [Claim(process.wallet.purse(budget(), "support", ""), 500)]
    reservation = await process.fetch(claims)
    process.session._begin_anew(carry=False)
    process.settle(reservation, 300)
    assert not process.wallet.holdings
    (log,) = (tmp_path / "s1-1").glob("log-*")
    assert log.exists()
    assert process.journal._snapshot().holdings == ()
    process.kill()


async def test_without_a_ledger_a_router_with_a_journal_answers_what_needs_no_money(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with station(configuration(), await addresses(engine), transport=NoLedger(), journal=tmp_path) as at:
        assert (await at.ask(chat())).status == 200
        assert at.session.journal is not None
        assert not at.session.journal.full


def no_room(root: Path) -> None:
    """Nothing can be made in the places of the next segments of the only journal there."""
    (folder,) = root.iterdir()
    for number in range(2, 60):
        (folder / f"log-{number:06d}").mkdir()


async def test_a_full_journal_says_so_and_not_that_the_ledger_is_away(engine: FakeEngine, tmp_path: Path) -> None:
    config = configuration(budgets=(budget(),))
    lease = {"support/support": 10**12}
    async with station(config, await addresses(engine), lease=lease, journal=tmp_path) as at:
        assert (await at.ask(chat())).status == 200
        journal = at.session.journal
        assert journal is not None
        no_room(tmp_path)
        journal.renew()
        assert journal.full
        answer = await at.ask(chat())
        assert (answer.status, answer.code) == (503, "journal_full")
        assert answer.headers["retry-after"] == "2"
        assert "support/support" in answer.json()["error"]["message"]
        assert len(engine.receipts) == 1
