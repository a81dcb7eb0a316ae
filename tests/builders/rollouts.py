"""Rollouts from change to change, each by an operator that has just started: the fake API server and the real one.

The Deployments have no pods; which pods there are is told, as the kubelet would.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from fairlead_operator.decide.facts import PodFact, Trouble
from fairlead_operator.decide.pricing import PriceList
from fairlead_operator.decide.rollout import Decision
from fairlead_operator.decide.signals import Load
from fairlead_operator.errors import NotFoundError
from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.cluster import Snapshot
from fairlead_operator.kube.resources import DEPLOYMENTS, MODEL_POOLS, REPLICA_SETS
from fairlead_operator.reconcile.children import Children
from fairlead_operator.reconcile.pool_facts import Facts
from fairlead_operator.reconcile.pool_objects import write
from fairlead_operator.reconcile.rollouts import Rollouts
from fairlead_operator.render.revisions import ANNOTATION_REVISION, ANNOTATION_UNDO
from fairlead_operator.settings import read_settings
from tests.builders.decisions import NOW, pod
from tests.builders.resources import PoolBuilder, make_pool

CRASH = Trouble("CrashLoop", "engine", "exit code 1: ValueError: no such dtype")


class World:
    """One pool on an API server, seen by a new operator in each step."""

    def __init__(self, api: Api, namespace: str, builder: PoolBuilder) -> None:
        self._api = api
        self._namespace = namespace
        self.builder = builder
        self.notes: dict[str, str] = {}
        self._uid = ""

    async def begin(self) -> "World":
        """The pool itself: its children's owner must exist."""
        body = self.builder.obj()
        body["metadata"] = {"name": "rolled", "namespace": self._namespace}
        self._uid = (await self._api.create(MODEL_POOLS, self._namespace, body))["metadata"]["uid"]
        return self

    async def step(self, *pods: PodFact) -> Decision:
        """Decide with these pods and write what comes of it; answers when the Deployments' controller has looked."""
        facts = await self._facts(pods)
        rollouts = Rollouts(self._api, read_settings({}))
        revisions = await rollouts.decide(facts, {}, accepted=True)
        plans = rollouts.plans(facts, revisions.decision)
        counts = {variant.name: 0 for variant in facts.pool.spec.variants}
        assert await write(Children(self._api), facts, counts, plans, accepted=True) == ()
        async with asyncio.timeout(20):
            while not await self._looked_at():  # noqa: ASYNC110 - a controller of the server's looks
                await asyncio.sleep(0.05)
        return revisions.decision

    async def template(self, variant: str = "h100") -> Object:
        """The pod template of a variant's Deployment."""
        body = await self._api.get(DEPLOYMENTS, self._namespace, f"rolled-{variant}")
        template: Object = body["spec"]["template"]
        return template

    async def history(self) -> list[str]:
        """The revisions that ReplicaSets keep."""
        found = await self._api.list(REPLICA_SETS, namespace=self._namespace, labels="fairlead.dev/pool=rolled")
        return sorted(one["metadata"]["annotations"][ANNOTATION_REVISION] for one in found.items)

    def member(self, revision: int, variant: str = "h100", **fields: Any) -> PodFact:
        """A pod of a revision; ready unless it says otherwise."""
        made = pod(f"p-{variant}-{revision}", variant=variant)
        return replace(made, pool=f"{self._namespace}/rolled", revision=str(revision), **fields)

    def broken(self, revision: int) -> PodFact:
        """A pod of a revision whose engine died three times."""
        return self.member(revision, ready=False, trouble=CRASH, restarts=3)

    async def _facts(self, pods: tuple[PodFact, ...]) -> Facts:
        place = {"name": "rolled", "namespace": self._namespace, "uid": self._uid, "annotations": self.notes}
        builder = self.builder.metadata(**place)
        pool = builder.parsed()
        found = {one.name: await self._live(one.name) for one in pool.spec.variants}
        return Facts(
            pool=pool,
            raw=builder.obj(),
            snapshot=Snapshot(),
            pods=pods,
            deployments={name: body for name, body in found.items() if body is not None},
            prices=PriceList(),
            variant_prices={},
            slots=0,
            load=Load(),
            reported_context=0,
            cold_starts={},
            started={},
            now_ms=NOW,
        )

    async def _live(self, variant: str) -> Object | None:
        try:
            return await self._api.get(DEPLOYMENTS, self._namespace, f"rolled-{variant}")
        except NotFoundError:
            return None

    async def _looked_at(self) -> bool:
        """Whether the Deployments' controller has seen them, and has told their ReplicaSets."""
        found = [body for one in self.builder.parsed().spec.variants if (body := await self._live(one.name))]
        seen = [(one.get("status") or {}).get("observedGeneration") == one["metadata"]["generation"] for one in found]
        kept = await self.history()
        return all(seen) and all(one["metadata"]["annotations"][ANNOTATION_REVISION] in kept for one in found)


