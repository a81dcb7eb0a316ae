"""The routers' configuration, its endpoints, and budgets for the ledger."""

from random import Random

import pytest

from fairlead_operator.decide.budgets import UNCOUNTABLE, budget_problems
from fairlead_operator.decide.models import Callers, resolve_models
from fairlead_operator.decide.rates import PoolCard, Rates
from fairlead_operator.render.ledger_budgets import covered_namespaces, ledger_budget
from fairlead_operator.render.router_config import (
    BudgetInput,
    Compiled,
    PolicyInput,
    PoolInput,
    ReleaseInput,
    compile_config,
    compile_endpoints,
)
from fairlead_router.contract import Card, FallbackConfig, Issuer, PolicyConfig, TemporaryIncrease, WeightedPool
from fairlead_router.policy import build_index
from tests.builders.decisions import NOW, USD, pod
from tests.builders.resources import PolicyBuilder, PoolBuilder, make_budget, make_policy, make_pool

RELEASE = ReleaseInput((Issuer(issuer="https://k8s", jwks="{}"),), ("ai-platform",))
NAMESPACES = {"ai-platform": {}, "support": {"tenant": "yes"}, "search": {"tenant": "yes"}}


def pool(name: str, context: int | None = None, **known: int) -> PoolInput:
    built = make_pool(name)
    return PoolInput((built.engine(maxContextTokens=context) if context else built).parsed(), **known)  # type: ignore[arg-type]


def compiled(pools: list[PoolInput], policy: PolicyBuilder) -> Compiled:
    parsed = policy.parsed()
    callers = resolve_models([parsed], NAMESPACES, ("ai-platform",))[parsed.key]
    result = compile_config(pools, [PolicyInput(parsed, callers)], [], RELEASE)
    build_index(result.config)
    return result


def policy_of(pools: list[PoolInput], policy: PolicyBuilder) -> PolicyConfig:
    (one,) = compiled(pools, policy).config.policies
    return one


def test_routes_go_from_small_to_large_and_never_above_what_a_pool_holds() -> None:
    policy = make_policy("chat").route("long", "big").route("short", ("small", 3), maxContextTokens=9000)
    one = policy_of([pool("small", 8192), pool("big", 131072)], policy)
    assert [(route.name, route.max_context_tokens) for route in one.routes] == [("short", 8192), ("long", 131072)]
    assert one.routes[0].pools == (WeightedPool(pool="ai-platform/small", weight=3),)


def test_a_route_without_a_bound_takes_the_smallest_context_of_its_pools() -> None:
    one = policy_of([pool("a", 8192), pool("b", reported_context=4096)], make_policy("chat").route("all", "a", "b"))
    assert one.routes[0].max_context_tokens == 4096


def test_a_context_that_is_not_known_takes_nothing() -> None:
    one = policy_of([pool("a", 8192), pool("b")], make_policy("chat").route("all", "a", "b"))
    assert one.routes[0].max_context_tokens == 0


def test_what_does_not_exist_is_left_out() -> None:
    both = make_policy("chat").route("all", "a", "gone").route("none", "gone", maxContextTokens=512)
    assert [route.name for route in policy_of([pool("a", 8192)], both).routes] == ["all"]
    assert compiled([], make_policy("chat")).config.policies == ()


def test_a_fallback_reaches_the_routers_in_its_order_with_its_troubles() -> None:
    policy = make_policy("chat").route("short", "small", maxContextTokens=8192)
    policy = policy.fallback("short", "big", "Unavailable", "Saturated").fallback("short", "other", "ScaledToZero")
    one = policy_of([pool("small", 8192), pool("big", 131072), pool("other", reported_context=8192)], policy)
    assert one.routes[0].fallbacks == (
        FallbackConfig(pool="ai-platform/big", when=("Saturated", "Unavailable")),
        FallbackConfig(pool="ai-platform/other", when=("ScaledToZero",)),
    )
    assert [ref.pool for ref in one.routes[0].pools] == ["ai-platform/small"]


def test_a_fallback_never_lowers_what_its_route_takes() -> None:
    one = policy_of([pool("a", 8192), pool("b", 4096)], make_policy("chat").route("all", "a").fallback("all", "b"))
    assert one.routes[0].max_context_tokens == 8192
    assert one.routes[0].fallbacks == ()


@pytest.mark.parametrize("other", [[], [pool("b")], [pool("b", 8191)]], ids=["gone", "of unknown context", "shorter"])
def test_a_fallback_that_cannot_take_all_that_the_route_takes_is_left_out(other: list[PoolInput]) -> None:
    policy = make_policy("chat").route("all", "a").fallback("all", "b").fallback("all", "c", "Saturated")
    one = policy_of([pool("a", 8192), pool("c", 8192), *other], policy)
    assert one.routes[0].fallbacks == (FallbackConfig(pool="ai-platform/c", when=("Saturated",)),)


