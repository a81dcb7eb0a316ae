"""What the operator sees of the cluster, change by change, and still knows of pods that were deleted meanwhile."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.clock import SystemClock
from fairlead_operator.kube.api import Api, WatchEvent
from fairlead_operator.kube.cluster import GATEWAYS, GONE, Cluster, Snapshot
from fairlead_operator.kube.queue import Key
from fairlead_operator.kube.resources import PODS
from tests.builders.decisions import pod_object
from tests.builders.resources import make_budget, make_policy, make_pool
from tests.fakes.api_server import FakeApiServer
from tests.fakes.clock import eventually

DRAINED = '{"requests":61,"tookS":191.6,"timeoutS":600.0}'


async def test_a_deleted_pod_is_remembered_if_its_router_said_how_the_drain_went() -> None:
    woken: list[Key] = []
    async with FakeApiServer().running() as server, aiohttp.ClientSession() as session:
        api = Api(session, server.url)
        cluster = Cluster(api, "fairlead", woken.append, lambda: None, SystemClock())
        tasks = [asyncio.create_task(run()) for run in cluster.tasks()]
        await cluster.wait_synced()
        for number in range(GONE + 2):
            body = pod_object(f"p-{number:03}", last_words="" if number == 0 else DRAINED)
            body["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "fairlead-operator"
            await server.put("pods", body)
        await eventually(lambda: len(cluster.snapshot().pods) == GONE + 2)
        assert cluster.snapshot().gone == ()
        woken.clear()
        for number in range(GONE + 2):
            await api.delete(PODS, "ai-platform", f"p-{number:03}", f"uid-p-{number:03}")
        await eventually(lambda: cluster.snapshot().pods == ())
        gone = cluster.snapshot().gone
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert [one.name for one in gone] == [f"p-{number:03}" for number in range(2, GONE + 2)], "the oldest gives way"
    assert Key("ModelPool", "ai-platform", "chat-8b") in woken


KINDS: Final = ("ModelPool", "RoutingPolicy", "CostBudget", "Namespace", "Node", "Pod", "Deployment", GATEWAYS)
MADE: Final[Mapping[str, Callable[[str], dict[str, Any]]]] = {
    "ModelPool": lambda name: make_pool(name).obj(),
    "RoutingPolicy": lambda name: make_policy(name).obj(),
    "CostBudget": lambda name: make_budget(name).obj(),
}


class Followed(Cluster):
    """A cluster of which a test tells what the API server would."""

    def __init__(self) -> None:
        super().__init__(None, "fairlead", lambda _: None, lambda: None, SystemClock())  # type: ignore[arg-type]
        self.version = 0

    def tell(self, kind: str, name: str, *, there: bool = True) -> None:
        """An object was written, or deleted."""
        self.version += 1
        body = MADE[kind](name) if kind in MADE else pod_object(name)
        meta = {
            **body["metadata"],
            "resourceVersion": str(self.version),
            "creationTimestamp": f"2026-11-20T11:00:{self.version % 60:02}Z",
        }
        event = WatchEvent("MODIFIED" if there else "DELETED", {**body, "metadata": meta})
        self._reflectors[kind]._take(event)

    def anew(self) -> Snapshot:
        """A snapshot that is read of everything."""
        other = Followed()
        other._gone = self._gone
        for name, one in self._reflectors.items():
            other._reflectors[name].store = one.store
        return other.snapshot()


changes = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from("abc"), st.booleans(), st.booleans()), max_size=20)


@given(done=changes)
def test_what_is_read_change_by_change_is_what_is_read_at_once(done: list[tuple[str, str, bool, bool]]) -> None:
    cluster = Followed()
    for kind, name, there, looked in done:
        cluster.tell(kind, name, there=there)
        if looked:
            assert cluster.snapshot() == cluster.anew()
    assert cluster.snapshot() == cluster.anew()
    assert cluster.snapshot() is cluster.snapshot()


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_of_the_kind_that_changed_is_read_anew(kind: str) -> None:
    cluster = Followed()
    for each in KINDS:
        cluster.tell(each, "a")
    before = cluster.snapshot()
    cluster.tell(kind, "b")
    after = cluster.snapshot()
    read = {field.name for field in fields(Snapshot) if getattr(after, field.name) is not getattr(before, field.name)}
    own = {"ModelPool": "pools", "RoutingPolicy": "policies", "CostBudget": "budgets"}
    others = {"Namespace": {"namespaces"}, "Node": {"nodes"}, "Pod": {"pods", "created_ms"}, "Deployment": {"children"}}
    assert read == ({own[kind], "raw"} if kind in own else others.get(kind, {"gateways"}))
