"""What a pool's pods and all routers do during a run: seen twice a second through ``kubectl proxy``."""

import re
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import httpx

from hack.demo.kube import Kube

EVERY_S: Final = 0.5
ADMIN_PORT: Final = 9090
PORT_LINE: Final = re.compile(r"Starting to serve on (\S+)")
TRIED: Final = re.compile(r'^fairlead_retries_total\{[^}]*result="tried"[^}]*\} (\S+)$', re.MULTILINE)
BUSY: Final = re.compile(r'^fairlead_connections\{side="upstream"\} (\S+)$', re.MULTILINE)
ENDED: Final = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Sample:
    """The pods that held a node at a moment (seconds since the epoch), and how many the pool's spec asked for."""

    at_s: float
    pods: int
    wanted: int


@dataclass(slots=True)
class Retries:
    """Requests that routers sent on to another replica, over all routers, those that are gone too."""

    _last: dict[str, float] = field(default_factory=dict)
    _past: float = 0.0

    def note(self, router: str, value: float) -> None:
        """A router's counter; one that fell was started anew."""
        before = self._last.get(router, 0.0)
        if value < before:
            self._past += before
        self._last[router] = value

    @property
    def total(self) -> int:
        """All so far."""
        return round(self._past + sum(self._last.values()))


def extra_replica_s(samples: Sequence[Sample], began_s: float, ended_s: float) -> float:
    """Replica-seconds of pods beyond those asked for, between two times."""
    inside = [one for one in samples if began_s <= one.at_s < ended_s]
    return sum(max(0, one.pods - one.wanted) * (then.at_s - one.at_s) for one, then in pairwise(inside))


class Watch:
    """The API server through a proxy of kubectl's, and what a thread has seen by it."""

    def __init__(self, http: httpx.Client, namespace: str, pool: str) -> None:
        self.http = http
        self.namespace = namespace
        self.pool = pool
        self.samples: list[Sample] = []
        self.retries = Retries()
        self.problem = ""

    def pods(self) -> list[dict[str, Any]]:
        """The pool's pods, those that leave too."""
        return self._list(self.namespace, f"fairlead.dev/pool={self.pool}")

    def running(self, pod: str) -> int:
        """How many requests a pod's router has sent to its engine, or on, that are not answered yet."""
        found = BUSY.search(self._metrics(self.namespace, pod))
        return round(float(found[1])) if found else 0

    def pool_object(self) -> dict[str, Any]:
        """The ModelPool."""
        return self._get(f"/apis/fairlead.dev/v1alpha1/namespaces/{self.namespace}/modelpools/{self.pool}")

    def evict(self, pod: str) -> int:
        """Ask for a pod's eviction as ``kubectl drain`` does; the answer's status, 429 while a budget forbids it."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.namespace}}
        answer = self.http.post(f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction", json=body)
        return answer.status_code

    def run(self, over: threading.Event) -> None:
        """Look until it is over; an API server that does not answer once is asked again."""
        looks = 0
        while not over.wait(EVERY_S):
            try:
                self._look()
                if looks % 4 == 0:
                    self._scrape()
            except httpx.HTTPError as error:
                self.problem = repr(error)
            looks += 1

    def _look(self) -> None:
        held = [pod for pod in self.pods() if pod["spec"].get("nodeName") and pod["status"].get("phase") not in ENDED]
        wanted = int(self.pool_object()["spec"].get("replicas", 0))
        self.samples.append(Sample(time.time(), len(held), wanted))

    def _scrape(self) -> None:
        gateways = self._list("fairlead", "app.kubernetes.io/name=fairlead-gateway")
        for pod in [*gateways, *self.pods()]:
            meta = pod["metadata"]
            if text := self._metrics(meta["namespace"], meta["name"]):
                self.retries.note(meta["uid"], sum(float(value) for value in TRIED.findall(text)))

    def _metrics(self, namespace: str, pod: str) -> str:
        """A router's metrics; empty while it does not answer."""
        answer = self.http.get(f"/api/v1/namespaces/{namespace}/pods/{pod}:{ADMIN_PORT}/proxy/metrics")
        return answer.text if answer.status_code == httpx.codes.OK else ""

    def _list(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        found = self._get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector)
        items: list[dict[str, Any]] = found["items"]
        return items

    def _get(self, path: str, **query: str) -> dict[str, Any]:
        answer = self.http.get(path, params=query)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


@contextmanager
def watching(kube: Kube, namespace: str, pool: str) -> Iterator[Watch]:
    """Give a watch of one pool; its thread and its proxy end with the block."""
    with proxy(kube) as url, httpx.Client(base_url=url, timeout=20) as http:
        watch, over = Watch(http, namespace, pool), threading.Event()
        thread = threading.Thread(target=watch.run, args=(over,), daemon=True)
        thread.start()
        try:
            yield watch
        finally:
            over.set()
            thread.join(30)


@contextmanager
def proxy(kube: Kube) -> Iterator[str]:
    """The API server's address on this machine, without TLS and with the rights of the kubeconfig."""
    program = str(kube.programs / "kubectl") if kube.programs else "kubectl"
    command = [program, f"--kubeconfig={kube.kubeconfig}", "proxy", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        out = process.stdout
        assert out is not None
        try:
            found = PORT_LINE.search(out.readline())
            assert found is not None, "kubectl proxy did not say where it listens"
            yield f"http://{found[1]}"
        finally:
            process.terminate()
