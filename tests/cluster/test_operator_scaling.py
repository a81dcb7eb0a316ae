"""Autoscaling on a real API server: objectives of latency, who goes, who else writes, and variants without room."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from tests.builders.operator import Process, Release, operator
from tests.builders.resources import Builder, PoolBuilder, make_pool
from tests.cluster_tools import H100, L40S, eventually

pytestmark = pytest.mark.cluster

GPU = "nvidia.com/gpu.product"
ROUND_S = 1.0
Counters = Mapping[str, Any]


class Fleet:
    """A running operator, and routers that say what a test wants."""

    def __init__(self, release: Release, process: Process) -> None:
        self.release = release
        self.cluster = release.cluster
        self.namespace = release.platform
        self.process = process
        self.began = time.monotonic()

    def apply(self, builder: Builder) -> None:
        obj = builder.obj()
        self.cluster.apply(obj | {"metadata": {"name": obj["metadata"]["name"], "namespace": self.namespace}})

    def status(self, name: str) -> Any:
        return self.cluster.get("mpool", name, "-n", self.namespace).get("status", {})

    def replicas(self, deployment: str) -> int:
        return int(self.cluster.get("deployment", deployment, "-n", self.namespace)["spec"]["replicas"])

    def condition(self, name: str, kind: str) -> tuple[str, str]:
        found = [one for one in self.status(name).get("conditions", []) if one["type"] == kind]
        return (found[0]["status"], found[0]["reason"]) if found else ("Unknown", "")

    def events(self, name: str) -> list[str]:
        items = self.cluster.get("events.events.k8s.io", "-n", self.namespace)["items"]
        return [f"{one['reason']}: {one['note']}" for one in items if one["regarding"]["name"] == name]

    def pods(self, pool: str) -> dict[str, str]:
        """Address of each running pod of a pool, by name."""
        items = self.cluster.get("pods", "-n", self.namespace, "-l", f"fairlead.dev/pool={pool}")["items"]
        running = [one for one in items if one["status"].get("podIP") and "deletionTimestamp" not in one["metadata"]]
        return {one["metadata"]["name"]: one["status"]["podIP"] for one in running}

    def until_ready(self, name: str, count: int) -> None:
        eventually(lambda: len(self.pods(name)) == count)
        eventually(lambda: self.status(name).get("readyReplicas") == count)

    def tell(self, pool: str, counters: Callable[[str], Counters]) -> None:
        """Let every router of the pool answer with its counters, which are asked for by the pod's name."""
        said = {
            address: {
                "router": f"{self.namespace}/{name}",
                "configVersion": "",
                "endpointsVersion": "",
                "uptimeS": int(time.monotonic() - self.began) + 3_600,
                "pools": [{"pool": f"{self.namespace}/{pool}", **counters(name)}],
            }
            for name, address in self.pods(pool).items()
        }
        self.release.routers_file.write_text(json.dumps(said), encoding="utf-8")

    @contextmanager
    def telling(self, pool: str, counters: Callable[[str], Counters]) -> Iterator[None]:
        """Go on telling, as routers do, until the block ends."""
        stop = threading.Event()

        def go_on() -> None:
            while not stop.wait(ROUND_S):
                self.tell(pool, counters)

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)


@pytest.fixture(scope="module")
def fleet(release: Release) -> Iterator[Fleet]:
    with operator(release) as process:
        yield Fleet(release, process)


@pytest.fixture(autouse=True)
def clean(fleet: Fleet) -> Iterator[None]:
    yield
    fleet.cluster.kubectl("delete", "mpool", "--all", "-n", fleet.namespace, "--wait=false")
    fleet.release.routers_file.write_text("{}", encoding="utf-8")


def pool(name: str, product: str = H100) -> PoolBuilder:
    made = make_pool(name).model(uri="hf://meta-llama/Llama-3.1-8B-Instruct")
    return made.variant("main", nodeSelector={GPU: product}).engine(maxContextTokens=8192)


