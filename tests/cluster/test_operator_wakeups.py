"""kopf on a real API server: it wakes for our own kinds, writes nothing on them, and ends when it is told to."""

import asyncio

import pytest

from fairlead_operator.kube.queue import Key
from fairlead_operator.kube.session import login
from fairlead_operator.kube.wakeups import Wakeups
from hack import crds
from tests.builders.resources import make_pool
from tests.cluster_tools import Cluster
from tests.fakes.clock import eventually

pytestmark = pytest.mark.cluster


@pytest.fixture
def plane(control_plane: Cluster) -> Cluster:
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(crds.ROOT / "crds"))
    control_plane.kubectl("wait", "--for=condition=Established", "crd/modelpools.fairlead.dev", "--timeout=30s")
    return control_plane


async def test_a_change_of_a_pool_wakes_and_leaves_no_trace_on_it(plane: Cluster, namespace: str) -> None:
    woken: set[Key] = set()
    wakeups = Wakeups(await login(str(plane.kubeconfig)), woken.add)
    wakeups.start()
    pool = make_pool("chat").obj() | {"metadata": {"name": "chat", "namespace": namespace}}
    await asyncio.to_thread(plane.apply, pool)
    await eventually(lambda: Key("ModelPool", namespace, "chat") in woken, 20)
    woken.clear()
    await asyncio.to_thread(plane.kubectl, "delete", "mpool", "chat", "-n", namespace)
    await eventually(lambda: Key("ModelPool", namespace, "chat") in woken, 20)
    await wakeups.stop(10)
    assert not wakeups.alive


async def test_a_pool_keeps_no_finalizer_and_no_annotation_of_kopf(plane: Cluster, namespace: str) -> None:
    woken: set[Key] = set()
    wakeups = Wakeups(await login(str(plane.kubeconfig)), woken.add)
    wakeups.start()
    pool = make_pool("bare").obj() | {"metadata": {"name": "bare", "namespace": namespace}}
    await asyncio.to_thread(plane.apply, pool)
    await eventually(lambda: Key("ModelPool", namespace, "bare") in woken, 20)
    await wakeups.stop(10)
    meta = (await asyncio.to_thread(plane.get, "mpool", "bare", "-n", namespace))["metadata"]
    assert "finalizers" not in meta
    assert "annotations" not in meta