def pool_of(*variants: str) -> PoolBuilder:
    """A pool without replicas."""
    builder = make_pool("rolled")
    for name in variants:
        builder = builder.variant(name)
    return builder.engine(image="vllm/vllm-openai:v0.32.0").replicas(0)


async def a_revision_that_fails_goes_back_to_the_very_template_that_served(api: Api, namespace: str) -> None:
    world = await World(api, namespace, pool_of("h100")).begin()
    await world.step()
    await world.step(world.member(1))
    served = await world.template()
    world.builder = world.builder.engine(maxSequences=64)
    assert (await world.step(world.member(1))).newest.number == 2
    assert await world.template() != served
    failed = await world.step(world.member(1), world.broken(2))
    assert failed.failure is not None
    assert "ValueError: no such dtype" in failed.failure.message
    assert await world.template() == served
    assert await world.history() == ["1", "2"], "the template found its ReplicaSet again"
    for _ in range(2):
        assert (await world.step(world.member(1))).failure == failed.failure
    assert await world.template() == served
    world.builder = world.builder.pod_template(metadata={"annotations": {"fairlead.dev/restarted-at": "now"}})
    tried = await world.step(world.member(1))
    assert (tried.failure, tried.newest.number) == (None, 3)
    assert (await world.template())["metadata"]["labels"]["fairlead.dev/revision"] == "3"


async def two_variants_change_one_after_the_other_and_go_back_together(api: Api, namespace: str) -> None:
    world = await World(api, namespace, pool_of("h100", "l40s")).begin()
    await world.step()
    both = [world.member(1), world.member(1, "l40s")]
    await world.step(*both)
    first = [await world.template(name) for name in ("h100", "l40s")]
    world.builder = world.builder.engine(maxSequences=64)
    begun = await world.step(*both)
    assert [one.action for one in begun.steps.values()] == ["Render", "Keep"]
    assert await world.template("l40s") == first[1]
    await world.step(world.member(2), world.member(1, "l40s"))
    assert (await world.template("l40s"))["metadata"]["labels"]["fairlead.dev/revision"] == "2"
    crashed = replace(world.broken(2), variant="l40s")
    await world.step(world.member(2), world.member(1, "l40s"), crashed)
    assert await world.template("l40s") == first[1]
    await world.step(world.member(2), world.member(1, "l40s"))
    assert [await world.template(name) for name in ("h100", "l40s")] == first


async def an_undo_holds_until_the_spec_changes(api: Api, namespace: str) -> None:
    world = await World(api, namespace, pool_of("h100")).begin()
    templates = {}
    for number in (1, 2, 3):
        world.builder = world.builder.engine(maxSequences=16 * number)
        await world.step(*([world.member(number - 1)] if number > 1 else []))
        await world.step(world.member(number))
        templates[number] = await world.template()
    world.notes = {ANNOTATION_UNDO: "3 to 1"}
    for _ in range(2):
        assert (await world.step(world.member(3))).pin is not None
        assert await world.template() == templates[1]
    world.builder = world.builder.replicas(2)
    await world.step(world.member(1))
    assert await world.template() == templates[1], "another number of replicas is no change of the pods"
    world.builder = world.builder.engine(maxSequences=80)
    after = await world.step(world.member(1))
    assert (after.pin, after.newest.number) == (None, 4)
    assert await world.template() not in templates.values()


ROLLOUTS: list[Callable[[Api, str], Awaitable[None]]] = [
    a_revision_that_fails_goes_back_to_the_very_template_that_served,
    two_variants_change_one_after_the_other_and_go_back_together,
    an_undo_holds_until_the_spec_changes,
]
