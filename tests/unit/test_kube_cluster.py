"""What the operator still knows of pods that were deleted between two of its looks."""

import asyncio

import aiohttp

from fairlead_operator.clock import SystemClock
from fairlead_operator.kube.api import Api
from fairlead_operator.kube.cluster import GONE, Cluster
from fairlead_operator.kube.queue import Key
from fairlead_operator.kube.resources import PODS
from tests.builders.decisions import pod_object
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
