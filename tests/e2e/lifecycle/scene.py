"""A pool under traffic, and the means to act on it."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from hack.demo import fleet, platform
from hack.demo.kube import Kube
from hack.demo.progress import wait_for
from tests.cluster_tools import Cluster
from tests.e2e.lifecycle import tally, traffic
from tests.e2e.lifecycle.watch import Watch, extra_replica_s, watching

POOL: Final = "steady"
TEAM: Final = "search"
PATIENCE_S: Final = 420.0
AFTER_S: Final = 2.0
"""Of an event's window after the pool is as it should be: what comes late is still the event's."""
DRAIN: Final = "30s"
CROWDED: Final = len(traffic.CLIENTS) + 1
"""Requests at a replica that the usual clients alone cannot make: one at least is a long stream of the crowd."""
DRAINED: Final = ("DrainFinished", "DrainTimedOut")


@dataclass(frozen=True, slots=True)
class Traffic:
    """How clients are started."""

    program: tuple[str, ...]
    environment: dict[str, str]


@dataclass
class Scene:
    """Everything that an event needs; ``windows`` are those that are over."""

    kube: Kube
    cluster: Cluster
    images: platform.Images
    watch: Watch
    log: Path
    windows: list[tally.Window] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    killed_s: float = 0.0
    traffic: Traffic | None = None

    @contextmanager
    def event(self, name: str) -> Iterator[None]:
        """Time an event. Its body acts and waits until the pool is as it should be."""
        began_s, retried = time.time(), self.watch.retries.total
        self.note, self.killed_s = "", 0.0
        yield
        took_s = time.time() - began_s
        time.sleep(AFTER_S)
        ended_s = time.time()
        self.windows.append(
            tally.Window(
                name=name,
                began_s=began_s,
                ended_s=ended_s,
                took_s=took_s,
                killed_s=self.killed_s,
                extra_replica_s=extra_replica_s(self.watch.samples, began_s, ended_s),
                retried=self.watch.retries.total - retried,
                note=self.note,
            )
        )

    def requests(self) -> list[tally.Request]:
        """All requests that are over."""
        with self.log.open(encoding="utf-8") as lines:
            return tally.read(lines)

    def rows(self) -> list[tally.Row]:
        """The events so far, counted."""
        requests = self.requests()
        return [tally.row(requests, window) for window in self.windows]

    def patch(self, spec: dict[str, Any]) -> None:
        """Change the pool's spec."""
        words = ("--type=merge", "-p", json.dumps({"spec": spec}))
        self.kube.kubectl("patch", "mpool", POOL, "-n", fleet.PLATFORM, *words)

    def names(self) -> set[str]:
        """The pool's pods that do not leave."""
        return {pod["metadata"]["name"] for pod in self.watch.pods() if not leaves(pod)}

    def wanted(self) -> int:
        """How many replicas the pool's spec asks for."""
        return int(self.watch.pool_object()["spec"]["replicas"])

    def wait(self, what: str, true: Callable[[], object], seconds: float = PATIENCE_S) -> None:
        """Wait until it is true, looking five times a second; an API server that does not answer is asked again."""

        def look() -> bool:
            try:
                return bool(true())
            except httpx.HTTPError:
                return False

        wait_for(what, look, seconds=seconds, every=0.2)

    @contextmanager
    def crowded(self, pod: str) -> Iterator[None]:
        """Send more long streams than one replica runs at a time, and go on once this pod runs some of them."""
        assert self.traffic is not None
        with (
            self.log.open("a", encoding="utf-8") as out,
            self.cluster.popen(*self.traffic.program, "crowd", stdout=out, env=self.traffic.environment) as run,
        ):
            self.wait(f"requests at {pod}", lambda: self.watch.running(pod) >= CROWDED)
            yield
            run.wait(traffic.PATIENCE_S)

    def drained(self, pod: str) -> list[str]:
        """What Events tell of a pod that went: how its last requests ended."""
        words = ("get", "events", "-n", fleet.PLATFORM, "-o", "json")
        found = json.loads(self.kube.kubectl(*words))["items"]
        told = [one["message"] for one in found if one["reason"] in DRAINED and one["involvedObject"]["name"] == POOL]
        return [one for one in told if pod in one]

    def settle(self, replicas: int, without: frozenset[str] | set[str] = frozenset()) -> None:
        """Wait until the pool has exactly so many pods, all ready, and none of those that were to go."""

        def settled() -> bool:
            pods = self.watch.pods()
            names = {pod["metadata"]["name"] for pod in pods}
            status = self.watch.pool_object().get("status", {})
            told = status.get("readyReplicas") == status.get("desiredReplicas") == replicas
            return told and len(pods) == replicas and all(map(ready, pods)) and not names & without

        self.wait(f"{replicas} ready pods of pool {POOL}", settled)

    def end_process(self, pod: dict[str, Any], container: str) -> None:
        """Kill a container's first process, from the node: in its own namespace it cannot be killed."""
        statuses = [*pod["status"].get("initContainerStatuses", ()), *pod["status"]["containerStatuses"]]
        found = next(one["containerID"] for one in statuses if one["name"] == container)
        identity = found.rpartition("/")[2]
        socket = str(self.cluster.place.containerd_socket)
        tasks = self.cluster.exec("ctr", "--address", socket, "--namespace", "k8s.io", "tasks", "ls").stdout
        (pid,) = re.findall(rf"^{identity}\s+(\d+)\s", tasks, re.MULTILINE)
        self.cluster.exec("kill", "-KILL", pid)