def test_while_the_routes_context_is_not_known_it_has_no_fallback() -> None:
    one = policy_of([pool("a"), pool("b", 8192)], make_policy("chat").route("all", "a").fallback("all", "b"))
    assert (one.routes[0].max_context_tokens, one.routes[0].fallbacks) == (0, ())


def test_a_fallback_serves_no_route_whose_own_pools_do_not_exist() -> None:
    policy = make_policy("chat").route("all", "gone").fallback("all", "b")
    assert compiled([pool("b", 8192)], policy).config.policies == ()


def test_the_same_troubles_in_another_order_are_the_same_configuration() -> None:
    pools = [pool("a", 8192), pool("b", 8192)]
    orders = (("Unavailable", "Saturated"), ("Saturated", "Unavailable"))
    assert len({compiled(pools, make_policy("a").fallback("default", "b", *when)).version for when in orders}) == 1


@pytest.mark.parametrize(("given", "expected"), [({}, "Standard"), ({"priority": "Batch"}, "Batch")])
def test_the_priority_of_a_policy_reaches_the_routers(given: dict[str, str], expected: str) -> None:
    assert policy_of([pool("chat", 8192)], make_policy("chat").spec(**given)).priority == expected


def test_the_version_does_not_depend_on_the_order_of_the_inputs() -> None:
    pools = [pool(f"p{number}", 8192) for number in range(5)]
    policies = [PolicyInput(make_policy(f"p{number}").parsed(), Callers(None)) for number in range(5)]
    budgets = [BudgetInput(make_budget(f"b{number}").parsed(), ("team-a",)) for number in range(5)]
    versions = set()
    for seed in range(5):
        for values in (pools, policies, budgets):
            Random(seed).shuffle(values)  # noqa: S311 not a secret
        versions.add(compile_config(pools, policies, budgets, RELEASE).version)
    assert len(versions) == 1


def test_a_pool_carries_its_card_slots_and_start() -> None:
    card = PoolCard(7, Rates(1, 2, 3), "Seed", NOW)
    built = make_pool("chat").engine(maxSequences=32).parsed()
    (one,) = compile_config([PoolInput(built, card, 4096, 91_500)], [], [], RELEASE).config.pools
    assert one.card == Card(version=7, prompt_pico=1, cached_pico=2, output_pico=3)
    assert (one.slots, one.cold_start_s, one.max_context_tokens) == (32, 92, 4096)


def test_output_tokens_and_waits_reach_the_routers() -> None:
    policy = make_policy("chat").output_tokens(default=16, max=64).route("all", "chat", maxWait="5s")
    one = policy_of([pool("chat", 8192)], policy)
    assert (one.default_output_tokens, one.max_output_tokens, one.routes[0].max_wait_ms) == (16, 64, 5000)


def test_only_a_usd_budget_needs_prices() -> None:
    dollars, count = make_budget("usd").parsed(), make_budget("requests").limit(5, unit="Requests").parsed()
    inputs = [BudgetInput(one, ("team-a",), price_known=False) for one in (dollars, count)]
    budgets = compile_config([], [], inputs, RELEASE).config.budgets
    assert [(one.name, one.price_known) for one in budgets] == [("requests", True), ("usd", False)]


def test_only_pods_that_take_requests_are_endpoints() -> None:
    pods = [pod("b"), pod("a"), pod("c", ready=False), pod("d", deleting=True)]
    found = compile_endpoints(["ai-platform/chat-8b", "ai-platform/other"], pods)
    served, empty = found.endpoints.pools
    assert [one.pod for one in served.endpoints] == ["ai-platform/a", "ai-platform/b"]
    assert empty.endpoints == ()
    assert found.version == compile_endpoints(["ai-platform/other", "ai-platform/chat-8b"], pods[::-1]).version


def test_a_platform_budget_covers_the_namespaces_that_it_selects() -> None:
    platform = make_budget("fleet", "ai-platform").for_labels(tenant="yes").parsed()
    assert covered_namespaces(platform, NAMESPACES, ("ai-platform",)) == ("search", "support")
    team = make_budget("fleet", "support").for_all_namespaces().parsed()
    assert covered_namespaces(team, NAMESPACES, ("ai-platform",)) == ("support",)


def test_models_of_a_budget_reach_the_routers_in_one_order() -> None:
    budgets = [make_budget("b").for_models(*names).parsed() for names in (("b", "a"), ("a", "b"))]
    sent = [compile_config([], [], [BudgetInput(one, ("team-a",))], RELEASE) for one in budgets]
    assert sent[0].config.budgets[0].models == ("a", "b")
    assert sent[0].version == sent[1].version
    (every,) = compile_config([], [], [BudgetInput(make_budget("b").parsed(), ("team-a",))], RELEASE).config.budgets
    assert every.models == ()


