"""One run: everything is started, warmed up, measured and ended."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
import msgspec

from tests.bench.operator import figures, fleet, stopwatch
from tests.bench.operator.routers import Settings
from tests.builders.operator import ISSUER, Process, Release, installed, ledger, operator
from tests.cluster_tools import Cluster, eventually

GATEWAYS: Final = 2
TIMED: Final = "timed.jsonl"
BATCH: Final = 50
NODES_S: Final = 120.0
PODS_S: Final = 300.0
PATIENCE_S: Final = 1500.0
LISTENS_S: Final = 20.0
CHANGES: Final = "fairlead_scale_decisions_total"
RECONCILES: Final = "fairlead_reconciles_total"
FAILED: Final = 'result="error"'
TICKS: Final = os.sysconf("SC_CLK_TCK")
USER, SYSTEM, CHILD_USER, CHILD_SYSTEM = 11, 12, 13, 14
"""Places in /proc/PID/stat, behind the program's name."""
IDLE: Final = 4
"""Place in the first line of /proc/stat."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be measured: pools, seconds, the seconds of a day, and the seed of chance.

    ``patience_s``: so long at most it is waited until all pools are decided by their objectives.
    """

    pools: int
    seconds: float
    day_s: float = 3600.0
    seed: int = 1
    patience_s: float = PATIENCE_S


def say(text: str) -> None:
    """How far it is."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def measured(cluster: Cluster, folder: Path, asked: Asked) -> dict[str, Any]:
    """Start all, wait until every pool is decided by its objectives, measure, and end all."""
    planned = fleet.plans(asked.pools, asked.seed)
    os.environ[stopwatch.FILE] = str(folder / TIMED)
    with (
        installed(cluster, folder, "release", "fleet") as release,
        ledger(release) as books,
        nodes(cluster, planned),
        teams(cluster, release),
        routers(release, planned, asked),
        operator(release, module=stopwatch.__name__) as process,
    ):
        began = time.monotonic()
        apply(release, planned)
        say(f"{asked.pools} pools applied after {time.monotonic() - began:.0f} s")
        eventually(lambda: ready(release) >= asked.pools, PODS_S)
        say(f"a replica of each is ready after {time.monotonic() - began:.0f} s")
        with suppress(AssertionError):
            eventually(lambda: decided(process) >= asked.pools, asked.patience_s)
        warm = {"by_objectives": decided(process), "after_s": round(time.monotonic() - began)}
        say(f"{warm['by_objectives']} are decided by their objectives after {warm['after_s']} s; measuring")
        report = watch(release, process, books, asked)
    return {"pools": asked.pools, "seconds": asked.seconds, "decided": warm, **report}


@contextmanager
def nodes(cluster: Cluster, planned: Sequence[fleet.Plan]) -> Iterator[None]:
    """The pools' nodes; by their label, for there are too many to name each."""
    ours = f"--selector={fleet.NODES}"
    cluster.apply(*fleet.nodes(planned))
    try:
        cluster.kubectl("wait", "--for=condition=Ready", f"--timeout={NODES_S:g}s", "node", ours, timeout=2 * NODES_S)
        yield
    finally:
        cluster.kubectl("delete", "node", ours, "--wait=false", timeout=NODES_S)