def test_objectives_of_latency_bring_replicas_before_anybody_waits(fleet: Fleet) -> None:
    objectives = {"timeToFirstToken": "2s", "timePerOutputToken": "50ms"}
    fleet.apply(pool("timed").autoscaling(5, 1, objectives=objectives))
    fleet.until_ready("timed", 1)
    first = min(fleet.pods("timed"))
    began = time.monotonic()

    def counters(name: str) -> Counters:
        """One router has all the requests: sixty a second of usual sizes, served in time."""
        if name != first:
            return {}
        total = int(60 * (time.monotonic() - began))
        return {
            "running": 30, "arrivalsTotal": total, "finishedTotal": total, "metTotal": total, "ttftMsP99": 900,
            "tpotMsP99": 30, "samples": [[1_000, 100]] * 16,
        }  # fmt: skip

    with fleet.telling("timed", counters):
        eventually(lambda: fleet.status("timed").get("desiredReplicas", 0) >= 3, 120)
        eventually(lambda: fleet.status("timed").get("service", {}).get("attainmentPercent") == 100, 30)
        text = fleet.cluster.exec("curl", "-s", f"{fleet.process.url}/metrics").stdout
        key = f"{fleet.namespace}/timed"
        assert f'fairlead_pool_need{{pool="{key}"}}' in text
        assert f'fairlead_pool_capacity{{pool="{key}",variant="main"}}' in text
    newest = fleet.status("timed")["scaling"][0]
    assert newest["reason"] in {"Forecast", "Backlog"}
    assert newest["message"]
    command = [
        sys.executable, "-m", "fairlead_operator.cli.main", "explain", "pool", "timed", "-n", fleet.namespace,
        "--kubeconfig", str(fleet.cluster.kubeconfig),
    ]  # fmt: skip
    printed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    assert printed.startswith("timed runs")
    assert "wanted   first token 2s, 50ms a token, 99% met" in printed
    assert newest["message"] in printed


def test_the_emptiest_pod_goes_first(fleet: Fleet) -> None:
    fleet.apply(pool("shrinks").replicas(3))
    fleet.until_ready("shrinks", 3)
    names = sorted(fleet.pods("shrinks"))
    loads = {names[0]: 9, names[1]: 0, names[2]: 4}
    with fleet.telling("shrinks", lambda name: {"running": loads.get(name, 0)}):
        eventually(lambda: fleet.condition("shrinks", "ScalingActive") == ("False", "ReplicasSet"))
        time.sleep(7)
        fleet.cluster.kubectl("scale", "mpool", "shrinks", "--replicas=2", "-n", fleet.namespace)
        eventually(lambda: set(fleet.pods("shrinks")) == {names[0], names[2]})
        fleet.cluster.kubectl("scale", "mpool", "shrinks", "--replicas=1", "-n", fleet.namespace)
        eventually(lambda: set(fleet.pods("shrinks")) == {names[0]})


def test_a_second_writer_is_set_right_once_and_then_left_alone_until_the_spec_changes(fleet: Fleet) -> None:
    fleet.apply(pool("owned").replicas(1))
    fleet.until_ready("owned", 1)

    def write(count: int) -> None:
        fleet.cluster.kubectl("scale", "deployment", "owned-main", f"--replicas={count}", "-n", fleet.namespace)

    write(4)
    eventually(lambda: fleet.replicas("owned-main") == 1)
    eventually(lambda: any(one.startswith("SecondWriter: kubectl set") for one in fleet.events("owned")))
    write(3)
    eventually(lambda: fleet.condition("owned", "ScalingActive") == ("False", "SecondWriter"))
    write(2)
    time.sleep(12)
    assert fleet.replicas("owned-main") == 2
    assert len([one for one in fleet.events("owned") if one.startswith("SecondWriter")]) == 2
    fleet.apply(pool("owned").replicas(5))
    eventually(lambda: fleet.replicas("owned-main") == 5)
    eventually(lambda: fleet.condition("owned", "ScalingActive") == ("False", "ReplicasSet"))


def test_pods_that_find_no_node_leave_their_replicas_to_another_variant(fleet: Fleet) -> None:
    """There are two nodes with eight L40S each, which are cheaper: the third replica finds none."""
    eight = {"tensor": 8}
    fleet.apply(
        make_pool("moves")
        .variant("l40s", nodeSelector={GPU: L40S}, parallelism=eight)
        .variant("h100", nodeSelector={GPU: H100}, parallelism=eight)
        .engine(maxContextTokens=8192)
        .replicas(3)
        .rollout(startupTimeout="10s")
    )
    eventually(lambda: fleet.replicas("moves-l40s") == 3)
    fleet.until_ready("moves", 3)
    assert (fleet.replicas("moves-l40s"), fleet.replicas("moves-h100")) == (2, 1)
    eventually(lambda: fleet.condition("moves", "ScalingLimited") == ("True", "NoCapacity"))