def leaves(pod: dict[str, Any]) -> bool:
    """Whether a pod is being deleted."""
    return "deletionTimestamp" in pod["metadata"]


def ready(pod: dict[str, Any]) -> bool:
    """Whether a pod takes requests."""
    conditions = pod["status"].get("conditions", ())
    return not leaves(pod) and any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def pool(images: platform.Images, paths: fleet.Paths, replicas: int) -> dict[str, Any]:
    """The pool that everything is done to."""
    return fleet.pool(
        POOL,
        "tiny",
        images.engine,
        paths,
        engine={"maxContextTokens": 1024, "maxSequences": 8},
        extra_args=["--kv-cache-memory-bytes=32M"],
        replicas=replicas,
        rollout={"maxSurge": 1, "maxUnavailable": 0, "drainTimeout": DRAIN, "startupTimeout": "5m"},
    )


def policy() -> dict[str, Any]:
    """The name that clients ask for."""
    spec = {
        "models": [POOL],
        "allowedNamespaces": {"from": "All"},
        "outputTokens": {"default": 32, "max": 960},
        "routes": [{"name": "all", "maxContextTokens": 1024, "maxWait": "90s", "poolRefs": [{"name": POOL}]}],
    }
    return fleet.named("RoutingPolicy", POOL, fleet.PLATFORM, spec)


@contextmanager
def playing(
    kube: Kube, cluster: Cluster, images: platform.Images, paths: fleet.Paths, *, replicas: int, log: Path
) -> Iterator[Scene]:
    """Give a pool with so many replicas under traffic; both are gone afterwards."""
    kube.apply([pool(images, paths, replicas), policy()])
    try:
        with watching(kube, fleet.PLATFORM, POOL) as watch:
            scene = Scene(kube, cluster, images, watch, log)
            scene.settle(replicas)
            with clients(scene):
                yield scene
    finally:
        kube.kubectl("delete", "mpool,rpolicy", POOL, "-n", fleet.PLATFORM, "--ignore-not-found")


@contextmanager
def clients(scene: Scene) -> Iterator[None]:
    """Run the traffic; it has begun when each client was answered once."""
    key = scene.kube.fairlead("key", "create", POOL, "-n", TEAM)
    urls = [address(scene.kube, "fairlead-gateway", "fairlead"), address(scene.kube, POOL, fleet.PLATFORM)]
    environment = {**os.environ, "FAIRLEAD_KEY": next(word for word in key.split() if word.startswith("fl_"))}
    scene.traffic = Traffic((sys.executable, traffic.__file__, POOL, *urls), environment)
    with (
        scene.log.open("a", encoding="utf-8") as out,
        scene.cluster.popen(*scene.traffic.program, stdout=out, env=environment) as run,
    ):
        try:
            scene.wait("answers to every client", lambda: answered(scene.requests()), 90)
            yield
        finally:
            run.terminate()
            run.wait(traffic.PATIENCE_S)
            scene.kube.fairlead("key", "revoke", POOL, "-n", TEAM)


def answered(requests: list[tally.Request]) -> bool:
    """Whether clients of every kind have whole answers, the newest ones among them."""
    kinds = {(one.path, one.stream) for one in requests if one.whole}
    return len(kinds) == len({(one.path, one.stream) for one in traffic.CLIENTS}) and requests[-1].whole


def address(kube: Kube, service: str, namespace: str) -> str:
    """A Service's address inside the cluster."""
    return f"http://{kube.get('service', service, '-n', namespace)['spec']['clusterIP']}"