@contextmanager
def teams(cluster: Cluster, release: Release) -> Iterator[None]:
    """The gateways' pods, and the teams' namespaces with a budget each."""
    names = [f"team-{number:02}-{release.platform}" for number in range(fleet.TEAMS)]
    cluster.apply(*({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names))
    try:
        cluster.apply(*(bare(fleet.budget(name).obj(), name) for name in names))
        cluster.apply(*(gateway(release, number) for number in range(GATEWAYS)))
        yield
    finally:
        cluster.kubectl("delete", "namespace", *names, "--wait=false")


def gateway(release: Release, number: int) -> dict[str, Any]:
    """A pod of the gateway's Deployment."""
    labels = {"app.kubernetes.io/name": "fairlead-gateway"}
    meta = {"name": f"gateway-{number}", "namespace": release.namespace, "labels": labels}
    spec = {"containers": [{"name": "router", "image": "localhost/fairlead-router:0.1.0"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


@contextmanager
def routers(release: Release, planned: Sequence[fleet.Plan], asked: Asked) -> Iterator[None]:
    """The process that is every router."""
    place = release.cluster.place
    header = jwt.get_unverified_header(release.token("fairlead.dev/control"))
    settings = Settings(
        kubeconfig=str(release.cluster.inside_kubeconfig),
        operator=f"http://127.0.0.1:{release.ports[1]}",
        release=release.namespace,
        platform=release.platform,
        issuer=ISSUER,
        key=str(place.pki / "sa.key"),
        key_id=header["kid"],
        day_s=asked.day_s,
        seed=asked.seed,
        plans=tuple(planned),
    )
    file = release.folder / "fleet.json"
    file.write_bytes(msgspec.json.encode(settings))
    with (release.folder / "fleet.log").open("w", encoding="utf-8") as log:
        running = release.cluster.popen(
            sys.executable, "-m", "tests.bench.operator.routers", str(file), stdout=log, stderr=log
        )
        try:
            eventually(lambda: listens(release, running), LISTENS_S)
            yield
        finally:
            running.terminate()
            running.wait(10)


def listens(release: Release, running: subprocess.Popen[str]) -> bool:
    """Whether the routers answer; at an address of no pod it is 404."""
    assert running.poll() is None, (release.folder / "fleet.log").read_text(encoding="utf-8")
    url = "http://127.0.0.1:9090/-/signals"
    answer = release.cluster.exec("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url, check=False)
    return answer.stdout == "404"


def bare(obj: dict[str, Any], namespace: str) -> dict[str, Any]:
    """The object as a person writes it."""
    return obj | {"metadata": {"name": obj["metadata"]["name"], "namespace": namespace}}


def apply(release: Release, planned: Sequence[fleet.Plan]) -> None:
    """The pools, and a policy for each."""
    objects = [bare(make(plan).obj(), release.platform) for plan in planned for make in (fleet.pool, fleet.policy)]
    for first in range(0, len(objects), BATCH):
        release.cluster.apply(*objects[first : first + BATCH])


def ready(release: Release) -> int:
    """Pools with a ready replica."""
    time.sleep(1)
    columns = "-o=jsonpath={range .items[*]}{.status.readyReplicas}{' '}{end}"
    text = release.cluster.kubectl("get", "mpool", "-n", release.platform, columns).stdout
    return sum(int(word) > 0 for word in text.split())


def metrics(process: Process) -> str:
    """The operator's."""
    return process.cluster.exec("curl", "-s", f"{process.url}/metrics").stdout


def decided(process: Process) -> int:
    """Pools of which there is a wish by their objectives."""
    assert process.running.poll() is None, process.text[-2000:]
    time.sleep(1)
    return len(figures.metric(metrics(process), "fairlead_pool_need"))


@dataclass(frozen=True, slots=True)
class Look:
    """What kernel and operator have counted so far."""

    operator: figures.Usage
    ledger: figures.Usage
    idle: float
    metrics: str

    def total(self, name: str, label: str = "") -> int:
        """Over all series of a metric that have this label."""
        series = figures.metric(self.metrics, name)
        return round(sum(value for labels, value in series.items() if label in labels))


def look(process: Process, books: Process) -> Look:
    """Now."""
    idle = int(Path("/proc/stat").read_text(encoding="ascii").split()[IDLE]) / TICKS
    return Look(usage(process), usage(books), idle, metrics(process))


def usage(process: Process) -> figures.Usage:
    """What a process of the cluster has used."""
    pid = (process.folder / f"{process.name}.pid").read_text(encoding="utf-8").strip()
    stat = process.cluster.exec("cat", f"/proc/{pid}/stat").stdout.rpartition(")")[2].split()
    status = process.cluster.exec("cat", f"/proc/{pid}/status").stdout
    sizes = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Vm")}
    return figures.Usage(
        cpu=(int(stat[USER]) + int(stat[SYSTEM])) / TICKS,
        children=(int(stat[CHILD_USER]) + int(stat[CHILD_SYSTEM])) / TICKS,
        resident=1024 * int(sizes["VmRSS"]),
        highest=1024 * int(sizes["VmHWM"]),
    )


def watch(release: Release, process: Process, books: Process, asked: Asked) -> dict[str, Any]:
    """Let time pass; the figures of it."""
    pools = {f"{release.platform}/{plan.name}" for plan in fleet.plans(asked.pools, asked.seed)}
    began, first = time.monotonic(), look(process, books)
    time.sleep(asked.seconds)
    ended, last = time.monotonic(), look(process, books)
    with (release.folder / TIMED).open(encoding="utf-8") as lines:
        timed = [one for one in figures.read(lines) if began <= one.at < ended]
    seconds = ended - began
    return {
        "operator": figures.share(first.operator, last.operator, seconds),
        "ledger": figures.share(first.ledger, last.ledger, seconds),
        "machine_idle_percent": round(100 * (last.idle - first.idle) / seconds / (os.cpu_count() or 1), 1),
        "punctuality": figures.punctuality(timed, pools, seconds),
        "api_requests_per_s": figures.by_method(timed, seconds),
        "replicas_ready": last.total("fairlead_pool_replicas", 'state="ready"'),
        "scale_changes": last.total(CHANGES) - first.total(CHANGES),
        "reconcile_errors": last.total(RECONCILES, FAILED) - first.total(RECONCILES, FAILED),
        "times": figures.times_ms(timed),
    }
