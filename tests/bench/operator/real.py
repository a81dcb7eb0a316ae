"""A recorded load on real vLLM: a pool that is scaled by objectives of latency on the local cluster's real node."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import httpx

from fairlead_operator.decide.replicas import DEFAULT_COLD_START_MS
from fairlead_operator.reconcile.configuration import COLD_START
from hack.demo import fleet, platform
from hack.demo.kube import Kube
from hack.demo.progress import Progress, wait_for
from tests.bench.quantiles import quantile
from tests.cluster_tools import Cluster
from tests.e2e.lifecycle.scene import address
from tests.e2e.lifecycle.watch import proxy

POOL: Final = "chat"
TEAM: Final = "search"
MAX_REPLICAS: Final = 3
TTFT_S: Final = 3.0
TPOT_S: Final = 0.1
EVERY_S: Final = 2.0
READY_S: Final = 240.0
AFTER_S: Final = 240.0
"""After the load, until the pool is back at one replica."""
STARTED: Final = re.compile(r"(\S+) is ready after (\S+)")


@dataclass(frozen=True, slots=True)
class Seen:
    """The pool at a moment, in seconds after the load began."""

    at: float
    desired: int
    ready: int
    attainment: int | None


def prepare(cluster: Cluster, folder: Path) -> tuple[Kube, platform.Images, fleet.Paths]:
    """Fairlead on the cluster, namespaces and volumes."""
    log = folder / "log"
    log.touch()
    progress = Progress(log, total=4)
    platform.kubernetes(progress, "local")
    kube = platform.node(progress, "local", cluster.name)
    paths = platform.vllm(progress)
    images = platform.fairlead(progress, kube, "local", cluster.name)
    kube.apply(fleet.namespaces())
    kube.apply(
        fleet.volume("models", paths.models, "ReadOnlyMany") + fleet.volume("vllm-cache", paths.cache, "ReadWriteMany")
    )
    return kube, images, paths


def pool(images: platform.Images, paths: fleet.Paths) -> dict[str, Any]:
    """One to three replicas, as many as the objectives need."""
    objectives = {"timeToFirstToken": f"{TTFT_S:g}s", "timePerOutputToken": f"{TPOT_S * 1000:g}ms"}
    return fleet.pool(
        POOL,
        "tiny",
        images.engine,
        paths,
        engine={"maxContextTokens": 2048, "maxSequences": 2},
        extra_args=["--kv-cache-memory-bytes=32M"],
        autoscaling={"minReplicas": 1, "maxReplicas": MAX_REPLICAS, "objectives": objectives},
        rollout={"maxSurge": 1, "maxUnavailable": 0, "drainTimeout": "1m", "startupTimeout": "5m"},
    )


def policy() -> dict[str, Any]:
    """The name that clients send."""
    spec = {
        "models": [POOL],
        "allowedNamespaces": {"from": "All"},
        "outputTokens": {"default": 32, "max": 512},
        "routes": [{"name": "all", "maxContextTokens": 2048, "maxWait": "60s", "poolRefs": [{"name": POOL}]}],
    }
    return fleet.named("RoutingPolicy", POOL, fleet.PLATFORM, spec)


class Watch:
    """The pool through kubectl's proxy."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def status(self) -> dict[str, Any]:
        """The pool's."""
        path = f"/apis/fairlead.dev/v1alpha1/namespaces/{fleet.PLATFORM}/modelpools/{POOL}"
        status: dict[str, Any] = self._http.get(path).json().get("status", {})
        return status

    def cold_start_s(self) -> float:
        """How long a start takes, as far as that was measured; what is assumed before the first."""
        path = f"/apis/apps/v1/namespaces/{fleet.PLATFORM}/deployments/{POOL}-h100"
        annotations = self._http.get(path).json().get("metadata", {}).get("annotations", {})
        return int(annotations.get(COLD_START, DEFAULT_COLD_START_MS)) / 1000

    def look(self, at: float) -> Seen:
        """Now."""
        status = self.status()
        attainment = status.get("service", {}).get("attainmentPercent")
        return Seen(round(at, 1), status.get("desiredReplicas", 0), status.get("readyReplicas", 0), attainment)


