"""The compiler: what is worth a compilation, and what is carried over to a later snapshot."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.config_feed import ConfigFeed, Have
from fairlead_operator.decide.api_keys import KeyRing
from fairlead_operator.decide.facts import PodFact
from fairlead_operator.kube.cluster import Cluster, Snapshot
from fairlead_operator.reconcile.budgets import wanted_budgets
from fairlead_operator.reconcile.configuration import (
    COLD_START,
    CONCURRENCY,
    CONTEXT,
    Compiler,
    Picture,
    carried,
    compile_all,
)
from fairlead_operator.render.router_config import PolicyInput, ReleaseInput, compile_config, compile_endpoints
from fairlead_operator.settings import read_settings
from fairlead_router.contract import ApiKey, Issuer
from tests.builders.decisions import pod
from tests.builders.resources import BudgetBuilder, PolicyBuilder, PoolBuilder, make_budget, make_policy, make_pool

SETTINGS = read_settings({"FAIRLEAD_PLATFORM_NAMESPACES": "ai-platform"})
LIMITED = {"type": "ScalingLimited", "status": "True", "reason": "Budget", "message": ""}
LIMITED["lastTransitionTime"] = "2026-11-20T10:40:00Z"
RATE = {"version": 1, "promptPerMillionTokens": "1", "cachedPromptPerMillionTokens": "1"}
RATE["outputPerMillionTokens"] = "1"


@dataclass(frozen=True)
class World:
    """What the API server has."""

    pool: PoolBuilder
    policy: PolicyBuilder
    budget: BudgetBuilder
    notes: Mapping[str, str]
    arguments: tuple[str, ...]
    pods: tuple[PodFact, ...]
    namespaces: Mapping[str, Mapping[str, str]]
    version: int = 1

    def snapshot(self) -> Snapshot:
        """A new one, in which every object was read anew."""
        names = {"resourceVersion": str(self.version)}
        template = {"spec": {"containers": [{"name": "engine", "args": ["/models/chat", *self.arguments]}]}}
        deployment = {"metadata": {"annotations": dict(self.notes)}, "spec": {"template": template}}
        pool = self.pool.metadata(**names).parsed()
        policy, budget = self.policy.metadata(**names).parsed(), self.budget.metadata(**names).parsed()
        return Snapshot(
            pools={pool.key: pool},
            policies={policy.key: policy},
            budgets={budget.key: budget},
            namespaces=self.namespaces,
            pods=self.pods,
            children={("Deployment", pool.namespace, f"{pool.name}-h100"): deployment},
        )


LORA = {"adapters": [{"name": "tone", "uri": "hf://acme/tone", "revision": "v1"}]}
OBJECTIVES = {"timeToFirstToken": "2s"}

WORLD = World(
    pool=make_pool("chat-8b").variant("h100").autoscaling(4),
    policy=make_policy("chat-8b").allow_all(),
    budget=make_budget("team"),
    notes={},
    arguments=(),
    pods=(pod("one"),),
    namespaces={"ai-platform": {}, "team-a": {}},
)
Change = Callable[[World], World]
IMMATERIAL: dict[str, Change] = {
    "nothing": lambda world: world,
    "a pool's figures": lambda world: replace(world, pool=world.pool.status(replicas=3, readyReplicas=2)),
    "a policy's status": lambda world: replace(world, policy=world.policy.status(observedGeneration=7)),
    "a budget's figures": lambda world: replace(world, budget=world.budget.status(spent="3.50")),
    "a note that nobody reads": lambda world: replace(world, notes={**world.notes, "a": "b"}),
    "an engine argument that nobody reads": lambda world: replace(world, arguments=(*world.arguments, "--seed=1")),
    "a pod that does not serve": lambda world: replace(world, pods=(*world.pods, pod("new", ready=False))),
}
MATERIAL: dict[str, Change] = {
    "a pool's adapters": lambda world: replace(world, pool=world.pool.model(lora=LORA)),
    "a pool's objectives": lambda world: replace(world, pool=world.pool.autoscaling(4, objectives=OBJECTIVES)),
    "a pool's rate": lambda world: replace(world, pool=world.pool.status(rate=RATE)),
    "a pool that is not paid for": lambda world: replace(
        world, pool=world.pool.status(desiredReplicas=0, conditions=[LIMITED])
    ),
    "the time of a start": lambda world: replace(world, notes={COLD_START: "91000"}),
    "the context of an engine": lambda world: replace(world, notes={CONTEXT: "512"}),
    "an engine's sequences": lambda world: replace(world, arguments=("--max-num-seqs=7",)),
    "a policy's spec": lambda world: replace(world, policy=world.policy.models("other")),
    "a budget's limit": lambda world: replace(world, budget=world.budget.limit(7)),
    "another budget of that name": lambda world: replace(world, budget=world.budget.metadata(uid="other")),
}

ENDPOINTS: dict[str, Change] = {
    "a pod that serves no more": lambda world: replace(world, pods=()),
    "a pod's address": lambda world: replace(
        world, pods=(replace(world.pods[0], ip="10.9.9.9"),) if world.pods else ()
    ),
}
PERHAPS: dict[str, Change] = {
    "who is the older policy": lambda world: replace(
        world, policy=world.policy.metadata(creationTimestamp="2026-01-01T00:00:00Z")
    ),
    "a namespace": lambda world: replace(world, namespaces={**world.namespaces, "team-b": {}}),
    "a namespace's labels": lambda world: replace(world, namespaces={**world.namespaces, "team-a": {"a": "b"}}),
}
"""What may count, with other objects than these."""


def told(picture: Picture) -> tuple[Any, ...]:
    """What routers and ledger are told of it."""
    policies = [PolicyInput(policy, picture.callers[key]) for key, policy in picture.snapshot.policies.items()]
    config = compile_config(list(picture.inputs.values()), policies, picture.countable, ReleaseInput())
    return config, compile_endpoints(sorted(picture.inputs), picture.snapshot.pods), wanted_budgets(picture)


def afresh(world: World) -> Picture:
    return compile_all(world.snapshot(), SETTINGS)


@pytest.mark.parametrize("name", IMMATERIAL)
def test_what_nobody_is_told_of_is_carried_over_and_seen_all_the_same(name: str) -> None:
    later = replace(IMMATERIAL[name](WORLD), version=2)
    picture = carried(afresh(WORLD), later.snapshot())
    assert picture == afresh(later)


@pytest.mark.parametrize("name", MATERIAL)
def test_what_routers_or_the_ledger_are_told_of_is_compiled(name: str) -> None:
    later = MATERIAL[name](WORLD)
    assert told(afresh(later)) != told(afresh(WORLD))
    assert carried(afresh(WORLD), later.snapshot()) is None


@pytest.mark.parametrize("name", ENDPOINTS)
def test_for_other_endpoints_nothing_else_is_compiled(name: str) -> None:
    later = replace(ENDPOINTS[name](WORLD), version=2)
    assert carried(afresh(WORLD), later.snapshot()) == afresh(later)
    assert told(afresh(later))[1] != told(afresh(WORLD))[1]


@pytest.mark.parametrize("name", PERHAPS)
def test_what_may_count_is_compiled(name: str) -> None:
    assert carried(afresh(WORLD), PERHAPS[name](WORLD).snapshot()) is None


@given(names=st.lists(st.sampled_from([*IMMATERIAL, *MATERIAL, *ENDPOINTS, *PERHAPS]), max_size=4))
def test_a_picture_is_carried_over_only_if_everybody_is_told_the_same(names: list[str]) -> None:
    later = WORLD
    for name in names:
        later = (IMMATERIAL | MATERIAL | ENDPOINTS | PERHAPS)[name](later)
    before, after = afresh(WORLD), afresh(later)
    picture = carried(before, later.snapshot())
    if picture is not None:
        assert picture == after
        config, _, budgets = told(picture)
        assert (config, budgets) == (told(before)[0], told(before)[2])


@pytest.mark.parametrize(
    "without",
    [
        lambda whole: replace(whole, pools={}),
        lambda whole: replace(whole, policies={}),
        lambda whole: replace(whole, budgets={}),
    ],
    ids=["pool", "policy", "budget"],
)
def test_an_object_that_came_or_went_is_compiled(without: Callable[[Snapshot], Snapshot]) -> None:
    whole = WORLD.snapshot()
    less = without(whole)
    assert carried(compile_all(whole, SETTINGS), less) is None
    assert carried(compile_all(less, SETTINGS), whole) is None


def test_a_deployment_that_went_is_compiled_if_it_told_something() -> None:
    world = replace(WORLD, notes={COLD_START: "91000"})
    assert carried(afresh(world), replace(world.snapshot(), children={})) is None
    noted = replace(WORLD, notes={CONCURRENCY: "7"})
    assert carried(afresh(noted), replace(noted.snapshot(), children={})) is not None, (
        "without objectives it says nothing"
    )


def test_an_api_key_is_compiled() -> None:
    key = ApiKey(hash="0" * 64, namespace="team-a", name="key")
    before = afresh(WORLD)
    assert carried(before, replace(WORLD.snapshot(), keys=KeyRing(keys=(key,)))) is None


class Shown(Cluster):
    """A cluster of which a test says what is seen."""

    def __init__(self, world: World) -> None:
        self.shown = world.snapshot()

    def snapshot(self) -> Snapshot:
        return self.shown


async def endpoints(feed: ConfigFeed) -> list[str]:
    """The replicas that routers know of."""
    answer = await feed.answer("fairlead", Have("", "", "fairlead/gateway"), 0)
    assert answer.endpoints is not None
    return [one.pod for pool in answer.endpoints.pools for one in pool.endpoints]


async def test_routers_are_told_once_of_what_moves_and_at_once_of_what_counts() -> None:
    view, feed, issuers = Shown(WORLD), ConfigFeed(("ai-platform",), "fairlead"), [Issuer(issuer="one", jwks="{}")]
    compiler = Compiler(view, feed, SETTINGS, lambda: tuple(issuers))
    compiler.refresh()
    first = feed.config
    view.shown = replace(WORLD, pool=WORLD.pool.status(readyReplicas=2)).snapshot()
    picture = compiler.refresh()
    assert picture.snapshot is view.shown
    assert feed.config is first
    assert compiler.refresh() is picture
    assert await endpoints(feed) == ["ai-platform/one"]
    view.shown = replace(WORLD, pods=(pod("one"), pod("two"))).snapshot()
    compiler.refresh()
    assert await endpoints(feed) == ["ai-platform/one", "ai-platform/two"]
    assert feed.config is first
    view.shown = replace(WORLD, pool=WORLD.pool.autoscaling(4, objectives=OBJECTIVES)).snapshot()
    compiler.refresh()
    assert feed.config != first
    issuers.append(Issuer(issuer="two", jwks="{}"))
    compiler.refresh()
    assert feed.config is not None
    assert len(feed.config.issuers) == 2
