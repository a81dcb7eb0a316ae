"""What a router keeps of callers, heads and connections: each table has a bound, and what is over is gone at once."""

import gc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from fairlead_router.app import MAX_OWNERS
from fairlead_router.contract import RouterConfig
from fairlead_router.plan import MAX_PLANS, Lane, Owner, Plan
from fairlead_router.policy import Caller, Labels
from fairlead_router.server import Client
from fairlead_router.structs import Known
from tests.builders.router import POOL, Station, api_key, budget, chat, configuration, policy, station, until
from tests.fakes.engine import FakeEngine

LEASE = {"support/support": 10**12}


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    """Nothing but the count of references frees: the router's collector runs too seldom to rely on."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive(*kinds: type[Any]) -> Counter[str]:
    """How many objects of these kinds there are."""
    return Counter(type(one).__name__ for one in gc.get_objects() if type(one) in kinds)


def of_callers(count: int, **changes: Any) -> RouterConfig:
    keys = tuple(api_key(f"sk-{number}", name=f"caller-{number}") for number in range(count))
    return configuration(keys=keys, budgets=(budget(**changes),))


async def ask_all(at: Station, callers: range) -> None:
    for number in callers:
        assert (await at.ask(chat(), bearer=f"sk-{number}")).status == 200


async def test_callers_of_one_namespace_share_a_plan(engine: FakeEngine) -> None:
    async with station(of_callers(5), {POOL: (await engine.start(),)}, lease=LEASE) as at:
        await ask_all(at, range(5))
        assert len(at.router._owners) == 5
        plans = [owner.plans for owner in at.router._owners.values()]
        assert len({id(plan) for kept in plans for plan in kept.values()}) == len(at.router._plans) == 1
        counted = {row.dimension.caller for owner in at.router._owners.values() for row in owner._rows.values()}
    assert counted == {f"key:caller-{number}" for number in range(5)}


async def test_callers_with_accounts_of_their_own_share_none(engine: FakeEngine) -> None:
    async with station(of_callers(3, per="Caller"), {POOL: (await engine.start(),)}, lease=LEASE) as at:
        await ask_all(at, range(3))
        lanes = [lane for shared in at.router._plans._kept.values() for lane in shared.plan.lanes if lane is not None]
        assert sorted(purse.key for lane in lanes for purse, _ in lane.purses) == [f"key:caller-{n}" for n in range(3)]


async def test_the_oldest_caller_is_let_go_and_all_that_was_made_for_it(engine: FakeEngine) -> None:
    async with station(of_callers(5, per="Caller"), {POOL: (await engine.start(),)}, lease=LEASE) as at:
        before = alive(Owner, Plan, Lane)
        await ask_all(at, range(5))
        for number in range(MAX_OWNERS - 2):
            at.router.owner(Caller("support", f"other-{number}"), Labels())
        assert [caller.name for caller, _ in at.router._owners][:3] == ["key:caller-3", "key:caller-4", "other-0"]
        expected = Counter(Owner=MAX_OWNERS, Plan=2, Lane=2)
        await until(lambda: alive(Owner, Plan, Lane) - before == expected, "their end")


async def test_a_new_configuration_lets_go_of_all_plans(engine: FakeEngine) -> None:
    async with station(of_callers(4), {POOL: (await engine.start(),)}, lease=LEASE) as at:
        await ask_all(at, range(4))
        at.router.forget_plans()
        await until(lambda: not alive(Owner, Plan, Lane), "their end")


async def test_an_owner_keeps_a_bounded_number_of_models(engine: FakeEngine) -> None:
    models = tuple(f"model-{number}" for number in range(MAX_PLANS + 3))
    config = configuration(policies=(policy(models=models),), budgets=(budget(),))
    async with station(config, {POOL: (await engine.start(),)}, lease=LEASE) as at:
        for model in models:
            assert (await at.ask(chat(model=model))).status == 200
        (owner,) = at.router._owners.values()
        assert (len(owner.plans), len(owner._rows), len(at.router._plans)) == (3, 3, 3)


async def test_of_a_closed_connection_nothing_stays(engine: FakeEngine) -> None:
    async with station(of_callers(1), {POOL: (await engine.start(),)}, lease=LEASE) as at:
        await ask_all(at, range(1))
        for _ in range(20):
            await ask_all(at, range(1))
        await until(lambda: not alive(Client, Known), "the connections' end")


async def test_an_idle_connection_keeps_no_body(engine: FakeEngine) -> None:
    async with station(of_callers(1), {POOL: (await engine.start(),)}, lease=LEASE) as at:
        wire = await at.connect()
        large = chat("x " * 100_000)
        await wire.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: router\r\nauthorization: Bearer sk-0\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(large), large)
        )
        await wire.answer()
        (client,) = (one for one in gc.get_objects() if type(one) is Client)
        assert client._request.body == b""
        wire.close()
