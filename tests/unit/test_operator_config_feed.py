"""Who is told what, and when."""

import asyncio

import pytest

from fairlead_operator.config_feed import REMEMBERED, ConfigFeed, Have, scoped
from fairlead_operator.render.router_config import Compiled, CompiledEndpoints, version_of
from fairlead_router.contract import (
    BudgetConfig,
    Endpoint,
    Endpoints,
    PolicyConfig,
    PoolConfig,
    PoolEndpoints,
    RouteConfig,
    RouterConfig,
    WeightedPool,
)


def policy(namespace: str, name: str = "chat", context: int = 8192) -> PolicyConfig:
    route = RouteConfig(name="all", max_context_tokens=context, pools=(WeightedPool(pool=f"{namespace}/chat"),))
    return PolicyConfig(namespace=namespace, name=name, models=(name,), routes=(route,))


def budget(namespace: str, name: str, *covers: str) -> BudgetConfig:
    return BudgetConfig(namespace=namespace, name=name, unit="USD", per="Namespace", namespaces=covers)


def config(*policies: PolicyConfig, budgets: tuple[BudgetConfig, ...] = ()) -> Compiled:
    pools = tuple(PoolConfig(pool=f"{namespace}/chat") for namespace in ("platform", "team-a", "team-b"))
    whole = RouterConfig(pools=pools, policies=policies, budgets=budgets, platform_namespaces=("platform",))
    return Compiled(whole, version_of(whole))


def endpoints(*addresses: str) -> CompiledEndpoints:
    replicas = tuple(Endpoint(pod=f"team-a/{one}", address=one, variant="v") for one in addresses)
    whole = Endpoints(pools=(PoolEndpoints(pool="team-a/chat", endpoints=replicas), PoolEndpoints(pool="team-b/chat")))
    return CompiledEndpoints(whole, version_of(whole))


def feed(compiled: Compiled, places: CompiledEndpoints | None = None) -> ConfigFeed:
    made = ConfigFeed(("platform",), "fairlead")
    made.publish(compiled, places or endpoints())
    return made


NOTHING = Have("", "", "ns/router")


async def test_a_platform_router_and_the_gateway_get_everything() -> None:
    whole = config(policy("platform"), policy("team-a"), budgets=(budget("platform", "all", "team-a", "team-b"),))
    made = feed(whole)
    for namespace in ("platform", "fairlead"):
        answer = await made.answer(namespace, NOTHING, 0)
        assert answer.config == whole.config


async def test_a_router_of_a_team_gets_its_own_policies_and_pools_and_the_budgets_that_cover_it() -> None:
    ceiling = budget("platform", "ceiling", "team-a", "team-b")
    made = feed(config(policy("platform"), policy("team-a"), budgets=(ceiling, budget("team-b", "own", "team-b"))))
    answer = await made.answer("team-a", NOTHING, 0)
    assert answer.config is not None
    assert [one.namespace for one in answer.config.policies] == ["team-a"]
    assert [one.pool for one in answer.config.pools] == ["team-a/chat"]
    assert answer.config.budgets == (budget("platform", "ceiling", "team-a"),)


async def test_a_part_that_a_router_has_is_left_out() -> None:
    made = feed(config(policy("team-a")), endpoints("10.0.0.1"))
    first = await made.answer("team-a", NOTHING, 0)
    second = await made.answer("team-a", Have(first.version, "other", "ns/router"), 0)
    assert second.config is None
    assert second.endpoints == first.endpoints


async def test_a_router_waits_until_something_changes_for_it() -> None:
    made = feed(config(policy("team-a")), endpoints("10.0.0.1"))
    first = await made.answer("team-a", NOTHING, 0)
    have = Have(first.version, first.endpoints_version, "ns/router")
    waiting = asyncio.create_task(made.answer("team-a", have, 30))
    await asyncio.sleep(0)
    made.publish(config(policy("team-a"), policy("team-b")), endpoints("10.0.0.1"))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    made.publish(config(policy("team-a"), policy("team-b")), endpoints("10.0.0.1", "10.0.0.2"))
    answer = await waiting
    assert answer.config is None
    assert answer.endpoints is not None


async def test_new_budgets_wake_every_router_once() -> None:
    made = feed(config(policy("team-a")))
    first = await made.answer("team-a", NOTHING, 0)
    have = Have(first.version, first.endpoints_version, "ns/router")
    made.set_budgets_version((1, 7))
    woken = await made.answer("team-a", have, 30)
    assert woken.budgets_version == (1, 7)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(made.answer("team-a", have, 30), 0.02)
    made.set_budgets_version((1, 6))
    assert (await made.answer("team-a", have, 0)).budgets_version == (1, 7)


async def test_a_wait_that_brings_nothing_ends_in_time() -> None:
    made = feed(config(policy("team-a")))
    first = await made.answer("team-a", NOTHING, 0)
    answer = await made.answer("team-a", Have(first.version, first.endpoints_version, "ns/router"), 0.01)
    assert answer.version == first.version
    assert answer.config is None


def test_a_router_that_lags_over_something_else_has_the_policy_all_the_same() -> None:
    first = config(policy("platform"))
    made = feed(first)
    made.publish(config(policy("platform"), policy("team-a")), endpoints())
    assert made.knows_policy("fairlead", first.version, "platform/chat")
    assert not made.knows_policy("fairlead", first.version, "team-a/chat")
    assert not made.knows_policy("fairlead", "never-seen", "platform/chat")


def test_a_policy_that_changed_is_not_known_to_a_router_of_before() -> None:
    first = config(policy("platform"))
    made = feed(first)
    made.publish(config(policy("platform", context=4096)), endpoints())
    assert not made.knows_policy("fairlead", first.version, "platform/chat")


def test_a_team_router_confirms_with_the_version_of_its_own_part() -> None:
    whole = config(policy("team-a"), budgets=(budget("team-a", "own", "team-a"),))
    made = feed(whole)
    own = scoped(whole.config, "team-a").version
    assert made.knows_policy("team-a", own, "team-a/chat")
    assert made.knows_budget("team-a", own, "team-a/own")
    assert not made.knows_budget("team-a", whole.version, "team-a/own")


def test_only_so_many_versions_are_remembered() -> None:
    first = config(policy("platform", context=1000))
    made = feed(first)
    for context in range(2000, 2000 + REMEMBERED):
        made.publish(config(policy("platform", context=context)), endpoints())
    assert not made.knows_budget("fairlead", first.version, "platform/none")


async def test_a_scope_without_a_pool_is_forgotten_and_made_again_for_who_asks() -> None:
    made = feed(config(policy("team-a")))
    for namespace in ("team-a", "team-z"):
        await made.answer(namespace, NOTHING, 0)
    made.publish(config(policy("team-a", context=4096)), endpoints())
    assert set(made._scopes) == {"", "team-a"}
    answer = await made.answer("team-z", NOTHING, 0)
    assert answer.config is not None
    assert answer.config.pools == ()


def test_publishing_the_same_again_wakes_nobody() -> None:
    made = feed(config(policy("platform")))
    assert not made.publish(config(policy("platform")), endpoints())