@pytest.mark.parametrize("action", ["Alert", "Pace", "Deprioritize", "Downgrade", "RejectBatch"])
def test_only_a_budget_that_keeps_headroom_has_batch_lease_apart(action: str) -> None:
    budget = make_budget("b").alert(50).action(action, 80).parsed()
    (one,) = compile_config([], [], [BudgetInput(budget, ("team-a",))], RELEASE).config.budgets
    assert one.batch_apart == (action == "RejectBatch")


def test_a_fallback_for_downgraded_callers_reaches_the_routers() -> None:
    policy = make_policy("chat").route("all", "a").fallback("all", "b", "Downgraded")
    one = policy_of([pool("a", 8192), pool("b", 8192)], policy)
    assert one.routes[0].fallbacks == (FallbackConfig(pool="ai-platform/b", when=("Downgraded",)),)


def test_every_action_reaches_the_ledger_from_the_lowest_percent_on() -> None:
    budget = make_budget("b").action("Pace", 90).alert(80).action("RejectBatch", 85).alert(90).parsed()
    sent = [(one.at_percent, one.action) for one in ledger_budget(budget, ()).actions]
    assert sent == [(80, "Alert"), (85, "RejectBatch"), (90, "Alert"), (90, "Pace")]


def test_idle_counts_in_the_namespaces_that_are_covered_and_only_when_included() -> None:
    assert ledger_budget(make_budget("b").with_idle().parsed(), ("a", "b")).idle_namespaces == ("a", "b")
    assert ledger_budget(make_budget("b").parsed(), ("a", "b")).idle_namespaces == ()


@pytest.mark.parametrize(
    ("until", "at"),
    [
        ("2026-11-20T11:00:00Z", NOW),
        ("2026-11-20T12:00:00+01:00", NOW),
        ("2026-11-20T11:00:00.5Z", NOW + 500),
        ("0001-01-01T00:00:00+10:00", -62_135_632_800_000),
    ],
)
def test_an_increase_ends_at_the_instant_that_is_written(until: str, at: int) -> None:
    sent = ledger_budget(make_budget("b").increase("0.5", until).parsed(), ()).temporary_increase
    assert sent == TemporaryIncrease(amount=USD // 2, until=at)


def test_an_increase_is_in_the_unit_of_its_budget() -> None:
    loop = make_budget("b").limit(200, unit="Requests").increase(50).parsed()
    sent = ledger_budget(loop, ()).temporary_increase
    assert sent is not None
    assert sent.amount == 50


@pytest.mark.parametrize("until", ["2016-12-31T23:59:60Z", "soon", "", "2026-02-30T00:00:00Z"])
def test_an_increase_until_no_time_is_left_out_and_told(until: str) -> None:
    budget = make_budget("b").increase(1, until).parsed()
    assert ledger_budget(budget, ()).temporary_increase is None
    (problem,) = budget_problems(budget, (), {"UTC"})
    assert (problem.reason, problem.path) == ("InvalidArgument", "spec.temporaryIncrease.until")


@pytest.mark.parametrize("amount", ["999999999999", "1152921504"])
def test_an_increase_above_what_can_be_counted_is_left_out_and_told(amount: str) -> None:
    budget = make_budget("b").limit(1).increase(amount).parsed()
    assert ledger_budget(budget, ()).temporary_increase is None
    (problem,) = budget_problems(budget, (), {"UTC"})
    assert (problem.reason, problem.path) == ("InvalidArgument", "spec.temporaryIncrease.amount")
    assert problem.reason not in UNCOUNTABLE


def test_the_largest_increase_that_can_be_counted_is_taken() -> None:
    budget = make_budget("b").limit(1).increase("1152921503").parsed()
    assert budget_problems(budget, (), {"UTC"}) == ()
    assert ledger_budget(budget, ()).temporary_increase is not None


def test_a_budget_for_the_ledger_is_in_its_unit() -> None:
    budget = make_budget("monthly").limit("12.50").alert(80).alert(70).parsed()
    sent = ledger_budget(budget, ("search", "support"))
    assert sent.namespaces == ("search", "support")
    assert sent.limit == 12_500_000_000 == 12.5 * USD
    assert [action.at_percent for action in sent.actions] == [70, 80]
    assert ledger_budget(make_budget("loop").limit(200, unit="Requests").parsed(), ("support",)).limit == 200


def test_routers_are_told_the_objectives_that_they_judge_by() -> None:
    def told(builder: PoolBuilder) -> tuple[int, int]:
        (one,) = compile_config([PoolInput(builder.parsed())], [], [], RELEASE).config.pools
        return one.ttft_ms, one.tpot_ms

    both = {"timeToFirstToken": "2s", "timePerOutputToken": "1500ms"}
    assert told(make_pool("chat").autoscaling(8, objectives=both)) == (2_000, 1_500)
    assert told(make_pool("chat").autoscaling(8, objectives={"timeToFirstToken": "2s"})) == (2_000, 0)
    assert told(make_pool("chat").autoscaling(8)) == told(make_pool("chat").replicas(3)) == (0, 0)