def measured(cluster: Cluster, seconds: float) -> dict[str, Any]:
    """Send the recorded load; the figures of it."""
    folder = Path(tempfile.mkdtemp(prefix="fairlead-bench-real-"))
    kube, images, paths = prepare(cluster, folder)
    with proxy(kube) as url, httpx.Client(base_url=url, timeout=20) as http:
        watch = Watch(http)
        assumed = watch.cold_start_s()
        kube.apply([pool(images, paths), policy()])
        wait_for("a ready replica", lambda: watch.status().get("readyReplicas", 0) >= 1, seconds=READY_S)
        with clients(kube, cluster, folder, seconds) as running:
            seen = follow(watch, running)
            if running.poll() != 0:
                raise RuntimeError(f"the clients ended with {running.poll()} instead of 0 when their load was over")
        told = kube.kubectl("describe", "mpool", POOL, "-n", fleet.PLATFORM)
        explained = kube.fairlead("explain", "pool", POOL, "-n", fleet.PLATFORM)
        learned = watch.cold_start_s()
    (folder / "seen.json").write_text(json.dumps([asdict(one) for one in seen]), encoding="utf-8")
    print(told, explained, sep="\n")
    with (folder / "requests.jsonl").open(encoding="utf-8") as lines:
        requests = [json.loads(line) for line in lines]
    return {
        "seconds": seconds,
        **service(requests),
        "replicas": [f"{one.at:.0f} s: {one.desired} wanted, {one.ready} ready" for one in changes(seen)],
        "mean_replicas": mean_replicas([one for one in seen if one.at <= seconds]),
        "cold_start_s": {"assumed": assumed, "learned": learned, "measured": sorted(set(STARTED.findall(told)))},
        "folder": str(folder),
    }


@contextmanager
def clients(kube: Kube, cluster: Cluster, folder: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Run the load."""
    key = kube.fairlead("key", "create", POOL, "-n", TEAM)
    environment = {**os.environ, "FAIRLEAD_KEY": next(word for word in key.split() if word.startswith("fl_"))}
    url = address(kube, "fairlead-gateway", "fairlead")
    program = (sys.executable, "-m", "tests.bench.operator.recorded", POOL, url, str(seconds))
    with (folder / "requests.jsonl").open("w", encoding="utf-8") as out:
        running = cluster.popen(*program, stdout=out, env=environment)
        try:
            yield running
        finally:
            running.terminate()
            running.wait(20)


def follow(watch: Watch, running: subprocess.Popen[str]) -> list[Seen]:
    """Look until the load is over and the pool is back at one replica, or it takes too long."""
    began, ended = time.monotonic(), float("inf")
    seen: list[Seen] = []
    while time.monotonic() < ended + AFTER_S:
        if running.poll() is not None:
            ended = min(ended, time.monotonic())
        seen.append(watch.look(time.monotonic() - began))
        if ended < float("inf") and seen[-1].desired <= 1:
            break
        time.sleep(EVERY_S)
    return seen


def changes(seen: Sequence[Seen]) -> list[Seen]:
    """The moments at which the replicas were seen to be others."""
    first = seen[:1]
    return [*first, *(now for then, now in pairwise(seen) if _count(then) != _count(now))]


def _count(one: Seen) -> tuple[int, int]:
    return one.desired, one.ready


def mean_replicas(seen: Sequence[Seen]) -> float:
    """Of those that were wanted."""
    return round(sum(one.desired for one in seen) / max(1, len(seen)), 2)


def service(requests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the clients saw: those within the objectives are of all, those without an answer among them."""
    whole = [one for one in requests if one["ttft"] is not None]
    met = [one for one in whole if one["ttft"] <= TTFT_S and one["tpot"] <= TPOT_S]
    return {
        "requests": len(requests),
        "failed": len(requests) - len(whole),
        "attainment_percent": round(100 * len(met) / max(1, len(requests)), 2),
        "ttft_ms": {
            f"p{percent}": round(1000 * quantile([one["ttft"] for one in whole], percent)) for percent in (50, 99)
        },
        "tpot_ms": {
            f"p{percent}": round(1000 * quantile([one["tpot"] for one in whole], percent)) for percent in (50, 99)
        },
        "errors": sorted({one["error"] for one in requests if one["error"]})[:3],
    }
